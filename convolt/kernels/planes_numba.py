"""Sixteen pixels of three channels at a time, one vector for each channel: for Numba's kernels of bytes."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from convolt.kernels.jit import LANES
from convolt.kernels.places_numba import CHANNELS
from convolt.kernels.vectors_numba import intrinsic, multiply_add, pointer, rounded, vector

_F32, _I32, _I64, _I8 = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.IntType(8)
_VECTOR, _WHOLE = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
_HALF = ir.VectorType(_I64, LANES // 2)
_BYTES = ir.VectorType(_I8, 4 * LANES)

# Which pixels' eight bytes lie in the first of two vectors: halves of four that `_EVEN` and `_ODD` pick within each sixteen bytes.
_FIRST = [0, 1, 4, 5, 8, 9, 12, 13]


def _constant(numbers: list[int]) -> Any:
    return ir.Constant(ir.VectorType(_I32, len(numbers)), numbers)


def _picked(word: int) -> Any:
    """Within each sixteen bytes of two vectors: the lower or upper words of two pixels of the first and two of the second."""
    return _constant([lane // 4 * 4 + lane % 2 * 2 + word + (LANES if lane % 4 >= 2 else 0) for lane in range(LANES)])


_LOWER, _UPPER = _picked(0), _picked(1)


def _gathered(builder: Any, start: Any, offsets: list[Any]) -> tuple[Any, Any]:
    """Returns the first and the last four of the eight bytes at each of sixteen places, as vectors of words."""
    halves = []
    for first in (0, 2):
        half = ir.Constant(_HALF, ir.Undefined)
        for lane, pixel in enumerate(_FIRST):
            place = builder.bitcast(builder.gep(start, [offsets[pixel + first]]), _I64.as_pointer())
            found = builder.load(place)
            found.align = 1
            half = builder.insert_element(half, found, ir.Constant(_I32, lane))
        halves.append(builder.bitcast(half, _WHOLE))
    return builder.shuffle_vector(*halves, _LOWER), builder.shuffle_vector(*halves, _UPPER)


def _byte(builder: Any, words: Any, which: int) -> Any:
    """Returns one byte of each word as a float."""
    zeros = ir.Constant(_BYTES, [0] * _BYTES.count)
    chosen = [lane // 4 * 4 + which if lane % 4 == 0 else _BYTES.count for lane in range(_BYTES.count)]
    spread = builder.shuffle_vector(builder.bitcast(words, _BYTES), zeros, _constant(chosen))
    return builder.uitofp(builder.bitcast(spread, _WHOLE), _VECTOR)


def _corners(builder: Any, start: Any, offsets: list[Any]) -> tuple[list[Any], list[Any]]:
    """Returns the three channels of the pixels at sixteen places, and of those to their right."""
    lower, upper = _gathered(builder, start, offsets)
    here = [_byte(builder, lower, c) for c in range(CHANNELS)]
    return here, [_byte(builder, lower, 3), _byte(builder, upper, 0), _byte(builder, upper, 1)]


@intrinsic
def copy_bytes(typing: Any, source: Any, at: Any, target: Any, size: Any) -> Any:
    """Copies `size` bytes of a flat array from `at` on to the start of another."""
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        start = builder.gep(context.make_array(signature.args[0])(context, builder, values[0]).data, [values[1]])
        target = context.make_array(signature.args[2])(context, builder, values[2]).data
        cgutils.raw_memcpy(builder, target, start, values[3], 1)
        return context.get_dummy_value()

    return types.void(source, types.intp, target, types.intp), codegen


@intrinsic
def put_between(typing: Any, images: Any, begin: Any, places: Any, x: Any, stride: Any, across: Any, down: Any, planes: Any,
                width: Any) -> Any:
    """Writes sixteen pixels: planes[c · width + x + i] = what lies between four pixels of three bytes.

    They begin at images[begin + places[x + i]], with the two of the line below `stride` bytes behind; across[x + i] and down[x + i] say
    where between them.
    """
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        images, begin, places, x, stride, across, down, planes, width = values
        start = builder.gep(context.make_array(signature.args[0])(context, builder, images).data, [begin])
        numbers = context.make_array(signature.args[2])(context, builder, places).data
        offsets = [builder.sext(builder.load(builder.gep(numbers, [builder.add(x, ir.Constant(_I64, i))])), _I64) for i in range(LANES)]

        def read(which: int, array: Any) -> Any:
            found = builder.load(pointer(context, builder, signature.args[which], (array, x), _VECTOR))
            found.align = 4
            return found

        fx, fy = read(5, across), read(6, down)
        above = _corners(builder, start, offsets)
        below = _corners(builder, builder.gep(start, [stride]), offsets)

        def between(share: Any, one: Any, other: Any) -> Any:
            return multiply_add(builder, share, builder.fsub(other, one), one, pairs=False)

        for c in range(CHANNELS):
            upper, lower = (between(fx, here[c], right[c]) for here, right in (above, below))
            at = builder.add(x, builder.mul(width, ir.Constant(_I64, c)))
            target = pointer(context, builder, signature.args[7], (planes, at), _VECTOR)
            builder.store(between(fy, upper, lower), target).align = 4
        return context.get_dummy_value()

    index = types.intp
    return types.void(images, index, places, index, index, across, down, planes, index), codegen


@intrinsic
def store_planes(typing: Any, array: Any, at: Any, first: Any, second: Any, third: Any) -> Any:
    """Writes sixteen pixels to a flat array: rounded and cut to uint8, or the bits of bfloat16 (int16) or float32 (int32)."""
    kind = array.dtype

    def cast(builder: Any, given: Any) -> Any:
        if kind == types.uint8:
            raised = builder.fadd(given, ir.Constant(_VECTOR, [0.5] * LANES))
            low, high = (ir.Constant(_VECTOR, [bound] * LANES) for bound in (0.0, 255.0))
            raised = builder.select(builder.fcmp_ordered(">", low, raised), low, raised)
            raised = builder.select(builder.fcmp_ordered("<", high, raised), high, raised)
            return builder.trunc(builder.fptosi(raised, _WHOLE), ir.VectorType(_I8, LANES))
        return rounded(builder, given) if kind == types.int16 else given

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        red, green, blue = (cast(builder, value) for value in values[2:])
        for part in range(CHANNELS):  # vectors of sixteen, each from two: others are taken apart, number by number
            places = [divmod(part * LANES + lane, CHANNELS) for lane in range(LANES)]
            two = builder.shuffle_vector(red, green, _constant([pixel + LANES * (c == 1) for pixel, c in places]))
            of_blue = [LANES + pixel if c == 2 else lane for lane, (pixel, c) in enumerate(places)]
            mixed = builder.shuffle_vector(two, blue, _constant(of_blue))
            target = pointer(context, builder, array, (values[0], builder.add(values[1], ir.Constant(_I64, part * LANES))), mixed.type)
            builder.store(mixed, target).align = kind.bitwidth // 8
        return context.get_dummy_value()

    return types.void(array, types.intp, vector, vector, vector), codegen
