"""Hooks: what a callback is, and how the training loop calls several of them.

A hook that reads the loss makes the host wait for the device. Two things keep callbacks from costing speed: the loop
asks `CallbackList.listens(hook)` and skips hooks that nobody overrides, and the logs of a batch are `LazyLogs`, which
read the device only when somebody looks at a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from convolt.errors import ArgumentError, ArgumentTypeError, explain

Logs = Mapping[str, Any]
"""Names and values of losses and metrics; at the end of an epoch a `dict` of floats, at the end of a batch `LazyLogs`."""

HOOKS = (
    "on_train_begin", "on_train_end", "on_epoch_begin", "on_epoch_end", "on_train_batch_begin", "on_train_batch_end",
    "on_test_begin", "on_test_end", "on_test_batch_begin", "on_test_batch_end",
    "on_predict_begin", "on_predict_end", "on_predict_batch_begin", "on_predict_batch_end",
)  # fmt: skip
"""The hooks, by name; Keras's older `on_batch_begin` and `on_batch_end` stand for those of a training batch."""

_OLD_NAMES = {"on_train_batch_begin": "on_batch_begin", "on_train_batch_end": "on_batch_end"}


class LazyLogs(Mapping[str, float]):
    """The logs of one batch, read from the device when the first value is looked at, and only then.

    Args:
        read: returns names and values; called at most once.

    The values are those at the time of the first look, so look inside of the hook that got the logs. Being asked for
    its truth (`logs or {}`, as many callbacks write) reads nothing.

    >>> logs = LazyLogs(lambda: {"loss": 0.5})
    >>> logs["loss"]
    0.5
    """

    def __init__(self, read: Callable[[], dict[str, float]]) -> None:
        self._read = read
        self._values: dict[str, float] | None = None

    @property
    def values_read(self) -> dict[str, float]:
        """The values as a `dict`; reads the device if that has not happened yet."""
        if self._values is None:
            self._values = self._read()
        return self._values

    def __getitem__(self, key: str) -> float:
        return self.values_read[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_read)

    def __len__(self) -> int:
        return len(self.values_read)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return "LazyLogs(not read)" if self._values is None else f"LazyLogs({self._values})"


def scalars(logs: Logs | None) -> dict[str, float]:
    """Returns the values that are numbers; a metric may also give an array, such as a confusion matrix."""
    return {name: float(value) for name, value in (logs or {}).items() if np.ndim(value) == 0}


class Callback:
    """Base of callbacks: override the hooks that you need.

    Attributes:
        model: the model in training; `self.model.stop_training = True` ends `fit` after this batch.
        params: `epochs`, `steps` (of an epoch; None if unknown) and `verbose`.

    `logs` at the end of an epoch is a dict with `loss`, the metrics, their `val_…` and `learning_rate`, as floats; at the
    end of a batch it is a `LazyLogs`, which costs nothing until a value is looked at.
    Keras counterpart: `keras.callbacks.Callback`.
    """

    model: Any = None
    params: Mapping[str, Any] = {}
    is_setting: bool = True  # False: it changes no result, so that a training may be resumed with or without it

    def progress_text(self, done: bool) -> str:
        """Returns what this callback adds to the live line, or, where the epoch is `done`, to the line of the epoch."""
        return ""

    def set_model(self, model: Any) -> None:
        """Called before training with the model."""
        self.model = model

    def set_params(self, params: Mapping[str, Any]) -> None:
        """Called before training with `epochs`, `steps` and `verbose`."""
        self.params = params

    def wants(self, hook: str) -> bool:
        """Whether `hook` of this object does anything; the loop prepares no logs for a hook that nobody wants."""
        overridden = hook in vars(self) or getattr(type(self), hook) is not getattr(Callback, hook)
        return overridden or (hook in _OLD_NAMES and self.wants(_OLD_NAMES[hook]))

    def state_dict(self) -> dict[str, Any]:
        """Returns what this callback must remember to go on exactly where it was, as JSON values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` returned; called after `on_train_begin`, which starts from nothing."""

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors that belong to `state_dict` (such as the best weights), by name."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from what `tensors` returned; called after `load_state_dict`."""

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Called once, before the first epoch."""

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Called once, after the last epoch; also after Ctrl-C."""

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Called before an epoch; `epoch` counts from 0."""

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Called after an epoch and its validation."""

    def on_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Older name of `on_train_batch_begin`."""

    def on_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Older name of `on_train_batch_end`."""

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Called before a training batch; `batch` counts from 0 in each epoch."""
        self.on_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Called after a training batch."""
        self.on_batch_end(batch, logs)

    def on_test_begin(self, logs: Logs | None = None) -> None:
        """Called before `evaluate`, and before the validation of an epoch."""

    def on_test_end(self, logs: Logs | None = None) -> None:
        """Called after `evaluate` or validation, with its losses and metrics."""

    def on_test_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Called before a batch of `evaluate` or validation."""

    def on_test_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Called after a batch of `evaluate` or validation."""

    def on_predict_begin(self, logs: Logs | None = None) -> None:
        """Called before `predict`."""

    def on_predict_end(self, logs: Logs | None = None) -> None:
        """Called after `predict`."""

    def on_predict_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Called before a batch of `predict`."""

    def on_predict_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Called after a batch of `predict`."""


