"""Bias + ReLU + max-pooling on CUDA devices: one pass forward, one pass backward.

A program takes a tile of windows by channels. In memory that is channels-last the channels of a tile lie side by side.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: N803 (compile-time constants are upper case, as in Triton's own code)

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from convolt.kernels.memory import current_device, empty_channels_last, power_of_two

TILE = 1024


@triton.jit
def _forward(x, bias, out, code, windows, channels, height, width, PH: tl.constexpr, PW: tl.constexpr, BIAS: tl.constexpr,
             KEEP: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr):
    out_height, out_width = height // PH, width // PW
    w = tl.program_id(0).to(tl.int64) * BW + tl.arange(0, BW)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    mask = (w < windows)[:, None] & (c < channels)[None, :]
    column, rest = w % out_width, w // out_width
    corner = ((rest // out_height) * height + (rest % out_height) * PH) * width + column * PW
    best = tl.full((BW, BC), 0.0, tl.float32)
    place = tl.full((BW, BC), 0, tl.int32)
    for i in tl.static_range(PH):
        for j in tl.static_range(PW):
            v = tl.load(x + (corner + i * width + j)[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
            better = (v > best) | (v != v)
            if i == 0 and j == 0:
                better = tl.full((BW, BC), 1, tl.int1)
            place = tl.where(better, i * PW + j, place)
            best = tl.where(better, v, best)
    if BIAS:
        best += tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    dead = best <= 0.0
    target = w[:, None] * channels + c[None, :]
    tl.store(out + target, tl.where(dead, 0.0, best).to(out.dtype.element_ty), mask=mask)
    if KEEP:
        tl.store(code + target, tl.where(dead, 255, place).to(tl.uint8), mask=mask)


@triton.jit
def _backward(grad, code, out, partial, windows, channels, height, width, chunk, PH: tl.constexpr, PW: tl.constexpr,
              BIAS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr):
    # Here windows also cover what is left over at the lower and right border; those have no output and pass zeros.
    out_height, out_width = height // PH, width // PW
    all_height, all_width = (height + PH - 1) // PH, (width + PW - 1) // PW
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    total = tl.full((BC,), 0.0, tl.float32)
    for step in range(chunk):
        w = (tl.program_id(0).to(tl.int64) * chunk + step) * BW + tl.arange(0, BW)
        mask = (w < windows)[:, None] & (c < channels)[None, :]
        column, rest = w % all_width, w // all_width
        row, image = rest % all_height, rest // all_height
        real = mask & ((row < out_height) & (column < out_width))[:, None]
        source = ((image * out_height + row) * out_width + column)[:, None] * channels + c[None, :]
        place = tl.load(code + source, mask=real, other=255).to(tl.int32)
        g = tl.load(grad + source, mask=real, other=0.0).to(tl.float32)
        if BIAS:
            total += tl.sum(tl.where(place == 255, 0.0, g), axis=0)
        corner = (image * height + row * PH) * width + column * PW
        for i in tl.static_range(PH):
            for j in tl.static_range(PW):
                inside = mask & ((row * PH + i < height) & (column * PW + j < width))[:, None]
                value = tl.where(place == i * PW + j, g, 0.0).to(out.dtype.element_ty)
                tl.store(out + (corner + i * width + j)[:, None] * channels + c[None, :], value, mask=inside)
    if BIAS:
        tl.store(partial + tl.program_id(0) * channels + c, total, mask=c < channels)


def _tiles(windows: int, channels: int) -> tuple[int, int, int]:
    """Returns how many tiles of windows there are, and the sides of a tile."""
    block_channels = power_of_two(channels, most=128)
    block_windows = power_of_two(windows, most=max(1, TILE // block_channels))
    return -(-windows // block_windows), block_windows, block_channels


def forward(x: Tensor, bias: Tensor | None, pool: tuple[int, int], keep: bool) -> tuple[Tensor, Tensor | None]:
    """See `reference.pool_forward`; `x` has channels-last memory."""
    n, channels, height, width = x.shape
    shape = (n, channels, height // pool[0], width // pool[1])
    out = empty_channels_last(shape, x.dtype, x.device)
    code = empty_channels_last(shape, torch.uint8, x.device) if keep else None
    windows = n * shape[2] * shape[3]
    count, bw, bc = _tiles(windows, channels)
    with current_device(x):
        _forward[count, -(-channels // bc)](x, x if bias is None else bias, out, out if code is None else code, windows, channels, height,
                                            width, pool[0], pool[1], bias is not None, keep, bw, bc)
    return out, code


def backward(grad: Tensor, code: Tensor, pool: tuple[int, int], size: tuple[int, int], want_bias: bool) -> tuple[Tensor, Tensor | None]:
    """See `reference.pool_backward`; `grad` and `code` have channels-last memory."""
    n, channels = grad.shape[:2]
    out = empty_channels_last((n, channels, *size), grad.dtype, grad.device)
    windows = n * -(-size[0] // pool[0]) * -(-size[1] // pool[1])
    count, bw, bc = _tiles(windows, channels)
    chunk = 8 if want_bias else 1  # tiles of a program: fewer partial sums of the bias
    programs = -(-count // chunk)
    partial: Any = torch.empty((programs if want_bias else 1, channels), dtype=torch.float32, device=grad.device)
    with current_device(grad):
        _backward[programs, -(-channels // bc)](grad, code, out, partial, windows, channels, size[0], size[1], chunk, pool[0], pool[1],
                                                want_bias, bw, bc)
    return out, partial.sum(0) if want_bias else None
