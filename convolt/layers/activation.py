"""Activations as layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from convolt import activations, constraints, initializers, regularizers
from convolt.errors import ArgumentError, ShapeError, explain
from convolt.layers.base import Layer, registry
from convolt.layers.normalization import check_number
from convolt.layers.windows import label
from convolt.layout import Shape, inside_axis, to_inside

_KEEP_SHAPE = (activations.linear, activations.relu, activations.relu6, activations.leaky_relu, activations.elu, activations.gelu,
               activations.silu, activations.tanh, activations.sigmoid, activations.hard_sigmoid, activations.hard_silu)
"""The usual ones, whose output has the input's shape: a run on PyTorch's meta device for each is a good part of building a deep network."""
MASKED = -1e9
"""Logit of masked values; in half precision, -3e4."""


class _Elementwise(Layer):
    """An output of the input's shape."""

    supports_masking = True

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)


@registry.register()
class Activation(Layer):
    """Applies an activation function.

    Args:
        activation: name or function.

    Shapes: any; the output's is the input's (but for "glu", which halves the channels).
    Keras counterpart: `keras.layers.Activation`.
    """

    supports_masking = True

    def __init__(self, activation: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.activation = activations.get(activation)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        if self.activation in _KEEP_SHAPE:
            return tuple(input_shape)
        return super().compute_output_shape(input_shape)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x)


@registry.register()
class ReLU(_Elementwise):
    """`max(x, 0)` with the default arguments.

    Args:
        max_value: largest result; None for no limit.
        negative_slope: below the threshold the result is `negative_slope · (x - threshold)`.
        threshold: values up to it do not pass.

    Keras counterpart: `keras.layers.ReLU`.
    """

    def __init__(self, max_value: float | None = None, negative_slope: float = 0.0, threshold: float = 0.0,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_value = None if max_value is None else check_number("ReLU", "max_value", max_value, 0.0)
        self.negative_slope = check_number("ReLU", "negative_slope", negative_slope, 0.0)
        self.threshold = check_number("ReLU", "threshold", threshold, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return activations.relu(x, self.negative_slope, self.max_value, self.threshold)


@registry.register()
class LeakyReLU(_Elementwise):
    """`x` above zero and `negative_slope · x` below.

    Args:
        negative_slope: number from 0; 0.3 by default, as in Keras (PyTorch's default is 0.01).

    Keras counterpart: `keras.layers.LeakyReLU`.
    """

    def __init__(self, negative_slope: float = 0.3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.negative_slope = check_number("LeakyReLU", "negative_slope", negative_slope, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.negative_slope)


@registry.register()
class PReLU(_Elementwise):
    """`x` above zero and `weight · x` below, with a learned weight for each place and channel (He et al. 2015).

    Args:
        alpha_initializer, alpha_regularizer, alpha_constraint: of the weight; names or objects.
        shared_axes: along which one weight serves all places, counted with the batch: `[1, 2]` for one per channel of
            an image.

    Shapes: any with two axes or more, of known size where not shared; the output's is the input's. The weight is kept
    in the order that the user sees, channels last.
    Keras counterpart: `keras.layers.PReLU`; PyTorch's: `torch.nn.PReLU`.
    """

    weight: nn.Parameter

    def __init__(self, alpha_initializer: Any = "Zeros", alpha_regularizer: Any = None, alpha_constraint: Any = None,
                 shared_axes: int | Sequence[int] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.alpha_initializer = initializers.get(alpha_initializer)
        self.alpha_regularizer = regularizers.get(alpha_regularizer)
        self.alpha_constraint = constraints.get(alpha_constraint)
        axes = [shared_axes] if isinstance(shared_axes, int) else shared_axes
        self.shared_axes = None if axes is None else list(axes)

    def build(self, input_shape: Shape) -> None:
        shared = {a % len(input_shape) for a in self.shared_axes or () if inside_axis(a, len(input_shape)) != 0}
        if len(shared) != len(set(self.shared_axes or ())):
            raise ArgumentError(explain(f"{label(self)} (shared_axes)", self.shared_axes,
                                        "different axes, and not 0, which is the batch"))
        sizes = [1 if axis in shared else size for axis, size in enumerate(input_shape)][1:]
        known = [size for size in sizes if size is not None]
        if len(known) != len(sizes) or not sizes:
            raise ShapeError(explain(label(self), f"input of shape {tuple(input_shape)}",
                                     "known sizes of all axes that are not shared",
                                     "Share the axes of space: shared_axes=[1, 2]."))
        self.add_weight(known, self.alpha_initializer, regularizer=self.alpha_regularizer, constraint=self.alpha_constraint, name="weight")

    def forward(self, x: Tensor) -> Tensor:
        if math.prod(self.weight.shape[:-1]) == 1:
            return F.prelu(x, self.weight.flatten())
        return F.relu(x) - to_inside(self.weight.unsqueeze(0)) * F.relu(-x)


@registry.register()
class ELU(_Elementwise):
    """`x` above zero and `alpha · (exp(x) - 1)` below. Keras counterpart: `keras.layers.ELU`.

    Args:
        alpha: limit for large negative values, with its sign turned.
    """

    def __init__(self, alpha: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.alpha = check_number("ELU", "alpha", alpha, -math.inf)

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x, self.alpha)


@registry.register()
class SELU(_Elementwise):
    """`1.0507 · elu(x, 1.6733)`; use it with `lecun_normal`. Keras has it as `Activation("selu")`."""

    def forward(self, x: Tensor) -> Tensor:
        return F.selu(x)


@registry.register()
class GELU(_Elementwise):
    """`x · Φ(x)`. Keras has it as `Activation("gelu")`.

    Args:
        approximate: replace Φ by a formula with tanh.
    """

    def __init__(self, approximate: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return activations.gelu(x, self.approximate)


@registry.register()
class SiLU(_Elementwise):
    """`x · sigmoid(x)`, also called swish. Keras has it as `Activation("silu")`."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


@registry.register()
class Softmax(_Elementwise):
    """`exp(x) / Σ exp(x)` over one axis or several.

    Over the channel axis alone the result remembers `x` in its attribute `logits` (see `convolt.activations.softmax`).

    Args:
        axis: channels by default.

    Called with `mask` (broadcastable, in the order of the input's axes), values where it is False or up to 0.5 count as
    absent and get 0.

    Keras counterpart: `keras.layers.Softmax`.
    """

    takes_masks = False  # its `mask` is of values, not of steps

    def __init__(self, axis: int | Sequence[int] = -1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axis = axis if isinstance(axis, int) else tuple(axis)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return self._softmax(x)
        present = mask if mask.dtype == torch.bool else mask > 0.5
        lowest = -3e4 if x.dtype == torch.float16 else MASKED
        return self._softmax(torch.where(present, x, lowest)).masked_fill(~present, 0.0)

    def _softmax(self, x: Tensor) -> Tensor:
        axes = (self.axis,) if isinstance(self.axis, int) else self.axis
        if len(axes) == 1:
            return activations.softmax(x, axes[0])
        return torch.exp(x - torch.logsumexp(x, [inside_axis(a, x.ndim) for a in axes], keepdim=True))
