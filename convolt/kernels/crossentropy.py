"""Softmax and cross-entropy as one op."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from convolt.errors import ShapeError, explain
from convolt.kernels import reference
from convolt.kernels.registry import choose, run


def softmax_crossentropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, *, backend: str = "auto") -> Tensor:
    """Cross-entropy of each sample between its target and softmax(logits), in float32; the softmax is never stored.

    Args:
        logits: (N, K), float32, bfloat16 or float16.
        labels: (N,) class numbers from 0 to K - 1 (the caller answers for their range: reading it would be a sync), or
            (N, K) probabilities, which get no gradient from the kernels (if they need one, the reference runs).
        label_smoothing: share of the target that is spread evenly over the classes.
        backend: "auto", "reference" or "triton" (CUDA). On CPUs PyTorch's own kernels are as good.

    Returns:
        (N,) losses, float32.

    Raises:
        ShapeError: the shapes do not fit.
    PyTorch counterpart: `F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=…)`.
    """
    if logits.ndim != 2 or tuple(labels.shape) not in (tuple(logits.shape[:1]), tuple(logits.shape)):
        raise ShapeError(explain("softmax_crossentropy", f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}",
                                 "(batch, classes) and (batch,) or (batch, classes)"))
    # The version is for class counts that fit a program's registers.
    fits = logits.numel() > 0 and logits.shape[1] <= 65536 and not labels.requires_grad
    chosen = choose("softmax_crossentropy", logits, backend)
    if chosen == "reference" or not fits:
        return reference.softmax_crossentropy(logits, labels, label_smoothing)
    if torch.is_grad_enabled() and logits.requires_grad:
        return cast(Tensor, _Crossentropy.apply(logits, labels, chosen, label_smoothing))  # type: ignore[no-untyped-call]
    return cast(Tensor, run("softmax_crossentropy", chosen, "crossentropy", "forward", logits, labels, label_smoothing)[0])


class _Crossentropy(torch.autograd.Function):
    """Keeps the logits and log Σ exp of each sample."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, backend: str, smoothing: float) -> Tensor:
        losses, lse = run("softmax_crossentropy", backend, "crossentropy", "forward", logits, labels, smoothing)
        ctx.save_for_backward(logits, labels, lse)
        ctx.backend, ctx.smoothing = backend, smoothing
        return cast(Tensor, losses)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, lse = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated once more, as for a penalty on its length
            lse = torch.logsumexp(logits.to(lse.dtype), 1)
            return reference.crossentropy_backward(grad, logits, labels, lse, ctx.smoothing), None, None, None
        dlogits = run("softmax_crossentropy", ctx.backend, "crossentropy", "backward", grad, logits, labels, lse, ctx.smoothing)
        return dlogits, None, None, None
