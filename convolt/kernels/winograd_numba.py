"""3 × 3 convolutions on the CPU in 2.25 times fewer products, with or without ReLU and max-pooling of 2 × 2 behind them.

Winograd's F(2 × 2, 3 × 3) (Lavin & Gray 2016): of each tile of 4 × 4 inputs 16 sums are made, whose products with 16 sums
of the weights give, summed again, a tile of 2 × 2 results: one pooling window. A block of tiles is transformed, multiplied
and pooled before the next one is begun, so that nothing but inputs and results leaves the second cache. Sums are float32;
in bfloat16 the transformed numbers are rounded once more before they are multiplied.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.kernels import patches_numba, winograd_filters_numba
from convolt.kernels.compiled import Compiled
from convolt.kernels.instructions import load, pool_window, prefetch, product, store, where_byte, zeros
from convolt.kernels.jit import LANES, overload, register_jitable, types
from convolt.kernels.memory import bits, empty_channels_last, numbers
from convolt.kernels.winograd_filters_numba import PANEL, ROWS
from convolt.kernels.winograd_tiles_numba import (
    add_input_gradient,
    transformed_gradient,
    transformed_input,
    write_pairs,
    write_results_of_tile,
    write_tile,
)

BLOCK, WIDE_BLOCK = 64, 256  # tiles that are worked on at once, multiples of ROWS: many where the weights do not fit the second cache
WIDE = 1 << 18  # bytes of the weights of one of a tile's points from which they do not
LINE = 64  # bytes of a cache line
AHEAD = 4  # tiles
PARTS_BYTES = 1 << 24  # of memory for weight gradients that are summed apart

_multiply = product(ROWS, PANEL // LANES)


# -- blocks of tiles -------------------------------------------------------------------------------------------------


@register_jitable
def _corner(tile: Any, sizes: Any) -> Any:
    """(image, row, column) of the first pixel of a tile, and whether all of its pixels are in the image."""
    _, height, width, _, _, down, across, up, left, _, _, _ = sizes
    image, place = tile // (down * across), tile % (down * across)
    row, column = place // across * 2 - up, place % across * 2 - left
    return image, row, column, row >= 0 and column >= 0 and row + 4 <= height and column + 4 <= width


@register_jitable
def _pixels(x: Any, patch: Any, tile: Any, sizes: Any) -> Any:
    """Returns whether a tile lies in the image and where it begins; else it is copied to `patch`, with zeros outside."""
    _, height, width, channels, _, _, _, _, _, _, _, _ = sizes
    image, row, column, inside = _corner(tile, sizes)
    if not inside:
        for i in range(4):
            for j in range(4):
                r, c, to = row + i, column + j, (4 * i + j) * channels
                if r < 0 or c < 0 or r >= height or c >= width:
                    for k in range(0, channels, LANES):
                        store(patch, to + k, zeros())
                else:
                    _copy(x, ((image * height + r) * width + c) * channels, patch, to, channels)
    return inside, ((image * height + row) * width + column) * channels


def _numbers(v: Any) -> Any:
    """An array of float32 itself, and one of pairs of bfloat16 as single ones."""


@overload(_numbers)
def _numbers_of(v: Any) -> Any:
    return (lambda v: v.view(np.int16)) if v.dtype == types.int32 else (lambda v: v)


@register_jitable
def _step(v: Any, size: Any) -> Any:
    """How far the numbers of one point lie from those of the next: one cache line more than they need, or all would share a cache's set."""
    return size + LINE // v.itemsize


