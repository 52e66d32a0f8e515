"""Vectors of any length in Numba's kernels: a loop is written once, and compiled for 64 numbers, for sixteen and for one.

Sixty-four are four registers of the widest processors, sums in which do not wait for one another; what is left of a row is worked on
sixteen by sixteen, then one by one. A function tells how many by the type of what it is given.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import register_jitable

from convolt.kernels.jit import LANES
from convolt.kernels.vectors_numba import VectorType, intrinsic, multiply_add, numbers_at, spread

_F32, _I32 = ir.FloatType(), ir.IntType(32)
MANY = 4 * LANES


def _zeros(lanes: int) -> Any:
    @intrinsic
    def zeros(typing: Any) -> Any:
        kind = ir.VectorType(_F32, lanes)
        return VectorType(lanes)(), lambda context, builder, signature, values: ir.Constant(kind, [0.0] * lanes)

    return zeros


many, some, one = (_zeros(lanes) for lanes in (MANY, LANES, 1))


@intrinsic
def load_like(typing: Any, like: Any, array: Any, at: Any) -> Any:
    """As many numbers of a flat array as `like` has: float32, also as int32 bits, or bfloat16 as int16 bits."""
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(array)(context, builder, values[1]).data
        return numbers_at(builder, builder.gep(data, [values[2]]), array.dtype, like.lanes)

    return like(like, array, types.intp), codegen


@intrinsic
def number_like(typing: Any, like: Any, value: Any) -> Any:
    """A float32 everywhere."""
    return like(like, types.float32), lambda context, builder, signature, values: spread(builder, values[1], values[0].type)


@intrinsic
def times_plus(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """The product of two plus a third, rounded once."""
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        left, right, total = values
        return multiply_add(builder, left, right, total, pairs=False)

    return a(a, b, c), codegen


@intrinsic
def if_at_most(typing: Any, value: Any, most: Any, a: Any, b: Any) -> Any:
    """Takes a where value <= most, else b, also where value is not a number."""
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<=", *values[:2]), *values[2:])

    return value(value, value, value, value), codegen


@intrinsic
def within(typing: Any, value: Any, low: Any, high: Any) -> Any:
    """The value, but `low` where it is lower and `high` where it is higher; not a number stays so."""
    return value(value, value, value), lambda context, builder, signature, values: cut(builder, *values)


def cut(builder: Any, value: Any, low: Any, high: Any) -> Any:
    """What `within` returns."""
    raised = builder.select(builder.fcmp_ordered(">", low, value), low, value)
    return builder.select(builder.fcmp_ordered("<", high, raised), high, raised)


@intrinsic
def _power_of_two(typing: Any, n: Any) -> Any:
    """2 to the power of whole numbers from -126 to 127."""
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        whole = ir.VectorType(_I32, n.lanes)
        biased = builder.add(builder.fptosi(values[0], whole), ir.Constant(whole, [127] * n.lanes))
        return builder.bitcast(builder.shl(biased, ir.Constant(whole, [23] * n.lanes)), values[0].type)

    return n(n), codegen


_LOW, _HIGH, _ROUNDS = np.float32(-87.0), np.float32(88.0), np.float32(12582912.0)
_LOG2E, _LN2, _LN2_REST = np.float32(1.44269504), np.float32(0.693359375), np.float32(2.12194440e-4)
_A, _B, _C, _D, _E, _F = (np.float32(k) for k in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
                                                   5.0000001201e-1))


@register_jitable
def exponential(x: Any) -> Any:
    """E to the power of x, within two units of the last place; not a number stays so (Cephes, Moshier 1989)."""
    x = within(x, number_like(x, _LOW), number_like(x, _HIGH))
    rounds, one = number_like(x, _ROUNDS), number_like(x, np.float32(1))
    n = (x * number_like(x, _LOG2E) + rounds) - rounds  # the nearest whole number
    r = (x - n * number_like(x, _LN2)) + n * number_like(x, _LN2_REST)
    p = times_plus(number_like(x, _A), r, number_like(x, _B))
    p = times_plus(p, r, number_like(x, _C))
    p = times_plus(p, r, number_like(x, _D))
    p = times_plus(p, r, number_like(x, _E))
    p = times_plus(p, r, number_like(x, _F))
    return (times_plus(p * r, r, r) + one) * _power_of_two(n)
