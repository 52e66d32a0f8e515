"""Batch normalization (+ residual) (+ activation) on the CPU, in training and inference, float32 or bfloat16.

A tensor is a table of rows by channels. Statistics are taken in blocks of rows that stay in the L1 cache: the block's
mean, then the sums of its deviations from that mean (zero but for rounding, which they correct) and of their squares,
in float32; blocks are joined in float64 (Chan, Golub & LeVeque 1979). So nothing is lost where the mean is large against
the deviation, and the result is the same for any number of threads.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.kernels.bits_numba import exp32, from_float, to_float
from convolt.kernels.compiled import Compiled
from convolt.kernels.jit import register_jitable
from convolt.kernels.memory import bits, empty_like, rows_of
from convolt.kernels.norm_reference import follow

BETWEEN, SILU, HARD_SILU, HELD = range(4)
"""Kinds of activations: cut off at a floor and a ceiling, which most are, one of the smooth ones, or done already."""
INFINITE = float("inf")
HOW = {"linear": (BETWEEN, -INFINITE, INFINITE), "relu": (BETWEEN, 0.0, INFINITE), "relu6": (BETWEEN, 0.0, 6.0),
       "silu": (SILU, 0.0, 0.0), "hard_silu": (HARD_SILU, 0.0, 0.0)}
"""Activation → its kind, for which kernels are compiled, floor and ceiling."""
WIDTH, FEWEST_ROWS = 512, 64
"""Numbers up to which rows are joined to one, of which so many are left."""
RUN = 8
"""Rows that are summed in float32 before the sum is added in float64."""


@register_jitable
def flush(narrow: Any, wide: Any) -> None:
    """Adds short float32 sums to float64 ones and starts them anew."""
    for i in range(narrow.size):
        wide[i] += narrow[i]
        narrow[i] = np.float32(0)


@Compiled
def _statistics(x: Any, means: Any, sums: Any, squares: Any, sizes: Any, first: Any, last: Any) -> None:
    rows, channels, block_rows = sizes
    mean, total, square = np.empty(channels, np.float32), np.zeros(channels, np.float32), np.zeros(channels, np.float32)
    for block in range(first, last):
        start, stop = block * block_rows, min(rows, (block + 1) * block_rows)
        here = slice(block * channels, (block + 1) * channels)
        wide_total, wide_square = sums[here], squares[here]
        mean[:] = np.float32(0)
        wide_total[:] = 0.0
        wide_square[:] = 0.0
        for row in range(start, stop):
            a = x[row * channels : (row + 1) * channels]
            for i in range(channels):
                mean[i] += to_float(a[i])
        for i in range(channels):
            mean[i] /= np.float32(stop - start)
        for row in range(start, stop):
            a = x[row * channels : (row + 1) * channels]
            for i in range(channels):
                d = to_float(a[i]) - mean[i]
                total[i] += d
                square[i] += d * d
            if row % RUN == RUN - 1 or row == stop - 1:
                flush(total, wide_total)
                flush(square, wide_square)
        means[here] = mean


@Compiled
def _join(means: Any, sums: Any, squares: Any, mean: Any, var: Any, sizes: Any) -> None:
    """Chan's formula over blocks: fills mean and variance, float64."""
    rows, channels, block_rows = sizes
    blocks = means.size // channels
    mean[:] = 0.0
    var[:] = 0.0
    for block in range(blocks):
        here = slice(block * channels, (block + 1) * channels)
        m, s = means[here], sums[here]
        count = float(min(rows, (block + 1) * block_rows) - block * block_rows)
        for i in range(channels):
            mean[i] += m[i] * count + s[i]
    for i in range(channels):
        mean[i] /= rows
    for block in range(blocks):
        here = slice(block * channels, (block + 1) * channels)
        m, s, q = means[here], sums[here], squares[here]
        count = float(min(rows, (block + 1) * block_rows) - block * block_rows)
        for i in range(channels):
            d = m[i] + s[i] / count - mean[i]
            var[i] += q[i] - s[i] * s[i] / count + d * d * count
    for i in range(channels):
        var[i] /= rows


@Compiled
def add_up(parts: Any, total: Any) -> None:
    """Fills totals with the sums of parts that lie one behind the other."""
    total[:] = 0.0
    for start in range(0, parts.size, total.size):
        part = parts[start : start + total.size]
        for i in range(total.size):
            total[i] += part[i]


@register_jitable
def activated(z: Any, kind: Any, floor: Any, ceiling: Any) -> Any:
    """The activation of a float32."""
    one, three = np.float32(1), np.float32(3)
    if kind == SILU:
        return z / (one + exp32(-z))
    if kind == HARD_SILU:
        return np.float32(0) if z <= -three else z if z >= three else z * (z + three) * np.float32(1 / 6)
    return floor if z <= floor else ceiling if z >= ceiling else z


