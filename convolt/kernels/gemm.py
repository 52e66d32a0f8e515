"""Convolutions as products of matrices (im2col and GEMM) on a CPU, for the passes in which oneDNN's own are slow.

oneDNN multiplies a line of results at a time. Where lines are short, as in the last stages of a network, the processor's units for
matrices stay half empty; and its gradient of the weights is far below the rate of a product almost everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

from convolt.errors import ShapeError, explain
from convolt.kernels.memory import channels_last, empty_channels_last
from convolt.products import product

Pair = tuple[int, int]


class Passes(NamedTuple):
    """Which passes are products of matrices; the others are oneDNN's.

    Attributes:
        forward: the results.
        x, weight: their gradients.
    """

    forward: bool
    x: bool
    weight: bool


ALL = Passes(True, True, True)
PAYS_FORWARD = 8000.0
"""From so many channels · filters for a place of the results on, the results and the inputs' gradient are faster as products of patches.

Measured on two cores with AMX, over the shapes of ResNet-18, ResNet-50 and MobileNetV2 at batches of 8 to 128: 256 → 512 channels to
4 × 4 (8192) takes 0.6 of oneDNN's time in bfloat16 and 0.75 in float32, 512 → 512 at 7 × 7 (5350) 1.2 and 1.1.
"""
PAYS_WEIGHT = {torch.bfloat16: (100.0, 20.0), torch.float32: (1500.0, 40.0)}
"""The same for the weights' gradient, by type, for windows and for 1 × 1, whose patches are the input itself.

256 → 256 at 6 × 6 (1820) takes 0.3 of oneDNN's time in bfloat16 and 0.9 in float32, at 14 × 14 (334) 0.7 and 1.1; 960 → 160 by 1 × 1
at 3 × 3 (17067) 0.3 and 0.5.
"""
PAYS_SINGLE = 150.0
"""The same for the inputs' gradient by 1 × 1 in float32, which is one product of what is there already.

Measured with AVX2 on 16 pictures: 528 → 88 at 6 × 6 (1291) takes 0.8 of oneDNN's time, 264 → 88 at 12 × 12 (161) 0.95, 64 → 256 at
24 × 24 (28) 1.1.
"""


def gemm_passes(shape: Sequence[int], dtype: torch.dtype, weight: Sequence[int], strides: Pair, padding: Pair) -> Passes:
    """Returns which passes of a convolution are faster as products on this CPU: a rule from measurements.

    Args:
        shape: (N, C, H, W) of the input.
        dtype: of the computation.
        weight: (F, C, kh, kw).
        strides, padding: vertical and horizontal.
    """
    height, width = _outside(shape, weight, strides, padding)
    if dtype not in PAYS_WEIGHT or min(height, width) < 1:
        return Passes(False, False, False)
    weights_to_place = weight[0] * weight[1] / (height * width)
    windows, single = PAYS_WEIGHT[dtype]
    both, by_window = weights_to_place >= PAYS_FORWARD, weight[2] * weight[3] > 1
    plain = not by_window and tuple(strides) == (1, 1) and tuple(padding) == (0, 0) and dtype == torch.float32
    x = both or (plain and weights_to_place >= PAYS_SINGLE)
    return Passes(both, x, weights_to_place >= (windows if by_window else single))


def gemm_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, strides: Pair = (1, 1), padding: Pair = (0, 0),
              passes: Passes = ALL) -> Tensor:
    """`conv(x)` without holes and groups.

    Args:
        x: (N, C, H, W) of any type; channels-last memory, else it is copied.
        weight: (F, C, kh, kw).
        bias: (F,), or None.
        strides, padding: vertical and horizontal; zeros are added on both sides.
        passes: which are products of matrices.

    Returns:
        (N, F, H_out, W_out) of x's type, channels-last.

    Raises:
        ShapeError: the shapes do not fit each other.
    PyTorch counterpart: `F.conv2d(x, weight, bias, strides, padding)`. Source: Chellapilla et al. 2006.
    """
    if weight.ndim != 4 or x.ndim != 4 or weight.shape[1] != x.shape[1] or min(padding) < 0:
        raise ShapeError(explain("gemm_conv", f"weights {tuple(weight.shape)}, padding {padding} for x {tuple(x.shape)}",
                                 "(filters, channels, rows, columns), zeros or none, for (batch, channels, height, width)"))
    if any(side + 2 * border < window for side, border, window in zip(x.shape[2:], padding, weight.shape[2:], strict=True)):
        raise ShapeError(explain("gemm_conv", f"input of shape {tuple(x.shape)}",
                                 f"with padding {padding} at least the window's {tuple(weight.shape[2:])}"))
    return cast(Tensor, _GemmConv.apply(x, weight, bias, strides, padding, passes))  # type: ignore[no-untyped-call]


class _GemmConv(torch.autograd.Function):
    """Keeps the input and the weights in the input's type; patches are made anew in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, strides: Pair, padding: Pair, passes: Passes) -> Tensor:
        x, given = channels_last(x), weight.to(x.dtype)
        ctx.save_for_backward(x, given)
        ctx.window, ctx.passes = (strides, padding), passes
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        bias = None if bias is None else bias.to(x.dtype)
        if not passes.forward:
            return F.conv2d(x, given, bias, strides, padding)
        out = _outside(x.shape, given.shape, strides, padding)
        y = product(_patches(x, _of(given), strides, padding, out), _rows(given).t(), bias)
        return y.view(len(x), *out, len(given)).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        strides, padding = ctx.window
        want_x, want_weight, want_bias = ctx.needs_input_grad[:3]
        grad = channels_last(grad)
        dx = dweight = dbias = None
        others = [want_x and not ctx.passes.x, want_weight and not ctx.passes.weight, False]
        if any(others):
            dx, dweight, _ = torch.ops.aten.convolution_backward(grad, x, weight, None, strides, padding, (1, 1), False, (0, 0), 1, others)
        if want_x and ctx.passes.x:
            dx = input_gradient(grad, weight, x.shape, strides, padding)
        if want_weight and ctx.passes.weight:
            dweight = weight_gradient(grad, x, _of(weight), strides, padding)
        if want_bias:
            dbias = grad.sum((0, 2, 3), dtype=torch.promote_types(grad.dtype, torch.float32)).to(ctx.dtypes[1])
        return dx, None if dweight is None else dweight.to(ctx.dtypes[0]), dbias, None, None, None


