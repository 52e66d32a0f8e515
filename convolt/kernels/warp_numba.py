"""Augmented batches on the CPU: a line of output at a time, in a buffer that stays in the first cache.

The part of a line whose four neighbours all lie inside the picture is found first, and needs no checks of borders; whole-pixel moves
and flips are copied. Bytes of three channels whose plane repeats them are left to `folded_numba`. Of other pictures of three channels,
the part of the plane that the output looks at, borders included, is first laid out as four floats a pixel, which one vector register
holds, where the output is not much smaller than the picture: then hardly a pixel needs a check. Colours and rounding are computed for
four pixels at a time. Coordinates are float32, as in the reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.kernels.compiled import Compiled
from convolt.kernels.folded_numba import cast, folds, of_bytes, put_folded, room_for
from convolt.kernels.instructions import (
    add_between,
    blue,
    green,
    load,
    load_pixels,
    mirrored,
    number,
    pixel,
    red,
    store,
    store_pixels,
    times_plus,
    within,
)
from convolt.kernels.jit import register_jitable
from convolt.kernels.memory import bits
from convolt.kernels.places_numba import FAR, HALF, ONE, OUTSIDE, SPREAD, ZERO, add_pixel, part_between, place_of
from convolt.kernels.warp_reference import FILLS

MARGIN = np.float32(1 / 64)  # coordinates that are computed twice may differ by rounding
BORDER = 2
"""What is laid out goes beyond the picture by at most its height and width divided by this."""


@register_jitable(fastmath={"contract"})
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


@register_jitable(fastmath={"contract"})
def _inside_four(laid: Any, begin: Any, stride: Any, a: Any, b: Any, d: Any, e: Any, shift: Any, first: Any, last: Any,
                 line: Any) -> None:
    """Adds pixels of four floats, whose neighbours are all laid out; `begin` is where the picture's corner is, or would be."""
    for x in range(first, last):
        u, v = a * (np.float32(x) + shift) + b, d * (np.float32(x) + shift) + e
        left, top = np.floor(u), np.floor(v)
        at = begin + np.int64(top) * stride + np.int64(left) * 4
        add_between(laid, at, at + stride, u - left, v - top, line, 4 * x)


@register_jitable(fastmath={"contract"})
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


@register_jitable(fastmath={"contract"})
def _copied(images: Any, start: Any, sizes: Any, sign: Any, offset: Any, row: Any, out_width: Any, wide: Any, line: Any) -> Any:
    """Adds the pixels of a row that is only moved or mirrored; returns which part was inside."""
    height, width, channels, step, fill, _ = sizes
    row = place_of(row, height, fill)
    if row < 0:
        return 0, 0
    first, last = max(0, -offset), min(out_width, width - offset)
    if sign < 0:
        first, last = max(0, offset - width + 1), min(out_width, offset + 1)
    if first >= last:  # moved out of sight: `first` may lie beyond the line
        return 0, 0
    start += row * width * step
    if sign > 0 and step == wide:
        begin = start + offset * step
        for i in range(first * step, last * step):
            line[i] += np.float32(images[np.uint64(begin + i)])
        return first, last
    direction = np.int64(sign)
    done = first
    if channels == 3:
        while done + 4 <= last:
            if sign > 0:
                found = load_pixels(images, start + (offset + done) * 3)
            else:
                found = mirrored(load_pixels(images, start + (offset - done - 3) * 3))
            store(line, 4 * done, load(line, 4 * done) + found)
            done += 4
    for x in range(done, last):
        p = start + (offset + direction * x) * step
        for c in range(channels):
            line[x * wide + c] += np.float32(images[np.uint64(p + c)])
    return first, last


@register_jitable(fastmath={"contract"})
def _whole(a: Any, b: Any, d: Any, e: Any, straight: Any, shift: Any) -> Any:
    """Whether pixels of a line fall onto pixels, side by side."""
    return (straight and d == ZERO and abs(a) == ONE and shift == ZERO and b == np.floor(b) and e == np.floor(e)
            and abs(b) < FAR and abs(e) < FAR)


@register_jitable(fastmath={"contract"})
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
        first, last = part_between(a, b, shift, ZERO, np.float32(width - 1), 0, out_width)
        first, last = part_between(d, e, shift, ZERO, np.float32(height - 1), first, last)
        if channels == 1:
            _inside_one(images, start, width, a, b, d, e, shift, first, last, line)
        else:
            _inside_any(images, start, width * step, step, wide, a, b, d, e, shift, first, last, line)
    for x in range(first):
        add_pixel(images, start, sizes, a, b, d, e, g, h, straight, shift, value, line, x, wide)
    for x in range(last, out_width):
        add_pixel(images, start, sizes, a, b, d, e, g, h, straight, shift, value, line, x, wide)


