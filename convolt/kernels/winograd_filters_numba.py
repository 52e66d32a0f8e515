"""Filters on their way into the products of `winograd_numba`, and sums of products on their way back to filters' gradients.

Both are passes over all weights, so that they are written for many of them: 32 columns of a panel at a time, in threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.kernels.compiled import Compiled
from convolt.kernels.instructions import load, store, store_pairs
from convolt.kernels.jit import LANES, overload, register_jitable, types
from convolt.kernels.memory import in_order, taps_have_steps

PANEL, ROWS = 32, 8  # columns and rows of a product
POINTS, TAPS = 16, 9
GROUP = 16  # rows that are read at once: of channels-last weights, a cache line

U = np.uintp  # see conv_numba: unsigned indices, or LLVM makes no vectors
HALF = np.float32(0.5)
ONE, TWO, THREE, WIDE = U(1), U(2), U(3), U(PANEL)


@register_jitable(fastmath={"contract"})
def _line(source: Any, s: Any, step: Any, target: Any, t: Any, stride: Any) -> None:
    """Three rows of a panel that lie `step` apart → four that lie `stride` apart: the matrix G."""
    for j in range(WIDE):
        a, b, c = source[s + j], HALF * source[s + step + j], source[s + TWO * step + j]
        even = HALF * (a + c)
        target[t + j] = a
        target[t + stride + j] = even + b
        target[t + TWO * stride + j] = even - b
        target[t + THREE * stride + j] = c


@register_jitable(fastmath={"contract"})
def _line_back(source: Any, s: Any, step: Any, target: Any, t: Any, stride: Any) -> None:
    """Four rows → three: the matrix Gᵀ."""
    for j in range(WIDE):
        b, c = HALF * source[s + step + j], HALF * source[s + TWO * step + j]
        target[t + j] = source[s + j] + (b + c)
        target[t + stride + j] = b - c
        target[t + TWO * stride + j] = (b + c) + source[s + THREE * step + j]


@register_jitable
def _read(w: Any, s: Any, deep: Any, across: Any, step: Any, taps: Any) -> None:
    """taps[k, tap, column] of `GROUP` k and a panel of columns, in the order in which they lie in memory."""
    if across == 1:
        for k in range(GROUP):
            for tap in range(TAPS):
                for j in range(0, PANEL, LANES):
                    store(taps, (k * TAPS + tap) * PANEL + j, load(w, s + k * deep + tap * step + j))
    else:
        for j in range(PANEL):
            for tap in range(TAPS):
                for k in range(GROUP):
                    taps[(k * TAPS + tap) * PANEL + j] = w[s + j * across + tap * step + k * deep]


@register_jitable
def _points(taps: Any, t: Any, half: Any, out: Any, o: Any) -> None:
    """The 16 sums of the windows of a panel whose taps begin at t; columns of a window come first."""
    for column in range(3):
        _line(taps, U(t + column * PANEL), U(3 * PANEL), half, U(column * PANEL), U(3 * PANEL))
    for row in range(4):
        _line(half, U(row * 3 * PANEL), WIDE, out, U(o + row * PANEL), U(4 * PANEL))


def _write(out: Any, u: Any, at: Any, step: Any) -> None:
    """Writes a panel's 16 rows, `step` apart; as pairs with the 16 rows behind them where u has pairs of bfloat16."""


@overload(_write)
def _write_of(out: Any, u: Any, at: Any, step: Any) -> Any:
    def single(out: Any, u: Any, at: Any, step: Any) -> None:
        for point in range(POINTS):
            for j in range(0, PANEL, LANES):
                store(u, at + point * step + j, load(out, point * PANEL + j))

    def paired(out: Any, u: Any, at: Any, step: Any) -> None:
        for point in range(POINTS):
            for j in range(0, PANEL, LANES):
                store_pairs(u, at + point * step + j, load(out, point * PANEL + j), load(out, (POINTS + point) * PANEL + j))

    return paired if u.dtype == types.int32 else single


