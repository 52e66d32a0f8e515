"""`Metric`: the base of all metrics; state on the device, updated in place and never read by the host during an epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from convolt.arrays import as_tensor
from convolt.configurable import Configurable, Registry, snake_case
from convolt.errors import StateError, explain
from convolt.layout import to_inside
from convolt.losses.base import dtype_name
from convolt.losses.shapes import entered, outside, targets_to_inside
from convolt.masks import mask_of, masked_weight

registry: Registry[type[Metric]] = Registry("metric")
"""Every metric that can be made from its name."""


class Metric(Configurable):
    """A number, vector or matrix that says how good predictions are, exact over all batches since `reset`.

    Args:
        name: shown in logs; made from the class name if None.
        dtype: type of the sums; None: float64, which keeps counts exact (float32 on devices that have no float64).

    `update` adds a batch, `result` gives a tensor on the device, `reset` starts again; Keras's `reset_state` is the same,
    and so is its `update_state`, but for tensors that are channels-last. No method waits for the device. A metric of
    your own makes its sums with `add_variable` and defines `update_state` and `result`:

    >>> class Largest(Metric):
    ...     def __init__(self, name="largest"):
    ...         super().__init__(name=name)
    ...         self.largest = self.add_variable((), name="largest")
    ...     def update_state(self, y_true, y_pred, sample_weight=None):
    ...         self.largest.copy_(torch.maximum(self.largest, y_pred.max()))
    ...     def result(self):
    ...         return self.largest
    >>> metric = Largest()
    >>> metric.update([[0.0], [1.0]], [[2.0], [5.0]])
    >>> float(metric.result())
    5.0

    Attributes:
        higher_is_better: which way the metric gets better; None if nothing is known.
        from_logits: what the model's outputs lack: False (nothing), "softmax", "sigmoid", or True (sigmoid for one
            output, softmax for several). `get` sets it.

    Keras counterpart: `keras.metrics.Metric`.
    """

    higher_is_better: bool | None = None
    from_logits: bool | str = False

    def __init__(self, name: str | None = None, dtype: Any = None) -> None:
        self.name = name or snake_case(type(self).__name__)
        self.dtype = dtype_name(type(self).__name__, dtype)
        self._state_names: list[str] = []
        self._device = torch.device("cpu")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Lets a subclass that defines Keras's `update_state` or `reset_state` be called by the short names too."""
        super().__init_subclass__(**kwargs)
        own = cls.__dict__
        if "reset_state" in own and "reset" not in own:
            cls.reset = own["reset_state"]  # type: ignore[method-assign]
        if "update_state" in own and "update" not in own:
            cls.update = Metric.update  # type: ignore[method-assign]

    # -- state -----------------------------------------------------------------------------------------------------

    def add_variable(self, shape: Sequence[int] = (), initializer: Any = "zeros", dtype: Any = None,
                     name: str | None = None) -> Tensor:
        """Makes a sum of fixed shape, kept as attribute `name`; `update` must change it in place.

        Raises:
            StateError: `initializer` is not zeros, to which `reset` returns.
        """
        if initializer != "zeros" and type(initializer).__name__ != "Zeros":
            raise StateError(explain(f"{self.name}.add_variable", f"initializer={initializer!r}",
                                     "'zeros', since reset() sets zeros"))
        name = name or f"variable_{len(self._state_names)}"
        kind = getattr(torch, str(dtype).removeprefix("torch.")) if dtype is not None else self._sum_type(self._device)
        state = torch.zeros(tuple(shape), dtype=kind, device=self._device)
        if name not in self._state_names:
            self._state_names.append(name)
        setattr(self, name, state)
        return state

    add_weight = add_variable

    def _sum_type(self, device: torch.device) -> torch.dtype:
        if self.dtype is not None:
            return getattr(torch, self.dtype)  # type: ignore[no-any-return]
        return torch.float32 if device.type == "mps" else torch.float64

    def to(self, device: Any) -> Self:
        """Moves the state to a device; call it before the first batch, since it makes new tensors."""
        device = torch.device(device)
        moved: dict[int, Tensor] = {}
        for key, value in list(vars(self).items()):
            if isinstance(value, Tensor):
                kind = torch.float32 if device.type == "mps" and value.dtype == torch.float64 else value.dtype
                moved.setdefault(id(value), value.to(device, kind))
                setattr(self, key, moved[id(value)])
        self._device = device
        return self

    def state(self) -> dict[str, Tensor]:
        """Returns the sums by name, for a checkpoint; these are the live tensors, not copies."""
        return {name: getattr(self, name) for name in self._state_names}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes over sums that `state` returned.

        Raises:
            StateError: a sum that this metric has is missing or has another shape.
        """
        for name in self._state_names:
            shape = tuple(getattr(self, name).shape)
            if name not in state or tuple(state[name].shape) != shape:
                got = f"shape {tuple(state[name].shape)}" if name in state else f"only {sorted(state)}"
                raise StateError(explain(f"{self.name}.load_state: {name}", got, f"shape {shape}"))
        for name, value in state.items():  # a metric that has seen no batch may not have made its sums yet
            target = getattr(self, name) if name in self._state_names else self.add_variable(value.shape, name=name)
            target.copy_(value)

    def reset(self) -> None:
        """Sets all sums to zero, in place."""
        for name in self._state_names:
            getattr(self, name).zero_()

    def reset_state(self) -> None:
        """The same as `reset`, under Keras's name."""
        self.reset()

    # -- use -------------------------------------------------------------------------------------------------------

    def update(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch; steps that the mask of the predictions leaves out weigh nothing.

        Args:
            y_true: labels; tensors as `losses.targets_to_inside` gives them, NumPy arrays channels-last.
            y_pred: predictions; tensors with the class axis at index 1, NumPy arrays channels-last.
            sample_weight: `(N,)` or one weight per value.

        Raises:
            ShapeError: the shapes of labels, predictions or weights do not fit.
        """
        y_true, y_pred = entered(y_true, y_pred)
        weight = None if sample_weight is None else as_tensor(sample_weight, "sample_weight")
        if type(self).update_state is Metric.update_state:
            self._add(y_true, y_pred, weight)
        else:
            self.follow(y_pred.device)
            with torch.no_grad():  # the views for the user carry no mask
                self.update_state(*outside(y_true, y_pred), masked_weight(mask_of(y_pred), weight))

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch as Keras does: tensors are channels-last here, as NumPy arrays are."""
        prediction = to_inside(as_tensor(y_pred, "y_pred"))
        target = targets_to_inside(as_tensor(y_true, "y_true"), prediction.ndim)
        if type(self).update is Metric.update:
            self._add(target, prediction, None if sample_weight is None else as_tensor(sample_weight, "sample_weight"))
        else:
            self.update(target, prediction, sample_weight)

    def _add(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None) -> None:
        self.follow(y_pred.device)
        with torch.no_grad():
            self.accumulate(y_true, y_pred, masked_weight(mask_of(y_pred), sample_weight))

    def follow(self, device: torch.device) -> None:
        """Moves the state to where the batches are, once."""
        if self._device != device:
            self.to(device)

    def accumulate(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None) -> None:
        """Adds a batch of tensors whose class axis is at index 1; what a built-in metric defines."""
        raise StateError(explain(type(self).__name__, "no method that adds a batch",
                                 "`update_state(self, y_true, y_pred, sample_weight)`"))

    def result(self) -> Tensor:
        """Returns the value over all batches since `reset`, as a tensor on the device."""
        raise StateError(explain(type(self).__name__, "no method that computes the value", "`result(self)`"))

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Adds a batch and returns the value so far, as in Keras."""
        self.update(*args, **kwargs)
        return self.result()


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Returns numerator / denominator, and 0 where the denominator is 0."""
    empty = denominator == 0
    return torch.where(empty, 0, numerator / torch.where(empty, 1, denominator))
