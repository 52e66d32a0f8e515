"""Augmented batches on the CPU: a line of output at a time, in a buffer that stays in the first cache.

The part of a line whose four neighbours all lie inside the picture is found first, and needs no checks of borders; whole-pixel moves
and flips are copied. Coordinates are float32, as in the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from numba.extending import overload
from torch import Tensor

from convolt.kernels.bits_numba import Compiled, from_float
from convolt.kernels.memory import bits
from convolt.kernels.threads import over_rows
from convolt.kernels.warp_reference import FARTHEST, FILLS, SMALLEST_DEPTH

CONSTANT, NEAREST, REFLECT, WRAP, OUTSIDE = range(len(FILLS))
FAR, DEPTH = np.float32(FARTHEST), np.float32(SMALLEST_DEPTH)
HALF, ONE, ZERO = np.float32(0.5), np.float32(1), np.float32(0)
inlined = numba.njit(inline="always", nogil=True, error_model="numpy")
FAST = {"contract", "nsz"}


def cast(f: Any, like: Any) -> Any:
    """Float32 → what is stored: rounded bytes, or the bits of a float."""


@overload(cast, strict=False)  # annotations differ
def _cast(f: Any, like: Any) -> Callable[..., Any]:
    if like == types.uint8:
        return lambda f, like: np.uint8(min(max(f + HALF, ZERO), np.float32(255)))
    return lambda f, like: from_float(f, like)


@numba.njit(nogil=True, error_model="numpy")
def _place(i: Any, size: Any, fill: Any) -> Any:
    """A row or column inside the picture, or -1."""
    if 0 <= i < size:
        return i
    if fill == REFLECT:
        i = i % (2 * size)
        return 2 * size - 1 - i if i >= size else i
    if fill == WRAP:
        return i % size
    if fill == NEAREST:
        return 0 if i < 0 else size - 1
    return -1


@numba.njit(nogil=True, error_model="numpy")
def _tap(images: Any, start: Any, row: Any, column: Any, c: Any, width: Any, channels: Any, value: Any) -> Any:
    if row < 0 or column < 0:
        return value
    return np.float32(images[np.uint64(start + (row * width + column) * channels + c)])


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _anywhere(images: Any, start: Any, sizes: Any, u: Any, v: Any, value: Any, line: Any, at: Any) -> None:
    """Adds one pixel, wherever it lies."""
    height, width, channels, fill, nearest = sizes
    u, v = min(max(u, -FAR), FAR), min(max(v, -FAR), FAR)
    if fill == OUTSIDE and not (u >= 0 and u <= width - 1 and v >= 0 and v <= height - 1):
        for c in range(channels):
            line[at + c] += value
        return
    if nearest:
        row, column = _place(np.int64(np.floor(v + HALF)), height, fill), _place(np.int64(np.floor(u + HALF)), width, fill)
        for c in range(channels):
            line[at + c] += _tap(images, start, row, column, c, width, channels, value)
        return
    left, top = np.floor(u), np.floor(v)
    fx, fy = u - left, v - top
    top0, left0 = _place(np.int64(top), height, fill), _place(np.int64(left), width, fill)
    top1, left1 = _place(np.int64(top) + 1, height, fill), _place(np.int64(left) + 1, width, fill)
    for c in range(channels):
        a, b = (_tap(images, start, top0, left0, c, width, channels, value), _tap(images, start, top0, left1, c, width, channels, value))
        upper = a + fx * (b - a)
        a, b = (_tap(images, start, top1, left0, c, width, channels, value), _tap(images, start, top1, left1, c, width, channels, value))
        line[at + c] += upper + fy * (a + fx * (b - a) - upper)


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _part(slope: Any, offset: Any, shift: Any, low: Any, high: Any, first: Any, last: Any) -> Any:
    """The part of first … last in which low <= slope · (x + shift) + offset < high."""
    if slope == ZERO:
        return (first, last) if low <= offset < high else (first, first)
    a, b = (low - offset) / slope - shift, (high - offset) / slope - shift
    a, b = (a, b) if a < b else (b, a)
    first = max(first, np.int64(max(min(a, FAR), -FAR)) - 1)
    last = max(first, min(last, np.int64(max(min(b, FAR), -FAR)) + 2))
    while first < last and not low <= slope * (np.float32(first) + shift) + offset < high:
        first += 1
    while first < last and not low <= slope * (np.float32(last - 1) + shift) + offset < high:
        last -= 1
    return first, last


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _inside_one(images: Any, start: Any, stride: Any, a: Any, b: Any, d: Any, e: Any, shift: Any, first: Any, last: Any,
                line: Any) -> None:
    """Adds pixels of one channel, whose neighbours all lie inside."""
    for x in range(first, last):
        u, v = a * (np.float32(x) + shift) + b, d * (np.float32(x) + shift) + e
        left, top = np.int32(u), np.int32(v)
        fx, fy = u - np.float32(left), v - np.float32(top)
        p = start + top * stride + left
        q = p + stride
        p0, p1 = np.float32(images[np.uint64(p)]), np.float32(images[np.uint64(p + 1)])
        q0, q1 = np.float32(images[np.uint64(q)]), np.float32(images[np.uint64(q + 1)])
        upper, lower = p0 + fx * (p1 - p0), q0 + fx * (q1 - q0)
        line[x] += upper + fy * (lower - upper)


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _inside_three(images: Any, start: Any, stride: Any, a: Any, b: Any, d: Any, e: Any, shift: Any, first: Any, last: Any,
                  line: Any) -> None:
    """Adds pixels of three channels, whose neighbours all lie inside."""
    for x in range(first, last):
        u, v = a * (np.float32(x) + shift) + b, d * (np.float32(x) + shift) + e
        left, top = np.int32(u), np.int32(v)
        fx, fy = u - np.float32(left), v - np.float32(top)
        p = start + top * stride + left * 3
        q = p + stride
        w = 3 * x
        for c in range(3):
            p0, p1 = np.float32(images[np.uint64(p + c)]), np.float32(images[np.uint64(p + c + 3)])
            q0, q1 = np.float32(images[np.uint64(q + c)]), np.float32(images[np.uint64(q + c + 3)])
            upper, lower = p0 + fx * (p1 - p0), q0 + fx * (q1 - q0)
            line[w + c] += upper + fy * (lower - upper)


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _inside_any(images: Any, start: Any, stride: Any, channels: Any, a: Any, b: Any, d: Any, e: Any, shift: Any, first: Any, last: Any,
                line: Any) -> None:
    """Adds pixels whose neighbours all lie inside."""
    for x in range(first, last):
        u, v = a * (np.float32(x) + shift) + b, d * (np.float32(x) + shift) + e
        left, top = np.int32(u), np.int32(v)
        fx, fy = u - np.float32(left), v - np.float32(top)
        p = start + top * stride + left * channels
        q = p + stride
        w = channels * x
        for c in range(channels):
            p0, p1 = np.float32(images[np.uint64(p + c)]), np.float32(images[np.uint64(p + c + channels)])
            q0, q1 = np.float32(images[np.uint64(q + c)]), np.float32(images[np.uint64(q + c + channels)])
            upper, lower = p0 + fx * (p1 - p0), q0 + fx * (q1 - q0)
            line[w + c] += upper + fy * (lower - upper)


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _copied(images: Any, start: Any, sizes: Any, sign: Any, offset: Any, row: Any, out_width: Any, value: Any, line: Any) -> Any:
    """Adds the pixels of a row that is only moved or mirrored; returns which part was inside."""
    height, width, channels, fill, _ = sizes
    row = _place(row, height, fill)
    if row < 0:
        return 0, 0
    first, last = (max(0, -offset), min(out_width, width - offset)) if sign > 0 else (max(0, offset - width + 1), min(out_width, offset + 1))
    last = max(first, last)
    start += row * width * channels
    if sign > 0:
        begin = start + offset * channels
        for i in range(first * channels, last * channels):
            line[i] += np.float32(images[np.uint64(begin + i)])
    else:
        for x in range(first, last):
            p = start + (offset - x) * channels
            for c in range(channels):
                line[x * channels + c] += np.float32(images[np.uint64(p + c)])
    return first, last


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _line(images: Any, start: Any, sizes: Any, m: Any, y: Any, shift: Any, out_width: Any, value: Any, line: Any) -> None:
    """Adds a line of output, sampled `shift` to the right of the pixels' centres."""
    height, width, channels, _, nearest = sizes
    a, b, d, e = m[0], m[1] * y + m[2], m[3], m[4] * y + m[5]
    g, h = m[6], m[7] * y + m[8]
    straight = g == ZERO and h == ONE
    first, last = 0, 0
    if straight and d == ZERO and (a == ONE or a == -ONE) and shift == ZERO and b == np.floor(b) and e == np.floor(e) and abs(b) < FAR \
            and abs(e) < FAR:
        first, last = _copied(images, start, sizes, a, np.int64(b), np.int64(e), out_width, value, line)
    elif straight and not nearest:
        first, last = _part(a, b, shift, ZERO, np.float32(width - 1), 0, out_width)
        first, last = _part(d, e, shift, ZERO, np.float32(height - 1), first, last)
        stride = width * channels
        if channels == 3:
            _inside_three(images, start, stride, a, b, d, e, shift, first, last, line)
        elif channels == 1:
            _inside_one(images, start, stride, a, b, d, e, shift, first, last, line)
        else:
            _inside_any(images, start, stride, channels, a, b, d, e, shift, first, last, line)
    x = 0
    while x < out_width:
        if x == first and first < last:
            x = last
            continue
        place = np.float32(x) + shift
        u, v = a * place + b, d * place + e
        if not straight:
            depth = g * place + h
            depth = depth if depth >= DEPTH else DEPTH
            u, v = u / depth, v / depth
        _anywhere(images, start, sizes, u, v, value, line, x * channels)
        x += 1


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _colour(line: Any, width: Any, channels: Any, m: Any, low: Any, high: Any, pixel: Any) -> None:
    if channels == 3:
        m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11 = m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7], m[8], m[9], m[10], m[11]
        for x in range(width):
            r, g, b = line[3 * x], line[3 * x + 1], line[3 * x + 2]
            line[3 * x] = min(max(m0 * r + m1 * g + m2 * b + m3, low), high)
            line[3 * x + 1] = min(max(m4 * r + m5 * g + m6 * b + m7, low), high)
            line[3 * x + 2] = min(max(m8 * r + m9 * g + m10 * b + m11, low), high)
        return
    for x in range(width):
        for c in range(channels):
            pixel[c] = line[x * channels + c]
        for c in range(channels):
            total = m[c * (channels + 1) + channels]
            for k in range(channels):
                total += m[c * (channels + 1) + k] * pixel[k]
            line[x * channels + c] = min(max(total, low), high)


