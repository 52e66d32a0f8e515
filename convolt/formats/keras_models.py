"""Sequential and functional models from Keras's configurations, of Keras 2 and of Keras 3 (see `convolt.formats.keras_graph`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convolt.errors import ConvoltError, ModelFileError, explain
from convolt.formats.guard import shorten
from convolt.formats.keras_objects import Source, class_and_config, layer_class, layer_from_keras
from convolt.formats.keras_ops import Mask, is_operation, run_operation
from convolt.layers.base import leaves
from convolt.layers.symbolic import Input, SymbolicTensor, map_structure
from convolt.models import Functional, Model, Sequential

NESTED = ("Functional", "Model", "Sequential")
"""Classes of models that can be layers of a model."""


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
    except Exception as error:  # constructors and shape rules of a hundred classes meet values that nobody thought of
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
        own_name = self.config.get("name")
        return Functional(inputs, outputs, name=None if own_name is None else str(own_name),
                          trainable=self.config.get("trainable") is not False)

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
