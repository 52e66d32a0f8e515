"""3 × 3 convolutions on the CPU in 4 times fewer products, for many channels: Winograd's F(4 × 4, 3 × 3).

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015). Tiles of 6 × 6 inputs are transformed, multiplied at 36 points,
and on the way back get bias, residual, ReLU and pooling. Block by block, where what comes of a block of tiles stays in the second cache or
near it, and so do the filters of one point. Of more filters too much would be read anew for each block; they are multiplied with chunks of
tiles, by one grouped convolution of oneDNN. Errors are up to thirty times those of the plain sum (3e-5 for results of size 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.kernels.compiled import Compiled
from convolt.kernels.instructions import if_larger, if_not_positive, load, product, store, zeros
from convolt.kernels.jit import LANES, register_jitable
from convolt.kernels.memory import channels_last, empty_channels_last, in_order, numbers
from convolt.kernels.winograd4_filters_numba import LINE, all_of, gradient, points_of, transform
from convolt.kernels.winograd4_tiles_numba import read_output, write_gradient, write_input

SIDE, POINTS = 4, 36
PANEL, ROWS = 32, 12  # columns and rows of a product
MOST_BY_BLOCKS = 1 << 16  # filters times channels that are multiplied by blocks
BLOCK = 48  # tiles of a block, a multiple of ROWS
LARGEST_SUMS = 128 * 160  # filters times channels of which gradients are summed by blocks
PARTS_BYTES = 1 << 24  # of such sums
CACHE = 6 << 20  # bytes of transforms of a chunk
LEAST_TILES = 256  # of a chunk: fewer make the products slow

FEW_ROWS = 8  # of a product of gradients, which divides the number of channels
_multiply, _add = product(ROWS, PANEL // LANES), product(FEW_ROWS, PANEL // LANES)
# of (a, its first number, from row to row, 0, from k to k; b, first, from k to k; c, first, from row to row; 1, count of k, whether to add)


@register_jitable
def _copy_patch(x: Any, image: Any, top: Any, left: Any, side: Any, sizes: Any, edge: Any) -> None:
    """Copies `side` × `side` places that may lie outside of the picture, where zeros are, to `edge`."""
    height, width, channels = sizes
    for i in range(side):
        for j in range(side):
            o = (i * side + j) * channels
            if 0 <= top + i < height and 0 <= left + j < width:
                s = ((image * height + top + i) * width + left + j) * channels
                for k in range(0, channels, LANES):
                    store(edge, o + k, load(x, s + k))
            else:
                for k in range(0, channels, LANES):
                    store(edge, o + k, zeros())


@register_jitable
def _write_inputs(x: Any, sizes: Any, grid: Any, padding: Any, tile: Any, edge: Any, half: Any, v: Any, o: Any, step: Any,
                  apart: Any) -> None:
    """Writes Bᵀ d B of a tile: for each point, `step` apart, its channels from o on, each `PANEL` of them `apart` from the one before."""
    height, width, channels = sizes
    image, row, column = tile // (grid[0] * grid[1]), tile // grid[1] % grid[0], tile % grid[1]
    top, left = row * 4 - padding[0], column * 4 - padding[1]
    if top >= 0 and left >= 0 and top + 6 <= height and left + 6 <= width:
        s = ((image * height + top) * width + left) * channels
        for c in range(0, channels, LANES):
            write_input(x, s + c, width * channels, channels, half, v, o + c // PANEL * apart + c % PANEL, step)
    else:
        _copy_patch(x, image, top, left, 6, sizes, edge)
        for c in range(0, channels, LANES):
            write_input(edge, c, 6 * channels, channels, half, v, o + c // PANEL * apart + c % PANEL, step)


@register_jitable
def _write_gradients(grad: Any, sizes: Any, grid: Any, tile: Any, edge: Any, half: Any, m: Any, o: Any, step: Any, apart: Any) -> None:
    """Writes A g Aᵀ of a tile of 4 × 4 gradients, likewise."""
    height, width, filters = sizes
    image, row, column = tile // (grid[0] * grid[1]), tile // grid[1] % grid[0], tile % grid[1]
    if row * 4 + 4 <= height and column * 4 + 4 <= width:
        s = ((image * height + row * 4) * width + column * 4) * filters
        for c in range(0, filters, LANES):
            write_gradient(grad, s + c, width * filters, filters, half, m, o + c // PANEL * apart + c % PANEL, step)
    else:
        _copy_patch(grad, image, row * 4, column * 4, 4, sizes, edge)
        for c in range(0, filters, LANES):
            write_gradient(edge, c, 4 * filters, filters, half, m, o + c // PANEL * apart + c % PANEL, step)


@register_jitable
def _write_plain(whole: Any, bias: Any, residual: Any, out: Any, sizes: Any, image: Any, row: Any, column: Any, c: Any, relu: Any,
                 added: Any) -> None:
    """`relu(results + bias + residual)` of a tile, for the vector of filters from c on."""
    height, width, filters = sizes
    for i in range(min(4, height - row * 4)):
        for j in range(min(4, width - column * 4)):
            o = ((image * height + row * 4 + i) * width + column * 4 + j) * filters + c
            value = load(whole, (4 * i + j) * LANES) + load(bias, c)
            if added:
                value = value + load(residual, o)
            if relu:
                value = if_not_positive(value, zeros(), value)
            store(out, o, value)


@register_jitable
def _write_pooled(whole: Any, bias: Any, out: Any, sizes: Any, image: Any, row: Any, column: Any, c: Any, relu: Any) -> None:
    """The same for the largest of each 2 × 2."""
    height, width, filters = sizes
    for i in range(min(2, height - row * 2)):
        for j in range(min(2, width - column * 2)):
            s = (8 * i + 2 * j) * LANES
            value = load(whole, s)
            for at in (s + LANES, s + 4 * LANES, s + 5 * LANES):
                more = load(whole, at)
                value = if_larger(more, value, more, value)
            value = value + load(bias, c)
            if relu:
                value = if_not_positive(value, zeros(), value)
            store(out, ((image * height + row * 2 + i) * width + column * 2 + j) * filters + c, value)


@register_jitable
def _write_results(m: Any, s: Any, step: Any, half: Any, whole: Any, bias: Any, residual: Any, out: Any, sizes: Any, grid: Any, tile: Any,
                   relu: Any, added: Any, pool: Any) -> None:
    """Writes what comes of a tile's products, those of each point `step` apart, those of its filters from s on."""
    image, row, column = tile // (grid[0] * grid[1]), tile // grid[1] % grid[0], tile % grid[1]
    for c in range(0, sizes[2], LANES):
        read_output(m, s + c, step, half, whole)
        if pool:
            _write_pooled(whole, bias, out, sizes, image, row, column, c, relu)
        else:
            _write_plain(whole, bias, residual, out, sizes, image, row, column, c, relu, added)


