"""Keras's operations on symbolic tensors (`x + 1`, `keras.ops.relu(x)`) as layers that Convolt has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from convolt import activations
from convolt.configurable import snake_case
from convolt.errors import ModelFileError, explain
from convolt.formats.guard import shorten
from convolt.formats.keras_objects import Source
from convolt.layers import Activation, Concatenate, Rescaling, registry
from convolt.layers.symbolic import SymbolicTensor

COMPARISONS = frozenset({"NotEqual", "Equal", "Any", "All", "LogicalAnd", "LogicalOr", "LogicalNot", "Cast"})
"""Operations by which Keras 3 writes how a mask comes about (`Embedding(mask_zero=True)`, `Masking`)."""

MERGES = frozenset({"Add", "Subtract", "Multiply", "Maximum", "Minimum"})
DIVISIONS = frozenset({"Divide", "TrueDivide"})


class Mask:
    """Stands for a mask that Keras wrote as operations. Convolt's tensors carry their masks, so that nothing is computed for it."""


def is_operation(spec: Mapping[str, Any]) -> bool:
    """Whether a layer of a configuration is an operation of `keras.ops` and no layer."""
    module, config = spec.get("module"), spec.get("config")
    if isinstance(module, str):
        return module.startswith(("keras.src.ops", "keras.ops"))
    known = spec.get("class_name") in MERGES | DIVISIONS | COMPARISONS | {"Negative", "Concatenate"}
    return known and isinstance(config, Mapping) and not {"dtype", "trainable"} & config.keys()  # a legacy file: layers have these


def run_operation(spec: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any], name: str, source: Source) -> Any:
    """Returns the symbolic result of an operation: that of the merging layer, `Rescaling` or `Activation` that does the same.

    Raises:
        ModelFileError: Convolt has no layer for it.
    """
    kind, config = str(spec.get("class_name")), dict(spec.get("config") or {})
    values = [*args, *kwargs.values()]
    if kind in COMPARISONS:
        return Mask()
    given = {key: value for key, value in config.items() if key != "name" and value is not None}
    tensors = [isinstance(value, SymbolicTensor) for value in values]
    if kind in MERGES and tensors == [True, True] and not given:
        return registry.find(kind)(name=name)(values)
    if kind in MERGES | DIVISIONS and len(values) == 2 and sum(tensors) == 1 and not given:
        scale_and_offset = _affine(kind, values[1 - tensors.index(True)], left=tensors[0])
        if scale_and_offset is not None:
            return Rescaling(*scale_and_offset, name=name)(values[tensors.index(True)])
    if kind == "Negative" and tensors == [True]:
        return Rescaling(-1.0, name=name)(values[0])
    if kind == "Concatenate" and len(args) == 1 and isinstance(args[0], list):
        return Concatenate(axis=config.get("axis", -1), name=name)(args[0])
    if tensors == [True] and not given and snake_case(kind) in activations.registry:
        return Activation(snake_case(kind), name=name)(values[0])
    raise ModelFileError(explain(f"{source.name}: operation {shorten(name)!r}", f"keras.ops {shorten(kind)}",
                                 "additions, products and the like of tensors and numbers, or activations",
                                 "In Keras, write it as a layer, and give that class: load_model(path, custom_objects={'Name': Class})."))


def _affine(kind: str, number: Any, left: bool) -> tuple[float, float] | None:
    """Returns (scale, offset) for an operation of a tensor and a number; `left`: the tensor comes first."""
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
        return None
    if kind == "Add":
        return 1.0, float(number)
    if kind == "Multiply":
        return float(number), 0.0
    if kind == "Subtract":
        return (1.0, -float(number)) if left else (-1.0, float(number))
    if kind in DIVISIONS and left and number != 0:
        return 1.0 / number, 0.0
    return None
