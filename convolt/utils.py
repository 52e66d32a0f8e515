"""Small helpers with Keras's names: one-hot labels, normalization, seeds, image folders."""

from __future__ import annotations

import random
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from convolt.data.image_batches import image_dataset_from_directory
from convolt.errors import ArgumentError, explain
from convolt.missing import explain_missing_names

__all__ = ["image_dataset_from_directory", "normalize", "set_random_seed", "to_categorical"]


@overload
def to_categorical(x: Tensor, num_classes: int | None = None) -> Tensor: ...
@overload
def to_categorical(x: Any, num_classes: int | None = None) -> np.ndarray: ...
def to_categorical(x: Any, num_classes: int | None = None) -> np.ndarray | Tensor:
    """Returns class numbers as one-hot rows.

    Args:
        x: whole numbers from 0, of any shape; a last axis of size one is dropped.
        num_classes: length of a row; the largest number plus one if None.

    Returns:
        float64 of shape (…, num_classes) for arrays and lists; float32 on the same device for a tensor.

    Raises:
        ArgumentError: a number is negative, not whole, or not below `num_classes`.

    Keras counterpart: `keras.utils.to_categorical` (there a negative number counts from the end).

    >>> to_categorical([0, 2], num_classes=3)
    array([[1., 0., 0.],
           [0., 0., 1.]])
    """
    labels = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
    if labels.dtype.kind not in "biuf" or not np.array_equal(labels, np.trunc(labels)):
        raise ArgumentError(explain("to_categorical(x)", f"{labels.dtype} values", "whole numbers"))
    numbers = labels.astype(np.int64)
    if numbers.ndim > 1 and numbers.shape[-1] == 1:
        numbers = numbers[..., 0]
    if numbers.size == 0 and not num_classes:
        raise ArgumentError(explain("to_categorical(x)", "no labels", "labels, or num_classes"))
    classes = int(num_classes) if num_classes else int(numbers.max()) + 1
    if numbers.size and (numbers.min() < 0 or numbers.max() >= classes):
        raise ArgumentError(explain("to_categorical(x)", f"labels from {numbers.min()} to {numbers.max()}",
                                    f"labels from 0 to {classes - 1}", "Pass a larger num_classes or correct the labels."))
    one_hot = np.zeros((*numbers.shape, classes))
    np.put_along_axis(one_hot, numbers[..., None], 1.0, axis=-1)
    return torch.from_numpy(one_hot.astype(np.float32)).to(x.device) if isinstance(x, Tensor) else one_hot


@overload
def normalize(x: Tensor, axis: int | None = -1, order: float = 2) -> Tensor: ...
@overload
def normalize(x: Any, axis: int | None = -1, order: float = 2) -> np.ndarray: ...
def normalize(x: Any, axis: int | None = -1, order: float = 2) -> np.ndarray | Tensor:
    """Returns `x` divided by its norm along an axis; where the norm is zero, zeros.

    Args:
        x: array or tensor.
        axis: the axis along which the norm is taken; None takes all values together.
        order: of the norm; 2 is the Euclidean.

    Returns:
        The same shape and kind as `x`, floating point.

    Keras counterpart: `keras.utils.normalize`.
    """
    if isinstance(x, Tensor):
        values = x if x.is_floating_point() else x.float()
        norm = torch.linalg.vector_norm(values, ord=order, dim=axis, keepdim=axis is not None)
        return values / torch.where(norm == 0, torch.ones_like(norm), norm)
    array = np.asarray(x)
    vectors = array.reshape(-1) if axis is None else array
    norms = np.linalg.norm(vectors, order, axis=-1 if axis is None else axis, keepdims=axis is not None)
    return np.asarray(array / np.where(norms == 0, 1, norms))


def set_random_seed(seed: int) -> None:
    """Seeds the generators of Python, NumPy and PyTorch, the latter on every device.

    Args:
        seed: a whole number from 0 to 2³² − 1.

    Raises:
        ArgumentError: it is not such a number.

    Keras counterpart: `keras.utils.set_random_seed`.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise ArgumentError(explain("seed", seed, "a whole number from 0 to 4294967295"))
    random.seed(int(seed))
    np.random.seed(int(seed))
    torch.manual_seed(int(seed))


explain_missing_names(__name__)
