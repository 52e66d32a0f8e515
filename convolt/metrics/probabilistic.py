"""Losses of classification as metrics, with the arguments that Keras gives the metrics of the same names."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from convolt import losses
from convolt.metrics.base import registry
from convolt.metrics.means import MeanOfSamples


@registry.register("bce", "BCE")
class BinaryCrossentropy(MeanOfSamples):
    """Mean crossentropy of labels 0 and 1.

    Keras counterpart: `keras.metrics.BinaryCrossentropy`.
    """

    higher_is_better = False

    def __init__(self, name: str | None = "binary_crossentropy", dtype: Any = None, from_logits: bool = False,
                 label_smoothing: float = 0) -> None:
        super().__init__(name, dtype)
        self.from_logits, self.label_smoothing = from_logits, label_smoothing

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return losses.binary_crossentropy(y_true, y_pred, bool(self.from_logits), self.label_smoothing)


@registry.register()
class CategoricalCrossentropy(MeanOfSamples):
    """Mean crossentropy of one-hot labels.

    Keras counterpart: `keras.metrics.CategoricalCrossentropy`.
    """

    higher_is_better = False

    def __init__(self, name: str | None = "categorical_crossentropy", dtype: Any = None, from_logits: bool = False,
                 label_smoothing: float = 0, axis: int = -1) -> None:
        super().__init__(name, dtype)
        self.from_logits, self.label_smoothing, self.axis = from_logits, label_smoothing, axis

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return losses.categorical_crossentropy(y_true, y_pred, bool(self.from_logits), self.label_smoothing, self.axis)


@registry.register()
class SparseCategoricalCrossentropy(MeanOfSamples):
    """Mean crossentropy of whole-number labels.

    Keras counterpart: `keras.metrics.SparseCategoricalCrossentropy`.
    """

    higher_is_better = False

    def __init__(self, name: str | None = "sparse_categorical_crossentropy", dtype: Any = None, from_logits: bool = False,
                 axis: int = -1) -> None:
        super().__init__(name, dtype)
        self.from_logits, self.axis = from_logits, axis

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return losses.sparse_categorical_crossentropy(y_true, y_pred, bool(self.from_logits), axis=self.axis)


@registry.register("ce")
class Crossentropy(MeanOfSamples):
    """The crossentropy that fits the shapes, as the loss of this name chooses."""

    higher_is_better = False

    def __init__(self, name: str | None = "crossentropy", dtype: Any = None, from_logits: bool = False) -> None:
        super().__init__(name, dtype)
        self.from_logits = from_logits

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return losses.Crossentropy(bool(self.from_logits)).per_sample(y_true, y_pred)


@registry.register("kld", "KLD", "kullback_leibler_divergence")
class KLDivergence(MeanOfSamples):
    """Mean of `Σ y_true log(y_true / y_pred)`.

    Keras counterpart: `keras.metrics.KLDivergence`.
    """

    higher_is_better = False

    def __init__(self, name: str | None = "kl_divergence", dtype: Any = None) -> None:
        super().__init__(name, dtype)

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return losses.kl_divergence(y_true, y_pred)


@registry.register()
class Poisson(MeanOfSamples):
    """Mean of `y_pred - y_true log(y_pred)`.

    Keras counterpart: `keras.metrics.Poisson`.
    """

    higher_is_better = False

    def __init__(self, name: str | None = "poisson", dtype: Any = None) -> None:
        super().__init__(name, dtype)

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return losses.poisson(y_true, y_pred)


@registry.register()
class Hinge(MeanOfSamples):
    """Mean of `max(1 - y_true · y_pred, 0)`.

    Keras counterpart: `keras.metrics.Hinge`.
    """

    higher_is_better = False

    def __init__(self, name: str | None = "hinge", dtype: Any = None) -> None:
        super().__init__(name, dtype)

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return losses.hinge(y_true, y_pred)


@registry.register()
class SquaredHinge(MeanOfSamples):
    """Mean of `max(1 - y_true · y_pred, 0)²`.

    Keras counterpart: `keras.metrics.SquaredHinge`.
    """

    higher_is_better = False

    def __init__(self, name: str | None = "squared_hinge", dtype: Any = None) -> None:
        super().__init__(name, dtype)

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return losses.squared_hinge(y_true, y_pred)


@registry.register()
class CategoricalHinge(MeanOfSamples):
    """Mean of `max(1 + highest wrong score - right score, 0)`.

    Keras counterpart: `keras.metrics.CategoricalHinge`.
    """

    higher_is_better = False

    def __init__(self, name: str | None = "categorical_hinge", dtype: Any = None) -> None:
        super().__init__(name, dtype)

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return losses.categorical_hinge(y_true, y_pred)
