"""Pictures of bytes of which the plane beyond the border shows nothing new: coordinates are folded back into the picture.

What `fill_mode="reflect"` and `"nearest"` show at a place is what the picture itself shows at another: the place is mirrored at the
border, or moved onto it. So no border is laid out, and sixteen pixels are interpolated at once, from bytes, one vector for each channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from convolt.kernels.bits_numba import from_float
from convolt.kernels.instructions import copy_bytes, load, number, put_between, store_planes, times_plus, within
from convolt.kernels.jit import LANES, overload, register_jitable, types
from convolt.kernels.places_numba import CHANNELS, FAR, HALF, NEAREST, ONE, OVER, REFLECT, SPREAD, ZERO, add_pixel, part_between

# A line of a small picture takes less time than to hand over all that these functions take.
_inlined = register_jitable(fastmath={"contract"}, forceinline=True)


def cast(f: Any, like: Any) -> Any:
    """Float32 → what is stored: rounded bytes, or the bits of a float."""


@overload(cast)
def _cast(f: Any, like: Any) -> Callable[..., Any]:
    if like == types.uint8:
        return lambda f, like: np.uint8(min(max(f + HALF, ZERO), np.float32(255)))
    return lambda f, like: from_float(f, like)


@register_jitable
def folds(sizes: Any) -> Any:
    """Whether pictures of these sizes and fill are read this way: three channels, one mapping for all pixels, two lines and columns."""
    height, width, channels, _, fill, nearest = sizes
    return channels == CHANNELS and not nearest and fill in (REFLECT, NEAREST) and height > 1 and width > 1


def put_folded(images: Any, start: Any, sizes: Any, m: Any, samples: Any, colour: Any, limits: Any, boxes: Any, values: Any, scale: Any,
               shift: Any, out: Any, begin: Any, shape: Any, room: Any) -> None:
    """Writes one picture that an affine map shows, to out[begin : …]; `room` is what `room_for` gives. Floats: never called."""


@overload(put_folded)
def _put_folded(images: Any, *_: Any) -> Callable[..., None]:
    if images.dtype != types.uint8:
        return lambda images, start, sizes, m, samples, colour, limits, boxes, values, scale, shift, out, begin, shape, room: None
    return _picture


def of_bytes(images: Any) -> bool:
    """Whether an array has bytes."""
    return bool(images.dtype == np.uint8)


@overload(of_bytes)
def _of_bytes(images: Any) -> Callable[..., Any]:
    bytes_ = images.dtype == types.uint8
    return lambda images: bytes_


@register_jitable
def room_for(sizes: Any, out_width: Any, dtype: Any) -> Any:
    """Memory for `put_folded`: a picture's bytes and a few more; lines of places, of what lies between, of planes; a few pixels."""
    height, width, _, _, _, _ = sizes
    wide = (out_width + LANES - 1) // LANES * LANES
    copied = np.empty(height * width * CHANNELS + OVER, np.uint8) if folds(sizes) else np.empty(0, np.uint8)
    across, down = np.empty(wide, np.float32), np.empty(wide, np.float32)
    planes, totals = np.empty(CHANNELS * wide, np.float32), np.empty(CHANNELS * wide, np.float32)
    return copied, np.empty(wide, np.int32), across, down, planes, totals, np.empty(CHANNELS * LANES, dtype)


@register_jitable(fastmath={"contract"})
def _set_places(a: Any, b: Any, d: Any, e: Any, shift: Any, height: Any, width: Any, mirrored: Any, places: Any, across: Any,
                down: Any) -> None:
    """Writes where the upper left of the four pixels around each place of a line begins, and how far the place lies from it."""
    right, bottom = np.float32(width - 1), np.float32(height - 1)
    beyond, below = right + right + ONE, bottom + bottom + ONE
    last_column, last_row, stride = np.int32(width - 2), np.int32(height - 2), np.int32(CHANNELS * width)
    for x in range(places.size):
        at = np.float32(np.int32(x)) + shift
        u, v = a * at + b, d * at + e
        if mirrored:
            u = -ONE - u if u < ZERO else beyond - u if u > right else u
            v = -ONE - v if v < ZERO else below - v if v > bottom else v
        u, v = u if u > ZERO else ZERO, v if v > ZERO else ZERO  # also where they are not numbers
        u, v = u if u < right else right, v if v < bottom else bottom
        column, row = min(np.int32(u), last_column), min(np.int32(v), last_row)
        across[x], down[x] = u - np.float32(column), v - np.float32(row)
        places[x] = row * stride + column * np.int32(CHANNELS)


@_inlined
def _line(images: Any, start: Any, own: Any, source: Any, origin: Any, m: Any, y: Any, shift: Any, out_width: Any, places: Any, across: Any,
          down: Any, planes: Any) -> None:
    """Writes a line of output, sampled `shift` to the right of the pixels' centres, to three planes."""
    height, width, _, _, fill, _ = own
    a, b, d, e = m[0], m[1] * y + m[2], m[3], m[4] * y + m[5]
    low, right, bottom = (np.float32(-FAR), FAR, FAR) if fill == NEAREST else (-ONE, np.float32(2 * width - 1), np.float32(2 * height - 1))
    end = np.float32(out_width - 1) + shift
    u, v, to_u, to_v = a * shift + b, d * shift + e, a * end + b, d * end + e
    left, farthest, upper, lowest = min(u, to_u), max(u, to_u), min(v, to_v), max(v, to_v)
    first, last = 0, out_width
    if not (left >= low * np.float32(width) and farthest < right and upper >= low * np.float32(height) and lowest < bottom):
        first, last = part_between(a, b, shift, low * np.float32(width), right, 0, out_width)
        first, last = part_between(d, e, shift, low * np.float32(height), bottom, first, last)
    inside = left >= ZERO and farthest <= np.float32(width - 1) and upper >= ZERO and lowest <= np.float32(height - 1)
    wide = places.size
    if first < last:
        _set_places(a, b, d, e, shift, height, width, fill == REFLECT and not inside, places, across, down)
        for x in range(0, wide, LANES):
            put_between(source, origin, places, x, CHANNELS * width, across, down, planes, wide)
    for x in range(first):
        _put_far(images, start, own, a, b, d, e, shift, x, planes, wide)
    for x in range(last, out_width):
        _put_far(images, start, own, a, b, d, e, shift, x, planes, wide)


