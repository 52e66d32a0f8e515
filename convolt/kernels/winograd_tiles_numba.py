"""Winograd's transforms F(2 × 2, 3 × 3) of a tile, for one vector of channels, within the kernels of `winograd_numba`."""

from __future__ import annotations

from typing import Any

from convolt.kernels.instructions import if_not_positive, load, store, store_pairs, zeros
from convolt.kernels.jit import register_jitable


@register_jitable
def _input_line(a: Any, b: Any, c: Any, d: Any) -> Any:
    """Bᵀ times four numbers."""
    return a - c, b + c, c - b, b - d


@register_jitable
def _input_line_back(a: Any, b: Any, c: Any, d: Any) -> Any:
    """B times four numbers."""
    return a, b - c + d, b + c - a, zeros() - d


@register_jitable
def _output_line_back(a: Any, b: Any) -> Any:
    """A times two numbers."""
    return a, a + b, a - b, zeros() - b


@register_jitable
def transformed_input(x: Any, s: Any, line: Any, channels: Any) -> Any:
    """Bᵀ d B of the tile of 4 × 4 pixels that begins at s."""
    one, two = channels, 2 * channels
    a = _input_line(load(x, s), load(x, s + one), load(x, s + two), load(x, s + two + one))
    s += line
    b = _input_line(load(x, s), load(x, s + one), load(x, s + two), load(x, s + two + one))
    s += line
    c = _input_line(load(x, s), load(x, s + one), load(x, s + two), load(x, s + two + one))
    s += line
    d = _input_line(load(x, s), load(x, s + one), load(x, s + two), load(x, s + two + one))
    return (_input_line(a[0], b[0], c[0], d[0]), _input_line(a[1], b[1], c[1], d[1]),
            _input_line(a[2], b[2], c[2], d[2]), _input_line(a[3], b[3], c[3], d[3]))


@register_jitable
def transformed_gradient(y: Any, s: Any, right: Any, down: Any) -> Any:
    """A y Aᵀ of the 2 × 2 gradients that begin at s."""
    a = _output_line_back(load(y, s), load(y, s + right))
    b = _output_line_back(load(y, s + down), load(y, s + down + right))
    return (_output_line_back(a[0], b[0]), _output_line_back(a[1], b[1]),
            _output_line_back(a[2], b[2]), _output_line_back(a[3], b[3]))


@register_jitable
def write_tile(out: Any, at: Any, step: Any, tile: Any) -> None:
    """Writes what one of the two functions above returned: columns first, each number `step` behind the one before."""
    _write_column(out, at, step, tile[0])
    _write_column(out, at + 4 * step, step, tile[1])
    _write_column(out, at + 8 * step, step, tile[2])
    _write_column(out, at + 12 * step, step, tile[3])


@register_jitable
def _write_column(out: Any, at: Any, step: Any, column: Any) -> None:
    store(out, at, column[0])
    store(out, at + step, column[1])
    store(out, at + 2 * step, column[2])
    store(out, at + 3 * step, column[3])


@register_jitable
def write_pairs(out: Any, at: Any, step: Any, a: Any, b: Any) -> None:
    """The same for two tiles, side by side as pairs of bfloat16."""
    _write_column_pairs(out, at, step, a[0], b[0])
    _write_column_pairs(out, at + 4 * step, step, a[1], b[1])
    _write_column_pairs(out, at + 8 * step, step, a[2], b[2])
    _write_column_pairs(out, at + 12 * step, step, a[3], b[3])


@register_jitable
def _write_column_pairs(out: Any, at: Any, step: Any, a: Any, b: Any) -> None:
    store_pairs(out, at, a[0], b[0])
    store_pairs(out, at + step, a[1], b[1])
    store_pairs(out, at + 2 * step, a[2], b[2])
    store_pairs(out, at + 3 * step, a[3], b[3])


@register_jitable
def write_results_of_tile(m: Any, at: Any, step: Any, bias: Any, y: Any, o: Any, right: Any, down: Any, relu: Any) -> None:
    """Writes Aᵀ m A + bias, the 2 × 2 results of a tile, to y from o on, with `relu` without what is below zero."""
    a0, a1, a2, a3 = load(m, at), load(m, at + step), load(m, at + 2 * step), load(m, at + 3 * step)
    at += 4 * step
    b0, b1, b2, b3 = load(m, at), load(m, at + step), load(m, at + 2 * step), load(m, at + 3 * step)
    at += 4 * step
    c0, c1, c2, c3 = load(m, at), load(m, at + step), load(m, at + 2 * step), load(m, at + 3 * step)
    at += 4 * step
    d0, d1, d2, d3 = load(m, at), load(m, at + step), load(m, at + 2 * step), load(m, at + 3 * step)
    p0, p1, p2, p3 = a0 + b0 + c0 + bias, a1 + b1 + c1, a2 + b2 + c2, a3 + b3 + c3
    q0, q1, q2, q3 = b0 - c0 - d0 + bias, b1 - c1 - d1, b2 - c2 - d2, b3 - c3 - d3
    first, below, beside, last = p0 + p1 + p2, p1 - p2 - p3 + bias, q0 + q1 + q2, q1 - q2 - q3 + bias
    if relu:
        first, below = if_not_positive(first, zeros(), first), if_not_positive(below, zeros(), below)
        beside, last = if_not_positive(beside, zeros(), beside), if_not_positive(last, zeros(), last)
    store(y, o, first)
    store(y, o + down, below)
    store(y, o + right, beside)
    store(y, o + down + right, last)


@register_jitable
def add_input_gradient(m: Any, at: Any, step: Any, dx: Any, s: Any, line: Any, channels: Any) -> None:
    """Adds B m Bᵀ to the 4 × 4 pixels that begin at s."""
    a = _input_line_back(load(m, at), load(m, at + 4 * step), load(m, at + 8 * step), load(m, at + 12 * step))
    at += step
    b = _input_line_back(load(m, at), load(m, at + 4 * step), load(m, at + 8 * step), load(m, at + 12 * step))
    at += step
    c = _input_line_back(load(m, at), load(m, at + 4 * step), load(m, at + 8 * step), load(m, at + 12 * step))
    at += step
    d = _input_line_back(load(m, at), load(m, at + 4 * step), load(m, at + 8 * step), load(m, at + 12 * step))
    _add_column(dx, s, line, _input_line_back(a[0], b[0], c[0], d[0]))
    _add_column(dx, s + channels, line, _input_line_back(a[1], b[1], c[1], d[1]))
    _add_column(dx, s + 2 * channels, line, _input_line_back(a[2], b[2], c[2], d[2]))
    _add_column(dx, s + 3 * channels, line, _input_line_back(a[3], b[3], c[3], d[3]))


@register_jitable
def _add_column(dx: Any, s: Any, line: Any, column: Any) -> None:
    store(dx, s, load(dx, s) + column[0])
    store(dx, s + line, load(dx, s + line) + column[1])
    store(dx, s + 2 * line, load(dx, s + 2 * line) + column[2])
    store(dx, s + 3 * line, load(dx, s + 3 * line) + column[3])
