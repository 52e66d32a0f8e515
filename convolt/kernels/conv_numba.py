"""Convolution of few channels + bias + ReLU + max-pooling on the CPU, without the activation between them.

Filters are taken in blocks of `LANES`, the fastest axis of the weights, so that LLVM turns the inner loops into vectors
with constant distances. The four results of a 2 × 2 window of a 3 × 3 convolution come from 16 pixels, which stay in
registers. Each part of the backward pass sums a fixed number of rows in float32, and the parts are added in float64, in
order: the result does not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from convolt.kernels.bits_numba import from_float, to_float
from convolt.kernels.compiled import Compiled
from convolt.kernels.instructions import pool_window, product
from convolt.kernels.jit import register_jitable
from convolt.kernels.memory import bits, empty_channels_last, numbers

LANES, PANEL, AT_ONCE = 16, 32, 6  # numbers in a vector, columns and rows of a product
WORK = 4  # a byte of the pooled output costs as much time as so many bytes in the kernels that only move memory
ROWS = 16  # of the pooled output, whose weight gradients are summed in float32

# Indices are unsigned, because Numba has signed ones wrap around, which no vector loop survives; and arrays are never
# sliced in a loop, because each slice counts references with a locked instruction.
U = np.uintp
ZERO, ONE, FULL = U(0), U(1), U(LANES)
ZERO_F = np.float32(0)
_two, _six = product(2, PANEL // LANES), product(AT_ONCE, PANEL // LANES)
T1, T2, T3, T4, T5, T6, T7, T8, T9 = (U(k * LANES) for k in range(1, 10))


@register_jitable(fastmath={"contract"})
def _taps(w: Any, o: Any, x0: Any, x1: Any, x2: Any, x3: Any, x4: Any, x5: Any, x6: Any, x7: Any, x8: Any) -> Any:
    """One result of a 3 × 3 convolution with one channel."""
    return (w[o] * x0 + w[o + T1] * x1 + w[o + T2] * x2 + w[o + T3] * x3 + w[o + T4] * x4 + w[o + T5] * x5 + w[o + T6] * x6
            + w[o + T7] * x7 + w[o + T8] * x8)


@register_jitable(fastmath={"contract"})
def _four(x: Any, s: Any, step: Any) -> Any:
    """Four neighbours of a line of pixels."""
    return to_float(x[s]), to_float(x[s + step]), to_float(x[s + step + step]), to_float(x[s + step + step + step])


@register_jitable(fastmath={"contract"})
def _larger(m: Any, w: Any, v: Any, place: Any) -> Any:
    """The larger of two and its place; NaN is larger than any number, the first of equals and the last NaN win, as in PyTorch."""
    better = (v > m) | (v != v)
    return v if better else m, place if better else w


@register_jitable(fastmath={"contract"})
def _finish(out: Any, code: Any, o: Any, value: Any, place: Any) -> None:
    """Writes the ReLU of the maximum, and its place unless ReLU cut it off."""
    dead = value <= np.float32(0)
    out[o] = from_float(np.float32(0) if dead else value, out[o])
    code[o] = np.uint8(255) if dead else place


@register_jitable(fastmath={"contract"})
def _forward_3_by_3(x: Any, weight: Any, bias: Any, out: Any, code: Any, acc: Any, s: Any, w: Any, f: Any, o: Any, count: Any, columns: Any,
                    step: Any, filters: Any, line: Any, channels: Any) -> None:
    """One line of windows of 2 × 2 results, for `count` filters from f: pixels begin at s, weights at w, outputs at o."""
    for _ in range(columns):
        for c in range(channels):
            a0, a1, a2, a3 = _four(x, s + c, channels)
            b0, b1, b2, b3 = _four(x, s + c + line, channels)
            c0, c1, c2, c3 = _four(x, s + c + line + line, channels)
            d0, d1, d2, d3 = _four(x, s + c + line + line + line, channels)
            k = w + c * T9
            if c + ONE < channels:
                for i in range(FULL):
                    first = c == ZERO
                    acc[i] = (ZERO_F if first else acc[i]) + _taps(weight, k + i, a0, a1, a2, b0, b1, b2, c0, c1, c2)
                    acc[T1 + i] = (ZERO_F if first else acc[T1 + i]) + _taps(weight, k + i, a1, a2, a3, b1, b2, b3, c1, c2, c3)
                    acc[T2 + i] = (ZERO_F if first else acc[T2 + i]) + _taps(weight, k + i, b0, b1, b2, c0, c1, c2, d0, d1, d2)
                    acc[T3 + i] = (ZERO_F if first else acc[T3 + i]) + _taps(weight, k + i, b1, b2, b3, c1, c2, c3, d1, d2, d3)
            else:
                for i in range(count):
                    m, p = acc[i] + _taps(weight, k + i, a0, a1, a2, b0, b1, b2, c0, c1, c2), np.uint8(0)
                    m, p = _larger(m, p, acc[T1 + i] + _taps(weight, k + i, a1, a2, a3, b1, b2, b3, c1, c2, c3), np.uint8(1))
                    m, p = _larger(m, p, acc[T2 + i] + _taps(weight, k + i, b0, b1, b2, c0, c1, c2, d0, d1, d2), np.uint8(2))
                    m, p = _larger(m, p, acc[T3 + i] + _taps(weight, k + i, b1, b2, b3, c1, c2, c3, d1, d2, d3), np.uint8(3))
                    _finish(out, code, o + i, m + bias[f + i], p)
        s, o = s + step, o + filters


def _forward_rows(x: Any, weight: Any, bias: Any, out: Any, code: Any, sizes: Any, first: Any, last: Any) -> None:
    height, width, out_height, out_width, filters, channels = sizes
    acc = np.zeros(4 * LANES, np.float32)
    line, span, chans = U(width * channels), U(channels * 9), U(channels)
    steps = (U(out_width), U(2 * channels), U(filters))
    for row in range(first, last):
        start = ((row // out_height) * height + (row % out_height) * 2) * width
        s, o = U(start * channels), U(row * out_width * filters)
        for begin in range(0, filters, LANES):
            f, count = U(begin), U(min(LANES, filters - begin))
            _forward_3_by_3(x, weight, bias, out, code, acc, s, f * span, f, o + f, count, *steps, line, chans)


@register_jitable(fastmath={"contract"})
def _if_at(grad: Any, code: Any, o: Any, place: Any) -> Any:
    """The gradient if the maximum was at `place`, else 0."""
    return to_float(grad[o]) if code[o] == place else ZERO_F


@register_jitable(fastmath={"contract"})
def _backward_3_by_3(grad: Any, code: Any, x: Any, sums: Any, s: Any, t: Any, o: Any, count: Any, columns: Any, step: Any,
                     filters: Any, line: Any, channels: Any) -> None:
    """Adds one line's part of the gradients of weight and bias to the sums that begin at t."""
    for _ in range(columns):
        for c in range(channels):
            a0, a1, a2, a3 = _four(x, s + c, channels)
            b0, b1, b2, b3 = _four(x, s + c + line, channels)
            c0, c1, c2, c3 = _four(x, s + c + line + line, channels)
            d0, d1, d2, d3 = _four(x, s + c + line + line + line, channels)
            k = t + c * (T9 + FULL)
            for j in range(count):
                p, q = _if_at(grad, code, o + j, np.uint8(0)), _if_at(grad, code, o + j, np.uint8(1))
                r, u = _if_at(grad, code, o + j, np.uint8(2)), _if_at(grad, code, o + j, np.uint8(3))
                i = k + j
                sums[i] += a0 * p + a1 * q + b0 * r + b1 * u
                sums[i + T1] += a1 * p + a2 * q + b1 * r + b2 * u
                sums[i + T2] += a2 * p + a3 * q + b2 * r + b3 * u
                sums[i + T3] += b0 * p + b1 * q + c0 * r + c1 * u
                sums[i + T4] += b1 * p + b2 * q + c1 * r + c2 * u
                sums[i + T5] += b2 * p + b3 * q + c2 * r + c3 * u
                sums[i + T6] += c0 * p + c1 * q + d0 * r + d1 * u
                sums[i + T7] += c1 * p + c2 * q + d1 * r + d2 * u
                sums[i + T8] += c2 * p + c3 * q + d2 * r + d3 * u
                sums[i + T9] += (p + q) + (r + u)
        s, o = s + step, o + filters


