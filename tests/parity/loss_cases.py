"""Samples of every loss, for the sweeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from convolt import losses
from convolt.activations import softmax
from convolt.losses.base import Loss

FLAT, IMAGE, STEPS = (6, 5), (3, 3, 2, 5), (4, 7, 5)
SHAPES = pytest.mark.parametrize("shape", [FLAT, IMAGE], ids=["flat", "image"])
WORDS = np.array([[1, 1, 2], [3, 0, 0], [0, 0, 0], [4, 2, 3]])
"""Labels for `STEPS`: one with a repeated label, a short one, an empty one."""


@dataclass
class Case:
    """A loss, how to make it, and what its labels and predictions are."""

    loss: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    labels: str = "real"
    predictions: str = "real"
    shapes: tuple[tuple[int, ...], ...] = (FLAT, IMAGE)
    """What the loss takes."""

    def __str__(self) -> str:
        return f"{self.loss}({', '.join(f'{k}={v}' for k, v in self.kwargs.items())})"

    def make(self, **more: Any) -> Loss:
        return losses.registry.find(self.loss)(**self.kwargs, **more)

    def arrays(self, shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Channels-last labels and predictions, kept off kinks and ties."""
        rng = np.random.default_rng(seed)
        classes = rng.integers(0, shape[-1], shape[:-1])
        labels = {
            "real": lambda: rng.normal(size=shape), "positive": lambda: rng.uniform(0.5, 3, shape),
            "sparse": lambda: classes, "one_hot": lambda: np.eye(shape[-1])[classes],
            "binary": lambda: rng.integers(0, 2, shape).astype(float), "signs": lambda: rng.choice([-1.0, 1.0], shape),
            "words": lambda: WORDS, "ids": lambda: np.arange(shape[0]) % 3,
            "single": lambda: rng.normal(size=(*shape[:-1], 1)),
            "soft": lambda: softmax(torch.tensor(rng.normal(size=shape)), **({"axis": 1} if len(shape) > 2 else {})).numpy(),
        }[self.labels]()
        real = rng.normal(size=shape) * 1.5
        p = np.exp(real)
        predictions = {"real": real, "positive": rng.uniform(0.2, 3, shape), "softmax": p / p.sum(-1, keepdims=True),
                       "sigmoid": 1 / (1 + np.exp(-real)),
                       "unit": real / np.linalg.norm(real, axis=-1, keepdims=True)}[self.predictions]
        return labels if self.labels in ("sparse", "words", "ids") else labels.astype("float32"), predictions.astype("float32")


CASES = [
    Case("SparseCategoricalCrossentropy", {}, "sparse", "softmax"),
    Case("SparseCategoricalCrossentropy", {"from_logits": True}, "sparse"),
    Case("SparseCategoricalCrossentropy", {"from_logits": True, "ignore_class": 2}, "sparse"),
    Case("SparseCategoricalCrossentropy", {"ignore_class": 0}, "sparse", "softmax"),
    Case("CategoricalCrossentropy", {}, "one_hot", "softmax"),
    Case("CategoricalCrossentropy", {"from_logits": True}, "one_hot"),
    Case("CategoricalCrossentropy", {"label_smoothing": 0.1}, "one_hot", "softmax"),
    Case("CategoricalCrossentropy", {"from_logits": True, "label_smoothing": 0.2}, "soft"),
    Case("CategoricalFocalCrossentropy", {}, "one_hot", "softmax"),
    Case("CategoricalFocalCrossentropy", {"from_logits": True, "gamma": 1.5, "alpha": 0.4, "label_smoothing": 0.1}, "one_hot"),
    Case("BinaryCrossentropy", {}, "binary", "sigmoid"),
    Case("BinaryCrossentropy", {"from_logits": True}, "binary"),
    Case("BinaryCrossentropy", {"label_smoothing": 0.1}, "binary", "sigmoid"),
    Case("BinaryCrossentropy", {"from_logits": True, "label_smoothing": 0.2}, "binary"),
    Case("BinaryFocalCrossentropy", {}, "binary", "sigmoid"),
    Case("BinaryFocalCrossentropy", {"apply_class_balancing": True, "alpha": 0.3, "gamma": 3.0}, "binary", "sigmoid"),
    Case("BinaryFocalCrossentropy", {"from_logits": True, "label_smoothing": 0.1, "gamma": 0.5}, "binary"),
    Case("MeanSquaredError"),
    Case("MeanAbsoluteError"),
    Case("MeanAbsolutePercentageError"),
    Case("MeanSquaredLogarithmicError", {}, "positive", "positive"),
    Case("LogCosh"),
    Case("Huber"),
    Case("Huber", {"delta": 0.4}),
    Case("CosineSimilarity"),
    Case("CosineSimilarity", {"axis": 1}),
    Case("Hinge", {}, "binary"),
    Case("Hinge", {}, "signs"),
    Case("SquaredHinge", {}, "binary"),
    Case("SquaredHinge", {}, "signs"),
    Case("CategoricalHinge", {}, "one_hot"),
    Case("KLDivergence", {}, "soft", "softmax"),
    Case("Poisson", {}, "positive", "positive"),
    Case("Dice", {}, "binary", "sigmoid"),
    Case("Dice", {"axis": 1}, "binary", "sigmoid"),
    Case("Tversky", {"alpha": 0.3, "beta": 0.7}, "binary", "sigmoid"),
    Case("Tversky", {"axis": (1,)}, "binary", "sigmoid"),
    Case("CategoricalGeneralizedCrossEntropy", {"q": 0.5}, "sparse", "softmax"),
    Case("CategoricalGeneralizedCrossEntropy", {"q": 0.9}, "sparse", "softmax"),
    Case("CTC", {}, "words", shapes=(STEPS,)),
    Case("Circle", {"gamma": 4.0}, "ids", "unit", shapes=(FLAT,)),
    Case("Circle", {"gamma": 2.0, "margin": 0.25, "remove_diagonal": False}, "ids", "unit", shapes=(FLAT,)),
]
"""Losses that Keras has."""

OWN_CASES = [
    Case("TripletSemiHard", {}, "ids", shapes=(FLAT,)),
    Case("TripletSemiHard", {"margin": 0.3, "distance_metric": "angular"}, "ids", shapes=(FLAT,)),
    Case("TripletSemiHard", {"margin": 5.0, "distance_metric": "squared-L2"}, "ids", shapes=(FLAT,)),
    Case("TripletHard", {}, "ids", shapes=(FLAT,)),
    Case("TripletHard", {"soft": True, "distance_metric": "squared-L2"}, "ids", shapes=(FLAT,)),
    Case("Contrastive", {}, "binary", "positive"),
    Case("Contrastive", {"margin": 2.0}, "binary", "positive"),
    Case("SupervisedContrastive", {}, "ids", shapes=(FLAT,)),
    Case("SupervisedContrastive", {"temperature": 0.5}, "ids", shapes=(FLAT,)),
    Case("Quantile", {}),
    Case("Quantile", {"quantiles": 0.9}),
    Case("Quantile", {"quantiles": [0.1, 0.25, 0.5, 0.75, 0.9]}, "single"),
]
"""Losses that Keras lacks; `test_losses_beyond_keras.py` has their references."""
