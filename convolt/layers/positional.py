"""Positions for layers that see no order: learned and sinusoidal encodings, and the token that stands for a whole sequence."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from convolt import initializers
from convolt.errors import ArgumentError, ShapeError, explain
from convolt.layers.arguments import check_positive
from convolt.layers.base import Layer, registry
from convolt.layers.windows import label
from convolt.layout import Shape, to_inside, to_outside


def _check_steps(layer: Layer, input_shape: Shape) -> int:
    """Returns the number of features of (batch, …, steps, features)."""
    if len(input_shape) < 3 or input_shape[-1] is None:
        raise ShapeError(explain(label(layer), f"input of shape {tuple(input_shape)}", "(batch, steps, features) with known features"))
    return input_shape[-1]


@registry.register()
class PositionEmbedding(Layer):
    """A learned vector for each position: `x + PositionEmbedding(100)(x)`.

    Args:
        sequence_length: most steps.
        initializer: of the vectors; name or object.

    Call argument `start_index`: position of the first step.

    Shapes: (batch, …, steps, features), and the vectors are returned in that shape.

    Raises:
        ShapeError: a sequence is longer than `sequence_length`.
    Counterpart: `keras_hub.layers.PositionEmbedding`, which returns the vectors alone, too. Source: Gehring et al. 2017.
    """

    weight: nn.Parameter

    def __init__(self, sequence_length: int, initializer: Any = "glorot_uniform", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sequence_length = check_positive("PositionEmbedding", "sequence_length", sequence_length)
        self.initializer = initializers.get(initializer)

    def build(self, input_shape: Shape) -> None:
        self.add_weight((self.sequence_length, _check_steps(self, input_shape)), self.initializer, name="weight")

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def forward(self, x: Tensor, start_index: int = 0) -> Tensor:
        shape = to_outside(x).shape
        last = start_index + shape[-2]
        if start_index < 0 or last > self.sequence_length:
            raise ShapeError(explain(label(self), f"positions {start_index} to {last - 1}", f"0 to {self.sequence_length - 1}",
                                     f"Make the layer with sequence_length={last} or more."))
        weight = self.weight if torch.is_grad_enabled() else self.weight.detach()  # a view of a parameter else says that it needs one
        return to_inside(weight[start_index:last].expand(shape))


@registry.register()
class SinePositionEncoding(Layer):
    """Sines and cosines of each position, in waves from 2π to 2π · `max_wavelength`: `x + SinePositionEncoding()(x)`.

    Args:
        max_wavelength: of the slowest wave, over 2π.

    Call argument `start_index`: position of the first step.

    Shapes: (batch, …, steps, features), and the encoding is returned in that shape.
    Counterpart: `keras_hub.layers.SinePositionEncoding`. Source: Vaswani et al. 2017.
    """

    def __init__(self, max_wavelength: float = 10000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if isinstance(max_wavelength, bool) or not isinstance(max_wavelength, (int, float)) or not 0 < max_wavelength < math.inf:
            raise ArgumentError(explain("SinePositionEncoding(max_wavelength)", repr(max_wavelength), "a number above 0"))
        self.max_wavelength = max_wavelength

    def build(self, input_shape: Shape) -> None:
        _check_steps(self, input_shape)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def forward(self, x: Tensor, start_index: int = 0) -> Tensor:
        shape = to_outside(x).shape
        wide = torch.promote_types(x.dtype, torch.float32)
        feature = torch.arange(shape[-1], device=x.device)
        rate = self.max_wavelength ** (-(2 * (feature // 2)).to(wide) / shape[-1])
        angle = torch.arange(start_index, start_index + shape[-2], device=x.device, dtype=wide)[:, None] * rate
        return to_inside(torch.where(feature % 2 == 0, angle.sin(), angle.cos()).to(x.dtype).expand(shape))


@registry.register()
class ClassToken(Layer):
    """Puts a learned vector before the first step of each sequence; what a transformer makes of it stands for the whole.

    Args:
        initializer: of the vector; name or object.

    Shapes: (batch, steps, features) → (batch, steps + 1, features).
    Source: Devlin et al. 2018; Dosovitskiy et al. 2020 for pictures.
    """

    weight: nn.Parameter

    def __init__(self, initializer: Any = "zeros", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.initializer = initializers.get(initializer)

    def build(self, input_shape: Shape) -> None:
        features = _check_steps(self, input_shape)
        if len(input_shape) != 3:
            raise ShapeError(explain(label(self), f"input of shape {tuple(input_shape)}", "(batch, steps, features)"))
        self.add_weight((features,), self.initializer, name="weight")

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (input_shape[0], None if input_shape[1] is None else input_shape[1] + 1, input_shape[2])

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Returns the mask with the token counted."""
        return mask if mask is None else torch.nn.functional.pad(mask, (1, 0), value=True)

    def forward(self, x: Tensor) -> Tensor:
        y = to_outside(x)
        return to_inside(torch.cat([self.weight.to(y.dtype).expand(y.shape[0], 1, -1), y], dim=1))
