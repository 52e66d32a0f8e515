"""Winograd's transforms F(4 × 4, 3 × 3) of a tile, for one vector of channels, within the kernels of `winograd4_numba`."""

from __future__ import annotations

from typing import Any

import numpy as np

from convolt.kernels.instructions import load, number, store, times_plus
from convolt.kernels.jit import LANES, register_jitable

_TWO, _FOUR, _EIGHT, _LESS_TWO, _LESS_FOUR, _LESS_FIVE = (np.float32(k) for k in (2, 4, 8, -2, -4, -5))


@register_jitable
def _line_in(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
    """Bᵀ times six numbers."""
    p, q, r, s = times_plus(c, number(_LESS_FOUR), e), times_plus(b, number(_LESS_FOUR), d), e - c, d - b
    return (times_plus(a, number(_FOUR), times_plus(c, number(_LESS_FIVE), e)), p + q, p - q,
            times_plus(s, number(_TWO), r), times_plus(s, number(_LESS_TWO), r),
            times_plus(b, number(_FOUR), times_plus(d, number(_LESS_FIVE), f)))


@register_jitable
def _line_out(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
    """Aᵀ times six numbers."""
    p, q, r, s = b + c, b - c, d + e, d - e
    return a + p + r, times_plus(s, number(_TWO), q), times_plus(r, number(_FOUR), p), times_plus(s, number(_EIGHT), q) + f


@register_jitable
def _line_gradient(a: Any, b: Any, c: Any, d: Any) -> Any:
    """A times four numbers."""
    p, q, r, s = a + c, b + d, times_plus(c, number(_FOUR), a), times_plus(d, number(_EIGHT), b + b)
    return a, p + q, p - q, r + s, r - s, d


@register_jitable
def _four(x: Any, s: Any, step: Any) -> Any:
    """Four vectors that lie `step` apart."""
    return load(x, s), load(x, s + step), load(x, s + 2 * step), load(x, s + 3 * step)


@register_jitable
def six_of(x: Any, s: Any, step: Any) -> Any:
    """Six vectors that lie `step` apart."""
    return (load(x, s), load(x, s + step), load(x, s + 2 * step), load(x, s + 3 * step), load(x, s + 4 * step), load(x, s + 5 * step))


@register_jitable
def write_six(out: Any, o: Any, step: Any, six: Any) -> None:
    """Writes six vectors, `step` apart."""
    store(out, o, six[0])
    store(out, o + step, six[1])
    store(out, o + 2 * step, six[2])
    store(out, o + 3 * step, six[3])
    store(out, o + 4 * step, six[4])
    store(out, o + 5 * step, six[5])


@register_jitable
def write_input(x: Any, s: Any, line: Any, channels: Any, half: Any, out: Any, o: Any, step: Any) -> None:
    """Writes Bᵀ d B of the 6 × 6 pixels that begin at s: 36 vectors that lie `step` apart, from o on. `half` has room for as many."""
    for j in range(6):
        write_six(half, j * LANES, 6 * LANES, _line_in(*six_of(x, s + j * channels, line)))
    for i in range(6):
        write_six(out, o + 6 * i * step, step, _line_in(*six_of(half, 6 * i * LANES, LANES)))


@register_jitable
def write_gradient(x: Any, s: Any, line: Any, channels: Any, half: Any, out: Any, o: Any, step: Any) -> None:
    """Writes A d Aᵀ of the 4 × 4 gradients that begin at s, likewise."""
    for j in range(4):
        write_six(half, j * LANES, 4 * LANES, _line_gradient(*_four(x, s + j * channels, line)))
    for i in range(6):
        write_six(out, o + 6 * i * step, step, _line_gradient(*_four(half, 4 * i * LANES, LANES)))


@register_jitable
def read_output(m: Any, s: Any, step: Any, half: Any, whole: Any) -> None:
    """Writes Aᵀ m A of 36 vectors that lie `step` apart, from s on, to `whole`: the 4 × 4 results of a tile."""
    for j in range(6):
        four = _line_out(*six_of(m, s + j * step, 6 * step))
        at = j * LANES
        store(half, at, four[0])
        store(half, at + 6 * LANES, four[1])
        store(half, at + 12 * LANES, four[2])
        store(half, at + 18 * LANES, four[3])
    for i in range(4):
        four = _line_out(*six_of(half, 6 * i * LANES, LANES))
        at = 4 * i * LANES
        store(whole, at, four[0])
        store(whole, at + LANES, four[1])
        store(whole, at + 2 * LANES, four[2])
        store(whole, at + 3 * LANES, four[3])
