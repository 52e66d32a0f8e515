"""Max-pooling alone, where no gradient is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from convolt.errors import ArgumentError, ShapeError, explain
from convolt.kernels import pool_reference
from convolt.kernels.jit import LANES
from convolt.kernels.memory import channels_last
from convolt.kernels.pool_reference import Window
from convolt.kernels.registry import choose, run


def max_pool(x: Tensor, pool_size: tuple[int, int] = (2, 2), strides: tuple[int, int] | None = None, padding: tuple[int, int] = (0, 0), *,
             ceil_mode: bool = False, backend: str = "auto") -> Tensor:
    """Returns the largest value of each window.

    Args:
        x: (N, C, H, W), float32 or bfloat16 for the kernel, and C a multiple of 16; channels-last memory, else it is copied.
        pool_size, strides, padding: vertical and horizontal; strides are the window's size by default, padding, which counts as no value,
            at most half of it.
        ceil_mode: whether there are windows that reach over the end.
        backend: "auto", "reference" or "numba" (CPU).

    Returns:
        (N, C, (H + 2 · padding - height) // stride + 1, …), in x's type; by the kernel in channels-last memory, and bfloat16 below 1.2e-38
        may be zero. NaN in a window gives NaN.

    Raises:
        ArgumentError: the window has no place, or more padding than half of it.
        ShapeError: x has not four axes, or is smaller than a window.
    Where a gradient is wanted the reference runs. PyTorch counterpart: `F.max_pool2d(x, pool_size, strides, padding, 1, ceil_mode)`.
    """
    window: Window = (*pool_size, *(strides or pool_size), *padding)
    if min(window[:4]) < 1 or any(not 0 <= 2 * border <= side for side, border in zip(pool_size, padding, strict=True)):
        raise ArgumentError(explain("max_pool", f"pool_size={pool_size}, strides={strides}, padding={padding}",
                                    "numbers from 1, and padding up to half of the window"))
    if x.ndim != 4 or min(places := windows(x.shape[2:], window, ceil_mode)) < 1:
        raise ShapeError(explain("max_pool", f"input of shape {tuple(x.shape)}",
                                 f"(batch, channels, height, width) with room for {tuple(pool_size)}"))
    chosen = choose("max_pool", x, backend)
    if chosen == "reference" or x.shape[1] % LANES or x.numel() == 0 or (x.requires_grad and torch.is_grad_enabled()):
        return pool_reference.max_pool(x, pool_size, strides, padding, ceil_mode=ceil_mode)
    return cast(Tensor, run("max_pool", chosen, "maxpool", "forward", channels_last(x), window, places, ceil_mode))


def windows(size: Sequence[int], window: Window, ceil_mode: bool) -> tuple[int, int]:
    """Returns how many windows there are down and across; with `ceil_mode` also those that begin before the end and reach over it."""
    counts = []
    for side, length, stride, border in zip(size, window[:2], window[2:4], window[4:], strict=True):
        room = side + 2 * border - length
        count = -(-room // stride) + 1 if ceil_mode else room // stride + 1
        counts.append(count - 1 if (count - 1) * stride >= side + border else count)
    return counts[0], counts[1]
