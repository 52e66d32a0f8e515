"""Where one pixel of a plane is taken from, beyond the picture's border as well: shared by the kernels of augmented batches."""

from __future__ import annotations

from typing import Any

import numpy as np

from convolt.kernels.jit import register_jitable
from convolt.kernels.warp_reference import FARTHEST, FILLS, SMALLEST_DEPTH

CONSTANT, NEAREST, REFLECT, WRAP, OUTSIDE = range(len(FILLS))
FAR, DEPTH = np.float32(FARTHEST), np.float32(SMALLEST_DEPTH)
CHANNELS = 3
OVER = 8
"""Bytes that are read at a place: a pixel, its right neighbour, and two more."""
HALF, ONE, ZERO = np.float32(0.5), np.float32(1), np.float32(0)
SPREAD = 4
"""A picture of more than so many times the pixels of the output is not copied first."""


@register_jitable
def place_of(i: Any, size: Any, fill: Any) -> Any:
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


@register_jitable
def _tap(images: Any, start: Any, row: Any, column: Any, c: Any, width: Any, step: Any, value: Any) -> Any:
    if row < 0 or column < 0:
        return value
    return np.float32(images[np.uint64(start + (row * width + column) * step + c)])


@register_jitable(fastmath={"contract"})
def _anywhere(images: Any, start: Any, sizes: Any, u: Any, v: Any, value: Any, line: Any, at: Any) -> None:
    """Adds one pixel, wherever it lies."""
    height, width, channels, step, fill, nearest = sizes
    u, v = min(max(u, -FAR), FAR), min(max(v, -FAR), FAR)
    if fill == OUTSIDE and not (u >= 0 and u <= width - 1 and v >= 0 and v <= height - 1):
        for c in range(channels):
            line[at + c] += value
        return
    if nearest:
        row, column = place_of(np.int64(np.floor(v + HALF)), height, fill), place_of(np.int64(np.floor(u + HALF)), width, fill)
        for c in range(channels):
            line[at + c] += _tap(images, start, row, column, c, width, step, value)
        return
    left, top = np.floor(u), np.floor(v)
    fx, fy = u - left, v - top
    top0, left0 = place_of(np.int64(top), height, fill), place_of(np.int64(left), width, fill)
    top1, left1 = place_of(np.int64(top) + 1, height, fill), place_of(np.int64(left) + 1, width, fill)
    for c in range(channels):
        a, b = (_tap(images, start, top0, left0, c, width, step, value), _tap(images, start, top0, left1, c, width, step, value))
        upper = a + fx * (b - a)
        a, b = (_tap(images, start, top1, left0, c, width, step, value), _tap(images, start, top1, left1, c, width, step, value))
        line[at + c] += upper + fy * (a + fx * (b - a) - upper)


@register_jitable(fastmath={"contract"})
def part_between(slope: Any, offset: Any, shift: Any, low: Any, high: Any, first: Any, last: Any) -> Any:
    """The part of first … last in which low <= slope · (x + shift) + offset < high."""
    if slope == ZERO:
        return (first, last) if low <= offset < high else (0, 0)
    a, b = (low - offset) / slope - shift, (high - offset) / slope - shift
    a, b = (a, b) if a < b else (b, a)
    first = max(first, np.int64(max(min(a, FAR), -FAR)) - 1)
    last = max(first, min(last, np.int64(max(min(b, FAR), -FAR)) + 2))
    while first < last and not low <= slope * (np.float32(first) + shift) + offset < high:
        first += 1
    while first < last and not low <= slope * (np.float32(last - 1) + shift) + offset < high:
        last -= 1
    return (first, last) if first < last else (0, 0)


@register_jitable(fastmath={"contract"})
def add_pixel(images: Any, start: Any, sizes: Any, a: Any, b: Any, d: Any, e: Any, g: Any, h: Any, straight: Any, shift: Any, value: Any,
              line: Any, x: Any, wide: Any) -> None:
    """Adds pixel x of a line, wherever it lies."""
    place = np.float32(x) + shift
    u, v = a * place + b, d * place + e
    if not straight:
        depth = g * place + h
        depth = depth if depth >= DEPTH else DEPTH
        u, v = u / depth, v / depth
    _anywhere(images, start, sizes, u, v, value, line, x * wide)
