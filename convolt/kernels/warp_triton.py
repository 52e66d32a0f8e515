"""Augmented batches on CUDA devices: geometry, colour, erasing, normalisation and the cast in one kernel.

A program makes a block of pixels of one sample. Its tile is pixels × channels; channels are read one after the other, and each adds
its column of the colour matrix to the tile.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: N803 (compile-time constants are upper case, as in Triton's own code)

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from convolt.kernels.memory import current_device, power_of_two
from convolt.kernels.warp_reference import FARTHEST, FILLS, SMALLEST_DEPTH

BLOCK = 256
"""Pixels of a tile."""
MEAN_BLOCK = 1024

CONSTANT, REFLECT, WRAP, OUTSIDE = (tl.constexpr(FILLS.index(name)) for name in ("constant", "reflect", "wrap", "outside"))
FAR, DEPTH = tl.constexpr(FARTHEST), tl.constexpr(SMALLEST_DEPTH)


@triton.jit
def _place(i, size, FILL: tl.constexpr):
    """Rows or columns inside the picture."""
    if FILL == REFLECT:
        i = i % (2 * size)  # the remainder has the sign of the dividend, as in C
        i = tl.where(i < 0, i + 2 * size, i)
        i = tl.where(i >= size, 2 * size - 1 - i, i)
    elif FILL == WRAP:
        i = i % size
        i = tl.where(i < 0, i + size, i)
    return tl.minimum(tl.maximum(i, 0), size - 1)


@triton.jit
def _counts(i, size, FILL: tl.constexpr):
    """Where a row or column is to be read: everywhere, but for a constant border."""
    if FILL == CONSTANT or FILL == OUTSIDE:  # noqa: SIM109 - Triton's language has no `in`
        return (i >= 0) & (i < size)
    return i == i


@triton.jit
def _read(images, start, row, column, height, width, channels, c, mask, value, FILL: tl.constexpr):
    inside = _counts(row, height, FILL) & _counts(column, width, FILL)
    at = start + (_place(row, height, FILL) * width + _place(column, width, FILL)) * channels + c
    found = tl.load(images + at, mask=mask & inside, other=0).to(tl.float32)
    return tl.where(inside, found, value)


@triton.jit
def _warp(images, index, matrix, samples, colour, boxes, values, scale, shift, out, in_height, in_width, height, width, erased, value, low,
          high, C: tl.constexpr, CP: tl.constexpr, INDEX: tl.constexpr, PROJECTIVE: tl.constexpr, SAMPLES: tl.constexpr, FILL: tl.constexpr,
          NEAREST: tl.constexpr, COLOUR: tl.constexpr, LIMITS: tl.constexpr, SCALE: tl.constexpr, BYTES: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = e < height * width
    x, y = e % width, e // width
    d = tl.arange(0, CP)
    sample = tl.load(index + n).to(tl.int64) if INDEX else n
    start = sample * in_height * in_width * C
    m = matrix + n * (9 if PROJECTIVE else 6)
    m0, m1, m2, m3, m4, m5 = tl.load(m), tl.load(m + 1), tl.load(m + 2), tl.load(m + 3), tl.load(m + 4), tl.load(m + 5)
    rows, columns = 1, 1
    if SAMPLES:
        rows, columns = tl.load(samples + 2 * n).to(tl.int32), tl.load(samples + 2 * n + 1).to(tl.int32)
    tile = tl.zeros((BLOCK, CP), tl.float32)
    for i in range(rows):
        v0 = y.to(tl.float32)
        if SAMPLES:
            v0 += (i + 0.5) / rows - 0.5
        for j in range(columns):
            u0 = x.to(tl.float32)
            if SAMPLES:
                u0 += (j + 0.5) / columns - 0.5
            u, v = m0 * u0 + (m1 * v0 + m2), m3 * u0 + (m4 * v0 + m5)
            if PROJECTIVE:
                depth = tl.load(m + 6) * u0 + (tl.load(m + 7) * v0 + tl.load(m + 8))
                depth = tl.where(depth < DEPTH, DEPTH, depth)
                u, v = u / depth, v / depth
            u, v = tl.minimum(tl.maximum(u, -FAR), FAR), tl.minimum(tl.maximum(v, -FAR), FAR)
            left, top = tl.floor(u + 0.5 if NEAREST else u), tl.floor(v + 0.5 if NEAREST else v)
            fx, fy = u - left, v - top
            column, row = left.to(tl.int32), top.to(tl.int32)
            for c in tl.static_range(C):
                found = _read(images, start, row, column, in_height, in_width, C, c, mask, value, FILL)
                if not NEAREST:
                    right = _read(images, start, row, column + 1, in_height, in_width, C, c, mask, value, FILL)
                    lower = _read(images, start, row + 1, column, in_height, in_width, C, c, mask, value, FILL)
                    last = _read(images, start, row + 1, column + 1, in_height, in_width, C, c, mask, value, FILL)
                    found = found + fx * (right - found)
                    lower = lower + fx * (last - lower)
                    found = found + fy * (lower - found)
                if FILL == OUTSIDE:
                    found = tl.where((u >= 0) & (u <= in_width - 1) & (v >= 0) & (v <= in_height - 1), found, value)
                if COLOUR:
                    weight = tl.load(colour + (n * C + d) * (C + 1) + c, mask=d < C, other=0.0)
                else:
                    weight = tl.where(d == c, 1.0, 0.0)
                tile += found[:, None] * weight[None, :]
    if SAMPLES:
        tile = tile / (rows * columns)
    if COLOUR:
        tile += tl.load(colour + (n * C + d) * (C + 1) + C, mask=d < C, other=0.0)[None, :]
    if LIMITS:
        tile = tl.minimum(tl.maximum(tile, low), high)
    for k in range(erased):
        box = boxes + (n * erased + k) * 4
        inside = (y >= tl.load(box)) & (x >= tl.load(box + 1)) & (y < tl.load(box + 2)) & (x < tl.load(box + 3))
        painted = tl.load(values + (n * erased + k) * C + d, mask=d < C, other=0.0)
        tile = tl.where(inside[:, None], painted[None, :], tile)
    if SCALE:
        tile = tile * tl.load(scale + d, mask=d < C, other=0.0)[None, :] + tl.load(shift + d, mask=d < C, other=0.0)[None, :]
    if BYTES:
        tile = tl.minimum(tl.maximum(tl.floor(tile + 0.5), 0.0), 255.0)
    places = out + n * height * width * C + e[:, None] * C + d[None, :]
    tl.store(places, tile.to(out.dtype.element_ty), mask=mask[:, None] & (d[None, :] < C))


@triton.jit
def _means(images, index, out, places, C: tl.constexpr, CP: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, CP)
    start = (tl.load(index + n).to(tl.int64) if INDEX else n) * places * C
    total = tl.zeros((BLOCK, CP), tl.float32)
    for first in range(0, places, BLOCK):
        e = first + tl.arange(0, BLOCK)
        inside = (e[:, None] < places) & (d[None, :] < C)
        total += tl.load(images + start + e[:, None] * C + d[None, :], mask=inside, other=0).to(tl.float32)
    tl.store(out + n * C + d, tl.sum(total, 0) / places, mask=d < C)


def fill(images: Tensor, index: Tensor | None, matrix: Tensor, samples: Tensor | None, most: int, fill: str, value: float, nearest: bool,
         colour: Tensor | None, limits: tuple[float, float] | None, boxes: Tensor | None, values: Tensor | None, scale: Tensor | None,
         shift: Tensor | None, out: Tensor) -> Tensor:
    """See `reference.warp_fill`; fills `out` (N, h, w, C)."""
    count, height, width, channels = out.shape
    low, high = limits or (0.0, 0.0)

    def ready(tensor: Tensor | None) -> Tensor:
        return out if tensor is None else tensor.contiguous()  # what is absent is never read

    with current_device(images):
        _warp[count, triton.cdiv(height * width, BLOCK)](
            images, ready(index), ready(matrix), ready(samples), ready(colour), ready(boxes), ready(values), ready(scale), ready(shift),
            out, images.shape[1], images.shape[2], height, width, 0 if boxes is None else boxes.shape[1], float(value), float(low),
            float(high), channels, power_of_two(channels), index is not None, matrix.shape[1] == 3, samples is not None, FILLS.index(fill),
            nearest, colour is not None, limits is not None, scale is not None, str(out.dtype) == "torch.uint8", BLOCK)
    return out


def means(images: Tensor, index: Tensor | None, out: Tensor) -> Tensor:
    """See `reference.warp_means`; fills `out` (N, C) float32."""
    channels = int(images.shape[3])
    with current_device(images):
        _means[(len(out),)](images, out if index is None else index.contiguous(), out, images.shape[1] * images.shape[2], channels,
                            power_of_two(channels), index is not None, MEAN_BLOCK)
    return out
