"""Arrays of the user → tensors, whatever their strides, byte order or flags."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.errors import DataError, explain
from convolt.layout import tensor_from_array


def as_tensor(array: Any, name: str = "array") -> Tensor:
    """Returns an array, list or number as a tensor; shares memory with the array where that is possible.

    Floats of 64 bits become float32, the type of the computations; float16, bool, uint8 and the integers stay as they
    are (unsigned integers above 8 bits become int64, which PyTorch computes with). Negative strides, big-endian numbers
    and read-only memory, all three unknown to PyTorch, are copied. Tensors come back unchanged, but for float64.

    Raises:
        DataError: the values are not numbers, or rows differ in length.
    """
    if isinstance(array, Tensor):
        return array.float() if array.dtype == torch.float64 else array
    values = as_numbers(array, name)
    if values.dtype.kind == "f" and values.dtype.itemsize >= 8:
        values = values.astype(np.float32)
    elif values.dtype.kind == "u" and values.dtype.itemsize > 1:
        values = values.astype(np.int64)
    return tensor_from_array(values)


def as_numbers(array: Any, name: str = "array") -> np.ndarray:
    """Returns an array, a list or a number as a NumPy array of numbers.

    Raises:
        DataError: the values are not numbers, or rows differ in length.
    """
    try:
        values = np.asarray(array)
    except ValueError as error:  # NumPy's word for rows of several lengths
        raise DataError(_ragged(name)) from error
    if values.dtype == object:
        shapes = {np.shape(item) for item in values.flat}
        raise DataError(_ragged(name) if len(shapes) > 1 else explain(
            name, f"an array of Python objects ({type(values.flat[0]).__name__ if values.size else 'empty'})", "numbers",
            f"Convert it: np.stack({name}) for equal arrays, {name}.astype('float32') for numbers."))
    if values.dtype.kind not in "biuf":
        raise DataError(explain(name, f"values of type {values.dtype}", "numbers",
                                "Class names become numbers with np.unique(y, return_inverse=True)[1]."
                                if values.dtype.kind in "US" else ""))
    return values


def _ragged(name: str) -> str:
    return explain(name, "rows that differ in length (a ragged list)", "one shape for all samples",
                   "Resize the images, or pad the rows, to one shape.")
