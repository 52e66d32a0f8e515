"""Convolution of few channels + bias + ReLU + max-pooling on the CPU, without the activation between them.

Filters are taken in blocks of `LANES`, the fastest axis of the weights, so that LLVM turns the inner loops into vectors
with constant distances. The four results of a 2 × 2 window of a 3 × 3 convolution come from 16 pixels, which stay in
registers; other sizes take a loop over taps. Each part of the backward pass sums a fixed number of rows in float32 and
the parts are added in float64, in order: the result does not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numba.extending import register_jitable
from torch import Tensor

from convolt.kernels.bits_numba import Compiled, from_float, to_float
from convolt.kernels.memory import bits, empty_channels_last, flat
from convolt.kernels.threads import over_rows

LANES = 16
ROWS = 16  # of the pooled output, whose weight gradients are summed in float32


@register_jitable
def _taps(w: Any, i: Any, x0: Any, x1: Any, x2: Any, x3: Any, x4: Any, x5: Any, x6: Any, x7: Any, x8: Any) -> Any:
    """One result of a 3 × 3 convolution with one channel."""
    return (w[i] * x0 + w[16 + i] * x1 + w[32 + i] * x2 + w[48 + i] * x3 + w[64 + i] * x4 + w[80 + i] * x5 + w[96 + i] * x6
            + w[112 + i] * x7 + w[128 + i] * x8)


@register_jitable
def _row_of_4(x: Any, s: Any, step: Any) -> Any:
    return to_float(x[s]), to_float(x[s + step]), to_float(x[s + 2 * step]), to_float(x[s + 3 * step])


@register_jitable
def _convolve_3_by_3(x: Any, start: Any, w: Any, acc: Any, line: Any, channels: Any) -> None:
    """Fills `acc` (4 places, LANES) for one 2 × 2 window whose pixels begin at `start`."""
    acc[:] = np.float32(0)
    for c in range(channels):
        s = start + c
        a0, a1, a2, a3 = _row_of_4(x, s, channels)
        b0, b1, b2, b3 = _row_of_4(x, s + line, channels)
        c0, c1, c2, c3 = _row_of_4(x, s + 2 * line, channels)
        d0, d1, d2, d3 = _row_of_4(x, s + 3 * line, channels)
        wc = w[c * 144 : c * 144 + 144]
        for i in range(16):
            acc[i] += _taps(wc, i, a0, a1, a2, b0, b1, b2, c0, c1, c2)
            acc[16 + i] += _taps(wc, i, a1, a2, a3, b1, b2, b3, c1, c2, c3)
            acc[32 + i] += _taps(wc, i, b0, b1, b2, c0, c1, c2, d0, d1, d2)
            acc[48 + i] += _taps(wc, i, b1, b2, b3, c1, c2, c3, d1, d2, d3)


@register_jitable
def _convolve_any(x: Any, start: Any, w: Any, acc: Any, line: Any, sizes: Any) -> None:
    """The same for any sizes."""
    channels, kh, kw, ph, pw = sizes
    acc[:] = np.float32(0)
    for place in range(ph * pw):
        s = start + (place // pw) * line + (place % pw) * channels
        total = acc[place * 16 : place * 16 + 16]
        for c in range(channels):
            for tap in range(kh * kw):
                v = to_float(x[s + (tap // kw) * line + (tap % kw) * channels + c])
                o = (c * kh * kw + tap) * 16
                wt = w[o : o + 16]
                for i in range(16):
                    total[i] += wt[i] * v


@register_jitable
def _largest(acc: Any, bias: Any, best: Any, where: Any, places: Any) -> None:
    """The largest of each lane + bias, NaN if there is one, and its place, 255 where it is not above zero."""
    for i in range(16):
        best[i] = acc[i]
        where[i] = np.uint8(0)
    for place in range(1, places):
        a, here = acc[place * 16 : place * 16 + 16], np.uint8(place)
        for i in range(16):
            m, v = best[i], a[i]
            better = (v > m) or ((v != v) and (m == m))
            best[i] = v if better else m
            where[i] = here if better else where[i]
    for i in range(16):
        v = best[i] + bias[i]
        dead = v <= np.float32(0)
        best[i] = np.float32(0) if dead else v
        where[i] = np.uint8(255) if dead else where[i]


def _forward_rows(x: Any, weight: Any, bias: Any, out: Any, code: Any, keep: Any, sizes: Any, first: Any, last: Any) -> None:
    height, width, out_height, out_width, filters, channels, kh, kw, ph, pw = sizes
    line, span, places = width * channels, channels * kh * kw * 16, ph * pw
    acc, best, where = np.empty(places * 16, np.float32), np.empty(16, np.float32), np.empty(16, np.uint8)
    usual = kh == 3 and kw == 3 and ph == 2 and pw == 2
    for row in range(first, last):
        start = ((row // out_height) * height + (row % out_height) * ph) * line
        for column in range(out_width):
            s, o = start + column * pw * channels, (row * out_width + column) * filters
            for f in range(0, filters, 16):
                w = weight[(f // 16) * span : (f // 16 + 1) * span]
                if usual:
                    _convolve_3_by_3(x, s, w, acc, line, channels)
                else:
                    _convolve_any(x, s, w, acc, line, (channels, kh, kw, ph, pw))
                _largest(acc, bias[f : f + 16], best, where, places)
                count = min(16, filters - f)
                y = out[o + f : o + f + count]
                for i in range(count):
                    y[i] = from_float(best[i], y[i])
                if keep:
                    k = code[o + f : o + f + count]
                    for i in range(count):
                        k[i] = where[i]


@register_jitable
def _gather_3_by_3(x: Any, start: Any, g: Any, acc: Any, line: Any, channels: Any) -> None:
    """Adds one window's part of the weight gradient: `g` (4 places, LANES) is zero but at the place of the maximum."""
    for c in range(channels):
        s = start + c
        a0, a1, a2, a3 = _row_of_4(x, s, channels)
        b0, b1, b2, b3 = _row_of_4(x, s + line, channels)
        c0, c1, c2, c3 = _row_of_4(x, s + 2 * line, channels)
        d0, d1, d2, d3 = _row_of_4(x, s + 3 * line, channels)
        t = acc[c * 144 : c * 144 + 144]
        for i in range(16):
            p, q, r, u = g[i], g[16 + i], g[32 + i], g[48 + i]
            t[i] += a0 * p + a1 * q + b0 * r + b1 * u
            t[16 + i] += a1 * p + a2 * q + b1 * r + b2 * u
            t[32 + i] += a2 * p + a3 * q + b2 * r + b3 * u
            t[48 + i] += b0 * p + b1 * q + c0 * r + c1 * u
            t[64 + i] += b1 * p + b2 * q + c1 * r + c2 * u
            t[80 + i] += b2 * p + b3 * q + c2 * r + c3 * u
            t[96 + i] += c0 * p + c1 * q + d0 * r + d1 * u
            t[112 + i] += c1 * p + c2 * q + d1 * r + d2 * u
            t[128 + i] += c2 * p + c3 * q + d2 * r + d3 * u


