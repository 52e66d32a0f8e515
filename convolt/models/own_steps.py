"""`train_step` and `test_step`: what a subclass of `Model` overrides to train in its own way, as in Keras."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from convolt.errors import StateError, explain


class OwnSteps:
    """The standard steps, and the methods that own steps are written with.

    A step of your own gets `data`: x, (x, y) or (x, y, sample_weight) on the device; x as `forward` takes it (channel axis
    at index 1), y and sample_weight as they were given to `fit`; lists where there are several. It returns a dict:
    values with the name of a metric are that metric's, others are averaged over the epoch.

    >>> import convolt
    >>> class Quiet(convolt.Sequential):
    ...     def train_step(self, data):
    ...         x, y = data
    ...         y_pred = self(x + 0.1, training=True)
    ...         loss = self.compute_loss(y=y, y_pred=y_pred)
    ...         loss.backward()
    ...         self.optimizer.step()
    ...         return {"loss": loss, **self.compute_metrics(x, y, y_pred)}

    Keep nothing on the host that changes from step to step, and read no values: then the step can be captured in a CUDA
    graph. `compile(execution="eager")` lifts that. Keras counterpart: `keras.Model.train_step`.
    """

    own_step: Any = None  # the step in whose train_step or test_step we are

    def train_step(self, data: Any) -> dict[str, Any]:
        """Forward, loss, backward, update; returns the loss and the metrics."""
        x, y, weights = unpack(data)
        y_pred = self._call_on(x)
        loss = self.compute_loss(x, y, y_pred, weights)
        loss.backward()  # type: ignore[no-untyped-call]
        self._inside("train_step")._optimizer.step()
        return {"loss": loss, **self.compute_metrics(x, y, y_pred, weights)}

    def test_step(self, data: Any) -> dict[str, Any]:
        """Forward and loss; returns the loss and the metrics."""
        x, y, weights = unpack(data)
        y_pred = self._call_on(x)
        return {"loss": self.compute_loss(x, y, y_pred, weights), **self.compute_metrics(x, y, y_pred, weights)}

    train_step.standard = test_step.standard = True  # type: ignore[attr-defined]

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None) -> Tensor:
        """Returns the compiled loss plus all penalties (regularizers, `add_loss`), a scalar."""
        loss: Tensor = self._inside("compute_loss").loss_of(y, y_pred, sample_weight)
        return loss

    def compute_metrics(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None) -> dict[str, Tensor]:
        """Adds predictions to the compiled metrics; returns their results so far, on the device."""
        results: dict[str, Tensor] = self._inside("compute_metrics").add_to_metrics(y, y_pred, sample_weight)
        return results

    def _call_on(self, x: Any) -> Any:
        return self(*x) if isinstance(x, list) else self(x)  # type: ignore[operator]

    def _inside(self, method: str) -> Any:
        if self.own_step is None:
            raise StateError(explain(f"{type(self).__name__}.{method}", "a call outside of fit and evaluate",
                                     "a call in a train_step or test_step of your own", "Use train_on_batch for one step by hand."))
        return self.own_step


def unpack(data: Any) -> tuple[Any, Any, Any]:
    """Returns (x, y, sample_weight) of what a step gets; Keras counterpart: `keras.utils.unpack_x_y_sample_weight`."""
    return (*data, None, None)[:3] if isinstance(data, tuple) else (data, None, None)
