"""How a metric is found: by name, class, object, configuration, loss, function, or from torchmetrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from convolt import losses
from convolt.configurable import to_json
from convolt.errors import ArgumentError, did_you_mean, explain
from convolt.losses.base import Loss
from convolt.metrics import accuracy, classes, means, thresholds
from convolt.metrics.base import Metric, registry

AUTOMATIC: Mapping[str, type[Metric]] = {
    "accuracy": accuracy.AutoAccuracy, "acc": accuracy.AutoAccuracy, "precision": classes.MacroPrecision,
    "recall": classes.MacroRecall, "f1": classes.MacroF1, "f1_score": classes.MacroF1, "auc": thresholds.MacroAUC,
}
"""Strings that stand for a metric that looks at the shapes of labels and predictions, and not for the class of that name."""

_FUNCTIONS: Mapping[Any, type[Metric]] = {
    accuracy.binary_accuracy: accuracy.BinaryAccuracy, accuracy.categorical_accuracy: accuracy.CategoricalAccuracy,
    accuracy.sparse_categorical_accuracy: accuracy.SparseCategoricalAccuracy,
    accuracy.top_k_categorical_accuracy: accuracy.TopKCategoricalAccuracy,
    accuracy.sparse_top_k_categorical_accuracy: accuracy.SparseTopKCategoricalAccuracy,
}


def get(identifier: Any, from_logits: bool | str | None = None) -> Metric:
    """Returns a metric.

    Args:
        identifier: a name ("accuracy", "mse", any loss's name), a class, an object, a configuration, a loss, a function
            `f(y_true, y_pred)` of channels-last tensors, or a metric of torchmetrics.
        from_logits: what the model's outputs lack (see `Metric.from_logits` and `logits_of_loss`); None leaves the
            metric as it is.

    Raises:
        ArgumentError: the name is unknown; the message names the nearest.
        ArgumentTypeError: `identifier` is none of these.
    """
    metric = _find(identifier)
    if from_logits:
        if isinstance(metric, means.MeanMetricWrapper) and isinstance(identifier, str) and hasattr(metric.fn, "from_logits"):
            metric.fn.from_logits = True
        metric.from_logits = from_logits
    return metric


def _find(identifier: Any) -> Metric:
    if isinstance(identifier, Metric):
        return identifier
    if isinstance(identifier, str):
        return _find_by_name(identifier)
    if isinstance(identifier, Loss):
        return means.MeanMetricWrapper(identifier)
    if isinstance(identifier, nn.Module) and all(hasattr(identifier, method) for method in ("update", "compute", "reset")):
        return TorchMetric(identifier)
    if callable(identifier) and not isinstance(identifier, type):
        if identifier in _FUNCTIONS:
            return _FUNCTIONS[identifier]()
        return means.MeanMetricWrapper(losses.get(identifier))
    made: Metric = registry.make(identifier, Metric)
    return made


def _find_by_name(name: str) -> Metric:
    if name in AUTOMATIC:
        metric = AUTOMATIC[name]()
    elif name in list(registry):  # a class's name: called as that class calls itself
        return registry.find(name)()
    elif name in registry:
        metric = registry.find(name)()
    elif name in losses.registry:
        metric = means.MeanMetricWrapper(losses.get(name))
    else:
        known = {*AUTOMATIC, *registry, *registry._aliases, *losses.registry, *losses.registry._aliases}
        raise ArgumentError(explain("metric", repr(name), "the name of a known metric or loss", did_you_mean(name, known)))
    metric.name = name
    return metric


def serialize(metric: Metric) -> dict[str, Any]:
    """Returns a metric as `{"class_name", "config"}`, which `deserialize` takes."""
    described: dict[str, Any] = to_json(metric)
    return described


def deserialize(config: Any, custom_objects: Mapping[str, type[Metric]] | None = None) -> Metric:
    """Returns the metric of a name or of what `serialize` returned; `custom_objects` has the user's own classes by name."""
    with registry.extended(custom_objects or {}):
        return get(config)


def get_all(identifiers: Iterable[Any], from_logits: bool | str | None = None) -> list[Metric]:
    """Returns metrics with different names: the second "accuracy" becomes "accuracy_1"."""
    found = [get(identifier, from_logits) for identifier in identifiers]
    seen: Counter[str] = Counter()
    for metric in found:
        stem = metric.name
        if seen[stem]:
            metric.name = f"{stem}_{seen[stem]}"
        seen[stem] += 1
    return found


def logits_of_loss(loss: Any) -> bool | str:
    """Returns what a loss says about the model's outputs, for `get(from_logits=…)`: what they lack, as `Metric.from_logits`."""
    if not getattr(loss, "from_logits", False):
        return False
    if isinstance(loss, losses.Crossentropy):
        return True
    return "sigmoid" if isinstance(loss, (losses.BinaryCrossentropy, losses.BinaryFocalCrossentropy)) else "softmax"


class TorchMetric(Metric):
    """A metric of torchmetrics, called as `update(y_pred, y_true)` with the class axis at index 1, without weights.

    Whether it waits for the device is its own affair; make it with `validate_args=False`.
    """

    def __init__(self, metric: Any, name: str | None = None) -> None:
        super().__init__(name or type(metric).__name__.lower())
        self.metric = metric
        self.higher_is_better = getattr(metric, "higher_is_better", None)

    def to(self, device: Any) -> TorchMetric:
        self.metric.to(device)
        return super().to(device)

    def accumulate(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None) -> None:
        if y_true.ndim == y_pred.ndim and y_true.ndim > 1 and y_true.shape[1] == 1 < y_pred.shape[1]:
            y_true = y_true.squeeze(1)
        elif y_pred.ndim > y_true.ndim and y_pred.shape[1] == 1:
            y_pred = y_pred.squeeze(1)
        self.metric.update(y_pred, y_true)

    def result(self) -> Tensor:
        return self.metric.compute()  # type: ignore[no-any-return]

    def reset(self) -> None:
        self.metric.reset()

    def state(self) -> dict[str, Tensor]:
        return {name: value for name in self.metric._defaults if isinstance(value := getattr(self.metric, name), Tensor)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, value in state.items():
            setattr(self.metric, name, value.to(self._device))
        self.metric._update_count = 1  # else `compute` warns that nothing was seen