@register_jitable(fastmath={"contract"})
def _put_far(images: Any, start: Any, own: Any, a: Any, b: Any, d: Any, e: Any, shift: Any, x: Any, planes: Any, wide: Any) -> None:
    """Writes a pixel that more than one fold brings back."""
    one = np.zeros(CHANNELS, np.float32)
    add_pixel(images, start, own, a, b, d, e, ZERO, ONE, True, shift, ZERO, one, x, 0)
    for c in range(CHANNELS):
        planes[c * wide + x] = one[c]


@_inlined
def _stored(planes: Any, width: Any, m: Any, limits: Any, scale: Any, shift: Any, out: Any, at: Any, rest: Any) -> None:
    """Writes a line of planes to out[at : …] as pixels: colour matrix, limits, scale and shift, cast."""
    low, high = number(limits[0]), number(limits[1])
    wide, whole = planes.size // CHANNELS, width // LANES * LANES
    apart = m[1] == ZERO and m[2] == ZERO and m[4] == ZERO and m[6] == ZERO and m[8] == ZERO and m[9] == ZERO
    a, b, c, d = number(m[0]), number(m[1]), number(m[2]), number(m[3])
    e, f, g, h = number(m[4]), number(m[5]), number(m[6]), number(m[7])
    i, j, k, n = number(m[8]), number(m[9]), number(m[10]), number(m[11])
    by_red, by_green, by_blue = number(scale[0]), number(scale[1]), number(scale[2])
    to_red, to_green, to_blue = number(shift[0]), number(shift[1]), number(shift[2])
    for x in range(0, wide, LANES):
        red, green, blue = load(planes, x), load(planes, wide + x), load(planes, 2 * wide + x)
        if apart:  # each channel by itself
            red, green, blue = times_plus(red, a, d), times_plus(green, f, h), times_plus(blue, k, n)
        else:
            red, green, blue = (times_plus(red, a, times_plus(green, b, times_plus(blue, c, d))),
                                times_plus(red, e, times_plus(green, f, times_plus(blue, g, h))),
                                times_plus(red, i, times_plus(green, j, times_plus(blue, k, n))))
        red = times_plus(within(red, low, high), by_red, to_red)
        green = times_plus(within(green, low, high), by_green, to_green)
        blue = times_plus(within(blue, low, high), by_blue, to_blue)
        if x < whole:
            store_planes(out, at + CHANNELS * x, red, green, blue)
        else:
            store_planes(rest, 0, red, green, blue)
    for place in range(CHANNELS * whole, CHANNELS * width):
        out[at + place] = rest[place - CHANNELS * whole]


@_inlined
def _sampled(images: Any, start: Any, own: Any, source: Any, origin: Any, m: Any, y: Any, rows: Any, columns: Any, out_width: Any,
             places: Any, across: Any, down: Any, planes: Any, total: Any) -> None:
    """Writes a line, each pixel the mean of rows × columns of samples, to the planes."""
    for i in range(rows):
        lower = np.float32(y) + ((np.float32(i) + HALF) / np.float32(rows) - HALF)
        for j in range(columns):
            further = (np.float32(j) + HALF) / np.float32(columns) - HALF
            _line(images, start, own, source, origin, m, lower, further, out_width, places, across, down, planes)
            if rows * columns > 1:
                for k in range(total.size):
                    total[k] = (total[k] if i + j > 0 else ZERO) + planes[k]
    if rows * columns > 1:
        share = ONE / np.float32(rows * columns)
        for k in range(total.size):
            planes[k] = total[k] * share


def _picture(images: Any, start: Any, sizes: Any, m: Any, samples: Any, colour: Any, limits: Any, boxes: Any, values: Any, scale: Any,
             shift: Any, out: Any, begin: Any, shape: Any, room: Any) -> None:
    """See `put_folded`."""
    in_height, in_width, _, _, _, _ = sizes
    height, width = shape
    copied, places, across, down, planes, total, rest = room
    size = in_height * in_width * CHANNELS
    like = out.dtype.type(0)
    source, origin = images, start
    # Beyond the last picture lies nothing that may be read; and a copy, made in order, comes out of memory before it is looked at.
    if start + size + OVER > images.size or size <= SPREAD * height * width * CHANNELS:
        copy_bytes(images, start, copied, size)
        source, origin = copied, 0
    for y in range(height):
        _sampled(images, start, sizes, source, origin, m, y, samples[0], samples[1], width, places, across, down, planes, total)
        at = begin + y * width * CHANNELS
        _stored(planes, width, colour, limits, scale, shift, out, at, rest)
        for k in range(boxes.size // 4):
            if boxes[4 * k] <= y < boxes[4 * k + 2]:
                for c in range(CHANNELS):
                    erased = cast(values[k * CHANNELS + c] * scale[c] + shift[c], like)
                    for x in range(max(0, boxes[4 * k + 1]), min(width, boxes[4 * k + 3])):
                        out[at + CHANNELS * x + c] = erased
