"""What losses and metrics do to their arguments before they compute: types, layout, ranks, and messages about shapes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from convolt.arrays import as_tensor
from convolt.errors import ShapeError, explain
from convolt.layout import outside_shape, to_inside, to_outside

EPSILON = 1e-7
"""Keras's fuzz factor: probabilities are clipped to [EPSILON, 1 - EPSILON] before their logarithm is taken."""

_BINARY = ("binary_crossentropy", "binary_focal_crossentropy", "binary_accuracy")
_SPARSE = ("sparse_categorical_crossentropy", "sparse_categorical_accuracy", "sparse_top_k_categorical_accuracy")


def targets_to_inside(y: Tensor, prediction_rank: int) -> Tensor:
    """Returns channels-last targets with the class axis where the predictions have theirs, as a view.

    Targets with as many axes as the predictions (one-hot, regression, a trailing axis of size 1) have their last axis
    moved to index 1. Targets with fewer (whole-number labels: `(N, H, W)` for predictions `(N, C, H, W)`) have no class
    axis and stay as they are.
    """
    return to_inside(y) if y.ndim == prediction_rank else y


def entered(y_true: Any, y_pred: Any) -> tuple[Tensor, Tensor]:
    """Returns both as tensors with the class axis at index 1; NumPy arrays and lists are taken channels-last."""
    prediction = y_pred if isinstance(y_pred, Tensor) else to_inside(as_tensor(y_pred, "y_pred"))
    if isinstance(y_true, Tensor):
        return y_true, prediction
    return targets_to_inside(as_tensor(y_true, "y_true"), prediction.ndim).to(prediction.device), prediction


