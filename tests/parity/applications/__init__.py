"""Samples of architectures for the sweep: each module here exports `CASES: list[Case]`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Case:
    """One architecture, what it is compared with, and what is known about it.

    Attributes:
        name: in `convolt.applications.names()`.
        parameters: with the default arguments, as published: where Keras has the architecture all weights (its `count_params()`),
            else the trainable ones (torchvision, or the paper's authors).
        fusions: rewrite → how often `convolt.compiler.fuse` does it with the default arguments.
        keras: name of the function in `keras.applications`; "" where Keras has none.
        torch: makes a module with PyTorch's published structure and names for (side, classes); None where there is none.
        also: modules of other publishers of the same weights, under their names.
        torch_parameters: of `torch` with 1000 classes, as published, where ours are other with `torch_arguments`; 0: not compared.
        torch_arguments: arguments that make ours equal to `torch`, such as stride variants.
        others: further values of `variant` → a module of PyTorch that ours equals under it.
        side: of the pictures of the tests.
        arguments: others, for ours and Keras.
        pixels: whether the inputs are 0 … 255 (models that rescale) rather than -1 … 1.
        slow: whether it is looked at in the slow tests only: too large for every run.
        tolerance: of outputs, relative to the largest.
        no_top: whether `include_top` has no meaning, or the features are of the size alone that the network was made for.
    """

    name: str
    parameters: int
    fusions: Mapping[str, int]
    keras: str = ""
    torch: Callable[[int, int], nn.Module] | None = None
    also: Sequence[Callable[[int, int], nn.Module]] = ()
    torch_parameters: int = 0
    torch_arguments: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Callable[[int, int], nn.Module]] = field(default_factory=dict)
    side: int = 32
    arguments: Mapping[str, Any] = field(default_factory=dict)
    pixels: bool = False
    slow: bool = False
    tolerance: float = 1e-4
    no_top: bool = False

    @property
    def publishers(self) -> list[Callable[[int, int], nn.Module]]:
        """Makers of all modules of PyTorch that ours is compared with."""
        return [] if self.torch is None else [self.torch, *self.also]

    def __str__(self) -> str:
        return self.name


def network_of_keras(keras: Any, case: Case, **arguments: Any) -> Any:
    """Returns Keras's network, whose layers are numbered from the beginning.

    `keras.applications.NASNetMobile` refuses the PyTorch backend; what it would call does not, and computes what it should.
    """
    keras.utils.clear_session()  # it counts layers of equal names in all models
    if case.keras != "NASNetMobile":
        return getattr(keras.applications, case.keras)(**arguments)
    from keras.src.applications.nasnet import NASNet

    return NASNet(penultimate_filters=1056, num_blocks=4, stem_block_filters=32, skip_reduction=False, filter_multiplier=2,
                  default_size=224, **{"name": case.name, **arguments})


def all_cases() -> Iterator[Case]:
    """Yields the cases of every module in this folder that has some."""
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
        if not module.name.startswith("torch_"):
            yield from importlib.import_module(f"{__name__}.{module.name}").CASES
