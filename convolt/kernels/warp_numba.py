"""Augmented batches on the CPU: a line of output at a time, in a buffer that stays in the first cache.

The part of a line whose four neighbours all lie inside the picture is found first, and needs no checks of borders; whole-pixel moves
and flips are copied. Pictures of three channels are first spread to four floats a pixel, which one vector register holds, where the
output is not much smaller than the picture. Coordinates are float32, as in the reference.
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
SPREAD = 4
"""A picture of more than so many times the pixels of the output is read as it is."""


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
def _tap(images: Any, start: Any, row: Any, column: Any, c: Any, width: Any, step: Any, value: Any) -> Any:
    if row < 0 or column < 0:
        return value
    return np.float32(images[np.uint64(start + (row * width + column) * step + c)])


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _anywhere(images: Any, start: Any, sizes: Any, u: Any, v: Any, value: Any, line: Any, at: Any) -> None:
    """Adds one pixel, wherever it lies."""
    height, width, channels, step, fill, nearest = sizes
    u, v = min(max(u, -FAR), FAR), min(max(v, -FAR), FAR)
    if fill == OUTSIDE and not (u >= 0 and u <= width - 1 and v >= 0 and v <= height - 1):
        for c in range(channels):
            line[at + c] += value
        return
    if nearest:
        row, column = _place(np.int64(np.floor(v + HALF)), height, fill), _place(np.int64(np.floor(u + HALF)), width, fill)
        for c in range(channels):
            line[at + c] += _tap(images, start, row, column, c, width, step, value)
        return
    left, top = np.floor(u), np.floor(v)
    fx, fy = u - left, v - top
    top0, left0 = _place(np.int64(top), height, fill), _place(np.int64(left), width, fill)
    top1, left1 = _place(np.int64(top) + 1, height, fill), _place(np.int64(left) + 1, width, fill)
    for c in range(channels):
        a, b = (_tap(images, start, top0, left0, c, width, step, value), _tap(images, start, top0, left1, c, width, step, value))
        upper = a + fx * (b - a)
        a, b = (_tap(images, start, top1, left0, c, width, step, value), _tap(images, start, top1, left1, c, width, step, value))
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
def _inside_four(images: Any, start: Any, stride: Any, a: Any, b: Any, d: Any, e: Any, shift: Any, first: Any, last: Any,
                 line: Any) -> None:
    """Adds pixels of four floats, whose neighbours all lie inside.

    All are read before one is written, so that LLVM makes vectors of them.
    """
    k1, k2, k3, k4, k5, k6, k7 = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4), np.uint64(5), np.uint64(6), np.uint64(7)
    for x in range(first, last):
        u, v = a * (np.float32(x) + shift) + b, d * (np.float32(x) + shift) + e
        left, top = np.int32(u), np.int32(v)
        fx, fy = u - np.float32(left), v - np.float32(top)
        p = np.uint64(start + top * stride + left * 4)
        q = np.uint64(start + top * stride + left * 4 + stride)
        p0, p1, p2, p3 = np.float32(images[p]), np.float32(images[p + k1]), np.float32(images[p + k2]), np.float32(images[p + k3])
        p4, p5, p6, p7 = np.float32(images[p + k4]), np.float32(images[p + k5]), np.float32(images[p + k6]), np.float32(images[p + k7])
        q0, q1, q2, q3 = np.float32(images[q]), np.float32(images[q + k1]), np.float32(images[q + k2]), np.float32(images[q + k3])
        q4, q5, q6, q7 = np.float32(images[q + k4]), np.float32(images[q + k5]), np.float32(images[q + k6]), np.float32(images[q + k7])
        u0, u1, u2, u3 = p0 + fx * (p4 - p0), p1 + fx * (p5 - p1), p2 + fx * (p6 - p2), p3 + fx * (p7 - p3)
        l0, l1, l2, l3 = q0 + fx * (q4 - q0), q1 + fx * (q5 - q1), q2 + fx * (q6 - q2), q3 + fx * (q7 - q3)
        r0, r1, r2, r3 = u0 + fy * (l0 - u0), u1 + fy * (l1 - u1), u2 + fy * (l2 - u2), u3 + fy * (l3 - u3)
        w = np.uint64(4 * x)
        r0, r1, r2, r3 = line[w] + r0, line[w + k1] + r1, line[w + k2] + r2, line[w + k3] + r3
        line[w], line[w + k1], line[w + k2], line[w + k3] = r0, r1, r2, r3


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _inside_any(images: Any, start: Any, stride: Any, channels: Any, wide: Any, a: Any, b: Any, d: Any, e: Any, shift: Any, first: Any,
                last: Any, line: Any) -> None:
    """Adds pixels whose neighbours all lie inside; `wide` floats a pixel in the line."""
    for x in range(first, last):
        u, v = a * (np.float32(x) + shift) + b, d * (np.float32(x) + shift) + e
        left, top = np.int32(u), np.int32(v)
        fx, fy = u - np.float32(left), v - np.float32(top)
        p = start + top * stride + left * channels
        q = p + stride
        w = wide * x
        for c in range(channels):
            p0, p1 = np.float32(images[np.uint64(p + c)]), np.float32(images[np.uint64(p + c + channels)])
            q0, q1 = np.float32(images[np.uint64(q + c)]), np.float32(images[np.uint64(q + c + channels)])
            upper, lower = p0 + fx * (p1 - p0), q0 + fx * (q1 - q0)
            line[w + c] += upper + fy * (lower - upper)


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _copied(images: Any, start: Any, sizes: Any, sign: Any, offset: Any, row: Any, out_width: Any, wide: Any, line: Any) -> Any:
    """Adds the pixels of a row that is only moved or mirrored; returns which part was inside."""
    height, width, channels, step, fill, _ = sizes
    row = _place(row, height, fill)
    if row < 0:
        return 0, 0
    first, last = max(0, -offset), min(out_width, width - offset)
    if sign < 0:
        first, last = max(0, offset - width + 1), min(out_width, offset + 1)
    last = max(first, last)
    start += row * width * step
    if sign > 0 and step == wide:
        begin = start + offset * step
        for i in range(first * step, last * step):
            line[i] += np.float32(images[np.uint64(begin + i)])
        return first, last
    direction = np.int64(sign)
    for x in range(first, last):
        p = start + (offset + direction * x) * step
        for c in range(channels):
            line[x * wide + c] += np.float32(images[np.uint64(p + c)])
    return first, last


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _whole(a: Any, b: Any, d: Any, e: Any, straight: Any, shift: Any) -> Any:
    """Whether pixels of a line fall onto pixels, side by side."""
    return (straight and d == ZERO and abs(a) == ONE and shift == ZERO and b == np.floor(b) and e == np.floor(e)
            and abs(b) < FAR and abs(e) < FAR)


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _line(images: Any, start: Any, sizes: Any, m: Any, y: Any, shift: Any, out_width: Any, wide: Any, value: Any, line: Any) -> None:
    """Adds a line of output, sampled `shift` to the right of the pixels' centres."""
    height, width, channels, step, _, nearest = sizes
    a, b, d, e = m[0], m[1] * y + m[2], m[3], m[4] * y + m[5]
    g, h = m[6], m[7] * y + m[8]
    straight = g == ZERO and h == ONE
    first, last = 0, 0
    if _whole(a, b, d, e, straight, shift):
        first, last = _copied(images, start, sizes, a, np.int64(b), np.int64(e), out_width, wide, line)
    elif straight and not nearest:
        first, last = _part(a, b, shift, ZERO, np.float32(width - 1), 0, out_width)
        first, last = _part(d, e, shift, ZERO, np.float32(height - 1), first, last)
        if channels == 1:
            _inside_one(images, start, width, a, b, d, e, shift, first, last, line)
        elif step == 4 and wide == 4:
            _inside_four(images, start, width * 4, a, b, d, e, shift, first, last, line)
        else:
            _inside_any(images, start, width * step, step, wide, a, b, d, e, shift, first, last, line)
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
        _anywhere(images, start, sizes, u, v, value, line, x * wide)
        x += 1


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _colour(line: Any, width: Any, channels: Any, wide: Any, m: Any, low: Any, high: Any, pixel: Any) -> None:
    if channels == 3:
        m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11 = m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7], m[8], m[9], m[10], m[11]
        for x in range(width):
            r, g, b = line[4 * x], line[4 * x + 1], line[4 * x + 2]
            line[4 * x] = min(max(m0 * r + m1 * g + m2 * b + m3, low), high)
            line[4 * x + 1] = min(max(m4 * r + m5 * g + m6 * b + m7, low), high)
            line[4 * x + 2] = min(max(m8 * r + m9 * g + m10 * b + m11, low), high)
        return
    for x in range(width):
        for c in range(channels):
            pixel[c] = line[x * wide + c]
        for c in range(channels):
            total = m[c * (channels + 1) + channels]
            for k in range(channels):
                total += m[c * (channels + 1) + k] * pixel[k]
            line[x * wide + c] = min(max(total, low), high)


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _spread(images: Any, start: Any, places: Any, scratch: Any) -> None:
    """Three channels to four floats; the fourth is never used."""
    for i in range(places):
        p, q = np.uint64(start + 3 * i), np.uint64(4 * i)
        scratch[q] = np.float32(images[p])
        scratch[q + np.uint64(1)] = np.float32(images[p + np.uint64(1)])
        scratch[q + np.uint64(2)] = np.float32(images[p + np.uint64(2)])


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _stored(line: Any, width: Any, channels: Any, wide: Any, scale: Any, shift: Any, target: Any, like: Any) -> None:
    scaled = scale.size > 0
    if channels == 3:
        s0, s1, s2 = (scale[0], scale[1], scale[2]) if scaled else (ONE, ONE, ONE)
        t0, t1, t2 = (shift[0], shift[1], shift[2]) if scaled else (ZERO, ZERO, ZERO)
        for x in range(width):
            target[3 * x] = cast(line[4 * x] * s0 + t0, like)
            target[3 * x + 1] = cast(line[4 * x + 1] * s1 + t1, like)
            target[3 * x + 2] = cast(line[4 * x + 2] * s2 + t2, like)
        return
    for x in range(width):
        for c in range(channels):
            found = line[x * wide + c]
            target[x * channels + c] = cast(found * scale[c] + shift[c] if scaled else found, like)


