"""`layer.input` and `layer.output`: the symbolic tensors of a layer's first call, from which Keras's programs make models of features."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from convolt.layers.symbolic import Node, SymbolicTensor, find_symbolic, map_structure

if TYPE_CHECKING:
    from convolt.layers.base import Layer


class End:
    """An attribute of layers that gives way to a part or value of the user's under the same name.

    Raises:
        AttributeError: the layer was called on no symbolic tensor of a model that still exists.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, layer: Layer | None, owner: type | None = None) -> Any:
        if layer is None:
            return self
        for own in (layer._modules, layer._parameters, layer._buffers):
            if self.name in own:
                return own[self.name]
        ends = layer.symbolic_ends()
        if ends is None:
            raise AttributeError(self.name)  # PyTorch's `__getattr__` is asked next, and says so
        return ends[self.name == "output"]


class _Weakly(weakref.ref[SymbolicTensor]):
    """A reference that a copy or a file of a layer does not have: it was called nowhere."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return _gone, ()


def _nothing() -> None:
    return None


def _gone() -> Any:
    return _nothing


def remember(layer: Layer, output: Any) -> None:
    """Keeps what a layer's first call on symbolic tensors gave, as long as a model holds it."""
    if recalled(layer) is None:
        layer.__dict__["_first_output"] = map_structure(_Weakly, output)


def recalled(layer: Layer) -> tuple[Any, Any] | None:
    """Returns (inputs, outputs) of the first symbolic call whose tensors still exist."""
    kept = layer.__dict__.get("_first_output")
    output = None if kept is None else [ref() for ref in kept] if isinstance(kept, list) else kept()
    node: Node | None = next((tensor.node for tensor in find_symbolic(output)), None)
    if node is None or node.layer is not layer:  # a copy of a layer was called nowhere
        return None
    inputs: list[SymbolicTensor] = node.inputs
    return inputs[0] if len(inputs) == 1 else inputs, output
