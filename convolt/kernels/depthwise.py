"""A convolution of each channel by itself; from ten places in a window on, the weights' gradient has a kernel of its own on a CPU."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from convolt.errors import ShapeError, explain
from convolt.kernels import reference
from convolt.kernels.memory import channels_last
from convolt.kernels.registry import choose, run

FEWEST_CHANNELS = 16
"""That the kernel takes: those of a vector."""
LARGEST_OF_ONEDNN = 9
"""Places of a window up to which oneDNN's gradient of the weights is fast, which then does that work."""


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, strides: tuple[int, int] = (1, 1),
                   padding: tuple[int, int] = (0, 0), backend: str = "auto") -> Tensor:
    """`conv(x)` with one window for each channel.

    Args:
        x: (N, C, H, W), float32 or bfloat16 for the kernel; channels-last memory, else it is copied.
        weight: (C, 1, rows, columns).
        bias: (C,), or None.
        strides, padding: vertical and horizontal; zeros are added on both sides.
        backend: "auto", "reference" or "numba" (CPU; from 16 channels on).

    Returns:
        (N, C, H_out, W_out) of x's type. The kernel sums the weights' gradient in float32 over a few lines, in float64 over these; with
        nine places in a window or fewer it is oneDNN's.

    Raises:
        ShapeError: the shapes do not fit each other.
    PyTorch counterpart: `F.conv2d(x, weight, bias, strides, padding, groups=C)`, which computes all but that gradient.
    """
    _check(x, weight, bias, padding)
    chosen = choose("depthwise_conv", x, backend)
    if chosen == "reference" or x.numel() == 0 or x.shape[1] < FEWEST_CHANNELS or not (torch.is_grad_enabled() and weight.requires_grad):
        return reference.depthwise_conv(x, weight, bias, strides=strides, padding=padding)
    return cast(Tensor, _Depthwise.apply(x, weight, bias, chosen, strides, padding))  # type: ignore[no-untyped-call]


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> None:
    if weight.ndim != 4 or x.ndim != 4 or weight.shape[:2] != (x.shape[1], 1):
        raise ShapeError(explain("depthwise_conv", f"weights {tuple(weight.shape)} for x {tuple(x.shape)}",
                                 "(channels, 1, rows, columns) for (batch, channels, height, width)"))
    if any(side + 2 * border < window for side, border, window in zip(x.shape[2:], padding, weight.shape[2:], strict=True)):
        raise ShapeError(explain("depthwise_conv", f"input of shape {tuple(x.shape)}",
                                 f"with padding {padding} at least the window's {tuple(weight.shape[2:])}"))
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(explain("depthwise_conv", f"a bias {tuple(bias.shape)} for weights {tuple(weight.shape)}",
                                 "one value per channel"))


class _Depthwise(torch.autograd.Function):
    """Keeps the input and the weights in the input's type."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, backend: str, strides: tuple[int, int],
                padding: tuple[int, int]) -> Tensor:
        x = channels_last(x)
        cast_weight = weight.to(x.dtype)
        ctx.save_for_backward(x, cast_weight)
        ctx.backend, ctx.window = backend, (strides, padding)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        return reference.depthwise_conv(x, cast_weight, bias, strides=strides, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        strides, padding = ctx.window
        grad = channels_last(grad)
        want_x, want_weight, want_bias = ctx.needs_input_grad[:3]
        small = math.prod(weight.shape[2:]) <= LARGEST_OF_ONEDNN
        slow = x.dtype == torch.bfloat16 and strides != (1, 1)  # oneDNN has nothing fast for that (29 ms for what takes 0.7)
        dx, dweight = _gradients(grad, x, weight, strides, padding, (want_x and not slow, want_weight and small))
        if want_x and slow:
            dx = _gradients(grad.float(), x.float(), weight.float(), strides, padding, (True, False))[0]
        if want_weight and not small:
            dweight = run("depthwise_conv", ctx.backend, "depthwise", "weight_gradient", grad, x, tuple(weight.shape[2:]), strides, padding)
        dbias = grad.sum((0, 2, 3), dtype=torch.promote_types(grad.dtype, torch.float32)) if want_bias else None
        return (*(None if d is None else d.to(dtype) for d, dtype in zip((dx, dweight, dbias), (x.dtype, *ctx.dtypes), strict=True)),
                None, None, None)


def _gradients(grad: Tensor, x: Tensor, weight: Tensor, strides: tuple[int, int], padding: tuple[int, int],
               wanted: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
    """PyTorch's gradients of the input and of the weights, those that are wanted."""
    if not any(wanted):
        return None, None
    outputs = [*wanted, False]
    found = torch.ops.aten.convolution_backward(grad, x, weight, None, strides, padding, (1, 1), False, (0, 0), x.shape[1], outputs)
    return found[0], found[1]
