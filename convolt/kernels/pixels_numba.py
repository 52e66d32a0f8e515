"""Four pixels of three channels in one vector of sixteen floats, of which every fourth is unused: for Numba's kernels of pictures."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from convolt.kernels.jit import LANES
from convolt.kernels.lanes_numba import cut
from convolt.kernels.vectors_numba import intrinsic, pointer, rounded, spread, vector

FOUR, THREE = 4, 3
PACKED = FOUR * THREE
"""Values of four pixels in memory."""

_F32, _I32, _I8 = ir.FloatType(), ir.IntType(32), ir.IntType(8)
_VECTOR = ir.VectorType(_F32, LANES)


def _constant(numbers: list[int]) -> Any:
    return ir.Constant(ir.VectorType(_I32, len(numbers)), numbers)


_IN_PIXELS = _constant([3 * (i // 4) + min(i % 4, 2) for i in range(LANES)])
_OF_PIXELS = _constant([4 * (i // 3) + i % 3 for i in range(PACKED)])
_MIRRORED = _constant([LANES - 4 - 4 * (i // 4) + i % 4 for i in range(LANES)])


@intrinsic
def load_pixels(typing: Any, array: Any, at: Any) -> Any:
    """Four pixels of a flat array of uint8 or float32 that begin at `at`."""
    bytes_ = array.dtype == types.uint8
    packed = ir.VectorType(_I8 if bytes_ else _F32, PACKED)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        found = builder.load(pointer(context, builder, array, values, packed))
        found.align = 1 if bytes_ else 4
        pixels = builder.shuffle_vector(found, ir.Constant(packed, ir.Undefined), _IN_PIXELS)
        return builder.uitofp(pixels, _VECTOR) if bytes_ else pixels

    return vector(array, types.intp), codegen


@intrinsic
def store_pixels(typing: Any, array: Any, at: Any, value: Any) -> Any:
    """Writes four pixels to a flat array: rounded and cut to uint8, or the bits of bfloat16 (int16) or float32 (int32)."""
    kind = array.dtype

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        given = values[2]
        if kind == types.uint8:
            raised = builder.fadd(given, ir.Constant(_VECTOR, [0.5] * LANES))
            whole = cut(builder, raised, ir.Constant(_VECTOR, [0.0] * LANES), ir.Constant(_VECTOR, [255.0] * LANES))
            given = builder.trunc(builder.fptosi(whole, ir.VectorType(_I32, LANES)), ir.VectorType(_I8, LANES))
        elif kind == types.int16:
            given = rounded(builder, given)
        packed = builder.shuffle_vector(given, ir.Constant(given.type, ir.Undefined), _OF_PIXELS)
        builder.store(packed, pointer(context, builder, array, values[:2], packed.type)).align = kind.bitwidth // 8
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), codegen


@intrinsic
def mirrored(typing: Any, value: Any) -> Any:
    """The four pixels from the last to the first."""
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.shuffle_vector(values[0], ir.Constant(_VECTOR, ir.Undefined), _MIRRORED)

    return vector(vector), codegen


def _channel(which: int) -> Any:
    """Returns an intrinsic that gives each pixel one of its channels in all four places."""
    chosen = _constant([4 * (i // 4) + which for i in range(LANES)])

    @intrinsic
    def channel(typing: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.shuffle_vector(values[0], ir.Constant(_VECTOR, ir.Undefined), chosen)

        return vector(vector), codegen

    return channel


red, green, blue = (_channel(which) for which in range(THREE))


@intrinsic
def pixel(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """Three numbers as every one of the four pixels."""
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        made = ir.Constant(_VECTOR, [0.0] * LANES)
        for i in range(LANES):
            if i % FOUR < THREE:
                made = builder.insert_element(made, values[i % FOUR], ir.Constant(_I32, i))
        return made

    return vector(types.float32, types.float32, types.float32), codegen


@intrinsic
def add_between(typing: Any, laid: Any, at: Any, below: Any, across: Any, down: Any, line: Any, to: Any) -> Any:
    """Adds to line[to : to + 4] what lies between the four floats at `at` and after them, and those at `below` and after them."""
    four = ir.VectorType(_F32, FOUR)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        source, at, below, across, down, target, to = values
        kind = ir.FunctionType(four, [four] * 3)
        fma = cgutils.get_or_insert_function(builder.module, kind, "llvm.fma.v4f32")

        def read(array: Any, which: int, place: Any) -> Any:
            found = builder.load(pointer(context, builder, signature.args[which], (array, place), four))
            found.align = 4
            return found

        def between(share: Any, one: Any, other: Any) -> Any:
            return builder.call(fma, [share, builder.fsub(other, one), one])

        next_ = ir.Constant(at.type, FOUR)
        x, y = spread(builder, across, four), spread(builder, down, four)
        upper = between(x, read(source, 0, at), read(source, 0, builder.add(at, next_)))
        lower = between(x, read(source, 0, below), read(source, 0, builder.add(below, next_)))
        total = builder.fadd(read(target, 5, to), between(y, upper, lower))
        builder.store(total, pointer(context, builder, signature.args[5], (target, to), four)).align = 4
        return context.get_dummy_value()

    return types.void(laid, types.intp, types.intp, types.float32, types.float32, line, types.intp), codegen