def _transform_rows(w: Any, u: Any, across: Any, deep: Any, step: Any, inner: Any, columns: Any, together: Any, first: Any,
                    last: Any) -> None:
    """u[point, panel, k // together, PANEL] for groups of k, from 0 to inner, of each panel; windows lie `deep` and `across` apart.

    The taps of a window lie `step` apart.
    """
    taps, half = np.empty(GROUP * TAPS * PANEL, np.float32), np.empty(12 * PANEL, np.float32)
    out, groups = np.empty(2 * POINTS * PANEL, np.float32), inner // GROUP
    for group in range(first, last):
        panel, start = group // groups, group % groups * GROUP
        _read(w, panel * PANEL * across + start * deep, deep, across, step, taps)
        for k in range(0, GROUP, together):
            for i in range(together):
                _points(taps, (k + i) * TAPS * PANEL, half, out, i * POINTS * PANEL)
            _write(out, u, (panel * inner + start + k) // together * PANEL, inner // together * columns)


def _gradient_rows(sums: Any, dw: Any, strides: Any, channels: Any, filters: Any, parts: Any, first: Any, last: Any) -> None:
    """Gᵀ (Σ of the parts) G of groups of `ROWS` channels, first … last - 1, from sums to dw, whose `strides` are (filter, channel, tap).

    The sums are those of `_weight_products`: [part, point, channel // ROWS, filter // PANEL, channel % ROWS, filter % PANEL].
    """
    together = ROWS * PANEL  # sums of a point that lie side by side
    points, half = np.empty(POINTS * together, np.float32), np.empty(12 * PANEL, np.float32)
    taps, size = np.empty(ROWS * TAPS * PANEL, np.float32), POINTS * channels * filters
    for group in range(first, last):
        for panel in range(0, filters, PANEL):
            for point in range(POINTS):
                s = (point * channels + group * ROWS) * filters + panel * ROWS
                for j in range(0, together, LANES):
                    total = load(sums, s + j)
                    for part in range(1, parts):
                        total = total + load(sums, s + j + part * size)
                    store(points, point * together + j, total)
            for row in range(ROWS):
                for line in range(4):
                    _line_back(points, U(line * together + row * PANEL), U(4 * together), half, U(line * PANEL), U(4 * PANEL))
                for column in range(3):
                    _line_back(half, U(column * 4 * PANEL), WIDE, taps, U((row * TAPS + column) * PANEL), U(3 * PANEL))
            for j in range(PANEL):  # a filter's windows for all channels of the group: they share cache lines
                o = (panel + j) * strides[0] + group * ROWS * strides[1]
                for row in range(ROWS):
                    for tap in range(TAPS):
                        dw[o + row * strides[1] + tap * strides[2]] = taps[(row * TAPS + tap) * PANEL + j]


_transform = Compiled(_transform_rows, fastmath={"contract"})
_gradient = Compiled(_gradient_rows, fastmath={"contract"})


def transform(weight: Tensor, dtype: torch.dtype, back: bool) -> Any:
    """Returns G w Gᵀ, columns of a window first, as a flat array (16, panels, k, PANEL).

    Args:
        weight: (F, C, 3, 3); F and C are multiples of `PANEL`.
        dtype: of what it is multiplied with; in bfloat16 two neighbours of k lie together in one int32.
        back: whether k counts filters and the columns are channels, for products with gradients; else the reverse.
    """
    filters, channels = weight.shape[:2]
    w = weight.detach().float()
    w = w if taps_have_steps(w) else w.contiguous()
    (deep, across), step = (w.stride()[:2] if back else w.stride()[1::-1]), w.stride(3)
    inner, columns = (filters, channels) if back else (channels, filters)
    together = 2 if dtype == torch.bfloat16 else 1
    u = torch.empty(POINTS * inner * columns // together, dtype=torch.int32 if together == 2 else torch.float32)
    groups = columns // PANEL * (inner // GROUP)
    _transform.over_rows((in_order(w), u, across, deep, step, inner, columns, together), groups, w.nbytes + u.nbytes)
    return u


def gradient(sums: Tensor, weight: Tensor) -> Tensor:
    """Returns the gradient of a weight (F, C, 3, 3), in float32 and as it lies in memory, of sums of products in parts, added in order."""
    filters, channels = weight.shape[:2]
    dw = torch.empty_like(weight, dtype=torch.float32)
    dw = dw if taps_have_steps(dw) else torch.empty(weight.shape)
    parts = sums.numel() // (POINTS * channels * filters)
    strides = (*dw.stride()[:2], dw.stride(3))
    _gradient.over_rows((sums.view(-1), in_order(dw), strides, channels, filters, parts), channels // ROWS, sums.nbytes)
    return dw
