"""Metrics of segmentation beyond `IoU`: of one output against a threshold, of one-hot masks, and the Dice score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convolt.errors import ArgumentError, ShapeError, explain
from convolt.losses.shapes import activation_of, mismatch, outside, paired, same_rank, weights_like
from convolt.metrics.accuracy import class_ids, logit, place_weights
from convolt.metrics.base import Metric, ratio, registry
from convolt.metrics.classes import IoU, checked_average


@registry.register()
class BinaryIoU(IoU):
    """Intersection over union of class 0, class 1, or the mean of both, for outputs that are probabilities of class 1.

    Args:
        target_class_ids: (0,), (1,) or (0, 1).
        threshold: a prediction from here says 1. On logits (see `Metric.from_logits`), a threshold between 0 and 1 still
            is one on probabilities.

    Keras counterpart: `keras.metrics.BinaryIoU`.
    """

    def __init__(self, target_class_ids: Sequence[int] = (0, 1), threshold: float = 0.5, name: str | None = None,
                 dtype: Any = None) -> None:
        super().__init__(2, target_class_ids, name, dtype)
        self.threshold = threshold

    def accumulate(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None) -> None:
        t, p = same_rank(*outside(y_true, y_pred))
        if t.shape != p.shape:
            raise ShapeError(mismatch("BinaryIoU", t, p) + " For scores of several classes use MeanIoU.")
        said = y_pred >= (logit(self.threshold) if self.from_logits else self.threshold)
        super().accumulate(y_true, said.long(), sample_weight)


@registry.register()
class OneHotIoU(IoU):
    """Mean over some classes of intersection over union, for one-hot labels and scores.

    Args:
        num_classes, target_class_ids, ignore_class, sparse_y_pred, axis: as in `IoU`; by default predictions are scores.

    Keras counterpart: `keras.metrics.OneHotIoU`.
    """

    def __init__(self, num_classes: int | None, target_class_ids: Sequence[int] | None, name: str | None = None,
                 dtype: Any = None, ignore_class: int | None = None, sparse_y_pred: bool = False, axis: int = -1) -> None:
        super().__init__(num_classes, target_class_ids, name, dtype, ignore_class, False, sparse_y_pred, axis)


@registry.register()
class OneHotMeanIoU(IoU):
    """Mean over all classes of intersection over union, for one-hot labels and scores.

    Args:
        num_classes, ignore_class, sparse_y_pred, axis: as in `OneHotIoU`.

    Keras counterpart: `keras.metrics.OneHotMeanIoU`.
    """

    def __init__(self, num_classes: int | None, name: str | None = None, dtype: Any = None, ignore_class: int | None = None,
                 sparse_y_pred: bool = False, axis: int = -1) -> None:
        super().__init__(num_classes, None, name, dtype, ignore_class, False, sparse_y_pred, axis)


@registry.register()
class DiceScore(Metric):
    """Overlap of predicted and true masks: `2 · both / (labelled + predicted)`, over classes (Dice, 1945).

    Labels are whole numbers or one-hot, predictions scores; one output, or several after a sigmoid with labels of the same
    shape, say 1 above 0.5. A class that occurs neither in labels nor in predictions has no score and is in no mean.

    Args:
        average: "macro": mean over classes; "weighted": by the number of labels; "micro": all classes together; None: one
            score for each class.
        per_image: whether each image has its score, of which the result is the mean; False: the whole set has one, which
            equals the F1 score.
        include_background: whether class 0 of several counts.

    torchmetrics counterpart: `segmentation.DiceScore`, with `aggregation_level` "samplewise" or "global".
    """

    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self, average: str | None = "macro", per_image: bool = False, include_background: bool = True,
                 name: str | None = "dice_score", dtype: Any = None) -> None:
        super().__init__(name, dtype)
        checked_average("DiceScore", average)
        self.average, self.per_image, self.include_background = average, per_image, include_background

    def accumulate(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None) -> None:
        of_places = sample_weight is not None and (not self.per_image or sample_weight.numel() > len(y_pred))
        counts = self._counts(y_true, y_pred, sample_weight if of_places else None)  # (N, 3, C)
        if not self.include_background and counts.shape[2] > 1:
            counts = counts[:, :, 1:]
        if not self._state_names:
            self.add_variable(counts.shape[1:] if not self.per_image else (counts.shape[2],) if self.average is None else (),
                              name="total")
            self.add_variable(self.total.shape, name="count")
        if not self.per_image:
            self.total.add_(counts.sum(0))
            return
        scores, exists = self._averaged(counts)
        weight = exists.to(scores.dtype)
        if sample_weight is not None and not of_places:
            per_image = weights_like(sample_weight, scores[:, 0] if scores.ndim > 1 else scores).to(scores.dtype)
            weight = weight * per_image.reshape(-1, *(1,) * (scores.ndim - 1))
        self.total.add_((scores * weight).sum(0))
        self.count.add_(weight.sum(0))

    def _counts(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None) -> Tensor:
        """Returns for each image how often each class is right, predicted and labelled, `(N, 3, C)`."""
        samples, kind = len(y_pred), self._sum_type(y_pred.device)
        single = y_pred.ndim < 2 or y_pred.shape[1] == 1
        if single or (y_true.shape == y_pred.shape and "sigmoid" in (self.from_logits, activation_of(y_pred))):
            t, p = paired("DiceScore", y_true, y_pred)
            t, said = (t > 0.5).to(kind), (p > (0.0 if self.from_logits else 0.5)).to(kind)
            weight = torch.ones_like(p, dtype=kind) if sample_weight is None else weights_like(sample_weight, p).to(kind).expand(p.shape)
            each = torch.stack([t * said, said, t], 1) * weight.unsqueeze(1)
            return each.reshape(samples, 3, -1, 1 if single else p.shape[-1]).sum(2)
        true, guess, classes = class_ids("DiceScore", y_true, y_pred, self.from_logits)
        if not classes:
            raise ArgumentError(explain("DiceScore", "predictions that are class numbers", "scores of classes",
                                        "One-hot them with convolt.utils.to_categorical."))
        valid = (true >= 0) & (true < classes)
        given = place_weights(sample_weight, y_pred, kind)
        amount = valid.to(kind) if given is None else torch.where(valid, given, 0)
        first = (torch.arange(samples, device=y_pred.device) * classes)[:, None].expand(-1, true.numel() // max(samples, 1)).reshape(-1)
        counts = torch.zeros(3, samples * classes, dtype=kind, device=y_pred.device)
        true = torch.where(valid, true, 0)
        for row, cells, value in ((0, true, amount * (true == guess)), (1, guess, amount), (2, true, amount)):
            counts[row].index_add_(0, first + cells, value)
        return counts.reshape(3, samples, classes).transpose(0, 1)

    def _averaged(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (scores, whether they exist) of counts `(…, 3, C)`, averaged over classes."""
        right, predicted, labelled = counts.unbind(-2)
        if self.average == "micro":
            right, predicted, labelled = (x.sum(-1, keepdim=True) for x in (right, predicted, labelled))
        size = predicted + labelled
        scores = ratio(2 * right, size)
        if self.average is None:
            return scores, size > 0
        weight = labelled if self.average == "weighted" else (size > 0).to(scores.dtype)
        return ratio((scores * weight).sum(-1), weight.sum(-1)), (size > 0).any(-1)

    def result(self) -> Tensor:
        if not self._state_names:
            return torch.zeros((), device=self._device)
        return ratio(self.total, self.count) if self.per_image else self._averaged(self.total)[0]
