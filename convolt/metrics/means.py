"""Metrics that are the mean of something per sample: `Mean`, losses as metrics, errors of regression."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convolt import losses
from convolt.arrays import as_tensor
from convolt.errors import ArgumentError, ArgumentTypeError, explain
from convolt.losses.base import FunctionLoss, Loss
from convolt.losses.shapes import paired, weights_like
from convolt.masks import masked_weight
from convolt.metrics.base import Metric, ratio, registry


class MeanOfSamples(Metric):
    """A mean over samples of what `values` gives for each of them (and for each place in them)."""

    total: Tensor
    count: Tensor

    def __init__(self, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name, dtype)
        self.add_variable((), name="total")
        self.add_variable((), name="count")

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns one value per sample, `(N,)`, or per place, `(N, …)`."""
        raise ArgumentTypeError(explain(type(self).__name__, "no `values`", "a method that gives one value per sample"))

    def accumulate(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None) -> None:
        self.add(self.values(y_true, y_pred), sample_weight)

    def add(self, values: Tensor, sample_weight: Tensor | None) -> None:
        """Adds values `(N, …)`: the mean of each sample counts once, times its weight."""
        values = values.reshape(1) if values.ndim == 0 else values
        samples = values.shape[0]
        flat = values.reshape(samples, -1).to(self.total.dtype)
        if sample_weight is None:
            self.total.add_(flat.mean(1).sum())
            self.count.add_(samples)
            return
        weight = weights_like(sample_weight, values).to(flat.dtype).expand(values.shape).reshape(samples, -1)
        self.total.add_((flat * weight).mean(1).sum())
        self.count.add_(weight.mean(1).sum())

    def result(self) -> Tensor:
        return ratio(self.total, self.count)


@registry.register()
class Mean(MeanOfSamples):
    """Mean of values given to `update(values, sample_weight=None)`.

    Keras counterpart: `keras.metrics.Mean`.
    """

    def __init__(self, name: str | None = "mean", dtype: Any = None) -> None:
        super().__init__(name, dtype)

    def update(self, values: Any, sample_weight: Any = None) -> None:  # type: ignore[override]
        values = as_tensor(values, "values")
        self.follow(values.device)
        with torch.no_grad():
            self.add(values, None if sample_weight is None else as_tensor(sample_weight, "sample_weight"))

    update_state = update  # type: ignore[assignment]


@registry.register()
class Sum(Metric):
    """Sum of values given to `update(values, sample_weight=None)`.

    Keras counterpart: `keras.metrics.Sum`.
    """

    total: Tensor

    def __init__(self, name: str | None = "sum", dtype: Any = None) -> None:
        super().__init__(name, dtype)
        self.add_variable((), name="total")

    def update(self, values: Any, sample_weight: Any = None) -> None:  # type: ignore[override]
        values = as_tensor(values, "values")
        self.follow(values.device)
        with torch.no_grad():
            values = values.to(self.total.dtype)
            self.total.add_((values if sample_weight is None else values * weights_like(sample_weight, values)).sum())

    update_state = update  # type: ignore[assignment]

    def result(self) -> Tensor:
        return self.total.clone()


@registry.register()
class MeanMetricWrapper(MeanOfSamples):
    """Mean of a function `fn(y_true, y_pred)` of channels-last tensors, or of a loss (object, name, configuration), over samples.

    A function that returns a scalar per batch is averaged over batches, each with the weight of one sample.

    Keras counterpart: `keras.metrics.MeanMetricWrapper`.
    """

    def __init__(self, fn: Any, name: str | None = None, dtype: Any = None) -> None:
        self.fn: Loss = losses.get(fn)
        super().__init__(name or self.fn.name, dtype)
        if not isinstance(self.fn, FunctionLoss):
            self.higher_is_better = False

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return self.fn.per_sample(y_true, y_pred)

    def accumulate(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None) -> None:
        values = self.values(y_true, y_pred)
        self.add(values, masked_weight(self.fn.valid(y_true, y_pred, values), sample_weight))  # without those of an ignored class


@registry.register("mse", "MSE")
class MeanSquaredError(MeanOfSamples):
    """Mean of `(y_true - y_pred)²`.

    Keras counterpart: `keras.metrics.MeanSquaredError`.
    """

    higher_is_better = False

    def __init__(self, name: str | None = "mean_squared_error", dtype: Any = None) -> None:
        super().__init__(name, dtype)

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return losses.mean_squared_error(y_true, y_pred)


@registry.register("rmse", "RMSE")
class RootMeanSquaredError(MeanSquaredError):
    """Square root of the mean of `(y_true - y_pred)²` over the whole set.

    Keras counterpart: `keras.metrics.RootMeanSquaredError`.
    """

    def __init__(self, name: str | None = "root_mean_squared_error", dtype: Any = None) -> None:
        super().__init__(name, dtype)

    def result(self) -> Tensor:
        return super().result().sqrt()


