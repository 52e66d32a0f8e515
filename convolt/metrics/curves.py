"""Metrics that read a point or an area off the curves of `AUC`: the best recall at some precision, the average precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convolt.errors import ArgumentError, ShapeError, explain
from convolt.losses.shapes import weights_like
from convolt.metrics.base import Metric, ratio, registry
from convolt.metrics.classes import checked_average
from convolt.metrics.thresholds import MacroAUC, above, add_to_bins, labels_and_scores, probabilities


class AtThresholds(Metric):
    """The best value of one quantity over all thresholds at which another one is high enough; 0 if there is no such threshold.

    Args:
        num_thresholds: how many thresholds, evenly from 0 to 1; 1 means 0.5.
        class_id: only this class counts.
    """

    higher_is_better = True
    positives: Tensor
    negatives: Tensor

    def __init__(self, argument: str, value: Any, num_thresholds: int, class_id: int | None, name: str | None, dtype: Any) -> None:
        super().__init__(name, dtype)
        owner = type(self).__name__
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise ArgumentError(explain(f"{owner}({argument})", repr(value), "a number from 0 to 1"))
        if isinstance(num_thresholds, bool) or not isinstance(num_thresholds, int) or num_thresholds < 1:
            raise ArgumentError(explain(f"{owner}(num_thresholds)", repr(num_thresholds), "a whole number from 1"))
        setattr(self, argument, value)
        self.num_thresholds, self.class_id, self._least = num_thresholds, class_id, value
        inner = [i / (num_thresholds - 1) for i in range(1, num_thresholds)] if num_thresholds > 1 else [0.5]
        bounds = [-1e-7, *inner] if num_thresholds > 1 else inner  # as in Keras, a prediction of 0 is above the threshold 0
        self._boundaries = torch.tensor(bounds, dtype=torch.float32)
        for count in ("positives", "negatives"):
            self.add_variable((len(bounds) + 1,), name=count)

    def accumulate(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None) -> None:
        t, p = labels_and_scores(type(self).__name__, y_true, y_pred)
        p = probabilities(p, self.from_logits)
        if self.class_id is not None:
            if p.ndim < 2:
                raise ShapeError(explain(f"{self.name}(class_id)", f"predictions of shape {tuple(p.shape)}", "(N, classes)"))
            t, p = t[..., self.class_id, None], p[..., self.class_id, None]
        weight = None if sample_weight is None else weights_like(sample_weight, p).expand(p.shape)
        add_to_bins(self.positives, self.negatives, self._boundaries, t, p, weight)

    def _best(self, wanted: Tensor, constrained: Tensor) -> Tensor:
        return torch.where(constrained >= self._least, wanted, 0).amax()

    def _recall(self) -> Tensor:
        return ratio(above(self.positives), self.positives.sum().expand(len(self._boundaries)))

    def _precision(self) -> Tensor:
        true = above(self.positives)
        return ratio(true, true + above(self.negatives))

    def _specificity(self) -> Tensor:
        every = self.negatives.sum().expand(len(self._boundaries))
        return ratio(every - above(self.negatives), every)


@registry.register()
class SensitivityAtSpecificity(AtThresholds):
    """The best sensitivity (recall) where the specificity (share of negatives below the threshold) is high enough.

    Args:
        specificity: the least that it must be.
        num_thresholds, class_id: see `AtThresholds`.

    Keras counterpart: `keras.metrics.SensitivityAtSpecificity`.
    """

    def __init__(self, specificity: float, num_thresholds: int = 200, class_id: int | None = None, name: str | None = None,
                 dtype: Any = None) -> None:
        super().__init__("specificity", specificity, num_thresholds, class_id, name, dtype)

    def result(self) -> Tensor:
        return self._best(self._recall(), self._specificity())


@registry.register()
class SpecificityAtSensitivity(AtThresholds):
    """The best specificity where the sensitivity is high enough.

    Args:
        sensitivity: the least that it must be.
        num_thresholds, class_id: see `AtThresholds`.

    Keras counterpart: `keras.metrics.SpecificityAtSensitivity`.
    """

    def __init__(self, sensitivity: float, num_thresholds: int = 200, class_id: int | None = None, name: str | None = None,
                 dtype: Any = None) -> None:
        super().__init__("sensitivity", sensitivity, num_thresholds, class_id, name, dtype)

    def result(self) -> Tensor:
        return self._best(self._specificity(), self._recall())


@registry.register()
class PrecisionAtRecall(AtThresholds):
    """The best precision where the recall is high enough.

    Args:
        recall: the least that it must be.
        num_thresholds, class_id: see `AtThresholds`.

    Keras counterpart: `keras.metrics.PrecisionAtRecall`.
    """

    def __init__(self, recall: float, num_thresholds: int = 200, class_id: int | None = None, name: str | None = None,
                 dtype: Any = None) -> None:
        super().__init__("recall", recall, num_thresholds, class_id, name, dtype)

    def result(self) -> Tensor:
        return self._best(self._precision(), self._recall())


@registry.register()
class RecallAtPrecision(AtThresholds):
    """The best recall where the precision is high enough.

    Args:
        precision: the least that it must be.
        num_thresholds, class_id: see `AtThresholds`.

    Keras counterpart: `keras.metrics.RecallAtPrecision`.
    """

    def __init__(self, precision: float, num_thresholds: int = 200, class_id: int | None = None, name: str | None = None,
                 dtype: Any = None) -> None:
        super().__init__("precision", precision, num_thresholds, class_id, name, dtype)

    def result(self) -> Tensor:
        return self._best(self._recall(), self._precision())


@registry.register("multilabel_map")
class AveragePrecision(MacroAUC):
    """Mean over classes of the average precision `Σ (Rₖ - Rₖ₊₁) Pₖ` over thresholds, for many labels or several classes.

    The sums are of fixed size: scores are told apart by `num_thresholds` even steps from 0 to 1, so that the value is
    scikit-learn's for scores that lie in different steps, and near to it otherwise. Labels are whole numbers or one-hot.

    Args:
        num_thresholds: number of steps.
        average: "macro": mean over the classes that have a positive label; "weighted": by the number of positive
            labels; "micro": all outputs together; None: one value for each class.

    scikit-learn counterpart: `sklearn.metrics.average_precision_score`.
    """

    def __init__(self, num_thresholds: int = 1000, average: str | None = "macro", name: str | None = "average_precision",
                 dtype: Any = None) -> None:
        super().__init__(num_thresholds, "PR", name, dtype)
        checked_average("AveragePrecision", average)
        self.average = average

    def result(self) -> Tensor:
        if not self._state_names:
            return torch.zeros((), device=self._device)
        positives, negatives = self.positives, self.negatives
        if self.average == "micro":
            positives, negatives = positives.sum(1, keepdim=True), negatives.sum(1, keepdim=True)
        true, every = above(positives), positives.sum(0)
        gained = true - torch.cat([true[1:], torch.zeros_like(true[:1])])
        areas = ratio((gained * ratio(true, true + above(negatives))).sum(0), every)
        if self.average is None:
            return areas
        weight = every if self.average == "weighted" else (every > 0).to(areas.dtype)
        return ratio((areas * weight).sum(), weight.sum())
