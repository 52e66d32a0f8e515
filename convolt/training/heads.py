"""What belongs to each output of a model: its loss, the loss's weight, and its metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from convolt import losses, metrics
from convolt.errors import ArgumentError, did_you_mean, explain
from convolt.metrics import Metric


@dataclass
class Head:
    """One output: name, loss (None: not trained), its factor, and its metrics with and without sample weights.

    `soft_loss` takes the loss's place for labels that are shares of classes, as mixed pictures have them.
    """

    name: str
    loss: losses.Loss | None
    weight: float = 1.0
    metrics: list[Metric] = field(default_factory=list)
    weighted_metrics: list[Metric] = field(default_factory=list)
    soft_loss: losses.Loss | None = None

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
    if count > 1 and loss is not None and (is_config(loss) or not isinstance(loss, (list, tuple, Mapping))):
        per_loss = [loss] * count  # one loss for all outputs, as in Keras
    heads = []
    for i, name in enumerate(output_names):
        head_loss = None if per_loss[i] is None else losses.get(per_loss[i])
        found = metrics.get_all([*per_metric[i], *per_weighted[i]], metrics.logits_of_loss(head_loss))
        plain = len(per_metric[i])
        heads.append(Head(name, head_loss, 1.0 if per_weight[i] is None else float(per_weight[i]), found[:plain], found[plain:]))
    return heads


def _spread(what: str, value: Any, names: Sequence[str]) -> list[Any]:
    """Returns one entry for each output from a single value (a configuration is one), a list or a mapping by output name."""
    if value is None:
        return [None] * len(names)
    if isinstance(value, Mapping) and not is_config(value):
        for key in value:
            if key not in names:
                raise ArgumentError(explain(f"compile({what})", f"the output name {key!r}", "a name of an output",
                                            did_you_mean(key, names)))
        return [value.get(name) for name in names]
    if isinstance(value, (list, tuple)):
        if len(value) != len(names):
            raise ArgumentError(explain(f"compile({what})", f"{len(value)} entries", f"{len(names)}, one for each output: {list(names)}"))
        return list(value)
    return [value, *[None] * (len(names) - 1)]


def is_config(value: Any) -> bool:
    """Whether `value` is what a saved model holds of a loss or metric: `{"class_name", "config"}`."""
    return isinstance(value, Mapping) and set(value) == {"class_name", "config"}


def check_names(spec: Any, get: Callable[[Any], Any]) -> None:
    """Resolves the names in a specification whose outputs are not known yet, so that a misspelt one is told at once."""
    if isinstance(spec, str) or is_config(spec):
        get(spec)
    elif isinstance(spec, (list, tuple, Mapping)):
        for entry in spec.values() if isinstance(spec, Mapping) else spec:
            check_names(entry, get)


def _spread_lists(what: str, value: Any, names: Sequence[str]) -> list[list[Any]]:
    """Like `_spread` for lists: with one output a flat list is its list; with several, each entry is a list or one item."""
    if value is None:
        return [[] for _ in names]
    if not isinstance(value, (Mapping, list, tuple)) or is_config(value):
        value = [value]
    if not isinstance(value, Mapping) and len(names) == 1 and not any(isinstance(v, (list, tuple)) for v in value):
        return [list(value)]
    entries = _spread(what, value, names)
    return [[] if e is None else list(e) if isinstance(e, (list, tuple)) else [e] for e in entries]
