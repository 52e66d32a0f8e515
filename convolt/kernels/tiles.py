"""3 × 3 convolutions over many channels by tiles of 4 × 4 results, which take a quarter of the products (Winograd's algorithm)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from convolt.devices import multiplies_at_half_rate
from convolt.errors import ShapeError, explain
from convolt.kernels import reference
from convolt.kernels.jit import LANES
from convolt.kernels.memory import channels_last
from convolt.kernels.registry import choose, load, run

FEWEST_CHANNELS = 32  # below, the transforms cost more than the products that they save
FEWEST_TILES = 32
LEAST_SAVING = 2.0  # of products; where pictures do not fill their last tiles, less is saved than 4


def tiles_pay(shape: Sequence[int], filters: int, padding: tuple[int, int], training: bool = False) -> bool:
    """Whether a convolution of pictures (N, C, H, W) in float32 on this CPU is faster by tiles: a rule from measurements.

    In training PyTorch multiplies where filters are many, which is slow on some processors.
    """
    n, channels, *sizes = shape
    if training and multiplies_at_half_rate():
        module: Any = load("tiled_conv", "numba")
        if module is None or filters * channels > module.LARGEST_SUMS:
            return False
    out = [size + 2 * side - 2 for size, side in zip(sizes, padding, strict=True)]
    if min(channels, filters) < FEWEST_CHANNELS or channels % LANES or filters % LANES or min(out) < 1 or max(padding) > 2:
        return False
    rows, columns = (-(-size // 4) for size in out)
    return n * rows * columns >= FEWEST_TILES and 9 * out[0] * out[1] >= LEAST_SAVING * 36 * rows * columns


def tiled_filters(weight: Tensor, shape: tuple[int, ...], padding: tuple[int, int]) -> Callable[..., Tensor]:
    """Returns a function of (x, bias, residual, relu, pool) that convolves with fixed filters, transformed once.

    Args:
        weight: (F, C, 3, 3), float32, on the CPU, as `tiles_pay` takes it.
        shape: (N, C, H, W) of the pictures; N may be smaller in a call.
        padding: zeros above and below, left and right.
    """
    module: Any = load("tiled_conv", "numba")
    if module is not None:
        return cast("Callable[..., Tensor]", module.Filters(weight, shape, padding))

    def plain(x: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, relu: bool = False, pool: int = 1) -> Tensor:
        y = torch.conv2d(x, weight, bias, padding=padding)
        y = y if residual is None else y + residual
        y = y.relu() if relu else y
        return torch.max_pool2d(y, pool) if pool > 1 else y

    return plain


def tiled_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, padding: tuple[int, int] = (1, 1),
               backend: str = "auto") -> Tensor:
    """Convolution with windows of 3 × 3 and stride 1.

    Sums of 36 inputs are multiplied: rounding errors are up to thirty times those of the plain sum (3e-5 for results of
    size 1), and a value that is not finite spreads over its tile.

    Args:
        x: (N, C, H, W); bfloat16 is computed in float32. Channels-last memory, else it is copied.
        weight: (F, C, 3, 3); for the kernel F and C are multiples of 16.
        bias: (F,), or None.
        padding: zeros added above and below, left and right; at most 2.
        backend: "auto", "reference" or "numba" (CPU).

    Returns:
        (N, F, H + 2 · padding - 2, W + 2 · padding - 2).

    Raises:
        ShapeError: the shapes do not fit each other.
    PyTorch counterpart: `F.conv2d(x, weight, bias, padding=padding)`.
    """
    sides = (int(padding[0]), int(padding[1]))
    if x.ndim != 4 or weight.ndim != 4 or weight.shape[1] != x.shape[1] or tuple(weight.shape[2:]) != (3, 3) or not 0 <= min(sides) <= 2:
        raise ShapeError(explain("tiled_conv", f"weights {tuple(weight.shape)}, padding {sides} for x {tuple(x.shape)}",
                                 "(filters, channels, 3, 3), padding from 0 to 2 for (batch, channels, height, width)"))
    if min(x.shape[2] + 2 * sides[0], x.shape[3] + 2 * sides[1]) < 3:
        raise ShapeError(explain("tiled_conv", f"input of shape {tuple(x.shape)}", "room for one window of 3 × 3"))
    chosen = choose("tiled_conv", x, backend)
    odd = x.shape[1] % LANES or len(weight) % LANES
    if chosen == "reference" or x.numel() == 0 or max(sides) > 2 or x.dtype == torch.float64 or odd:
        return reference.tiled_conv(x, weight, bias, padding=sides)
    return cast(Tensor, _TiledConv.apply(channels_last(x), weight, bias, sides, chosen))  # type: ignore[no-untyped-call]


class _TiledConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int], backend: str) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.backend, ctx.bias_dtype = padding, backend, None if bias is None else bias.dtype
        given = (x.float(), weight.float(), None if bias is None else bias.float())
        return cast(Tensor, run("tiled_conv", backend, "tiles", "forward", *given, padding)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        want_x, want_weight, want_bias = ctx.needs_input_grad[:3]
        given = (channels_last(grad).float(), x.float(), weight.float())
        dx, dweight = run("tiled_conv", ctx.backend, "tiles", "backward", *given, ctx.padding, want_x, want_weight)
        dbias = given[0].sum((0, 2, 3)).to(ctx.bias_dtype) if want_bias else None
        return dx.to(x.dtype) if want_x else None, dweight.to(weight.dtype) if want_weight else None, dbias, None, None