class CallbackList:
    """Calls the hooks of several callbacks in their order.

    Args:
        callbacks: one callback, a (nested) list of them, or None.
        model: given to each callback.
        params: `epochs`, `steps` and `verbose`, given to each callback.

    Raises:
        ArgumentTypeError: something in `callbacks` is no `Callback`.
    """

    def __init__(self, callbacks: Any, model: Any, params: Mapping[str, Any]) -> None:
        self.callbacks = list(_flatten(callbacks))
        self._settings = [callback for callback in self.callbacks if callback.is_setting]
        for callback in self.callbacks:
            callback.set_params(params)
            callback.set_model(model)
        self._listeners: dict[str, list[Callable[..., Any]]] = {
            hook: [getattr(c, hook) for c in self.callbacks if c.wants(hook)] for hook in HOOKS
        }

    def listens(self, *hooks: str) -> bool:
        """Whether any callback does something in any of `hooks`."""
        return any(self._listeners[hook] for hook in hooks)

    def _call(self, hook: str, *arguments: Any) -> None:
        for listener in self._listeners[hook]:
            listener(*arguments)

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Calls the hook of each callback."""
        self._call("on_train_begin", logs)

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Calls the hook of each callback."""
        self._call("on_train_end", logs)

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Calls the hook of each callback."""
        self._call("on_epoch_begin", epoch, logs)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Calls the hook of each callback; they share `logs`, so one may add a key for the next."""
        self._call("on_epoch_end", epoch, logs)

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Calls the hook of each callback."""
        self._call("on_train_batch_begin", batch, logs)

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Calls the hook of each callback."""
        self._call("on_train_batch_end", batch, logs)

    def on_test_begin(self, logs: Logs | None = None) -> None:
        """Calls the hook of each callback."""
        self._call("on_test_begin", logs)

    def on_test_end(self, logs: Logs | None = None) -> None:
        """Calls the hook of each callback."""
        self._call("on_test_end", logs)

    def on_test_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Calls the hook of each callback."""
        self._call("on_test_batch_begin", batch, logs)

    def on_test_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Calls the hook of each callback."""
        self._call("on_test_batch_end", batch, logs)

    def on_predict_begin(self, logs: Logs | None = None) -> None:
        """Calls the hook of each callback."""
        self._call("on_predict_begin", logs)

    def on_predict_end(self, logs: Logs | None = None) -> None:
        """Calls the hook of each callback."""
        self._call("on_predict_end", logs)

    def on_predict_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Calls the hook of each callback."""
        self._call("on_predict_batch_begin", batch, logs)

    def on_predict_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Calls the hook of each callback."""
        self._call("on_predict_batch_end", batch, logs)

    def progress_texts(self, done: bool) -> list[str]:
        """Returns what the callbacks add to the progress line."""
        return [text for callback in self.callbacks if (text := callback.progress_text(done))]

    # -- state -----------------------------------------------------------------------------------------------------

    def keys(self) -> list[str]:
        """Returns the name of each callback in `state_dict`: its place and its class."""
        return [self._key(i) for i in range(len(self._settings))]

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of each callback as JSON values, with its class and place as its key (`0.EarlyStopping`)."""
        return {self._key(i): callback.state_dict() for i, callback in enumerate(self._settings)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Gives each callback its state back; call it after `on_train_begin`.

        Raises:
            ArgumentError: the callbacks are others than those that were saved.
        """
        keys = self.keys()
        if keys != list(state):
            saved = ", ".join(state) or "none"
            raise ArgumentError(explain("callbacks", ", ".join(keys) or "none", f"those of the saved run: {saved}",
                                        "Resume with the same callbacks in the same order."))
        for key, callback in zip(keys, self._settings, strict=True):
            callback.load_state_dict(state[key])

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors of each callback, as `0.EarlyStopping.best_weights.name`."""
        return {f"{self._key(i)}.{name}": tensor
                for i, callback in enumerate(self._settings) for name, tensor in callback.tensors().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Gives each callback its tensors back; call it after `load_state_dict`."""
        for i, callback in enumerate(self._settings):
            prefix = f"{self._key(i)}."
            callback.load_tensors({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})

    def _key(self, index: int) -> str:
        return f"{index}.{type(self._settings[index]).__name__}"


def _flatten(callbacks: Any) -> Iterator[Callback]:
    if isinstance(callbacks, Callback):
        yield callbacks
    elif isinstance(callbacks, CallbackList):
        yield from callbacks.callbacks
    elif isinstance(callbacks, type) and issubclass(callbacks, Callback):
        raise ArgumentTypeError(explain("callbacks", f"the class {callbacks.__name__}", "an object",
                                        f"Write {callbacks.__name__}(…) with its parentheses."))
    elif isinstance(callbacks, Iterable) and not isinstance(callbacks, (str, bytes, Mapping)):
        for callback in callbacks:
            yield from _flatten(callback)
    elif callbacks is not None:
        raise ArgumentTypeError(explain("callbacks", repr(callbacks), "objects of convolt.callbacks.Callback",
                                        "A plain function becomes one with LambdaCallback(on_epoch_end=function)."))
