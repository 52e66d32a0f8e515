"""Batch normalization (+ residual) (+ activation) on CUDA devices, in training and inference.

A tensor is a table of rows by channels; a program takes a tile of it. Within a tile statistics are float32: its mean and
the squared deviations from that. Tiles are joined in float64 by Chan's formula, first along the rows of a program, then
over programs: one float64 operation per channel and tile, which costs nothing beside the tile's loads.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: N803 (compile-time constants are upper case, as in Triton's own code)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from convolt.kernels.memory import current_device, empty_like, power_of_two, rows_of

TILE = 2048
PROGRAMS = 256
"""Most parts along the rows for statistics: about two for each multiprocessor of today's largest GPUs."""


@triton.jit
def _statistics(x, means, squares, rows, channels, chunk, BM: tl.constexpr, BC: tl.constexpr):
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    first = tl.program_id(0).to(tl.int64) * chunk
    last = tl.minimum(first + chunk, rows)
    mean = tl.full((BC,), 0.0, tl.float64)
    square = tl.full((BC,), 0.0, tl.float64)
    for start in range(0, chunk, BM):
        r = first + start + tl.arange(0, BM)
        mask = (r < last)[:, None] & (c < channels)[None, :]
        v = tl.load(x + r[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
        count = tl.maximum(tl.minimum(last - first - start, BM), 0).to(tl.float32)
        tile_mean = tl.sum(v, axis=0) / tl.maximum(count, 1.0)
        d = tl.where(mask, v - tile_mean[None, :], 0.0)
        # What is left of the sum of deviations is the rounding of the mean; it is put right.
        rest = tl.sum(d, axis=0) / tl.maximum(count, 1.0)
        tile_square = tl.sum(d * d, axis=0) - rest * rest * count
        count64 = count.to(tl.float64)
        share = count64 / tl.maximum(count64 + start, 1.0)  # all tiles before this one are full
        delta = (tile_mean.to(tl.float64) - mean) + rest.to(tl.float64)
        mean += delta * share
        square += tile_square.to(tl.float64) + delta * delta * share * start
    at = tl.program_id(0) * channels + c
    tl.store(means + at, mean, mask=c < channels)
    tl.store(squares + at, square, mask=c < channels)


@triton.jit
def _join(means, squares, mean_out, var_out, rows, channels, chunk, parts, BP: tl.constexpr, BC: tl.constexpr):
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    mean = tl.full((BC,), 0.0, tl.float64)
    square = tl.full((BC,), 0.0, tl.float64)
    for phase in tl.static_range(2):
        total = tl.full((BC,), 0.0, tl.float64)
        for start in range(0, parts, BP):
            p = start + tl.arange(0, BP)
            mask = (p < parts)[:, None] & (c < channels)[None, :]
            count = tl.minimum(rows - p.to(tl.int64) * chunk, chunk).to(tl.float64)
            m = tl.load(means + p[:, None] * channels + c[None, :], mask=mask, other=0.0)
            if phase == 0:
                total += tl.sum(tl.where(mask, m * count[:, None], 0.0), axis=0)
            else:
                s = tl.load(squares + p[:, None] * channels + c[None, :], mask=mask, other=0.0)
                d = m - mean[None, :]
                total += tl.sum(tl.where(mask, s + d * d * count[:, None], 0.0), axis=0)
        if phase == 0:
            mean = total / rows
        else:
            square = total
    tl.store(mean_out + c, mean.to(tl.float32), mask=c < channels)
    tl.store(var_out + c, (square / rows).to(tl.float32), mask=c < channels)


@triton.jit
def vector(pointer, c, channels, HAS: tl.constexpr, default):
    """A value for each channel, or the default."""
    value = tl.full(c.shape, default, tl.float32)
    if HAS:
        value = tl.load(pointer + c, mask=c < channels, other=0.0).to(tl.float32)
    return value


@triton.jit
def _activated(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        z = tl.where(z <= 0.0, 0.0, z)
    elif ACTIVATION == "relu6":
        z = tl.where(z <= 0.0, 0.0, tl.where(z >= 6.0, 6.0, z))
    elif ACTIVATION == "silu":
        z = z / (1.0 + tl.exp(-z))
    elif ACTIVATION == "hard_silu":
        z = tl.where(z <= -3.0, 0.0, tl.where(z >= 3.0, z, z * (z + 3.0) / 6.0))
    return z


@triton.jit
def _passed(g, z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        g = tl.where(z <= 0.0, 0.0, g)
    elif ACTIVATION == "relu6":
        g = tl.where((z <= 0.0) | (z >= 6.0), 0.0, g)
    elif ACTIVATION == "silu":
        share = 1.0 / (1.0 + tl.exp(-z))
        g = g * share * (1.0 + z * (1.0 - share))
    elif ACTIVATION == "hard_silu":
        g = tl.where(z <= -3.0, 0.0, tl.where(z >= 3.0, g, g * (z / 3.0 + 0.5)))
    return g


@triton.jit
def keep_books(c, some, m, v, inverse, rstd, running_mean, running_var, momentum, factor, RUNNING: tl.constexpr, COUNTED: tl.constexpr):
    """Stores 1 / deviation and moves the running statistics."""
    tl.store(rstd + c, inverse, mask=some)
    if RUNNING:
        old_mean, old_var = tl.load(running_mean + c, mask=some, other=0.0), tl.load(running_var + c, mask=some, other=0.0)
        if COUNTED:  # a share that the device's count of batches decides
            share = tl.load(momentum)
        else:
            share = momentum
        tl.store(running_mean + c, old_mean + (m - old_mean) * share, mask=some)
        tl.store(running_var + c, old_var + (v * factor - old_var) * share, mask=some)


@triton.jit
def _apply(x, residual, out, mean, var, rstd, weight, bias, running_mean, running_var, rows, channels, momentum, factor, eps,
           ADD: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, RUNNING: tl.constexpr, COUNTED: tl.constexpr,
           ACTIVATION: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    r = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    some = c < channels
    mask = (r < rows)[:, None] & some[None, :]
    m, v = tl.load(mean + c, mask=some, other=0.0), tl.load(var + c, mask=some, other=1.0)
    inverse = 1.0 / tl.sqrt(v + eps)
    scale, shift = inverse * vector(weight, c, channels, WEIGHT, 1.0), vector(bias, c, channels, BIAS, 0.0)
    at = r[:, None] * channels + c[None, :]
    z = (tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - m[None, :]) * scale[None, :] + shift[None, :]
    if ADD:
        z += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    z = _activated(z, ACTIVATION)
    tl.store(out + at, z.to(out.dtype.element_ty), mask=mask)
    if tl.program_id(0) == 0:  # one program for each block of channels keeps the books
        keep_books(c, some, m, v, inverse, rstd, running_mean, running_var, momentum, factor, RUNNING, COUNTED)


@triton.jit
def _reduce(grad, x, out, masked, mean, rstd, weight, bias, partial, rows, channels, chunk, parts, FROM_OUT: tl.constexpr,
            WEIGHT: tl.constexpr, BIAS: tl.constexpr, ACTIVATION: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    some = c < channels
    first = tl.program_id(0).to(tl.int64) * chunk
    last = tl.minimum(first + chunk, rows)
    m, inverse = tl.load(mean + c, mask=some, other=0.0), tl.load(rstd + c, mask=some, other=0.0)
    scale, shift = inverse * vector(weight, c, channels, WEIGHT, 1.0), vector(bias, c, channels, BIAS, 0.0)
    total = tl.full((BC,), 0.0, tl.float64)
    product = tl.full((BC,), 0.0, tl.float64)
    for start in range(0, chunk, BM):
        r = first + start + tl.arange(0, BM)
        mask = (r < last)[:, None] & some[None, :]
        at = r[:, None] * channels + c[None, :]
        g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        centred = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - m[None, :]
        if FROM_OUT:
            g = tl.where(tl.load(out + at, mask=mask, other=0.0).to(tl.float32) <= 0.0, 0.0, g)
            tl.store(masked + at, g.to(masked.dtype.element_ty), mask=mask)
        else:
            g = _passed(g, centred * scale[None, :] + shift[None, :], ACTIVATION)
        total += tl.sum(tl.where(mask, g, 0.0), axis=0).to(tl.float64)
        product += tl.sum(tl.where(mask, g * (centred * inverse[None, :]), 0.0), axis=0).to(tl.float64)
    at_part = tl.program_id(0) * channels + c
    tl.store(partial + at_part, total, mask=some)
    tl.store(partial + parts * channels + at_part, product, mask=some)


@triton.jit
def _input_gradient(grad, x, out, mean, rstd, weight, bias, sums, rows, channels, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
                    ACTIVATION: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    r = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    some = c < channels
    mask = (r < rows)[:, None] & some[None, :]
    m, inverse = tl.load(mean + c, mask=some, other=0.0), tl.load(rstd + c, mask=some, other=0.0)
    scale, shift = inverse * vector(weight, c, channels, WEIGHT, 1.0), vector(bias, c, channels, BIAS, 0.0)
    mean_grad = (tl.load(sums + c, mask=some, other=0.0) / rows).to(tl.float32)
    mean_product = (tl.load(sums + channels + c, mask=some, other=0.0) / rows).to(tl.float32)
    at = r[:, None] * channels + c[None, :]
    g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    centred = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - m[None, :]
    g = _passed(g, centred * scale[None, :] + shift[None, :], ACTIVATION)
    d = scale[None, :] * (g - mean_grad[None, :] - centred * inverse[None, :] * mean_product[None, :])
    tl.store(out + at, d.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _affine(x, residual, out, scale, shift, rows, channels, ADD: tl.constexpr, ACTIVATION: tl.constexpr, BM: tl.constexpr,
            BC: tl.constexpr):
    r = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    some = c < channels
    mask = (r < rows)[:, None] & some[None, :]
    at = r[:, None] * channels + c[None, :]
    z = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) * tl.load(scale + c, mask=some, other=0.0)[None, :]
    z += tl.load(shift + c, mask=some, other=0.0)[None, :]
    if ADD:
        z += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    z = _activated(z, ACTIVATION)
    tl.store(out + at, z.to(out.dtype.element_ty), mask=mask)


def tile_of(x: Tensor) -> tuple[int, int, int, int]:
    """Returns rows, channels and the sides of a tile."""
    rows, channels = rows_of(x), x.shape[1]
    block_channels = power_of_two(channels, most=64)
    return rows, channels, power_of_two(rows, most=TILE // block_channels), block_channels


def parts_of(rows: int, block_rows: int) -> tuple[int, int]:
    """Returns into how many parts the rows are divided, and rows of a part, whole tiles."""
    tiles = -(-rows // block_rows)
    chunk = -(-tiles // PROGRAMS) * block_rows
    return -(-rows // chunk), chunk


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and variance of each channel, float32."""
    rows, channels, bm, bc = tile_of(x)
    parts, chunk = parts_of(rows, bm)
    blocks = -(-channels // bc)
    partial = torch.empty((2, parts, channels), dtype=torch.float64, device=x.device)
    mean, var = torch.empty((2, channels), dtype=torch.float32, device=x.device)
    with current_device(x):
        _statistics[parts, blocks](x, partial[0], partial[1], rows, channels, chunk, bm, bc)
        _join[(blocks,)](partial[0], partial[1], mean, var, rows, channels, chunk, parts, 16, bc)
    return mean, var


def forward(x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
            running_var: Tensor | None, momentum: float | Tensor, factor: float, eps: float,
            activation: str) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.norm_forward`; x and residual have channels-last memory."""
    rows, channels, bm, bc = tile_of(x)
    out, follows = empty_like(x), running_mean is not None
    mean, var = statistics(x)
    rstd = torch.empty_like(mean)
    with current_device(x):
        _apply[-(-rows // bm), -(-channels // bc)](
            x, x if residual is None else residual, out, mean, var, rstd, mean if weight is None else weight,
            mean if bias is None else bias, running_mean if follows else mean, running_var if follows else var, rows, channels,
            momentum, factor, eps, residual is not None, weight is not None, bias is not None, follows, isinstance(momentum, Tensor),
            activation, bm, bc)
    return out, mean, rstd


def inference(x: Tensor, residual: Tensor | None, scale: Tensor, shift: Tensor, activation: str) -> Tensor:
    """See `reference.norm_inference`."""
    rows, channels, bm, bc = tile_of(x)
    out = empty_like(x)
    with current_device(x):
        _affine[-(-rows // bm), -(-channels // bc)](x, x if residual is None else residual, out, scale.detach(), shift.detach(), rows,
                                                    channels, residual is not None, activation, bm, bc)
    return out


def backward(grad: Tensor, x: Tensor, out: Tensor | None, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None,
             activation: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `reference.norm_backward`; all large tensors have channels-last memory."""
    rows, channels, bm, bc = tile_of(x)
    parts, chunk = parts_of(rows, bm)
    blocks = -(-channels // bc)
    from_out = out is not None
    masked = empty_like(grad) if from_out else grad
    partial = torch.empty((2, parts, channels), dtype=torch.float64, device=x.device)
    has = (weight is not None, bias is not None)
    vectors = (mean, rstd, mean if weight is None else weight, mean if bias is None else bias)
    dx = empty_like(x)
    with current_device(x):
        _reduce[parts, blocks](grad, x, x if out is None else out, masked, *vectors, partial, rows, channels, chunk, parts, from_out, *has,
                               activation, bm, bc)
        sums = partial.sum(1)
        _input_gradient[-(-rows // bm), blocks](masked, x, dx, *vectors, sums, rows, channels, *has,
                                                "linear" if from_out else activation, bm, bc)
    return dx, masked, sums[1].float(), sums[0].float()