@register_jitable
def passed(v: Any, z: Any, kind: Any, floor: Any, ceiling: Any) -> Any:
    """The gradient of the activation's input z."""
    zero, one, three = np.float32(0), np.float32(1), np.float32(3)
    if kind == SILU:
        share = one / (one + exp32(-z))
        return v * share * (one + z * (one - share))
    if kind == HARD_SILU:
        return zero if z <= -three else v if z >= three else v * (z * np.float32(1 / 3) + np.float32(0.5))
    return zero if z <= floor else zero if z >= ceiling else v


@functools.cache
def _apply(kind: int) -> Compiled:
    """Returns the forward pass for a kind of activations."""

    def compute(x: Any, residual: Any, out: Any, mean: Any, scale: Any, shift: Any, floor: Any, ceiling: Any, channels: Any,
                first: Any, last: Any) -> None:
        add = residual.size > 0
        for row in range(first, last):
            s = row * channels
            a, y = x[s : s + channels], out[s : s + channels]
            if add:
                r = residual[s : s + channels]
                for i in range(channels):
                    z = (to_float(a[i]) - mean[i]) * scale[i] + shift[i] + to_float(r[i])
                    y[i] = from_float(activated(z, kind, floor, ceiling), a[i])
            else:
                for i in range(channels):
                    z = (to_float(a[i]) - mean[i]) * scale[i] + shift[i]
                    y[i] = from_float(activated(z, kind, floor, ceiling), a[i])

    return Compiled(compute, made_by=("_apply", kind))


@functools.cache
def _reduce(kind: int) -> Compiled:
    """Returns the sums of the backward pass. Loops are short, since LLVM makes no vectors where too many arrays might overlap."""

    def compute(grad: Any, x: Any, out: Any, masked: Any, mean: Any, scale: Any, shift: Any, floor: Any, ceiling: Any,
                sums: Any, products: Any, sizes: Any, first: Any, last: Any) -> None:
        rows, channels, block_rows = sizes
        from_out, keep = out.size > 0, masked.size > 0
        total, product, line = np.zeros(channels, np.float32), np.zeros(channels, np.float32), np.empty(channels, np.float32)
        for block in range(first, last):
            wide_total, wide_product = sums[block * channels : (block + 1) * channels], products[block * channels : (block + 1) * channels]
            wide_total[:] = 0.0
            wide_product[:] = 0.0
            stop = min(rows, (block + 1) * block_rows)
            for row in range(block * block_rows, stop):
                s = row * channels
                g, a = grad[s : s + channels], x[s : s + channels]
                if from_out:
                    y = out[s : s + channels]
                    for i in range(channels):
                        line[i] = np.float32(0) if to_float(y[i]) <= floor else to_float(g[i])
                else:
                    for i in range(channels):
                        line[i] = passed(to_float(g[i]), (to_float(a[i]) - mean[i]) * scale[i] + shift[i], kind, floor, ceiling)
                if keep:
                    d = masked[s : s + channels]
                    for i in range(channels):
                        d[i] = from_float(line[i], g[i])
                for i in range(channels):
                    total[i] += line[i]
                    product[i] += line[i] * (to_float(a[i]) - mean[i])
                if row % RUN == RUN - 1 or row == stop - 1:
                    flush(total, wide_total)
                    flush(product, wide_product)

    return Compiled(compute, made_by=("_reduce", kind))


@functools.cache
def _input_gradient(kind: int) -> Compiled:
    """Returns the pass for the input's gradient; of the kind HELD, the gradient behind the activation lies in `out` already."""

    def compute(grad: Any, x: Any, out: Any, mean: Any, scale: Any, shift: Any, floor: Any, ceiling: Any, mean_grad: Any,
                slope: Any, channels: Any, first: Any, last: Any) -> None:
        for row in range(first, last):
            s = row * channels
            g, a, d = grad[s : s + channels], x[s : s + channels], out[s : s + channels]
            if kind == HELD:
                for i in range(channels):
                    d[i] = from_float(scale[i] * (to_float(d[i]) - mean_grad[i] - (to_float(a[i]) - mean[i]) * slope[i]), a[i])
            else:
                for i in range(channels):
                    centred = to_float(a[i]) - mean[i]
                    v = passed(to_float(g[i]), centred * scale[i] + shift[i], kind, floor, ceiling)
                    d[i] = from_float(scale[i] * (v - mean_grad[i] - centred * slope[i]), a[i])

    return Compiled(compute, made_by=("_input_gradient", kind))