def _backward_parts(grad: Any, code: Any, x: Any, sums: Any, sizes: Any, rows: Any, first: Any, last: Any) -> None:
    height, width, out_height, out_width, filters, channels = sizes
    line, span, chans = U(width * channels), U(channels * 10), U(channels)
    steps = (U(out_width), U(2 * channels), U(filters))
    padded = U((filters + LANES - 1) // LANES * LANES)
    for part in range(first, last):
        begin = U(part) * padded * span
        for i in range(padded * span):
            sums[begin + i] = ZERO_F
        for row in range(part * ROWS, min(rows, (part + 1) * ROWS)):
            start = ((row // out_height) * height + (row % out_height) * 2) * width
            s, o = U(start * channels), U(row * out_width * filters)
            for f in range(0, filters, LANES):
                t, of, count = begin + U(f) * span, o + U(f), U(min(LANES, filters - f))
                _backward_3_by_3(grad, code, x, sums, s, t, of, count, *steps, line, chans)


def _add_parts(parts: Any, dweight: Any, dbias: Any, channels: Any) -> None:
    """Sums of all parts, in the order of weights and bias."""
    size = (dbias.size + LANES - 1) // LANES * LANES * channels * 10
    total = np.zeros(size, np.float64)
    for part in range(parts.size // size):
        for i in range(size):
            total[i] += np.float64(parts[part * size + i])
    for f in range(dbias.size):
        block = f // LANES * channels * 10 * LANES + f % LANES
        for c in range(channels):
            for k in range(9):
                dweight[(f * channels + c) * 9 + k] = np.float32(total[block + (c * 10 + k) * LANES])
        dbias[f] = np.float32(total[block + 9 * LANES])


def _forward_by_products(x: Any, weight: Any, bias: Any, out: Any, code: Any, sizes: Any, relu: Any, first: Any, last: Any) -> None:
    """The same where filters fill panels: two lines of results as products of pixels and weights, which are then pooled."""
    height, width, out_height, out_width, filters, channels = sizes
    line, results = width * channels, 2 * out_width
    pixels, y = np.empty(4 * line, np.float32), np.empty(2 * results * filters, np.float32)
    for row in range(first, last):
        start = U(((row // out_height) * height + (row % out_height) * 2) * line)
        for i in range(U(4 * line)):
            pixels[i] = to_float(x[start + i])
        for lower in range(2):
            for panel in range(0, filters, PANEL):
                for column in range(0, results, 2 if results < AT_ONCE else AT_ONCE):
                    c = min(column, max(0, results - AT_ONCE))  # the last ones overlap
                    at = (lower * results + (column if results < AT_ONCE else c)) * filters + panel
                    if results < AT_ONCE:
                        _two(pixels, lower * line + column * channels, channels, line, 1, weight, panel, filters, y, at, filters, 3,
                             3 * channels, 0)
                    else:
                        _six(pixels, lower * line + c * channels, channels, line, 1, weight, panel, filters, y, at, filters, 3,
                             3 * channels, 0)
        for column in range(out_width):
            pool_window(y, 2 * column * filters, filters, results * filters, bias, out, code, (row * out_width + column) * filters, filters,
                        relu)


_products = Compiled(_forward_by_products)
_forward = Compiled(_forward_rows, fastmath={"contract"})
_backward = Compiled(_backward_parts, fastmath={"contract"})
_sum = Compiled(_add_parts)


def _blocked(weight: Tensor) -> Tensor:
    """(F, C, 3, 3) → blocks of LANES filters: (blocks, C, 3, 3, LANES), zeros at the end."""
    filters = weight.shape[0]
    full = F.pad(weight.detach().to(torch.float32).flatten(1), (0, 0, 0, -filters % LANES))
    return full.view(-1, LANES, full.shape[1]).transpose(1, 2).contiguous()


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, keep: bool) -> tuple[Tensor, Tensor | None]:
    """See `reference.conv_forward`; `x` has channels-last memory."""
    n, channels, height, width = x.shape
    filters = weight.shape[0]
    shape = (n, filters, (height - 2) // 2, (width - 2) // 2)
    out = empty_channels_last(shape, x.dtype, x.device)
    code = empty_channels_last(shape, torch.uint8, x.device)
    added = torch.zeros(filters) if bias is None else bias.detach().to(torch.float32).contiguous()
    sizes = (height, width, shape[2], shape[3], filters, channels)
    if filters % PANEL == 0:
        lines = weight.detach().float().permute(2, 3, 1, 0).contiguous()  # in the order of the pixels in memory
        given = (bits(x), lines.view(-1), added, bits(out), numbers(code), sizes, True)
        _products.over_rows(given, n * shape[2], WORK * out.nbytes)
        return out, code if keep else None
    arrays = (bits(x), _blocked(weight).view(-1), added, bits(out), numbers(code), sizes)
    _forward.over_rows(arrays, n * shape[2], WORK * out.nbytes)
    return out, code if keep else None


def backward(grad: Tensor, code: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.conv_backward`; all have channels-last memory."""
    _, channels, height, width = x.shape
    n, filters, out_height, out_width = grad.shape
    rows, size = n * out_height, -(-filters // LANES) * channels * 10 * LANES
    count = -(-rows // ROWS)
    sums, dweight, dbias = torch.empty(count * size), torch.empty(filters, channels, 3, 3), torch.empty(filters)
    arrays = (bits(grad), numbers(code), bits(x), sums, (height, width, out_height, out_width, filters, channels), rows)
    _backward.over_rows(arrays, count, WORK * grad.nbytes)
    _sum(sums, dweight.view(-1), dbias, channels)
    return dweight, dbias
