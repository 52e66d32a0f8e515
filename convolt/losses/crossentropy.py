"""Crossentropies. On logits, and on probabilities that remember their logits, they are exact for values of any size."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from convolt import kernels
from convolt.errors import ArgumentError, ConvoltWarning, explain
from convolt.layout import to_outside
from convolt.losses.base import Loss, registry
from convolt.losses.shapes import (
    EPSILON,
    activation_of,
    computed_in,
    entered,
    logits_of,
    on_device,
    one_hot_labels,
    paired,
    sparse_labels,
)
from convolt.masks import mask_of


def _scores(name: str, y_pred: Tensor, activation: str, from_logits: bool) -> tuple[Tensor, bool]:
    """Returns (logits, True) where logits are given or remembered, else (probabilities, False)."""
    if from_logits:
        if getattr(y_pred, "logits", None) is not None:
            ending = activation_of(y_pred) or "an activation"
            warnings.warn(explain(f"{name}(from_logits=True)", f"predictions of a model that ends in {ending}", "logits",
                                  "Drop from_logits=True, or the model's last activation."), ConvoltWarning, stacklevel=4)
        return computed_in(y_pred), True
    logits = logits_of(y_pred, activation)
    return (computed_in(y_pred), False) if logits is None else (logits, True)


def class_axis_to_1(x: Tensor, axis: int, rank: int) -> Tensor:
    """Moves the class axis from `axis` (of a channels-last shape) to index 1; tensors of another rank have no class axis."""
    return to_outside(x).movedim(axis, 1) if x.ndim == rank > 2 else x


def _log_probabilities(probabilities: Tensor) -> Tensor:
    """Keras's logarithm: over a sum of one (class axis at index 1), clipped to [EPSILON, 1 - EPSILON]."""
    return (probabilities / probabilities.sum(1, keepdim=True)).clamp(EPSILON, 1 - EPSILON).log()


def sparse_categorical_crossentropy(y_true: Any, y_pred: Any, from_logits: bool = False, ignore_class: int | None = None,
                                    axis: int = -1) -> Tensor:
    """Returns `-log p[label]` per sample, from whole-number labels.

    Args:
        y_true: labels `(N,)` or `(N, H, W)`, also with a last axis of size 1.
        y_pred: probabilities or logits `(N, C)`; tensors `(N, C, H, W)`, arrays `(N, H, W, C)`.
        from_logits: whether `y_pred` is before the softmax.
        ignore_class: label whose loss is 0.
        axis: of the classes, in a channels-last shape.
    """
    name = "sparse_categorical_crossentropy"
    y_true, y_pred = entered(y_true, y_pred)
    scores, are_logits = _scores(name, y_pred, "softmax", from_logits)
    scores = class_axis_to_1(scores, axis, y_pred.ndim)
    labels = sparse_labels(name, class_axis_to_1(y_true, axis, y_pred.ndim), scores)
    if are_logits and ignore_class is None and scores.ndim == 2:  # the kernel has a program for each sample: too little work for pixels
        return kernels.softmax_crossentropy(scores, labels)
    # As (N·H·W, C), which is no copy in channels-last memory; PyTorch's kernel for images is not deterministic on CUDA.
    flat = scores.movedim(1, -1).reshape(-1, scores.shape[1])
    log_p = flat.log_softmax(1) if are_logits else _log_probabilities(flat)
    ignored = -100 if ignore_class is None else ignore_class  # -100 is PyTorch's word for no class
    return F.nll_loss(log_p, labels.reshape(-1), ignore_index=ignored, reduction="none").reshape(labels.shape)


def categorical_crossentropy(y_true: Any, y_pred: Any, from_logits: bool = False, label_smoothing: float = 0.0,
                             axis: int = -1) -> Tensor:
    """Returns `-Σ y log p` per sample, from one-hot labels or probabilities of the shape of `y_pred`."""
    labels, log_p = _categorical("categorical_crossentropy", y_true, y_pred, from_logits, label_smoothing, axis)
    return -(labels * log_p).sum(1)


def _categorical(name: str, y_true: Any, y_pred: Any, from_logits: bool, label_smoothing: float, axis: int) -> tuple[Tensor,
                 Tensor]:
    """Returns (smoothed labels, log-probabilities) with the class axis at index 1."""
    y_true, y_pred = entered(y_true, y_pred)
    scores, are_logits = _scores(name, y_pred, "softmax", from_logits)
    scores = class_axis_to_1(scores, axis, y_pred.ndim)
    labels = one_hot_labels(name, class_axis_to_1(y_true, axis, y_pred.ndim), scores)
    if label_smoothing:
        labels = labels * (1 - label_smoothing) + label_smoothing / scores.shape[1]
    return labels, scores.log_softmax(1) if are_logits else _log_probabilities(scores)


