"""Losses of margins (hinge), of distributions (Kullback-Leibler, Poisson) and of overlap (Dice, Tversky)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convolt.losses.base import Loss, registry
from convolt.losses.shapes import EPSILON, paired

Axis = int | Sequence[int] | None


def _signs(y_true: Tensor) -> Tensor:
    """Turns labels 0 and 1 into -1 and 1; labels with any other value stay. Decided on the device, without a host sync."""
    binary = ((y_true == 0) | (y_true == 1)).all()
    return torch.where(binary, 2 * y_true - 1, y_true)


def hinge(y_true: Any, y_pred: Any) -> Tensor:
    """Returns the mean of `max(1 - y_true · y_pred, 0)` over the last axis; labels are -1 and 1, or 0 and 1."""
    t, p = paired("hinge", y_true, y_pred)
    return (1 - _signs(t) * p).clamp_min(0).mean(-1)


def squared_hinge(y_true: Any, y_pred: Any) -> Tensor:
    """Returns the mean of `max(1 - y_true · y_pred, 0)²` over the last axis; labels are -1 and 1, or 0 and 1."""
    t, p = paired("squared_hinge", y_true, y_pred)
    return (1 - _signs(t) * p).clamp_min(0).square().mean(-1)


def categorical_hinge(y_true: Any, y_pred: Any) -> Tensor:
    """Returns `max(1 + highest wrong score - right score, 0)` per sample, from one-hot labels."""
    t, p = paired("categorical_hinge", y_true, y_pred)
    right, wrong = (t * p).sum(-1), ((1 - t) * p).amax(-1)
    return (wrong - right + 1).clamp_min(0)


def kl_divergence(y_true: Any, y_pred: Any) -> Tensor:
    """Returns `Σ y_true log(y_true / y_pred)` over the last axis; both are probabilities, clipped to [1e-7, 1]."""
    t, p = (y.clamp(EPSILON, 1) for y in paired("kl_divergence", y_true, y_pred))
    return (t * (t / p).log()).sum(-1)


def poisson(y_true: Any, y_pred: Any) -> Tensor:
    """Returns the mean of `y_pred - y_true log(y_pred)` over the last axis; predictions are rates, from 0."""
    t, p = paired("poisson", y_true, y_pred)
    return (p - t * (p + EPSILON).log()).mean(-1)


def _total(x: Tensor, axis: Axis) -> Tensor:
    return x.sum() if axis is None else x.sum(axis if isinstance(axis, int) else tuple(axis))


def dice(y_true: Any, y_pred: Any, axis: Axis = None) -> Tensor:
    """Returns `1 - 2 Σ(t · p) / (Σ t + Σ p)`, the sums over `axis` of a channels-last shape (None: over everything)."""
    t, p = paired("dice", y_true, y_pred)
    return 1 - 2 * _total(t * p, axis) / (_total(t, axis) + _total(p, axis) + EPSILON)


def tversky(y_true: Any, y_pred: Any, alpha: float = 0.5, beta: float = 0.5, axis: Axis = None) -> Tensor:
    """Returns `1 - Σ(t · p) / (Σ(t · p) + alpha Σ(t (1 - p)) + beta Σ(p (1 - t)))`, as in Keras (Salehi et al., 2017)."""
    t, p = paired("tversky", y_true, y_pred)
    both = _total(t * p, axis)
    missed, invented = _total(t * (1 - p), axis), _total(p * (1 - t), axis)
    return 1 - both / (both + alpha * missed + beta * invented + EPSILON)


@registry.register()
class Hinge(Loss):
    """Mean of `max(1 - y_true · y_pred, 0)`; labels are -1 and 1, or 0 and 1.

    Keras counterpart: `keras.losses.Hinge`.
    """

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str | None = "hinge", dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return hinge(y_true, y_pred)


@registry.register()
class SquaredHinge(Loss):
    """Mean of `max(1 - y_true · y_pred, 0)²`; labels are -1 and 1, or 0 and 1.

    Keras counterpart: `keras.losses.SquaredHinge`.
    """

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str | None = "squared_hinge",
                 dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return squared_hinge(y_true, y_pred)


@registry.register()
class CategoricalHinge(Loss):
    """`max(1 + highest wrong score - right score, 0)`, from one-hot labels.

    Keras counterpart: `keras.losses.CategoricalHinge`.
    """

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str | None = "categorical_hinge",
                 dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return categorical_hinge(y_true, y_pred)


@registry.register("kld", "KLD", "kullback_leibler_divergence")
class KLDivergence(Loss):
    """`Σ y_true log(y_true / y_pred)`: how far one distribution is from another.

    Keras counterpart: `keras.losses.KLDivergence`.
    """

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str | None = "kl_divergence",
                 dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return kl_divergence(y_true, y_pred)


@registry.register()
class Poisson(Loss):
    """Mean of `y_pred - y_true log(y_pred)`: the likelihood of counts whose rates are predicted.

    Keras counterpart: `keras.losses.Poisson`.
    """

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str | None = "poisson", dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return poisson(y_true, y_pred)


@registry.register()
class Dice(Loss):
    """One minus the Dice coefficient, the overlap of a predicted and a true mask (Milletari et al., 2016).

    Args:
        reduction, name, dtype: see `Loss`.
        axis: over which the overlap is summed, in a channels-last shape; None sums over the whole batch and gives one
            number, which sample weights can but scale; (1, 2, 3) gives one number per image `(N, H, W, C)`.

    Keras counterpart: `keras.losses.Dice`.
    """

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str | None = "dice", axis: Axis = None,
                 dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)
        self.axis = axis

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return dice(y_true, y_pred, self.axis)


@registry.register()
class Tversky(Loss):
    """One minus the Tversky index, a Dice coefficient that weighs missed and invented pixels apart (Salehi et al., 2017).

    Args:
        alpha: weight of what is missed (`y_true (1 - y_pred)`, in Keras's convention).
        beta: weight of what is invented.
        reduction, name, dtype: see `Loss`.
        axis: as in `Dice`.

    Keras counterpart: `keras.losses.Tversky`.
    """

    def __init__(self, alpha: float = 0.5, beta: float = 0.5, reduction: str | None = "sum_over_batch_size",
                 name: str | None = "tversky",
                 axis: Axis = None, dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)
        self.alpha, self.beta, self.axis = alpha, beta, axis

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return tversky(y_true, y_pred, self.alpha, self.beta, self.axis)