@registry.register("mae", "MAE")
class MeanAbsoluteError(MeanOfSamples):
    """Mean of `|y_true - y_pred|`.

    Keras counterpart: `keras.metrics.MeanAbsoluteError`.
    """

    higher_is_better = False

    def __init__(self, name: str | None = "mean_absolute_error", dtype: Any = None) -> None:
        super().__init__(name, dtype)

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return losses.mean_absolute_error(y_true, y_pred)


@registry.register("mape", "MAPE")
class MeanAbsolutePercentageError(MeanOfSamples):
    """100 times the mean of `|y_true - y_pred| / |y_true|`.

    Keras counterpart: `keras.metrics.MeanAbsolutePercentageError`.
    """

    higher_is_better = False

    def __init__(self, name: str | None = "mean_absolute_percentage_error", dtype: Any = None) -> None:
        super().__init__(name, dtype)

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return losses.mean_absolute_percentage_error(y_true, y_pred)


@registry.register("msle", "MSLE")
class MeanSquaredLogarithmicError(MeanOfSamples):
    """Mean of `(log(1 + y_true) - log(1 + y_pred))²`.

    Keras counterpart: `keras.metrics.MeanSquaredLogarithmicError`.
    """

    higher_is_better = False

    def __init__(self, name: str | None = "mean_squared_logarithmic_error", dtype: Any = None) -> None:
        super().__init__(name, dtype)

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return losses.mean_squared_logarithmic_error(y_true, y_pred)


@registry.register("logcosh", "log_cosh")
class LogCoshError(MeanOfSamples):
    """Mean of `log(cosh(y_pred - y_true))`.

    Keras counterpart: `keras.metrics.LogCoshError`.
    """

    higher_is_better = False

    def __init__(self, name: str | None = "logcosh", dtype: Any = None) -> None:
        super().__init__(name, dtype)

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return losses.log_cosh(y_true, y_pred)


@registry.register()
class CosineSimilarity(MeanOfSamples):
    """Mean cosine of the angle between targets and predictions: 1 is the same direction (the loss has the opposite sign).

    Args:
        axis: of the vectors, in a channels-last shape.

    Keras counterpart: `keras.metrics.CosineSimilarity`.
    """

    higher_is_better = True

    def __init__(self, name: str | None = "cosine_similarity", dtype: Any = None, axis: int = -1) -> None:
        super().__init__(name, dtype)
        self.axis = axis

    def values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return -losses.cosine_similarity(y_true, y_pred, self.axis)


@registry.register()
class R2Score(Metric):
    """Share of the variance of the targets that the predictions explain: 1 is perfect, 0 as good as their mean.

    Args:
        class_aggregation: "uniform_average" or "variance_weighted_average" over outputs, None for one value per output.
        num_regressors: number of independent variables, for the adjusted R²; ignored while there are too few samples.

    Shapes: `(N, outputs)`. Keras counterpart: `keras.metrics.R2Score`.
    """

    higher_is_better = True
    sum: Tensor
    squared_sum: Tensor
    residual: Tensor
    count: Tensor
    num_samples: Tensor

    def __init__(self, class_aggregation: str | None = "uniform_average", num_regressors: int = 0, name: str | None = "r2_score",
                 dtype: Any = None) -> None:
        super().__init__(name, dtype)
        known = (None, "uniform_average", "variance_weighted_average")
        if class_aggregation not in known:
            raise ArgumentError(explain("R2Score(class_aggregation)", repr(class_aggregation), f"one of {list(known)}"))
        if num_regressors < 0:
            raise ArgumentError(explain("R2Score(num_regressors)", repr(num_regressors), "a whole number from 0"))
        self.class_aggregation, self.num_regressors = class_aggregation, num_regressors

    def accumulate(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None) -> None:
        t, p = paired("r2_score", y_true, y_pred)
        outputs = t.shape[-1]
        if not self._state_names:
            for name in ("sum", "squared_sum", "residual", "count"):
                self.add_variable((outputs,), name=name)
            self.add_variable((), name="num_samples")
        weight = torch.ones_like(t) if sample_weight is None else weights_like(sample_weight, t).expand(t.shape)
        t, p, weight = (x.reshape(-1, outputs).to(self.sum.dtype) for x in (t, p, weight))
        self.sum.add_((t * weight).sum(0))
        self.squared_sum.add_((t.square() * weight).sum(0))
        self.residual.add_(((t - p).square() * weight).sum(0))
        self.count.add_(weight.sum(0))
        self.num_samples.add_(t.numel())  # of values, as Keras counts them

    def result(self) -> Tensor:
        if not self._state_names:
            return torch.zeros((), device=self._device)
        total = self.squared_sum - self.sum * ratio(self.sum, self.count)
        scores = 1 - self.residual / total
        scores = torch.where(scores.isinf(), torch.zeros_like(scores), scores)
        if self.class_aggregation == "uniform_average":
            scores = scores.mean()
        elif self.class_aggregation == "variance_weighted_average":
            scores = (total * scores).sum() / total.sum()
        if self.num_regressors:
            left = self.num_samples - self.num_regressors - 1
            adjusted = 1 - (1 - scores) * (self.num_samples - 1) / left
            scores = torch.where(left > 0, adjusted, scores)
        return scores
