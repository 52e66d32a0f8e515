"""Bias and ReLU in place: what follows a convolution that is not pooled."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from convolt.errors import ShapeError, explain
from convolt.kernels import reference
from convolt.kernels.memory import channels_last
from convolt.kernels.registry import choose, run


def bias_relu(x: Tensor, bias: Tensor, *, backend: str = "auto") -> Tensor:
    """`relu(x + bias)` in one pass, written over x, which nobody else may need; backward, mask and bias's gradient are one pass, too.

    Args:
        x: (N, C, H, W), float32, bfloat16 or float16, no leaf that needs a gradient; channels-last memory, else it is copied.
        bias: (C,), any float type.
        backend: "auto", "reference" (which leaves x as it is) or "triton" (CUDA). On CPUs oneDNN adds the bias within the convolution.

    Returns:
        The result in x's shape and type, channels-last memory. It is all that is kept for backward: its zeros are the mask.

    Raises:
        ShapeError: the shapes do not fit.
    PyTorch counterpart: `F.relu(x + bias[:, None, None])`.
    """
    if x.ndim != 4 or tuple(bias.shape) != (x.shape[1],):
        raise ShapeError(explain("bias_relu", f"input of shape {tuple(x.shape)}, bias of {tuple(bias.shape)}", "(N, C, H, W) and (C,)"))
    chosen = choose("bias_relu", x, backend)
    if chosen == "reference" or x.numel() == 0:
        return reference.bias_relu(x, bias)
    x = x.contiguous(memory_format=torch.channels_last)
    if torch.is_grad_enabled() and (x.requires_grad or bias.requires_grad):
        return cast(Tensor, _BiasRelu.apply(x, bias, chosen))  # type: ignore[no-untyped-call]
    run("bias_relu", chosen, "biasrelu", "forward", x, bias)
    return x


class _BiasRelu(torch.autograd.Function):
    """Keeps its result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, backend: str) -> Tensor:
        ctx.mark_dirty(x)
        run("bias_relu", backend, "biasrelu", "forward", x, bias)
        ctx.save_for_backward(x)
        ctx.backend, ctx.bias_dtype = backend, bias.dtype
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (out,) = ctx.saved_tensors
        dx, dbias = run("bias_relu", ctx.backend, "biasrelu", "backward", channels_last(grad), out)
        return dx, dbias.to(ctx.bias_dtype) if ctx.needs_input_grad[1] else None, None
