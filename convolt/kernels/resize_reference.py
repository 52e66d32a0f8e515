"""Antialiased bilinear resizing in plain PyTorch, with the integers of Pillow's `Resample.c`."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

BITS = 22
"""Bits behind the binary point of a weight: 8 of a pixel and 22 of a weight leave two of an int32 for the sum."""


@functools.lru_cache(maxsize=256)
def triangle_weights(before: int, after: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns what each place of a resized line is made of.

    Args:
        before, after: pixels of a line.

    Returns:
        (first, count, weights): the first pixel of each place, the number of pixels, both int64 (after,), and their weights, int32
        (after, most pixels), in units of 2 ** -22, zero behind `count`.
    """
    scale = before / after
    wide = max(scale, 1.0)
    centre = (np.arange(after) + 0.5) * scale
    first = np.maximum((centre - wide + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + wide + 0.5).astype(np.int64), before) - first
    weights = np.zeros((after, math.ceil(wide) * 2 + 1))
    total = np.zeros(after)
    for tap in range(weights.shape[1]):  # one after the other, as Pillow adds them
        distance = np.abs((tap + first - centre + 0.5) * (1.0 / wide))
        weights[:, tap] = np.where((tap < count) & (distance < 1), 1 - distance, 0)
        total += weights[:, tap]
    fixed = (0.5 + weights / total[:, None] * (1 << BITS)).astype(np.int32)
    fixed[np.arange(fixed.shape[1]) >= count[:, None]] = 0
    return first, count, fixed


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """See `kernels.resize`; first along the lines, then along the columns, each rounded to uint8."""
    return _along(_along(x, 1, size[1]), 0, size[0])


def resize_picture(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The pass of `resize`."""
    return resize(x, size)


def _along(x: Tensor, axis: int, after: int) -> Tensor:
    first, _, weights = (torch.from_numpy(values).to(x.device) for values in triangle_weights(x.shape[axis], after))
    shape = [1, 1, 1]
    shape[axis] = after
    total = torch.full((), 1 << (BITS - 1), dtype=torch.int32, device=x.device)
    for tap in range(weights.shape[1]):
        pixels = x.index_select(axis, (first + tap).clamp(max=x.shape[axis] - 1)).to(torch.int32)
        total = total + pixels * weights[:, tap].view(shape)
    return (total >> BITS).clamp(0, 255).to(torch.uint8)
