"""Antialiased bilinear resizing of a uint8 picture on one CPU thread, without the GIL: lines first, then columns, as in Pillow.

A pixel's three channels and the byte behind them are one vector of four: that wastes a quarter of the products and spares all shuffling.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from torch import Tensor

from convolt.kernels.bits_numba import Compiled
from convolt.kernels.resize_reference import BITS, triangle_weights
from convolt.kernels.vectors_numba import intrinsic

LANES = 4
ROWS = 4
"""Lines that are resized at once, so that one product need not wait for the other."""

_HALF = 1 << (BITS - 1)
_BYTES, _SUMS = (ir.VectorType(ir.IntType(bits), LANES) for bits in (8, 32))


def _constant(value: int) -> Any:
    return ir.Constant(_SUMS, [value] * LANES)


def _codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    data = [context.make_array(t)(context, builder, v).data if isinstance(t, types.Array) else v
            for t, v in zip(signature.args, values, strict=True)]
    x, at, line, step, weights, weight, taps, out, place, out_line = data
    sums = [cgutils.alloca_once(builder, _SUMS) for _ in range(ROWS)]
    for total in sums:
        builder.store(_constant(_HALF), total)
    undefined = ir.Constant(_SUMS, ir.Undefined)
    with cgutils.for_range(builder, taps) as tap:
        one = builder.load(builder.gep(weights, [builder.add(weight, tap.index)]))
        first = builder.insert_element(undefined, one, ir.Constant(ir.IntType(32), 0))
        k = builder.shuffle_vector(first, undefined, ir.Constant(_SUMS, [0] * LANES))
        source = builder.add(at, builder.mul(tap.index, step))
        for row, total in enumerate(sums):
            pointer = builder.gep(x, [builder.add(source, builder.mul(line, ir.Constant(ir.IntType(64), row)))])
            pixels = builder.load(builder.bitcast(pointer, _BYTES.as_pointer()))
            pixels.align = 1
            builder.store(builder.add(builder.load(total), builder.mul(k, builder.zext(pixels, _SUMS))), total)
    for row, total in enumerate(sums):
        pointer = builder.gep(out, [builder.add(place, builder.mul(out_line, ir.Constant(ir.IntType(64), row)))])
        rounded = builder.trunc(builder.lshr(builder.load(total), _constant(BITS)), _BYTES)
        builder.store(rounded, builder.bitcast(pointer, _BYTES.as_pointer())).align = 1
    return context.get_dummy_value()


@intrinsic
def _pixels(typing: Any, x: Any, at: Any, line: Any, step: Any, weights: Any, weight: Any, taps: Any, out: Any, place: Any,
            out_line: Any) -> Any:
    """Resizes one column of four lines.

    out[place + r · out_line + c] = Σ weights[weight + t] · x[at + r · line + t · step + c], rounded.
    """
    index = types.intp
    return types.void(x, index, index, index, weights, index, index, out, index, index), _codegen


@Compiled
def _lines(x: Any, first: Any, weights: Any, out: Any, sizes: Any) -> None:
    """Resizes each line. x: (H · W · C) bytes; out: (H, rounded up to whole fours, · (width · C + 4))."""
    height, before, after, channels, taps = sizes
    line = before * channels
    wide, out_line = line + channels * taps + LANES, after * channels + LANES
    padded = np.zeros(ROWS * wide, np.uint8)
    for top in range(0, height, ROWS):
        for row in range(min(ROWS, height - top)):
            padded[row * wide : row * wide + line] = x[(top + row) * line : (top + row + 1) * line]
        for column in range(after):
            _pixels(padded, first[column] * channels, wide, channels, weights, column * taps, taps, out,
                    top * out_line + column * channels, out_line)


@Compiled
def _columns(x: Any, first: Any, count: Any, weights: Any, out: Any, sizes: Any) -> None:
    """Resizes along the columns. x: (H · x_line); out: (after · line)."""
    after, line, x_line, taps = sizes
    total = np.empty(line, np.int32)
    for row in range(after):
        total[:] = np.int32(_HALF)
        for tap in range(count[row]):
            k = weights[row * taps + tap]
            start = (first[row] + tap) * x_line
            pixels = x[start : start + line]
            for i in range(line):
                total[i] += np.int32(k * np.int32(pixels[i]))
        target = out[row * line : (row + 1) * line]
        for i in range(line):
            target[i] = np.uint8(total[i] >> np.int32(BITS))


def picture(x: Tensor, size: tuple[int, int]) -> Tensor:
    """See `reference.resize_picture`."""
    before, width_before, channels = x.shape
    height, width = size
    first, count, weights = triangle_weights(width_before, width)
    taps = int(count.max())
    out_line = width * channels + LANES
    lines = np.empty(-(-before // ROWS) * ROWS * out_line, np.uint8)
    _lines(x.view(-1).numpy(), first, np.ascontiguousarray(weights[:, :taps]).reshape(-1), lines,
           (before, width_before, width, channels, taps))
    first, count, weights = triangle_weights(before, height)
    out = np.empty(height * width * channels, np.uint8)
    _columns(lines, first, count, weights.reshape(-1), out, (height, width * channels, out_line, weights.shape[1]))
    return torch.from_numpy(out.reshape(height, width, channels))