@Compiled
def _warp(images: Any, index: Any, matrix: Any, samples: Any, colour: Any, boxes: Any, values: Any, scale: Any, shift: Any, out: Any,
          sizes: Any, reals: Any, first: Any, last: Any) -> None:
    in_height, in_width, channels, fill, nearest, height, width, erased, has_limits = sizes
    value, low, high = reals
    source = (in_height, in_width, channels, fill, nearest)
    per_line = width * channels
    line, pixel = np.empty(per_line, np.float32), np.empty(channels, np.float32)
    like = out.dtype.type(0)
    for row in range(first, last):
        n, y = row // height, row % height
        start = index[n] * in_height * in_width * channels
        m = matrix[9 * n : 9 * n + 9]
        line[:] = ZERO
        rows, columns = (samples[2 * n], samples[2 * n + 1]) if samples.size > 0 else (1, 1)
        for i in range(rows):
            down = np.float32(y) + ((np.float32(i) + HALF) / np.float32(rows) - HALF)
            for j in range(columns):
                across = (np.float32(j) + HALF) / np.float32(columns) - HALF
                _line(images, start, source, m, down, across, width, value, line)
        if rows * columns > 1:
            share = ONE / np.float32(rows * columns)
            for i in range(per_line):
                line[i] *= share
        if colour.size > 0:
            of_one = channels * (channels + 1)
            _colour(line, width, channels, colour[n * of_one : (n + 1) * of_one], low, high, pixel)
        elif has_limits:
            for i in range(per_line):
                line[i] = min(max(line[i], low), high)
        for k in range(n * erased, (n + 1) * erased):
            if boxes[4 * k] <= y < boxes[4 * k + 2]:
                for x in range(max(0, boxes[4 * k + 1]), min(width, boxes[4 * k + 3])):
                    for c in range(channels):
                        line[x * channels + c] = values[k * channels + c]
        target = out[row * per_line : (row + 1) * per_line]
        if scale.size > 0:
            for i in range(per_line):
                target[i] = cast(line[i] * scale[i] + shift[i], like)
        else:
            for i in range(per_line):
                target[i] = cast(line[i], like)


