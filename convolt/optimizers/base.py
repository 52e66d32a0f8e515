"""`Optimizer`: Keras's optimizers on `torch.optim`, with a step that never waits for the device.

A step has three parts, and `step()` runs them one after the other:

1. `prepare_step()`, on the host: computes every number that depends on the step (learning rate, bias corrections, …)
   in double precision from `iterations` and writes those that changed into 0-d tensors on the device.
2. `update(closure)`, on the device alone: clips, decays, updates, averages. It reads the 0-d tensors, so that it can be
   captured in a CUDA graph once and replayed; on a replay the caller runs parts 1 and 3 itself.
3. `finish_step()`, on the host: counts the step, and launches what is done only now and then, such as writing the
   averages over the weights every `ema_overwrite_frequency` steps.

Two attributes say what a caller has to know. `variant` names the device part of the step to come: with
`gradient_accumulation_steps` there are two, and a graph is captured for each. `needs_closure` says that `update` wants a
function that computes the gradients of the same batch anew at the present weights (`SAM`). Wrappers
(`convolt.optimizers.wrappers`) are optimizers on the same protocol around another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from convolt.configurable import Configurable, Registry
from convolt.errors import ArgumentError, ArgumentTypeError, StateError, did_you_mean, explain
from convolt.optimizers.ahead import StepsAhead
from convolt.optimizers.arguments import checked_parameters
from convolt.optimizers.averages import HasAverages, WeightAverages
from convolt.optimizers.by_hand import StepsByHand
from convolt.optimizers.clipping import clip_by_global_norm_, clip_by_norm_, clip_by_value_
from convolt.optimizers.decay import DecaysWeights
from convolt.optimizers.dynamo import plain_step, without_dynamo
from convolt.optimizers.rate import HasLearningRate
from convolt.optimizers.state import check_numbers, check_tensors, copy_tensors
from convolt.schedules import check_number

registry: Registry[type[Optimizer]] = Registry("optimizer")
"""Every optimizer that can be made from its name, and so from a file."""

FUSED_DEVICES = frozenset({"cpu", "cuda", "xpu", "mps"})
"""Device types with fused kernels for `torch.optim.Adam` and `SGD`; elsewhere `_foreach_` functions do the same."""


class Optimizer(HasLearningRate, DecaysWeights, HasAverages, StepsAhead, StepsByHand, Configurable):
    """Base of optimizers: arguments, accumulation, clipping, weight decay, averages, state.

    Args:
        learning_rate: a number from 0; a `LearningRateSchedule` or its configuration; a function of the step; or a word
            such as `"cosine"`, which is that schedule over the whole training with the optimizer's default rate as its peak
            (`convolt.schedules.by_word`).
        weight_decay: p ← p · (1 - weight_decay · learning_rate) before the update. **Other than in Keras, tensors with
            at most one axis (biases, scales and shifts of normalizations) are left out**, for decay only harms there.
        clipnorm: the largest norm that the gradient of one tensor may have.
        clipvalue: the largest absolute value that a gradient may have.
        global_clipnorm: the largest norm that all gradients together may have. One of the three at most.
        use_ema: keep an exponential moving average of the weights.
        ema_momentum: its momentum.
        ema_overwrite_frequency: steps between two overwrites of the weights by their averages; None: only when `fit` ends.
        gradient_accumulation_steps: k from 2: the weights are updated at every k-th step, with the mean of the gradients of
            the last k. As in Keras, schedules see every step and bias corrections every update, a group that an epoch's
            end leaves open goes on in the next epoch, and one that is open when training ends is not used.
        name: shown in summaries.

    Attributes:
        steps: finished steps, each with the gradients of one batch.

    Keras counterpart: `keras.optimizers.Optimizer`. An optimizer of your own makes a `torch.optim.Optimizer` in
    `make_rules`; a class of `torch.optim` can also be given as it is (`convolt.optimizers.TorchOptimizer`).
    """

    needs_closure: bool = False

    def __init__(self, learning_rate: Any = 0.001, *, weight_decay: float | None = None, clipnorm: float | None = None,
                 clipvalue: float | None = None, global_clipnorm: float | None = None, use_ema: bool = False,
                 ema_momentum: float = 0.99, ema_overwrite_frequency: int | None = None,
                 gradient_accumulation_steps: int | None = None, name: str | None = None, **unknown: Any) -> None:
        kind = type(self).__name__
        for argument in unknown:
            raise ArgumentTypeError(explain(f"{kind}(...)", f"the unknown argument {argument!r}", "an argument of this optimizer",
                                            did_you_mean(argument, self._argument_names())))
        self.weight_decay = self._number("weight_decay", weight_decay, optional=True)
        self.clipnorm = self._number("clipnorm", clipnorm, optional=True)
        self.clipvalue = self._number("clipvalue", clipvalue, optional=True)
        self.global_clipnorm = self._number("global_clipnorm", global_clipnorm, optional=True)
        clips = {n: getattr(self, n) for n in ("clipnorm", "clipvalue", "global_clipnorm") if getattr(self, n) is not None}
        if len(clips) > 1:
            raise ArgumentError(explain(f"{kind}(...)", str(clips), "one of clipnorm, clipvalue and global_clipnorm"))
        if 0.0 in clips.values():
            raise ArgumentError(explain(f"{kind}({next(iter(clips))})", "0", "a number above 0, or None for no clipping"))
        self.use_ema = bool(use_ema)
        self.ema_momentum = self._number("ema_momentum", ema_momentum, 0.0, 1.0)
        self.ema_overwrite_frequency = self._count("ema_overwrite_frequency", ema_overwrite_frequency, 1)
        self.gradient_accumulation_steps = self._count("gradient_accumulation_steps", gradient_accumulation_steps, 2)
        self.name = name or kind.lower()
        self.learning_rate = learning_rate
        self._excluded_objects, self._excluded_names, self._excluded_pattern = set(), set(), None
        self.restart()

    def restart(self) -> None:
        """Forgets parameters, state and steps; settings stay, and so does the present learning rate."""
        self.steps = 0
        self._parameters: dict[str, nn.Parameter] = {}
        self._factors: dict[str, float] = {}
        self._forget()

    def _forget(self) -> None:
        self._numbers: dict[str, Tensor] = {}
        self._filled: dict[str, float] = {}
        self._decayed: dict[tuple[float, float], list[Tensor]] = {}
        self._rules: list[torch.optim.Optimizer] = []
        self._accumulated: dict[str, Tensor] = {}
        self._averages: WeightAverages | None = None

    def _number(self, argument: str, value: Any, low: float = 0.0, high: float = float("inf"), *, optional: bool = False) -> Any:
        """Returns an argument as float after checking its range; None passes if `optional`."""
        return None if optional and value is None else check_number(f"{type(self).__name__}({argument})", value, low, high)

    def _count(self, argument: str, value: Any, low: int) -> int | None:
        """Returns an argument that is None or a whole number from `low`."""
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
            raise ArgumentError(explain(f"{type(self).__name__}({argument})", repr(value), f"a whole number from {low}, or None"))
        return value

    def _arguments(self) -> dict[str, Any]:
        """Returns the constructor's arguments; a constant rate is the present one, as in Keras, a schedule may have no length yet."""
        rate = {"learning_rate": self._rate if self._schedule is None else self._schedule}
        return {name: rate[name] if name in rate else getattr(self, name) for name in self._argument_names()
                if name in rate or hasattr(self, name)}

    # -- for subclasses ----------------------------------------------------------------------------------------------

    def numbers(self, rate: float, step: int) -> dict[str, float]:
        """Returns the numbers that the rules need in this step, by name.

        Args:
            rate: the learning rate.
            step: updates finished before this one, so 0 at first.
        """
        return {"lr": rate}

    def make_rules(self, parameters: dict[str, nn.Parameter], numbers: dict[str, Tensor]) -> list[torch.optim.Optimizer]:
        """Returns the torch optimizers that update the parameters; `numbers` are the 0-d tensors to read."""
        raise TypeError(f"{type(self).__name__} defines no make_rules(parameters, numbers)")

    # -- binding -----------------------------------------------------------------------------------------------------

    def bind(self, named_parameters: Iterable[tuple[str, nn.Parameter]], exclude_from_weight_decay: Iterable[str] = (),
             rate_factors: Mapping[str, float] | None = None) -> None:
        """Takes a model's parameters and makes the state. Frozen parameters are left out.

        A second call with the same parameters keeps the state, and takes it along if they moved to another device.

        Args:
            named_parameters: what `model.named_parameters()` gives.
            exclude_from_weight_decay: names of parameters without weight decay, beside those with at most one axis.
            rate_factors: what the learning rate is multiplied by, by names of parameters; 1 for the others.

        Raises:
            ArgumentTypeError: these are no (name, parameter) pairs.
            ArgumentError: nothing can be trained, or an excluded name is unknown.
            DeviceError: the parameters lie on several devices.
            StateError: the optimizer is bound to other parameters.
        """
        excluded = set(exclude_from_weight_decay)
        trained = checked_parameters(self.name, named_parameters, excluded)
        device = next(iter(trained.values())).device
        same = [*map(id, trained.values())] == [*map(id, self._parameters.values())]
        if same and next(iter(self._numbers.values())).device == device:
            return
        if self._parameters and not same:
            raise StateError(explain(f"{self.name}.bind", "other parameters than before", "those of the model that it trains",
                                     "Make a new optimizer for another model; restart() forgets the old one."))
        state = self.state_dict() if same else None
        self._forget()
        self._parameters, self._excluded_names = trained, excluded
        self._factors = {name: (rate_factors or {}).get(name, 1.0) for name in trained}
        self._build(device)
        if state is not None:
            self.load_state_dict(state)

    def _build(self, device: torch.device) -> None:
        """Makes the numbers on the device, the rules with their state, the accumulators and the averages."""
        groups: dict[float, dict[str, nn.Parameter]] = {}
        for name, p in self._parameters.items():
            factor = self._factors[name]
            groups.setdefault(factor, {})[name] = p
            decay = self.decay_of(name, p) if self.may_decay(name, p) else None
            if decay:
                self._decayed.setdefault((decay, factor), []).append(p)
        # Fused kernels on accelerators read the rate as float32; on the CPU float64 keeps float64 training exact.
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        own = [*self.numbers(0.0, 0)]
        names = [*(_scaled(name, factor) for factor in groups for name in own), *(_decay_name(*d) for d in self._decayed),
                 *(("keep", "add") if self.use_ema else ())]
        self._numbers = {name: torch.zeros((), dtype=dtype, device=device) for name in names}
        with without_dynamo():
            for factor, parameters in groups.items():
                self._rules += self.make_rules(parameters, {name: self._numbers[_scaled(name, factor)] for name in own})
        self._steps = [plain_step(rule) for rule in self._rules]
        if self.gradient_accumulation_steps is not None:
            self._accumulated = {name: torch.zeros_like(p, memory_format=torch.preserve_format) for name, p in self._parameters.items()}
        if self.use_ema:
            self._averages = WeightAverages(list(self._parameters.values()))

    # -- the step ----------------------------------------------------------------------------------------------------

    @property
    def wants_statistics(self) -> bool:
        """Whether statistics of batch normalization are to be computed anew once the averages are in the weights' place."""
        return False

    @property
    def capturable(self) -> bool:
        """Whether a step can be captured in a CUDA graph."""
        return True

    @property
    def iterations(self) -> int:
        """Finished updates of the weights: all steps, or with `gradient_accumulation_steps` every k-th."""
        return self.steps // (self.gradient_accumulation_steps or 1)

    @iterations.setter
    def iterations(self, value: int) -> None:
        self.steps = value * (self.gradient_accumulation_steps or 1)

    @property
    def variant(self) -> str:
        """What the device does in the step to come: "update", or "accumulate" where the gradients are only added up."""
        k = self.gradient_accumulation_steps
        return "update" if k is None or (self.steps + 1) % k == 0 else "accumulate"

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients; with `set_to_none=False` fills them with 0, so that their memory stays in its place."""
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        if set_to_none:
            for p in self._parameters.values():
                p.grad = None
        elif gradients:
            torch._foreach_zero_(gradients)

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Updates the parameters from their gradients; parameters without a gradient stay as they are.

        Clipping changes the gradients in place, as `torch.nn.utils.clip_grad_norm_` does.

        Args:
            closure: computes the gradients of the same batch anew; wanted where `needs_closure` says so.

        Raises:
            StateError: not bound, no parameter has a gradient, no closure where one is needed, or the averages are in use.
        """
        if self.steps_left is not None:
            self.take_step()
            self.update(closure)
            return
        self.prepare_step()
        self.update(closure)
        self.finish_step()

    def prepare_step(self) -> None:
        """Part 1 of a step, on the host: fills the numbers of this step into their tensors, without waiting."""
        self._require_bound("step")
        self._require_own_weights("step")
        for name, value in self._values().items():
            if self._filled.get(name) != value:
                self._numbers[name].fill_(value)
                self._filled[name] = value

    def _values(self) -> dict[str, float]:
        """Returns the numbers of the step to come, by the names of their tensors."""
        rate, updates = float(self.learning_rate), self.iterations
        values = {_scaled(name, factor): value for factor in dict.fromkeys(self._factors.values())
                  for name, value in self.numbers(rate * factor, updates).items()}
        values |= {_decay_name(decay, factor): 1.0 - decay * (rate * factor) for decay, factor in self._decayed}
        if self.use_ema:
            momentum = self.ema_momentum if updates else 0.0  # the first average is the first weights
            values |= {"keep": momentum, "add": 1.0 - momentum}
        return values

    @torch.no_grad()
    def update(self, closure: Callable[[], Any] | None = None) -> None:
        """Part 2 of a step, on the device: adds up or clips, decays, updates, averages; fit for capture in a CUDA graph."""
        gradients = self._gradients()
        if self.variant == "accumulate":
            torch._foreach_add_(self._accumulators(), gradients)
        else:
            if self.gradient_accumulation_steps is not None:
                torch._foreach_add_(gradients, self._accumulators())
                torch._foreach_div_(gradients, float(self.gradient_accumulation_steps))
                torch._foreach_zero_(self._accumulators())
            self._change_weights(gradients)
        if self._averages is not None:
            self._averages.update(list(self._parameters.values()), self._numbers["keep"], self._numbers["add"])

    def _change_weights(self, gradients: list[Tensor]) -> None:
        if self.clipnorm is not None:
            clip_by_norm_(gradients, self.clipnorm)
        elif self.global_clipnorm is not None:
            clip_by_global_norm_(gradients, self.global_clipnorm)
        elif self.clipvalue is not None:
            clip_by_value_(gradients, self.clipvalue)
        for (decay, factor), parameters in self._decayed.items():
            with_gradient = [p for p in parameters if p.grad is not None]
            if with_gradient:
                torch._foreach_mul_(with_gradient, self._numbers[_decay_name(decay, factor)])
        for step in self._steps:
            step()

    def _accumulators(self) -> list[Tensor]:
        """Returns the sums of the parameters that have a gradient in this step."""
        return [self._accumulated[name] for name, p in self._parameters.items() if p.grad is not None]

    def _gradients(self) -> list[Tensor]:
        """Returns the gradients, each in the memory order of its parameter: fused CPU kernels go by address alone."""
        found = []
        for p in self._parameters.values():
            gradient = p.grad
            if gradient is None:
                continue
            if gradient.stride() != p.stride():
                gradient = p.grad = _in_order_of(p, gradient)
            found.append(gradient)
        if not found:
            raise StateError(explain(f"{self.name}.step", "no gradients", "a gradient for at least one parameter",
                                     "Call loss.backward() first, on a loss that depends on the parameters."))
        return found

    def finish_step(self) -> None:
        """Part 3 of a step, on the host: counts it, and overwrites the weights by their averages when that is due."""
        updates = self.iterations
        self.steps += 1
        if self.ema_overwrite_frequency and (updates + 1) % self.ema_overwrite_frequency == 0:
            self.finalize_variable_values()

    # -- state -----------------------------------------------------------------------------------------------------

    def slots(self) -> dict[str, Tensor]:
        """Returns the live state tensors by `slot/parameter`."""
        names = {id(p): name for name, p in self._parameters.items()}
        found = {f"{slot}/{names[id(p)]}": value for rule in self._rules for p, state in rule.state.items()
                 for slot, value in state.items() if isinstance(value, Tensor)}
        found |= {f"gradient_accumulator/{name}": sums for name, sums in self._accumulated.items()}
        averages = [] if self._averages is None else self._averages.tensors
        return found | {f"average/{name}": a for name, a in zip(self._parameters, averages, strict=False)}

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a bit-equal continuation needs, flat: names to tensors or JSON numbers.

        Tensors (`"slot/parameter"`) are the live ones, as in PyTorch: write or clone them before the next step. They lie in
        the parameters' memory order, so that safetensors wants `.contiguous()`. Numbers: `iterations`, `learning_rate`
        (a constant one) or `total_steps` (a schedule's), and `accumulated_steps`, those since the last update.

        Raises:
            StateError: the averages are in the weights' place, so that a checkpoint would lose the weights.
        """
        self._require_own_weights("state_dict")
        state: dict[str, Any] = {"iterations": self.iterations}
        if self.gradient_accumulation_steps is not None:
            state["accumulated_steps"] = self.steps % self.gradient_accumulation_steps
        if self._schedule is None:
            state["learning_rate"] = self._rate
        elif self._schedule.resolved_steps is not None:
            state["total_steps"] = self._schedule.resolved_steps
        return {**state, **self.slots()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets the state from what `state_dict` returned; tensors are copied in place. A state that does not fit changes nothing.

        Raises:
            StateError: the optimizer is not bound.
            ModelFileError: a name is missing or too many, or a shape, dtype or number does not fit.
        """
        self._require_bound("load_state_dict")
        tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        numbers = {key: value for key, value in state.items() if key not in tensors}
        check_tensors(self.name, tensors, self.slots())
        rate = "learning_rate" if self._schedule is None else "total_steps"
        open_group = {} if self.gradient_accumulation_steps is None else {"accumulated_steps": self.gradient_accumulation_steps - 1}
        check_numbers(self.name, numbers, rate, optional=self._schedule is not None, limits=open_group)
        copy_tensors(tensors, self.slots())
        if rate in numbers and self._schedule is None:
            self._rate = float(numbers[rate])
        elif rate in numbers:
            self.resolve(numbers[rate])
        self.iterations = numbers["iterations"]
        self.steps += numbers.get("accumulated_steps", 0)

    def _require_bound(self, call: str) -> None:
        if not self._parameters:
            raise StateError(explain(f"{self.name}.{call}", "an optimizer without parameters", "a bound one",
                                     "Call optimizer.bind(model.named_parameters())."))


def _scaled(name: str, factor: float) -> str:
    """Returns the name of a number for the parameters whose rate has this factor."""
    return name if factor == 1.0 else f"{name} × {factor!r}"


def _decay_name(decay: float, factor: float) -> str:
    return _scaled(f"decay {decay!r}", factor)


def _in_order_of(p: Tensor, gradient: Tensor) -> Tensor:
    """Returns a gradient in the memory order of its parameter; a view where only strides of axes of length 1 differ, as of 1×1 windows."""
    if all(ours == theirs or size == 1 for ours, theirs, size in zip(p.stride(), gradient.stride(), p.shape, strict=True)):
        return gradient.as_strided(p.shape, p.stride())
    return torch.empty_like(p).copy_(gradient)
