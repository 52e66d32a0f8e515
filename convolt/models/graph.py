"""Models as `torch.fx` graphs: made from recorded calls, traced from code, and run node by node."""

from __future__ import annotations

import keyword
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from convolt.errors import ArgumentError, explain
from convolt.layers.symbolic import Node, SymbolicTensor, map_structure
from convolt.layout import inside_shape


def calls_before(outputs: Any, inputs: Sequence[SymbolicTensor]) -> list[Node]:
    """Returns the recorded calls between `inputs` and `outputs`, each after those that it needs.

    Raises:
        ArgumentError: an output depends on an `Input` that is not among `inputs`.
    """
    order: list[Node] = []
    done: set[int] = set()
    given = {id(tensor) for tensor in inputs}
    stack: list[tuple[SymbolicTensor, bool]] = []

    def push(values: Any) -> None:
        leaves: list[SymbolicTensor] = []
        map_structure(lambda leaf: leaves.append(leaf) if isinstance(leaf, SymbolicTensor) else None, values)
        stack.extend((leaf, False) for leaf in reversed(leaves))

    push(outputs)
    while stack:  # depth first, without recursion: networks can be a thousand layers deep
        tensor, ready = stack.pop()
        if id(tensor) in given or (tensor.node is not None and id(tensor.node) in done):
            continue
        if tensor.node is None:
            raise ArgumentError(explain("Model(inputs, outputs)", f"outputs that need {tensor!r}", "it among the inputs",
                                        "Add it to `inputs`."))
        if ready:
            done.add(id(tensor.node))
            order.append(tensor.node)
        else:
            stack.append((tensor, True))
            push((tensor.node.args, tensor.node.kwargs))
    return order


def build_graph(inputs: Sequence[SymbolicTensor], outputs: Any, calls: Sequence[Node], names: dict[int, str]) -> fx.Graph:
    """Returns the `torch.fx` graph of recorded calls.

    Args:
        inputs: symbolic inputs, in order of the placeholders.
        outputs: symbolic output, or a list or mapping of them.
        calls: recorded calls in order (see `calls_before`).
        names: submodule name for the `id` of each layer.
    """
    graph = fx.Graph()
    made: dict[tuple[int, int | None], fx.Node] = {}
    for position, tensor in enumerate(inputs):
        node = graph.placeholder(_python_name(tensor.name or f"input_{position}"))
        node.meta["shape"] = tensor.shape
        made[id(tensor), None] = node

    def lookup(leaf: Any) -> Any:
        if not isinstance(leaf, SymbolicTensor):
            return leaf
        if (id(leaf), None) in made:
            return made[id(leaf), None]
        call = made[id(leaf.node), None]
        if leaf.index is None:
            return call
        key = (id(leaf.node), leaf.index)
        if key not in made:
            made[key] = graph.call_function(operator.getitem, (call, leaf.index))
        return made[key]

    for call in calls:
        for name in call.kwargs:
            if not name.isidentifier() or keyword.iskeyword(name):  # torch.fx writes names into code as they are
                raise ArgumentError(explain(f"call of {call.layer.name!r}", f"the argument {name!r}", "the name of an argument"))
        args, kwargs = map_structure(lookup, call.args), map_structure(lookup, call.kwargs)
        made[id(call), None] = graph.call_module(names[id(call.layer)], args, kwargs)
    graph.output(map_structure(lookup, outputs))
    graph.lint()
    return graph


def _python_name(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def last_uses(graph: fx.Graph) -> dict[str, list[str]]:
    """Returns, for each node, the values that nobody needs after it; by name, which a copy of the graph keeps."""
    seen: set[str] = set()
    uses: dict[str, list[str]] = {}
    for node in reversed(graph.nodes):
        uses[node.name] = [used.name for used in node.all_input_nodes if used.name not in seen]
        seen.update(uses[node.name])
    return uses


def run_graph(graph: fx.Graph, modules: nn.Module, inputs: Sequence[Any], drop: dict[str, list[str]]) -> Any:
    """Runs a graph of module calls on `inputs`; `drop` (from `last_uses`) says when a value can be freed."""
    values: dict[str, Any] = {}
    waiting = iter(inputs)
    for node in graph.nodes:
        args, kwargs = node.args, node.kwargs
        if len(args) == 1 and isinstance(args[0], fx.Node) and not kwargs:  # most calls, in a tenth of the time
            args = (values[args[0].name],)
        else:
            args, kwargs = fx.node.map_arg((args, kwargs), lambda used: values[used.name])
        if node.op == "placeholder":
            values[node.name] = next(waiting)
        elif node.op == "call_module":
            module = modules._modules.get(node.target) or modules.get_submodule(node.target)
            values[node.name] = module(*args, **kwargs)
        elif node.op == "output":
            return args[0]
        else:
            values[node.name] = node.target(*args, **kwargs)
        for used in drop[node.name]:
            del values[used]
    raise AssertionError("a graph without an output")


def output_shapes(graph: fx.Graph, modules: nn.Module, shapes: Sequence[Any]) -> Any:
    """Returns the output's shape(s) of a graph of layer calls for input shapes (channels last), computing nothing."""
    values: dict[fx.Node, Any] = {}
    waiting = iter(shapes)
    for node in graph.nodes:
        args = fx.node.map_arg(node.args, values.__getitem__)
        if node.op == "placeholder":
            values[node] = next(waiting)
        elif node.op == "call_module":
            values[node] = modules.get_submodule(node.target).output_shape_of_call(args, node.kwargs)  # type: ignore[operator]
        elif node.op == "output":
            return args[0]
        else:
            values[node] = args[0][args[1]]
    raise AssertionError("a graph without an output")


def example_inputs(shapes: Sequence[Any], device: torch.device, dtypes: Sequence[str]) -> list[torch.Tensor]:
    """Returns zeros of these shapes (channels last; unknown axes 1) as one-sample inside tensors."""
    made = []
    for shape, dtype in zip(shapes, dtypes, strict=True):
        sizes = [1, *(32 if s is None else s for s in shape[1:])]
        made.append(torch.zeros(inside_shape(sizes), device=device, dtype=getattr(torch, dtype)))
    return made

