"""Correlations of targets and predictions along an axis, averaged over samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from convolt.errors import ShapeError
from convolt.losses.shapes import EPSILON, computed_in, entered, mismatch, outside, same_rank
from convolt.metrics.base import registry
from convolt.metrics.means import MeanOfSamples

Axis = int | Sequence[int]


def _centred(name: str, y_true: Any, y_pred: Any, axis: Axis) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
    """Returns (centred targets, centred predictions, difference of their means, the axes)."""
    t, p = outside(*entered(y_true, y_pred))
    t, p = same_rank(t, computed_in(p))
    if t.shape != p.shape:
        raise ShapeError(mismatch(name, t, p))
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    t = t.to(p.dtype)
    mean_t, mean_p = t.mean(axes, keepdim=True), p.mean(axes, keepdim=True)
    return t - mean_t, p - mean_p, (mean_t - mean_p), axes


def pearson_correlation(y_true: Any, y_pred: Any, axis: Axis = -1) -> Tensor:
    """Returns the covariance along `axis` (of a channels-last shape) over both standard deviations; NaN for constants."""
    t, p, _, axes = _centred("pearson_correlation", y_true, y_pred, axis)
    return (t * p).mean(axes) / (t.square().mean(axes) * p.square().mean(axes)).sqrt()


def concordance_correlation(y_true: Any, y_pred: Any, axis: Axis = -1) -> Tensor:
    """Returns `2 cov / (var + var + (difference of means)²)` along `axis` of a channels-last shape (Lin, 1989)."""
    t, p, apart, axes = _centred("concordance_correlation", y_true, y_pred, axis)
    scale = t.square().mean(axes) + p.square().mean(axes) + apart.square().mean(axes)
    return 2 * (t * p).mean(axes) / (scale + EPSILON)


@registry.register()
class PearsonCorrelation(MeanOfSamples):
    """Mean over samples of the linear correlation of their targets and predictions: 1 is perfect, 0 none, -1 opposite.

    Args:
        axis: along which it is taken, in a channels-last shape; one or several.

    Keras counterpart: `keras.metrics.PearsonCorrelation`.
    """

    higher_is_better = True

    def __init__(self, name: str | None = "pearson_correlation", dtype: Any = None, axis: Axis = -1) -> None:
        super().__init__(name, dtype)
        self.axis = axis

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return pearson_correlation(y_true, y_pred, self.axis)


@registry.register()
class ConcordanceCorrelation(MeanOfSamples):
    """Mean over samples of the agreement of targets and predictions: like the correlation, but offset and scale count.

    Args:
        axis: along which it is taken, in a channels-last shape; one or several.

    Keras counterpart: `keras.metrics.ConcordanceCorrelation`.
    """

    higher_is_better = True

    def __init__(self, name: str | None = "concordance_correlation", dtype: Any = None, axis: Axis = -1) -> None:
        super().__init__(name, dtype)
        self.axis = axis

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return concordance_correlation(y_true, y_pred, self.axis)