@Compiled
def _warp(images: Any, index: Any, matrix: Any, samples: Any, colour: Any, boxes: Any, values: Any, scale: Any, shift: Any, out: Any,
          sizes: Any, reals: Any, first: Any, last: Any) -> None:
    in_height, in_width, channels, fill, nearest, height, width, erased, has_limits = sizes
    value, low, high = reals
    places = in_height * in_width
    wide = 4 if channels == 3 else channels
    may_spread = channels == 3 and not nearest and places <= SPREAD * height * width
    scratch = np.zeros(4 * places if may_spread else 0, np.float32)
    line, pixel = np.empty(width * wide, np.float32), np.empty(channels, np.float32)
    like = out.dtype.type(0)
    for n in range(first, last):
        start = index[n] * places * channels
        m = matrix[9 * n : 9 * n + 9]
        rows, columns = (samples[2 * n], samples[2 * n + 1]) if samples.size > 0 else (1, 1)
        straight = m[6] == ZERO and m[7] == ZERO and m[8] == ONE
        spread = may_spread and not (_whole(m[0], m[1] + m[2], m[3], m[4] + m[5], straight, ZERO) and m[1] == ZERO and rows * columns == 1)
        if spread:
            _spread(images, start, places, scratch)
        for y in range(height):
            line[:] = ZERO
            for i in range(rows):
                down = np.float32(y) + ((np.float32(i) + HALF) / np.float32(rows) - HALF)
                for j in range(columns):
                    across = (np.float32(j) + HALF) / np.float32(columns) - HALF
                    if spread:
                        _line(scratch, 0, (in_height, in_width, channels, 4, fill, nearest), m, down, across, width, wide, value, line)
                    else:
                        _line(images, start, (in_height, in_width, channels, channels, fill, nearest), m, down, across, width, wide, value,
                              line)
            if rows * columns > 1:
                share = ONE / np.float32(rows * columns)
                for i in range(line.size):
                    line[i] *= share
            if colour.size > 0:
                of_one = channels * (channels + 1)
                _colour(line, width, channels, wide, colour[n * of_one : (n + 1) * of_one], low, high, pixel)
            elif has_limits:
                for i in range(line.size):
                    line[i] = min(max(line[i], low), high)
            for k in range(n * erased, (n + 1) * erased):
                if boxes[4 * k] <= y < boxes[4 * k + 2]:
                    for x in range(max(0, boxes[4 * k + 1]), min(width, boxes[4 * k + 3])):
                        for c in range(channels):
                            line[x * wide + c] = values[k * channels + c]
            row = n * height + y
            _stored(line, width, channels, wide, scale, shift, out[row * width * channels : (row + 1) * width * channels], like)


