"""Accuracies: shares of right answers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from convolt.errors import ArgumentError, ShapeError, explain
from convolt.losses.shapes import entered, mismatch, one_hot_labels, outside, paired, same_rank, sparse_labels, weights_like
from convolt.metrics.base import registry
from convolt.metrics.means import MeanOfSamples


def binary_accuracy(y_true: Any, y_pred: Any, threshold: float = 0.5) -> Tensor:
    """Returns 1 where `y_pred > threshold` says what the label (0 or 1) says, per value."""
    t, p = paired("binary_accuracy", y_true, y_pred)
    return ((p > threshold) == t).float()


def categorical_accuracy(y_true: Any, y_pred: Any) -> Tensor:
    """Returns 1 where the highest prediction is at the label's highest value, `(N, …)`, from one-hot labels."""
    t, p = entered(y_true, y_pred)
    return (one_hot_labels("categorical_accuracy", t, p).argmax(1) == p.argmax(1)).float()


def sparse_categorical_accuracy(y_true: Any, y_pred: Any) -> Tensor:
    """Returns 1 where the highest prediction is at the label, `(N, …)`, from whole-number labels."""
    t, p = entered(y_true, y_pred)
    return (sparse_labels("sparse_categorical_accuracy", t, p) == p.argmax(1)).float()


def _in_top_k(labels: Tensor, y_pred: Tensor, k: int) -> Tensor:
    """Whether fewer than `k` classes score higher than the label's (ties count for the label; NaN never does)."""
    classes = y_pred.shape[1]
    score = y_pred.gather(1, labels.clamp(0, classes - 1).unsqueeze(1))
    valid = score.isfinite().squeeze(1) & (labels >= 0) & (labels < classes)
    return (((y_pred > score).sum(1) < k) & valid).float()


def top_k_categorical_accuracy(y_true: Any, y_pred: Any, k: int = 5) -> Tensor:
    """Returns 1 where the label is among the `k` highest predictions, `(N, …)`, from one-hot labels."""
    t, p = entered(y_true, y_pred)
    return _in_top_k(one_hot_labels("top_k_categorical_accuracy", t, p).argmax(1), p, k)


def sparse_top_k_categorical_accuracy(y_true: Any, y_pred: Any, k: int = 5, from_sorted_ids: bool = False) -> Tensor:
    """Returns 1 where the label is among the `k` highest predictions, `(N, …)`, from whole-number labels.

    With `from_sorted_ids`, `y_pred` has class numbers, the best first, instead of scores.
    """
    t, p = entered(y_true, y_pred)
    labels = sparse_labels("sparse_top_k_categorical_accuracy", t, p)
    if from_sorted_ids:
        return (p[:, :k] == labels.unsqueeze(1)).any(1).float()
    return _in_top_k(labels, p, k)


def _checked_k(owner: str, k: Any) -> int:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ArgumentError(explain(f"{owner}(k)", repr(k), "a whole number from 1"))
    return k


@registry.register()
class Accuracy(MeanOfSamples):
    """Share of predictions that equal the labels exactly; both are class numbers (the string "accuracy" is another metric).

    Keras counterpart: `keras.metrics.Accuracy`.
    """

    higher_is_better = True

    def __init__(self, name: str | None = "accuracy", dtype: Any = None) -> None:
        super().__init__(name, dtype)

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        t, p = same_rank(*outside(y_true, y_pred))
        if t.shape != p.shape:
            raise ShapeError(mismatch("Accuracy", t, p) + " For scores of classes use the string 'accuracy'.")
        return (t == p).float()


@registry.register()
class BinaryAccuracy(MeanOfSamples):
    """Share of outputs on the right side of a threshold; labels are 0 and 1.

    Args:
        threshold: a prediction above it says 1. On logits (see `Metric.from_logits`), a threshold between 0 and 1 still
            is one on probabilities.

    Keras counterpart: `keras.metrics.BinaryAccuracy`.
    """

    higher_is_better = True

    def __init__(self, name: str | None = "binary_accuracy", dtype: Any = None, threshold: float = 0.5) -> None:
        super().__init__(name, dtype)
        self.threshold = threshold

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return binary_accuracy(y_true, y_pred, logit(self.threshold) if self.from_logits else self.threshold)


def logit(threshold: float) -> float:
    """Returns the logit of a probability; what is no probability between 0 and 1 is taken to be a logit already."""
    return math.log(threshold / (1 - threshold)) if 0 < threshold < 1 else threshold


