"""Convolution → bias → ReLU → max-pooling as one op whose backward pass skips what pooling has cut off.

Of a window of 2 × 2 results, pooling passes a gradient to one at most, and to none where ReLU gave zero. A library's
backward pass multiplies all those zeros; this one goes from window to window and takes a quarter of the arithmetic.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

from convolt.errors import ArgumentError, ShapeError, explain
from convolt.kernels import reference
from convolt.kernels.memory import channels_last
from convolt.kernels.pool_reference import DEAD
from convolt.kernels.registry import choose, run


def pooled_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, pool_size: tuple[int, int] = (2, 2), *,
                padding: tuple[int, int] = (0, 0), backend: str = "auto") -> Tensor:
    """`max_pool(relu(conv(x)))` for a convolution with stride 1, any window and any number of channels.

    Args:
        x: (N, C, H, W), float32 or bfloat16 for the kernel; channels-last memory, else it is copied.
        weight: (F, C, kh, kw).
        bias: (F,), or None.
        pool_size: height and width of the pooling windows, which do not overlap; at most 255 places.
        padding: zeros added above and below, left and right.
        backend: "auto", "reference" or "numba" (CPU).

    Returns:
        (N, F, H_out // height, W_out // width) of x's type, where H_out = H + 2 · padding - kh + 1.

    Raises:
        ShapeError: the shapes do not fit each other, or no window fits.
        ArgumentError: the pooling windows are impossible.
    PyTorch counterpart: `F.max_pool2d(F.relu(F.conv2d(x, weight, bias, padding=padding)), pool_size)`.
    """
    sides, pool = (int(padding[0]), int(padding[1])), (int(pool_size[0]), int(pool_size[1]))
    _check(x, weight, bias, pool, sides)
    chosen = choose("pooled_conv", x, backend)
    if chosen == "reference" or x.numel() == 0 or x.dtype == torch.float64:
        return reference.pooled_conv(x, weight, bias, pool, padding=sides)
    padded = channels_last(F.pad(x, (sides[1], sides[1], sides[0], sides[0])) if any(sides) else x)
    wanted = (x, weight) if bias is None else (x, weight, bias)
    if torch.is_grad_enabled() and any(t.requires_grad for t in wanted):
        return cast(Tensor, _PooledConv.apply(padded, weight, bias, pool, chosen))  # type: ignore[no-untyped-call]
    return cast(Tensor, run("pooled_conv", chosen, "pooled", "forward", padded, weight, bias, pool, False)[0])


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, pool: tuple[int, int], padding: tuple[int, int]) -> None:
    if min(pool) < 1 or pool[0] * pool[1] > DEAD:
        raise ArgumentError(explain("pooled_conv(pool_size)", pool, f"two numbers from 1 whose product is at most {DEAD}"))
    if x.ndim != 4 or weight.ndim != 4 or weight.shape[1] != x.shape[1] or min(padding) < 0:
        raise ShapeError(explain("pooled_conv", f"weights {tuple(weight.shape)} for x {tuple(x.shape)}",
                                 "(filters, channels, height, width) for (batch, channels, height, width)"))
    if any(x.shape[2 + i] + 2 * padding[i] - weight.shape[2 + i] + 1 < pool[i] for i in range(2)):
        raise ShapeError(explain("pooled_conv", f"input of shape {tuple(x.shape)}", f"room for one window of {pool} results"))
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(explain("pooled_conv", f"a bias {tuple(bias.shape)} for weights {tuple(weight.shape)}", "one value per filter"))


class _PooledConv(torch.autograd.Function):
    """Keeps the input, the weights, and one byte for each output: the place of the maximum, or that ReLU cut it off."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, pool: tuple[int, int], backend: str) -> Tensor:
        out, code = run("pooled_conv", backend, "pooled", "forward", x, weight, bias, pool, True)
        ctx.save_for_backward(x, weight, code)
        ctx.pool, ctx.backend, ctx.bias_dtype = pool, backend, None if bias is None else bias.dtype
        return cast(Tensor, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, code = ctx.saved_tensors
        want_x, want_weight, want_bias = ctx.needs_input_grad[:3]
        dx, dweight, dbias = run("pooled_conv", ctx.backend, "pooled", "backward", channels_last(grad), code, x, weight, ctx.pool,
                                 want_x, want_weight or want_bias)
        return (dx, dweight.to(weight.dtype) if want_weight else None, dbias.to(ctx.bias_dtype) if want_bias else None, None, None)
