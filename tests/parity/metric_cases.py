"""Samples of every metric, for the sweeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from convolt import losses, metrics
from convolt.layout import to_inside
from convolt.metrics.base import Metric

COUNT, CLASSES = 97, 4


@dataclass
class Case:
    """A metric, how to make it, and what its labels and predictions are."""

    metric: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    labels: str = "real"
    predictions: str = "real"
    image: bool = True

    def __str__(self) -> str:
        return f"{self.metric}({', '.join(f'{k}={v}' for k, v in self.kwargs.items())})"

    def make(self, **more: Any) -> Metric:
        return metrics.registry.find(self.metric)(**self.kwargs, **more)

    def arrays(self, shape: tuple[int, ...] = (COUNT, CLASSES), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Channels-last labels and predictions."""
        rng = np.random.default_rng(seed)
        classes = rng.integers(0, shape[-1], shape[:-1])
        real = rng.normal(size=shape) * 1.5
        p, q = np.exp(real), np.exp(rng.normal(size=shape))
        kinds = {"real": lambda: rng.normal(size=shape), "positive": lambda: rng.uniform(0.5, 3, shape), "classes": lambda: classes,
                 "one_hot": lambda: np.eye(shape[-1])[classes], "binary": lambda: rng.integers(0, 2, shape),
                 "softmax": lambda: p / p.sum(-1, keepdims=True), "sigmoid": lambda: 1 / (1 + np.exp(-real)),
                 "soft": lambda: q / q.sum(-1, keepdims=True),
                 "guesses": lambda: np.where(rng.uniform(size=shape[:-1]) < 0.5, classes, rng.integers(0, shape[-1], shape[:-1])),
                 "ranking": lambda: np.argsort(-real, axis=-1), "fifths": lambda: rng.integers(0, 6, shape) / 5}
        labels, predictions = kinds[self.labels](), kinds[self.predictions]()
        return tuple(a.astype("float32") if a.dtype == float else a for a in (labels, predictions))


