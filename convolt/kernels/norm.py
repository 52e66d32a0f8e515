"""Batch normalization with what follows it, the residual sum and an activation, as one op."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from convolt.errors import ArgumentError, ShapeError, did_you_mean, explain
from convolt.kernels import reference
from convolt.kernels.memory import channels_last
from convolt.kernels.norm_reference import ACTIVATIONS
from convolt.kernels.registry import choose, run


def bn_relu(x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, *, training: bool,
            momentum: float | Tensor = 0.01, eps: float = 1e-3, unbiased: bool = False, backend: str = "auto") -> Tensor:
    """`relu(batch_norm(x))` in one op, with float32 statistics whatever x's type.

    Args:
        x: (N, C, …), float32 or bfloat16 for the kernels (Triton's also float16); channels-last memory, else it is copied.
        weight, bias: (C,) or None, any float type.
        running_mean, running_var: (C,) float32; moved in place in training, used in inference.
        training: normalise by the batch (x is kept for backward, the mask of ReLU computed again) or by the running statistics.
        momentum: share of the batch in the running statistics, PyTorch's way: 1 - Keras's momentum; a float32 scalar on the
            device where it changes from step to step.
        eps: added to the variance.
        unbiased: divide the running variance by n - 1 (PyTorch) rather than n (Keras).
        backend: "auto", "reference", "numba" (CPU) or "triton" (CUDA).

    Returns:
        The result in x's shape and type, channels-last memory.

    Raises:
        ShapeError: x has one axis, no values, or in training a single value per channel.
    In inference mode under autograd (a frozen layer that passes gradients) the reference runs.
    PyTorch counterpart: `F.relu(F.batch_norm(…))`. Source: Ioffe & Szegedy 2015.
    """
    return _norm("bn_relu", "relu", x, None, weight, bias, running_mean, running_var, training, momentum, eps, unbiased, backend)


def bn(x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, *, training: bool,
       momentum: float | Tensor = 0.01, eps: float = 1e-3, unbiased: bool = False, backend: str = "auto") -> Tensor:
    """`batch_norm(x)` alone, as `bn_relu`: for the branch of a residual block that ends without ReLU."""
    return _norm("bn", "linear", x, None, weight, bias, running_mean, running_var, training, momentum, eps, unbiased, backend)


def bn_activation(x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, activation: str, *,
                  training: bool, momentum: float | Tensor = 0.01, eps: float = 1e-3, unbiased: bool = False,
                  backend: str = "auto") -> Tensor:
    """`activation(batch_norm(x))`, as `bn_relu`; the activation is "linear", "relu", "relu6", "silu" or "hard_silu".

    Raises:
        ArgumentError: it is none of them.
    """
    if activation not in ACTIVATIONS:
        raise ArgumentError(explain("bn_activation(activation)", repr(activation), f"one of {', '.join(ACTIVATIONS)}",
                                    did_you_mean(activation, ACTIVATIONS)))
    return _norm("bn_activation", activation, x, None, weight, bias, running_mean, running_var, training, momentum, eps, unbiased, backend)


def bn_add(x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, *,
           training: bool, momentum: float | Tensor = 0.01, eps: float = 1e-3, unbiased: bool = False, backend: str = "auto") -> Tensor:
    """`batch_norm(x) + residual`, the end of a linear bottleneck; residual has x's shape and type. Otherwise as `bn_relu`."""
    return _norm("bn_add", "linear", x, residual, weight, bias, running_mean, running_var, training, momentum, eps, unbiased, backend)


def bn_add_relu(x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, *,
                training: bool, momentum: float | Tensor = 0.01, eps: float = 1e-3, unbiased: bool = False,
                backend: str = "auto") -> Tensor:
    """`relu(batch_norm(x) + residual)`, the end of a residual block; residual has x's shape and type. Otherwise as `bn_relu`."""
    return _norm("bn_add_relu", "relu", x, residual, weight, bias, running_mean, running_var, training, momentum, eps, unbiased, backend)


def _norm(name: str, activation: str, x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None,
          running_mean: Tensor, running_var: Tensor, training: bool, momentum: float | Tensor, eps: float, unbiased: bool,
          backend: str) -> Tensor:
    if residual is not None and residual.shape != x.shape:
        raise ShapeError(explain(name, f"a residual of shape {tuple(residual.shape)}", f"the shape of x, {tuple(x.shape)}"))
    count = x.numel() // max(1, x.shape[1]) if x.ndim > 1 else 0
    if count < (2 if training else 1):
        raise ShapeError(explain(name, f"input of shape {tuple(x.shape)}", "(batch, channels, …) with two or more values per channel"))
    chosen = choose(name, x, backend)
    wants_gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, residual, weight, bias))
    mixed = residual is not None and residual.dtype != x.dtype
    if chosen == "reference" or mixed or (wants_gradient and not training):
        plain = getattr(reference, name)
        inputs = (x,) if residual is None else (x, residual)
        last = (activation,) if name == "bn_activation" else ()
        return cast(Tensor, plain(*inputs, weight, bias, running_mean, running_var, *last, training=training, momentum=momentum, eps=eps,
                                  unbiased=unbiased))
    kept = None if residual is None else channels_last(residual)
    if not training:
        scale, shift = inference_affine(weight, bias, running_mean, running_var, eps)
        return cast(Tensor, run(name, chosen, "norm", "inference", channels_last(x), kept, scale, shift, activation))
    factor = count / (count - 1) if unbiased else 1.0
    settings = (running_mean, running_var, momentum, factor, eps, activation)
    if wants_gradient:
        return cast(Tensor, _Norm.apply(x, residual, weight, bias, name, chosen, settings))  # type: ignore[no-untyped-call]
    return cast(Tensor, run(name, chosen, "norm", "forward", channels_last(x), kept, weight, bias, *settings)[0])


def inference_affine(weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor,
                     eps: float) -> tuple[Tensor, Tensor]:
    """Returns float32 (scale, shift), each (C,), with `batch_norm(x) = x · scale + shift` in inference."""
    scale = torch.rsqrt(running_var.float() + eps)
    scale = scale if weight is None else scale * weight.float()
    shift = -running_mean.float() * scale
    return scale, shift if bias is None else shift + bias.float()


class _Norm(torch.autograd.Function):
    """Keeps the convolution's output and float32 mean and rstd, and for a residual sum with ReLU its own output (for the mask)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, name: str, backend: str,
                settings: tuple[Any, ...]) -> Tensor:
        x = channels_last(x)
        kept = None if residual is None else channels_last(residual)
        out, mean, rstd = run(name, backend, "norm", "forward", x, kept, weight, bias, *settings)
        activation = settings[-1]
        ctx.save_for_backward(x, None if residual is None or activation == "linear" else out, mean, rstd, weight, bias)
        ctx.name, ctx.backend, ctx.activation = name, backend, activation
        return cast(Tensor, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, out, mean, rstd, weight, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad
        dx, dresidual, dweight, dbias = run(
            ctx.name, ctx.backend, "norm", "backward", channels_last(grad), x, out, mean, rstd, weight, bias, ctx.activation)
        return (dx if needs[0] else None, dresidual if needs[1] else None, dweight.to(weight.dtype) if needs[2] else None,
                dbias.to(bias.dtype) if needs[3] else None, None, None, None)
