"""Sequential and functional models as Keras's configurations.

Keras writes who is called on what as `inbound_nodes` beside each layer: lists `[name, node, tensor, kwargs]` until Keras 2, mappings
with `args` and `kwargs` since Keras 3. Each is written where its readers are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convolt.errors import ModelFileError, StateError, explain
from convolt.formats.keras_objects import keras_name, layer_to_keras, value_to_keras
from convolt.layers.base import Layer
from convolt.layers.symbolic import Node, SymbolicTensor, find_symbolic, map_structure
from convolt.models import Functional, Model, Sequential
from convolt.models.order import layers_in_order

# -- to Keras ----------------------------------------------------------------------------------------------------------


def to_keras(model: Model, legacy: bool = False) -> dict[str, Any]:
    """Returns class and configuration of a model for Keras.

    Args:
        model: `Sequential` or functional, built.
        legacy: for `.h5` files: calls as lists where a list can say them, which Keras 2 reads too.

    Raises:
        ModelFileError: the model is of another kind, or a layer cannot be written.
        StateError: its input shape is not known.
    """
    if isinstance(model, Sequential):
        return _sequential_to_keras(model, legacy)
    if isinstance(model, Functional):
        return _functional_to_keras(model, legacy)
    kind = type(model).__name__
    raise ModelFileError(explain("a Keras file", f"the model {model.name!r} of class {kind}", "a Sequential or functional model",
                                 "Save it as .safetensors, or its weights with save_weights."))


def _entry(layer: Layer, legacy: bool) -> dict[str, Any]:
    return to_keras(layer, legacy) if isinstance(layer, Model) else layer_to_keras(layer)


def _input_entry(shape: Sequence[int | None], dtype: str, name: str, legacy: bool) -> dict[str, Any]:
    key = "batch_input_shape" if legacy else "batch_shape"
    config = {key: list(shape), "dtype": dtype, "sparse": False, "ragged": False, "name": name}
    return {"module": "keras.layers", "class_name": "InputLayer", "config": config, "registered_name": None}


def _sequential_to_keras(model: Sequential, legacy: bool) -> dict[str, Any]:
    if not model.build_shapes:
        raise StateError(explain(f"save of {model.name!r}", "a model whose input shape is not known", "a built model",
                                 "Start it with Input(shape), call build((None, height, width, channels)), or fit it first."))
    shape = model.build_shapes[0]
    taken = {keras_name(layer.name) for layer in model.layers}
    name = next(n for i in range(len(taken) + 1) if (n := f"input_layer_{i}" if i else "input_layer") not in taken)
    entries = [_input_entry(shape, model.input_dtypes[0], name, legacy), *(_entry(layer, legacy) for layer in model.layers)]
    config = {"name": keras_name(model.name), "trainable": model.trainable, "layers": entries, "build_input_shape": list(shape)}
    return {"module": "keras", "class_name": "Sequential", "config": config, "registered_name": None}


def _functional_to_keras(model: Functional, legacy: bool) -> dict[str, Any]:
    names = {id(tensor): keras_name(tensor.name or f"input_{i}") for i, tensor in enumerate(model.inputs)}
    numbers: dict[int, tuple[Layer, int]] = {}
    calls: dict[int, list[Node]] = {}
    for call in model._calls:
        calls.setdefault(id(call.layer), []).append(call)
        numbers[id(call)] = (call.layer, len(calls[id(call.layer)]) - 1)

    def history(tensor: SymbolicTensor) -> list[Any]:
        if id(tensor) in names:
            return [names[id(tensor)], 0, 0]
        layer, number = numbers[id(tensor.node)]
        return [keras_name(layer.name), number, tensor.index or 0]

    def output(tensor: SymbolicTensor) -> list[Any]:
        name, number, index = history(tensor)
        nested = tensor.node is not None and isinstance(tensor.node.layer, Functional)  # Keras counts a first node of its own there
        return [name, number + nested, index]

    entries = []
    for part in layers_in_order(model.inputs, model._output_structure):
        if isinstance(part, SymbolicTensor):
            entry, nodes = _input_entry(part.shape, part.dtype, names[id(part)], legacy), []
        else:
            entry, nodes = _entry(part, legacy), [_call_to_keras(call, history, legacy) for call in calls[id(part)]]
        entries.append({**entry, "name": entry["config"]["name"], "inbound_nodes": nodes})
    config = {"name": keras_name(model.name), "trainable": model.trainable, "layers": entries,
              "input_layers": _structure(model._input_structure, history), "output_layers": _structure(model._output_structure, output)}
    if legacy:  # without a module, Keras finds the class by its name in every version
        return {"class_name": "Functional", "config": config}
    return {"module": "keras.src.models.functional", "class_name": "Functional", "config": config, "registered_name": "Functional"}


def _structure(values: Any, encode: Any) -> Any:
    return map_structure(lambda leaf: encode(leaf) if isinstance(leaf, SymbolicTensor) else leaf, values)


def _call_to_keras(call: Node, history: Any, legacy: bool) -> Any:
    thing = f"call of {call.layer.name!r}"
    if legacy and len(call.args) == 1 and not list(find_symbolic(call.kwargs)):
        first = call.args[0]
        tensors = [first] if isinstance(first, SymbolicTensor) else first
        several = isinstance(first, (list, tuple)) and len(first) > 1 and all(isinstance(t, SymbolicTensor) for t in first)
        if isinstance(first, SymbolicTensor) or several:
            return [[*history(t), value_to_keras(call.kwargs, thing)] for t in tensors]

    def encode(leaf: Any) -> Any:
        if not isinstance(leaf, SymbolicTensor):
            return value_to_keras(leaf, thing)
        config = {"shape": list(leaf.shape), "dtype": leaf.dtype, "keras_history": history(leaf)}
        return {"class_name": "__keras_tensor__", "config": config}

    return {"args": list(map_structure(encode, call.args)), "kwargs": map_structure(encode, call.kwargs)}
