"""EinsumDense: a dense layer over any axes, given by an equation."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convolt import activations, constraints, initializers, products, regularizers
from convolt.errors import ArgumentError, ShapeError, explain
from convolt.layers.base import Layer, registry
from convolt.layers.windows import label
from convolt.layout import Shape, to_inside, to_outside

FORM = re.compile(r"(\.\.\.)?([a-zA-Z]+)(\.\.\.)?,([a-zA-Z]+)->(\.\.\.)?([a-zA-Z]+)(\.\.\.)?")


@dataclass(frozen=True)
class Equation:
    """A parsed equation: letters of input, kernel and output, and where axes without a letter are ("left", "right" or "")."""

    given: str
    kernel: str
    result: str
    rest: str

    @classmethod
    def parse(cls, text: str) -> Equation:
        """Returns the parts of an equation such as "abc,cd->abd", "...x,xy->...y" or "ab...,bc->ac...".

        Raises:
            ArgumentError: it has another form, or a letter that comes from nowhere.
        """
        found = FORM.fullmatch(text) if isinstance(text, str) else None
        if found is None or (found[1], found[3]) != (found[5], found[7]) or (found[1] and found[3]):
            raise ArgumentError(explain("EinsumDense(equation)", repr(text), "'ab,bc->ac', '...ab,bc->...ac' or 'ab...,bc->ac...'"))
        parts = cls(found[2], found[4], found[6], "left" if found[1] else "right" if found[3] else "")
        stray = [c for c in parts.result if c not in parts.given + parts.kernel]
        stray += [c for c in parts.kernel if c not in parts.given + parts.result]
        if stray:
            raise ArgumentError(explain("EinsumDense(equation)", f"{text!r}, where {stray[0]!r} is once alone",
                                        "letters that come from the input or the kernel, and go on or are summed"))
        return parts

    @property
    def summed(self) -> int:
        """How many axes are summed where it is a product of matrices: the input's last ones and the kernel's first ones; else 0."""
        for count in range(1, len(self.kernel)):
            fits = self.given.endswith(self.kernel[:count]) and self.result == self.given[:-count] + self.kernel[count:]
            if fits and self.rest != "right":
                return count
        return 0


@registry.register()
class EinsumDense(Layer):
    """`activation(einsum(equation, x, kernel) + bias)`.

    Args:
        equation: axes of the input (batch first, features last, as the user sees them), of the kernel, and of the output;
            "..." stands for axes that stay as they are.
        output_shape: sizes of the output's axes but for the batch and "..."; None for a size that is the input's.
        activation: name or function; None is linear.
        bias_axes: letters of the output that have a bias; None for no bias.
        kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer, activity_regularizer: names or objects.
        kernel_constraint, bias_constraint: applied after each update; names or objects.

    Raises:
        ArgumentError: the equation has another form, or a bias axis is none of the output's.
        ShapeError: an input does not fit the equation.

    Keras counterpart: `keras.layers.EinsumDense`; PyTorch's: `torch.einsum`. The kernel is kept in the equation's order.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, equation: str, output_shape: int | Sequence[int | None], activation: Any = None, bias_axes: str | None = None,
                 kernel_initializer: Any = "glorot_uniform", bias_initializer: Any = "zeros", kernel_regularizer: Any = None,
                 bias_regularizer: Any = None, kernel_constraint: Any = None, bias_constraint: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._parts = Equation.parse(equation)
        self.equation = equation
        self.output_shape = (output_shape,) if isinstance(output_shape, int) else tuple(output_shape)
        if len(self.output_shape) != len(self._parts.result) - (self._parts.rest != "left"):
            raise ArgumentError(explain("EinsumDense(output_shape)", self.output_shape,
                                        f"one size for each letter of the output in {equation!r} but the batch's"))
        if bias_axes is not None and (not bias_axes or any(c not in self._parts.result for c in bias_axes)):
            raise ArgumentError(explain("EinsumDense(bias_axes)", repr(bias_axes), f"letters of the output {self._parts.result!r}"))
        self.bias_axes = bias_axes
        self.activation = activations.get(activation)
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)
        self.bias_constraint = constraints.get(bias_constraint)

    def _sizes(self, input_shape: Shape) -> tuple[dict[str, int | None], Shape]:
        """Returns the size for each letter, and the input's axes that have none."""
        parts, extra = self._parts, len(input_shape) - len(self._parts.given)
        if extra < 0 or (extra and not parts.rest):
            raise ShapeError(explain(label(self), f"input of shape {tuple(input_shape)}", f"axes as in {self.equation!r}"))
        own = input_shape[extra:] if parts.rest == "left" else input_shape[:len(parts.given)]
        rest = input_shape[:extra] if parts.rest == "left" else input_shape[len(parts.given):]
        sizes: dict[str, int | None] = dict(zip(parts.given, own, strict=True))
        letters = parts.result if parts.rest == "left" else parts.result[1:]
        for letter, size in zip(letters, self.output_shape, strict=True):
            if size is not None and sizes.get(letter) not in (None, size):
                raise ShapeError(explain(f"{label(self)}: axis {letter!r}", f"{sizes[letter]} from the input",
                                         f"{size}, as in output_shape"))
            sizes[letter] = sizes.get(letter) if size is None else size
        return sizes, tuple(rest)

    def build(self, input_shape: Shape) -> None:
        sizes, rest = self._sizes(input_shape)
        parts = self._parts
        shape = [sizes[letter] for letter in parts.kernel]
        if None in shape:
            raise ShapeError(explain(label(self), f"input of shape {tuple(input_shape)}",
                                     f"known sizes of the axes of the kernel, {parts.kernel!r} in {self.equation!r}"))
        initializer = copy.copy(self.kernel_initializer)
        if getattr(initializer, "input_axes", 0) is None:  # which axes make the fans is known here alone
            initializer.input_axes = [i for i, c in enumerate(parts.kernel) if c not in parts.result]  # type: ignore[attr-defined]
            initializer.output_axes = [i for i, c in enumerate(parts.kernel) if c in parts.result]  # type: ignore[attr-defined]
        self.add_weight([size or 0 for size in shape], initializer, regularizer=self.kernel_regularizer,
                        constraint=self.kernel_constraint, name="weight")
        if self.bias_axes is None:
            self.register_parameter("bias", None)
            return
        letters = parts.result[min(parts.result.index(c) for c in self.bias_axes):]
        bias = [sizes[c] if c in self.bias_axes else 1 for c in letters] + [1] * (len(rest) if parts.rest == "right" else 0)
        if None in bias:
            raise ShapeError(explain(f"{label(self)} (bias_axes)", repr(self.bias_axes), "axes of known size"))
        self.add_weight([size or 0 for size in bias], self.bias_initializer, regularizer=self.bias_regularizer,
                        constraint=self.bias_constraint, name="bias")

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        sizes, rest = self._sizes(input_shape)
        own = tuple(sizes[letter] for letter in self._parts.result)
        return (*rest, *own) if self._parts.rest == "left" else (*own, *rest)

    def forward(self, x: Tensor) -> Tensor:
        x = to_outside(x)
        y = self._as_product(x)
        y = torch.einsum(self.equation, x, self.weight) if y is None else y
        return self.activation(to_inside(y if self.bias is None else y + self.bias))

    def _as_product(self, x: Tensor) -> Tensor | None:
        """Returns the sums as a product of matrices where the equation is one and oneDNN is to do it (`products.by_onednn`)."""
        count = self._parts.summed
        if not count or not products.asked_for():
            return None
        y = products.matrix_product(x.flatten(-count), self.weight.flatten(0, count - 1).flatten(1))
        return None if y is None else y.view(*y.shape[:-1], *self.weight.shape[count:])
