"""Batch normalization (+ residual) (+ activation) on the CPU, in training and inference, float32 or bfloat16.

A tensor is a table of rows by channels, cut into blocks of rows. A block's sums are float32, kept in registers while its rows pass by:
of the deviations from its first row, and of their squares. Blocks are joined in float64 (Chan, Golub & LeVeque 1979). So nothing is lost
where the mean is large against the deviation: the first row is one of those whose spread is asked for, so it is never farther from their
mean than the root of their number times the deviation. The result is the same for any number of threads.

Each pass is one call: what has to be known of all blocks before the second half of a pass begins, each thread computes for itself.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from convolt.kernels.bits_numba import to_float
from convolt.kernels.compiled import Compiled, Prepared
from convolt.kernels.instructions import (
    exponential,
    if_at_most,
    load_like,
    many,
    number_like,
    one,
    some,
    store,
    times_plus,
    within,
)
from convolt.kernels.jit import LANES, register_jitable
from convolt.kernels.memory import bits, bits_to_come, empty_like, numbers_to_come
from convolt.kernels.norm_reference import follow

_inlined = register_jitable(fastmath=set(), forceinline=True)

LINEAR, BETWEEN, SILU, HARD_SILU, HELD = range(5)
"""Kinds of activations: none, cut off at a floor and a ceiling, one of the smooth ones, or done already."""
SMOOTH = (SILU, HARD_SILU)
INFINITE = float("inf")
HOW = {"linear": (LINEAR, -INFINITE, INFINITE), "relu": (BETWEEN, 0.0, INFINITE), "relu6": (BETWEEN, 0.0, 6.0),
       "silu": (SILU, 0.0, 0.0), "hard_silu": (HARD_SILU, 0.0, 0.0)}
"""Activation → its kind, for which kernels are compiled, floor and ceiling."""
MANY = 4 * LANES
WIDEST = 1024
"""Numbers up to which rows are joined to one, so that it has whole vectors."""
LEAST_ROWS, MOST_ROWS, BLOCKS = 8, 128, 64
"""Rows of a block, and how many blocks there should be if that allows it."""


class Blocks(NamedTuple):
    """How a tensor is cut up.

    Attributes:
        number: of blocks.
        sizes: rows, numbers in each, rows of a block, channels: rows are joined so that one has each channel several times.
    """

    number: int
    sizes: tuple[int, int, int, int]

    @property
    def room(self) -> int:
        """How many float32 two sums of each number of a row are in all blocks."""
        return 2 * self.number * self.sizes[1]

    def bytes(self, dtype: torch.dtype) -> int:
        """Returns the tensor's size."""
        return self.sizes[0] * self.sizes[1] * dtype.itemsize