CASES = [
    Case("Accuracy", {}, "classes", "guesses"),
    Case("BinaryAccuracy", {}, "binary", "sigmoid"),
    Case("BinaryAccuracy", {"threshold": 0.3}, "binary", "sigmoid"),
    Case("CategoricalAccuracy", {}, "one_hot", "softmax"),
    Case("SparseCategoricalAccuracy", {}, "classes", "softmax"),
    Case("TopKCategoricalAccuracy", {"k": 2}, "one_hot", "softmax"),
    Case("TopKCategoricalAccuracy", {"k": 3}, "one_hot", "fifths"),
    Case("SparseTopKCategoricalAccuracy", {"k": 2}, "classes", "softmax"),
    Case("SparseTopKCategoricalAccuracy", {"k": 2, "from_sorted_ids": True}, "classes", "ranking", image=False),
    Case("Precision", {}, "binary", "sigmoid"),
    Case("Precision", {"thresholds": [0.8, 0.2, 0.5]}, "binary", "fifths"),
    Case("Precision", {"thresholds": 0.4, "class_id": 2}, "one_hot", "softmax"),
    Case("Precision", {"top_k": 2}, "one_hot", "softmax"),
    Case("Recall", {}, "binary", "sigmoid"),
    Case("Recall", {"thresholds": [0.2, 0.7]}, "binary", "fifths"),
    Case("Recall", {"top_k": 1, "class_id": 1}, "one_hot", "softmax"),
    Case("TruePositives", {"thresholds": [0.3, 0.6]}, "binary", "sigmoid"),
    Case("FalsePositives", {}, "binary", "sigmoid"),
    Case("TrueNegatives", {}, "binary", "sigmoid"),
    Case("FalseNegatives", {"thresholds": 0.7}, "binary", "sigmoid"),
    Case("AUC", {}, "binary", "sigmoid"),
    Case("AUC", {"curve": "PR"}, "binary", "sigmoid"),
    Case("AUC", {"curve": "PR", "summation_method": "minoring", "num_thresholds": 50}, "binary", "sigmoid"),
    Case("AUC", {"summation_method": "majoring", "num_thresholds": 7}, "binary", "sigmoid"),
    Case("AUC", {"thresholds": [0.1, 0.35, 0.9]}, "binary", "sigmoid"),
    Case("AUC", {"multi_label": True}, "binary", "sigmoid", image=False),
    Case("AUC", {"multi_label": True, "num_labels": 4, "curve": "PR", "label_weights": [1.0, 2.0, 0.0, 3.0]}, "binary", "sigmoid",
         image=False),
    Case("AUC", {"from_logits": True, "label_weights": [1.0, 2.0, 0.5, 3.0]}, "binary", "real"),
    Case("FBetaScore", {}, "one_hot", "softmax", image=False),
    Case("FBetaScore", {"average": "micro", "beta": 2.0, "threshold": 0.3}, "binary", "sigmoid", image=False),
    Case("F1Score", {"average": "macro"}, "one_hot", "softmax", image=False),
    Case("F1Score", {"average": "weighted", "threshold": 0.6}, "binary", "sigmoid", image=False),
    Case("IoU", {"num_classes": 4, "target_class_ids": [0, 2]}, "classes", "guesses"),
    Case("MeanIoU", {"num_classes": 4}, "classes", "guesses"),
    Case("MeanIoU", {"num_classes": 4, "ignore_class": 1, "sparse_y_pred": False}, "classes", "softmax"),
    Case("MeanIoU", {"num_classes": 6, "sparse_y_true": False, "sparse_y_pred": False}, "one_hot", "softmax"),
    Case("MeanSquaredError"),
    Case("RootMeanSquaredError"),
    Case("MeanAbsoluteError"),
    Case("MeanAbsolutePercentageError", {}, "positive"),
    Case("MeanSquaredLogarithmicError", {}, "positive", "positive"),
    Case("LogCoshError"),
    Case("CosineSimilarity"),
    Case("R2Score", {}, image=False),
    Case("R2Score", {"class_aggregation": None}, image=False),
    Case("R2Score", {"class_aggregation": "variance_weighted_average", "num_regressors": 3}, image=False),
    Case("BinaryCrossentropy", {"label_smoothing": 0.1}, "binary", "sigmoid"),
    Case("BinaryCrossentropy", {"from_logits": True}, "binary"),
    Case("CategoricalCrossentropy", {"label_smoothing": 0.1}, "one_hot", "softmax"),
    Case("SparseCategoricalCrossentropy", {"from_logits": True}, "classes"),
    Case("KLDivergence", {}, "soft", "softmax"),
    Case("Poisson", {}, "positive", "positive"),
    Case("Hinge", {}, "binary"),
    Case("SquaredHinge", {}, "binary"),
    Case("CategoricalHinge", {}, "one_hot"),
    Case("BinaryIoU", {}, "binary", "sigmoid"),
    Case("BinaryIoU", {"target_class_ids": (1,), "threshold": 0.3}, "binary", "fifths"),
    Case("OneHotIoU", {"num_classes": 4, "target_class_ids": [1, 3]}, "one_hot", "softmax"),
    Case("OneHotIoU", {"num_classes": 4, "target_class_ids": [0], "ignore_class": 2, "sparse_y_pred": True}, "one_hot", "guesses"),
    Case("OneHotMeanIoU", {"num_classes": 4}, "one_hot", "softmax"),
    Case("SensitivityAtSpecificity", {"specificity": 0.6}, "binary", "sigmoid"),
    Case("SensitivityAtSpecificity", {"specificity": 0.4, "num_thresholds": 1}, "binary", "sigmoid"),
    Case("SpecificityAtSensitivity", {"sensitivity": 0.3, "num_thresholds": 20}, "binary", "sigmoid"),
    Case("PrecisionAtRecall", {"recall": 0.4}, "binary", "sigmoid"),
    Case("PrecisionAtRecall", {"recall": 0.3, "class_id": 2}, "one_hot", "softmax"),
    Case("RecallAtPrecision", {"precision": 0.6}, "binary", "sigmoid"),
    Case("RecallAtPrecision", {"precision": 0.2, "num_thresholds": 7, "class_id": 0}, "one_hot", "softmax"),
    Case("PearsonCorrelation"),
    Case("ConcordanceCorrelation"),
]
"""Metrics that Keras has."""

OWN_CASES = [
    Case("DiceScore", {}, "classes", "softmax"),
    Case("DiceScore", {"average": None, "include_background": False}, "one_hot", "softmax"),
    Case("DiceScore", {"average": "weighted", "per_image": True}, "classes", "softmax"),
    Case("DiceScore", {"average": None, "per_image": True}, "classes", "softmax"),
    Case("ExpectedCalibrationError", {}, "classes", "softmax"),
    Case("ExpectedCalibrationError", {"num_bins": 10, "norm": "l2"}, "one_hot", "softmax"),
    Case("ExpectedCalibrationError", {"norm": "max"}, "binary", "sigmoid"),
    Case("AveragePrecision", {}, "binary", "fifths"),
    Case("AveragePrecision", {"average": "weighted", "num_thresholds": 50}, "classes", "softmax"),
    Case("AveragePrecision", {"average": None}, "one_hot", "softmax"),
]
"""Metrics that Keras lacks; `test_metrics_beyond_keras.py` has their references."""


def inside(y: np.ndarray, p: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return losses.targets_to_inside(torch.tensor(y), p.ndim), to_inside(torch.tensor(p))


def in_batches(metric: Metric, y: np.ndarray, p: np.ndarray, weight: np.ndarray | None, cuts: list[int]) -> np.ndarray:
    metric.reset()
    for start, stop in zip([0, *cuts], [*cuts, len(y)], strict=True):
        if stop > start:
            metric.update(*inside(y[start:stop], p[start:stop]), None if weight is None else torch.tensor(weight[start:stop]))
    return metric.result().numpy()