@register_jitable
def _expect(x: Any, tile: Any, sizes: Any) -> None:
    """Has the pixels of a tile, those on the right, brought to the cache; the processor does not guess where they are."""
    _, height, width, channels, _, down, across, up, left, _, _, _ = sizes
    image, place = tile // (down * across), tile % (down * across)
    s = ((image * height + place // across * 2 - up) * width + place % across * 2 - left + 2) * channels
    for _ in range(4):
        for i in range(0, 2 * channels, LINE // x.itemsize):
            prefetch(x, s + i)
        s += width * channels


@register_jitable
def _inputs(x: Any, patch: Any, v: Any, first: Any, count: Any, sizes: Any) -> None:
    """v[point, tile, channel] of `count` tiles."""
    channels, width, step = sizes[3], sizes[2], _step(v, sizes[11] * sizes[3])
    for t in range(count):
        _expect(x, first + t + AHEAD, sizes)
        inside, s = _pixels(x, patch, first + t, sizes)
        if inside:
            for i in range(0, channels, LANES):
                write_tile(v, t * channels + i, step, transformed_input(x, s + i, width * channels, channels))
        else:
            for i in range(0, channels, LANES):
                write_tile(v, t * channels + i, step, transformed_input(patch, i, 4 * channels, channels))


@register_jitable
def _input_tile(x: Any, patch: Any, inside: Any, s: Any, i: Any, line: Any, channels: Any) -> Any:
    if inside:
        return transformed_input(x, s + i, line, channels)
    return transformed_input(patch, i, 4 * channels, channels)


@register_jitable
def _paired_inputs(x: Any, patch: Any, other: Any, v: Any, first: Any, count: Any, sizes: Any) -> None:
    """v[point, channel // LANES, tile // 2, channel % LANES, tile % 2], with zeros where the number of tiles is odd."""
    channels, width, block = sizes[3], sizes[2], sizes[11]
    line, step = width * channels, _step(v, block // 2 * channels)
    for t in range(0, count, 2):
        _expect(x, first + t + AHEAD, sizes)
        _expect(x, first + t + AHEAD + 1, sizes)
        inside, s = _pixels(x, patch, first + t, sizes)
        if t + 1 < count:
            also, r = _pixels(x, other, first + t + 1, sizes)
        else:
            also, r = False, 0
            other[:] = 0
        for i in range(0, channels, LANES):
            write_pairs(v, block // 2 * i + t // 2 * LANES, step, _input_tile(x, patch, inside, s, i, line, channels),
                         _input_tile(x, other, also, r, i, line, channels))


@register_jitable
def _products(a: Any, b: Any, c: Any, panel: Any, count: Any, inner: Any, columns: Any, block: Any) -> None:
    """c[point, tile, column] = Σ a[point, tile, k] · b[point, panel, k, column] for the columns from `panel` on; room for `block` tiles."""
    given, made = _step(a, block * inner), _step(c, block * PANEL)
    for point in range(16):
        for t in range(0, count, ROWS):
            _multiply(a, point * given + t * inner, inner, 0, 1, b, point * inner * columns + panel * inner, PANEL,
                      c, point * made + t * PANEL, PANEL, 1, inner, 0)


@register_jitable
def _weight_products(a: Any, b: Any, c: Any, at: Any, count: Any, rows: Any, columns: Any, tiles: Any, packed: Any,
                     fresh: Any) -> None:
    """c[point, row, column] += Σ a[point, tile, row] · b[point, tile, column], of arrays with room for `tiles`; = where `fresh`.

    `packed` ones are a[point, row // LANES, tile, row % LANES] and b[point, column // PANEL, tile, column % PANEL]; and c is always
    c[point, row // ROWS, column // PANEL, row % ROWS, column % PANEL]: what one product takes and gives lies together.
    """
    left, right = _step(a, tiles * rows), _step(b, tiles * columns)
    for point in range(16):
        for row in range(0, rows, ROWS):
            start = row // LANES * LANES * tiles + row % LANES if packed else row
            for column in range(0, columns, PANEL):
                _multiply(a, point * left + start, 1, 0, LANES if packed else rows,
                          b, point * right + (column * tiles if packed else column), PANEL if packed else columns,
                          c, at + (point * rows + row) * columns + column * ROWS, PANEL, 1, count, 0 if fresh else 1)


@register_jitable
def _unpooled(grad: Any, code: Any, o: Any, y: Any, total: Any, at: Any, filters: Any) -> None:
    """The gradients of the four results of a window; those that pass are added to the bias's."""
    for f in range(0, filters, LANES):
        g = load(grad, o + f)
        a, b = where_byte(code, o + f, np.uint8(0), g), where_byte(code, o + f, np.uint8(1), g)
        c, d = where_byte(code, o + f, np.uint8(2), g), where_byte(code, o + f, np.uint8(3), g)
        store(y, f, a)
        store(y, filters + f, b)
        store(y, 2 * filters + f, c)
        store(y, 3 * filters + f, d)
        store(total, at + f, load(total, at + f) + ((a + b) + (c + d)))


@register_jitable
def _copy(source: Any, s: Any, target: Any, t: Any, count: Any) -> None:
    for i in range(0, count, LANES):
        store(target, t + i, load(source, s + i))


@register_jitable
def _result_place(tile: Any, sizes: Any) -> Any:
    """Where the results of a tile begin in an output without pooling."""
    filters, down, across = sizes[4], sizes[5], sizes[6]
    image, place = tile // (down * across), tile % (down * across)
    return ((image * 2 * down + place // across * 2) * 2 * across + place % across * 2) * filters


@register_jitable
def _gradient_place(tile: Any, pool: Any, sizes: Any) -> Any:
    """(where the 2 × 2 gradients of a tile begin, steps to the right and down): in four rows of a buffer, or in the map."""
    filters, across = sizes[4], sizes[6]
    if pool:
        return 0, filters, 2 * filters
    return _result_place(tile, sizes), filters, 2 * across * filters


@register_jitable
def _expect_gradients(grad: Any, tile: Any, pool: Any, sizes: Any) -> None:
    """The same for the gradients of a tile."""
    filters, across = sizes[4], sizes[6]
    if pool:
        for i in range(0, filters, LINE // grad.itemsize):
            prefetch(grad, tile * filters + i)
    else:
        s = _result_place(tile, sizes)
        for i in range(0, 2 * filters, LINE // grad.itemsize):
            prefetch(grad, s + i)
            prefetch(grad, s + 2 * across * filters + i)


def _gradients(grad: Any, code: Any, y: Any, again: Any, m: Any, sides: Any, total: Any, at: Any, first: Any, count: Any, pool: Any,
               sizes: Any) -> None:
    """m[point, tile, filter] of `count` tiles, and `sides`, packed pairs of tiles for the product with the inputs."""


@overload(_gradients)
def _gradients_of(grad: Any, code: Any, y: Any, again: Any, m: Any, sides: Any, total: Any, at: Any, first: Any, count: Any, pool: Any,
                  sizes: Any) -> Any:
    def single(grad: Any, code: Any, y: Any, again: Any, m: Any, sides: Any, total: Any, at: Any, first: Any, count: Any, pool: Any,
               sizes: Any) -> None:
        filters, step = sizes[4], _step(m, sizes[11] * sizes[4])
        for t in range(count):
            _expect_gradients(grad, first + t + AHEAD, pool, sizes)
            s, right, down = _gradient_place(first + t, pool, sizes)
            if pool:
                _unpooled(grad, code, (first + t) * filters, y, total, at, filters)
            for f in range(0, filters, LANES):
                tile = transformed_gradient(y, f, right, down) if pool else transformed_gradient(grad, s + f, right, down)
                write_tile(m, t * filters + f, step, tile)

    def paired(grad: Any, code: Any, y: Any, again: Any, m: Any, sides: Any, total: Any, at: Any, first: Any, count: Any, pool: Any,
               sizes: Any) -> None:
        filters, block = sizes[4], sizes[11]
        numbers = m.view(np.int16)
        step, beside = _step(numbers, block * filters), _step(sides, block // 2 * filters)
        for t in range(0, count, 2):
            _expect_gradients(grad, first + t + AHEAD, pool, sizes)
            _expect_gradients(grad, first + t + AHEAD + 1, pool, sizes)
            s, right, down = _gradient_place(first + t, pool, sizes)
            more = t + 1 < count
            o = _gradient_place(first + t + 1, pool, sizes)[0] if more else s
            if pool:
                _unpooled(grad, code, (first + t) * filters, y, total, at, filters)
                if more:
                    _unpooled(grad, code, (first + t + 1) * filters, again, total, at, filters)
            if not more:
                again[:] = 0
            for f in range(0, filters, LANES):
                a = transformed_gradient(y, f, right, down) if pool else transformed_gradient(grad, s + f, right, down)
                if pool or not more:
                    b = transformed_gradient(again, f, filters, 2 * filters)
                else:
                    b = transformed_gradient(grad, o + f, right, down)
                write_tile(numbers, t * filters + f, step, a)
                write_tile(numbers, (t + 1) * filters + f, step, b)
                write_pairs(sides, f // PANEL * PANEL * (block // 2) + t // 2 * PANEL + f % PANEL, beside, a, b)

    return paired if m.dtype == types.int32 else single


def _inputs_for_weights(x: Any, patch: Any, other: Any, v: Any, first: Any, count: Any, sizes: Any) -> Any:
    """The inputs as the product with the gradients takes them; returns the length of its sums."""


@overload(_inputs_for_weights)
def _inputs_for_weights_of(x: Any, patch: Any, other: Any, v: Any, first: Any, count: Any, sizes: Any) -> Any:
    def single(x: Any, patch: Any, other: Any, v: Any, first: Any, count: Any, sizes: Any) -> Any:
        _inputs(x, patch, v, first, count, sizes)
        return count

    def paired(x: Any, patch: Any, other: Any, v: Any, first: Any, count: Any, sizes: Any) -> Any:
        _paired_inputs(x, patch, other, v, first, count, sizes)
        return (count + 1) // 2

    return paired if v.dtype == types.int32 else single


# -- the passes ------------------------------------------------------------------------------------------------------


def _forward_units(x: Any, u: Any, bias: Any, out: Any, code: Any, sizes: Any, pool: Any, relu: Any, inner: Any, first: Any,
                   last: Any) -> None:
    """The images of units first … last - 1."""
    n, _, _, channels, filters, down, across, _, _, images, _, block = sizes
    v, m = np.zeros(16 * (block * inner + LANES), u.dtype), np.empty(16 * (block * PANEL + LANES), np.float32)
    patch = np.empty(16 * channels, x.dtype)
    end = min(n, last * images) * down * across
    for start in range(first * images * down * across, end, block):
        count = min(block, end - start)
        _inputs(x, patch, _numbers(v), start, count, sizes)
        for panel in range(0, filters, PANEL):  # whose sums stay in the second cache
            _products(v, u, m, panel, count, inner, filters, block)
            if pool:
                _write_pooled(m, bias, out, code, panel, start, count, relu, sizes)
            else:
                _write_results(m, bias, out, panel, start, count, relu, sizes)


@register_jitable
def _write_results(m: Any, bias: Any, out: Any, panel: Any, first: Any, count: Any, relu: Any, sizes: Any) -> None:
    filters, across, step = sizes[4], sizes[6], _step(m, sizes[11] * PANEL)
    for t in range(count):
        o = _result_place(first + t, sizes) + panel
        for f in range(0, PANEL, LANES):
            write_results_of_tile(m, t * PANEL + f, step, load(bias, panel + f), out, o + f, filters, 2 * across * filters, relu)


@register_jitable
def _write_pooled(m: Any, bias: Any, out: Any, code: Any, panel: Any, first: Any, count: Any, relu: Any, sizes: Any) -> None:
    filters, step = sizes[4], _step(m, sizes[11] * PANEL)
    y, nothing = np.empty(4 * PANEL, np.float32), np.zeros(PANEL, np.float32)
    for t in range(count):
        for f in range(0, PANEL, LANES):
            write_results_of_tile(m, t * PANEL + f, step, load(bias, panel + f), y, f, PANEL, 2 * PANEL, False)
        pool_window(y, 0, PANEL, 2 * PANEL, nothing, out, code, (first + t) * filters + panel, PANEL, relu)


def _backward_parts(grad: Any, code: Any, x: Any, u: Any, dx: Any, weights: Any, biases: Any, sizes: Any, pool: Any, inner: Any,
                    first: Any, last: Any) -> None:
    """The images of parts first … last - 1: gradients of the inputs, if `dx` has room for them, and sums of weights' and biases'."""
    n, height, width, channels, filters, down, across, _, _, images, parts, block = sizes
    units = (n + images - 1) // images
    v, m = np.zeros(16 * (block * (channels * inner // filters) + LANES), u.dtype), np.zeros(16 * (block * inner + LANES), u.dtype)
    sides = np.zeros(16 * (block // 2 * filters + LANES) if inner < filters else 1, u.dtype)
    dv = np.empty(16 * (block * PANEL + LANES), np.float32)
    patch, other = np.empty(16 * channels, x.dtype), np.empty(16 * channels, x.dtype)
    y, again = np.empty(4 * filters, np.float32), np.empty(4 * filters, np.float32)
    here = np.empty(height * width * channels * images if dx.size else 0, np.float32)
    for part in range(first, last):
        at = part * 16 * channels * filters
        fresh = True
        biases[part * filters : (part + 1) * filters] = np.float32(0)
        for unit in range(units * part // parts, units * (part + 1) // parts):
            here[:] = np.float32(0)
            image, end = unit * images, min(n, (unit + 1) * images)
            for start in range(image * down * across, end * down * across, block):
                count = min(block, end * down * across - start)
                _gradients(grad, code, y, again, m, sides, biases, part * filters, start, count, pool, sizes)
                length = _inputs_for_weights(x, patch, other, v, start, count, sizes)
                if inner < filters:
                    _weight_products(v, sides, weights, at, length, channels, filters, block // 2, True, fresh)
                else:
                    _weight_products(v, m, weights, at, length, channels, filters, block, False, fresh)
                fresh = False
                for panel in range(0, channels if dx.size else 0, PANEL):
                    _products(m, u, dv, panel, count, inner, channels, block)
                    _add_tiles(dv, here, panel, start, count, image, sizes)
            if dx.size:
                o = image * height * width * channels
                _copy(here, 0, dx, o, (end - image) * height * width * channels)


@register_jitable
def _add_tiles(dv: Any, here: Any, panel: Any, first: Any, count: Any, image: Any, sizes: Any) -> None:
    """Adds the gradients of tiles, for the channels from `panel` on, to those of the images from `image` on."""
    _, height, width, channels, _, _, _, _, _, _, _, block = sizes
    step = _step(dv, block * PANEL)
    edge = np.empty(16 * PANEL, np.float32)
    for t in range(count):
        number, row, column, inside = _corner(first + t, sizes)
        s = (((number - image) * height + row) * width + column) * channels + panel
        if inside:
            for i in range(0, PANEL, LANES):
                add_input_gradient(dv, t * PANEL + i, step, here, s + i, width * channels, channels)
        else:
            edge[:] = np.float32(0)
            for i in range(0, PANEL, LANES):
                add_input_gradient(dv, t * PANEL + i, step, edge, i, 4 * PANEL, PANEL)
            for i in range(max(0, -row), min(4, height - row)):
                for j in range(max(0, -column), min(4, width - column)):
                    to, at = s + (i * width + j) * channels, (4 * i + j) * PANEL
                    for k in range(0, PANEL, LANES):
                        store(here, to + k, load(here, to + k) + load(edge, at + k))


_forward = Compiled(_forward_units)
_backward = Compiled(_backward_parts)


def _sizes(x: Tensor, filters: int, padding: tuple[int, int], parts: int = 0) -> tuple[int, ...]:
    n, channels, height, width = x.shape
    down, across = (height + 2 * padding[0] - 2) // 2, (width + 2 * padding[1] - 2) // 2
    block = WIDE_BLOCK if parts and channels * filters * x.itemsize >= WIDE else BLOCK
    units = -(-n // max(1, -(-block // (down * across))))
    images = -(-n // (units + units % 2 if parts and units > 1 else units))  # two threads have as many each
    return n, height, width, channels, filters, down, across, *padding, images, parts, block


def filters(weight: Tensor, dtype: torch.dtype) -> Any:
    """Returns what `forward` multiplies with, for pictures of a type: filters that stay the same are transformed once."""
    return winograd_filters_numba.transform(weight, dtype, False)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int], pool: bool, relu: bool,
            keep: bool, transformed: Any = None) -> tuple[Tensor, Tensor | None]:
    """See `reference.winograd_forward`; `x` has channels-last memory, `transformed` is from `filters`."""
    outputs = weight.shape[0]
    sizes = _sizes(x, outputs, padding)
    n, channels, down, across, images = x.shape[0], x.shape[1], sizes[5], sizes[6], sizes[9]
    places = (down, across) if pool else (2 * down, 2 * across)
    out = empty_channels_last((n, outputs, *places), x.dtype, x.device)
    code = empty_channels_last((n, outputs, *places) if pool else (0, outputs, 0, 0), torch.uint8, x.device)
    added = torch.zeros(outputs) if bias is None else bias.detach().float().contiguous()
    inner = channels // 2 if x.dtype == torch.bfloat16 else channels
    transformed = filters(weight, x.dtype) if transformed is None else transformed
    arrays = (bits(x), transformed, added, bits(out), numbers(code), sizes, pool, relu, inner)
    _forward.over_rows(arrays, -(-n // images), x.nbytes * outputs)
    return out, code if pool and keep else None


def backward(grad: Tensor, code: Tensor | None, x: Tensor, weight: Tensor, padding: tuple[int, int],
             want_x: bool, want_bias: bool = True) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """See `reference.winograd_backward`; all large tensors have channels-last memory."""
    if code is not None and patches_numba.takes(x, weight):
        return patches_numba.backward(grad, code, x, weight, padding, want_x)
    filters, channels = weight.shape[:2]
    size = 16 * channels * filters
    units = -(-x.shape[0] // _sizes(x, filters, padding, 1)[9])
    parts = max(1, min(units, 16, max(2, PARTS_BYTES // (4 * size))))
    sizes = _sizes(x, filters, padding, parts)
    dx = empty_channels_last(tuple(x.shape) if want_x else (0, channels, 0, 0), x.dtype, x.device)
    sums, biases = torch.empty(parts * size), torch.empty(parts, filters)
    places = torch.empty(0, dtype=torch.uint8) if code is None else numbers(code)
    inner = filters // 2 if x.dtype == torch.bfloat16 else filters
    arrays = (bits(grad), places, bits(x), winograd_filters_numba.transform(weight, x.dtype, True), bits(dx), sums,
              biases.view(-1), sizes, code is not None, inner)
    _backward.over_rows(arrays, parts, x.nbytes * filters)
    dweight = winograd_filters_numba.gradient(sums, weight)
    dbias = None
    if want_bias:  # a pass over all of the gradient where there is no pooling: most convolutions before normalization have none
        dbias = grad.sum((0, 2, 3), dtype=torch.float32) if code is None else biases.sum(0)
    return dx if want_x else None, dweight, dbias
