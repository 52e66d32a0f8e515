"""Embedding: a learned vector for each whole number."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from convolt import constraints, initializers, regularizers
from convolt.errors import DataError, explain
from convolt.layers.arguments import check_positive
from convolt.layers.base import Layer, registry
from convolt.layers.windows import label
from convolt.layout import Shape, tensor_from_array, to_inside, to_outside


@registry.register()
class Embedding(Layer):
    """Gives each whole number from 0 to `input_dim - 1` its learned vector.

    Args:
        input_dim: how many numbers there are.
        output_dim: size of a vector.
        embeddings_initializer, embeddings_regularizer, embeddings_constraint: of the vectors; names or objects.
        mask_zero: 0 is padding: the output carries a mask that is False there.
        weights: initial vectors, `(input_dim, output_dim)`.

    Shapes: (batch, steps) → (batch, steps, output_dim); any other axes too.

    Raises:
        DataError: a number is out of range (on a CPU; a GPU stops with an assertion of its own).
    Keras counterpart: `keras.layers.Embedding`; PyTorch's: `torch.nn.Embedding`.
    """

    weight: nn.Parameter
    input_dtype = "int64"

    def __init__(self, input_dim: int, output_dim: int, embeddings_initializer: Any = "uniform", embeddings_regularizer: Any = None,
                 embeddings_constraint: Any = None, mask_zero: bool = False, weights: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.input_dim = check_positive("Embedding", "input_dim", input_dim)
        self.output_dim = check_positive("Embedding", "output_dim", output_dim)
        self.embeddings_initializer = initializers.get(embeddings_initializer)
        self.embeddings_regularizer = regularizers.get(embeddings_regularizer)
        self.embeddings_constraint = constraints.get(embeddings_constraint)
        self.mask_zero = mask_zero
        self.supports_masking = mask_zero
        if weights is not None:
            self.ensure_built((None,))
            self.set_weights(weights if isinstance(weights, list) and len(weights) == 1 else [weights])

    def _arguments(self) -> dict[str, Any]:
        return {name: value for name, value in super()._arguments().items() if name != "weights"}  # a property of every layer

    @property
    def embeddings(self) -> Tensor:
        """The vectors, Keras's name for `weight`."""
        return self.weight

    def build(self, input_shape: Any = None) -> None:
        self.add_weight((self.input_dim, self.output_dim), self.embeddings_initializer, regularizer=self.embeddings_regularizer,
                        constraint=self.embeddings_constraint, name="weight")

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape, self.output_dim)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Tensor | None:
        """Returns where the numbers are not 0, if 0 is padding."""
        if not self.mask_zero:
            return None
        return (tensor_from_array(inputs) if isinstance(inputs, np.ndarray) else to_outside(inputs)) != 0

    def forward(self, inputs: Tensor) -> Tensor:
        numbers = to_outside(inputs).long()
        try:
            return to_inside(F.embedding(numbers, self.weight))
        except IndexError as error:
            found = f"numbers from {int(numbers.min())} to {int(numbers.max())}"
            raise DataError(explain(label(self), found, f"0 to {self.input_dim - 1}",
                                    "input_dim is the largest number plus one.")) from error
