"""Steps with gradients that the caller has computed, for training loops as Keras writes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from convolt.errors import ArgumentError, StateError, explain


class StepsByHand:
    """Gives an optimizer Keras's `apply` and `apply_gradients`."""

    name: str
    _parameters: dict[str, nn.Parameter]
    bind: Any
    step: Any
    zero_grad: Any
    steps_left: int | None = None  # how often `step` may still be called in a step that is prepared and finished outside

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Makes one `step()` in this context its middle part alone: the caller prepares and finishes the step."""
        self.steps_left = 1
        try:
            yield
        finally:
            self.steps_left = None

    def take_step(self) -> None:
        """Counts a `step()` in the context of `prepared`.

        Raises:
            StateError: it is the second.
        """
        if not self.steps_left:
            raise StateError(explain(f"{self.name}.step", "a second call in one train_step", "one update of the weights in a step",
                                     "Use another optimizer for the other update."))
        self.steps_left = 0

    def apply(self, gradients: Sequence[Tensor], trainable_variables: Sequence[nn.Parameter] | None = None) -> None:
        """Steps with these gradients.

        Args:
            gradients: one for each parameter.
            trainable_variables: the parameters; the first call binds the optimizer to them. None: those it is bound to.
        """
        if trainable_variables is not None and not self._parameters:
            self.bind([(str(i), p) for i, p in enumerate(trainable_variables)])
        targets = list(self._parameters.values()) if trainable_variables is None else list(trainable_variables)
        if len(targets) != len(gradients):
            raise ArgumentError(explain(f"{self.name}.apply", f"{len(gradients)} gradients",
                                        f"{len(targets)}, one for each parameter"))
        if not {id(p) for p in targets} <= {id(p) for p in self._parameters.values()}:
            raise ArgumentError(explain(f"{self.name}.apply", "an unknown parameter", "parameters that it is bound to"))
        self.zero_grad()
        for p, gradient in zip(targets, gradients, strict=True):
            p.grad = gradient.detach().to(p.dtype).clone()  # clipping must not change the caller's tensor
        self.step()
        self.zero_grad()

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Tensor, nn.Parameter]]) -> None:
        """Steps with (gradient, parameter) pairs, as in Keras."""
        gradients, parameters = zip(*grads_and_vars, strict=True)
        self.apply(gradients, parameters)
