"""3 × 3 convolutions on the CPU in 4 times fewer products, for many channels: Winograd's F(4 × 4, 3 × 3).

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015). Tiles of 6 × 6 inputs are transformed here, the
36 products of matrices are one grouped convolution of oneDNN, and the way back adds bias, residual, ReLU and pooling.
Tiles are worked off in chunks whose transforms stay in the last cache. Errors are up to thirty times those of the plain sum
(3e-5 for results of size 1).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.kernels.compiled import Compiled
from convolt.kernels.jit import register_jitable
from convolt.kernels.memory import channels_last, empty_channels_last, in_order, numbers

SIDE, POINTS = 4, 36
BLOCK = 128  # channels that are transformed at once: their 36 numbers stay in the first cache
CACHE = 6 << 20  # bytes of transforms of a chunk
LEAST_TILES = 256  # of a chunk: fewer make the products slow

U = np.uintp  # see conv_numba: unsigned indices and no slices, or LLVM makes no vectors
ZERO, TWO, FOUR, FIVE, EIGHT = (np.float32(value) for value in (0, 2, 4, 5, 8))


@register_jitable(fastmath={"contract"})
def _line_in(source: Any, s: Any, step: Any, target: Any, t: Any, stride: Any, count: Any) -> None:
    """Six numbers that lie `step` apart → six that lie `stride` apart, for `count` channels: the matrix Bᵀ."""
    for c in range(count):
        i, o = s + c, t + c
        a, b, d = source[i], source[i + step], source[i + U(2) * step]
        e, f, g = source[i + U(3) * step], source[i + U(4) * step], source[i + U(5) * step]
        p, q, r, v = f - FOUR * d, e - FOUR * b, f - d, TWO * (e - b)
        target[o] = FOUR * a - FIVE * d + f
        target[o + stride] = p + q
        target[o + U(2) * stride] = p - q
        target[o + U(3) * stride] = r + v
        target[o + U(4) * stride] = r - v
        target[o + U(5) * stride] = FOUR * b - FIVE * e + g


@register_jitable(fastmath={"contract"})
def _line_out(source: Any, s: Any, step: Any, target: Any, t: Any, stride: Any, count: Any) -> None:
    """Six numbers → four: the matrix Aᵀ."""
    for c in range(count):
        i, o = s + c, t + c
        b, d, e, f = source[i + step], source[i + U(2) * step], source[i + U(3) * step], source[i + U(4) * step]
        p, q, r, v = b + d, b - d, e + f, e - f
        target[o] = source[i] + p + r
        target[o + stride] = q + TWO * v
        target[o + U(2) * stride] = p + FOUR * r
        target[o + U(3) * stride] = q + EIGHT * v + source[i + U(5) * step]


@register_jitable(fastmath={"contract"})
def _line_gradient(source: Any, s: Any, step: Any, target: Any, t: Any, stride: Any, count: Any) -> None:
    """Four numbers → six: the matrix A."""
    for c in range(count):
        i, o = s + c, t + c
        a, b, d, e = source[i], source[i + step], source[i + U(2) * step], source[i + U(3) * step]
        p, q, r, v = a + d, b + e, a + FOUR * d, TWO * b + EIGHT * e
        target[o] = a
        target[o + stride] = p + q
        target[o + U(2) * stride] = p - q
        target[o + U(3) * stride] = r + v
        target[o + U(4) * stride] = r - v
        target[o + U(5) * stride] = e


@register_jitable
def _copy_patch(x: Any, image: Any, top: Any, left: Any, side: Any, sizes: Any, c: Any, count: Any, edge: Any) -> None:
    """Copies `side` × `side` places that may lie outside of the picture, where zeros are, to `edge`."""
    height, width, channels = sizes
    for i in range(side):
        for j in range(side):
            o = U((i * side + j) * BLOCK)
            if 0 <= top + i < height and 0 <= left + j < width:
                s = U(((image * height + top + i) * width + left + j) * channels + c)
                for k in range(count):
                    edge[o + k] = x[s + k]
            else:
                for k in range(count):
                    edge[o + k] = ZERO


def _forward_tiles(x: Any, out: Any, sizes: Any, grid: Any, padding: Any, start: Any, first: Any, last: Any) -> None:
    """Bᵀ d B of the tiles start + first … start + last - 1, to the places first … last - 1 of `out` (tiles, 36, channels)."""
    height, width, channels = sizes
    edge, half = np.empty(36 * BLOCK, np.float32), np.empty(36 * BLOCK, np.float32)
    for place in range(first, last):
        tile = start + place
        image, row, column = tile // (grid[0] * grid[1]), tile // grid[1] % grid[0], tile % grid[1]
        top, left = row * 4 - padding[0], column * 4 - padding[1]
        inside = top >= 0 and left >= 0 and top + 6 <= height and left + 6 <= width
        for c in range(0, channels, BLOCK):
            count = U(min(BLOCK, channels - c))
            if not inside:
                _copy_patch(x, image, top, left, 6, sizes, c, count, edge)
            for j in range(6):
                t = U(j * BLOCK)
                if inside:
                    s = U(((image * height + top) * width + left + j) * channels + c)
                    _line_in(x, s, U(width * channels), half, t, U(6 * BLOCK), count)
                else:
                    _line_in(edge, t, U(6 * BLOCK), half, t, U(6 * BLOCK), count)
            for i in range(6):
                o = U((place * 36 + i * 6) * channels + c)
                _line_in(half, U(i * 6 * BLOCK), U(BLOCK), out, o, U(channels), count)


def _gradient_tiles(x: Any, out: Any, sizes: Any, grid: Any, start: Any, first: Any, last: Any) -> None:
    """A d Aᵀ of the 4 × 4 tiles start + first … start + last - 1, to the places first … last - 1 of `out` (tiles, 36, channels)."""
    channels = sizes[2]
    edge, half = np.empty(16 * BLOCK, np.float32), np.empty(24 * BLOCK, np.float32)
    for place in range(first, last):
        tile = start + place
        image, row, column = tile // (grid[0] * grid[1]), tile // grid[1] % grid[0], tile % grid[1]
        for c in range(0, channels, BLOCK):
            count = U(min(BLOCK, channels - c))
            _copy_patch(x, image, row * 4, column * 4, 4, sizes, c, count, edge)
            for j in range(4):
                _line_gradient(edge, U(j * BLOCK), U(4 * BLOCK), half, U(j * BLOCK), U(4 * BLOCK), count)
            for i in range(6):
                o = U((place * 36 + i * 6) * channels + c)
                _line_gradient(half, U(i * 4 * BLOCK), U(BLOCK), out, o, U(channels), count)


@register_jitable(fastmath={"contract"})
def _finish(tile: Any, s: Any, bias: Any, b: Any, residual: Any, out: Any, o: Any, relu: Any, added: Any, count: Any) -> None:
    """`out = relu(tile + bias + residual)` for the channels of one place."""
    for c in range(count):
        value = tile[s + c] + bias[b + c]
        if added:
            value += residual[o + c]
        out[o + c] = max(value, ZERO) if relu else value


@register_jitable
def _finish_pooled(tile: Any, s: Any, bias: Any, b: Any, out: Any, o: Any, relu: Any, count: Any) -> None:
    """The same for the largest of 2 × 2 places."""
    for c in range(count):
        i = s + c
        value = max(max(tile[i], tile[i + U(BLOCK)]), max(tile[i + U(4 * BLOCK)], tile[i + U(5 * BLOCK)])) + bias[b + c]
        out[o + c] = max(value, ZERO) if relu else value


def _output_tiles(products: Any, steps: Any, bias: Any, residual: Any, out: Any, sizes: Any, grid: Any, relu: Any, added: Any, pool: Any,
                  start: Any, first: Any, last: Any) -> None:
    """Aᵀ m A, bias, residual, ReLU and pooling (`pool` is 1 or 2) of the tiles start + first … start + last - 1.

    `steps` lie between the products of one tile and the next, and of one point and the next.
    """
    height, width, channels = sizes
    half, whole = np.empty(24 * BLOCK, np.float32), np.empty(16 * BLOCK, np.float32)
    side = 4 // pool
    for place in range(first, last):
        tile = start + place
        image, row, column = tile // (grid[0] * grid[1]), tile // grid[1] % grid[0], tile % grid[1]
        for c in range(0, channels, BLOCK):
            count = U(min(BLOCK, channels - c))
            for j in range(6):
                s = U(place * steps[0] + j * steps[1] + c)
                _line_out(products, s, U(6 * steps[1]), half, U(j * BLOCK), U(6 * BLOCK), count)
            for i in range(4):
                _line_out(half, U(i * 6 * BLOCK), U(BLOCK), whole, U(i * 4 * BLOCK), U(BLOCK), count)
            for i in range(min(side, height - row * side)):
                for j in range(min(side, width - column * side)):
                    s = U((i * 4 + j) * pool * BLOCK)
                    o = U(((image * height + row * side + i) * width + column * side + j) * channels + c)
                    if pool == 2:
                        _finish_pooled(whole, s, bias, U(c), out, o, relu, count)
                    else:
                        _finish(whole, s, bias, U(c), residual, out, o, relu, added, count)


_forward = Compiled(_forward_tiles, fastmath={"contract"})
_gradient = Compiled(_gradient_tiles, fastmath={"contract"})
_outputs = Compiled(_output_tiles, fastmath={"contract"})


@lru_cache(maxsize=1)
def _filter_matrix() -> Tensor:
    """Returns G ⊗ G, (36, 9) in float64."""
    points = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64) / 24
    return torch.kron(points, points)


def transform_filters(weight: Tensor) -> Tensor:
    """Returns G w Gᵀ of filters (F, C, 3, 3) as the weights (36 · F, C, 1, 1) of the grouped convolution."""
    filters, channels = weight.shape[:2]
    flat_weight = weight.detach().reshape(filters * channels, 9).t()
    return (_filter_matrix().to(weight.dtype) @ flat_weight).view(POINTS * filters, channels, 1, 1)


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
        points = transform_filters(weight).to_mkldnn()  # one copy is gone before the next one is made
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
        weight: (F, C, 3, 3), float32.
        shape: (N, C, H, W) of the pictures.
        padding: zeros above and below, left and right.
        once: whether they are used once. If all tiles are one chunk then, laying filters out takes longer than it saves (512 channels at
            4 × 4, batch 128: 25 ms with it, 19 without), and three times the memory, at the moment of a step that needs most.
    """

    def __init__(self, weight: Tensor, shape: tuple[int, ...], padding: tuple[int, int], once: bool = False) -> None:
        self.padding, self.filters = padding, len(weight)
        self.out = (shape[2] + 2 * padding[0] - 2, shape[3] + 2 * padding[1] - 2)
        self.grid = (-(-self.out[0] // SIDE), -(-self.out[1] // SIDE))
        self.tiles = shape[0] * self.grid[0] * self.grid[1]
        self.at_once = _tiles_at_once(self.tiles, shape[1], self.filters)
        self._multiply: Callable[[Tensor], Tensor]
        if once and self.at_once >= self.tiles:
            matrices = transform_filters(weight).view(POINTS, self.filters, shape[1]).transpose(1, 2)
            self._multiply = lambda transformed: torch.bmm(transformed.transpose(0, 1), matrices).transpose(0, 1)
        else:
            self._multiply = Products(weight, self.at_once)

    def __call__(self, x: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, relu: bool = False, pool: int = 1) -> Tensor:
        """Returns the convolution of `x`, channels-last, plus what follows it.

        Args:
            x: (N, C, H, W), float32; N may differ from that of the shape.
            bias: (F,).
            residual: of the output's shape; not with pooling.
            relu: cuts off what is below 0.
            pool: 2 for the maxima of windows of 2 × 2.
        """
        n, channels, height, width = x.shape
        tiles = n * self.grid[0] * self.grid[1]
        y = empty_channels_last((n, self.filters, self.out[0] // pool, self.out[1] // pool), torch.float32, x.device)
        shift = (torch.zeros(self.filters) if bias is None else bias.detach().contiguous())
        out = numbers(y)
        rest = out if residual is None else numbers(channels_last(residual))
        given, transformed = numbers(x), torch.empty(self.at_once, POINTS, channels)
        held, size = transformed.view(-1), transformed.nbytes
        sides = (*y.shape[2:], self.filters)
        for start in range(0, tiles, self.at_once):
            count = min(self.at_once, tiles - start)
            into = (given, held, (height, width, channels), self.grid, self.padding, start)
            _forward.over_rows(into, count, size)
            products = self._multiply(transformed[:count])
            numbered = (in_order(products), products.stride()[:2])
            back = (*numbered, shift, rest, out, sides, self.grid, relu, residual is not None, pool, start)
            _outputs.over_rows(back, count, size)
        return y


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """See `reference.tiles_forward`; `x` has channels-last memory."""
    return Filters(weight, tuple(x.shape), padding, once=True)(x, bias)


def backward(grad: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int], want_x: bool,
             want_weight: bool) -> tuple[Tensor | None, Tensor | None]:
    """See `reference.tiles_backward`; `grad` and `x` have channels-last memory."""
    dx = dweight = None
    if want_x:
        dx = Filters(weight.flip(2, 3).transpose(0, 1), tuple(grad.shape), (2 - padding[0], 2 - padding[1]), once=True)(grad)
    if want_weight:
        dweight = _weight_gradient(grad, x, padding)
    return dx, dweight


def _weight_gradient(grad: Tensor, x: Tensor, padding: tuple[int, int]) -> Tensor:
    """Returns the gradient of the filters: Gᵀ (Σ over tiles of Bᵀ d B · A g Aᵀ) G."""
    (n, channels, height, width), (_, filters, *out) = x.shape, grad.shape
    grid = (-(-out[0] // SIDE), -(-out[1] // SIDE))
    tiles = n * grid[0] * grid[1]
    at_once = _tiles_at_once(tiles, channels, filters)
    left, right = torch.empty(at_once, POINTS, channels), torch.empty(at_once, POINTS, filters)
    total = torch.zeros(POINTS, filters, channels)
    for start in range(0, tiles, at_once):
        count = min(at_once, tiles - start)
        a = (numbers(x), left.view(-1), (height, width, channels), grid, padding, start)
        _forward.over_rows(a, count, left.nbytes)
        b = (numbers(grad), right.view(-1), (*out, filters), grid, start)
        _gradient.over_rows(b, count, right.nbytes)
        total.baddbmm_(right[:count].permute(1, 2, 0), left[:count].transpose(0, 1))
    return (_filter_matrix().float().t() @ total.view(POINTS, -1)).view(3, 3, filters, channels).permute(2, 3, 0, 1)
