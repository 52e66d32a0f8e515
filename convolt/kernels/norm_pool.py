"""Batch normalization → ReLU → max-pooling as one op: what follows a convolution in most networks."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from convolt.errors import ArgumentError, ShapeError, explain
from convolt.kernels import pool_reference
from convolt.kernels.memory import channels_last
from convolt.kernels.norm import inference_affine
from convolt.kernels.pool_reference import Window
from convolt.kernels.registry import choose, run


def bn_relu_max_pool(x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, *,
                     pool_size: tuple[int, int] = (2, 2), strides: tuple[int, int] | None = None, padding: tuple[int, int] = (0, 0),
                     training: bool, momentum: float | Tensor = 0.01, eps: float = 1e-3, unbiased: bool = False,
                     backend: str = "auto") -> Tensor:
    """`max_pool(relu(batch_norm(x)))` in one op: neither the normalised values nor those after ReLU are ever stored.

    Args:
        x: (N, C, H, W), float32 or bfloat16 for the kernels (Triton's also float16); channels-last memory, else it is copied.
        pool_size, strides, padding: vertical and horizontal; strides are the window's size by default, padding at most half of it.
        weight, bias, running_mean, running_var, training, momentum, eps, unbiased, backend: as `bn_relu`.

    Returns:
        (N, C, (H + 2 · padding - height) // stride + 1, …), in x's type and channels-last memory.

    Raises:
        ArgumentError: the window has no place, more than 255, or more padding than half of it.
        ShapeError: x is smaller than a window, or has in training a single value per channel.
    For training x, mean, deviation and one byte for each output are kept. In inference mode under autograd the reference runs.
    PyTorch counterpart: `F.max_pool2d(F.relu(F.batch_norm(…)), …)`.
    """
    window: Window = (*pool_size, *(strides or pool_size), *padding)
    _check(x, window, training)
    chosen = choose("bn_relu_max_pool", x, backend)
    wants_gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    if chosen == "reference" or (wants_gradient and not training):
        return pool_reference.bn_relu_max_pool(x, weight, bias, running_mean, running_var, pool_size=pool_size, strides=strides,
                                               padding=padding, training=training, momentum=momentum, eps=eps, unbiased=unbiased)
    if not training:
        affine = inference_affine(weight, bias, running_mean, running_var, eps)
        return cast(Tensor, run("bn_relu_max_pool", chosen, "normpool", "inference", channels_last(x), *affine, window))
    count = x.numel() // x.shape[1]
    settings = (running_mean, running_var, momentum, count / (count - 1) if unbiased else 1.0, eps, window)
    if wants_gradient:
        return cast(Tensor, _NormPool.apply(x, weight, bias, chosen, settings))  # type: ignore[no-untyped-call]
    return cast(Tensor, run("bn_relu_max_pool", chosen, "normpool", "forward", channels_last(x), weight, bias, *settings)[0])


def _check(x: Tensor, window: Window, training: bool) -> None:
    size, strides, padding = window[:2], window[2:4], window[4:]
    fits = 0 < size[0] * size[1] <= pool_reference.DEAD and min(size + strides) > 0
    if not fits or any(not 0 <= 2 * border <= side for side, border in zip(size, padding, strict=True)):
        raise ArgumentError(explain("bn_relu_max_pool", f"pool_size={size}, strides={strides}, padding={padding}",
                                    f"numbers from 1, a window of at most {pool_reference.DEAD} places, and padding up to half of it"))
    if x.ndim != 4 or any(x.shape[2 + i] + 2 * padding[i] < size[i] for i in (0, 1)) or x.numel() // max(1, x.shape[1]) < 1 + training:
        raise ShapeError(explain("bn_relu_max_pool", f"input of shape {tuple(x.shape)}", f"(batch, channels, height, width) with room for "
                                 f"{size} and two or more values per channel"))


class _NormPool(torch.autograd.Function):
    """Keeps the convolution's output, float32 mean and rstd, and the place of each maximum, or that ReLU cut it off, as a byte."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, backend: str, settings: tuple[Any, ...]) -> Tensor:
        x = channels_last(x)
        out, code, mean, rstd = run("bn_relu_max_pool", backend, "normpool", "forward", x, weight, bias, *settings)
        ctx.save_for_backward(code, x, mean, rstd, weight)
        ctx.backend, ctx.window, ctx.bias_dtype = backend, settings[-1], None if bias is None else bias.dtype
        return cast(Tensor, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs, weight = ctx.needs_input_grad, ctx.saved_tensors[4]
        passed = (channels_last(grad), *ctx.saved_tensors, ctx.window)
        dx, dweight, dbias = run("bn_relu_max_pool", ctx.backend, "normpool", "backward", *passed)
        return (dx if needs[0] else None, dweight.to(weight.dtype) if needs[1] else None, dbias.to(ctx.bias_dtype) if needs[2] else None,
                None, None)