def blocks_of(shape: torch.Size) -> Blocks:
    """Returns how a tensor of such a shape is cut up."""
    rows, channels = shape.numel() // max(1, shape[1]), shape[1]
    folds = [fold for fold in (1 << i for i in range(7)) if rows % fold == 0 and (fold == 1 or channels * fold <= WIDEST)]
    fold = next((f for whole in (MANY, LANES) for f in folds if channels * f % whole == 0), folds[-1])
    rows, width = rows // fold, channels * fold
    block_rows = max(LEAST_ROWS, min(MOST_ROWS, rows // BLOCKS))
    return Blocks(-(-rows // block_rows), (rows, width, block_rows, channels))


# -- the batch's statistics ------------------------------------------------------------------------------------------


@_inlined
def _moments_of(like: Any, x: Any, at: Any, width: Any, rows: Any, parts: Any, to: Any, half: Any) -> None:
    first = load_like(like, x, at)
    total, square = like, like
    for _ in range(1, rows):
        at += width
        d = load_like(like, x, at) - first
        total = total + d
        square = times_plus(d, d, square)
    store(parts, to, total)
    store(parts, half + to, square)


@Compiled
def _moments(x: Any, parts: Any, sizes: Any, first: Any, last: Any) -> None:
    rows, width, block_rows, _ = sizes
    half = parts.size // 2
    for block in range(first, last):
        start, count, to = block * block_rows * width, min(block_rows, rows - block * block_rows), block * width
        for i in range(0, width - MANY + 1, MANY):
            _moments_of(many(), x, start + i, width, count, parts, to + i, half)
        for i in range(width // MANY * MANY, width - LANES + 1, LANES):
            _moments_of(some(), x, start + i, width, count, parts, to + i, half)
        for i in range(width // LANES * LANES, width):
            _moments_of(one(), x, start + i, width, count, parts, to + i, half)


@register_jitable
def _joined(x: Any, parts: Any, sizes: Any, mean: Any, var: Any) -> None:
    """Chan's formula over blocks: fills mean and variance, float64, of a row's numbers, equal for those of one channel."""
    rows, width, block_rows, channels = sizes
    half = parts.size // 2
    for i in range(width):
        mean[i] = var[i] = 0.0
    for block in range(half // width):
        count = float(min(block_rows, rows - block * block_rows))
        a, s = x[block * block_rows * width :], parts[block * width :]
        for i in range(width):
            mean[i] += float(to_float(a[i])) * count + float(s[i])
    _shared(mean, channels, float(rows * (width // channels)))
    for block in range(half // width):
        count = float(min(block_rows, rows - block * block_rows))
        share = 1.0 / count
        a, s, q = x[block * block_rows * width :], parts[block * width :], parts[half + block * width :]
        for i in range(width):
            total = float(s[i])
            d = float(to_float(a[i])) + total * share - mean[i]
            var[i] += float(q[i]) - total * total * share + d * d * count
    _shared(var, channels, float(rows * (width // channels)))


@register_jitable
def _shared(sums: Any, channels: Any, count: Any) -> None:
    """Replaces the sums of a row's numbers by the means over all numbers of their channel."""
    for start in range(channels, sums.size, channels):
        for i in range(channels):
            sums[i] += sums[start + i]
    for i in range(channels):
        sums[i] /= count
    for i in range(channels, sums.size):
        sums[i] = sums[i - channels]


@register_jitable
def _keep(mean: Any, var: Any, eps: Any, channels: Any, kept: Any) -> None:
    """Writes mean, 1 / √(variance + eps) and variance of the channels, float32, one behind the other."""
    for i in range(channels):
        kept[i] = np.float32(mean[i])
        kept[channels + i] = np.float32(1.0 / np.sqrt(var[i] + eps))
        kept[2 * channels + i] = np.float32(var[i])


@Compiled
def _join(x: Any, parts: Any, eps: Any, kept: Any, sizes: Any) -> None:
    mean, var = np.empty(sizes[1]), np.empty(sizes[1])
    _joined(x, parts, sizes, mean, var)
    _keep(mean, var, eps, sizes[3], kept)


# -- forward -----------------------------------------------------------------------------------------------------------


@_inlined
def _activated(z: Any, kind: Any, floor: Any, ceiling: Any) -> Any:
    if kind == BETWEEN:
        return within(z, number_like(z, floor), number_like(z, ceiling))
    if kind == SILU:
        return z / (number_like(z, np.float32(1)) + exponential(number_like(z, np.float32(0)) - z))
    if kind == HARD_SILU:
        zero, three = number_like(z, np.float32(0)), number_like(z, np.float32(3))
        return if_at_most(z, zero - three, zero, if_at_most(three, z, z, z * (z + three) * number_like(z, np.float32(1 / 6))))
    return z


@_inlined
def _applied(like: Any, x: Any, residual: Any, out: Any, at: Any, width: Any, rows: Any, affine: Any, i: Any, kind: Any, add: Any,
             floor: Any, ceiling: Any) -> None:
    mean, scale, shift = affine
    m, k, b = load_like(like, mean, i), load_like(like, scale, i), load_like(like, shift, i)
    for _ in range(rows):
        z = times_plus(load_like(like, x, at) - m, k, b)
        if add:
            z = z + load_like(like, residual, at)
        store(out, at, _activated(z, kind, floor, ceiling))
        at += width


@register_jitable
def _all_applied(x: Any, residual: Any, out: Any, affine: Any, kind: Any, add: Any, limits: Any, sizes: Any, first: Any, last: Any) -> None:
    rows, width, block_rows, _ = sizes
    floor, ceiling = limits
    end, tall = min(rows, last * block_rows), block_rows if width <= MANY else 1  # what does not stay in registers goes line by line
    for row in range(first * block_rows, end, tall):
        start, count = row * width, min(tall, end - row)
        for i in range(0, width - MANY + 1, MANY):
            _applied(many(), x, residual, out, start + i, width, count, affine, i, kind, add, floor, ceiling)
        for i in range(width // MANY * MANY, width - LANES + 1, LANES):
            _applied(some(), x, residual, out, start + i, width, count, affine, i, kind, add, floor, ceiling)
        for i in range(width // LANES * LANES, width):
            _applied(one(), x, residual, out, start + i, width, count, affine, i, kind, add, floor, ceiling)


@register_jitable
def _affine(mean: Any, rstd: Any, weight: Any, bias: Any, width: Any) -> Any:
    """Mean, scale and shift of a row's numbers, from those of the channels."""
    found = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    for i in range(width):
        c = i % mean.size
        found[0][i] = mean[c]
        found[1][i] = rstd[c] * (weight[c] if weight.size else np.float32(1))
        found[2][i] = bias[c] if bias.size else np.float32(0)
    return found


@functools.cache
def _normalise(kind: int, add: bool) -> Compiled:
    """Returns the second half of the forward pass in training."""

    def compute(x: Any, residual: Any, out: Any, parts: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, share: Any,
                factor: Any, eps: Any, kept: Any, limits: Any, sizes: Any, first: Any, last: Any) -> None:
        width, channels = sizes[1], sizes[3]
        mean, var, own = np.empty(width), np.empty(width), np.empty(3 * channels, np.float32)
        _joined(x, parts, sizes, mean, var)
        _keep(mean, var, eps, channels, own)
        if first == 0:
            for i in range(3 * channels):
                kept[i] = own[i]
            for c in range(running_mean.size):
                running_mean[c] += share[0] * (own[c] - running_mean[c])
                running_var[c] += share[0] * (own[2 * channels + c] * factor - running_var[c])
        affine = _affine(own[:channels], own[channels : 2 * channels], weight, bias, width)
        _all_applied(x, residual, out, affine, kind, add, limits, sizes, first, last)

    return Compiled(compute, made_by=("_normalise", kind, add))


@functools.cache
def _transform(kind: int, add: bool) -> Compiled:
    """Returns the pass of inference."""

    def compute(x: Any, residual: Any, out: Any, scale: Any, shift: Any, limits: Any, sizes: Any, first: Any, last: Any) -> None:
        affine = _affine(np.zeros(sizes[3], np.float32), scale, shift[:0], shift, sizes[1])
        _all_applied(x, residual, out, affine, kind, add, limits, sizes, first, last)

    return Compiled(compute, made_by=("_transform", kind, add))


# -- backward ----------------------------------------------------------------------------------------------------------


@_inlined
def _passed(v: Any, z: Any, kind: Any, floor: Any, ceiling: Any) -> Any:
    """The gradient of the activation's input z."""
    zero = number_like(z, np.float32(0))
    if kind == BETWEEN:
        return if_at_most(z, number_like(z, floor), zero, if_at_most(number_like(z, ceiling), z, zero, v))
    if kind == SILU:
        one_ = number_like(z, np.float32(1))
        share = one_ / (one_ + exponential(zero - z))
        return v * share * (one_ + z * (one_ - share))
    if kind == HARD_SILU:
        three = number_like(z, np.float32(3))
        slope = times_plus(z, number_like(z, np.float32(1 / 3)), number_like(z, np.float32(0.5)))
        return if_at_most(z, zero - three, zero, if_at_most(three, z, v, v * slope))
    return v


@_inlined
def _reduced(like: Any, grad: Any, x: Any, out: Any, masked: Any, at: Any, width: Any, rows: Any, affine: Any, i: Any, kind: Any,
             from_out: Any, keep: Any, floor: Any, ceiling: Any, parts: Any, to: Any, half: Any) -> None:
    mean, scale, shift = affine
    m, k, b = load_like(like, mean, i), load_like(like, scale, i), load_like(like, shift, i)
    total, product = load_like(like, parts, to), load_like(like, parts, half + to)
    for _ in range(rows):
        v, centred = load_like(like, grad, at), load_like(like, x, at) - m
        if from_out:
            v = if_at_most(load_like(like, out, at), number_like(like, floor), like, v)
        else:
            v = _passed(v, times_plus(centred, k, b), kind, floor, ceiling)
        if keep:
            store(masked, at, v)
        total = total + v
        product = times_plus(v, centred, product)
        at += width
    store(parts, to, total)
    store(parts, half + to, product)


@functools.cache
def _reduce(kind: int, from_out: bool, keep: bool) -> Compiled:
    """Returns the first half of the backward pass.

    Args:
        kind: of the activation.
        from_out: whether what the activation let pass is seen from its results.
        keep: whether the gradient behind it is written to `masked`.
    """

    def compute(grad: Any, x: Any, out: Any, masked: Any, parts: Any, mean: Any, rstd: Any, weight: Any, bias: Any, limits: Any,
                sizes: Any, first: Any, last: Any) -> None:
        rows, width, block_rows, _ = sizes
        floor, ceiling = limits
        affine, half = _affine(mean, rstd, weight, bias, width), parts.size // 2
        for block in range(first, last):
            to, end = block * width, min(rows, (block + 1) * block_rows)
            for i in range(width):
                parts[to + i] = parts[half + to + i] = np.float32(0)
            tall = end - block * block_rows if width <= MANY else 1
            for row in range(block * block_rows, end, tall):
                start = row * width
                for i in range(0, width - MANY + 1, MANY):
                    _reduced(many(), grad, x, out, masked, start + i, width, tall, affine, i, kind, from_out, keep, floor, ceiling, parts,
                             to + i, half)
                for i in range(width // MANY * MANY, width - LANES + 1, LANES):
                    _reduced(some(), grad, x, out, masked, start + i, width, tall, affine, i, kind, from_out, keep, floor, ceiling, parts,
                             to + i, half)
                for i in range(width // LANES * LANES, width):
                    _reduced(one(), grad, x, out, masked, start + i, width, tall, affine, i, kind, from_out, keep, floor, ceiling, parts,
                             to + i, half)

    return Compiled(compute, made_by=("_reduce", kind, from_out, keep))


@register_jitable
def _summed(parts: Any, sizes: Any, totals: Any, products: Any) -> None:
    """Fills the means of a row's two sums over all numbers of their channel, float64."""
    rows, width, _, channels = sizes
    half = parts.size // 2
    for i in range(width):
        totals[i] = products[i] = 0.0
    for start in range(0, half, width):
        s, p = parts[start : start + width], parts[half + start : half + start + width]
        for i in range(width):
            totals[i] += float(s[i])
            products[i] += float(p[i])
    _shared(totals, channels, float(rows * (width // channels)))
    _shared(products, channels, float(rows * (width // channels)))


@_inlined
def _spread(like: Any, grad: Any, x: Any, out: Any, at: Any, width: Any, rows: Any, affine: Any, slopes: Any, offsets: Any, i: Any,
            kind: Any, floor: Any, ceiling: Any) -> None:
    mean, scale, shift = affine
    m, k, b = load_like(like, mean, i), load_like(like, scale, i), load_like(like, shift, i)
    slope, offset = load_like(like, slopes, i), load_like(like, offsets, i)
    for _ in range(rows):
        centred = load_like(like, x, at) - m
        if kind == HELD:
            v = load_like(like, out, at)
        else:
            v = _passed(load_like(like, grad, at), times_plus(centred, k, b), kind, floor, ceiling)
        store(out, at, times_plus(k, v, times_plus(centred, slope, offset)))
        at += width


@functools.cache
def _input_gradient(kind: int) -> Compiled:
    """Returns the second half of the backward pass; of the kind HELD, the gradient behind the activation lies in `out` already."""

    def compute(grad: Any, x: Any, out: Any, parts: Any, mean: Any, rstd: Any, weight: Any, bias: Any, affine_grad: Any, limits: Any,
                sizes: Any, first: Any, last: Any) -> None:
        rows, width, block_rows, channels = sizes
        floor, ceiling = limits
        affine = _affine(mean, rstd, weight, bias, width)
        totals, products = np.empty(width), np.empty(width)
        _summed(parts, sizes, totals, products)
        if first == 0:
            for c in range(channels):
                affine_grad[c] = np.float32(products[c] * rstd[c] * rows * (width // channels))
                affine_grad[channels + c] = np.float32(totals[c] * rows * (width // channels))
        slopes, offsets = np.empty(width, np.float32), np.empty(width, np.float32)
        for i in range(width):
            r, k = float(rstd[i % channels]), float(affine[1][i])
            slopes[i] = np.float32(-products[i] * r * r * k)
            offsets[i] = np.float32(-totals[i] * k)
        end, tall = min(rows, last * block_rows), block_rows if width <= MANY else 1
        for row in range(first * block_rows, end, tall):
            start, count = row * width, min(tall, end - row)
            for i in range(0, width - MANY + 1, MANY):
                _spread(many(), grad, x, out, start + i, width, count, affine, slopes, offsets, i, kind, floor, ceiling)
            for i in range(width // MANY * MANY, width - LANES + 1, LANES):
                _spread(some(), grad, x, out, start + i, width, count, affine, slopes, offsets, i, kind, floor, ceiling)
            for i in range(width // LANES * LANES, width):
                _spread(one(), grad, x, out, start + i, width, count, affine, slopes, offsets, i, kind, floor, ceiling)

    return Compiled(compute, made_by=("_input_gradient", kind))


# -- the passes --------------------------------------------------------------------------------------------------------


class _Calls(NamedTuple):
    """Two kernels that are called one after the other, and how many float32 the first one leaves for the second."""

    first: Prepared
    second: Prepared
    room: int


def _limits(activation: str) -> tuple[int, tuple[np.float32, np.float32]]:
    """Returns the kind of an activation, and its floor and ceiling."""
    kind, floor, ceiling = HOW[activation]
    return kind, (np.float32(floor), np.float32(ceiling))


def _float32(vector: Tensor | None) -> Tensor | None:
    if vector is None or (vector.dtype == torch.float32 and vector.is_contiguous()):
        return vector
    return vector.detach().to(torch.float32).contiguous()


@functools.lru_cache(maxsize=1024)
def _forward_calls(shape: torch.Size, dtype: torch.dtype, add: bool, weighed: bool, biased: bool, followed: bool, factor: float, eps: float,
                   activation: str) -> _Calls:
    blocks, (kind, limits), channels = blocks_of(shape), _limits(activation), shape[1]
    parts, x, nothing = numbers_to_come(blocks.room), bits_to_come(dtype, shape.numel()), bits_to_come(dtype, 0)
    moments = _moments.prepared((x, parts, blocks.sizes), blocks.number, blocks.bytes(dtype))
    vectors = (numbers_to_come(channels * there) for there in (weighed, biased, followed, followed))
    arguments = (x, x if add else nothing, x, parts, *vectors, numbers_to_come(1), np.float32(factor), float(eps),
                 numbers_to_come(3 * channels), limits, blocks.sizes)
    normalise = _normalise(kind, add).prepared(arguments, blocks.number, 2 * blocks.bytes(dtype))
    return _Calls(moments, normalise, blocks.room)


@functools.lru_cache(maxsize=64)
def _on_device(share: float) -> Tensor:
    return torch.tensor(share, dtype=torch.float32)


def forward(x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
            running_var: Tensor | None, momentum: float | Tensor, factor: float, eps: float,
            activation: str) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.norm_forward`; x and residual have channels-last memory and the same type."""
    running = [statistic for statistic in (running_mean, running_var) if statistic is not None]
    followed = len(running) == 2 and all(s.dtype == torch.float32 and s.is_contiguous() for s in running)
    calls = _forward_calls(x.shape, x.dtype, residual is not None, weight is not None, bias is not None, followed, factor, eps, activation)
    out, parts, kept = empty_like(x), torch.empty(calls.room), torch.empty(3, x.shape[1])
    weight, bias = _float32(weight), _float32(bias)
    share = momentum.to(torch.float32) if isinstance(momentum, Tensor) else _on_device(momentum)
    calls.first(x, parts)
    calls.second(x, residual, out, parts, weight, bias, *(running if followed else (None, None)), share, kept)
    mean, rstd, var = kept.unbind()
    if followed:
        torch.autograd.graph.increment_version(running)
    else:
        follow(running_mean, running_var, mean, var, momentum, factor)
    return out, mean, rstd


def statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns mean, 1 / √(variance + eps) and variance of each channel, float32."""
    blocks, own = blocks_of(x.shape), bits(x)
    parts, kept = torch.empty(blocks.room), torch.empty(3, x.shape[1])
    _moments.over_rows((own, parts, blocks.sizes), blocks.number, x.nbytes)
    _join(own, parts, eps, kept.view(-1), blocks.sizes)
    mean, rstd, var = kept.unbind()
    return mean, rstd, var


def inference(x: Tensor, residual: Tensor | None, scale: Tensor, shift: Tensor, activation: str) -> Tensor:
    """See `reference.norm_inference`."""
    out, blocks, (kind, limits) = empty_like(x), blocks_of(x.shape), _limits(activation)
    added = bits_to_come(x.dtype, 0) if residual is None else bits(residual)
    arrays = bits(x), added, bits(out), _float32(scale), _float32(shift)
    _transform(kind, residual is not None).over_rows((*arrays, limits, blocks.sizes), blocks.number, 2 * x.nbytes)
    return out


@functools.lru_cache(maxsize=1024)
def _backward_calls(shape: torch.Size, dtype: torch.dtype, from_out: bool, weighed: bool, biased: bool, activation: str) -> _Calls:
    blocks, (kind, limits), channels = blocks_of(shape), _limits(activation), shape[1]
    parts, x, size = numbers_to_come(blocks.room), bits_to_come(dtype, shape.numel()), blocks.bytes(dtype)
    vectors = [numbers_to_come(channels * there) for there in (True, True, weighed, biased)]
    reduce = _reduce(kind, from_out, from_out or kind in SMOOTH)
    spread = _input_gradient(HELD if kind in SMOOTH else LINEAR if from_out else kind)
    given = (x, x, x if from_out else bits_to_come(dtype, 0), x, parts, *vectors, limits, blocks.sizes)
    behind = (x, x, x, parts, *vectors, numbers_to_come(2 * channels), limits, blocks.sizes)
    return _Calls(reduce.prepared(given, blocks.number, 2 * size), spread.prepared(behind, blocks.number, 3 * size), blocks.room)


def backward(grad: Tensor, x: Tensor, out: Tensor | None, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None,
             activation: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `reference.norm_backward`; all large tensors have channels-last memory and the same type."""
    calls = _backward_calls(x.shape, x.dtype, out is not None, weight is not None, bias is not None, activation)
    parts, dx, affine_grad = torch.empty(calls.room), empty_like(x), torch.empty(2, x.shape[1])
    smooth, weight, bias = HOW[activation][0] in SMOOTH, _float32(weight), _float32(bias)
    masked = dx if smooth else grad if out is None else empty_like(grad)  # what is dear to compute is kept where dx will be
    calls.first(grad, x, out, masked, parts, mean, rstd, weight, bias)
    calls.second(masked, x, dx, parts, mean, rstd, weight, bias, affine_grad)
    dweight, dbias = affine_grad.unbind()
    return dx, masked, dweight, dbias