@register_jitable
def _gather_any(x: Any, start: Any, g: Any, acc: Any, line: Any, sizes: Any) -> None:
    """The same for any sizes."""
    channels, kh, kw, ph, pw = sizes
    for place in range(ph * pw):
        s = start + (place // pw) * line + (place % pw) * channels
        here = g[place * 16 : place * 16 + 16]
        for c in range(channels):
            for tap in range(kh * kw):
                v = to_float(x[s + (tap // kw) * line + (tap % kw) * channels + c])
                o = (c * kh * kw + tap) * 16
                t = acc[o : o + 16]
                for i in range(16):
                    t[i] += here[i] * v


def _backward_parts(grad: Any, code: Any, x: Any, parts: Any, sizes: Any, rows: Any, first: Any, last: Any) -> None:
    height, width, out_height, out_width, filters, channels, kh, kw, ph, pw = sizes
    line, span, places = width * channels, (channels * kh * kw + 1) * 16, ph * pw
    blocks = (filters + 15) // 16
    g = np.empty(places * 16, np.float32)
    usual = kh == 3 and kw == 3 and ph == 2 and pw == 2
    for part in range(first, last):
        sums = parts[part * blocks * span : (part + 1) * blocks * span]
        sums[:] = np.float32(0)
        for row in range(part * 16, min(rows, part * 16 + 16)):
            start = ((row // out_height) * height + (row % out_height) * ph) * line
            for column in range(out_width):
                s, o = start + column * pw * channels, (row * out_width + column) * filters
                for f in range(0, filters, 16):
                    count = min(16, filters - f)
                    if count < 16:
                        g[:] = np.float32(0)
                    total = sums[(f // 16) * span : (f // 16 + 1) * span]
                    dy, w = grad[o + f : o + f + count], code[o + f : o + f + count]
                    t = total[span - 16 : span]
                    for i in range(count):
                        v = to_float(dy[i])
                        t[i] += np.float32(0) if w[i] == np.uint8(255) else v
                    for place in range(places):
                        here, k = g[place * 16 : place * 16 + 16], np.uint8(place)
                        for i in range(count):
                            v = to_float(dy[i])
                            here[i] = v if w[i] == k else np.float32(0)
                    if usual:
                        _gather_3_by_3(x, s, g, total, line, channels)
                    else:
                        _gather_any(x, s, g, total, line, (channels, kh, kw, ph, pw))


def _add_parts(parts: Any, total: Any) -> None:
    for part in range(parts.size // total.size):
        p = parts[part * total.size : (part + 1) * total.size]
        for i in range(total.size):
            total[i] += np.float64(p[i])


_forward = Compiled(_forward_rows, fastmath={"contract"})
_backward = Compiled(_backward_parts, fastmath={"contract"})
_sum = Compiled(_add_parts)


def _blocked(weight: Tensor) -> Tensor:
    """(F, C, kh, kw) → blocks of LANES filters: (blocks, C, kh, kw, LANES), zeros at the end."""
    filters = weight.shape[0]
    full = F.pad(weight.detach().to(torch.float32).flatten(1), (0, 0, 0, -filters % LANES))
    return full.view(-1, LANES, full.shape[1]).transpose(1, 2).contiguous()


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, pool: tuple[int, int], keep: bool) -> tuple[Tensor, Tensor | None]:
    """See `reference.conv_forward`; `x` has channels-last memory."""
    n, channels, height, width = x.shape
    filters, _, kh, kw = weight.shape
    shape = (n, filters, (height - kh + 1) // pool[0], (width - kw + 1) // pool[1])
    out = empty_channels_last(shape, x.dtype, x.device)
    code = empty_channels_last(shape if keep else (0, filters, 0, 0), torch.uint8, x.device)
    added = torch.zeros(-(-filters // LANES) * LANES)
    if bias is not None:
        added[:filters] = bias.detach()
    sizes = (height, width, shape[2], shape[3], filters, channels, kh, kw, *pool)
    arrays = (bits(x), _blocked(weight).view(-1).numpy(), added.numpy(), bits(out), flat(code).numpy(), keep, sizes)
    over_rows(lambda first, last: _forward(*arrays, first, last), n * shape[2], 4 * out.nbytes)
    return out, code if keep else None


def backward(grad: Tensor, code: Tensor, x: Tensor, kernel: tuple[int, int], pool: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """See `reference.conv_backward`; all have channels-last memory."""
    _, channels, height, width = x.shape
    n, filters, out_height, out_width = grad.shape
    rows, blocks, taps = n * out_height, -(-filters // LANES), channels * kernel[0] * kernel[1]
    count = -(-rows // ROWS)
    parts = torch.empty(count * blocks * (taps + 1) * LANES)
    sizes = (height, width, out_height, out_width, filters, channels, *kernel, *pool)
    arrays = (bits(grad), flat(code).numpy(), bits(x), parts.numpy(), sizes, rows)
    over_rows(lambda first, last: _backward(*arrays, first, last), count, 4 * grad.nbytes)
    total = torch.zeros(blocks * (taps + 1) * LANES, dtype=torch.float64)
    _sum(parts.numpy(), total.numpy())
    by_filter = total.view(blocks, taps + 1, LANES).transpose(1, 2).reshape(blocks * LANES, taps + 1)[:filters].to(torch.float32)
    return by_filter[:, :taps].reshape(filters, channels, *kernel), by_filter[:, taps].contiguous()
