"""The one rule of memory layout.

A user writes and sees **channels-last** shapes, as in Keras: `(N, …, C)`. Inside, every tensor with three or more
axes has its channel axis at index 1, `(N, C, …)`, while its memory stays channels-last: that is what PyTorch's
convolutions want, and both directions are a `permute` that copies nothing.

Shape suffixes in the code: N batch, C channels, D/H/W space, L length, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.errors import ShapeError, explain

Shape = tuple[int | None, ...]
"""A shape as the user sees it: batch first (`None`: any), channels last."""


def to_inside(x: Tensor) -> Tensor:
    """Returns the channels-first view of a channels-last tensor: `(N, H, W, C)` → `(N, C, H, W)`."""
    if x.ndim == 4:  # in a third of the time
        return x.permute(0, 3, 1, 2)
    return x.movedim(-1, 1) if x.ndim > 2 else x


def to_outside(x: Tensor) -> Tensor:
    """Returns the channels-last view of a channels-first tensor: `(N, C, H, W)` → `(N, H, W, C)`."""
    if x.ndim == 4:
        return x.permute(0, 2, 3, 1)
    return x.movedim(1, -1) if x.ndim > 2 else x


def outside_shape(x: Tensor) -> tuple[int, ...]:
    """Returns the shape of an inside tensor as the user sees it."""
    return tuple(to_outside(x).shape)


def inside_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns a channels-last shape in the order of inside tensors."""
    return (shape[0], shape[-1], *shape[1:-1]) if len(shape) > 2 else tuple(shape)


def channel_axis(ndim: int) -> int:
    """Returns the index of the channel axis of an inside tensor with `ndim` axes."""
    return 1 if ndim > 1 else 0


def inside_axis(axis: int, ndim: int) -> int:
    """Returns where the user's axis (channels last; negative counts from the end) lies in an inside tensor.

    Raises:
        ShapeError: a tensor with `ndim` axes has no such axis.
    """
    if not -ndim <= axis < ndim:
        raise ShapeError(explain("axis", axis, f"{-ndim} to {ndim - 1} for an input with {ndim} axes"))
    outside = axis % ndim
    if ndim < 3 or outside == 0:
        return outside
    return 1 if outside == ndim - 1 else outside + 1


def channels_last_memory(x: Tensor) -> Tensor:
    """Returns `x` with channels-last memory; strides are set even where PyTorch finds the format ambiguous (C=1)."""
    if x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if x.ndim == 5:
        return x.contiguous(memory_format=torch.channels_last_3d)
    return x


def tensor_from_array(array: np.ndarray[Any, Any]) -> Tensor:
    """Returns a tensor with the array's values; memory is shared unless PyTorch cannot use it.

    Read-only, big-endian and reversed arrays (negative strides) are copied; gaps and any order of axes are not.
    """
    strides_fit = all(stride >= 0 and stride % array.itemsize == 0 for stride in array.strides)
    if array.flags.writeable and array.dtype.isnative and strides_fit:
        return torch.from_numpy(array)
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C", copy=True))
