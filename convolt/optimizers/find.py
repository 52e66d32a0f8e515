"""How an optimizer is found: by name, class, configuration, or as it is."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch

from convolt.errors import ArgumentTypeError, explain
from convolt.optimizers.base import Optimizer, registry
from convolt.optimizers.torch_class import TorchOptimizer


def get(identifier: Any) -> Optimizer:
    """Returns an optimizer.

    Args:
        identifier: a name (`"adam"`), a class, a configuration `{"class_name", "config"}`, an `Optimizer`; or a class
            of `torch.optim`, bare or with arguments in a `functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)`.

    Raises:
        ArgumentError: the name is unknown; the nearest is named.
        ArgumentTypeError: `identifier` is none of these. An optimizer object of PyTorch is none: it already holds
            parameters, and Convolt groups them itself.
    """
    if isinstance(identifier, torch.optim.Optimizer):
        kind = type(identifier).__name__
        raise ArgumentTypeError(explain("optimizer", f"an object of torch.optim.{kind}", "its class",
                                        f"Give torch.optim.{kind}, or functools.partial(torch.optim.{kind}, lr=…)."))
    if isinstance(identifier, type) and issubclass(identifier, torch.optim.Optimizer):
        return TorchOptimizer(identifier)
    if isinstance(identifier, functools.partial):
        if identifier.args:
            raise ArgumentTypeError(explain("optimizer", f"a partial with positional arguments {identifier.args}",
                                            "keywords alone"))
        return TorchOptimizer(identifier.func, identifier.keywords)
    made: Optimizer = registry.make(identifier, Optimizer)
    return made


def serialize(optimizer: Optimizer) -> dict[str, Any]:
    """Returns `{"class_name", "config"}` of an optimizer."""
    return {"class_name": type(optimizer).__name__, "config": optimizer.get_config()}


def deserialize(config: Mapping[str, Any]) -> Optimizer:
    """Returns the optimizer that `serialize` described."""
    return get(config)
