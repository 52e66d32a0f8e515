"""Dense."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from convolt import activations, constraints, initializers, products, regularizers
from convolt.errors import ShapeError, explain
from convolt.layers.arguments import check_positive
from convolt.layers.base import Layer, registry
from convolt.layout import Shape, to_inside, to_outside


@registry.register()
class Dense(Layer):
    """`activation(x · W + b)` over the last axis (channels).

    Args:
        units: size of the output.
        activation: name or function; None is linear.
        use_bias: whether there is a bias.
        kernel_initializer, bias_initializer: names or objects.
        kernel_regularizer, bias_regularizer, activity_regularizer: names or objects.
        kernel_constraint, bias_constraint: applied after each update; names or objects.

    Shapes: (batch, …, features) → (batch, …, units).
    Keras counterpart: `keras.layers.Dense`; PyTorch's: `torch.nn.Linear` (`weight` is kept as `(units, features)`).
    """

    supports_masking = True
    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, units: int, activation: Any = None, use_bias: bool = True, kernel_initializer: Any = "glorot_uniform",
                 bias_initializer: Any = "zeros", kernel_regularizer: Any = None, bias_regularizer: Any = None,
                 kernel_constraint: Any = None, bias_constraint: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = check_positive("Dense", "units", units)
        self.activation = activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)
        self.bias_constraint = constraints.get(bias_constraint)

    def build(self, input_shape: Shape) -> None:
        features = input_shape[-1]
        if len(input_shape) < 2 or features is None:
            raise ShapeError(explain(f"Dense {self.name!r}", f"input of shape {input_shape}", "(batch, …, features) with known features"))
        self.add_weight((features, self.units), self.kernel_initializer, regularizer=self.kernel_regularizer,
                        constraint=self.kernel_constraint, name="weight", axes=(1, 0))
        if self.use_bias:
            self.add_weight((self.units,), self.bias_initializer, regularizer=self.bias_regularizer,
                            constraint=self.bias_constraint, name="bias")
        else:
            self.bias = None

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.units)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(to_inside(products.linear(to_outside(x), self.weight, self.bias)))
