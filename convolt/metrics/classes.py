"""Metrics of classes: confusion matrix, intersection over union, F scores, and precision and recall averaged over classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convolt.errors import ArgumentError, ShapeError, explain
from convolt.losses.shapes import EPSILON, activation_of, outside, paired, weights_like
from convolt.metrics.accuracy import class_ids, logit, place_weights
from convolt.metrics.base import Metric, ratio, registry
from convolt.metrics.thresholds import labels_and_scores

AVERAGES = ("macro", "micro", "weighted", None)


def count_pairs(matrix: Tensor, true: Tensor, predicted: Tensor, weight: Tensor | None, ignored: int | None = None) -> None:
    """Adds pairs of classes to a matrix (row: label, column: prediction); pairs that are out of range count nowhere."""
    classes = matrix.shape[0]
    inside = (true >= 0) & (true < classes) & (predicted >= 0) & (predicted < classes)
    if ignored is not None:
        inside &= true != ignored
    cells = torch.where(inside, true * classes + predicted, 0)
    amount = inside.to(matrix.dtype) if weight is None else torch.where(inside, weight.to(matrix.dtype), 0)
    matrix.view(-1).index_add_(0, cells, amount)


@registry.register("confusion")
class ConfusionMatrix(Metric):
    """How often each class (row) was taken for each class (column).

    Args:
        num_classes: size of the matrix; found at the first batch from the class axis of the predictions if None.
        ignore_class: label that is not counted.

    Labels are whole numbers or one-hot; predictions are scores `(N, …, C)`, one score for two classes, or whole numbers.
    Result: `(C, C)`. Labels outside 0 … C-1 are not counted. PyTorch counterpart: `torchmetrics.ConfusionMatrix`.
    """

    matrix: Tensor

    def __init__(self, num_classes: int | None = None, ignore_class: int | None = None, name: str | None = "confusion_matrix",
                 dtype: Any = None) -> None:
        super().__init__(name, dtype)
        self.num_classes, self.ignore_class = num_classes, ignore_class
        if num_classes is not None:
            if num_classes < 2:
                raise ArgumentError(explain("ConfusionMatrix(num_classes)", repr(num_classes), "a whole number from 2, or None"))
            self.add_variable((num_classes, num_classes), name="matrix")

    def accumulate(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None) -> None:
        true, predicted, classes = class_ids(self.name, y_true, y_pred, self.from_logits)
        if not self._state_names:
            if not classes:
                raise ArgumentError(explain(f"{type(self).__name__}(num_classes)", None, "the number of classes",
                                            "Predictions that are class numbers do not tell it."))
            self.add_variable((classes, classes), name="matrix")
        elif classes > self.matrix.shape[0]:
            raise ShapeError(explain(f"{type(self).__name__}(num_classes)", f"predictions of {classes} classes",
                                     f"{self.matrix.shape[0]}"))
        count_pairs(self.matrix, true, predicted, place_weights(sample_weight, y_pred, self.matrix.dtype), self.ignore_class)

    def result(self) -> Tensor:
        return self.matrix.clone() if self._state_names else torch.zeros(0, 0, device=self._device)


@registry.register()
class IoU(Metric):
    """Mean over some classes of intersection over union: right / (labelled or predicted as this class).

    Args:
        num_classes: number of classes; None: found at the first batch from scores.
        target_class_ids: the classes that count; None: all.
        ignore_class: label that is not counted.
        sparse_y_true: whether labels are whole numbers; False: one-hot.
        sparse_y_pred: whether predictions are whole numbers; False: scores (scores are also known by their extra axis).
        axis: of one-hot labels and scores, in a channels-last shape.

    Keras counterpart: `keras.metrics.IoU`.
    """

    higher_is_better = True
    matrix: Tensor

    def __init__(self, num_classes: int | None, target_class_ids: Sequence[int] | None, name: str | None = None,
                 dtype: Any = None, ignore_class: int | None = None, sparse_y_true: bool = True, sparse_y_pred: bool = True,
                 axis: int = -1) -> None:
        super().__init__(name, dtype)
        targets = None if target_class_ids is None else list(target_class_ids)
        if num_classes is not None and targets is not None and max(targets) >= num_classes:
            raise ArgumentError(explain("IoU(target_class_ids)", repr(targets), f"classes below {num_classes}"))
        self.num_classes, self.target_class_ids, self.ignore_class = num_classes, targets, ignore_class
        self.sparse_y_true, self.sparse_y_pred, self.axis = sparse_y_true, sparse_y_pred, axis
        self._targets = None if targets is None else torch.tensor(targets)
        if num_classes is not None:
            self.add_variable((num_classes, num_classes), name="matrix")

    def accumulate(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None) -> None:
        t, p = outside(y_true, y_pred)
        scores = not self.sparse_y_pred or (p.is_floating_point() and p.ndim == t.ndim + 1 and p.shape[-1] > 1)
        if not self._state_names:
            if not scores:
                raise ArgumentError(explain(f"{type(self).__name__}(num_classes)", None, "the number of classes",
                                            "Predictions that are class numbers do not tell it."))
            self.add_variable((p.shape[self.axis],) * 2, name="matrix")
        t = t if self.sparse_y_true else t.argmax(self.axis)
        p = p.argmax(self.axis) if scores else p
        if t.numel() != p.numel():
            shown = f"labels of shape {tuple(t.shape)} and predictions of shape {tuple(p.shape)}"
            raise ShapeError(explain(type(self).__name__, shown, "as many labels as predictions",
                                     "For scores give sparse_y_pred=False, for one-hot labels sparse_y_true=False."))
        weight = None if sample_weight is None else weights_like(sample_weight, self.matrix.new_empty(p.shape)).expand(p.shape)
        weight = None if weight is None else weight.reshape(-1)
        count_pairs(self.matrix, t.reshape(-1).long(), p.reshape(-1).long(), weight, self.ignore_class)

    def result(self) -> Tensor:
        if not self._state_names:
            return torch.zeros((), device=self._device)
        right = self.matrix.diagonal()
        union = self.matrix.sum(0) + self.matrix.sum(1) - right
        if self._targets is not None:
            right, union = right[self._targets], union[self._targets]
        occurs = union > 1e-9
        return torch.where(occurs, right / (union + EPSILON), 0).sum() / (occurs.sum() + EPSILON)


@registry.register("miou")
class MeanIoU(IoU):
    """Mean over all classes of intersection over union.

    Args:
        num_classes: number of classes; None: found at the first batch from scores.
        ignore_class, sparse_y_true, sparse_y_pred, axis: as in `IoU`.

    Keras counterpart: `keras.metrics.MeanIoU`.
    """

    def __init__(self, num_classes: int | None = None, name: str | None = None, dtype: Any = None,
                 ignore_class: int | None = None, sparse_y_true: bool = True, sparse_y_pred: bool = True,
                 axis: int = -1) -> None:
        super().__init__(num_classes, None, name, dtype, ignore_class, sparse_y_true, sparse_y_pred, axis)


@registry.register()
class FBetaScore(Metric):
    """Weighted harmonic mean of precision and recall: `(1 + β²) P R / (β² P + R)`, for one-hot labels.

    Args:
        average: "micro" (over all outputs), "macro" (mean over classes), "weighted" (by the classes' labels), None (one
            value per class).
        beta: weight of recall against precision.
        threshold: a prediction above it says 1; None: the highest prediction of a sample says 1, the others 0.

    Shapes: `(N, C)`, and `(N, …, C)`, where each place is a sample. Keras counterpart: `keras.metrics.FBetaScore`.
    """

    higher_is_better = True
    true_positives: Tensor
    false_positives: Tensor
    false_negatives: Tensor
    intermediate_weights: Tensor

    def __init__(self, average: str | None = None, beta: float = 1.0, threshold: float | None = None,
                 name: str | None = "fbeta_score", dtype: Any = None) -> None:
        super().__init__(name, dtype)
        owner = type(self).__name__
        checked_average(owner, average)
        if isinstance(beta, bool) or not isinstance(beta, (int, float)) or beta <= 0:
            raise ArgumentError(explain(f"{owner}(beta)", repr(beta), "a number above 0"))
        if threshold is not None and not 0 < threshold <= 1:
            raise ArgumentError(explain(f"{owner}(threshold)", repr(threshold), "a number above 0 and up to 1, or None"))
        self.average, self.beta, self.threshold = average, beta, threshold

    def accumulate(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None) -> None:
        t, p = labels_and_scores(type(self).__name__, y_true, y_pred)
        if p.ndim < 2:
            t, p = t.unsqueeze(-1), p.unsqueeze(-1)
        if not self._state_names:
            for name in ("true_positives", "false_positives", "false_negatives", "intermediate_weights"):
                self.add_variable(() if self.average == "micro" else (p.shape[-1],), name=name)
        if self.threshold is None:
            said = (p >= p.amax(-1, keepdim=True)) & (p.abs() > 1e-9)
        else:
            said = p > (logit(self.threshold) if self.from_logits else self.threshold)
        kind = self.true_positives.dtype
        weight = 1.0 if sample_weight is None else weights_like(sample_weight, p).to(kind)
        said, t = said.to(kind), t.to(kind)
        axes = tuple(range(p.ndim if self.average == "micro" else p.ndim - 1))
        for state, value in ((self.true_positives, said * t), (self.false_positives, said * (1 - t)),
                             (self.false_negatives, (1 - said) * t), (self.intermediate_weights, t)):
            state.add_((value * weight).sum(axes))

    def result(self) -> Tensor:
        if not self._state_names:
            return torch.zeros((), device=self._device)
        precision = self.true_positives / (self.true_positives + self.false_positives + EPSILON)
        recall = self.true_positives / (self.true_positives + self.false_negatives + EPSILON)
        score = (1 + self.beta**2) * precision * recall / (self.beta**2 * precision + recall + EPSILON)
        if self.average == "weighted":
            return (score * self.intermediate_weights / (self.intermediate_weights.sum() + EPSILON)).sum()
        return score if self.average is None else score.mean()


@registry.register()
class F1Score(FBetaScore):
    """Harmonic mean of precision and recall, for one-hot labels; the string "f1" is another metric, `MacroF1`.

    Args:
        average, threshold: as in `FBetaScore`.

    Keras counterpart: `keras.metrics.F1Score`.
    """

    def __init__(self, average: str | None = None, threshold: float | None = None, name: str | None = "f1_score",
                 dtype: Any = None) -> None:
        super().__init__(average, 1.0, threshold, name, dtype)


def checked_average(owner: str, average: Any) -> None:
    """Raises `ArgumentError` unless `average` is one of those of Keras and scikit-learn."""
    if average not in AVERAGES:
        raise ArgumentError(explain(f"{owner}(average)", repr(average), f"one of {list(AVERAGES)}"))


class PerClass(Metric):
    """Right and wrong predictions of each class, whatever the labels look like.

    The kind of task follows from shapes, as for the string "accuracy":

    - one output `(N, 1)`: two classes, and class 1 is what is looked for; above 0.5 says 1;
    - several outputs after a softmax, or unknown: the highest output is the predicted class; labels are whole numbers
      `(N,)` or one-hot;
    - several outputs after a sigmoid, with labels of the same shape: many labels at once, each above 0.5 says 1.

    Args:
        average: "macro": mean over the classes that occur in labels or predictions; "weighted": mean weighted by the
            number of labels; "micro": all classes together; None: one value per class. As in scikit-learn with
            `zero_division=0`.
    """

    higher_is_better = True
    true_positives: Tensor
    predicted: Tensor
    labelled: Tensor

    def __init__(self, average: str | None, name: str | None, dtype: Any) -> None:
        super().__init__(name, dtype)
        checked_average(type(self).__name__, average)
        self.average = average

    def accumulate(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None) -> None:
        single = y_pred.ndim < 2 or y_pred.shape[1] == 1
        labels = not single and y_true.shape == y_pred.shape and "sigmoid" in (self.from_logits, activation_of(y_pred))
        classes = 1 if single else y_pred.shape[1]
        if not self._state_names:
            for name in ("true_positives", "predicted", "labelled"):
                self.add_variable((classes,), name=name)
        kind = self.predicted.dtype
        if single or labels:
            t, p = paired(type(self).__name__, y_true, y_pred)
            t, said = (t > 0.5).to(kind), (p > (0.0 if self.from_logits else 0.5)).to(kind)
            factor = 1.0 if sample_weight is None else weights_like(sample_weight, p).to(kind)
            for state, value in ((self.true_positives, t * said), (self.predicted, said), (self.labelled, t)):
                state.add_((value * factor).sum(tuple(range(p.ndim - 1))))
            return
        true, guess, _ = class_ids(self.name, y_true, y_pred, self.from_logits)
        valid = (true >= 0) & (true < classes)  # a label out of range counts nowhere, and must not stop the device
        weight = place_weights(sample_weight, y_pred, kind)
        amount = valid.to(kind) if weight is None else torch.where(valid, weight, 0)
        true = torch.where(valid, true, 0)
        self.true_positives.index_add_(0, true, amount * (true == guess))
        self.predicted.index_add_(0, guess, amount)
        self.labelled.index_add_(0, true, amount)

    def score(self, right: Tensor, predicted: Tensor, labelled: Tensor) -> Tensor:
        """Returns the value from counts."""
        raise ArgumentError(explain(type(self).__name__, "no `score`", "a method that computes the value from counts"))

    def result(self) -> Tensor:
        if not self._state_names:
            return torch.zeros((), device=self._device)
        counts = self.true_positives, self.predicted, self.labelled
        if self.average == "micro" or self.labelled.numel() == 1:
            return self.score(*(c.sum() for c in counts))
        scores = self.score(*counts)
        if self.average is None:
            return scores
        weight = self.labelled if self.average == "weighted" else ((self.predicted + self.labelled) > 0).to(scores.dtype)
        return ratio((scores * weight).sum(), weight.sum())


@registry.register()
class MacroPrecision(PerClass):
    """Share of the predictions of a class that are right, averaged over classes: the string "precision".

    Args:
        average: see `PerClass`.
    """

    def __init__(self, average: str | None = "macro", name: str | None = "precision", dtype: Any = None) -> None:
        super().__init__(average, name, dtype)

    def score(self, right: Tensor, predicted: Tensor, labelled: Tensor) -> Tensor:
        return ratio(right, predicted)


@registry.register()
class MacroRecall(PerClass):
    """Share of the labels of a class that are found, averaged over classes: the string "recall".

    Args:
        average: see `PerClass`.
    """

    def __init__(self, average: str | None = "macro", name: str | None = "recall", dtype: Any = None) -> None:
        super().__init__(average, name, dtype)

    def score(self, right: Tensor, predicted: Tensor, labelled: Tensor) -> Tensor:
        return ratio(right, labelled)


@registry.register()
class MacroF1(PerClass):
    """Harmonic mean of precision and recall, averaged over classes: the strings "f1" and "f1_score".

    Args:
        average: see `PerClass`.
    """

    def __init__(self, average: str | None = "macro", name: str | None = "f1", dtype: Any = None) -> None:
        super().__init__(average, name, dtype)

    def score(self, right: Tensor, predicted: Tensor, labelled: Tensor) -> Tensor:
        return ratio(2 * right, predicted + labelled)
