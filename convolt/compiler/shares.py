"""How much of a step's time each layer takes, which bounds what a rewrite can win before its kernels are compiled and timed."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from convolt.compiler.measure import Probe


class Shares:
    """Shares of the layers in forward and backward pass on a CPU, which stand for those in the step.

    Args:
        traced: the model's graph.
        probe: runs it.
        precision: of the computation.
    """

    def __init__(self, traced: fx.GraphModule, probe: Probe, precision: torch.dtype) -> None:
        watch = _Watch(traced)
        probe.seconds(watch, precision, budget=0.0, least=1)
        total = sum(watch.seconds.values())
        self._of_node = {name: seconds / total for name, seconds in watch.seconds.items()}

    def of(self, nodes: frozenset[str]) -> float:
        """Returns the share of some nodes, by name, together."""
        return sum(self._of_node.get(name, 0.0) for name in nodes)


class _Watch(nn.Module):
    """Runs a graph node by node, each forward and backward by itself, and notes the least time of each."""

    recordable = False

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__()
        self.traced = traced
        self.seconds: dict[str, float] = {}

    def forward(self, *inputs: Any) -> Any:
        """Returns what the graph does; its gradients go no further back."""
        return _Timed(self).run(*inputs)


class _Timed(fx.Interpreter):
    def __init__(self, watch: _Watch) -> None:
        super().__init__(watch.traced)
        self._watch = watch

    def run_node(self, n: fx.Node) -> Any:
        if not n.op.startswith("call"):
            return super().run_node(n)
        args, kwargs = tree_map(_twin, self.fetch_args_kwargs_from_env(n))
        began = time.perf_counter()
        result = getattr(self, n.op)(n.target, args, kwargs)
        _backward(result)
        took = time.perf_counter() - began
        self._watch.seconds[n.name] = min(took, self._watch.seconds.get(n.name, took))
        return tree_map(_end, result)


def _backward(result: Any) -> None:
    """Computes gradients back to the node's inputs, but where a layer before has kept a tensor for this one: its graph is gone."""
    ends = [value for value in tree_leaves(result) if isinstance(value, Tensor) and value.requires_grad]
    try:
        torch.autograd.backward(ends, [torch.ones_like(end) for end in ends])
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if "backward through the graph a second time" not in str(error):
            raise


def _end(value: Any) -> Any:
    """Returns a tensor beyond which gradients do not go back, with what is kept at it."""
    if not isinstance(value, Tensor):
        return value
    ended = value.detach().requires_grad_(value.requires_grad)
    ended.__dict__ |= {name: kept for name, kept in value.__dict__.items() if not (isinstance(kept, Tensor) and kept.requires_grad)}
    return ended


def _twin(value: Any) -> Any:
    """Returns a copy, which a layer may write over; gradients go back to the one of which it is a copy."""
    if not isinstance(value, Tensor):
        return value
    twin = value.clone()
    twin.__dict__ |= value.__dict__
    return twin