@register_jitable(fastmath={"contract"})
def _laid_line(laid: Any, region: Any, images: Any, start: Any, sizes: Any, m: Any, y: Any, shift: Any, out_width: Any, value: Any,
               line: Any) -> None:
    """The same, of three channels, where a region of the plane is laid out."""
    left, top, right, bottom = region
    a, b, d, e = m[0], m[1] * y + m[2], m[3], m[4] * y + m[5]
    first, last = part_between(a, b, shift, np.float32(left) + MARGIN, np.float32(right - 1) - MARGIN, 0, out_width)
    first, last = part_between(d, e, shift, np.float32(top) + MARGIN, np.float32(bottom - 1) - MARGIN, first, last)
    stride = 4 * (right - left)
    _inside_four(laid, -top * stride - 4 * left, stride, a, b, d, e, shift, first, last, line)
    for x in range(first):
        add_pixel(images, start, sizes, a, b, d, e, ZERO, ONE, True, shift, value, line, x, 4)
    for x in range(last, out_width):
        add_pixel(images, start, sizes, a, b, d, e, ZERO, ONE, True, shift, value, line, x, 4)


@register_jitable(fastmath={"contract"})
def _ends(slope: Any, other: Any, offset: Any, width: Any, height: Any, size: Any, beyond: Any) -> Any:
    """The columns (or rows) from … to that an output looks at, a neighbour included, at most `beyond` outside of the picture."""
    w, h = np.float32(width) - HALF, np.float32(height) - HALF
    low = offset + min(-HALF * slope, w * slope) + min(-HALF * other, h * other)
    high = offset + max(-HALF * slope, w * slope) + max(-HALF * other, h * other)
    most = np.float32(size + beyond)
    if not low <= high:  # not numbers
        return 0, 0
    low, high = min(max(low, np.float32(-beyond)), most), min(max(high, np.float32(-beyond)), most)
    return np.int64(np.floor(low)), max(np.int64(np.floor(low)), min(np.int64(np.floor(high)) + 2, size + beyond))