@Compiled
def _means(images: Any, index: Any, out: Any, sizes: Any, first: Any, last: Any) -> None:
    places, channels = sizes
    for n in range(first, last):
        begin = index[n] * places * channels
        for c in range(channels):
            total = 0.0
            for block in range(0, places, 4096):  # float32 and int32 sums of a block are exact enough, and vectorise
                part = np.float32(0)
                for i in range(block, min(block + 4096, places)):
                    part += np.float32(images[np.uint64(begin + i * channels + c)])
                total += part
            out[n * channels + c] = np.float32(total / places)


def _floats(x: Tensor | None) -> Any:
    return np.empty(0, np.float32) if x is None else x.to(torch.float32).contiguous().view(-1).numpy()


def _integers(x: Tensor | None) -> Any:
    return np.empty(0, np.int64) if x is None else x.to(torch.int64).contiguous().view(-1).numpy()


def _rows_of(index: Tensor | None, count: int) -> Any:
    return np.arange(count) if index is None else _integers(index)


def fill(images: Tensor, index: Tensor | None, matrix: Tensor, samples: Tensor | None, most: int, fill: str, value: float, nearest: bool,
         colour: Tensor | None, limits: tuple[float, float] | None, boxes: Tensor | None, values: Tensor | None, scale: Tensor | None,
         shift: Tensor | None, out: Tensor) -> Tensor:
    """See `reference.warp_fill`; fills `out` (N, h, w, C), float32, bfloat16 or uint8."""
    count, height, width, channels = out.shape
    if matrix.shape[1] == 2:
        last_row = torch.tensor([[[0.0, 0.0, 1.0]]]).expand(count, -1, -1)
        matrix = torch.cat([matrix.to(torch.float32), last_row], 1)
    lines = [np.empty(0, np.float32) if v is None else np.tile(_floats(v), width) for v in (scale, shift)]
    target = out.view(-1).numpy() if out.dtype == torch.uint8 else bits(out.permute(0, 3, 1, 2))
    arrays = (images.view(-1).numpy(), _rows_of(index, count), _floats(matrix), _integers(samples), _floats(colour), _integers(boxes),
              _floats(values), *lines, target)
    low, high = limits or (-np.inf, np.inf)
    sizes = (images.shape[1], images.shape[2], channels, FILLS.index(fill), int(nearest), height, width,
             0 if boxes is None else boxes.shape[1], int(limits is not None))
    reals = (np.float32(value), np.float32(low), np.float32(high))
    over_rows(lambda first, last: _warp(*arrays, sizes, reals, first, last), count * height, 4 * out.numel())
    return out


def means(images: Tensor, index: Tensor | None, out: Tensor) -> Tensor:
    """See `reference.warp_means`; fills `out` (N, C) float32."""
    arrays = (images.view(-1).numpy(), _rows_of(index, len(out)), out.view(-1).numpy())
    sizes = (images.shape[1] * images.shape[2], images.shape[3])
    over_rows(lambda first, last: _means(*arrays, sizes, first, last), len(out), len(out) * images[0].numel() * images.element_size())
    return out