@Compiled
def _means(images: Any, index: Any, out: Any, sizes: Any, first: Any, last: Any) -> None:
    places, channels = sizes
    # A line of whole pixels, 48 values where channels are 1, 3 or 4, is summed value by value, which vectorises.
    width = channels * max(1, 48 // channels)
    sums = np.empty(width, np.float32)
    totals = np.empty(channels, np.float64)
    for n in range(first, last):
        begin, end = index[n] * places * channels, (index[n] + 1) * places * channels
        totals[:] = 0.0
        while begin < end:
            lines = min(256, (end - begin) // width)  # sums of 256 bytes are exact in float32
            sums[:] = ZERO
            for k in range(lines):
                part = images[begin + k * width : begin + (k + 1) * width]
                for i in range(width):
                    sums[i] += np.float32(part[i])
            begin += lines * width
            for i in range(width):
                totals[i % channels] += sums[i]
            if lines == 0:
                for i in range(end - begin):
                    totals[i % channels] += np.float32(images[begin + i])
                begin = end
        for c in range(channels):
            out[n * channels + c] = np.float32(totals[c] / places)


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
    target = out.view(-1).numpy() if out.dtype == torch.uint8 else bits(out.permute(0, 3, 1, 2))
    arrays = (images.view(-1).numpy(), _rows_of(index, count), _floats(matrix), _integers(samples), _floats(colour), _integers(boxes),
              _floats(values), _floats(scale), _floats(shift), target)
    low, high = limits or (-np.inf, np.inf)
    sizes = (images.shape[1], images.shape[2], channels, FILLS.index(fill), int(nearest), height, width,
             0 if boxes is None else boxes.shape[1], int(limits is not None))
    reals = (np.float32(value), np.float32(low), np.float32(high))
    over_rows(lambda first, last: _warp(*arrays, sizes, reals, first, last), count, 8 * out.numel())
    return out


def means(images: Tensor, index: Tensor | None, out: Tensor) -> Tensor:
    """See `reference.warp_means`; fills `out` (N, C) float32."""
    arrays = (images.view(-1).numpy(), _rows_of(index, len(out)), out.view(-1).numpy())
    sizes = (images.shape[1] * images.shape[2], images.shape[3])
    over_rows(lambda first, last: _means(*arrays, sizes, first, last), len(out), len(out) * images[0].numel() * images.element_size())
    return out