def categorical_focal_crossentropy(y_true: Any, y_pred: Any, alpha: Any = 0.25, gamma: float = 2.0, from_logits: bool = False,
                                   label_smoothing: float = 0.0, axis: int = -1) -> Tensor:
    """Returns `-Σ α (1 - p)^γ y log p` per sample (Lin et al., 2017); `alpha` is a number or one per class."""
    labels, log_p = _categorical("categorical_focal_crossentropy", y_true, y_pred, from_logits, label_smoothing, axis)
    factor = alpha if isinstance(alpha, (int, float)) else on_device(tuple(map(float, alpha)), log_p.dtype, log_p.device)
    if isinstance(factor, Tensor):
        factor = factor.reshape(-1, *(1,) * (log_p.ndim - 2))
    hard = (1 - log_p.exp()).clamp_min(EPSILON)  # kept off 0, where x^γ has no finite slope for γ < 1
    return -(factor * hard**gamma * labels * log_p).sum(1)


def _binary(name: str, y_true: Any, y_pred: Any, from_logits: bool, label_smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (smoothed labels, probabilities, crossentropy per value), channels-last."""
    y_true, y_pred = entered(y_true, y_pred)
    scores, are_logits = _scores(name, y_pred, "sigmoid", from_logits)
    labels, scores = paired(name, y_true, scores)
    if label_smoothing:
        labels = labels * (1 - label_smoothing) + 0.5 * label_smoothing
    if are_logits:
        return labels, scores.sigmoid(), F.binary_cross_entropy_with_logits(scores, labels, reduction="none")
    clipped = scores.clamp(EPSILON, 1 - EPSILON)
    return labels, scores, -(labels * clipped.log() + (1 - labels) * (1 - clipped).log())


def binary_crossentropy(y_true: Any, y_pred: Any, from_logits: bool = False, label_smoothing: float = 0.0,
                        axis: int = -1) -> Tensor:
    """Returns the mean over `axis` of `-(y log p + (1 - y) log(1 - p))`, for labels of the shape of `y_pred`."""
    return _binary("binary_crossentropy", y_true, y_pred, from_logits, label_smoothing)[2].mean(axis)


def binary_focal_crossentropy(y_true: Any, y_pred: Any, apply_class_balancing: bool = False, alpha: float = 0.25,
                              gamma: float = 2.0,
                              from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1) -> Tensor:
    """Returns the mean over `axis` of the binary crossentropy times `(1 - p_t)^γ` (Lin et al., 2017)."""
    labels, p, loss = _binary("binary_focal_crossentropy", y_true, y_pred, from_logits, label_smoothing)
    hard = (1 - (labels * p + (1 - labels) * (1 - p))).clamp_min(EPSILON)
    loss = hard**gamma * loss
    if apply_class_balancing:
        loss = (labels * alpha + (1 - labels) * (1 - alpha)) * loss
    return loss.mean(axis)


def categorical_generalized_cross_entropy(y_true: Any, y_pred: Any, q: float) -> Tensor:
    """Returns `(1 - p[label]^q) / q` per sample, which wrong labels disturb little (Zhang & Sabuncu, 2018).

    Args:
        y_true: whole numbers, as for `sparse_categorical_crossentropy`.
        y_pred: probabilities `(N, C)`; tensors `(N, C, H, W)`, arrays `(N, H, W, C)`.
        q: between 0 (like the crossentropy) and 1 (the mean absolute error).
    """
    name = "categorical_generalized_cross_entropy"
    y_true, y_pred = entered(y_true, y_pred)
    p = computed_in(y_pred)
    labels = sparse_labels(name, y_true, p)
    right = p.gather(1, labels.unsqueeze(1)).squeeze(1)
    return (1 - right.clamp_min(torch.finfo(p.dtype).tiny) ** q) / q  # kept off 0, where x^q has no finite slope


def _smoothing(owner: Loss, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ArgumentError(explain(f"{type(owner).__name__}(label_smoothing)", repr(value), "a number from 0 to 1"))
    return value


@registry.register()
class SparseCategoricalCrossentropy(Loss):
    """Crossentropy of whole-number labels `(N,)` and `C` class scores `(N, C)`.

    Args:
        from_logits: whether predictions are before the softmax.
        ignore_class: label that counts neither in the sum nor in the mean, e.g. 255 for unlabelled pixels.
        reduction, axis, name, dtype: see `Loss`; `axis` is that of the classes in a channels-last shape.

    Keras counterpart: `keras.losses.SparseCategoricalCrossentropy`; PyTorch's: `torch.nn.CrossEntropyLoss` (on logits).
    """

    def __init__(self, from_logits: bool = False, ignore_class: int | None = None, reduction: str | None = "sum_over_batch_size",
                 axis: int = -1, name: str | None = "sparse_categorical_crossentropy", dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)
        self.from_logits, self.ignore_class, self.axis = from_logits, ignore_class, axis

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Tensor:
        if sample_weight is None and isinstance(y_true, Tensor) and isinstance(y_pred, Tensor):
            mean = self._mean_of_scores(y_true, y_pred)
            if mean is not None:
                return mean
        return super().__call__(y_true, y_pred, sample_weight)

    def _mean_of_scores(self, y_true: Tensor, y_pred: Tensor) -> Tensor | None:
        """Returns the mean on a CPU with nothing looked at twice, where the usual case allows it: a small step feels each call."""
        usual = self.reduction in ("sum_over_batch_size", "mean") and self.ignore_class is None and self.dtype is None
        fits = y_pred.ndim == 2 <= y_pred.shape[1] and y_true.shape == y_pred.shape[:1] and y_true.dtype == torch.int64 and len(y_true) > 0
        if not (usual and fits and y_pred.device.type == "cpu" and mask_of(y_pred) is None):
            return None
        if self.from_logits and getattr(y_pred, "logits", None) is not None:
            return None
        logits = computed_in(y_pred) if self.from_logits else logits_of(y_pred, "softmax")
        return None if logits is None else F.cross_entropy(logits, y_true, reduction="none").mean()

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return sparse_categorical_crossentropy(y_true, y_pred, self.from_logits, self.ignore_class, self.axis)

    def valid(self, y_true: Tensor, y_pred: Tensor, values: Tensor) -> Tensor | None:
        if self.ignore_class is None:
            return None
        scores = class_axis_to_1(y_pred, self.axis, y_pred.ndim)
        return sparse_labels(self.name, class_axis_to_1(y_true, self.axis, y_pred.ndim), scores) != self.ignore_class


@registry.register()
class CategoricalCrossentropy(Loss):
    """Crossentropy of one-hot labels (or class probabilities) and class scores, both `(N, C)`.

    Args:
        from_logits: whether predictions are before the softmax.
        label_smoothing: share of each label that is spread evenly over all classes.
        axis, reduction, name, dtype: see `Loss`; `axis` is that of the classes in a channels-last shape.

    Keras counterpart: `keras.losses.CategoricalCrossentropy`.
    """

    def __init__(self, from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1,
                 reduction: str | None = "sum_over_batch_size", name: str | None = "categorical_crossentropy",
                 dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)
        self.from_logits, self.label_smoothing, self.axis = from_logits, _smoothing(self, label_smoothing), axis

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return categorical_crossentropy(y_true, y_pred, self.from_logits, self.label_smoothing, self.axis)


@registry.register()
class CategoricalFocalCrossentropy(Loss):
    """Crossentropy of one-hot labels in which easy samples weigh little (Lin et al., 2017).

    Args:
        alpha: factor, a number or one per class.
        gamma: power of `1 - p`; 0 gives `alpha` times the categorical crossentropy.
        from_logits, label_smoothing, axis, reduction, name, dtype: as in `CategoricalCrossentropy`.

    Keras counterpart: `keras.losses.CategoricalFocalCrossentropy`.
    """

    def __init__(self, alpha: Any = 0.25, gamma: float = 2.0, from_logits: bool = False, label_smoothing: float = 0.0,
                 axis: int = -1,
                 reduction: str | None = "sum_over_batch_size", name: str | None = "categorical_focal_crossentropy",
                 dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)
        self.alpha, self.gamma = alpha, gamma
        self.from_logits, self.label_smoothing, self.axis = from_logits, _smoothing(self, label_smoothing), axis

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return categorical_focal_crossentropy(y_true, y_pred, self.alpha, self.gamma, self.from_logits, self.label_smoothing,
                                              self.axis)


@registry.register()
class CategoricalGeneralizedCrossEntropy(Loss):
    """Crossentropy of whole-number labels some of which are wrong (Zhang & Sabuncu, 2018).

    Args:
        q: between 0 (like the crossentropy) and 1 (the mean absolute error), without these two.
        reduction, name, dtype: see `Loss`.

    Predictions are probabilities. Keras counterpart: `keras.losses.CategoricalGeneralizedCrossEntropy`.
    """

    def __init__(self, q: float = 0.5, reduction: str | None = "sum_over_batch_size",
                 name: str | None = "categorical_generalized_cross_entropy", dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)
        if not 0 < q < 1:
            raise ArgumentError(explain("CategoricalGeneralizedCrossEntropy(q)", repr(q), "a number between 0 and 1"))
        self.q = q

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return categorical_generalized_cross_entropy(y_true, y_pred, self.q)

    def check_shapes(self, y_true: Tensor, y_pred: Tensor) -> None:
        sparse_labels(self.name, y_true, y_pred)


@registry.register("bce", "BCE")
class BinaryCrossentropy(Loss):
    """Crossentropy of labels 0 and 1, independent for each output: two classes with one output, or many labels at once.

    Args:
        from_logits: whether predictions are before the sigmoid.
        label_smoothing: moves labels towards 0.5.
        axis: over which the mean is taken, in a channels-last shape.
        reduction, name, dtype: see `Loss`.

    Keras counterpart: `keras.losses.BinaryCrossentropy`; PyTorch's: `torch.nn.BCEWithLogitsLoss` (on logits).
    """

    def __init__(self, from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1,
                 reduction: str | None = "sum_over_batch_size", name: str | None = "binary_crossentropy",
                 dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)
        self.from_logits, self.label_smoothing, self.axis = from_logits, _smoothing(self, label_smoothing), axis

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return binary_crossentropy(y_true, y_pred, self.from_logits, self.label_smoothing, self.axis)


@registry.register()
class BinaryFocalCrossentropy(Loss):
    """Binary crossentropy in which easy samples weigh little (Lin et al., 2017).

    Args:
        apply_class_balancing: whether class 1 weighs `alpha` and class 0 `1 - alpha`.
        alpha: see above.
        gamma: power of `1 - p_t`; 0 gives the binary crossentropy.
        from_logits, label_smoothing, axis, reduction, name, dtype: as in `BinaryCrossentropy`.

    Keras counterpart: `keras.losses.BinaryFocalCrossentropy`.
    """

    def __init__(self, apply_class_balancing: bool = False, alpha: float = 0.25, gamma: float = 2.0, from_logits: bool = False,
                 label_smoothing: float = 0.0, axis: int = -1, reduction: str | None = "sum_over_batch_size",
                 name: str | None = "binary_focal_crossentropy", dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)
        self.apply_class_balancing, self.alpha, self.gamma = apply_class_balancing, alpha, gamma
        self.from_logits, self.label_smoothing, self.axis = from_logits, _smoothing(self, label_smoothing), axis

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return binary_focal_crossentropy(y_true, y_pred, self.apply_class_balancing, self.alpha, self.gamma, self.from_logits,
                                         self.label_smoothing, self.axis)


@registry.register("ce")
class Crossentropy(Loss):
    """The crossentropy that fits the shapes: binary for one output, sparse for whole-number labels, else categorical.

    Args:
        from_logits: whether predictions are before the softmax or sigmoid.
        label_smoothing: share of each label that is spread evenly over all classes; whole-number labels have it, too.
        reduction, name, dtype: see `Loss`.

    Keras counterpart: the string "crossentropy" in `compile`.
    """

    def __init__(self, from_logits: bool = False, reduction: str | None = "sum_over_batch_size",
                 name: str | None = "crossentropy",
                 dtype: Any = None, label_smoothing: float = 0.0) -> None:
        super().__init__(name, reduction, dtype)
        self.from_logits, self.label_smoothing = from_logits, _smoothing(self, label_smoothing)

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if y_pred.ndim < 2 or y_pred.shape[1] == 1:
            return binary_crossentropy(y_true, y_pred, self.from_logits, self.label_smoothing)
        if y_true.ndim == y_pred.ndim and y_true.shape[1] != 1:
            return categorical_crossentropy(y_true, y_pred, self.from_logits, self.label_smoothing)
        hard = sparse_categorical_crossentropy(y_true, y_pred, self.from_logits)
        if not self.label_smoothing:
            return hard
        scores, are_logits = _scores("crossentropy", y_pred, "softmax", self.from_logits)
        even = -(scores.log_softmax(1) if are_logits else _log_probabilities(scores)).mean(1)
        return (1 - self.label_smoothing) * hard + self.label_smoothing * even