def _blocks(x: Tensor, fold: int = 1) -> tuple[int, tuple[int, int, int]]:
    """Returns how many blocks of rows there are, and (rows, numbers in each, rows of a block): at most 16 KiB of float32 each."""
    rows, width = rows_of(x) // fold, x.shape[1] * fold
    block_rows = max(8, min(64, 4096 // width))
    return -(-rows // block_rows), (rows, width, block_rows)


def _fold(x: Tensor) -> int:
    """Returns how many rows are summed up as one in the backward pass, where short loops cost more than what they compute."""
    rows = rows_of(x)
    most = max(1, min(WIDTH // x.shape[1], rows // FEWEST_ROWS))
    return next(fold for fold in range(most, 0, -1) if rows % fold == 0)


def vectors(x: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns scale and shift of each channel, float32."""
    scale = rstd if weight is None else rstd * weight.detach().to(torch.float32)
    return scale, torch.zeros(x.shape[1]) if bias is None else bias.detach().to(torch.float32)


def _how(compile_for: Any, activation: str) -> tuple[Any, np.float32, np.float32]:
    """Returns the kernel for an activation, and its floor and ceiling."""
    kind, floor, ceiling = HOW[activation]
    return compile_for(kind), np.float32(floor), np.float32(ceiling)


def _nothing(x: Tensor) -> Any:
    return bits(x.new_empty(0, x.shape[1]))


def forward(x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
            running_var: Tensor | None, momentum: float | Tensor, factor: float, eps: float,
            activation: str) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.norm_forward`; x and residual have channels-last memory and the same type."""
    mean, rstd, var = statistics(x, eps)
    out = _affine(x, residual, mean, *vectors(x, rstd, weight, bias), activation)
    follow(running_mean, running_var, mean, var, momentum, factor)
    return out, mean, rstd


def statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns mean, 1 / √(variance + eps) and variance of each channel, float32."""
    count, sizes = _blocks(x)
    partial = torch.empty(3, count, x.shape[1], dtype=torch.float64)
    flat = [p.view(-1) for p in partial]
    _statistics.over_rows((bits(x), *flat, sizes), count, x.nbytes)
    mean64, var = torch.empty(2, x.shape[1], dtype=torch.float64)
    _join(*flat, mean64, var, sizes)
    return mean64.float(), torch.rsqrt(var + eps).float(), var.float()


def _affine(x: Tensor, residual: Tensor | None, mean: Tensor, scale: Tensor, shift: Tensor, activation: str) -> Tensor:
    out, (apply, *limits) = empty_like(x), _how(_apply, activation)
    arrays = (bits(x), _nothing(x) if residual is None else bits(residual), bits(out), mean, scale, shift)
    apply.over_rows((*arrays, *limits, x.shape[1]), rows_of(x), 2 * x.nbytes)
    return out


def inference(x: Tensor, residual: Tensor | None, scale: Tensor, shift: Tensor, activation: str) -> Tensor:
    """See `reference.norm_inference`."""
    return _affine(x, residual, torch.zeros(x.shape[1]), scale.detach().float(), shift.detach().float(), activation)


def backward(grad: Tensor, x: Tensor, out: Tensor | None, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None,
             activation: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `reference.norm_backward`; all large tensors have channels-last memory and the same type."""
    rows, fold = rows_of(x), _fold(x)
    count, sizes = _blocks(x, fold)
    scale, shift = vectors(x, rstd, weight, bias)
    reduce, *limits = _how(_reduce, activation)
    of_channels = mean, scale, shift
    sums, products = torch.empty(2, count, sizes[1], dtype=torch.float64)
    total, product = torch.empty(2, x.shape[1], dtype=torch.float64)
    dx, smooth = empty_like(x), HOW[activation][0] != BETWEEN
    masked = dx if smooth else grad if out is None else empty_like(grad)  # what is dear to compute is kept where dx will be
    arrays = (bits(grad), bits(x), _nothing(x) if out is None else bits(out), _nothing(x) if masked is grad else bits(masked),
              *(v.repeat(fold) for v in of_channels))
    partial = (sums.view(-1), products.view(-1))
    reduce.over_rows((*arrays, *limits, *partial, sizes), count, 2 * x.nbytes)
    add_up(partial[0], total)
    add_up(partial[1], product)
    product *= rstd
    means = ((total / rows).float(), (product * rstd / rows).float())
    kind, floor, ceiling = (HELD, 0.0, 0.0) if smooth else HOW[activation if out is None else "linear"]
    second = (bits(grad if smooth else masked), bits(x), bits(dx), *(v for v in of_channels))
    _input_gradient(kind).over_rows((*second, np.float32(floor), np.float32(ceiling), *means, x.shape[1]), rows, 3 * x.nbytes)
    return dx, masked, product.float(), total.float()