@registry.register()
class CategoricalAccuracy(MeanOfSamples):
    """Share of samples whose highest prediction is the label's class; labels are one-hot.

    Keras counterpart: `keras.metrics.CategoricalAccuracy`.
    """

    higher_is_better = True

    def __init__(self, name: str | None = "categorical_accuracy", dtype: Any = None) -> None:
        super().__init__(name, dtype)

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return categorical_accuracy(y_true, y_pred)


@registry.register()
class SparseCategoricalAccuracy(MeanOfSamples):
    """Share of samples whose highest prediction is the label's class; labels are whole numbers.

    Keras counterpart: `keras.metrics.SparseCategoricalAccuracy`.
    """

    higher_is_better = True

    def __init__(self, name: str | None = "sparse_categorical_accuracy", dtype: Any = None) -> None:
        super().__init__(name, dtype)

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return sparse_categorical_accuracy(y_true, y_pred)


@registry.register()
class TopKCategoricalAccuracy(MeanOfSamples):
    """Share of samples whose class is among the `k` highest predictions; labels are one-hot.

    Keras counterpart: `keras.metrics.TopKCategoricalAccuracy`.
    """

    higher_is_better = True

    def __init__(self, k: int = 5, name: str | None = "top_k_categorical_accuracy", dtype: Any = None) -> None:
        super().__init__(name, dtype)
        self.k = _checked_k("TopKCategoricalAccuracy", k)

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return top_k_categorical_accuracy(y_true, y_pred, self.k)


@registry.register()
class SparseTopKCategoricalAccuracy(MeanOfSamples):
    """Share of samples whose class is among the `k` highest predictions; labels are whole numbers.

    Args:
        k: how many predictions count.
        from_sorted_ids: whether predictions are class numbers, the best first, instead of scores.

    Keras counterpart: `keras.metrics.SparseTopKCategoricalAccuracy`.
    """

    higher_is_better = True

    def __init__(self, k: int = 5, name: str | None = "sparse_top_k_categorical_accuracy", dtype: Any = None,
                 from_sorted_ids: bool = False) -> None:
        super().__init__(name, dtype)
        self.k, self.from_sorted_ids = _checked_k("SparseTopKCategoricalAccuracy", k), from_sorted_ids

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return sparse_top_k_categorical_accuracy(y_true, y_pred, self.k, self.from_sorted_ids)


@registry.register()
class AutoAccuracy(MeanOfSamples):
    """The accuracy that fits the shapes: binary for one output, sparse for whole-number labels, else categorical.

    Keras counterpart: the strings "accuracy" and "acc" in `compile`.
    """

    higher_is_better = True

    def __init__(self, name: str | None = "accuracy", dtype: Any = None) -> None:
        super().__init__(name, dtype)

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if y_pred.ndim < 2 or y_pred.shape[1] == 1:
            return binary_accuracy(y_true, y_pred, logit(0.5) if self.from_logits else 0.5)
        sparse = y_true.ndim < y_pred.ndim or y_true.shape[1] == 1
        return (sparse_categorical_accuracy if sparse else categorical_accuracy)(y_true, y_pred)


def class_ids(name: str, y_true: Tensor, y_pred: Tensor, from_logits: bool | str) -> tuple[Tensor, Tensor, int]:
    """Returns (classes of the labels, predicted classes, number of classes) of labels of any kind and scores.

    Scores are `(N, C, …)`, the class axis at index 1, or `(N, 1, …)` or `(N,)` for two classes; labels are whole
    numbers or one-hot. Predictions of a whole-number type are classes themselves, and their number is 0, unknown.
    """
    if not y_pred.is_floating_point():
        t, p = same_rank(*outside(y_true, y_pred))
        if t.shape != p.shape:
            raise ShapeError(mismatch(name, t, p))
        return t.reshape(-1).long(), p.reshape(-1).long(), 0
    if y_pred.ndim < 2 or y_pred.shape[1] == 1:
        t, p = paired(name, y_true, y_pred)
        return (t > 0.5).reshape(-1).long(), (p > (0.0 if from_logits else 0.5)).reshape(-1).long(), 2
    sparse = y_true.ndim < y_pred.ndim or y_true.shape[1] == 1
    labels = sparse_labels(name, y_true, y_pred) if sparse else one_hot_labels(name, y_true, y_pred).argmax(1)
    return labels.reshape(-1), y_pred.argmax(1).reshape(-1), y_pred.shape[1]


def place_weights(sample_weight: Tensor | None, y_pred: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Returns one weight for each place of `class_ids`, flat, from weights per sample or per place."""
    if sample_weight is None:
        return None
    scores = y_pred.is_floating_point() and y_pred.ndim > 1
    places = y_pred[:, 0] if scores else y_pred
    return weights_like(sample_weight, places).to(dtype).expand(places.shape).reshape(-1)