@register_jitable(fastmath={"contract"})
def _region(m: Any, height: Any, width: Any, in_height: Any, in_width: Any, fill: Any) -> Any:
    """The part of the plane that an affine map shows."""
    down, across = (0, 0) if fill == OUTSIDE else (in_height // BORDER, in_width // BORDER)
    left, right = _ends(m[0], m[1], m[2], width, height, in_width, across)
    top, bottom = _ends(m[3], m[4], m[5], width, height, in_height, down)
    return left, top, right, bottom


@register_jitable(fastmath={"contract"})
def _colour(line: Any, width: Any, channels: Any, wide: Any, m: Any, low: Any, high: Any, one: Any) -> None:
    if channels == 3:
        of_red, of_green, of_blue = pixel(m[0], m[4], m[8]), pixel(m[1], m[5], m[9]), pixel(m[2], m[6], m[10])
        added, least, most = pixel(m[3], m[7], m[11]), number(low), number(high)
        for i in range(0, 4 * width, 16):
            v = load(line, i)
            mixed = times_plus(red(v), of_red, times_plus(green(v), of_green, times_plus(blue(v), of_blue, added)))
            store(line, i, within(mixed, least, most))
        return
    for x in range(width):
        for c in range(channels):
            one[c] = line[x * wide + c]
        for c in range(channels):
            total = m[c * (channels + 1) + channels]
            for k in range(channels):
                total += m[c * (channels + 1) + k] * one[k]
            line[x * wide + c] = min(max(total, low), high)


@register_jitable(fastmath={"contract"})
def _one_spread(images: Any, start: Any, row: Any, column: Any, sizes: Any, value: Any, laid: Any, at: Any) -> None:
    """One pixel to four floats; the fourth is never used."""
    _, width, _, _, fill, _ = sizes
    column = place_of(column, width, fill)
    for c in range(3):
        laid[at + c] = value if row < 0 or column < 0 else np.float32(images[np.uint64(start + (row * width + column) * 3 + c)])


@register_jitable(fastmath={"contract"})
def _lay_out(images: Any, start: Any, sizes: Any, region: Any, value: Any, laid: Any) -> None:
    """A region of the plane, three channels, to four floats a pixel."""
    height, width, _, _, fill, _ = sizes
    left, top, right, bottom = region
    inner, end = min(max(left, 0), right), max(min(right, width), left)
    at = 0
    for y in range(top, bottom):
        row = place_of(y, height, fill)
        for x in range(left, inner):
            _one_spread(images, start, row, x, sizes, value, laid, at + 4 * (x - left))
        x = inner
        if row >= 0:
            while x + 4 <= end:
                store(laid, at + 4 * (x - left), load_pixels(images, start + (row * width + x) * 3))
                x += 4
        for rest in range(x, right):
            _one_spread(images, start, row, rest, sizes, value, laid, at + 4 * (rest - left))
        at += 4 * (right - left)


@register_jitable(fastmath={"contract"})
def _stored(line: Any, width: Any, channels: Any, wide: Any, scale: Any, shift: Any, target: Any, rest: Any, like: Any) -> None:
    scaled = scale.size > 0
    if channels == 3:
        factor = pixel(scale[0], scale[1], scale[2]) if scaled else number(ONE)
        added = pixel(shift[0], shift[1], shift[2]) if scaled else number(ZERO)
        for x in range(0, width - 3, 4):
            store_pixels(target, 3 * x, times_plus(load(line, 4 * x), factor, added))
        whole = width // 4 * 4
        if whole < width:
            store_pixels(rest, 0, times_plus(load(line, 4 * whole), factor, added))
            target[3 * whole : 3 * width] = rest[: 3 * (width - whole)]
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
    may_lay = channels == 3 and not nearest and places <= SPREAD * height * width
    most = (in_height + 2 * (in_height // BORDER)) * (in_width + 2 * (in_width // BORDER)) if may_lay else 0
    laid = np.empty(4 * most, np.float32)
    line, one = np.empty((width + 3) // 4 * 4 * wide, np.float32), np.empty(channels, np.float32)
    rest = np.empty(12, out.dtype)
    like = out.dtype.type(0)
    own = (in_height, in_width, channels, channels, fill, nearest)
    folding = of_bytes(images) and folds(own)
    room = room_for(own, width, out.dtype)
    of_one = channels * (channels + 1)
    of_all = np.zeros(of_one, np.float32)
    for c in range(channels):
        of_all[c * (channels + 2)] = ONE
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    for n in range(first, last):
        start = index[n] * places * channels
        m = matrix[9 * n : 9 * n + 9]
        rows, columns = (samples[2 * n], samples[2 * n + 1]) if samples.size > 0 else (1, 1)
        straight = m[6] == ZERO and m[7] == ZERO and m[8] == ONE
        affine = straight and not (_whole(m[0], m[1] + m[2], m[3], m[4] + m[5], straight, ZERO) and m[1] == ZERO and rows * columns == 1)
        if folding and affine:
            put_folded(images, start, own, m, (rows, columns), colour[n * of_one : (n + 1) * of_one] if colour.size > 0 else of_all,
                       (low, high), boxes[4 * n * erased : 4 * (n + 1) * erased],
                       values[channels * n * erased : channels * (n + 1) * erased], scale if scale.size > 0 else ones,
                       shift if scale.size > 0 else zeros, out, n * height * width * channels, (height, width), room)
            continue
        lays = may_lay and affine
        region = _region(m, height, width, in_height, in_width, fill) if lays else (0, 0, 0, 0)
        if lays:
            _lay_out(images, start, own, region, value, laid)
        for y in range(height):
            line[:] = ZERO
            for i in range(rows):
                down = np.float32(y) + ((np.float32(i) + HALF) / np.float32(rows) - HALF)
                for j in range(columns):
                    across = (np.float32(j) + HALF) / np.float32(columns) - HALF
                    if lays:
                        _laid_line(laid, region, images, start, own, m, down, across, width, value, line)
                    else:
                        _line(images, start, own, m, down, across, width, wide, value, line)
            if rows * columns > 1:
                share = ONE / np.float32(rows * columns)
                for i in range(line.size):
                    line[i] *= share
            if colour.size > 0:
                _colour(line, width, channels, wide, colour[n * of_one : (n + 1) * of_one], low, high, one)
            elif has_limits:
                for i in range(line.size):
                    line[i] = min(max(line[i], low), high)
            for k in range(n * erased, (n + 1) * erased):
                if boxes[4 * k] <= y < boxes[4 * k + 2]:
                    for x in range(max(0, boxes[4 * k + 1]), min(width, boxes[4 * k + 3])):
                        for c in range(channels):
                            line[x * wide + c] = values[k * channels + c]
            row = n * height + y
            _stored(line, width, channels, wide, scale, shift, out[row * width * channels : (row + 1) * width * channels], rest, like)


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
    return np.empty(0, np.float32) if x is None else x.to(torch.float32).contiguous().view(-1)


def _integers(x: Tensor | None) -> Any:
    return np.empty(0, np.int64) if x is None else x.to(torch.int64).contiguous().view(-1)


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
    target = out.view(-1) if out.dtype == torch.uint8 else bits(out.permute(0, 3, 1, 2))
    arrays = (images.view(-1), _rows_of(index, count), _floats(matrix), _integers(samples), _floats(colour), _integers(boxes),
              _floats(values), _floats(scale), _floats(shift), target)
    low, high = limits or (-np.inf, np.inf)
    sizes = (images.shape[1], images.shape[2], channels, FILLS.index(fill), int(nearest), height, width,
             0 if boxes is None else boxes.shape[1], int(limits is not None))
    reals = (np.float32(value), np.float32(low), np.float32(high))
    _warp.over_rows((*arrays, sizes, reals), count, 8 * out.numel())
    return out


def means(images: Tensor, index: Tensor | None, out: Tensor) -> Tensor:
    """See `reference.warp_means`; fills `out` (N, C) float32."""
    arrays = (images.view(-1), _rows_of(index, len(out)), out.view(-1))
    sizes = (images.shape[1] * images.shape[2], images.shape[3])
    _means.over_rows((*arrays, sizes), len(out), len(out) * images[0].numel() * images.element_size())
    return out
