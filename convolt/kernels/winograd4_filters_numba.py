"""Filters on their way into the products of `winograd4_numba`, and sums of products on their way back to filters' gradients.

Both are passes over all weights, 36 numbers for each window of 9. So they read weights as they lie in memory, write once, and run in
threads: by products of matrices and PyTorch's copies, 256 filters over 256 channels took 6 ms on the way in, longer than their tiles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.kernels.compiled import Compiled
from convolt.kernels.instructions import load, number, store, times_plus, zeros
from convolt.kernels.jit import LANES, register_jitable
from convolt.kernels.memory import in_order, taps_have_steps
from convolt.kernels.winograd4_tiles_numba import six_of, write_six

POINTS, TAPS = 36, 9
LINE = 16  # numbers of a cache line, between one point and the next, which would else share a cache's set
ROWS, COLUMNS = 16, 64  # that are read or written at once: of channels-last weights a cache line, of points four

_FOUR = np.float32(4)
_QUARTER, _SIXTH, _LESS_SIXTH, _TWELFTH, _LAST = (np.float32(1 / k) for k in (4, 6, -6, 12, 24))


@register_jitable
def _line(a: Any, b: Any, c: Any) -> Any:
    """G times three numbers."""
    even, odd = (a + c) * number(_LESS_SIXTH), b * number(_SIXTH)
    wide, half = times_plus(c, number(_FOUR), a) * number(_LAST), b * number(_TWELFTH)
    return a * number(_QUARTER), even - odd, even + odd, wide + half, wide - half, c


@register_jitable
def _line_back(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
    """Gᵀ times six numbers."""
    near, far = (b + c) * number(_LESS_SIXTH), d + e
    return (times_plus(a, number(_QUARTER), times_plus(far, number(_LAST), near)),
            times_plus(c - b, number(_SIXTH), (d - e) * number(_TWELFTH)), times_plus(far, number(_SIXTH), near) + f)


@register_jitable
def _write_three(out: Any, o: Any, step: Any, three: Any) -> None:
    store(out, o, three[0])
    store(out, o + step, three[1])
    store(out, o + 2 * step, three[2])


@register_jitable
def _read(w: Any, s: Any, across: Any, deep: Any, step: Any, columns: Any, taps: Any) -> None:
    """taps[row, tap, column] of `ROWS` rows, in the order in which they lie in memory."""
    if across == 1:
        for row in range(ROWS):
            for tap in range(TAPS):
                for column in range(0, columns, LANES):
                    store(taps, (row * TAPS + tap) * COLUMNS + column, load(w, s + row * deep + tap * step + column))
    else:
        for column in range(columns):
            for tap in range(TAPS):
                for row in range(ROWS):
                    taps[(row * TAPS + tap) * COLUMNS + column] = w[s + column * across + tap * step + row * deep]


@register_jitable
def _write(taps: Any, w: Any, s: Any, across: Any, deep: Any, step: Any, columns: Any) -> None:
    """The reverse of `_read`."""
    if across == 1:
        for row in range(ROWS):
            for tap in range(TAPS):
                for column in range(0, columns, LANES):
                    store(w, s + row * deep + tap * step + column, load(taps, (row * TAPS + tap) * COLUMNS + column))
    else:
        for column in range(columns):
            for tap in range(TAPS):
                for row in range(ROWS):
                    w[s + column * across + tap * step + row * deep] = taps[(row * TAPS + tap) * COLUMNS + column]


@register_jitable
def _write_points(taps: Any, t: Any, half: Any, u: Any, o: Any, apart: Any) -> None:
    """G w Gᵀ of `LANES` windows whose taps begin at t: 36 vectors that lie `apart`, from o on."""
    for x in range(3):
        s = t + x * COLUMNS
        write_six(half, x * LANES, 3 * LANES, _line(load(taps, s), load(taps, s + 3 * COLUMNS), load(taps, s + 6 * COLUMNS)))
    for i in range(6):
        s = 3 * i * LANES
        write_six(u, o + 6 * i * apart, apart, _line(load(half, s), load(half, s + LANES), load(half, s + 2 * LANES)))


@register_jitable
def _write_taps(points: Any, s: Any, half: Any, taps: Any, t: Any) -> None:
    """Gᵀ m G of `LANES` columns of 36 sums."""
    for j in range(6):
        _write_three(half, j * LANES, 6 * LANES, _line_back(*six_of(points, s + j * COLUMNS, 6 * COLUMNS)))
    for y in range(3):
        _write_three(taps, t + 3 * y * COLUMNS, COLUMNS, _line_back(*six_of(half, 6 * y * LANES, LANES)))


def _transform_rows(w: Any, u: Any, start: Any, across: Any, deep: Any, step: Any, rows: Any, count: Any, width: Any, columns: Any,
                    first: Any, last: Any) -> None:
    """u[point, column // width, row, column % width] of blocks of `ROWS` rows and `COLUMNS` columns; zeros from the column `count` on.

    Windows lie `across` from column to column, `deep` from row to row, and their taps `step` apart, the first one at `start`.
    """
    taps, half, blocks = np.empty(ROWS * TAPS * COLUMNS, np.float32), np.empty(18 * LANES, np.float32), rows // ROWS
    apart = rows * columns + LINE
    for block in range(first, last):
        column, top = block // blocks * COLUMNS, block % blocks * ROWS
        used = min(COLUMNS, count - column)
        _read(w, start + column * across + top * deep, across, deep, step, used, taps)
        for row in range(ROWS):
            for c in range(0, min(COLUMNS, columns - column), LANES):
                o = ((column + c) // width * rows + top + row) * width + (column + c) % width
                if c < used:
                    _write_points(taps, row * TAPS * COLUMNS + c, half, u, o, apart)
                else:
                    for point in range(POINTS):
                        store(u, o + point * apart, zeros())


def _gradient_rows(sums: Any, dw: Any, across: Any, deep: Any, step: Any, rows: Any, count: Any, columns: Any, apart: Any, parts: Any,
                   first: Any, last: Any) -> None:
    """Gᵀ (Σ of the parts) G of blocks of `ROWS` rows and `COLUMNS` of the first `count` columns, from sums[part, point, row, column]."""
    points, half = np.empty(POINTS * COLUMNS, np.float32), np.empty(18 * LANES, np.float32)
    taps, blocks = np.empty(ROWS * TAPS * COLUMNS, np.float32), rows // ROWS
    for block in range(first, last):
        column, top = block // blocks * COLUMNS, block % blocks * ROWS
        used = min(COLUMNS, count - column)
        for row in range(ROWS):
            for point in range(POINTS):
                s = point * apart + (top + row) * columns + column
                for c in range(0, used, LANES):
                    total = load(sums, s + c)
                    for part in range(1, parts):
                        total = total + load(sums, s + c + part * POINTS * apart)
                    store(points, point * COLUMNS + c, total)
            for c in range(0, used, LANES):
                _write_taps(points, c, half, taps, row * TAPS * COLUMNS + c)
        _write(taps, dw, column * across + top * deep, across, deep, step, used)


_transform, _gradient = Compiled(_transform_rows), Compiled(_gradient_rows)


def points_of(rows: int, columns: int, parts: int = 1) -> Tensor:
    """Returns what has room for (parts, 36, rows, columns), a line more than that from one point to the next."""
    apart = rows * columns + LINE
    return torch.empty(parts * POINTS * apart).as_strided((parts, POINTS, rows, columns), (POINTS * apart, apart, columns, 1))


def all_of(points: Tensor) -> Tensor:
    """Returns the memory of what `points_of` returned."""
    return points.as_strided((points.shape[0] * points.stride(0),), (1,))


def transform(weight: Tensor, by_channel: bool = True, turned: bool = False, width: int | None = None) -> Tensor:
    """Returns G w Gᵀ, as `points_of` has room for them, with zeros where columns do not fill the last panel.

    Args:
        weight: (F, C, 3, 3); F and C are multiples of `LANES`.
        by_channel: whether rows are channels and columns filters, or the reverse.
        turned: whether windows are turned by 180°, as gradients of the input see them.
        width: columns of a panel, in each of which the rows follow each other; None for all of them.
    """
    w = weight.detach().float()
    w = w if taps_have_steps(w) else w.contiguous()
    (across, deep), step = w.stride()[:2], w.stride(3)
    count, rows = weight.shape[:2]
    if not by_channel:
        (across, deep), (count, rows) = (deep, across), (rows, count)
    width = width or count
    columns = -(-count // width) * width
    u = points_of(rows, columns)
    start, step = (8 * step, -step) if turned else (0, step)
    given = (in_order(w), all_of(u), start, across, deep, step, rows, count, width, columns)
    _transform.over_rows(given, -(-count // COLUMNS) * (rows // ROWS), w.nbytes + u.nbytes)
    return u


def gradient(sums: Tensor, weight: Tensor, by_channel: bool = True) -> Tensor:
    """Returns the gradient of a weight (F, C, 3, 3), in float32 and as it lies in memory.

    Args:
        sums: (parts, 36, rows, columns) of products, see `points_of`, or contiguous; they are added in order of the parts, and columns
            that are too many are left out.
        weight: whose shape and order in memory is taken.
        by_channel: whether rows are channels and columns filters, or the reverse.
    """
    dw = torch.empty_like(weight, dtype=torch.float32)
    dw = dw if taps_have_steps(dw) else torch.empty(weight.shape)
    (across, deep), step = dw.stride()[:2], dw.stride(3)
    across, deep = (across, deep) if by_channel else (deep, across)
    parts, _, rows, columns = sums.shape
    count = weight.shape[0 if by_channel else 1]
    given = (all_of(sums), in_order(dw), across, deep, step, rows, count, columns, sums.stride(1), parts)
    _gradient.over_rows(given, -(-count // COLUMNS) * (rows // ROWS), sums.nbytes)
    return dw
