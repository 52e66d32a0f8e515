"""A network's first convolution with its ReLU and max-pooling as one op, for data that need no gradient themselves."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

from convolt.errors import ShapeError, explain
from convolt.kernels import reference
from convolt.kernels.memory import channels_last
from convolt.kernels.registry import choose, run

MOST_CHANNELS = 4
"""Of the input; with more, a convolution by matrix products is faster."""


def conv_relu_max_pool(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, padding: tuple[int, int] = (0, 0),
                       backend: str = "auto") -> Tensor:
    """`max_pool(relu(conv(x)))` for a 3 × 3 convolution with stride 1 and windows of 2 × 2, in one pass.

    The activation between is never in memory: only its maxima are, with one byte each that says where they were.
    The gradient of the weights takes a quarter of the arithmetic, because three of four values pass none back.

    Args:
        x: (N, C, H, W), float32 or bfloat16 for the kernel; channels-last memory, else it is copied.
        weight: (F, C, 3, 3). For the kernel C is at most 4.
        bias: (F,), or None. Products, sums and bias are float32 in the kernel, whatever the type of x.
        padding: zeros added above and below, left and right.
        backend: "auto", "reference" or "numba" (CPU).

    Returns:
        (N, F, H_out // 2, W_out // 2) of x's type, where H_out = H + 2 · padding - 2. NaN in a window gives NaN.

    Raises:
        ShapeError: the shapes do not fit each other, or no window fits.
    If x needs a gradient, or has more channels, plain PyTorch does the work. PyTorch counterpart:
    `F.max_pool2d(F.relu(F.conv2d(x, weight, bias, padding=padding)), 2)`.
    """
    up, left = int(padding[0]), int(padding[1])
    _check(x, weight, bias, (up, left))
    chosen = choose("conv_relu_max_pool", x, backend)
    differentiate = torch.is_grad_enabled()
    if chosen == "reference" or x.numel() == 0 or x.shape[1] > MOST_CHANNELS or (differentiate and x.requires_grad):
        return reference.conv_relu_max_pool(x, weight, bias, padding=(up, left))
    padded = channels_last(F.pad(x, (left, left, up, up)) if up or left else x)
    if differentiate and (weight.requires_grad or (bias is not None and bias.requires_grad)):
        return cast(Tensor, _Conv.apply(padded, weight, bias, chosen))  # type: ignore[no-untyped-call]
    return cast(Tensor, run("conv_relu_max_pool", chosen, "conv", "forward", padded, weight, bias, False)[0])


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> None:
    if x.ndim != 4 or min(x.shape[2] + 2 * padding[0], x.shape[3] + 2 * padding[1]) < 4 or min(padding) < 0:
        raise ShapeError(explain("conv_relu_max_pool", f"input of shape {tuple(x.shape)}",
                                 "(batch, channels, height, width), with padding at least 4 × 4"))
    if weight.ndim != 4 or weight.shape[1:] != (x.shape[1], 3, 3):
        raise ShapeError(explain("conv_relu_max_pool", f"weights {tuple(weight.shape)} for x {tuple(x.shape)}",
                                 f"(filters, {x.shape[1]}, 3, 3)"))
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(explain("conv_relu_max_pool", f"a bias {tuple(bias.shape)} for weights {tuple(weight.shape)}",
                                 "one value per filter"))


class _Conv(torch.autograd.Function):
    """Keeps the input and one byte for each output: the place of the maximum, or that ReLU cut it off."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
        out, code = run("conv_relu_max_pool", backend, "conv", "forward", x, weight, bias, True)
        ctx.save_for_backward(x, code)
        ctx.backend, ctx.dtypes = backend, (weight.dtype, None if bias is None else bias.dtype)
        return cast(Tensor, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, code = ctx.saved_tensors
        dweight, dbias = run("conv_relu_max_pool", ctx.backend, "conv", "backward", channels_last(grad), code, x)
        _, want_weight, want_bias, _ = ctx.needs_input_grad
        return None, dweight.to(ctx.dtypes[0]) if want_weight else None, dbias.to(ctx.dtypes[1]) if want_bias else None, None
