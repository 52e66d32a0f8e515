"""Bias → ReLU → max-pooling as one op: what follows a convolution in a classic network."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from convolt.errors import ArgumentError, ShapeError, explain
from convolt.kernels import pool_reference
from convolt.kernels.memory import channels_last
from convolt.kernels.registry import choose, run


def relu_max_pool(x: Tensor, pool_size: tuple[int, int] = (2, 2), *, backend: str = "auto") -> Tensor:
    """`max_pool(relu(x))` in one pass over memory, forward and backward.

    Args:
        x: (N, C, H, W), float32 or bfloat16 for the kernels (Triton's also float16); channels-last memory, else it is copied.
        pool_size: height and width of the windows, which do not overlap; what is left over at the lower and right border
            is dropped ("valid"). A window has at most 255 places.
        backend: "auto", "reference", "numba" (CPU) or "triton" (CUDA).

    Returns:
        (N, C, H // height, W // width), channels-last memory. NaN in a window gives NaN.

    Raises:
        ShapeError: x has not four axes, or the windows do not fit.
    PyTorch counterpart: `F.max_pool2d(F.relu(x), pool_size)`. Where equal values share a window, the first is taken, as there.
    """
    return _pool("relu_max_pool", x, None, pool_size, backend)


def bias_relu_max_pool(x: Tensor, bias: Tensor, pool_size: tuple[int, int] = (2, 2), *, backend: str = "auto") -> Tensor:
    """`max_pool(relu(x + bias))` in one pass: run the convolution without its bias and pass that here.

    The bias (C,), of any float type, is added in float32 to the maximum of each window, before the result is rounded:
    rounding never changes an order, so this is the same as adding it first. Otherwise as `relu_max_pool`.
    """
    if bias.shape != x.shape[1:2]:
        raise ShapeError(explain("bias_relu_max_pool", f"a bias {tuple(bias.shape)} for x {tuple(x.shape)}", "one value per channel"))
    return _pool("bias_relu_max_pool", x, bias, pool_size, backend)


def _pool(name: str, x: Tensor, bias: Tensor | None, pool_size: tuple[int, int], backend: str) -> Tensor:
    pool = (int(pool_size[0]), int(pool_size[1]))
    if pool[0] < 1 or pool[1] < 1 or pool[0] * pool[1] > pool_reference.DEAD:
        raise ArgumentError(explain(name, f"pool_size={pool_size}", f"two numbers from 1 whose product is at most {pool_reference.DEAD}"))
    if x.ndim != 4 or x.shape[2] < pool[0] or x.shape[3] < pool[1]:
        raise ShapeError(explain(name, f"input of shape {tuple(x.shape)}", f"(batch, channels, height, width) with room for {pool}"))
    chosen = choose(name, x, backend)
    if chosen == "reference" or x.numel() == 0:
        return pool_reference.relu_max_pool(x, pool) if bias is None else pool_reference.bias_relu_max_pool(x, bias, pool)
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return cast(Tensor, _Pool.apply(x, bias, name, chosen, pool))  # type: ignore[no-untyped-call]
    return cast(Tensor, run(name, chosen, "pool", "forward", channels_last(x), bias, pool, False)[0])


class _Pool(torch.autograd.Function):
    """Keeps one byte for each output: the place of the maximum, or that ReLU cut it off."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, name: str, backend: str, pool: tuple[int, int]) -> Tensor:
        out, code = run(name, backend, "pool", "forward", channels_last(x), bias, pool, True)
        ctx.save_for_backward(code)
        ctx.name, ctx.backend, ctx.pool, ctx.size = name, backend, pool, tuple(x.shape[2:])
        ctx.bias_dtype = None if bias is None else bias.dtype
        return cast(Tensor, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (code,) = ctx.saved_tensors
        want_bias = ctx.needs_input_grad[1]
        dx, dbias = run(ctx.name, ctx.backend, "pool", "backward", channels_last(grad), code, ctx.pool, ctx.size, want_bias)
        return dx, dbias.to(ctx.bias_dtype) if want_bias else None, None, None, None