def outside(y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
    """Returns channels-last views of both; labels without a class axis stay as they are."""
    return (to_outside(y_true) if y_true.ndim == y_pred.ndim else y_true), to_outside(y_pred)


def computed_in(y_pred: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Returns predictions in the type of the computation: `dtype`, or float32 for anything but float64.

    Attributes that an activation left on the tensor (`logits`) are kept.
    """
    target = dtype or (torch.float64 if y_pred.dtype == torch.float64 else torch.float32)
    if y_pred.dtype == target:
        return y_pred
    result = y_pred.to(target)
    logits = getattr(y_pred, "logits", None)
    if logits is not None:
        result.logits = logits.to(target)  # type: ignore[attr-defined]
        result.logits_of = activation_of(y_pred)  # type: ignore[attr-defined]
    return result


@lru_cache(maxsize=32)
def on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns numbers of the host on the device; cached, since an upload waits for the device."""
    return torch.tensor(values, dtype=dtype, device=device)


def activation_of(y_pred: Tensor) -> str | None:
    """Returns "softmax" or "sigmoid" if that activation made the predictions, and None if another did or if nothing is known.

    The activation says so in the attribute `logits_of`; autograd's record of the last operation serves where it did not.
    """
    known = getattr(y_pred, "logits_of", None)
    if known is None and y_pred.grad_fn is not None:
        known = {"SoftmaxBackward0": "softmax", "SigmoidBackward0": "sigmoid"}.get(y_pred.grad_fn.name())
    return known


def logits_of(y_pred: Tensor, activation: str) -> Tensor | None:
    """Returns what went into the `activation` that made `y_pred`, or None if another or none made it."""
    logits = getattr(y_pred, "logits", None)
    if logits is None or activation_of(y_pred) != activation:
        return None
    return logits.to(computed_in(y_pred).dtype)  # type: ignore[no-any-return]


def same_rank(y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
    """Returns channels-last tensors with a last axis of size 1 squeezed or added, so that `(N,)` fits `(N, 1)` (Keras's rule)."""
    if y_true.ndim == y_pred.ndim + 1 and y_true.shape[-1] == 1:
        return (y_true, y_pred.unsqueeze(-1)) if y_pred.ndim == 1 else (y_true.squeeze(-1), y_pred)
    if y_pred.ndim == y_true.ndim + 1 and y_pred.shape[-1] == 1:
        return (y_true.unsqueeze(-1), y_pred) if y_true.ndim == 1 else (y_true, y_pred.squeeze(-1))
    return y_true, y_pred


def paired(name: str, y_true: Any, y_pred: Any) -> tuple[Tensor, Tensor]:
    """Returns both as channels-last tensors of one shape and one floating type, with at least two axes.

    Raises:
        ShapeError: the shapes differ by more than a last axis of size 1.
    """
    y_true, y_pred = outside(*entered(y_true, y_pred))
    y_pred = computed_in(y_pred)
    y_true, y_pred = same_rank(y_true, y_pred)
    if y_true.shape != y_pred.shape:
        raise ShapeError(mismatch(name, y_true, y_pred))
    if y_pred.ndim == 1:
        y_true, y_pred = y_true.unsqueeze(-1), y_pred.unsqueeze(-1)
    return y_true.to(y_pred.dtype), y_pred


def mismatch(name: str, y_true: Tensor, y_pred: Tensor) -> str:
    """Returns the message about channels-last targets and predictions whose shapes do not fit."""
    fix = "The model's last layer must give what the labels are."
    if name in _BINARY and y_pred.ndim > 1 and y_pred.shape[-1] > 1 and (y_true.ndim < y_pred.ndim or y_true.shape[-1] == 1):
        fix = (f"For whole-number labels of {y_pred.shape[-1]} classes use sparse_categorical_crossentropy; "
               "for two classes end the model with one unit and sigmoid.")
    elif y_true.ndim == y_pred.ndim and y_true.ndim > 1 and y_true.shape[1:] == y_pred.shape[1:]:
        fix = "The numbers of samples differ."
    return explain(name, f"y_true of shape {tuple(y_true.shape)} and y_pred of shape {tuple(y_pred.shape)}", "equal shapes", fix)


def sparse_labels(name: str, y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Returns whole-number labels without a class axis, as int64, for predictions whose class axis is at index 1.

    Raises:
        ShapeError: the labels are one-hot, their shape does not fit, or the predictions have a single class.
    """
    classes, places = y_pred.shape[1] if y_pred.ndim > 1 else 0, (y_pred.shape[0], *y_pred.shape[2:])
    labels = y_true.squeeze(1) if 1 < y_true.ndim == y_pred.ndim and y_true.shape[1] == 1 else y_true
    if classes >= 2 and labels.shape == places and y_true.shape != y_pred.shape:
        return labels.long()
    shape = outside_shape(y_true) if y_true.ndim == y_pred.ndim else tuple(y_true.shape)
    shown = f"labels of shape {shape} and predictions of shape {outside_shape(y_pred)}"
    if classes < 2:
        raise ShapeError(explain(name, shown, "predictions with one value per class",
                                 "For two classes and one output use binary_crossentropy."))
    one_hot = y_true.shape == y_pred.shape
    advice = f"The labels are one-hot with shape {outside_shape(y_true)}: use {name.replace('sparse_', '')}." if one_hot else ""
    raise ShapeError(explain(name, shown, f"labels of shape {places}", advice))


def one_hot_labels(name: str, y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Returns one-hot labels (or probabilities) in the type of the predictions; the class axis of both is at index 1.

    Raises:
        ShapeError: the labels are whole numbers, their shape does not fit, or the predictions have a single class.
    """
    if y_pred.ndim < 2 or y_pred.shape[1] < 2:
        raise ShapeError(explain(name, f"predictions of shape {outside_shape(y_pred)}", "one value per class",
                                 "For two classes and one output use binary_crossentropy."))
    if y_true.shape != y_pred.shape:
        places = (y_pred.shape[0], *y_pred.shape[2:])
        labels = y_true.squeeze(1) if 1 < y_true.ndim == y_pred.ndim and y_true.shape[1] == 1 else y_true
        shape = outside_shape(y_true) if y_true.ndim == y_pred.ndim else tuple(y_true.shape)
        advice = f"use sparse_{name}" if f"sparse_{name}" in _SPARSE else "one-hot them with convolt.utils.to_categorical"
        advice = f"The labels are whole numbers with shape {shape}: {advice}." if labels.shape == places else ""
        shown = f"labels of shape {shape} and predictions of shape {outside_shape(y_pred)}"
        raise ShapeError(explain(name, shown, "equal shapes", advice))
    return y_true.to(y_pred.dtype)


def weights_like(sample_weight: Any, values: Tensor) -> Tensor:
    """Returns weights in a shape that multiplies `values` (`(N,)` or `(N, H, W)`): missing trailing axes are added.

    Raises:
        ShapeError: the weights have an axis that fits none of the values.
    """
    weight = as_tensor(sample_weight, "sample_weight").to(values.device, values.dtype)
    if weight.ndim == values.ndim + 1 and weight.ndim > 1 and 1 in (weight.shape[1], weight.shape[-1]):
        weight = weight.squeeze(1 if weight.shape[1] == 1 and isinstance(sample_weight, Tensor) else -1)
    shape = tuple(weight.shape)
    if weight.ndim < values.ndim and weight.ndim > 0:
        weight = weight.reshape(*shape, *(1,) * (values.ndim - weight.ndim))
    if values.ndim == 0:  # a loss over the whole batch, such as Dice: Keras multiplies it with each weight
        return weight
    if weight.ndim > values.ndim or any(w not in (1, v) for w, v in zip(weight.shape, values.shape, strict=False)):
        raise ShapeError(explain("sample_weight", f"shape {shape}",
                                 f"one weight per sample, ({values.shape[0]},), or per value, {tuple(values.shape)}"))
    return weight
