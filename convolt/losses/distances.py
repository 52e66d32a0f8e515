"""Losses of regression: distances between targets and predictions, and the cosine of their angle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from convolt.errors import ArgumentError, ShapeError, explain
from convolt.losses.base import Loss, registry
from convolt.losses.shapes import EPSILON, computed_in, entered, on_device, outside, paired


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


def quantile(y_true: Any, y_pred: Any, quantiles: float | Sequence[float] = 0.5) -> Tensor:
    """Returns the mean over the last axis of `max(q e, (q - 1) e)`, `e = y_true - y_pred`: the pinball loss (Koenker & Bassett, 1978).

    Args:
        y_true: targets; with several quantiles one per sample (or place), `(N,)` or `(N, 1)`.
        y_pred: predictions of the same shape, or with several quantiles `(N, …, quantiles)`.
        quantiles: the share of targets that shall lie below the prediction, between 0 and 1; one or several.
    """
    if isinstance(quantiles, (int, float)):
        t, p = paired("quantile", y_true, y_pred)
        error = t - p
        return torch.maximum(quantiles * error, (quantiles - 1) * error).mean(-1)
    t, p = outside(*entered(y_true, y_pred))
    p = computed_in(p)
    t = t.unsqueeze(-1) if t.ndim == p.ndim - 1 else t
    if p.ndim < 2 or p.shape[-1] != len(quantiles) or t.shape != (*p.shape[:-1], 1):
        raise ShapeError(explain("quantile", f"y_true of shape {tuple(t.shape)} and y_pred of shape {tuple(p.shape)}",
                                 f"targets (N, 1) and predictions (N, {len(quantiles)}), one for each quantile"))
    error = t.to(p.dtype) - p
    q = on_device(tuple(map(float, quantiles)), p.dtype, p.device)
    return torch.maximum(q * error, (q - 1) * error).mean(-1)


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


@registry.register("pinball", "pinball_loss")
class Quantile(Loss):
    """Pinball loss: the best prediction of one number is a quantile of the targets (Koenker & Bassett, 1978).

    Args:
        quantiles: between 0 and 1; one for outputs that are all this quantile, or several, one for each output of a
            single target.
        reduction, name, dtype: see `Loss`.

    scikit-learn counterpart: `sklearn.metrics.mean_pinball_loss`.
    """

    def __init__(self, quantiles: float | Sequence[float] = 0.5, reduction: str | None = "sum_over_batch_size",
                 name: str | None = "quantile", dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)
        several = [quantiles] if isinstance(quantiles, (int, float)) else list(quantiles)
        if not several or not all(0 < q < 1 for q in several):
            raise ArgumentError(explain("Quantile(quantiles)", repr(quantiles), "a number between 0 and 1, or several"))
        self.quantiles = quantiles if isinstance(quantiles, (int, float)) else several

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return quantile(y_true, y_pred, self.quantiles)

    def check_shapes(self, y_true: Tensor, y_pred: Tensor) -> None:
        quantile(y_true, y_pred, self.quantiles)
