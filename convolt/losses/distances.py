"""Losses of regression: distances between targets and predictions, and the cosine of their angle."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from convolt.errors import ArgumentError, explain
from convolt.losses.base import Loss, registry
from convolt.losses.shapes import EPSILON, paired


def mean_squared_error(y_true: Any, y_pred: Any) -> Tensor:
    """Returns the mean of `(y_true - y_pred)²` over the last axis (channels)."""
    t, p = paired("mean_squared_error", y_true, y_pred)
    return (t - p).square().mean(-1)


def mean_absolute_error(y_true: Any, y_pred: Any) -> Tensor:
    """Returns the mean of `|y_true - y_pred|` over the last axis (channels)."""
    t, p = paired("mean_absolute_error", y_true, y_pred)
    return (t - p).abs().mean(-1)


def mean_absolute_percentage_error(y_true: Any, y_pred: Any) -> Tensor:
    """Returns 100 times the mean of `|y_true - y_pred| / |y_true|` over the last axis; `|y_true|` is at least 1e-7."""
    t, p = paired("mean_absolute_percentage_error", y_true, y_pred)
    return 100 * ((t - p) / t.abs().clamp_min(EPSILON)).abs().mean(-1)


def mean_squared_logarithmic_error(y_true: Any, y_pred: Any) -> Tensor:
    """Returns the mean of `(log(1 + y_true) - log(1 + y_pred))²` over the last axis; values below 1e-7 count as 1e-7."""
    t, p = paired("mean_squared_logarithmic_error", y_true, y_pred)
    return (p.clamp_min(EPSILON).log1p() - t.clamp_min(EPSILON).log1p()).square().mean(-1)


def huber(y_true: Any, y_pred: Any, delta: float = 1.0) -> Tensor:
    """Returns the mean over the last axis of `e²/2` for errors up to `delta` and `delta (|e| - delta/2)` beyond (Huber, 1964)."""
    t, p = paired("huber", y_true, y_pred)
    return F.huber_loss(p, t, reduction="none", delta=delta).mean(-1)


def log_cosh(y_true: Any, y_pred: Any) -> Tensor:
    """Returns the mean of `log(cosh(y_pred - y_true))` over the last axis."""
    t, p = paired("log_cosh", y_true, y_pred)
    error = p - t
    return (error + F.softplus(-2 * error) - math.log(2)).mean(-1)


def cosine_similarity(y_true: Any, y_pred: Any, axis: int = -1) -> Tensor:
    """Returns minus the cosine of the angle between the vectors along `axis`: -1 is the same direction."""
    t, p = paired("cosine_similarity", y_true, y_pred)
    unit_t, unit_p = F.normalize(t, dim=axis, eps=EPSILON), F.normalize(p, dim=axis, eps=EPSILON)
    return -(unit_t * unit_p).sum(axis)


@registry.register("mse", "MSE")
class MeanSquaredError(Loss):
    """Mean of `(y_true - y_pred)²`.

    Keras counterpart: `keras.losses.MeanSquaredError`.
    """

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str | None = "mean_squared_error",
                 dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return mean_squared_error(y_true, y_pred)


@registry.register("mae", "MAE")
class MeanAbsoluteError(Loss):
    """Mean of `|y_true - y_pred|`.

    Keras counterpart: `keras.losses.MeanAbsoluteError`.
    """

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str | None = "mean_absolute_error",
                 dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return mean_absolute_error(y_true, y_pred)


@registry.register("mape", "MAPE")
class MeanAbsolutePercentageError(Loss):
    """100 times the mean of `|y_true - y_pred| / |y_true|`.

    Keras counterpart: `keras.losses.MeanAbsolutePercentageError`.
    """

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str | None = "mean_absolute_percentage_error",
                 dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return mean_absolute_percentage_error(y_true, y_pred)


@registry.register("msle", "MSLE")
class MeanSquaredLogarithmicError(Loss):
    """Mean of `(log(1 + y_true) - log(1 + y_pred))²`.

    Keras counterpart: `keras.losses.MeanSquaredLogarithmicError`.
    """

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str | None = "mean_squared_logarithmic_error",
                 dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return mean_squared_logarithmic_error(y_true, y_pred)


@registry.register("logcosh")
class LogCosh(Loss):
    """Mean of `log(cosh(y_pred - y_true))`: quadratic near 0, linear far away.

    Keras counterpart: `keras.losses.LogCosh`.
    """

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str | None = "log_cosh", dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return log_cosh(y_true, y_pred)


@registry.register("huber_loss")
class Huber(Loss):
    """Quadratic for errors up to `delta`, linear beyond (Huber, 1964).

    Args:
        delta: where the two meet, above 0.
        reduction, name, dtype: see `Loss`.

    Keras counterpart: `keras.losses.Huber`; PyTorch's: `torch.nn.HuberLoss`.
    """

    def __init__(self, delta: float = 1.0, reduction: str | None = "sum_over_batch_size", name: str | None = "huber_loss",
                 dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)
        if not delta > 0:
            raise ArgumentError(explain("Huber(delta)", repr(delta), "a number above 0"))
        self.delta = delta

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return huber(y_true, y_pred, self.delta)


@registry.register()
class CosineSimilarity(Loss):
    """Minus the cosine of the angle between targets and predictions.

    Args:
        axis: of the vectors, in a channels-last shape.
        reduction, name, dtype: see `Loss`.

    Keras counterpart: `keras.losses.CosineSimilarity`.
    """

    def __init__(self, axis: int = -1, reduction: str | None = "sum_over_batch_size", name: str | None = "cosine_similarity",
                 dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)
        self.axis = axis

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return cosine_similarity(y_true, y_pred, self.axis)
