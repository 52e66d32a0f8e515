"""Batch normalization + ReLU + max-pooling on CUDA devices, in training and inference.

A program takes a tile of windows by channels; for the input's gradient, a tile of places by channels.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: N803 (compile-time constants are upper case, as in Triton's own code)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from convolt.kernels.memory import current_device, empty_channels_last, empty_like
from convolt.kernels.norm_triton import keep_books, parts_of, statistics, tile_of, vector
from convolt.kernels.pool_reference import Window


@triton.jit
def _forward(x, out, code, mean, var, rstd, weight, bias, running_mean, running_var, windows, channels, height, width, out_height,
             out_width, momentum, factor, eps, PH: tl.constexpr, PW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PT: tl.constexpr,
             PL: tl.constexpr, TRAINING: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, RUNNING: tl.constexpr,
             COUNTED: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    w = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    some = c < channels
    mask = (w < windows)[:, None] & some[None, :]
    scale, shift = vector(weight, c, channels, WEIGHT, 1.0), vector(bias, c, channels, BIAS, 0.0)
    m = tl.full((BC,), 0.0, tl.float32)
    if TRAINING:
        m, v = tl.load(mean + c, mask=some, other=0.0), tl.load(var + c, mask=some, other=1.0)
        inverse = 1.0 / tl.sqrt(v + eps)
        scale = inverse * scale
        if tl.program_id(0) == 0:  # one program for each block of channels keeps the books
            keep_books(c, some, m, v, inverse, rstd, running_mean, running_var, momentum, factor, RUNNING, COUNTED)
    left, rest = w % out_width * SW - PL, w // out_width
    top, image = rest % out_height * SH - PT, rest // out_height
    best = tl.full((BM, BC), float("-inf"), tl.float32)
    place = tl.full((BM, BC), 0, tl.int32)
    for i in tl.static_range(PH):
        for j in tl.static_range(PW):
            row, column = top + i, left + j
            inside = mask & ((row >= 0) & (row < height) & (column >= 0) & (column < width))[:, None]
            at = ((image * height + row) * width + column)[:, None] * channels + c[None, :]
            z = (tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - m[None, :]) * scale[None, :] + shift[None, :]
            better = inside & ((z > best) | (z != z))
            place = tl.where(better, i * PW + j, place)
            best = tl.where(better, z, best)
    dead = best <= 0.0
    target = w[:, None] * channels + c[None, :]
    tl.store(out + target, tl.where(dead, 0.0, best).to(out.dtype.element_ty), mask=mask)
    if TRAINING:
        tl.store(code + target, tl.where(dead, 255, place).to(tl.uint8), mask=mask)


@triton.jit
def _reduce(grad, code, x, mean, rstd, partial, windows, channels, height, width, out_height, out_width, chunk, parts, PW: tl.constexpr,
            SH: tl.constexpr, SW: tl.constexpr, PT: tl.constexpr, PL: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    some = c < channels
    first = tl.program_id(0).to(tl.int64) * chunk
    last = tl.minimum(first + chunk, windows)
    m, inverse = tl.load(mean + c, mask=some, other=0.0), tl.load(rstd + c, mask=some, other=0.0)
    total = tl.full((BC,), 0.0, tl.float64)
    product = tl.full((BC,), 0.0, tl.float64)
    for start in range(0, chunk, BM):
        w = first + start + tl.arange(0, BM)
        mask = (w < last)[:, None] & some[None, :]
        source = w[:, None] * channels + c[None, :]
        place = tl.load(code + source, mask=mask, other=255).to(tl.int32)
        alive = mask & (place != 255)
        g = tl.load(grad + source, mask=alive, other=0.0).to(tl.float32)
        left, rest = w % out_width * SW - PL, w // out_width
        top, image = rest % out_height * SH - PT, rest // out_height
        corner = (image * height + top) * width + left
        at = (corner[:, None] + place // PW * width + place % PW) * channels + c[None, :]
        centred = tl.load(x + at, mask=alive, other=0.0).to(tl.float32) - m[None, :]
        total += tl.sum(g, axis=0).to(tl.float64)
        product += tl.sum(tl.where(alive, g * (centred * inverse[None, :]), 0.0), axis=0).to(tl.float64)
    at_part = tl.program_id(0) * channels + c
    tl.store(partial + at_part, total, mask=some)
    tl.store(partial + parts * channels + at_part, product, mask=some)


@triton.jit
def _input_gradient(grad, code, x, out, mean, rstd, weight, sums, rows, channels, height, width, out_height, out_width, PH: tl.constexpr,
                    PW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PT: tl.constexpr, PL: tl.constexpr, WEIGHT: tl.constexpr,
                    BM: tl.constexpr, BC: tl.constexpr):
    r = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    some = c < channels
    mask = (r < rows)[:, None] & some[None, :]
    column, rest = r % width + PL, r // width
    row, image = rest % height + PT, rest // height
    dz = tl.full((BM, BC), 0.0, tl.float32)
    for a in tl.static_range((PH + SH - 1) // SH):  # windows that cover a place
        for b in tl.static_range((PW + SW - 1) // SW):
            out_row, out_column = row // SH - a, column // SW - b
            i, j = row - out_row * SH, column - out_column * SW
            covered = (out_row >= 0) & (out_row < out_height) & (i < PH) & (out_column >= 0) & (out_column < out_width) & (j < PW)
            source = ((image * out_height + out_row) * out_width + out_column)[:, None] * channels + c[None, :]
            inside = mask & covered[:, None]
            place = tl.load(code + source, mask=inside, other=255).to(tl.int32)
            dz += tl.load(grad + source, mask=inside & (place == (i * PW + j)[:, None]), other=0.0).to(tl.float32)
    m, inverse = tl.load(mean + c, mask=some, other=0.0), tl.load(rstd + c, mask=some, other=0.0)
    mean_grad = (tl.load(sums + c, mask=some, other=0.0) / rows).to(tl.float32)
    mean_product = (tl.load(sums + channels + c, mask=some, other=0.0) / rows).to(tl.float32)
    at = r[:, None] * channels + c[None, :]
    centred = (tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - m[None, :]) * inverse[None, :]
    scale = inverse * vector(weight, c, channels, WEIGHT, 1.0)
    d = scale[None, :] * (dz - mean_grad[None, :] - centred * mean_product[None, :])
    tl.store(out + at, d.to(out.dtype.element_ty), mask=mask)


def _result(x: Tensor, window: Window) -> tuple[int, int, int, int]:
    """Returns the shape of the result."""
    height, width = ((x.shape[2 + i] + 2 * window[4 + i] - window[i]) // window[2 + i] + 1 for i in (0, 1))
    return x.shape[0], x.shape[1], height, width


def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
            momentum: float | Tensor, factor: float, eps: float, window: Window) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `reference.normpool_forward`; x has channels-last memory."""
    mean, var = statistics(x)
    rstd, shape = torch.empty_like(mean), _result(x, window)
    out, code = (empty_channels_last(shape, kind, x.device) for kind in (x.dtype, torch.uint8))
    windows, channels, bm, bc = tile_of(out)
    follows = running_mean is not None
    with current_device(x):
        _forward[-(-windows // bm), -(-channels // bc)](
            x, out, code, mean, var, rstd, mean if weight is None else weight, mean if bias is None else bias,
            running_mean if follows else mean, running_var if follows else var, windows, channels, x.shape[2], x.shape[3], *shape[2:],
            momentum, factor, eps, *window, True, weight is not None, bias is not None, follows, isinstance(momentum, Tensor), bm, bc)
    return out, code, mean, rstd


def inference(x: Tensor, scale: Tensor, shift: Tensor, window: Window) -> Tensor:
    """See `reference.normpool_inference`."""
    shape = _result(x, window)
    out = empty_channels_last(shape, x.dtype, x.device)
    windows, channels, bm, bc = tile_of(out)
    with current_device(x):
        _forward[-(-windows // bm), -(-channels // bc)](
            x, out, out, scale, scale, scale, scale.detach(), shift.detach(), scale, scale, windows, channels, x.shape[2], x.shape[3],
            *shape[2:], 0.0, 1.0, 0.0, *window, False, True, True, False, False, bm, bc)
    return out


def backward(grad: Tensor, code: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None,
             window: Window) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.normpool_backward`; all large tensors have channels-last memory."""
    dx, sizes = empty_like(x), (*x.shape[2:], *grad.shape[2:])
    windows, channels, bm, bc = tile_of(grad)
    parts, chunk = parts_of(windows, bm)
    partial = torch.empty((2, parts, channels), dtype=torch.float64, device=x.device)
    rows, _, rows_bm, _ = tile_of(x)
    with current_device(x):
        _reduce[parts, -(-channels // bc)](grad, code, x, mean, rstd, partial, windows, channels, *sizes, chunk, parts, *window[1:], bm, bc)
        sums = partial.sum(1)
        _input_gradient[-(-rows // rows_bm), -(-channels // bc)](
            grad, code, x, dx, mean, rstd, mean if weight is None else weight, sums, rows, channels, *sizes, *window, weight is not None,
            rows_bm, bc)
    return dx, sums[1].float(), sums[0].float()
