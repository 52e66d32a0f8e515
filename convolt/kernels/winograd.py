"""3 × 3 convolutions by Winograd's algorithm, which takes 2.25 times fewer products, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from convolt.errors import ShapeError, explain
from convolt.kernels import reference
from convolt.kernels.memory import channels_last
from convolt.kernels.registry import choose, load, run

MULTIPLE = 32
"""Of which the numbers of channels and filters must be multiples."""


def winograd_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, padding: tuple[int, int] = (0, 0),
                  backend: str = "auto") -> Tensor:
    """`conv(x)` for windows of 3 × 3 and stride 1.

    Args:
        x: (N, C, H, W), float32 or bfloat16 for the kernel; channels-last memory, else it is copied.
        weight: (F, C, 3, 3). For the kernel C and F are multiples of 32, and the results an even number each way.
        bias: (F,), or None.
        padding: zeros added above and below, left and right.
        backend: "auto", "reference" or "numba" (CPU; for bfloat16 one with AVX-512-bf16).

    Returns:
        (N, F, H + 2 · padding - 2, W + 2 · padding - 2) of x's type. Sums are float32; in bfloat16 the sums of four inputs
        and the weights' are rounded before they are multiplied. A value that is not finite spreads over its tile of 2 × 2 results.

    Raises:
        ShapeError: the shapes do not fit each other.
    PyTorch counterpart: `F.conv2d(x, weight, bias, padding=padding)`. Source: Lavin & Gray 2016, F(2 × 2, 3 × 3).
    """
    return _convolve("winograd_conv", x, weight, bias, padding, False, False, backend)


def winograd_max_pool(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, padding: tuple[int, int] = (0, 0), relu: bool = True,
                      backend: str = "auto") -> Tensor:
    """`max_pool(relu(conv(x)))`, or without ReLU, for windows of 2 × 2, as `winograd_conv`, of which each tile is one window.

    The activation between is never in memory. Results that no window covers are not computed.
    PyTorch counterpart: `F.max_pool2d(F.relu(F.conv2d(x, weight, bias, padding=padding)), 2)`.
    """
    return _convolve("winograd_max_pool", x, weight, bias, padding, True, relu, backend)


def winograd_filters(weight: Tensor, bias: Tensor | None, *, padding: tuple[int, int], pool: bool, relu: bool,
                     dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Returns `winograd_conv`, or with `pool` `winograd_max_pool`, as a function of x for filters that stay, transformed once.

    Args:
        weight, bias, padding: as there.
        pool: whether results are pooled.
        relu: whether what is below zero is cut off, also where nothing is pooled.
        dtype: of the inputs, which `winograd_takes`.
    """
    module: Any = load("winograd_max_pool" if pool else "winograd_conv", "numba")
    transformed = module.filters(weight, dtype)
    shape = weight.new_empty(1).expand(weight.shape)  # all that is needed of the weights themselves, which need not be kept

    def convolve(x: Tensor) -> Tensor:
        return cast(Tensor, module.forward(channels_last(x), shape, bias, padding, pool, relu, False, transformed)[0])

    return convolve


def winograd_takes(x: Tensor, weight: Tensor, padding: tuple[int, int], pooled: bool) -> bool:
    """Whether the kernel takes such inputs."""
    even = pooled or (x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0)
    name = "winograd_max_pool" if pooled else "winograd_conv"
    if x.dtype == torch.bfloat16 and not torch.cpu.get_capabilities().get("avx512_bf16", False):
        return False
    return (x.ndim == 4 and even and weight.shape[0] % MULTIPLE == 0 and weight.shape[1] % MULTIPLE == 0 and max(padding) <= 3
            and choose(name, x) != "reference")


def _convolve(name: str, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int], pool: bool, relu: bool,
              backend: str) -> Tensor:
    sides = (int(padding[0]), int(padding[1]))
    _check(name, x, weight, bias, sides)
    chosen = choose(name, x, backend)
    if chosen == "reference" or x.numel() == 0 or not winograd_takes(x, weight, sides, pool):
        plain = reference.winograd_max_pool if pool else reference.winograd_conv
        return plain(x, weight, bias, padding=sides, **({"relu": relu} if pool else {}))
    settings = (sides, pool, relu)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return cast(Tensor, _Convolution.apply(x, weight, bias, name, chosen, settings))  # type: ignore[no-untyped-call]
    return cast(Tensor, run(name, chosen, "winograd", "forward", channels_last(x), weight, bias, *settings, False)[0])


def _check(name: str, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> None:
    if x.ndim != 4 or min(x.shape[2] + 2 * padding[0], x.shape[3] + 2 * padding[1]) < 4 or min(padding) < 0:
        raise ShapeError(explain(name, f"input of shape {tuple(x.shape)}", "(batch, channels, height, width), with padding at least 4 × 4"))
    if weight.ndim != 4 or weight.shape[1:] != (x.shape[1], 3, 3):
        raise ShapeError(explain(name, f"weights {tuple(weight.shape)} for x {tuple(x.shape)}", f"(filters, {x.shape[1]}, 3, 3)"))
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(explain(name, f"a bias {tuple(bias.shape)} for weights {tuple(weight.shape)}", "one value per filter"))


class _Convolution(torch.autograd.Function):
    """Keeps the input, the weights, and with pooling one byte for each output: the place of the maximum, or that ReLU cut it off."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, name: str, backend: str, settings: tuple[Any, ...]) -> Tensor:
        x = channels_last(x)
        out, code = run(name, backend, "winograd", "forward", x, weight, bias, *settings, True)
        ctx.save_for_backward(x, weight, code)
        ctx.name, ctx.backend, ctx.settings, ctx.bias_dtype = name, backend, settings, None if bias is None else bias.dtype
        return cast(Tensor, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, code = ctx.saved_tensors
        want_x, want_weight, want_bias = ctx.needs_input_grad[:3]
        given = (channels_last(grad), code, x, weight, ctx.settings[0], want_x, want_bias)
        dx, dweight, dbias = run(ctx.name, ctx.backend, "winograd", "backward", *given)
        return (dx, dweight.to(weight.dtype) if want_weight else None, dbias.to(ctx.bias_dtype) if want_bias else None, None, None, None)
