"""Vectors, and small matrix products, inside Numba's kernels, written in LLVM's own words so that the sums stay in registers.

Numba turns loops into vectors, but keeps no block of sums in registers over a loop, without which a product runs at a
quarter of a processor's rate. LLVM splits what is wider than a processor's vectors; where its registers do not hold a block of
sums, parts of it are summed one after the other, each number in the same order.
"""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import binding, ir
from numba import extending, types
from numba.core import cgutils, imputils
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.core.typing.templates import signature as typing_signature
from numba.extending import models, register_jitable, register_model

from convolt.kernels.jit import LANES

# Numba's decorators give functions that kernels call without the typing context that Numba itself passes.
intrinsic = cast(Callable[[Callable[..., Any]], Callable[..., Any]], extending.intrinsic)
lower_builtin = cast(Callable[..., Callable[[Callable[..., Any]], Callable[..., Any]]], imputils.lower_builtin)

_F32, _I32 = ir.FloatType(), ir.IntType(32)
_VECTOR, _PAIRS, _BYTES = (ir.VectorType(kind, LANES) for kind in (_F32, _I32, ir.IntType(8)))


class _BFloat(ir.types.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite has no class for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


@functools.cache
def _has(feature: str) -> bool:
    """Whether the processor that is compiled for has a feature, by LLVM's name."""
    if os.environ.get("NUMBA_CPU_NAME") or os.environ.get("NUMBA_CPU_FEATURES"):
        return f"+{feature}" in os.environ.get("NUMBA_CPU_FEATURES", "")
    return bool(binding.get_host_cpu_features().get(feature, False))


def registers() -> tuple[int, int]:
    """Returns how many vector registers the processor that is compiled for has, and how many float32 each of them holds."""
    if _has("avx512f"):
        return 32, 16
    if _has("avx"):
        return 16, 8
    return (32, 4) if _has("neon") else (16, 4)


def tiles_of(rows: int, vectors: int) -> list[list[tuple[int, int]]]:
    """Returns which of so many rows and vectors of sums, as (row, vector), are summed at once: as many as stay in registers."""
    count, numbers = registers()
    fitting = [(r * v, r, v) for r in range(1, rows + 1) for v in range(1, vectors + 1)
               if rows % r == vectors % v == 0 and LANES // numbers * (r * v + v) < count]
    _, tall, wide = max(fitting)
    return [[(r, v) for r in range(top, top + tall) for v in range(first, first + wide)]
            for top in range(0, rows, tall) for first in range(0, vectors, wide)]


def product(rows: int, vectors: int) -> Callable[..., None]:
    """Returns an intrinsic `f(a, a_at, a_row, a_outer, a_step, b, b_at, b_step, c, c_at, c_row, outer, count, add)`.

    It computes, for r < rows and j < 16 · vectors,

        c[c_at + r · c_row + j] = (add ? c[…] : 0)
                                  + Σ a[a_at + r · a_row + o · a_outer + k · a_step] · b[b_at + (o · count + k) · b_step + j]

    over o < outer and k < count, each sum in order of (o, k). All arrays are flat and float32, and all other arguments intp.
    Where a and b are int32, they hold two bfloat16 in each number, both products of which are added.
    """
    index = types.intp

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pairs = signature.args[0].dtype == types.int32
        element, kind = (_I32, _PAIRS) if pairs else (_F32, _VECTOR)
        data = [context.make_array(t)(context, builder, v).data if isinstance(t, types.Array) else v
                for t, v in zip(signature.args, values, strict=True)]
        a, a_at, a_row, a_outer, a_step, b, b_at, b_step, c, c_at, c_row, outer, count, add = data
        a, b, c = (builder.bitcast(p, t.as_pointer()) for p, t in ((a, element), (b, element), (c, _F32)))
        for tile in tiles_of(rows, vectors):
            places = {(r, v): builder.gep(c, [builder.add(builder.add(c_at, builder.mul(c_row, _index(r))), _index(v * LANES))])
                      for r, v in tile}
            sums = {part: cgutils.alloca_once(builder, _VECTOR) for part in tile}
            with builder.if_else(builder.icmp_signed("!=", add, _index(0))) as (then, otherwise):
                with then:
                    for part in tile:
                        builder.store(_read(builder, places[part], _VECTOR), sums[part])
                with otherwise:
                    for part in tile:
                        builder.store(ir.Constant(_VECTOR, [0.0] * LANES), sums[part])
            with cgutils.for_range(builder, outer) as first, cgutils.for_range(builder, count) as second:
                o, k = first.index, second.index
                line = builder.add(b_at, builder.mul(b_step, builder.add(builder.mul(o, count), k)))
                start = builder.add(a_at, builder.add(builder.mul(o, a_outer), builder.mul(k, a_step)))
                right = {v: _read(builder, builder.gep(b, [builder.add(line, _index(v * LANES))]), kind)
                         for v in dict.fromkeys(v for _, v in tile)}
                left = {r: spread(builder, builder.load(builder.gep(a, [builder.add(start, builder.mul(a_row, _index(r)))])), kind)
                        for r in dict.fromkeys(r for r, _ in tile)}
                for r, v in tile:
                    builder.store(multiply_add(builder, left[r], right[v], builder.load(sums[r, v]), pairs), sums[r, v])
            for part in tile:
                builder.store(builder.load(sums[part]), builder.bitcast(places[part], _VECTOR.as_pointer())).align = 4
        return context.get_dummy_value()

    @intrinsic
    def multiply(typing: Any, a: Any, a_at: Any, a_row: Any, a_outer: Any, a_step: Any, b: Any, b_at: Any, b_step: Any, c: Any, c_at: Any,
                 c_row: Any, outer: Any, count: Any, add: Any) -> Any:
        return types.void(a, index, index, index, index, b, index, index, c, index, index, index, index, index), codegen

    result: Callable[..., None] = multiply
    return result


def gathered_sums(rows: int, vectors: int) -> Callable[..., None]:
    """Returns an intrinsic `f(total, t, t_row, source, s, s_row, place, factor, first, count)`.

    It computes, for r < rows and j < 16 · vectors,

        total[t + r · t_row + j] += Σ factor[k] · source[s + place[k] + r · s_row + j]

    over first <= k < first + count, in order. `total`, `source` and `factor` are flat and float32, `place` and all other arguments intp;
    `total` and `source` may have their numbers as int32 bits.
    """
    index = types.intp

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = [context.make_array(t)(context, builder, v).data if isinstance(t, types.Array) else v
                for t, v in zip(signature.args, values, strict=True)]
        total, t, t_row, source, s, s_row, place, factor, first, count = data
        total, source = (builder.bitcast(p, _F32.as_pointer()) for p in (total, source))
        for tile in tiles_of(rows, vectors):
            targets = {(r, v): builder.gep(total, [builder.add(builder.add(t, builder.mul(t_row, _index(r))), _index(v * LANES))])
                       for r, v in tile}
            sums = {part: cgutils.alloca_once(builder, _VECTOR) for part in tile}
            for part in tile:
                builder.store(_read(builder, targets[part], _VECTOR), sums[part])
            with cgutils.for_range(builder, count) as loop:
                k = builder.add(first, loop.index)
                left = spread(builder, builder.load(builder.gep(factor, [k])), _VECTOR)
                start = builder.add(s, builder.load(builder.gep(place, [k])))
                for r, v in tile:
                    at = builder.add(builder.add(start, builder.mul(s_row, _index(r))), _index(v * LANES))
                    right = _read(builder, builder.gep(source, [at]), _VECTOR)
                    builder.store(multiply_add(builder, left, right, builder.load(sums[r, v]), False), sums[r, v])
            for part in tile:
                builder.store(builder.load(sums[part]), builder.bitcast(targets[part], _VECTOR.as_pointer())).align = 4
        return context.get_dummy_value()

    @intrinsic
    def gather(typing: Any, total: Any, t: Any, t_row: Any, source: Any, s: Any, s_row: Any, place: Any, factor: Any, first: Any,
               count: Any) -> Any:
        return types.void(total, index, index, source, index, index, place, factor, index, index), codegen

    result: Callable[..., None] = gather
    return result


def _index(value: int) -> Any:
    """A constant index."""
    return ir.Constant(ir.IntType(64), value)


def _read(builder: Any, pointer: Any, vector: Any) -> Any:
    """A vector from memory that is aligned to its elements only."""
    found = builder.load(builder.bitcast(pointer, vector.as_pointer()))
    found.align = 4
    return found


def spread(builder: Any, value: Any, vector: Any) -> Any:
    """A vector with one value everywhere."""
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_I32, 0))
    first = ir.Constant(ir.VectorType(_I32, vector.count), [0] * vector.count)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), first)


