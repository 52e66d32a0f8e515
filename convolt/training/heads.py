"""What belongs to each output of a model: its loss, the loss's weight, and its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from convolt import losses, metrics
from convolt.errors import ArgumentError, did_you_mean, explain
from convolt.metrics import Metric


@dataclass
class Head:
    """One output: name, loss (None: not trained), its factor, and its metrics with and without sample weights."""

    name: str
    loss: losses.Loss | None
    weight: float = 1.0
    metrics: list[Metric] = field(default_factory=list)
    weighted_metrics: list[Metric] = field(default_factory=list)

    def all_metrics(self) -> list[Metric]:
        """Returns the metrics in the order in which results are named."""
        return [*self.metrics, *self.weighted_metrics]


def make_heads(output_names: Sequence[str], loss: Any, loss_weights: Any, metric_spec: Any, weighted_spec: Any) -> list[Head]:
    """Returns a head for each output from what `compile` was given (one thing, a list, or a mapping by output name)."""
    count = len(output_names)
    per_loss = _spread("loss", loss, output_names)
    per_weight = _spread("loss_weights", loss_weights, output_names)
    per_metric = _spread_lists("metrics", metric_spec, output_names)
    per_weighted = _spread_lists("weighted_metrics", weighted_spec, output_names)
    if count > 1 and loss is not None and not isinstance(loss, (list, tuple, Mapping)):
        per_loss = [loss] * count  # one loss for all outputs, as in Keras
    taken: dict[str, int] = {}
    return [Head(name, None if per_loss[i] is None else losses.get(per_loss[i]), 1.0 if per_weight[i] is None else float(per_weight[i]),
                 _unique([metrics.get(m) for m in per_metric[i]], taken if count == 1 else {}),
                 _unique([metrics.get(m) for m in per_weighted[i]], taken if count == 1 else {}))
            for i, name in enumerate(output_names)]


def _unique(found: list[Metric], taken: dict[str, int]) -> list[Metric]:
    """Numbers metrics of the same name, so that no result hides another."""
    for metric in found:
        stem = metric.name
        taken[stem] = taken.get(stem, 0) + 1
        if taken[stem] > 1:
            metric.name = f"{stem}_{taken[stem] - 1}"
    return found


def _spread(what: str, value: Any, names: Sequence[str]) -> list[Any]:
    """Returns one entry for each output from a single value, a list or a mapping by output name."""
    if value is None:
        return [None] * len(names)
    if isinstance(value, Mapping):
        for key in value:
            if key not in names:
                raise ArgumentError(explain(f"compile({what})", f"the output name {key!r}", "a name of an output", did_you_mean(key, names)))
        return [value.get(name) for name in names]
    if isinstance(value, (list, tuple)):
        if len(value) != len(names):
            raise ArgumentError(explain(f"compile({what})", f"{len(value)} entries", f"{len(names)}, one for each output: {list(names)}"))
        return list(value)
    return [value, *[None] * (len(names) - 1)]


def _spread_lists(what: str, value: Any, names: Sequence[str]) -> list[list[Any]]:
    """Like `_spread` for lists: with one output a flat list is its list; with several, each entry is a list or one item."""
    if value is None:
        return [[] for _ in names]
    if not isinstance(value, (Mapping, list, tuple)):
        value = [value]
    if not isinstance(value, Mapping) and len(names) == 1 and not any(isinstance(v, (list, tuple)) for v in value):
        return [list(value)]
    entries = _spread(what, value, names)
    return [[] if e is None else list(e) if isinstance(e, (list, tuple)) else [e] for e in entries]
