"""Samples of layers for the parity sweep: each module here exports `CASES: list[LayerCase]`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LayerCase:
    """One layer with one configuration on inputs of one shape.

    Attributes:
        layer: class name, in Convolt's registry and in `keras.layers`.
        kwargs: constructor's arguments, for both.
        shapes: of each input, channels last and with the batch.
        separate: whether several inputs are arguments of their own; else they are passed as a list.
        training: mode of the forward pass.
        tolerance: of outputs, and of gradients relative to their largest value.
        integers: inputs are whole numbers below this; None for floats.
        kinks: values that float inputs keep away from (their distance is at least 0.05).
        keras_kwargs: arguments for Keras, where they differ from `kwargs`.
        keras_layer: class name in `keras.layers`, where it differs from `layer`.
        reference: function of the inputs and the weights (arrays in Keras's order, channels last) that replaces
            Keras; `reference_reason` says why Keras cannot be the reference.
        make_keras: makes Keras's layer from the `keras` module, where arguments are layers.
        random: why outputs cannot be compared (random in training); shapes and configurations still are.
        no_gradcheck: why gradcheck does not apply.
    """

    layer: str
    kwargs: dict[str, Any]
    shapes: Sequence[Shape]
    training: bool = False
    tolerance: float = 1e-5
    integers: int | None = None
    kinks: tuple[float, ...] = (0.0,)
    keras_kwargs: dict[str, Any] | None = None
    keras_layer: str = ""
    reference: Callable[..., Tensor] | None = None
    reference_reason: str = ""
    make_keras: Callable[[Any], Any] | None = None
    separate: bool = False
    random: str = ""
    no_gradcheck: str = ""

    def __post_init__(self) -> None:
        assert (self.reference is None) == (not self.reference_reason), "a reference needs its reason"

    def __str__(self) -> str:
        arguments = ",".join(f"{k}={v}" for k, v in self.kwargs.items())
        shapes = "+".join("x".join(map(str, shape)) for shape in self.shapes)
        return f"{self.layer}({arguments})@{shapes}{'@training' if self.training else ''}".replace(" ", "")

    def inputs(self) -> list[Tensor]:
        """Returns channels-last float64 inputs without ties and away from kinks, the same at each call."""
        rng = np.random.default_rng(7)
        return [self._input(shape, rng) for shape in self.shapes]

    def _input(self, shape: Shape, rng: np.random.Generator) -> Tensor:
        size = int(np.prod(shape))
        if self.integers is not None:
            return torch.from_numpy(rng.integers(0, self.integers, size).reshape(shape))
        values = np.linspace(-2, 2, size) + rng.uniform(-0.1, 0.1) / size  # a grid: neighbours differ by 4 / size
        for kink in self.kinks:
            near = np.abs(values - kink) < 0.05
            values[near] = kink + np.linspace(0.05, 0.1, near.sum()) * np.where(values[near] < kink, -1, 1)
        return torch.from_numpy(rng.permutation(values).reshape(shape))

    def arguments(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Returns the inputs as the arguments of a call: one alone, several as a list or, if `separate`, each by itself."""
        return tuple(values) if self.separate else (values[0] if len(self.shapes) == 1 else list(values),)


def all_cases() -> Iterator[LayerCase]:
    """Yields the cases of every module in this folder."""
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
        cases = importlib.import_module(f"{__name__}.{module.name}").CASES
        assert cases, f"{module.name} has no case"
        yield from cases
