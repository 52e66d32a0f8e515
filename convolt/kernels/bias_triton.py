"""Bias and ReLU in place on CUDA devices: one pass forward, one pass backward."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: N803 (compile-time constants are upper case, as in Triton's own code)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from convolt.kernels.memory import current_device, empty_like
from convolt.kernels.norm_triton import parts_of, tile_of


@triton.jit
def _forward(x, bias, rows, channels, BM: tl.constexpr, BC: tl.constexpr):
    r = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    some = c < channels
    mask = (r < rows)[:, None] & some[None, :]
    at = r[:, None] * channels + c[None, :]
    z = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) + tl.load(bias + c, mask=some, other=0.0).to(tl.float32)[None, :]
    tl.store(x + at, tl.where(z <= 0.0, 0.0, z).to(x.dtype.element_ty), mask=mask)


@triton.jit
def _backward(grad, out, dx, partial, rows, channels, chunk, BM: tl.constexpr, BC: tl.constexpr):
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    some = c < channels
    first = tl.program_id(0).to(tl.int64) * chunk
    last = tl.minimum(first + chunk, rows)
    total = tl.full((BC,), 0.0, tl.float64)
    for start in range(0, chunk, BM):
        r = first + start + tl.arange(0, BM)
        mask = (r < last)[:, None] & some[None, :]
        at = r[:, None] * channels + c[None, :]
        y = tl.load(out + at, mask=mask, other=0.0).to(tl.float32)
        g = tl.where(y <= 0.0, 0.0, tl.load(grad + at, mask=mask, other=0.0).to(tl.float32))
        tl.store(dx + at, g.to(dx.dtype.element_ty), mask=mask)
        total += tl.sum(tl.where(mask, g, 0.0), axis=0).to(tl.float64)
    tl.store(partial + tl.program_id(0) * channels + c, total, mask=some)


def forward(x: Tensor, bias: Tensor) -> None:
    """See `reference.biasrelu_forward`; x has channels-last memory."""
    rows, channels, bm, bc = tile_of(x)
    with current_device(x):
        _forward[-(-rows // bm), -(-channels // bc)](x, bias, rows, channels, bm, bc)


def backward(grad: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.biasrelu_backward`; grad and out have channels-last memory."""
    rows, channels, bm, bc = tile_of(out)
    parts, chunk = parts_of(rows, bm)
    dx, partial = empty_like(out), torch.empty((parts, channels), dtype=torch.float64, device=out.device)
    with current_device(out):
        _backward[parts, -(-channels // bc)](grad, out, dx, partial, rows, channels, chunk, bm, bc)
    return dx, partial.sum(0).float()
