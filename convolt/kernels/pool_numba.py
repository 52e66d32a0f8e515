"""Bias + ReLU + max-pooling on the CPU: one pass forward, one pass backward, float32 or bfloat16.

All arrays are flat, in channels-last order, and hold bits (see `bits_numba`). The inner loops run over slices of
channels, which is what lets LLVM vectorise them; the maximum is one of integers, which order as the numbers do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.kernels.bits_numba import from_float, ordered, to_float, unordered
from convolt.kernels.compiled import Compiled
from convolt.kernels.jit import register_jitable
from convolt.kernels.memory import bits, empty_channels_last, numbers


@register_jitable
def _best_of_2_by_2(x: Any, start: Any, best: Any, where: Any, line: Any, channels: Any, out_width: Any) -> None:
    """Fills a line of outputs: the largest of each window, as an ordered integer, and its place."""
    top, bottom = x[start : start + line], x[start + line : start + 2 * line]
    for column in range(out_width):
        left, right, o = 2 * column * channels, (2 * column + 1) * channels, column * channels
        a, b = top[left : left + channels], top[right : right + channels]
        c, d = bottom[left : left + channels], bottom[right : right + channels]
        m, w = best[o : o + channels], where[o : o + channels]
        for i in range(channels):
            ab, cd = ordered(a[i]), ordered(c[i])
            va, vb = ordered(b[i]), ordered(d[i])
            wab = np.uint8(1) if va > ab else np.uint8(0)
            wcd = np.uint8(3) if vb > cd else np.uint8(2)
            ab, cd = max(ab, va), max(cd, vb)
            w[i] = wcd if cd > ab else wab
            m[i] = max(ab, cd)


@register_jitable
def _best_of_any(x: Any, start: Any, best: Any, where: Any, line: Any, channels: Any, out_width: Any, ph: Any, pw: Any) -> None:
    """The same for windows of any size."""
    for column in range(out_width):
        o = column * channels
        m, w = best[o : o + channels], where[o : o + channels]
        for place in range(ph * pw):
            s = start + (place // pw) * line + (column * pw + place % pw) * channels
            a = x[s : s + channels]
            for i in range(channels):
                v = ordered(a[i])
                better = place == 0 or v > m[i]
                w[i] = np.uint8(place) if better else w[i]
                m[i] = v if better else m[i]


@Compiled
def _forward(x: Any, bias: Any, out: Any, code: Any, keep: Any, sizes: Any, first: Any, last: Any) -> None:
    height, width, channels, ph, pw = sizes
    out_height, out_width = height // ph, width // pw
    line, out_line = width * channels, out_width * channels
    best = np.empty(out_line, x.dtype)
    scratch = np.empty(out_line, np.uint8)
    zero = best.dtype.type(0)
    for row in range(first, last):
        image, out_row = row // out_height, row % out_height
        start = (image * height + out_row * ph) * line
        where = code[row * out_line : (row + 1) * out_line] if keep else scratch
        if ph == 2 and pw == 2:
            _best_of_2_by_2(x, start, best, where, line, channels, out_width)
        else:
            _best_of_any(x, start, best, where, line, channels, out_width, ph, pw)
        y = out[row * out_line : (row + 1) * out_line]
        for i in range(out_line):
            v = to_float(unordered(best[i])) + bias[i]
            dead = v <= np.float32(0)
            y[i] = zero if dead else from_float(v, best[i])
            where[i] = np.uint8(255) if dead else where[i]


@Compiled
def _backward(grad: Any, code: Any, out: Any, bias_rows: Any, sizes: Any, first: Any, last: Any) -> None:
    height, width, channels, ph, pw = sizes
    out_height, out_width = height // ph, width // pw
    line, out_line = width * channels, out_width * channels
    want_bias = bias_rows.size > 0
    zero = out.dtype.type(0)
    for row in range(first, last):
        image, out_row = row // out_height, row % out_height
        start = (image * height + out_row * ph) * line
        g_row, w_row = grad[row * out_line : (row + 1) * out_line], code[row * out_line : (row + 1) * out_line]
        for column in range(out_width):
            o = column * channels
            g, w = g_row[o : o + channels], w_row[o : o + channels]
            for place in range(ph * pw):
                s = start + (place // pw) * line + (column * pw + place % pw) * channels
                target, here = out[s : s + channels], np.uint8(place)
                for i in range(channels):
                    target[i] = g[i] if w[i] == here else zero
        for i in range(ph):  # columns and rows that no window reached
            out[start + i * line + out_width * pw * channels : start + (i + 1) * line] = zero
        if out_row == out_height - 1:
            out[start + ph * line : (image + 1) * height * line] = zero
        if want_bias:
            total = bias_rows[row * channels : (row + 1) * channels]
            total[:] = np.float32(0)
            for column in range(out_width):
                o = column * channels
                g, w = g_row[o : o + channels], w_row[o : o + channels]
                for i in range(channels):
                    v = to_float(g[i])
                    total[i] += np.float32(0) if w[i] == np.uint8(255) else v


def forward(x: Tensor, bias: Tensor | None, pool: tuple[int, int], keep: bool) -> tuple[Tensor, Tensor | None]:
    """See `reference.pool_forward`; `x` has channels-last memory."""
    n, channels, height, width = x.shape
    out_height, out_width = height // pool[0], width // pool[1]
    shape = (n, channels, out_height, out_width)
    out = empty_channels_last(shape, x.dtype, x.device)
    code = empty_channels_last(shape if keep else (0, channels, 0, 0), torch.uint8, x.device)
    line = torch.zeros(out_width * channels) if bias is None else bias.detach().to(torch.float32).repeat(out_width)
    arrays = (bits(x), line, bits(out), numbers(code), keep, (height, width, channels, *pool))
    _forward.over_rows(arrays, n * out_height, x.nbytes)
    return out, code if keep else None


def backward(grad: Tensor, code: Tensor, pool: tuple[int, int], size: tuple[int, int], want_bias: bool) -> tuple[Tensor, Tensor | None]:
    """See `reference.pool_backward`; `grad` and `code` have channels-last memory."""
    n, channels, out_height, _ = grad.shape
    out = empty_channels_last((n, channels, *size), grad.dtype, grad.device)
    bias_rows = torch.empty((n * out_height, channels) if want_bias else (0, channels))
    arrays = (bits(grad), numbers(code), bits(out), bias_rows.view(-1), (*size, channels, *pool))
    _backward.over_rows(arrays, n * out_height, out.nbytes)
    return out, bias_rows.sum(0, dtype=torch.float64).to(torch.float32) if want_bias else None