def _convolve_blocks(x: Any, u: Any, bias: Any, residual: Any, out: Any, sizes: Any, results: Any, grid: Any, padding: Any, tiles: Any,
                     block: Any, relu: Any, added: Any, pool: Any, first: Any, last: Any) -> None:
    """The blocks first … last - 1 of `block` tiles. `sizes` are height, width and channels of a picture, `results` those of the output."""
    channels, filters = sizes[2], results[2]
    columns = (filters + PANEL - 1) // PANEL * PANEL
    apart = channels * columns + LINE
    # v[point, tile, channel] and m[point, tile, filter], with a line between one point and the next
    given, made = block * channels + LINE, block * columns + LINE
    v, m = np.zeros(POINTS * given, np.float32), np.empty(POINTS * made, np.float32)
    edge, half, whole = np.empty(POINTS * channels, np.float32), np.empty(POINTS * LANES, np.float32), np.empty(16 * LANES, np.float32)
    for start in range(first * block, last * block, block):
        count = min(block, tiles - start)
        for t in range(count):
            _write_inputs(x, sizes, grid, padding, start + t, edge, half, v, t * channels, given, PANEL)
        for point in range(POINTS):
            for panel in range(0, columns, PANEL):
                for t in range(0, count, ROWS):
                    _multiply(v, point * given + t * channels, channels, 0, 1, u, point * apart + panel * channels, PANEL,
                              m, point * made + t * columns + panel, columns, 1, channels, 0)
        for t in range(count):
            _write_results(m, t * columns, made, half, whole, bias, residual, out, results, grid, start + t, relu, added, pool)


