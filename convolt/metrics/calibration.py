"""How far predicted probabilities are from the shares of right answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convolt.errors import ArgumentError, explain
from convolt.layout import to_inside, to_outside
from convolt.losses.shapes import computed_in, one_hot_labels, paired, sparse_labels, weights_like
from convolt.metrics.accuracy import place_weights
from convolt.metrics.base import Metric, ratio, registry
from convolt.metrics.thresholds import probabilities

NORMS = ("l1", "l2", "max")


@registry.register("ece")
class ExpectedCalibrationError(Metric):
    """Mean distance between confidence and accuracy, over bins of confidence of equal width (Guo et al., 2017).

    The confidence of several classes is the highest probability, that of one output the probability of class 1, whose
    accuracy is the share of labels 1.

    Args:
        num_bins: number of bins from 0 to 1; a confidence of 1 is in the last.
        norm: "l1": mean distance, weighted by the bins' samples; "l2": root of the mean square; "max": the largest.

    Labels are whole numbers or one-hot. torchmetrics counterpart: `CalibrationError`.
    """

    higher_is_better = False
    counts: Tensor
    confidences: Tensor
    accuracies: Tensor

    def __init__(self, num_bins: int = 15, norm: str = "l1", name: str | None = "expected_calibration_error",
                 dtype: Any = None) -> None:
        super().__init__(name, dtype)
        if isinstance(num_bins, bool) or not isinstance(num_bins, int) or num_bins < 1:
            raise ArgumentError(explain("ExpectedCalibrationError(num_bins)", repr(num_bins), "a whole number from 1"))
        if norm not in NORMS:
            raise ArgumentError(explain("ExpectedCalibrationError(norm)", repr(norm), f"one of {list(NORMS)}"))
        self.num_bins, self.norm = num_bins, norm
        self._boundaries = torch.linspace(0, 1, num_bins + 1)[1:-1].contiguous()
        for state in ("counts", "confidences", "accuracies"):
            self.add_variable((num_bins,), name=state)

    def accumulate(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None) -> None:
        p = to_inside(probabilities(to_outside(computed_in(y_pred)), self.from_logits))
        kind = self.counts.dtype
        if p.ndim < 2 or p.shape[1] == 1:
            right, confidence = paired("ExpectedCalibrationError", y_true, p)
            weight = None if sample_weight is None else weights_like(sample_weight, confidence).to(kind).expand(confidence.shape)
        else:
            sparse = y_true.ndim < p.ndim or y_true.shape[1] == 1
            labels = (sparse_labels if sparse else one_hot_labels)("ExpectedCalibrationError", y_true, p)
            confidence, guess = p.max(1)
            right = (labels if sparse else labels.argmax(1)) == guess
            weight = place_weights(sample_weight, p, kind)
        confidence = confidence.reshape(-1).contiguous()
        bins = torch.bucketize(confidence, self._boundaries.to(confidence.dtype), right=True)
        ones = torch.ones_like(confidence, dtype=kind) if weight is None else weight.reshape(-1)
        for state, value in ((self.counts, ones), (self.confidences, confidence * ones), (self.accuracies, right.reshape(-1) * ones)):
            state.index_add_(0, bins, value)

    def result(self) -> Tensor:
        apart = ratio(self.accuracies - self.confidences, self.counts).abs()
        if self.norm == "max":
            return apart.amax()
        share = ratio(self.counts, self.counts.sum().expand(self.num_bins))
        return (apart * share).sum() if self.norm == "l1" else (apart.square() * share).sum().sqrt()
