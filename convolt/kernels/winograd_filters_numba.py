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

PANEL, ROWS = 32, 8  # columns and rows of a product
POINTS, TAPS = 16, 9

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
def _points(w: Any, s: Any, across: Any, taps: Any, half: Any, out: Any, o: Any) -> None:
    """The 16 sums of the windows at s, s + across, … of a panel; columns of a window come first."""
    for j in range(PANEL):
        for tap in range(TAPS):
            taps[tap * PANEL + j] = w[s + j * across + tap]
    for column in range(3):
        _line(taps, U(column * PANEL), U(3 * PANEL), half, U(column * PANEL), U(3 * PANEL))
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


def _transform_rows(w: Any, u: Any, across: Any, deep: Any, inner: Any, columns: Any, together: Any, first: Any, last: Any) -> None:
    """Rows first … last - 1 of u[point, panel, k // together, PANEL], k from 0 to inner; windows lie `deep` and `across` apart."""
    taps, half = np.empty(TAPS * PANEL, np.float32), np.empty(12 * PANEL, np.float32)
    out = np.empty(2 * POINTS * PANEL, np.float32)
    steps = inner // together
    for row in range(first, last):
        panel, k = row // steps, row % steps * together
        for i in range(together):
            _points(w, panel * PANEL * across + (k + i) * deep, across, taps, half, out, i * POINTS * PANEL)
        _write(out, u, row * PANEL, steps * columns)


def _gradient_rows(sums: Any, dw: Any, channels: Any, filters: Any, parts: Any, first: Any, last: Any) -> None:
    """Gᵀ (Σ of the parts) G of channels first … last - 1, from sums to dw[filter, channel, tap].

    The sums are those of `_weight_products`: [part, point, channel // ROWS, filter // PANEL, channel % ROWS, filter % PANEL].
    """
    points, half = np.empty(POINTS * PANEL, np.float32), np.empty(12 * PANEL, np.float32)
    taps = np.empty(TAPS * PANEL, np.float32)
    size = POINTS * channels * filters
    for channel in range(first, last):
        for panel in range(0, filters, PANEL):
            for point in range(POINTS):
                s = (point * channels + channel // ROWS * ROWS) * filters + panel * ROWS + channel % ROWS * PANEL
                for j in range(0, PANEL, LANES):
                    total = load(sums, s + j)
                    for part in range(1, parts):
                        total = total + load(sums, s + j + part * size)
                    store(points, point * PANEL + j, total)
            for row in range(4):
                _line_back(points, U(row * PANEL), U(4 * PANEL), half, U(row * PANEL), U(4 * PANEL))
            for column in range(3):
                _line_back(half, U(column * 4 * PANEL), WIDE, taps, U(column * PANEL), U(3 * PANEL))
            for j in range(PANEL):
                o = ((panel + j) * channels + channel) * TAPS
                for tap in range(TAPS):
                    dw[o + tap] = taps[tap * PANEL + j]


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
    w = weight.detach().float().contiguous().view(-1)
    inner, columns = (filters, channels) if back else (channels, filters)
    deep, across = (TAPS * channels, TAPS) if back else (TAPS, TAPS * channels)
    together = 2 if dtype == torch.bfloat16 else 1
    u = torch.empty(POINTS * inner * columns // together, dtype=torch.int32 if together == 2 else torch.float32)
    rows = columns // PANEL * (inner // together)
    _transform.over_rows((w, u, across, deep, inner, columns, together), rows, w.nbytes + u.nbytes)
    return u


def gradient(sums: Tensor, channels: int, filters: int) -> Tensor:
    """Returns the gradient (F, C, 3, 3), float32, of sums of products in parts, which are added in order."""
    dw = torch.empty(filters, channels, 3, 3)
    parts = sums.numel() // (POINTS * channels * filters)
    arrays = (sums.view(-1), dw.view(-1), channels, filters, parts)
    _gradient.over_rows(arrays, channels, sums.nbytes)
    return dw
