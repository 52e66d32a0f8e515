"""What `auto` means: the loss and the metrics that fit a model's outputs and DATA's labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from convolt import losses
from convolt.cli.parts import has_several_labels, is_classification, read
from convolt.configurable import snake_case
from convolt.data.sources import Source
from convolt.errors import ArgumentError, ShapeError, explain
from convolt.models import Model
from convolt.training.heads import make_heads
from convolt.training.step import enter

PROBE = 8
"""Samples that are run through a new model to see what its outputs are."""


@dataclass(frozen=True)
class Recipe:
    """Loss and metrics of a training.

    Attributes:
        loss: name or object, for `compile`.
        loss_text: what it is, and why if it was chosen.
        metrics: names, for `compile`.
        classes: number of classes; 0 if the labels are no classes.
        several: whether a sample may have several of the classes, or none.
    """

    loss: Any
    loss_text: str
    metrics: list[str]
    classes: int
    several: bool = False


def outputs_of(model: Model, x: np.ndarray) -> np.ndarray:
    """Returns the model's outputs for the first few samples.

    Raises:
        ShapeError: the model has several outputs, or not one row for each sample.
    """
    outputs = model.predict(x[:PROBE], verbose=0)
    if not isinstance(outputs, np.ndarray) or outputs.ndim < 2:
        shown = f"{len(outputs)} outputs" if not isinstance(outputs, np.ndarray) else f"outputs of shape {outputs.shape}"
        raise ShapeError(
            explain(f"model {model.name!r}", shown, "one output (N, classes)", "Train it from Python: model.fit takes several.")
        )
    return outputs


def are_probabilities(outputs: np.ndarray) -> bool:
    """Whether rows are probabilities of classes: none negative, each row's sum one (one unit: all from 0 to 1)."""
    if outputs.min() < 0 or outputs.max() > 1 + 1e-3:
        return False
    return outputs.shape[-1] == 1 or bool(np.allclose(outputs.sum(axis=-1), 1, atol=1e-3))


def are_shares(outputs: np.ndarray) -> bool:
    """Whether outputs can be probabilities of labels, each by itself: all from 0 to 1."""
    return bool(outputs.min() >= 0 and outputs.max() <= 1)


def rates_each_label(model: Model, outputs: np.ndarray) -> bool:
    """Whether a model says of each label by itself how likely it is, as its loss tells, and without one its outputs."""
    if outputs.shape[-1] == 1:
        return False
    if model._trainer is not None:
        head, *others = make_heads(model.output_names or ["y"], model._trainer.spec["loss"], None, None, None)
        return not others and isinstance(head.loss, (losses.BinaryCrossentropy, losses.BinaryFocalCrossentropy))
    return model.class_names is not None and are_shares(outputs) and not are_probabilities(outputs)


def probabilities(outputs: np.ndarray, several: bool = False) -> np.ndarray:
    """Returns probabilities (N, classes) from a model's outputs: softmax of logits; one unit is that of the second class.

    Args:
        outputs: (N, units).
        several: whether a sample may have several of the classes: then each unit has a sigmoid of its own.
    """
    values = outputs.astype(np.float64)
    if several:
        return values if are_shares(outputs) else _sigmoid(values)
    if not are_probabilities(outputs):
        if values.shape[-1] == 1:
            values = _sigmoid(values)
        else:
            values = np.exp(values - values.max(axis=-1, keepdims=True))
            values /= values.sum(axis=-1, keepdims=True)
    return np.concatenate([1 - values, values], axis=-1) if values.shape[-1] == 1 else values


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -60, 60))))


