"""How much of a step's time each layer takes, which bounds what a rewrite can win before its kernels are compiled and timed."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import fx, nn

from convolt.compiler.measure import Probe


class Shares:
    """Shares of the layers in the forward pass on a CPU, which stand for those in the step.

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
    """Runs a graph node by node, and notes the least time of each."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__()
        self.traced = traced
        self.seconds: dict[str, float] = {}

    def forward(self, *inputs: Any) -> Any:
        """Returns what the graph does."""
        return _Timed(self).run(*inputs)


class _Timed(fx.Interpreter):
    def __init__(self, watch: _Watch) -> None:
        super().__init__(watch.traced)
        self._watch = watch

    def run_node(self, n: fx.Node) -> Any:
        began = time.perf_counter()
        result = super().run_node(n)
        took = time.perf_counter() - began
        self._watch.seconds[n.name] = min(took, self._watch.seconds.get(n.name, took))
        return result
