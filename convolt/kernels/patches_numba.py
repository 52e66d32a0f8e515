"""The backward pass of a 3 × 3 convolution + (ReLU +) max-pooling of 2 × 2 on the CPU, over the results that passed a gradient alone.

Each window of the pooling passes one gradient per filter at most. So the weights' gradient of a filter is a sum of patches of
the input, one for each window, and the gradient of a patch of the input is a sum of filters: those whose maximum lay there. Both sums
stay in registers, of 3 × 6 vectors and of 6, while the lists of what they add are gone through. That is 9 products for each window and
channel where Winograd's tiles take 16. Filters and images belong to one thread each and are summed in order: the result does not
depend on the number of threads. Sums are float32, in bfloat16, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.kernels.bits_numba import to_float
from convolt.kernels.compiled import Compiled
from convolt.kernels.instructions import bytes_below, gathered_sums, load, lowest_bit, store, zeros
from convolt.kernels.jit import register_jitable
from convolt.kernels.memory import bits, empty_channels_last, numbers

LANES, TILE = 16, 96  # numbers in a vector, and in a row of a sum of patches: 6 vectors, of 3 pixels with 32 channels
PLACES = np.uint8(4)
FILTERS = 4  # that belong to one thread
MOST_BYTES = 1 << 19  # of an image and of the weights, in float32: both are read again and again from the second cache

_three_rows, _one_row = gathered_sums(3, TILE // LANES), gathered_sums(1, TILE // LANES)


@register_jitable
def _aligned(count: Any) -> Any:
    """Float32 numbers that begin with a cache line."""
    room = np.empty(count + LANES, np.float32)
    start = (-room.ctypes.data % 64) // 4
    return room[start : start + count]


@register_jitable
def _read_image(x: Any, image: Any, here: Any, sizes: Any) -> None:
    """Copies what the windows see of an image, with zeros around it."""
    _, height, width, channels, _, down, across, up, left = sizes
    columns = 2 * across + 2
    for row in range(2 * down + 2):
        for column in range(columns):
            r, c, to = row - up, column - left, (row * columns + column) * channels
            if r < 0 or c < 0 or r >= height or c >= width:
                for k in range(0, channels, LANES):
                    store(here, to + k, zeros())
            else:
                at = ((image * height + r) * width + c) * channels
                for k in range(0, channels, LANES):
                    store(here, to + k, load(x, at + k))


@register_jitable
def _write_image(here: Any, dx: Any, image: Any, sizes: Any) -> None:
    """Writes the gradient of an image; pixels that no window saw get zeros."""
    _, height, width, channels, _, down, across, up, left = sizes
    rows, columns = 2 * down + 2, 2 * across + 2
    for r in range(height):
        for c in range(width):
            row, column, to = r + up, c + left, ((image * height + r) * width + c) * channels
            if row >= rows or column >= columns:
                for k in range(0, channels, LANES):
                    store(dx, to + k, zeros())
            else:
                at = (row * columns + column) * channels
                for k in range(0, channels, LANES):
                    store(dx, to + k, load(here, at + k))


@register_jitable
def _lists_of_filters(grad: Any, code: Any, image: Any, place: Any, factor: Any, count: Any, bias: Any, first: Any, last: Any,
                      sizes: Any) -> None:
    """Where, for each filter, the windows of an image passed a gradient, and which."""
    _, _, _, channels, filters, down, across, _, _ = sizes
    windows, columns = down * across, 2 * across + 2
    for f in range(last - first):
        count[f] = 0
    for window in range(windows):
        o = (image * windows + window) * filters
        corner = (window // across * 2 * columns + window % across * 2) * channels
        for group in range(first // LANES * LANES, last, LANES):
            alive = bytes_below(code, o + group, PLACES) & _between(first - group, last - group)
            while alive:
                f = group + lowest_bit(alive)
                at, g, k = np.intp(code[o + f]), to_float(grad[o + f]), (f - first) * windows + count[f - first]
                place[k], factor[k] = corner + ((at >> 1) * columns + (at & 1)) * channels, g
                count[f - first] += 1
                bias[f] += g
                alive &= alive - 1


@register_jitable
def _between(first: Any, last: Any) -> Any:
    """Bits first … last - 1 of sixteen."""
    return (1 << min(last, LANES)) - (1 << max(first, 0))


@register_jitable
def _weight_gradients(grad: Any, code: Any, x: Any, dweight: Any, bias: Any, sizes: Any, first: Any, last: Any) -> None:
    """Gradients (F, C, 3, 3) of the weights, and of the bias, of the filters first … last - 1."""
    n, _, _, channels, _, down, across, _, _ = sizes
    line, windows, span = (2 * across + 2) * channels, down * across, 3 * channels
    here = _aligned((2 * down + 2) * line)
    place, factor = np.empty((last - first) * windows + 1, np.intp), np.empty((last - first) * windows + 1, np.float32)
    count = np.empty(last - first, np.intp)
    total = _aligned((last - first) * 3 * span)
    total[:] = np.float32(0)
    for f in range(first, last):
        bias[f] = np.float32(0)
    for image in range(n):
        _read_image(x, image, here, sizes)
        _lists_of_filters(grad, code, image, place, factor, count, bias, first, last, sizes)
        for f in range(last - first):
            for i in range(0, span if count[f] else 0, TILE):
                _three_rows(total, f * 3 * span + i, span, here, i, line, place, factor, f * windows, count[f])
    for f in range(last - first):
        for k in range(9):
            for c in range(channels):
                dweight[((first + f) * channels + c) * 9 + k] = total[(f * 9 + k) * channels + c]


@register_jitable
def _lists_of_places(grad: Any, code: Any, image: Any, place: Any, factor: Any, count: Any, sizes: Any) -> None:
    """Which filters, for each place in each window, passed a gradient, and which."""
    _, _, _, channels, filters, down, across, _, _ = sizes
    windows, span = down * across, 3 * channels
    for i in range(4 * windows):
        count[i] = 0
    for window in range(windows):
        o = (image * windows + window) * filters
        for group in range(0, filters, LANES):
            alive = bytes_below(code, o + group, PLACES)
            while alive:
                f = group + lowest_bit(alive)
                at = 4 * window + np.intp(code[o + f])
                k = at * filters + count[at]
                place[k], factor[k] = f * span, to_float(grad[o + f])
                count[at] += 1
                alive &= alive - 1


@register_jitable
def _input_gradients(grad: Any, code: Any, weight: Any, dx: Any, sizes: Any, first: Any, last: Any) -> None:
    """Gradients of the images first … last - 1."""
    _, _, _, channels, filters, down, across, _, _ = sizes
    line, windows, span = (2 * across + 2) * channels, down * across, 3 * channels
    here, by_rows = _aligned((2 * down + 2) * line), _aligned(3 * filters * span)
    for f in range(filters):
        for c in range(channels):
            for k in range(9):
                by_rows[(k // 3 * filters + f) * span + k % 3 * channels + c] = weight[(f * channels + c) * 9 + k]
    place, factor = np.empty(4 * windows * filters, np.intp), np.empty(4 * windows * filters, np.float32)
    count = np.empty(4 * windows, np.intp)
    for image in range(first, last):
        _lists_of_places(grad, code, image, place, factor, count, sizes)
        here[:] = np.float32(0)
        for row in range(3):  # whose weights stay in the first cache
            for i in range(0, span, TILE):
                for window in range(windows):
                    corner = (window // across * 2 + row) * line + window % across * 2 * channels + i
                    for at in range(4):
                        k = 4 * window + at
                        if count[k]:
                            _one_row(here, corner + (at >> 1) * line + (at & 1) * channels, 0, by_rows, row * filters * span + i, 0,
                                     place, factor, k * filters, count[k])
        _write_image(here, dx, image, sizes)


def _gradients(grad: Any, code: Any, x: Any, weight: Any, dx: Any, dweight: Any, bias: Any, sizes: Any, units: Any, first: Any,
               last: Any) -> None:
    n, filters = sizes[0], sizes[4]
    _weight_gradients(grad, code, x, dweight, bias, sizes, filters * first // units, filters * last // units)
    if dx.size:
        _input_gradients(grad, code, weight, dx, sizes, n * first // units, n * last // units)


_both = Compiled(_gradients)


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether `backward` is for such an input and such weights."""
    channels = weight.shape[1]
    image = (x.shape[2] + 2) * (x.shape[3] + 2) * channels
    return tuple(weight.shape[2:]) == (3, 3) and channels % 32 == 0 and 4 * max(image, weight.numel()) <= MOST_BYTES


def backward(grad: Tensor, code: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int],
             want_x: bool) -> tuple[Tensor | None, Tensor, Tensor]:
    """See `reference.winograd_backward`, of pooled results; all large tensors have channels-last memory."""
    n, channels, height, width = x.shape
    filters = weight.shape[0]
    sizes = (n, height, width, channels, filters, *grad.shape[2:], *padding)
    dx = empty_channels_last(tuple(x.shape) if want_x else (0, channels, 0, 0), x.dtype, x.device)
    dweight, bias = torch.empty(weight.shape), torch.empty(filters)
    given = weight.detach().float().contiguous().view(-1)
    units = -(-filters // FILTERS)
    arrays = (bits(grad), numbers(code), bits(x), given, bits(dx), dweight.view(-1), bias, sizes, units)
    _both.over_rows(arrays, units, grad.numel() * channels * 8)
    return dx if want_x else None, dweight, bias
