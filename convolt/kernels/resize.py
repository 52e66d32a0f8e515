"""A picture in another size: Pillow's antialiased bilinear resize, and faster."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from convolt.errors import ArgumentError, ArgumentTypeError, ShapeError, explain
from convolt.kernels.registry import choose, run

MOST_CHANNELS = 4
"""Of the Numba version; the reference takes any number."""


def resize(x: Tensor, size: tuple[int, int], *, backend: str = "auto") -> Tensor:
    """Resizes one picture with a triangle filter that is as wide as the step between pixels when it shrinks (antialiasing).

    It runs on the calling thread alone, outside Python's lock: callers resize many pictures in threads of their own.

    Args:
        x: (H, W, C) uint8, contiguous.
        size: height and width of the result.
        backend: "auto", "reference" or "numba" (CPU).

    Returns:
        uint8 (*size, C): the values of Pillow's `image.resize((width, height), Image.Resampling.BILINEAR)` for pictures without
        transparency: to the last bit where Pillow resizes lines before columns, as before its version 13 it always did, else within 1.

    Raises:
        ArgumentTypeError: x is not uint8.
        ShapeError: x has not three axes, or is empty.
        ArgumentError: `size` is not two positive numbers.
    """
    if x.dtype != torch.uint8:
        raise ArgumentTypeError(explain("resize(x)", f"{x.dtype}", "uint8"))
    if x.ndim != 3 or x.numel() == 0:
        raise ShapeError(explain("resize(x)", f"shape {tuple(x.shape)}", "(height, width, channels)"))
    height, width = (int(side) for side in size)
    if height < 1 or width < 1:
        raise ArgumentError(explain("resize(size)", size, "(height, width), two whole numbers from 1"))
    chosen = "reference" if x.shape[2] > MOST_CHANNELS else choose("resize", x, backend)
    return cast(Tensor, run("resize", chosen, "resize", "picture", x.contiguous(), (height, width)))
