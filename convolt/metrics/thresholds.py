"""Metrics that count predictions above thresholds: precision, recall, true and false positives and negatives, AUC.

Each prediction falls into one bin between two thresholds; the bins of positives and of negatives are the whole state, so
that a batch costs one search and one addition per prediction, whatever the number of thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.errors import ArgumentError, ShapeError, explain
from convolt.losses.shapes import mismatch, outside, same_rank, weights_like
from convolt.metrics.base import Metric, ratio, registry

NEVER = -1e10
"""Keras's score for predictions that are not among the top k."""

SUMMATIONS = ("interpolation", "minoring", "majoring")


def probabilities(y_pred: Tensor, from_logits: bool | str) -> Tensor:
    """Returns channels-last predictions after the activation that they lack (see `Metric.from_logits`)."""
    if not from_logits:
        return y_pred
    several = y_pred.ndim > 1 and y_pred.shape[-1] > 1
    if from_logits == "sigmoid" or not several:
        return y_pred.sigmoid()
    return y_pred.softmax(-1)


def labels_and_scores(name: str, y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
    """Returns channels-last labels and float32 predictions of one shape.

    Raises:
        ShapeError: the shapes differ; whole-number labels of several classes are told what to do.
    """
    t, p = same_rank(*outside(y_true, y_pred))
    if t.shape != p.shape:
        classes = p.shape[-1] if p.ndim else 1
        sparse = p.ndim > 1 and classes > 1 and (t.shape == p.shape[:-1] or t.shape == (*p.shape[:-1], 1))
        if sparse:
            shown = f"whole-number labels of shape {tuple(t.shape)} and predictions of shape {tuple(p.shape)}"
            advice = f"Use the string metrics=['{_STRINGS.get(name, 'f1')}'], which takes whole numbers, or to_categorical(y)."
            raise ShapeError(explain(name, shown, f"one-hot labels of shape {tuple(p.shape)}", advice))
        raise ShapeError(mismatch(name, t, p))
    return t, p.float()


_STRINGS = {"Precision": "precision", "Recall": "recall", "AUC": "auc"}


class Thresholded(Metric):
    """Counts of positives and negatives above each of some thresholds.

    Args:
        thresholds: a number from 0 to 1 or several; a prediction above it says 1. None: 0.5, or with `top_k` any score.
        top_k: only the k highest predictions of a sample can say 1.
        class_id: only this class counts.
    """

    positives: Tensor
    negatives: Tensor

    def __init__(self, thresholds: Any, top_k: int | None, class_id: int | None, name: str | None, dtype: Any) -> None:
        super().__init__(name, dtype)
        owner = type(self).__name__
        self.thresholds, self.top_k, self.class_id = thresholds, top_k, class_id
        given = thresholds if isinstance(thresholds, (list, tuple)) else [thresholds]
        values = [0.5 if top_k is None else NEVER] if thresholds is None else [_threshold(owner, t) for t in given]
        order = np.argsort(values, kind="stable")
        self._boundaries = torch.tensor([values[i] for i in order], dtype=torch.float32)
        self._places = torch.tensor(np.argsort(order, kind="stable"))  # from sorted thresholds to those given
        for count in ("positives", "negatives"):
            self.add_variable((len(values) + 1,), name=count)

    def accumulate(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None) -> None:
        t, p = labels_and_scores(type(self).__name__, y_true, y_pred)
        if self.top_k is not None:
            chosen = torch.zeros_like(p, dtype=torch.bool).scatter_(-1, p.topk(self.top_k, -1).indices, True)
            p = torch.where(chosen, p, NEVER)
        elif not (self.thresholds == 0 or self.thresholds == [0]):  # thresholds of 0 are meant for logits as they are
            p = probabilities(p, self.from_logits)
        if self.class_id is not None:
            if p.ndim < 2:
                raise ShapeError(explain(f"{self.name}(class_id)", f"predictions of shape {tuple(p.shape)}", "(N, classes)"))
            t, p = t[..., self.class_id, None], p[..., self.class_id, None]
        weight = None if sample_weight is None else weights_like(sample_weight, p).expand(p.shape)
        add_to_bins(self.positives, self.negatives, self._boundaries, t, p, weight)

    def _above(self, bins: Tensor) -> Tensor:
        return above(bins)[self._places]

    def _shown(self, values: Tensor) -> Tensor:
        return values[0] if values.numel() == 1 else values


def _threshold(owner: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ArgumentError(explain(f"{owner}(thresholds)", repr(value), "numbers from 0 to 1"))
    return float(value)


def add_to_bins(positives: Tensor, negatives: Tensor, boundaries: Tensor, t: Tensor, p: Tensor, weight: Tensor | None) -> None:
    """Adds predictions `p` with labels `t` to bins; bin i has the predictions above exactly i thresholds.

    Bins are `(thresholds + 1,)`, or `(thresholds + 1, labels)` for bins of each label (the last axis of `p`).
    """
    bins = torch.bucketize(p.contiguous(), boundaries)
    if positives.ndim == 2:
        bins = bins * positives.shape[1] + torch.arange(positives.shape[1], device=p.device)
    ones = torch.ones_like(p, dtype=positives.dtype) if weight is None else weight.to(positives.dtype)
    is_positive = t != 0
    for counts, of_this_kind in ((positives, is_positive), (negatives, ~is_positive)):
        counts.view(-1).index_add_(0, bins.reshape(-1), (ones * of_this_kind).reshape(-1))


def above(bins: Tensor) -> Tensor:
    """Returns how many predictions are above each threshold."""
    return bins.flip(0).cumsum(0).flip(0)[1:]


@registry.register()
class Precision(Thresholded):
    """Share of the predictions above a threshold whose label is 1; one value per threshold.

    Over several classes it counts all outputs together (micro average) and wants one-hot labels; the string "precision"
    is another metric, `MacroPrecision`.

    Args:
        thresholds, top_k, class_id: see `Thresholded`.

    Keras counterpart: `keras.metrics.Precision`.
    """

    higher_is_better = True

    def __init__(self, thresholds: Any = None, top_k: int | None = None, class_id: int | None = None, name: str | None = None,
                 dtype: Any = None) -> None:
        super().__init__(thresholds, top_k, class_id, name, dtype)

    def result(self) -> Tensor:
        right, wrong = self._above(self.positives), self._above(self.negatives)
        return self._shown(ratio(right, right + wrong))


@registry.register()
class Recall(Thresholded):
    """Share of the labels 1 whose prediction is above a threshold; one value per threshold.

    Over several classes it counts all outputs together (micro average) and wants one-hot labels; the string "recall"
    is another metric, `MacroRecall`.

    Args:
        thresholds, top_k, class_id: see `Thresholded`.

    Keras counterpart: `keras.metrics.Recall`.
    """

    higher_is_better = True

    def __init__(self, thresholds: Any = None, top_k: int | None = None, class_id: int | None = None, name: str | None = None,
                 dtype: Any = None) -> None:
        super().__init__(thresholds, top_k, class_id, name, dtype)

    def result(self) -> Tensor:
        return self._shown(ratio(self._above(self.positives), self.positives.sum()))


@registry.register()
class TruePositives(Thresholded):
    """Number (or weight) of labels 1 that are predicted as 1. Keras counterpart: `keras.metrics.TruePositives`."""

    higher_is_better = True

    def __init__(self, thresholds: Any = None, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(thresholds, None, None, name, dtype)

    def result(self) -> Tensor:
        return self._shown(self._above(self.positives))


@registry.register()
class FalsePositives(Thresholded):
    """Number (or weight) of labels 0 that are predicted as 1. Keras counterpart: `keras.metrics.FalsePositives`."""

    higher_is_better = False

    def __init__(self, thresholds: Any = None, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(thresholds, None, None, name, dtype)

    def result(self) -> Tensor:
        return self._shown(self._above(self.negatives))


@registry.register()
class TrueNegatives(Thresholded):
    """Number (or weight) of labels 0 that are predicted as 0. Keras counterpart: `keras.metrics.TrueNegatives`."""

    higher_is_better = True

    def __init__(self, thresholds: Any = None, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(thresholds, None, None, name, dtype)

    def result(self) -> Tensor:
        return self._shown(self.negatives.sum() - self._above(self.negatives))


@registry.register()
class FalseNegatives(Thresholded):
    """Number (or weight) of labels 1 that are predicted as 0. Keras counterpart: `keras.metrics.FalseNegatives`."""

    higher_is_better = False

    def __init__(self, thresholds: Any = None, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(thresholds, None, None, name, dtype)

    def result(self) -> Tensor:
        return self._shown(self.positives.sum() - self._above(self.positives))


@registry.register()
class AUC(Metric):
    """Area under the ROC or the precision-recall curve, from a fixed number of thresholds.

    Args:
        num_thresholds: number of points of the curve, at least 2.
        curve: "ROC" or "PR".
        summation_method: "interpolation", "minoring" or "majoring".
        thresholds: inner points of the curve instead of even ones.
        multi_label: whether the area is computed for each output and then averaged, instead of all outputs together.
        num_labels: number of outputs with `multi_label`; found at the first batch if None.
        label_weights: weight of each output.
        from_logits: whether predictions are before the sigmoid.

    Keras counterpart: `keras.metrics.AUC`.
    """

    higher_is_better = True
    positives: Tensor
    negatives: Tensor

    def __init__(self, num_thresholds: int = 200, curve: str = "ROC", summation_method: str = "interpolation",
                 name: str | None = None, dtype: Any = None, thresholds: Sequence[float] | None = None, multi_label: bool = False,
                 num_labels: int | None = None, label_weights: Sequence[float] | None = None, from_logits: bool = False) -> None:
        super().__init__(name, dtype)
        if curve not in ("ROC", "PR"):
            raise ArgumentError(explain("AUC(curve)", repr(curve), "'ROC' or 'PR'"))
        if summation_method not in SUMMATIONS:
            raise ArgumentError(explain("AUC(summation_method)", repr(summation_method), f"one of {list(SUMMATIONS)}"))
        if thresholds is None and (not isinstance(num_thresholds, int) or num_thresholds < 2):
            raise ArgumentError(explain("AUC(num_thresholds)", repr(num_thresholds), "a whole number from 2"))
        if num_labels is not None and not multi_label:
            raise ArgumentError(explain("AUC(num_labels)", repr(num_labels), "None without multi_label=True"))
        inner = [(i + 1) / (num_thresholds - 1) for i in range(num_thresholds - 2)] if thresholds is None else sorted(
            _threshold("AUC", t) for t in thresholds)
        self.num_thresholds = len(inner) + 2
        self.curve, self.summation_method = curve, summation_method
        self.thresholds = None if thresholds is None else list(thresholds)
        self.multi_label, self.num_labels = multi_label, num_labels
        self.label_weights = None if label_weights is None else [float(w) for w in label_weights]
        self.from_logits = from_logits
        self._boundaries = torch.tensor([-1e-7, *inner, 1 + 1e-7], dtype=torch.float32)
        self._label_weights = None if label_weights is None else torch.tensor(self.label_weights)
        if not multi_label or num_labels is not None:
            self._make_bins(num_labels)

    def _make_bins(self, labels: int | None) -> None:
        for name in ("positives", "negatives"):
            self.add_variable((self.num_thresholds + 1,) if labels is None else (self.num_thresholds + 1, labels), name=name)

    def accumulate(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None) -> None:
        t, p = labels_and_scores("AUC", y_true, y_pred)
        p = probabilities(p, "sigmoid" if self.from_logits is True else self.from_logits).clamp(0, 1)
        if self.multi_label and not self._state_names:
            if p.ndim < 2:
                raise ShapeError(explain("AUC(multi_label=True)", f"predictions of shape {tuple(p.shape)}", "(N, labels)"))
            self._make_bins(p.shape[-1])
        weight = None if sample_weight is None else weights_like(sample_weight, p).expand(p.shape)
        if self._label_weights is not None and not self.multi_label:
            weight = self._label_weights.expand(p.shape) if weight is None else weight * self._label_weights
        add_to_bins(self.positives, self.negatives, self._boundaries, t, p, weight)

    def result(self) -> Tensor:
        if not self._state_names:
            return torch.zeros((), device=self._device)
        true, false = above(self.positives), above(self.negatives)
        terms = self._interpolated_pr(true, false) if (self.curve, self.summation_method) == ("PR", "interpolation") \
            else self._rectangles(true, false)
        areas = terms.sum(0)
        if not self.multi_label:
            return areas
        if self._label_weights is None:
            return areas.mean()
        weights = self._label_weights.to(areas.dtype)
        return ratio((areas * weights).sum(), weights.sum())

    def _rectangles(self, true: Tensor, false: Tensor) -> Tensor:
        recall = ratio(true, self.positives.sum(0).expand(true.shape))
        if self.curve == "ROC":
            x, y = ratio(false, self.negatives.sum(0).expand(false.shape)), recall
        else:
            x, y = recall, ratio(true, true + false)
        heights = {"interpolation": (y[:-1] + y[1:]) / 2, "minoring": torch.minimum(y[:-1], y[1:]),
                   "majoring": torch.maximum(y[:-1], y[1:])}[self.summation_method]
        return (x[:-1] - x[1:]) * heights

    def _interpolated_pr(self, true: Tensor, false: Tensor) -> Tensor:
        """Davis & Goadrich (2006): true positives are interpolated linearly, precision is not."""
        found = true + false
        d_true, d_found = true[:-1] - true[1:], (found[:-1] - found[1:]).clamp_min(0)
        slope = ratio(d_true, d_found)
        intercept = true[1:] - slope * found[1:]
        both = (found[:-1] > 0) & (found[1:] > 0)
        safe = torch.where(both, ratio(found[:-1], found[1:]), torch.ones_like(slope))
        return ratio(slope * (d_true + intercept * safe.log()), self.positives.sum(0).expand(slope.shape))


@registry.register()
class MacroAUC(AUC):
    """Area under the ROC curve of one output, or the mean of those of all classes, each against the rest.

    Labels are whole numbers or one-hot. It is what the string "auc" stands for.

    Args:
        num_thresholds, curve: as in `AUC`.
    """

    def __init__(self, num_thresholds: int = 200, curve: str = "ROC", name: str | None = "auc", dtype: Any = None) -> None:
        super().__init__(num_thresholds, curve, name=name, dtype=dtype, multi_label=True)

    def accumulate(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None) -> None:
        if y_pred.ndim < 2:
            y_pred = y_pred.unsqueeze(1)
        classes = y_pred.shape[1]
        if classes > 1 and (y_true.ndim < y_pred.ndim or y_true.shape[1] == 1):
            from_labels = y_true.squeeze(1) if y_true.ndim == y_pred.ndim else y_true
            shape = (1, classes, *(1,) * (y_pred.ndim - 2))
            y_true = from_labels.unsqueeze(1) == torch.arange(classes, device=y_true.device).reshape(shape)
        if self.from_logits is True:
            self.from_logits = "softmax" if classes > 1 else "sigmoid"
        super().accumulate(y_true, y_pred, sample_weight)


