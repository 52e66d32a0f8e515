"""`Loss`: the base of all losses; how a loss is found by name, weighted and reduced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from convolt.configurable import Configurable, Registry, snake_case, to_json
from convolt.errors import ArgumentError, ArgumentTypeError, ShapeError, StateError, did_you_mean, explain
from convolt.losses.shapes import computed_in, entered, outside, paired, same_rank, weights_like
from convolt.masks import mask_of

registry: Registry[type[Loss]] = Registry("loss")
"""Every loss that can be made from its name."""

REDUCTIONS = ("sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none")


class Loss(Configurable):
    """A number that training makes small, with Keras's semantics.

    Args:
        name: shown in logs; made from the class name if None.
        reduction: "sum_over_batch_size" or "mean" (mean over all values), "sum", "mean_with_sample_weight" (divided by
            the sum of the weights), "none" or None (one value per sample).
        dtype: type of the computation, such as "float64"; None: float32, or float64 for predictions of that type.

    A loss of your own defines `per_sample`, on tensors whose class axis is at index 1, or Keras's `call`, on
    channels-last tensors; for predictions `(N, C)` these are the same:

    >>> class Cubic(Loss):
    ...     def call(self, y_true, y_pred):
    ...         return ((y_true - y_pred).abs() ** 3).mean(-1)
    >>> float(Cubic()([[0.0], [1.0]], [[2.0], [1.0]]))
    4.0

    Keras counterpart: `keras.losses.Loss`.
    """

    def __init__(self, name: str | None = None, reduction: str | None = "sum_over_batch_size", dtype: Any = None) -> None:
        self.name = name or snake_case(type(self).__name__)
        self.reduction = checked_reduction(type(self).__name__, reduction)
        self.dtype = dtype_name(type(self).__name__, dtype)

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns one loss per sample (and place), from tensors whose class axis is at index 1."""
        call: Callable[[Tensor, Tensor], Tensor] | None = getattr(self, "call", None)
        if call is None:
            raise StateError(explain(type(self).__name__, "no method that computes the loss",
                                     "`per_sample(self, y_true, y_pred)` or Keras's `call(self, y_true, y_pred)`"))
        return call(*_for_users(y_true, y_pred))

    def valid(self, y_true: Tensor, y_pred: Tensor, values: Tensor) -> Tensor | None:
        """Returns which `values` of `per_sample` count (those of no ignored class), or None if all do."""
        return None

    def check_shapes(self, y_true: Tensor, y_pred: Tensor) -> None:
        """Raises `ShapeError` unless labels fit predictions; called before training, with tensors that have no values."""
        paired(self.name, y_true, y_pred)

    def check_values(self, y: Tensor, output_shape: tuple[int, ...], name: str) -> None:
        """Raises `DataError` for labels that a loss cannot use; called before training, on the host.

        Args:
            y: all labels, channels-last.
            output_shape: of the model's output, with the class axis at index 1.
            name: what the labels are called in messages.
        """

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Tensor:
        """Returns the weighted and reduced loss, a scalar tensor that has a gradient.

        Args:
            y_true: labels; tensors as `targets_to_inside` gives them, NumPy arrays channels-last.
            y_pred: predictions; tensors with the class axis at index 1, NumPy arrays channels-last.
            sample_weight: `(N,)`, or one weight per value of `per_sample`.

        Raises:
            ShapeError: the shapes of labels, predictions or weights do not fit.
        """
        y_true, y_pred = entered(y_true, y_pred)
        mask = mask_of(y_pred)
        y_pred = computed_in(y_pred, getattr(torch, self.dtype) if self.dtype else None)
        values = self.per_sample(y_true, y_pred)
        return reduced(values, sample_weight, unmasked(values, self.valid(y_true, y_pred, values), mask), self.reduction)

    def divisor(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> Tensor | None:
        """Returns what the sum of the losses is divided by, where weights, ignored classes or masks decide; None: their number.

        With it, the loss of a batch is put together from those of its parts.
        """
        y_true, y_pred = entered(y_true, y_pred)
        mask = mask_of(y_pred)
        values = self.per_sample(y_true, y_pred)
        valid = unmasked(values, self.valid(y_true, y_pred, values), mask)
        if values.ndim == 0 or self.reduction not in ("sum_over_batch_size", "mean", "mean_with_sample_weight"):
            return None
        if self.reduction != "mean_with_sample_weight" or sample_weight is None:
            return None if valid is None else valid.sum().to(values.dtype)
        weight = weights_like(sample_weight, values).expand_as(values)
        return (weight if valid is None else weight * valid).sum()


def _for_users(y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
    """Returns channels-last views as Keras hands them to a function: equal ranks, floating labels in the predictions' type."""
    y_true, y_pred = same_rank(*outside(y_true, y_pred))
    return (y_true.to(y_pred.dtype) if y_true.is_floating_point() else y_true), y_pred


def unmasked(values: Tensor, valid: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Returns which values count where the predictions carry a mask, `(batch, steps)`: those that are valid and not masked.

    Raises:
        ShapeError: the mask has another shape than the values.
    """
    if mask is None or values.ndim == 0:
        return valid
    if mask.shape != values.shape:
        raise ShapeError(explain("loss of predictions with a mask", f"losses of shape {tuple(values.shape)}",
                                 f"one for each step of the mask, {tuple(mask.shape)}",
                                 "Let a layer between leave the steps out, such as a recurrent layer without return_sequences."))
    return mask.bool() if valid is None else valid & mask.bool()


def reduced(values: Tensor, sample_weight: Any, valid: Tensor | None, reduction: str | None) -> Tensor:
    """Returns losses weighted by `sample_weight` and reduced as Keras does; values that are not `valid` count nowhere."""
    weight = None if sample_weight is None else weights_like(sample_weight, values)
    if valid is not None:
        mask = valid.to(values.dtype)
        if reduction in ("mean", "sum_over_batch_size"):  # the mean is over valid values alone
            mask = mask * (mask.numel() / mask.sum().clamp_min(1))
        weight = mask if weight is None else weight * mask
    if weight is not None:
        values = values * weight
    if reduction in (None, "none"):
        return values
    if valid is None and weight is None and reduction in ("mean", "sum_over_batch_size") and values.numel():
        return values.mean()
    total = values.sum()
    if reduction == "sum" or values.numel() == 0:
        return total
    if reduction == "mean_with_sample_weight" and weight is not None:
        weight_sum = weight.expand_as(values).sum()
        return total / torch.where(weight_sum == 0, torch.ones_like(weight_sum), weight_sum)
    return total / values.numel()


def checked_reduction(loss: str, reduction: Any) -> str | None:
    """Returns `reduction` if Keras knows it, and raises `ArgumentError` otherwise."""
    if reduction is not None and reduction not in REDUCTIONS:
        raise ArgumentError(explain(f"{loss}(reduction)", repr(reduction), f"one of {list(REDUCTIONS)} or None",
                                    did_you_mean(str(reduction), REDUCTIONS)))
    return reduction  # type: ignore[no-any-return]


def dtype_name(owner: str, dtype: Any) -> str | None:
    """Returns the name of a floating type given as a name or a torch dtype; None stays None."""
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ArgumentError(explain(f"{owner}(dtype)", repr(dtype), "a floating type such as 'float32', or None"))
    return name


class FunctionLoss(Loss):
    """A loss from a function: `f(y_true, y_pred)` on channels-last tensors, as in Keras, or one of PyTorch's losses.

    Losses of PyTorch (`torch.nn.MSELoss()`, functions of `torch.nn.functional`) are called in PyTorch's order,
    `f(y_pred, y_true)`, with the class axis at index 1. One that returns a scalar cannot be weighted by sample.

    Keras counterpart: `keras.losses.LossFunctionWrapper`.
    """

    def __init__(self, fn: Callable[..., Any], reduction: str | None = "sum_over_batch_size", name: str | None = None,
                 dtype: Any = None) -> None:
        if not callable(fn):
            raise ArgumentTypeError(explain("FunctionLoss(fn)", type(fn).__name__, "a function f(y_true, y_pred)"))
        super().__init__(name or getattr(fn, "__name__", snake_case(type(fn).__name__)), reduction, dtype)
        self.fn = fn
        self._torch_order = isinstance(fn, nn.Module) or getattr(fn, "__module__", None) == "torch.nn.functional"

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if self._torch_order:
            if not y_true.is_floating_point():
                y_true = y_true.long()
            if y_true.ndim == y_pred.ndim == 2 and y_true.shape[1] == 1 < y_pred.shape[1] and not y_true.is_floating_point():
                y_true = y_true.squeeze(1)
            values = self.fn(y_pred, y_true)
        else:
            values = self.fn(*_for_users(y_true, y_pred))
        if not isinstance(values, Tensor):
            raise ArgumentTypeError(explain(f"loss {self.name!r}", f"a result of type {type(values).__name__}", "a tensor"))
        return values

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Tensor:
        if sample_weight is None:
            return super().__call__(y_true, y_pred)
        y_true, y_pred = entered(y_true, y_pred)
        mask = mask_of(y_pred)
        values = self.per_sample(y_true, computed_in(y_pred, getattr(torch, self.dtype) if self.dtype else None))
        if values.ndim == 0:
            raise ShapeError(explain(f"loss {self.name!r} with sample weights", "a scalar", "one loss per sample, (N,)",
                                     "Take the mean over the last axis alone; PyTorch's losses do with reduction='none'."))
        return reduced(values, sample_weight, unmasked(values, None, mask), self.reduction)


def get(identifier: Any) -> Loss:
    """Returns a loss from a name ("mse"), a class, an object, a configuration or a function `f(y_true, y_pred)`.

    Raises:
        ArgumentError: the name is unknown; the message names the nearest.
        ArgumentTypeError: `identifier` is none of these.
    """
    function = callable(identifier) and not isinstance(identifier, (type, Loss))
    if function and getattr(identifier, "__module__", "").startswith("convolt.losses") and identifier.__name__ in registry:
        identifier = identifier.__name__
    elif function:
        return FunctionLoss(identifier)
    loss: Loss = registry.make(identifier, Loss)
    return loss


def serialize(loss: Loss) -> dict[str, Any]:
    """Returns a loss as `{"class_name", "config"}`, which `deserialize` takes."""
    described: dict[str, Any] = to_json(loss)
    return described


def deserialize(name: Any, custom_objects: Mapping[str, type[Loss]] | None = None) -> Loss:
    """Returns the loss of a name or of what `serialize` returned; `custom_objects` has the user's own classes by name."""
    with registry.extended(custom_objects or {}):
        return get(name)


def class_weights_to_sample_weights(y: Tensor, class_weight: Mapping[int, float]) -> Tensor:
    """Returns the weight of each sample's class, `(N,)`, float32, on the device of `y`; no host sync.

    Args:
        y: whole-number labels `(N,)` or `(N, 1)`, or one-hot labels `(N, C)`.
        class_weight: class → weight; classes that are not listed weigh 1, as in Keras.

    Raises:
        ArgumentError: a class is not a whole number from 0, or a weight is not a finite number from 0.
        ShapeError: the labels have three or more axes.
    """
    if y.ndim > 2:
        raise ShapeError(explain("class_weight", f"labels of shape {tuple(y.shape)}", "labels (N,), (N, 1) or one-hot (N, C)",
                                 "Give one weight per place as sample_weight."))
    for label, weight in class_weight.items():
        number = isinstance(label, int) or hasattr(label, "__index__")
        is_weight = isinstance(weight, (int, float)) or hasattr(weight, "__float__")
        if not number or int(label) < 0 or not is_weight or not 0 <= float(weight) < float("inf"):
            raise ArgumentError(explain("class_weight", f"{{{label!r}: {weight!r}}}",
                                        "{class: weight} with classes and weights from 0", "Such as {0: 1.0, 1: 5.0}."))
    if y.ndim == 2:
        y = y.squeeze(1) if y.shape[1] == 1 else y.argmax(1)
    table = _weight_table(tuple(sorted((int(k), float(v)) for k, v in class_weight.items())), y.device)
    labels = y.round().long() if y.is_floating_point() else y.long()
    unlisted = table.numel() - 1
    return table[torch.where((labels < 0) | (labels > unlisted), unlisted, labels)]


@lru_cache(maxsize=64)
def _weight_table(weights: tuple[tuple[int, float], ...], device: torch.device) -> Tensor:
    """Weights by class, and a last entry of 1 for classes that are not listed; cached, since an upload waits for the device."""
    table = torch.ones(max((label for label, _ in weights), default=-1) + 2)
    for label, weight in weights:
        table[label] = weight
    return table.to(device)
