"""`Wrapper`: an optimizer around another, on the same protocol, so that wrappers can be put around each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from convolt.configurable import snake_case
from convolt.errors import ArgumentError, ArgumentTypeError, ModelFileError, explain
from convolt.optimizers.base import Optimizer, registry
from convolt.optimizers.find import get
from convolt.optimizers.state import check_number_of_state, check_tensors, copy_tensors
from convolt.schedules import LearningRateSchedule


class Wrapper(Optimizer):
    """Base of wrappers: everything goes to the optimizer inside, and a subclass adds to the parts that concern it.

    Args:
        optimizer: what is wrapped: a name, class, configuration or object. None: the wrapper's `usual` one.
        name: shown in summaries.
        arguments: of the optimizer inside, where it is made here: `SAM("adam", learning_rate=0.01)`.

    A subclass keeps tensors of its own in `own_slots()` and numbers in `own_numbers()`; both become part of the state.

    Attributes:
        usual: class name and arguments of the optimizer that is made if none is given.
        optional: own numbers that a state may lack, or have while the wrapper has none.
        optimizer: the one inside.
    """

    usual: ClassVar[tuple[str, dict[str, Any]]] = ("SGD", {"momentum": 0.9})
    optional: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, optimizer: Any = None, name: str | None = None, **arguments: Any) -> None:
        kind = type(self).__name__
        if optimizer is None:
            optimizer, arguments = self.usual[0], {**self.usual[1], **arguments}
        if isinstance(optimizer, str):
            optimizer = registry.find(optimizer)
        if arguments:
            if not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer)):
                raise ArgumentTypeError(explain(f"{kind}(...)", f"the argument {next(iter(arguments))!r} beside a made optimizer",
                                                f"arguments of {kind} alone", "Give it to the optimizer inside."))
            optimizer = optimizer(**arguments)
        self.optimizer = get(optimizer)
        inside: Any = self.optimizer
        while isinstance(inside, Wrapper):
            if type(inside) is type(self):
                raise ArgumentError(explain(f"{kind}(optimizer)", f"an optimizer with another {kind} in it", f"one {kind} in all"))
            inside = inside.optimizer
        self.name = name or snake_case(kind)

    # -- a subclass may add to these -------------------------------------------------------------------------------

    def own_slots(self) -> dict[str, dict[str, Tensor]]:
        """Returns the wrapper's tensors: for each slot, one for each parameter by name."""
        return {}

    def own_numbers(self) -> dict[str, int]:
        """Returns the wrapper's whole numbers, from 0, that its state consists of beside tensors."""
        return {}

    def set_own_numbers(self, numbers: Mapping[str, int]) -> None:
        """Sets what `own_numbers` returned."""

    def make_own(self, parameters: dict[str, nn.Parameter]) -> None:
        """Makes the wrapper's tensors, when the parameters become known."""

    def after_update(self) -> None:
        """Is called on the host after each update of the weights, once it is counted; may launch work, and waits for nothing."""

    # -- the protocol ----------------------------------------------------------------------------------------------

    def bind(self, named_parameters: Iterable[tuple[str, nn.Parameter]], exclude_from_weight_decay: Iterable[str] = (),
             rate_factors: Mapping[str, float] | None = None) -> None:
        before = self._own_tensors() if self._parameters else None
        self.optimizer.bind(named_parameters, exclude_from_weight_decay, rate_factors)
        device = next(iter(self._parameters.values())).device
        if before is None or any(t.device != device for t in before.values()):
            self.make_own(self._parameters)
            if before is not None:
                copy_tensors(before, self._own_tensors())

    def restart(self) -> None:
        self.optimizer.restart()  # `bind` makes the wrapper's own tensors anew

    def prepare_step(self) -> None:
        self._require_own_weights("step")
        self.optimizer.prepare_step()

    def numbers_ahead(self, count: int) -> Tensor:
        self._require_own_weights("step")
        return self.optimizer.numbers_ahead(count)

    def use_numbers(self, row: Tensor) -> None:
        self.optimizer.use_numbers(row)

    @property
    def works_between(self) -> bool:
        """Whether the wrapper, or one inside it, launches work after an update."""
        return type(self).after_update is not Wrapper.after_update or self.optimizer.works_between

    def update(self, closure: Callable[[], Any] | None = None) -> None:
        self.optimizer.update(closure)

    def finish_step(self) -> None:
        before = self.iterations
        self.optimizer.finish_step()
        if self.iterations != before:
            self.after_update()

    @property
    def variant(self) -> str:
        """What the device does in the step to come, as the optimizer inside says."""
        return self.optimizer.variant

    @property
    def needs_closure(self) -> bool:  # type: ignore[override]
        """Whether the wrapper, or one inside it, computes gradients anew."""
        return self.optimizer.needs_closure

    @property
    def wants_statistics(self) -> bool:
        """Whether statistics of batch normalization are to be computed anew at the end, as the optimizer inside says."""
        return self.optimizer.wants_statistics

    @property
    def capturable(self) -> bool:
        """Whether a step can be captured in a CUDA graph."""
        return self.optimizer.capturable

    # -- what the optimizer inside has -----------------------------------------------------------------------------

    @property
    def _parameters(self) -> dict[str, nn.Parameter]:  # type: ignore[override]
        return self.optimizer._parameters

    @property
    def steps(self) -> int:
        """Finished steps."""
        return self.optimizer.steps

    @steps.setter
    def steps(self, value: int) -> None:
        self.optimizer.steps = value

    @property
    def iterations(self) -> int:
        """Finished updates of the weights."""
        return self.optimizer.iterations

    @iterations.setter
    def iterations(self, value: int) -> None:
        self.optimizer.iterations = value

    @property
    def learning_rate(self) -> Any:
        """The rate of the optimizer inside; may be set."""
        return self.optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.optimizer.learning_rate = value

    @property
    def schedule(self) -> LearningRateSchedule | None:
        """The schedule of the optimizer inside, or None."""
        return self.optimizer.schedule

    def _weights(self) -> list[Tensor]:
        return [p.detach() for p in self._parameters.values()]

    @property
    def innermost(self) -> Optimizer:
        """The optimizer that is no wrapper."""
        return self.optimizer.innermost if isinstance(self.optimizer, Wrapper) else self.optimizer

    def resolve(self, total_steps: int) -> None:
        self.optimizer.resolve(total_steps)

    def default_learning_rate(self) -> float:
        return self.optimizer.default_learning_rate()

    def exclude_from_weight_decay(self, var_list: Iterable[Tensor] = (), var_names: Iterable[str] = ()) -> None:
        self.optimizer.exclude_from_weight_decay(var_list, var_names)

    def apply_ema(self) -> None:
        self.optimizer.apply_ema()

    def restore(self) -> None:
        self.optimizer.restore()

    def finalize_variable_values(self, var_list: object = None) -> None:
        self.optimizer.finalize_variable_values(var_list)

    def _require_own_weights(self, call: str) -> None:
        self.optimizer._require_own_weights(call)

    # -- state and configuration -----------------------------------------------------------------------------------

    def _own_tensors(self) -> dict[str, Tensor]:
        kind = snake_case(type(self).__name__)
        return {f"{kind}.{slot}/{name}": tensor for slot, tensors in self.own_slots().items() for name, tensor in tensors.items()}

    def slots(self) -> dict[str, Tensor]:
        return {**self.optimizer.slots(), **self._own_tensors()}

    def state_dict(self) -> dict[str, Any]:
        self._require_own_weights("state_dict")
        kind = snake_case(type(self).__name__)
        numbers = {f"{kind}.{name}": value for name, value in self.own_numbers().items()}
        return {**self.optimizer.state_dict(), **numbers, **self._own_tensors()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._require_bound("load_state_dict")
        kind = f"{snake_case(type(self).__name__)}."
        own = {key: value for key, value in state.items() if key.startswith(kind)}
        tensors = {key: value for key, value in own.items() if isinstance(value, Tensor)}
        numbers = {key.removeprefix(kind): value for key, value in own.items() if key not in tensors}
        check_tensors(self.name, tensors, self._own_tensors())
        expected = self.own_numbers().keys()
        for key in sorted((expected ^ numbers.keys()) - self.optional):
            raise ModelFileError(explain(f"state of {self.name}", f"{'no' if key in expected else 'an unknown'} number {key!r}",
                                         f"these: {sorted(expected)}", "Give the optimizer the settings that it was saved with."))
        for key, value in numbers.items():
            check_number_of_state(f"state of {self.name}: {key}", value)
        self.optimizer.load_state_dict({key: value for key, value in state.items() if key not in own})
        copy_tensors(tensors, self._own_tensors())
        self.set_own_numbers(numbers)

    @classmethod
    def _argument_names(cls) -> list[str]:
        """Returns the wrapper's own arguments: those of the optimizer inside are in its configuration."""
        names: list[str] = []
        for owner in cls.__mro__[: cls.__mro__.index(Wrapper) + 1]:
            if "__init__" in owner.__dict__:
                code = cast(Any, owner.__dict__["__init__"]).__code__
                names += [name for name in code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount] if name not in names]
        return names

    def _arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._argument_names()}
