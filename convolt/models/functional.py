"""Functional models: `Model(inputs, outputs)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor, fx

from convolt.errors import ArgumentError, ArgumentTypeError, explain
from convolt.layers.base import Layer, registry
from convolt.layers.symbolic import Input, SymbolicTensor, find_symbolic, map_structure
from convolt.layout import Shape
from convolt.models.graph import build_graph, calls_before, last_uses, output_shapes, run_graph
from convolt.models.model import Model
from convolt.models.order import layers_in_order


@registry.register()
class Functional(Model):
    """A model given by what goes in and what comes out; it is a `torch.fx` graph (`model.graph`).

    Args:
        inputs: `Input`, or a list or mapping of them.
        outputs: what layers returned when called on the inputs; one, or a list or mapping.
        name: of the model.

    Made by `convolt.Model(inputs, outputs)`. Keras counterpart: the functional API.
    """

    flexible_input = False

    def __init__(self, inputs: Any, outputs: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._input_structure = inputs
        self._output_structure = outputs
        self.inputs: list[SymbolicTensor] = list(find_symbolic(inputs))
        self.outputs: list[SymbolicTensor] = list(find_symbolic(outputs))
        for what, found in (("inputs", self.inputs), ("outputs", self.outputs)):
            if not found:
                got = inputs if what == "inputs" else outputs
                raise ArgumentTypeError(explain(f"Model({what})", type(got).__name__, "symbolic tensors",
                                                "Start with convolt.Input(shape)."))
        self._calls = calls_before(outputs, self.inputs)
        names = {id(layer): self._adopt(layer) for layer in dict.fromkeys(call.layer for call in self._calls)}
        self._keras_order = [names[id(part)] for part in layers_in_order(self.inputs, outputs) if isinstance(part, Layer)]
        self._graph = build_graph(self.inputs, outputs, self._calls, names)
        self._drop = last_uses(self._graph)
        self.built = True
        self.build_shapes = tuple(tensor.shape for tensor in self.inputs)
        if not self._trainable:
            self.trainable = False

    def __getstate__(self) -> dict[str, Any]:
        # What copies a model goes through all that a value needs. So the calls come first, each after those that it needs, or a network
        # of hundreds of layers would need a stack as deep.
        return {"_calls": self._calls, **self.__dict__}

    @property
    def graph(self) -> fx.Graph:
        """The model as a `torch.fx` graph of layer calls."""
        return self._graph

    @property
    def layers(self) -> list[Any]:
        """The layers in Keras's order, by depth, without those inside them; the state dict has them in the order of their calls."""
        return [self._modules[key] for key in self._keras_order]

    def keras_weights(self, prefix: str = "") -> list[tuple[str, Tensor]]:
        """Returns (path, view in Keras's order of axes) for each weight, in the order of Keras's `get_weights`."""
        found = ((f"{prefix}{key}.", layer) for key, layer in zip(self._keras_order, self.layers, strict=True))
        return [weight for start, layer in found for weight in layer.keras_weights(start)]

    @property
    def output_shape(self) -> Any:
        """Shape of the output, batch first, channels last; of several, in the structure that the constructor was given."""
        return map_structure(lambda tensor: tensor.shape, self._output_structure)

    def symbolic_ends(self) -> tuple[Any, Any]:
        """Returns the inputs and outputs, for `input` and `output`, as the constructor was given them."""
        return self._input_structure, self._output_structure

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs, by which `fit` addresses them in a mapping."""
        if isinstance(self._input_structure, Mapping):
            return list(self._input_structure)
        return [tensor.name or f"input_{i}" for i, tensor in enumerate(self.inputs)]

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs: the mapping's keys, or the names of the layers that make them."""
        if isinstance(self._output_structure, Mapping):
            return list(self._output_structure)
        names: list[str] = []
        for tensor in self.outputs:
            stem = tensor.node.layer.name if tensor.node else tensor.name or "input"
            count = sum(name == stem or name.startswith(f"{stem}_copy") for name in names)
            names.append(stem if count == 0 else f"{stem}_copy_{count}")
        return names

    @property
    def input_shapes(self) -> list[Shape]:
        """Shapes of the inputs, batch first, channels last."""
        return [tensor.shape for tensor in self.inputs]

    @property
    def input_dtypes(self) -> list[str]:
        """Types of values that the inputs take."""
        return [tensor.dtype for tensor in self.inputs]

    def forward(self, *inputs: Any) -> Any:
        """Runs the graph; several inputs may come as one list or mapping."""
        return run_graph(self._graph, self, self._flat_inputs(inputs), self._drop)

    def _flat_inputs(self, inputs: tuple[Any, ...]) -> Sequence[Any]:
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            missing = [name for name in self.input_names if name not in inputs[0]]
            if missing:
                raise ArgumentError(explain(f"inputs of {self.name!r}", list(inputs[0]), f"also {missing}"))
            return [inputs[0][name] for name in self.input_names]
        if len(inputs) == 1 and isinstance(inputs[0], (list, tuple)):
            inputs = tuple(inputs[0])
        if len(inputs) != len(self.inputs):
            raise ArgumentError(explain(f"inputs of {self.name!r}", f"{len(inputs)} tensors", f"{len(self.inputs)}: {self.input_names}"))
        return inputs

    def compute_output_shape(self, *input_shapes: Any) -> Any:
        """Returns the shape of each output for other input shapes."""
        if len(input_shapes) == 1 and isinstance(input_shapes[0], list):
            input_shapes = tuple(input_shapes[0])
        return output_shapes(self._graph, self, input_shapes)

    # -- configuration ---------------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Returns the inputs, the layers and who is called on what, as JSON values."""
        layers = list(dict.fromkeys(call.layer for call in self._calls))
        position = {id(layer): i for i, layer in enumerate(layers)}
        source: dict[int, int] = {id(tensor): i for i, tensor in enumerate(self.inputs)}
        source |= {id(call): len(self.inputs) + i for i, call in enumerate(self._calls)}

        def encode(leaf: Any) -> Any:
            if not isinstance(leaf, SymbolicTensor):
                return leaf
            key = id(leaf) if id(leaf) in source else id(leaf.node)
            return {"tensor": [source[key], leaf.index]}

        return {
            "name": self.name,
            "trainable": self._trainable,
            "inputs": [{"batch_shape": list(t.shape), "dtype": t.dtype, "name": t.name} for t in self.inputs],
            "input_keys": list(self._input_structure) if isinstance(self._input_structure, Mapping) else None,
            "layers": [{"class_name": type(layer).__name__, "config": layer.get_config()} for layer in layers],
            "calls": [{"layer": position[id(call.layer)], "args": list(map_structure(encode, call.args)),
                       "kwargs": map_structure(encode, call.kwargs)} for call in self._calls],
            "outputs": map_structure(encode, self._output_structure),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Makes the model from what `get_config` returned, with new weights."""
        tensors: list[Any] = [Input(**spec) for spec in config["inputs"]]
        layers: list[Layer] = [registry.make(spec, Layer) for spec in config["layers"]]
        starts = list(tensors)
        for call in config["calls"]:
            args, kwargs = _decode(call["args"], tensors), _decode(call["kwargs"], tensors)
            tensors.append(layers[call["layer"]](*args, **kwargs))
        keys = config.get("input_keys")
        inputs = dict(zip(keys, starts, strict=True)) if keys else starts[0] if len(starts) == 1 else starts
        return cls(inputs, _decode(config["outputs"], tensors), name=config["name"], trainable=config.get("trainable", True))


def _decode(value: Any, tensors: Sequence[Any]) -> Any:
    """Replaces `{"tensor": [source, index]}` by the symbolic tensor that it stands for."""
    if isinstance(value, Mapping) and set(value) == {"tensor"}:
        source, index = value["tensor"]
        return tensors[source] if index is None else tensors[source][index]
    if isinstance(value, Mapping):
        return {key: _decode(v, tensors) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_decode(v, tensors) for v in value]
    return value

