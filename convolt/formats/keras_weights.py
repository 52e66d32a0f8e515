"""Where Keras keeps each weight of a model: under which path in a file of Keras 3, and in which order in a legacy HDF5 file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convolt.configurable import snake_case
from convolt.errors import ConvoltError, ModelFileError, StateError, explain
from convolt.formats.keras_objects import AS_ACTIVATION, keras_name
from convolt.layers import SpectralNormalization
from convolt.layers.base import Layer
from convolt.models import Functional, Model, Sequential
from convolt.models.order import layers_in_order

PARTS: Mapping[str, Mapping[str, str]] = {
    "MultiHeadAttention": {"gate_dense": "_gate_dense"},
    "GroupQueryAttention": {f"{name}_dense": f"_{name}_dense" for name in ("query", "key", "value", "gate", "output")},
}
"""Class → what Keras calls an attribute that holds a layer inside, where the names differ."""

STEMS: Mapping[str, str] = dict.fromkeys(AS_ACTIVATION, "activation") | {"GroupQueryAttention": "grouped_query_attention"}
"""Class → what Keras calls its layers in a file, where that is not the class's name in snake_case."""

IN_CELL = frozenset({"LSTM", "GRU", "SimpleRNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"})
"""Layers whose own weights Keras keeps in a layer called `cell`."""


@dataclass(frozen=True)
class Leaf:
    """One weight of a layer.

    Attributes:
        path: in files of Keras 3, such as "cell/vars/0", from the layer that was asked.
        name: for people and for names in legacy files, such as "forward_layer/weight".
        view: of the weight's memory, in Keras's order of axes.
        trainable: whether training changes it.
    """

    path: str
    name: str
    view: Tensor
    trainable: bool


def _parts_of(layer: Layer) -> Iterator[tuple[str, nn.Module]]:
    """Yields the modules inside a layer; those of a list are called after their class and number, as in Keras."""
    for attribute, part in layer.named_children():
        if not isinstance(part, nn.ModuleList):
            yield attribute, part
            continue
        seen: Counter[str] = Counter()
        for inner in part:
            stem = snake_case(type(inner).__name__)
            yield f"{attribute}/{stem}_{seen[stem]}" if seen[stem] else f"{attribute}/{stem}", inner
            seen[stem] += 1


def leaves_of(layer: Layer, twice: bool = False) -> list[Leaf]:
    """Returns the weights of a layer or model in the order of Keras's `layer.weights`.

    With `twice`, a weight that files of Keras 3 hold under two paths is there for each of them.
    """
    if isinstance(layer, (Sequential, Functional)):
        return [replace(leaf, path=f"layers/{key}/{leaf.path}", name=f"{keras_name(part.name)}/{leaf.name}")
                for key, part in children_of(layer) for leaf in leaves_of(part, twice)]
    found = _own_leaves(layer)
    if isinstance(layer, SpectralNormalization):  # the wrapper and the layer inside both keep the kernel
        kernel, *rest = leaves_of(layer.layer, twice)
        vector = [replace(leaf, path="vars/1") for leaf in found]
        inside = [replace(leaf, path=f"layer/{leaf.path}", name=f"layer/{leaf.name}") for leaf in ([kernel, *rest] if twice else rest)]
        return [replace(kernel, path="vars/0", name=f"layer/{kernel.name}"), *vector, *inside]
    renamed = PARTS.get(type(layer).__name__, {})
    for attribute, part in _parts_of(layer):
        if isinstance(part, Layer):
            found += [replace(leaf, path=f"{renamed.get(attribute, attribute)}/{leaf.path}", name=f"{attribute}/{leaf.name}")
                      for leaf in leaves_of(part, twice)]
        elif any(True for _ in part.parameters()):
            raise ModelFileError(explain("a Keras file", f"the PyTorch module {attribute!r} in {layer.name!r}", "layers alone",
                                         "Save it as .safetensors."))
    return found


def children_of(model: Model) -> list[tuple[str, Layer]]:
    """Returns (name in files of Keras 3, layer) of a model, in Keras's order: classes in snake_case, counted."""
    counts: Counter[str] = Counter()
    found = []
    for layer in model.layers:
        stem = STEMS.get(type(layer).__name__, snake_case(type(layer).__name__))
        found.append((f"{stem}_{counts[stem]}" if counts[stem] else stem, layer))
        counts[stem] += 1
    return found


def _own_leaves(layer: Layer) -> list[Leaf]:
    """Returns the weights that the layer itself holds."""
    parts = {f"{name}." for name, _ in layer.named_children()}
    own = [(name, view) for name, view in layer.keras_weights() if not any(name.startswith(part) for part in parts)]
    folder = "cell/vars" if type(layer).__name__ in IN_CELL else "vars"
    return [Leaf(f"{folder}/{i}", name, view, _is_trained(layer, name)) for i, (name, view) in enumerate(own)]


def _is_trained(layer: nn.Module, name: str) -> bool:
    value = getattr(layer, name, None)
    return isinstance(value, nn.Parameter) and value.requires_grad


def legacy_order(layer: Layer) -> list[Leaf]:
    """Returns the weights of a layer in the order of legacy files: those that are trained first."""
    found = leaves_of(layer)
    return [leaf for leaf in found if leaf.trainable] + [leaf for leaf in found if not leaf.trainable]


def check_built(model: Any, what: str) -> None:
    """Raises `StateError` unless every layer has its weights."""
    if not all(getattr(module, "built", True) for module in model.modules()):
        raise StateError(explain(f"{what} of {model.name!r}", "a model that is not built", "a built model",
                                 "Call model.build((None, height, width, channels)) first, or fit it."))


def fits(leaf: Leaf, value: np.ndarray, thing: str) -> None:
    """Raises `ModelFileError` unless a value from a file has the weight's shape, numbers of its kind, and no NaN."""
    if tuple(value.shape) != tuple(leaf.view.shape):
        raise ModelFileError(explain(thing, f"shape {tuple(value.shape)}", f"{tuple(leaf.view.shape)}"))
    if leaf.view.is_floating_point() != (value.dtype.kind == "f"):
        raise ModelFileError(explain(thing, f"values of type {value.dtype}", f"{str(leaf.view.dtype).removeprefix('torch.')}"))
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ModelFileError(explain(thing, "values that are NaN or infinite", "finite weights"))


@torch.no_grad()
def fill(model: Model, values: Sequence[tuple[Leaf, np.ndarray]]) -> None:
    """Copies values into weights; every one was checked before."""
    for leaf, value in values:
        leaf.view.copy_(torch.from_numpy(np.array(value, order="C")))
    for module in model.modules():
        if isinstance(module, Layer):
            try:
                module.weights_were_set()
            except ConvoltError as error:
                raise ModelFileError(explain(f"weights of {module.name!r}", str(error), "weights that fit together")) from error


def as_array(leaf: Leaf) -> np.ndarray:
    """Returns a weight as an array in Keras's order of axes."""
    return np.array(leaf.view.detach().cpu().numpy(), order="C")


def layer_names(model: Model) -> Iterator[tuple[str, Layer | None]]:
    """Yields (name, layer) of a model for legacy files, inputs with None."""
    if isinstance(model, Functional):
        for i, part in enumerate(layers_in_order(model.inputs, model._output_structure)):
            yield (keras_name(part.name or f"input_{i}"), part if isinstance(part, Layer) else None)
    else:
        yield from ((keras_name(layer.name), layer) for layer in model.layers)
