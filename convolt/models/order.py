"""The order in which Keras keeps the layers of a functional model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convolt.layers.base import Layer
from convolt.layers.symbolic import Node, SymbolicTensor


def layers_in_order(inputs: Sequence[SymbolicTensor], outputs: Any) -> list[SymbolicTensor | Layer]:
    """Returns inputs and layers in the order of Keras's `model.layers`: by depth below the outputs, then as first met from them.

    `get_weights` and the weights in Keras's files go by this order. Keras counterpart: `keras.src.ops.function.map_graph`.

    Args:
        inputs: of the model.
        outputs: of the model; one, or a list or mapping.
    """
    given = {id(tensor) for tensor in inputs}
    order, first_met = _walk_up(given, outputs)
    depths: dict[int, int] = {}
    operation_depth: dict[int, int] = {}
    for node in reversed(order):
        operation = _operation(node)
        depth = max(depths.get(id(node), 0), operation_depth.get(id(operation), 0))
        operation_depth[id(operation)] = depths[id(node)] = depth
        for tensor in _inputs_of(node):
            before = _maker(tensor, given)
            depths[id(before)] = max(depth + 1, depths.get(id(before), 0))
    operations = {id(_operation(node)): _operation(node) for node in order}
    for tensor in inputs:  # an input that no output needs
        if id(tensor) not in operations:
            operations[id(tensor)], operation_depth[id(tensor)], first_met[id(tensor)] = tensor, 0, -1
    return sorted(operations.values(), key=lambda o: (-operation_depth[id(o)], first_met[id(o)]))


def _walk_up(given: set[int], outputs: Any) -> tuple[list[Any], dict[int, int]]:
    """Returns (calls and inputs, each after what it needs; when each layer was first met), going up from the outputs."""
    order: list[Any] = []
    first_met: dict[int, int] = {}
    finished: set[int] = set()
    stack: list[tuple[Any, bool]] = [(_maker(tensor, given), False) for tensor in reversed(_flat(outputs))]
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
        stack += [(_maker(tensor, given), False) for tensor in reversed(_inputs_of(node))]
    return order, first_met


def _flat(values: Any) -> list[SymbolicTensor]:
    """Returns the tensors in nested structures, mappings by sorted keys as Keras goes through them."""
    if isinstance(values, Mapping):
        return [tensor for key in sorted(values) for tensor in _flat(values[key])]
    if isinstance(values, (list, tuple)):
        return [tensor for value in values for tensor in _flat(value)]
    return [values] if isinstance(values, SymbolicTensor) else []


def _maker(tensor: SymbolicTensor, given: set[int]) -> Any:
    """Returns the call that makes a tensor, or the tensor where it is an input of the model."""
    return tensor if id(tensor) in given or tensor.node is None else tensor.node


def _operation(node: Any) -> Any:
    return node.layer if isinstance(node, Node) else node


def _inputs_of(node: Any) -> list[SymbolicTensor]:
    return _flat([node.args, node.kwargs]) if isinstance(node, Node) else []
