"""`Sequential`: a list of layers, each called on what the one before returned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

import torch
from torch import nn

from convolt.errors import ArgumentError, ArgumentTypeError, explain
from convolt.layers.base import Layer, registry
from convolt.layers.symbolic import Input, SymbolicTensor
from convolt.layout import Shape
from convolt.models.model import Model
from convolt.models.wrapped import TorchLayer


@registry.register()
class Sequential(Model):
    """A stack of layers.

    Args:
        layers: `Layer`s, `torch.nn.Module`s, or an `Input` in first place. With an `Input` (or `input_shape=` in the
            first layer) the parameters exist at once; without, they are made when the first data come.
        name: of the model.

    >>> from convolt import layers
    >>> model = Sequential([layers.Input((4,)), layers.Dense(3, activation="relu"), layers.Dense(2)])
    >>> model.output_shape
    (None, 2)

    Keras counterpart: `keras.Sequential`.
    """

    flexible_input = False

    def __init__(self, layers: Iterable[Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._input: SymbolicTensor | None = None
        self._stack: list[str] = []
        self._ends: tuple[list[str], SymbolicTensor, SymbolicTensor] | None = None
        self.output_shape: Shape | None = None
        for layer in layers or ():
            self.add(layer)

    @property
    def layers(self) -> list[Any]:
        """The layers, in order."""
        return [self._modules[name] for name in self._stack]

    @property
    def input_shapes(self) -> list[Shape]:
        """Shape of the input, batch first, channels last; empty while it is not known."""
        return [self.build_shapes[0]] if self.build_shapes else []

    def symbolic_ends(self) -> tuple[Any, Any] | None:
        """Returns the input and the output, for `input` and `output`; None while the shape of the input is not known."""
        if not self.build_shapes:
            return None
        if self._ends is None or self._ends[0] != self._stack:
            known = self._input
            start = x = Input(self.build_shapes[0][1:], dtype=self.input_dtypes[0]) if known is None else known
            for layer in self.layers:
                x = layer(x)
            self._ends = (list(self._stack), start, x)
        return self._ends[1:]

    @property
    def inputs(self) -> list[SymbolicTensor]:
        """The symbolic input, in a list."""
        return [self.input]

    @property
    def outputs(self) -> list[SymbolicTensor]:
        """The symbolic output, in a list."""
        return [self.output]

    @property
    def input_dtypes(self) -> list[str]:
        """Type of values that the input takes."""
        if self._input is not None:
            return [self._input.dtype]
        first = self.layers[0] if self._stack else None
        if isinstance(first, Model) and len(first.input_dtypes) == 1:
            return first.input_dtypes
        return [getattr(first, "input_dtype", "float32")] if self._stack else []

    @property
    def output_names(self) -> list[str]:
        """Name of the output: that of the last layer."""
        return self._stack[-1:]

    def add(self, layer: Any) -> None:
        """Adds a layer at the end.

        Raises:
            ArgumentError: an `Input` that is not in first place.
            ArgumentTypeError: not a layer; a class instead of an object, for example.
        """
        if isinstance(layer, SymbolicTensor) and layer.node is None:
            if self._stack or self._input is not None:
                raise ArgumentError(explain("Sequential", f"an Input in place {len(self._stack)}", "an Input in first place only"))
            self._input = layer
            self._set_input(layer.shape)
            return
        if not isinstance(layer, nn.Module):
            fix = f"Add an object: {layer.__name__}(...)." if isinstance(layer, type) else ""
            raise ArgumentTypeError(explain("Sequential", repr(layer), "a Layer or torch.nn.Module object", fix))
        if not isinstance(layer, Layer):
            layer = TorchLayer(layer)
        self._stack.append(self._adopt(layer))
        if self.build_shapes:
            self._extend(layer)
        elif layer.input_shape is not None and len(self._stack) == 1:
            self._set_input((None, *layer.input_shape))
        elif isinstance(layer, Model) and len(self._stack) == 1 and len(layer.input_shapes) == 1:
            self._set_input(layer.input_shapes[0])  # a model that knows what it takes, such as a backbone

    def pop(self) -> Any:
        """Removes and returns the last layer."""
        if not self._stack:
            raise ArgumentError(explain("Sequential.pop", "an empty model", "at least one layer"))
        layer = self._modules.pop(self._stack.pop())
        if self.build_shapes:
            self._set_input(self.build_shapes[0])
        return layer

    def _set_input(self, shape: Shape) -> None:
        """Fixes the input's shape and builds the layers that are there."""
        self.build_shapes = (tuple(shape),)
        self.output_shape = tuple(shape)
        self.built = True
        for layer in self.layers:
            self._extend(layer)

    def _extend(self, layer: Layer) -> None:
        layer.ensure_built(self.output_shape)
        self.output_shape = layer.compute_output_shape(self.output_shape)

    def build(self, input_shape: Shape | None = None) -> None:
        """Makes the parameters for inputs of this shape (batch first, channels last)."""
        if not self._stack:
            raise ArgumentError(explain(f"Sequential {self.name!r}", "no layers", "at least one"))
        if input_shape is not None:
            self._set_input(input_shape)

    def forward(self, x: torch.Tensor) -> Any:
        """Calls the layers in order."""
        for name in self._stack:
            x = self._modules[name](x)  # type: ignore[misc]
        return x

    def compute_output_shape(self, input_shape: Shape) -> Any:
        """Returns the output's shape for another input shape."""
        for layer in self.layers:
            input_shape = layer.compute_output_shape(input_shape)
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the input and the layers as JSON values."""
        layers = [{"class_name": type(layer).__name__, "config": layer.get_config()} for layer in self.layers]
        config: dict[str, Any] = {"name": self.name, "trainable": self._trainable, "layers": layers}
        if self.build_shapes:
            config["build_input_shape"] = list(self.build_shapes[0])
            config["input_dtype"] = self.input_dtypes[0] if self.input_dtypes else "float32"
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Makes the model from what `get_config` returned, with new weights."""
        model = cls(name=config["name"], trainable=config.get("trainable", True))
        if "build_input_shape" in config:
            model.add(SymbolicTensor(tuple(config["build_input_shape"]), dtype=config.get("input_dtype", "float32"), name="input"))
        for spec in config["layers"]:
            model.add(registry.make(spec, Layer))
        return model