def _sum_blocks(x: Any, grad: Any, sums: Any, sizes: Any, results: Any, grid: Any, padding: Any, tiles: Any, parts: Any, first: Any,
                last: Any) -> None:
    """sums[part, point, channel, filter] = Σ Bᵀ d B · A g Aᵀ over the tiles of the parts first … last - 1."""
    channels, filters = sizes[2], results[2]
    columns, apart = (filters + PANEL - 1) // PANEL * PANEL, BLOCK * PANEL
    # v[point, channel // PANEL, tile, channel % PANEL] and m likewise: what one product takes lies together
    given, made = (channels + PANEL - 1) // PANEL * apart + LINE, columns // PANEL * apart + LINE
    v, m = np.empty(POINTS * given, np.float32), np.zeros(POINTS * made, np.float32)
    edge, half = np.empty(POINTS * max(channels, filters), np.float32), np.empty(POINTS * LANES, np.float32)
    for part in range(first, last):
        end = tiles * (part + 1) // parts
        for start in range(tiles * part // parts, end, BLOCK):
            count = min(BLOCK, end - start)
            for t in range(count):
                _write_inputs(x, sizes, grid, padding, start + t, edge, half, v, t * PANEL, given, apart)
                _write_gradients(grad, results, grid, start + t, edge, half, m, t * PANEL, made, apart)
            add = 0 if start == tiles * part // parts else 1
            for point in range(POINTS):
                for row in range(0, channels, FEW_ROWS):
                    s = point * given + row // PANEL * apart + row % PANEL
                    o = (part * POINTS + point) * (channels * columns + LINE) + row * columns
                    for panel in range(0, columns, PANEL):
                        _add(v, s, 1, 0, PANEL, m, point * made + panel * BLOCK, PANEL, sums, o + panel, columns, 1, count, add)


def _forward_tiles(x: Any, out: Any, sizes: Any, grid: Any, padding: Any, start: Any, first: Any, last: Any) -> None:
    """Bᵀ d B of the tiles start + first … start + last - 1, to the places first … last - 1 of `out` (tiles, 36, channels)."""
    channels = sizes[2]
    edge, half = np.empty(POINTS * channels, np.float32), np.empty(POINTS * LANES, np.float32)
    for place in range(first, last):
        _write_inputs(x, sizes, grid, padding, start + place, edge, half, out, place * POINTS * channels, channels, PANEL)


def _gradient_tiles(x: Any, out: Any, sizes: Any, grid: Any, start: Any, first: Any, last: Any) -> None:
    """A d Aᵀ of the 4 × 4 tiles start + first … start + last - 1, to the places first … last - 1 of `out` (tiles, 36, channels)."""
    channels = sizes[2]
    edge, half = np.empty(16 * channels, np.float32), np.empty(24 * LANES, np.float32)
    for place in range(first, last):
        _write_gradients(x, sizes, grid, start + place, edge, half, out, place * POINTS * channels, channels, PANEL)


def _output_tiles(products: Any, steps: Any, bias: Any, residual: Any, out: Any, sizes: Any, grid: Any, relu: Any, added: Any, pool: Any,
                  start: Any, first: Any, last: Any) -> None:
    """What comes of the products of the tiles start + first … start + last - 1.

    `steps` lie between the products of one tile and the next, and of one point and the next.
    """
    half, whole = np.empty(POINTS * LANES, np.float32), np.empty(16 * LANES, np.float32)
    for place in range(first, last):
        s, tile = place * steps[0], start + place
        _write_results(products, s, steps[1], half, whole, bias, residual, out, sizes, grid, tile, relu, added, pool)


_convolve, _sum, _forward = Compiled(_convolve_blocks), Compiled(_sum_blocks), Compiled(_forward_tiles)
_gradient, _outputs = Compiled(_gradient_tiles), Compiled(_output_tiles)


def _tiles_at_once(tiles: int, channels: int, filters: int) -> int:
    """Returns how many tiles a chunk has; chunks are about equal, because oneDNN prepares itself for each size anew."""
    most = max(LEAST_TILES, CACHE // (POINTS * 4 * (channels + filters)))
    return -(-tiles // -(-tiles // most))


class Products:
    """The 36 products of matrices: one 1 × 1 convolution in groups, its weights laid out once for all chunks.

    Args:
        weight: (F, C, 3, 3).
        tiles: in a chunk.
    """

    def __init__(self, weight: Tensor, tiles: int) -> None:
        self._filters, self._channels = weight.shape[:2]
        self._window: tuple[list[int], list[int], list[int], int] = ([0, 0], [1, 1], [1, 1], POINTS)
        shape = [1, POINTS * self._channels, tiles, 1]
        # each copy is gone before the next one is made
        points = transform(weight, by_channel=False).reshape(POINTS * self._filters, self._channels, 1, 1).to_mkldnn()
        self._packed = torch._C._nn.mkldnn_reorder_conv2d_weight(points, *self._window, shape)  # type: ignore[call-arg]

    def __call__(self, transformed: Tensor) -> Tensor:
        """Returns the products (tiles, 36, filters) of transforms (tiles, 36, channels)."""
        tiles = len(transformed)
        x = transformed.view(1, tiles, 1, POINTS * self._channels).permute(0, 3, 1, 2)
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(x, self._packed, None, *self._window, "none", [], "")
        return y.permute(0, 2, 3, 1).reshape(tiles, POINTS, self._filters)


class Filters:
    """Filters made ready for pictures of one shape.

    Args:
        weight: (F, C, 3, 3), float32; F and C are multiples of `LANES`.
        shape: (N, C, H, W) of the pictures.
        padding: zeros above and below, left and right.
        once: whether they are used once. If all tiles are one chunk then, laying filters out takes longer than it saves (512 channels at
            4 × 4, batch 128: 25 ms with it, 19 without), and three times the memory, at the moment of a step that needs most.
        back: whether they are used once for the gradient of the input, which takes C and F for each other, and windows turned by 180°.
    """

    def __init__(self, weight: Tensor, shape: tuple[int, ...], padding: tuple[int, int], once: bool = False, back: bool = False) -> None:
        self.padding, self.filters = padding, weight.shape[1 if back else 0]
        self.out = (shape[2] + 2 * padding[0] - 2, shape[3] + 2 * padding[1] - 2)
        self.grid = (-(-self.out[0] // SIDE), -(-self.out[1] // SIDE))
        tiles = shape[0] * self.grid[0] * self.grid[1]
        self.at_once = _tiles_at_once(tiles, shape[1], self.filters)
        self._panels: Tensor | None = None
        self._products: Callable[[Tensor], Tensor]
        if self.filters * shape[1] <= MOST_BY_BLOCKS:
            self._panels = all_of(transform(weight, by_channel=not back, turned=back, width=PANEL))
        elif once and self.at_once >= tiles:
            matrices = transform(weight, by_channel=not back, turned=back)[0]
            self._products = lambda transformed: torch.bmm(transformed.transpose(0, 1), matrices).transpose(0, 1)
        else:
            self._products = Products(weight.flip(2, 3).transpose(0, 1) if back else weight, self.at_once)

    def __call__(self, x: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, relu: bool = False, pool: int = 1) -> Tensor:
        """Returns the convolution of `x`, channels-last, plus what follows it.

        Args:
            x: (N, C, H, W), float32; N may differ from that of the shape.
            bias: (F,).
            residual: of the output's shape; not with pooling.
            relu: cuts off what is below 0.
            pool: 2 for the maxima of windows of 2 × 2.
        """
        y = empty_channels_last((len(x), self.filters, self.out[0] // pool, self.out[1] // pool), torch.float32, x.device)
        shift = torch.zeros(self.filters) if bias is None else bias.detach().contiguous()
        out = numbers(y)
        rest = out if residual is None else numbers(channels_last(residual))
        before, behind = (*x.shape[2:], x.shape[1]), (*y.shape[2:], self.filters)
        what, tiles = (relu, residual is not None, pool == 2), len(x) * self.grid[0] * self.grid[1]
        if not tiles:
            return y
        if self._panels is not None:
            block = min(BLOCK, -(-tiles // (ROWS * torch.get_num_threads())) * ROWS)  # each thread has one where there are few tiles
            given = (numbers(x), self._panels, shift, rest, out, before, behind, self.grid, self.padding, tiles, block, *what)
            _convolve.over_rows(given, -(-tiles // block), x.nbytes * self.filters)
            return y
        transformed = torch.empty(self.at_once, POINTS, x.shape[1])
        for start in range(0, tiles, self.at_once):
            count = min(self.at_once, tiles - start)
            _forward.over_rows((numbers(x), transformed.view(-1), before, self.grid, self.padding, start), count, transformed.nbytes)
            products = self._products(transformed[:count])
            back = (in_order(products), products.stride()[:2], shift, rest, out, behind, self.grid, *what, start)
            _outputs.over_rows(back, count, transformed.nbytes)
        return y


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """See `reference.tiles_forward`; `x` has channels-last memory."""
    return Filters(weight, tuple(x.shape), padding, once=True)(x, bias)


def backward(grad: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int], want_x: bool,
             want_weight: bool) -> tuple[Tensor | None, Tensor | None]:
    """See `reference.tiles_backward`; `grad` and `x` have channels-last memory."""
    dx = dweight = None
    if want_x:
        dx = Filters(weight, tuple(grad.shape), (2 - padding[0], 2 - padding[1]), once=True, back=True)(grad)
    if want_weight:
        dweight = _weight_gradient(grad, x, weight, padding)
    return dx, dweight


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    """Returns the gradient of the filters: Gᵀ (Σ over tiles of Bᵀ d B · A g Aᵀ) G."""
    (n, channels, height, width), (_, filters, *out) = x.shape, grad.shape
    grid = (-(-out[0] // SIDE), -(-out[1] // SIDE))
    tiles = n * grid[0] * grid[1]
    if filters * channels <= LARGEST_SUMS:
        columns, parts = -(-filters // PANEL) * PANEL, 1
        while parts < 16 and 2 * parts <= min(tiles, PARTS_BYTES // (4 * POINTS * channels * columns)):
            parts *= 2
        sums = points_of(channels, columns, parts)
        given = (numbers(x), numbers(grad), all_of(sums), (height, width, channels), (*out, filters), grid, padding, tiles, parts)
        _sum.over_rows(given, parts, x.nbytes * filters)
        return gradient(sums, weight)
    at_once = _tiles_at_once(tiles, channels, filters)
    left, right = torch.empty(at_once, POINTS, channels), torch.empty(at_once, POINTS, filters)
    total = torch.empty(1, POINTS, filters, channels)  # PyTorch multiplies faster into what has no gaps
    for start in range(0, tiles, at_once):
        count = min(at_once, tiles - start)
        a = (numbers(x), left.view(-1), (height, width, channels), grid, padding, start)
        _forward.over_rows(a, count, left.nbytes)
        b = (numbers(grad), right.view(-1), (*out, filters), grid, start)
        _gradient.over_rows(b, count, right.nbytes)
        total[0].baddbmm_(right[:count].permute(1, 2, 0), left[:count].transpose(0, 1), beta=1 if start else 0)
    return gradient(total, weight, by_channel=False)