def weight_gradient(grad: Tensor, x: Tensor, window: Pair, strides: Pair, padding: Pair) -> Tensor:
    """Returns the gradient (F, C, kh, kw) of the weights; `grad` and `x` have channels-last memory."""
    filters, channels = grad.shape[1], x.shape[1]
    flat = grad.permute(0, 2, 3, 1).reshape(grad.numel() // filters, filters)
    total = product(flat.t(), _patches(x, window, strides, padding, _of(grad)))
    return total.view(filters, *window, channels).permute(0, 3, 1, 2)


def input_gradient(grad: Tensor, weight: Tensor, shape: Sequence[int], strides: Pair, padding: Pair) -> Tensor:
    """Returns the gradient of an input of `shape`; `grad` has channels-last memory.

    The places of the input that are a stride apart see the same taps of the window: for each of these sets it is a convolution of
    `grad`, with stride 1, by these taps in reversed order. So nothing is added to what is already there, and nothing is rounded twice.
    """
    if _of(weight) == strides == (1, 1) and padding == (0, 0):
        found = product(grad.permute(0, 2, 3, 1).reshape(-1, grad.shape[1]), weight.view(len(weight), shape[1]))
        return found.view(len(grad), *_of(grad), shape[1]).permute(0, 3, 1, 2)
    dx = empty_channels_last(tuple(shape), grad.dtype, grad.device)
    for row in range(min(strides[0], shape[2])):
        for column in range(min(strides[1], shape[3])):
            part = dx[:, :, row :: strides[0], column :: strides[1]]
            first = [(row + padding[0]) % strides[0], (column + padding[1]) % strides[1]]
            taps = weight[:, :, first[0] :: strides[0], first[1] :: strides[1]].flip(2, 3)
            if not taps.numel():
                part.zero_()
                continue
            start = [(row + padding[0]) // strides[0], (column + padding[1]) // strides[1]]  # of the last tap's results
            above, left = (start[i] - taps.shape[2 + i] + 1 for i in range(2))
            below, right = (start[i] + part.shape[2 + i] - grad.shape[2 + i] for i in range(2))
            around = F.pad(grad.permute(0, 2, 3, 1), (0, 0, -left, right, -above, below)).permute(0, 3, 1, 2)
            patches = _patches(around, _of(taps), (1, 1), (0, 0), _of(part))
            found = product(patches, taps.permute(2, 3, 0, 1).reshape(patches.shape[1], shape[1]))
            found = found.view(len(grad), *_of(part), shape[1]).permute(0, 3, 1, 2)
            if strides == (1, 1):
                return found
            part.copy_(found)
    return dx


def _of(x: Tensor) -> Pair:
    """Returns height and width."""
    return x.shape[2], x.shape[3]


def _outside(shape: Sequence[int], weight: Sequence[int], strides: Pair, padding: Pair) -> Pair:
    """Returns height and width of the results."""
    height, width = ((shape[2 + i] + 2 * padding[i] - weight[2 + i]) // strides[i] + 1 for i in range(2))
    return height, width


def _rows(weight: Tensor) -> Tensor:
    """Returns the filters as (F, kh · kw · C): in the order of patches."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), weight[0].numel())


def _patches(x: Tensor, window: Pair, strides: Pair, padding: Pair, out: Pair) -> Tensor:
    """Returns what the window sees at each place, (N · H_out · W_out, kh · kw · C); a view where that is the input itself."""
    inside = x.permute(0, 2, 3, 1)
    if any(padding):
        inside = F.pad(inside, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    sample, down, right, each = inside.stride()
    shape = (len(x), *out, *window, x.shape[1])
    seen = inside.as_strided(shape, (sample, down * strides[0], right * strides[1], down, right, each), inside.storage_offset())
    return seen.reshape(len(x) * out[0] * out[1], window[0] * window[1] * x.shape[1])
