"""Sums of bytes times weights along lines and columns of a picture whose pixels are four bytes: for Numba's kernel of resizing."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from convolt.kernels.resize_numba import BLOCK, LANES, ROWS, WIDE
from convolt.kernels.resize_reference import BITS
from convolt.kernels.vectors_numba import intrinsic

_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_BYTES, _SUMS = ir.VectorType(_I8, LANES), ir.VectorType(_I32, LANES)
_HALF = ir.Constant(_SUMS, [1 << (BITS - 1)] * LANES)
_SHIFT = ir.Constant(_SUMS, [BITS] * LANES)


def _chosen(places: list[int]) -> Any:
    return ir.Constant(ir.VectorType(_I32, len(places)), places)


def _at(builder: Any, data: Any, at: Any, kind: Any) -> Any:
    return builder.bitcast(builder.gep(data, [at]), kind.as_pointer())


def _moved(builder: Any, at: Any, by: int) -> Any:
    return builder.add(at, ir.Constant(_I64, by))


def _read(builder: Any, data: Any, at: Any, kind: Any = _BYTES) -> Any:
    found = builder.load(_at(builder, data, at, kind))
    found.align = 1
    return found


def _write(builder: Any, value: Any, data: Any, at: Any) -> None:
    builder.store(value, _at(builder, data, at, value.type)).align = 1


def _shuffled(builder: Any, value: Any, places: list[int]) -> Any:
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), _chosen(places))


def _arrays(context: Any, builder: Any, signature: Any, values: Any) -> list[Any]:
    """Returns the values, pointers in place of arrays."""
    return [context.make_array(t)(context, builder, v).data if isinstance(t, types.Array) else v
            for t, v in zip(signature.args, values, strict=True)]


def _weighed(builder: Any, x: Any, starts: list[Any], step: Any, weights: Any, weight: Any, taps: Any) -> list[Any]:
    """Returns Σ weights[weight + t] · x[start + t · step : … + 16] for each start, rounded to bytes."""
    sums = [cgutils.alloca_once(builder, _SUMS) for _ in starts]
    for total in sums:
        builder.store(_HALF, total)
    with cgutils.for_range(builder, taps) as tap:
        one = builder.load(builder.gep(weights, [builder.add(weight, tap.index)]))
        k = _shuffled(builder, builder.insert_element(ir.Constant(_SUMS, ir.Undefined), one, ir.Constant(_I32, 0)), [0] * LANES)
        for start, total in zip(starts, sums, strict=True):
            pixels = builder.zext(_read(builder, x, builder.add(start, builder.mul(tap.index, step))), _SUMS)
            builder.store(builder.add(builder.load(total), builder.mul(k, pixels)), total)
    return [builder.trunc(builder.lshr(builder.load(total), _SHIFT), _BYTES) for total in sums]


@intrinsic
def side_by_side(typing: Any, x: Any, at: Any, line: Any, out: Any, to: Any) -> Any:
    """Four pixels of three channels of four lines: out[to + 16 · p + 4 · r + c] = x[at + r · line + 3 · p + c]."""
    packed = ir.VectorType(_I8, 3 * ROWS)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        x, at, line, out, to = _arrays(context, builder, signature, values)
        rows = []
        for row in range(ROWS):
            start = builder.add(at, builder.mul(line, ir.Constant(_I64, row)))
            spread = _shuffled(builder, _read(builder, x, start, packed), [3 * (i // 4) + min(i % 4, 2) for i in range(LANES)])
            rows.append(builder.bitcast(spread, ir.VectorType(_I32, ROWS)))
        halves = [builder.shuffle_vector(a, b, _chosen(list(range(2 * ROWS)))) for a, b in (rows[:2], rows[2:])]
        turned = builder.shuffle_vector(*halves, _chosen([row * ROWS + pixel for pixel in range(ROWS) for row in range(ROWS)]))
        _write(builder, turned, out, to)
        return context.get_dummy_value()

    return types.void(x, types.intp, types.intp, out, types.intp), codegen


@intrinsic
def column_of_four(typing: Any, x: Any, at: Any, weights: Any, weight: Any, taps: Any, out: Any, to: Any, line: Any) -> Any:
    """One pixel of four lines: out[to + r · line + c] = Σ weights[weight + t] · x[at + 16 · t + 4 · r + c], rounded."""
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        x, at, weights, weight, taps, out, to, line = _arrays(context, builder, signature, values)
        found = _weighed(builder, x, [at], ir.Constant(_I64, LANES), weights, weight, taps)[0]
        pixels = builder.bitcast(found, ir.VectorType(_I32, ROWS))
        for row in range(ROWS):
            one = builder.extract_element(pixels, ir.Constant(_I32, row))
            _write(builder, one, out, builder.add(to, builder.mul(line, ir.Constant(_I64, row))))
        return context.get_dummy_value()

    index = types.intp
    return types.void(x, index, weights, index, index, out, index, index), codegen


@intrinsic
def block(typing: Any, x: Any, at: Any, line: Any, weights: Any, weight: Any, taps: Any, out: Any, to: Any, three: Any) -> Any:
    """Sixteen pixels of a line: out[to + …] = Σ weights[weight + t] · x[at + t · line + …], rounded; three bytes a pixel, or all four."""
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        x, at, line, weights, weight, taps, out, to, three = _arrays(context, builder, signature, values)
        parts = BLOCK * WIDE // LANES
        found = _weighed(builder, x, [_moved(builder, at, LANES * i) for i in range(parts)], line, weights, weight, taps)
        packed = [4 * (i // 3) + i % 3 for i in range(3 * LANES // WIDE)]
        with builder.if_else(three) as (then, otherwise):
            with then:
                for i, part in enumerate(found):
                    _write(builder, _shuffled(builder, part, packed), out, _moved(builder, to, len(packed) * i))
            with otherwise:
                for i, part in enumerate(found):
                    _write(builder, part, out, _moved(builder, to, LANES * i))
        return context.get_dummy_value()

    index = types.intp
    return types.void(x, index, index, weights, index, index, out, index, types.boolean), codegen
