"""Masking: steps that hold one value in all features do not count."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.layers.base import Layer, registry
from convolt.layers.normalization import check_number
from convolt.layout import Shape, tensor_from_array, to_outside
from convolt.masks import attach


@registry.register()
class Masking(Layer):
    """Marks steps whose features all are `mask_value`, and sets them to zero; layers after it leave them out.

    Args:
        mask_value: of steps that are padding.

    Shapes: (batch, steps, …, features); the output's is the input's, its mask is (batch, steps, …).
    Keras counterpart: `keras.layers.Masking`.
    """

    def __init__(self, mask_value: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mask_value = check_number("Masking", "mask_value", mask_value, -float("inf"))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Tensor:
        """Returns which steps count; for an array, with its features last."""
        x = tensor_from_array(inputs) if isinstance(inputs, np.ndarray) else to_outside(inputs)
        return (x != self.mask_value).any(-1)

    def forward(self, x: Tensor) -> Tensor:
        axis = 1 if x.ndim > 1 else 0
        counted = (x != self.mask_value).any(axis, keepdim=True)
        return attach(torch.where(counted, x, 0.0), counted.squeeze(axis))
