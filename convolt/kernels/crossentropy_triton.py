"""Softmax and cross-entropy on CUDA devices: a program takes one sample's logits, all of them in registers."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: N803 (compile-time constants are upper case, as in Triton's own code)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from convolt.kernels.memory import current_device, power_of_two


@triton.jit
def _target(labels, sample, k, classes, smoothing, DENSE: tl.constexpr):
    if DENSE:
        t = tl.load(labels + sample * classes + k, mask=k < classes, other=0.0).to(tl.float32)
    else:
        t = tl.where(k == tl.load(labels + sample), 1.0, 0.0)
    return tl.where(k < classes, t * (1.0 - smoothing) + smoothing / classes, 0.0)


@triton.jit
def _forward(logits, labels, losses, lse, classes, smoothing, DENSE: tl.constexpr, BK: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BK)
    v = tl.load(logits + sample * classes + k, mask=k < classes, other=float("-inf")).to(tl.float32)
    top = tl.max(v, axis=0)
    log_sum = tl.log(tl.sum(tl.exp(v - top), axis=0)) + top
    target = _target(labels, sample, k, classes, smoothing, DENSE)
    # A class with target 0 adds 0, even if its logit is minus infinity.
    tl.store(losses + sample, tl.sum(target * tl.where(target == 0.0, 0.0, log_sum - v), axis=0))
    tl.store(lse + sample, log_sum)


@triton.jit
def _backward(grad, logits, labels, lse, out, classes, smoothing, DENSE: tl.constexpr, BK: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BK)
    v = tl.load(logits + sample * classes + k, mask=k < classes, other=float("-inf")).to(tl.float32)
    target = _target(labels, sample, k, classes, smoothing, DENSE)
    softmax = tl.exp(v - tl.load(lse + sample))
    d = tl.load(grad + sample) * (softmax * tl.sum(target, axis=0) - target)
    tl.store(out + sample * classes + k, d.to(out.dtype.element_ty), mask=k < classes)


def forward(logits: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """See `reference.crossentropy_forward`."""
    count, classes = logits.shape
    losses, lse = torch.empty((2, count), dtype=torch.float32, device=logits.device)
    with current_device(logits):
        _forward[(count,)](logits.contiguous(), labels.contiguous(), losses, lse, classes, smoothing, labels.ndim == 2,
                           power_of_two(classes))
    return losses, lse


def backward(grad: Tensor, logits: Tensor, labels: Tensor, lse: Tensor, smoothing: float) -> Tensor:
    """See `reference.crossentropy_backward`."""
    count, classes = logits.shape
    out = torch.empty((count, classes), dtype=logits.dtype, device=logits.device)
    with current_device(logits):
        _backward[(count,)](grad.contiguous(), logits.contiguous(), labels.contiguous(), lse, out, classes, smoothing, labels.ndim == 2,
                            power_of_two(classes))
    return out