def choose(model: Model, source: Source, loss: str, metrics: list[str], label_smoothing: float = 0.0) -> Recipe:
    """Returns the loss and the metrics for a model and DATA.

    Args:
        model: built.
        source: DATA.
        loss: "auto" or a loss's name.
        metrics: names; empty: accuracy for classes (of each label by itself where a sample may have several), the mean absolute error for
            numbers.
        label_smoothing: share of each label that is spread over all classes.

    Raises:
        ShapeError: the model's outputs do not fit the number of classes.
        ArgumentError: an unknown loss, or one that cannot smooth labels.
    """
    x = read(source.x_train, np.arange(min(PROBE, len(source.x_train))))[0]
    outputs, several = outputs_of(model, x), has_several_labels(source)
    classes = len(source.class_names) if several or is_classification(source) else 0
    if classes:
        _check_classes(model, outputs.shape, classes, source, several)
    if several:
        _check_ending(model, x, classes)
    chosen = metrics or (["binary_accuracy"] if several else ["accuracy"] if classes else ["mae"])
    logits = not (are_shares(outputs) if several else are_probabilities(outputs))
    if label_smoothing:
        usual = "binary_crossentropy" if several else "crossentropy" if classes else "mean_squared_error"
        smooth = _smoothing(usual if loss == "auto" else loss, label_smoothing, {"from_logits": logits})
        return Recipe(smooth, f"{_words(smooth, logits)}, labels smoothed by {label_smoothing:g}", chosen, classes, several)
    if loss != "auto":
        losses.get(loss)
        return Recipe(loss, loss, chosen, classes, several)
    if not classes:
        return Recipe("mse", "mean squared error (the labels are no classes)", chosen, 0)
    if several or outputs.shape[-1] == 1:
        made: losses.Loss = losses.BinaryCrossentropy(from_logits=logits)
    elif source.y_train.ndim == 2:
        made = losses.CategoricalCrossentropy(from_logits=logits)
    else:
        made = losses.SparseCategoricalCrossentropy(from_logits=logits)
    return Recipe(made, f"{_words(made, logits)}{' for each label' if several else ''}", chosen, classes, several)


def _words(loss: losses.Loss, logits: bool) -> str:
    """Returns what a loss is called in the plan."""
    return f"{snake_case(type(loss).__name__).replace('_', ' ')}{' of logits' if logits else ''}"


def _smoothing(loss: str, share: float, arguments: dict[str, bool]) -> losses.Loss:
    """Returns the loss with smoothed labels."""
    kind: Callable[..., losses.Loss] = losses.registry.find(loss)
    known = inspect.signature(kind).parameters
    if "label_smoothing" not in known:
        raise ArgumentError(explain("--label-smoothing", f"{share:g} with the loss {snake_case(kind.__name__)}",
                                    "classes, and a crossentropy", "With --loss auto it is chosen."))
    return kind(label_smoothing=share, **{name: value for name, value in arguments.items() if name in known})


def _check_ending(model: Model, x: np.ndarray, classes: int) -> None:
    """Raises `ArgumentError` for a model that ends in a softmax, whose outputs always sum to one."""
    sample = torch.from_numpy(x[:1]).to(next(model.parameters()).device)
    found = model.run_once([enter(sample, model.input_dtypes[0] if model.input_dtypes else None, model.data_format)])
    if getattr(found, "logits_of", "") == "softmax":
        raise ArgumentError(explain(f"model {model.name!r}", "a softmax at the end, which picks one class",
                                    "a sigmoid, for the samples have several labels each",
                                    f'Let the model end in Dense({classes}, activation="sigmoid").'))


def _check_classes(model: Model, shape: tuple[int, ...], classes: int, source: Source, several: bool) -> None:
    units = shape[-1]
    if len(shape) == 4:
        raise ShapeError(explain(f"model {model.name!r}", f"maps of classes, outputs of shape {(None, *shape[1:])}",
                                 f"one row for each picture, (None, {classes}), as {source.name} has one class for each",
                                 "A network with a class for each pixel, such as U-Net, learns from masks: train it from Python, "
                                 "model.fit(pictures, masks) with masks of shape (N, height, width)."))
    if len(shape) != 2 or not (units == classes or (units == 1 and classes == 2 and not several)):
        raise ShapeError(
            explain(
                f"model {model.name!r}",
                f"outputs of shape {(None, *shape[1:])}",
                f"(None, {classes}), as {source.name} has {classes} classes",
            )
        )
    if units == 1 and source.y_train.ndim == 2:
        raise ArgumentError(
            explain(f"model {model.name!r}", "one output unit and one-hot labels", "two units, or labels 0 and 1")
        )