def multiply_add(builder: Any, left: Any, right: Any, total: Any, pairs: bool) -> Any:
    """`total + left · right`, with one rounding; of pairs of bfloat16, as the processor does it."""
    if not pairs:
        plain, name = ir.FunctionType(left.type, [left.type] * 3), f"llvm.fma.v{left.type.count}f32"
        return builder.call(cgutils.get_or_insert_function(builder.module, plain, name), [left, right, total])
    halves = ir.VectorType(_BFloat(), 2 * LANES)
    kind = ir.FunctionType(_VECTOR, [_VECTOR, halves, halves])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
    return builder.call(function, [total, builder.bitcast(left, halves), builder.bitcast(right, halves)])


# -- vectors as values -----------------------------------------------------------------------------------------------


class VectorType(types.Type):
    """So many float32 in Numba's kernels: `+`, `-` and `*` work on them, `load`, `store` and their kin move them."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(name=f"Vector{lanes}")


vector = VectorType(LANES)


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.VectorType(_F32, kind.lanes))  # type: ignore[no-untyped-call]


def pointer(context: Any, builder: Any, kind: Any, place: Any, wide: Any) -> Any:
    """Where `place`, a flat array and an index, lies in memory."""
    value, at = place
    start = builder.gep(context.make_array(kind)(context, builder, value).data, [at])
    return builder.bitcast(start, wide.as_pointer())


@intrinsic
def load(typing: Any, array: Any, at: Any) -> Any:
    """Sixteen numbers of a flat array: float32, or bfloat16 as int16 bits."""
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return numbers_at(builder, builder.gep(context.make_array(array)(context, builder, values[0]).data, [values[1]]), array.dtype)

    return vector(array, types.intp), codegen


def numbers_at(builder: Any, place: Any, kind: Any, lanes: int = LANES) -> Any:
    """A vector from memory: float32, also as int32 bits, or bfloat16 as int16 bits."""
    half, floats, wide = kind == types.int16, ir.VectorType(_F32, lanes), ir.VectorType(_I32, lanes)
    found = builder.load(builder.bitcast(place, (ir.VectorType(ir.IntType(16), lanes) if half else floats).as_pointer()))
    found.align = 2 if half else 4
    return builder.bitcast(builder.shl(builder.zext(found, wide), ir.Constant(wide, [16] * lanes)), floats) if half else found


def rounded(builder: Any, value: Any) -> Any:
    """Float32 → bits of bfloat16, to nearest, ties to even; not a number stays so."""
    lanes = value.type.count
    halves, wide = ir.VectorType(ir.IntType(16), lanes), ir.VectorType(_I32, lanes)
    if _has("avx512bf16"):  # elsewhere LLVM would call a function for each number
        return builder.bitcast(builder.fptrunc(value, ir.VectorType(_BFloat(), lanes)), halves)
    raw = builder.bitcast(value, wide)
    odd = builder.and_(builder.lshr(raw, ir.Constant(wide, [16] * lanes)), ir.Constant(wide, [1] * lanes))
    near = builder.add(raw, builder.add(odd, ir.Constant(wide, [0x7FFF] * lanes)))
    nothing = builder.fcmp_unordered("uno", value, value)
    bits = builder.select(nothing, ir.Constant(wide, [0x7FC0 << 16] * lanes), near)
    return builder.trunc(builder.lshr(bits, ir.Constant(wide, [16] * lanes)), halves)


@intrinsic
def store(typing: Any, array: Any, at: Any, value: Any) -> Any:
    """Writes a vector to a flat array: float32, also as int32 bits, or bfloat16 as int16 bits."""
    half = array.dtype == types.int16

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        given = rounded(builder, values[2]) if half else values[2]
        builder.store(given, pointer(context, builder, array, values[:2], given.type)).align = 2 if half else 4
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@intrinsic
def store_pairs(typing: Any, array: Any, at: Any, first: Any, second: Any) -> Any:
    """Writes sixteen pairs of bfloat16 as int32, the first in the lower half."""
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        low, high = (builder.zext(rounded(builder, value), _PAIRS) for value in values[2:])
        pair = builder.or_(low, builder.shl(high, ir.Constant(_PAIRS, [16] * LANES)))
        builder.store(pair, pointer(context, builder, array, values[:2], _PAIRS)).align = 4
        return context.get_dummy_value()

    return types.void(array, types.intp, vector, vector), codegen


@intrinsic
def prefetch(typing: Any, array: Any, at: Any) -> Any:
    """Has the processor bring the cache line with a number of a flat array, which is soon needed; any index will do."""
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = pointer(context, builder, array, values, ir.IntType(8))
        kind = ir.FunctionType(ir.VoidType(), [place.type, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [place, *(ir.Constant(_I32, value) for value in (0, 3, 1))])  # to be read, into all caches, data
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def zeros(typing: Any) -> Any:
    """Sixteen zeros."""
    return vector(), lambda context, builder, signature, values: ir.Constant(_VECTOR, [0.0] * LANES)


@intrinsic
def number(typing: Any, value: Any) -> Any:
    """A float32 everywhere."""
    return vector(types.float32), lambda context, builder, signature, values: spread(builder, values[0], _VECTOR)


@intrinsic
def if_larger(typing: Any, v: Any, m: Any, a: Any, b: Any) -> Any:
    """Takes a where v > m or v is not a number, else b."""
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        one, other = values[:2]
        better = builder.or_(builder.fcmp_ordered(">", one, other), builder.fcmp_unordered("uno", one, one))
        return builder.select(better, *values[2:])

    return vector(vector, vector, vector, vector), codegen


@intrinsic
def if_not_positive(typing: Any, v: Any, a: Any, b: Any) -> Any:
    """Takes a where v <= 0, else b."""
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<=", values[0], ir.Constant(_VECTOR, [0.0] * LANES)), *values[1:])

    return vector(vector, vector, vector), codegen


@intrinsic
def store_bytes(typing: Any, array: Any, at: Any, value: Any) -> Any:
    """Writes sixteen whole numbers as bytes."""
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        given = builder.trunc(builder.fptosi(values[2], _PAIRS), _BYTES)
        builder.store(given, pointer(context, builder, array, values[:2], _BYTES)).align = 1
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), codegen


@intrinsic
def where_byte(typing: Any, array: Any, at: Any, byte: Any, value: Any) -> Any:
    """`value` where an array of bytes has `byte` (a uint8), else 0."""
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        found = builder.load(pointer(context, builder, array, values[:2], _BYTES))
        found.align = 1
        same = builder.icmp_unsigned("==", found, spread(builder, values[2], _BYTES))
        return builder.select(same, values[3], ir.Constant(_VECTOR, [0.0] * LANES))

    return vector(array, types.intp, types.uint8, vector), codegen


@intrinsic
def bytes_below(typing: Any, array: Any, at: Any, byte: Any) -> Any:
    """Sixteen bits, the lowest first: whether a byte of an array is less than `byte` (a uint8)."""
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        found = builder.load(pointer(context, builder, array, values[:2], _BYTES))
        found.align = 1
        bits = builder.bitcast(builder.icmp_unsigned("<", found, spread(builder, values[2], _BYTES)), ir.IntType(LANES))
        return builder.zext(bits, ir.IntType(64))

    return types.intp(array, types.intp, types.uint8), codegen


@intrinsic
def lowest_bit(typing: Any, bits: Any) -> Any:
    """The number of the lowest bit that is 1; there must be one."""
    return types.intp(types.intp), lambda context, builder, signature, values: builder.cttz(values[0], ir.Constant(ir.IntType(1), 1))


@lower_builtin(operator.add, VectorType, VectorType)
def _add(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    return builder.fadd(*values)


@lower_builtin(operator.sub, VectorType, VectorType)
def _subtract(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    return builder.fsub(*values)


@lower_builtin(operator.mul, VectorType, VectorType)
def _multiply(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    return builder.fmul(*values)


@lower_builtin(operator.truediv, VectorType, VectorType)
def _divide(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    return builder.fdiv(*values)


@infer_global(operator.add)
@infer_global(operator.sub)
@infer_global(operator.mul)
@infer_global(operator.truediv)
class _Arithmetic(AbstractTemplate):
    def generic(self, given: Any, named: Any) -> Any:
        left, right = given
        return typing_signature(left, left, right) if isinstance(left, VectorType) and left == right else None


_ONE, _TWO, _THREE, _NOWHERE = (np.float32(k) for k in (1, 2, 3, 255))


@register_jitable
def pool_window(y: Any, s: Any, right: Any, down: Any, bias: Any, out: Any, code: Any, o: Any, filters: Any, relu: Any) -> None:
    """Writes, for each filter, bias plus the largest of the 2 × 2 results that begin at s, and its place; not a number wins."""
    for f in range(0, filters, LANES):
        m, w = load(y, s + f), zeros()
        v = load(y, s + right + f)
        m, w = if_larger(v, m, v, m), if_larger(v, m, number(_ONE), w)
        v = load(y, s + down + f)
        m, w = if_larger(v, m, v, m), if_larger(v, m, number(_TWO), w)
        v = load(y, s + down + right + f)
        m, w = if_larger(v, m, v, m), if_larger(v, m, number(_THREE), w)
        m = m + load(bias, f)
        if relu:
            w = if_not_positive(m, number(_NOWHERE), w)
            m = if_not_positive(m, zeros(), m)
        store(out, o + f, m)
        store_bytes(code, o + f, w)
