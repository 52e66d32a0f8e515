"""A learned factor for each channel."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from convolt import initializers
from convolt.errors import ShapeError, explain
from convolt.layers.base import Layer, registry
from convolt.layers.normalization import check_number
from convolt.layers.windows import label
from convolt.layout import Shape


@registry.register()
class LayerScale(Layer):
    """Multiplies each channel by a learned factor: `x + LayerScale(1e-6)(branch(x))` begins as `x`, so that deep networks can start.

    Args:
        init_values: what each factor begins with.

    Shapes: (batch, …, channels), unchanged.

    Raises:
        ShapeError: the number of channels is not known.
    Counterparts: the layer of this name in `keras.applications.convnext`, `timm.layers.LayerScale`. Source: Touvron et al. 2021.
    """

    supports_masking = True
    weight: nn.Parameter

    def __init__(self, init_values: float = 1e-6, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.init_values = check_number("LayerScale", "init_values", init_values, -math.inf)

    def build(self, input_shape: Shape) -> None:
        if len(input_shape) < 2 or input_shape[-1] is None:
            raise ShapeError(explain(label(self), f"input of shape {tuple(input_shape)}", "(batch, …, channels) with known channels"))
        self.add_weight((input_shape[-1],), initializers.Constant(self.init_values), name="weight")

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.view(-1, *[1] * (x.ndim - 2))
