"""Sequential and functional models as Keras's configurations, and back; and the order in which Keras keeps a model's layers.

Keras writes who is called on what as `inbound_nodes` beside each layer: lists `[name, node, tensor, kwargs]` until Keras 2, mappings
with `args` and `kwargs` since Keras 3. Both are read; each is written where its readers are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convolt.errors import ConvoltError, ModelFileError, StateError, explain
from convolt.formats.guard import shorten
from convolt.formats.keras_objects import (
    Source,
    class_and_config,
    keras_name,
    layer_class,
    layer_from_keras,
    layer_to_keras,
    value_to_keras,
)
from convolt.formats.keras_ops import Mask, is_operation, run_operation
from convolt.layers.base import Layer, leaves
from convolt.layers.symbolic import Input, Node, SymbolicTensor, find_symbolic, map_structure
from convolt.models import Functional, Model, Sequential

NESTED = ("Functional", "Model", "Sequential")
"""Classes of models that can be layers of a model."""


# -- the order of layers -----------------------------------------------------------------------------------------------


def layers_in_order(model: Functional) -> list[SymbolicTensor | Layer]:
    """Returns inputs and layers in the order of Keras's `model.layers`: by depth below the outputs, then as first met from them.

    Weights in Keras's files go by this order. Keras counterpart: `keras.src.ops.function.map_graph`.
    """
    order, first_met = _walk_up(model)
    depths: dict[int, int] = {}
    operation_depth: dict[int, int] = {}
    for node in reversed(order):
        operation = _operation(node)
        depth = max(depths.get(id(node), 0), operation_depth.get(id(operation), 0))
        operation_depth[id(operation)] = depths[id(node)] = depth
        for tensor in _inputs_of(node):
            before = _maker(tensor)
            depths[id(before)] = max(depth + 1, depths.get(id(before), 0))
    operations = {id(_operation(node)): _operation(node) for node in order}
    for tensor in model.inputs:  # an input that no output needs
        if id(tensor) not in operations:
            operations[id(tensor)], operation_depth[id(tensor)], first_met[id(tensor)] = tensor, 0, -1
    return sorted(operations.values(), key=lambda o: (-operation_depth[id(o)], first_met[id(o)]))


def _walk_up(model: Functional) -> tuple[list[Any], dict[int, int]]:
    """Returns (calls and inputs, each after what it needs; when each layer was first met), going up from the outputs."""
    order: list[Any] = []
    first_met: dict[int, int] = {}
    finished: set[int] = set()
    stack: list[tuple[Any, bool]] = [(_maker(tensor), False) for tensor in reversed(_flat(model._output_structure))]
    while stack:
        node, ready = stack.pop()
        if id(node) in finished:
            continue
        if ready:
            finished.add(id(node))
            order.append(node)
            continue
        first_met.setdefault(id(_operation(node)), len(first_met))
        stack.append((node, True))
        stack += [(_maker(tensor), False) for tensor in reversed(_inputs_of(node))]
    return order, first_met


def _flat(values: Any) -> list[SymbolicTensor]:
    """Returns the tensors in nested structures, mappings by sorted keys as Keras goes through them."""
    if isinstance(values, Mapping):
        return [tensor for key in sorted(values) for tensor in _flat(values[key])]
    if isinstance(values, (list, tuple)):
        return [tensor for value in values for tensor in _flat(value)]
    return [values] if isinstance(values, SymbolicTensor) else []


def _maker(tensor: SymbolicTensor) -> Any:
    return tensor.node or tensor


def _operation(node: Any) -> Any:
    return node.layer if isinstance(node, Node) else node


def _inputs_of(node: Any) -> list[SymbolicTensor]:
    return _flat([node.args, node.kwargs]) if isinstance(node, Node) else []


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
    for part in layers_in_order(model):
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


# -- from Keras --------------------------------------------------------------------------------------------------------


def from_keras(spec: Any, source: Source) -> Model:
    """Returns the model that Keras's configuration describes, without weights.

    Raises:
        ModelFileError: it is damaged, or a layer is not Convolt's; the layer is named.
    """
    kind, config = class_and_config(spec, f"{source.name}: the model")
    cls = layer_class(spec, kind, f"{source.name}: the model", source)
    if cls is not None:
        model = layer_from_keras(spec, source)
        if not isinstance(model, Model):
            raise ModelFileError(explain(source.name, f"a {shorten(kind)}", "a model"))
        return model
    layers = config.get("layers")
    if not isinstance(layers, list) or not all(isinstance(layer, Mapping) for layer in layers):
        raise ModelFileError(explain(f"{source.name}: the model", "a configuration without layers", "a list of layers"))
    try:
        return _sequential(config, source) if kind == "Sequential" else _Graph(config, source).model()
    except ModelFileError:
        raise
    except (ConvoltError, KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        got = str(error) if isinstance(error, ConvoltError) else f"{type(error).__name__}: {error}"
        raise ModelFileError(explain(f"{source.name}: the model {shorten(str(config.get('name', kind)))!r}", shorten(got, 300),
                                     "a model that Convolt can make")) from error


def _input(config: Mapping[str, Any]) -> SymbolicTensor:
    shape = config.get("batch_shape") or config.get("batch_input_shape")
    if shape is None and config.get("shape") is not None:
        shape = [None, *config["shape"]]
    dtype = config.get("dtype") or "float32"
    name = config.get("name")
    return Input(batch_shape=shape, dtype=dtype if isinstance(dtype, str) else "float32", name=None if name is None else str(name))


def _sequential(config: Mapping[str, Any], source: Source) -> Sequential:
    name = config.get("name")
    model = Sequential(name=None if name is None else str(name))
    specs = list(config["layers"])
    shape = config.get("build_input_shape")
    if specs and specs[0].get("class_name") == "InputLayer":
        model.add(_input(specs.pop(0)["config"]))
    elif specs and (first := specs[0]["config"].get("batch_input_shape")):
        dtype = specs[0]["config"].get("dtype")
        model.add(Input(batch_shape=first, dtype=dtype if isinstance(dtype, str) and "int" in dtype else "float32"))
    elif shape:
        model.add(Input(batch_shape=shape))
    for spec in specs:
        if spec.get("class_name") == "InputLayer":
            raise ModelFileError(explain(f"{source.name}: the model {model.name!r}", "a second InputLayer", "one, in first place"))
        model.add(layer_from_keras(spec, source))
    if config.get("trainable") is False:
        model.trainable = False
    return model


class _Graph:
    """A functional configuration while it is read: its layers by name, and what each call of each of them returned."""

    def __init__(self, config: Mapping[str, Any], source: Source) -> None:
        self.config, self.source = config, source
        self.thing = f"{source.name}: the model {shorten(str(config.get('name', 'functional')))!r}"
        self.entries: dict[str, Mapping[str, Any]] = {}
        for spec in config["layers"]:
            name = str(spec.get("name") or spec["config"]["name"])
            if name in self.entries:
                raise ModelFileError(explain(self.thing, f"two layers called {shorten(name)!r}", "a name of its own for each layer"))
            self.entries[name] = spec
        self.layers: dict[str, Any] = {}
        self.results: dict[str, list[Any]] = {}
        self.nodes = {name: [self._node(name, node) for node in spec.get("inbound_nodes", [])] for name, spec in self.entries.items()}
        self.old = any(isinstance(node, list) for spec in self.entries.values() for node in spec.get("inbound_nodes", []))
        self.first_node = {name: self._first_node(name) for name in self.entries}

    def _node(self, name: str, node: Any) -> tuple[Any, dict[str, Any]]:
        """Returns (args, kwargs) of a call, with references to tensors as `_Reference`."""
        if isinstance(node, Mapping):
            return self._decode(node.get("args", [])), self._decode(node.get("kwargs", {}))
        if not isinstance(node, list) or not node:
            raise ModelFileError(explain(f"{self.thing}: calls of {shorten(name)!r}", shorten(repr(node)), "a list or a mapping"))
        node = [node] if isinstance(node[0], str) else node
        references = [_Reference(str(item[0]), int(item[1]), int(item[2])) for item in node]
        kwargs = node[0][3] if len(node[0]) > 3 else {}
        return [references if len(references) > 1 else references[0]], {k: self._old_value(v) for k, v in (kwargs or {}).items()}

    def _old_value(self, value: Any) -> Any:
        """Keras 2 wrote tensors among keyword arguments as `[name, node, tensor]`."""
        if isinstance(value, list) and len(value) == 3 and value[0] in self.entries:
            return _Reference(str(value[0]), int(value[1]), int(value[2]))
        return value

    def _decode(self, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("class_name") == "__keras_tensor__":
            name, node, index = value["config"]["keras_history"]
            return _Reference(str(name), int(node), int(index))
        if isinstance(value, Mapping):
            return {str(k): self._decode(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self._decode(v) for v in value]
        return value

    def _first_node(self, name: str) -> int:
        """Returns the number under which inputs name the first call of a layer: 1 for models inside a model in Keras 2, else 0."""
        nested = self.entries[name].get("class_name") in NESTED
        if not nested or not self.old or self.source.version.startswith("3"):
            return 0
        used = [ref.node for calls in self.nodes.values() for args, kwargs in calls for ref in _references([args, kwargs])
                if ref.name == name]
        used += [ref.node for ref in _references(self._tensors(self.config["output_layers"])) if ref.name == name]
        return 0 if 0 in used else 1

    def _tensors(self, value: Any) -> Any:
        """Returns `input_layers` or `output_layers` with references in the places of `[name, node, tensor]`."""
        if isinstance(value, list) and len(value) == 3 and isinstance(value[0], str):
            return _Reference(value[0], int(value[1]), int(value[2]))
        if isinstance(value, Mapping):
            return {str(k): self._tensors(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self._tensors(v) for v in value]
        raise ModelFileError(explain(self.thing, shorten(repr(value)), "[layer, node, tensor]"))

    def model(self) -> Functional:
        """Makes the layers, calls each as soon as its inputs are there, and returns the model."""
        for name, spec in self.entries.items():
            if spec.get("class_name") == "InputLayer":
                self.results[name] = [_input({**spec["config"], "name": name})]
            elif not is_operation(spec):
                self.layers[name] = layer_from_keras({**spec, "config": {"name": name, **spec["config"]}}, self.source)
        waiting = {name: list(calls) for name, calls in self.nodes.items() if calls}
        while waiting:
            before = sum(map(len, waiting.values()))
            for name in list(waiting):
                while waiting[name] and self._ready(waiting[name][0]):
                    self._call(name, waiting[name].pop(0))
                if not waiting[name]:
                    del waiting[name]
            if sum(map(len, waiting.values())) == before:
                raise ModelFileError(explain(self.thing, f"calls that wait for one another: {shorten(', '.join(waiting))}",
                                             "a graph from inputs to outputs"))
        inputs = map_structure(self._value, self._unwrapped(self._tensors(self.config["input_layers"])))
        outputs = map_structure(lambda ref: self._value(ref, output=True), self._unwrapped(self._tensors(self.config["output_layers"])))
        name = self.config.get("name")
        return Functional(inputs, outputs, name=None if name is None else str(name), trainable=self.config.get("trainable") is not False)

    def _unwrapped(self, value: Any) -> Any:
        """Keras 2 wrote a list of one where the model has one input or output."""
        return value[0] if self.old and isinstance(value, list) and len(value) == 1 else value

    def _ready(self, call: tuple[Any, Any]) -> bool:
        for ref in _references(call):
            if ref.name not in self.entries:
                raise ModelFileError(explain(self.thing, f"a call on {shorten(ref.name)!r}", "names of layers"))
            if len(self.results.get(ref.name, [])) <= ref.node - self.first_node[ref.name]:
                return False
        return True

    def _call(self, name: str, call: tuple[Any, dict[str, Any]]) -> None:
        args, kwargs = map_structure(self._value, call[0]), map_structure(self._value, call[1])
        spec = self.entries[name]
        if is_operation(spec):
            number = len(self.results.get(name, []))
            result = run_operation(spec, args, kwargs, f"{name}_{number}" if number else name, self.source)
        else:
            result = self._call_layer(name, args, kwargs)
        self.results.setdefault(name, []).append(result)

    def _call_layer(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        kwargs = {key: value for key, value in kwargs.items() if value is not None and not (key == "training" and value is False)}
        thing = f"{self.source.name}: call of layer {shorten(name)!r}"
        if kwargs.get("training"):
            raise ModelFileError(explain(thing, "training=True", "a layer that follows the model's mode",
                                         "Convolt has no call that trains always; leave the argument out in Keras."))
        kwargs = {key: value for key, value in kwargs.items() if not (key.endswith("mask") and isinstance(value, Mask))}
        if any(isinstance(value, Mask) for value in leaves([args, kwargs])):
            raise ModelFileError(explain(thing, "a comparison as input", "tensors", "Convolt has no layer that compares."))
        try:
            return self.layers[name](*args, **kwargs)
        except ConvoltError as error:
            raise ModelFileError(explain(thing, shorten(str(error), 300), "inputs that fit")) from error

    def _value(self, leaf: Any, output: bool = False) -> Any:
        """Returns the symbolic tensor that a reference means; other values pass."""
        if not isinstance(leaf, _Reference):
            return leaf
        if leaf.name not in self.entries:
            raise ModelFileError(explain(self.thing, f"the layer {shorten(leaf.name)!r} among inputs or outputs", "names of layers"))
        node = leaf.node - self.first_node[leaf.name]
        if output and leaf.node and not self.first_node[leaf.name] and self.entries[leaf.name].get("class_name") in ("Functional", "Model"):
            node -= 1  # Keras 3 counts from 1 for outputs alone
        results = self.results.get(leaf.name, [])
        if not 0 <= node < len(results):
            raise ModelFileError(explain(self.thing, f"output {leaf.node} of {shorten(leaf.name)!r}", f"one of its {len(results)} calls"))
        made = results[node]
        parts = list(made.values()) if isinstance(made, Mapping) else made if isinstance(made, (list, tuple)) else [made]
        if not 0 <= leaf.index < len(parts):
            raise ModelFileError(explain(self.thing, f"tensor {leaf.index} of {shorten(leaf.name)!r}", f"one of its {len(parts)}"))
        return parts[leaf.index]


class _Reference:
    """A tensor by the layer that makes it, the number of that layer's call, and its place among the call's results."""

    def __init__(self, name: str, node: int, index: int) -> None:
        self.name, self.node, self.index = name, node, index


def _references(values: Any) -> list[_Reference]:
    found: list[_Reference] = []
    map_structure(lambda leaf: found.append(leaf) if isinstance(leaf, _Reference) else None, values)
    return found
