"""Lookahead, SAM, SWA and layer-wise decay of the rate: small pieces that go around any optimizer, and around each other.

>>> from convolt import optimizers
>>> optimizer = optimizers.Lookahead(optimizers.SAM(optimizers.SGD(0.1, momentum=0.9), rho=0.1), every=5)
>>> optimizer.learning_rate
0.1
>>> optimizers.get("sam").optimizer.momentum
0.9
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convolt.errors import ArgumentError, StateError, explain
from convolt.optimizers.averages import WeightAverages
from convolt.optimizers.base import registry
from convolt.optimizers.wrapper import Wrapper


@registry.register()
class Lookahead(Wrapper):
    """Every few updates, goes back part of the way: slow ← slow + alpha · (weights - slow); weights ← slow.

    Args:
        optimizer: makes the fast updates; Adam if None.
        every: updates between two such steps; the paper's k.
        alpha: share of the way that is kept, from 0 to 1; 1 changes nothing.
        name, arguments: see `Wrapper`.

    Counterpart: `tfa.optimizers.Lookahead` (sync_period, slow_step_size). Paper: Zhang et al., arXiv 1907.08610.
    """

    usual: ClassVar[tuple[str, dict[str, Any]]] = ("Adam", {})

    def __init__(self, optimizer: Any = None, every: int = 6, alpha: float = 0.5, name: str | None = None, **arguments: Any) -> None:
        super().__init__(optimizer, name, **arguments)
        self.every = self._count("every", every, 1)
        self.alpha = self._number("alpha", alpha, 0.0, 1.0)
        self._slow: dict[str, Tensor] = {}

    def own_slots(self) -> dict[str, dict[str, Tensor]]:
        return {"slow": self._slow}

    def make_own(self, parameters: dict[str, nn.Parameter]) -> None:
        self._slow = {name: p.detach().clone(memory_format=torch.preserve_format) for name, p in parameters.items()}

    @torch.no_grad()
    def prepare_step(self) -> None:
        super().prepare_step()
        if self.steps == 0:  # weights may have been loaded since `bind`
            torch._foreach_copy_(list(self._slow.values()), self._weights())

    @torch.no_grad()
    def after_update(self) -> None:
        if self.iterations % (self.every or 1) == 0:
            slow, weights = list(self._slow.values()), self._weights()
            if self.alpha == 1.0:  # rounding of slow + (weights - slow) would not give the weights
                torch._foreach_copy_(slow, weights)
                return
            torch._foreach_lerp_(slow, weights, self.alpha)
            torch._foreach_copy_(weights, slow)


@registry.register("sharpness_aware_minimization")
class SAM(Wrapper):
    """Takes the gradient not at the weights but where the loss is highest nearby: at w + rho · g / ‖g‖, g that at w.

    Each step computes forward and backward twice. Logged losses and metrics are those of the first. What the second
    forward changes in the model's buffers (running statistics of batch normalization) is put back, so that they are
    updated once, by the true weights; dropout draws a new mask.

    Args:
        optimizer: updates with the second gradient; SGD with momentum 0.9 if None.
        rho: radius of the neighbourhood.
        adaptive: measure it relative to each weight (ASAM): w + rho · w² g / ‖w g‖; rho is then 10 times larger or more.
        name, arguments: see `Wrapper`.

    In a loop of one's own: `optimizer.step(closure)`, with a function that calls `backward()` on the loss of the same batch.

    Papers: Foret et al., arXiv 2010.01412; Kwon et al., arXiv 2102.11600. Keras has had it as a model, `SharpnessAwareMinimization`.
    """

    def __init__(self, optimizer: Any = None, rho: float = 0.05, adaptive: bool = False, name: str | None = None, **arguments: Any) -> None:
        super().__init__(optimizer, name, **arguments)
        self.rho = self._number("rho", rho)
        self.adaptive = bool(adaptive)

    @property
    def needs_closure(self) -> bool:  # type: ignore[override]
        """True: `update` computes gradients a second time."""
        return True

    @torch.no_grad()
    def update(self, closure: Callable[[], Any] | None = None) -> None:
        if closure is None:
            raise StateError(explain(f"{self.name}.step", "no closure", "a function that computes the gradients of the batch anew",
                                     "Call optimizer.step(closure); fit does so itself."))
        found = [(p, p.grad) for p in self._parameters.values() if p.grad is not None]
        if found:  # else the optimizer inside says what is wrong
            weights = [p.detach() for p, _ in found]
            kept = torch._foreach_add(weights, 0.0)
            try:
                torch._foreach_add_(weights, self._climb(weights, [g for _, g in found]))
                self.zero_grad()
                with torch.enable_grad():
                    closure()
            finally:
                torch._foreach_copy_(weights, kept)
        self.optimizer.update(closure)

    def _climb(self, weights: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """Returns the way from the weights to the highest loss nearby."""
        sizes = torch._foreach_abs(weights)
        scaled = list(torch._foreach_mul(gradients, sizes)) if self.adaptive else gradients
        norm = torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(scaled))))
        way = list(torch._foreach_mul(scaled, sizes)) if self.adaptive else scaled
        return list(torch._foreach_mul(way, self.rho / (norm + 1e-12)))


@registry.register("stochastic_weight_averaging")
class SWA(Wrapper):
    """Averages the weights of the last part of training: those after the updates `start`, `start + every` and so on.

    `fit` writes the mean over the weights at its end, and then computes the statistics of the model's batch
    normalizations anew, which belong to other weights (see `update_statistics`). During training, `averaged_weights()`
    has the mean in the weights' place.

    Args:
        optimizer: makes the updates; SGD with momentum 0.9 if None. A high constant rate in the last part is the paper's choice.
        start: number of the first update whose weights count; or a share of the training below 1, as the default.
        every: updates between two of them; one per epoch is the paper's choice.
        update_statistics: whether `fit` computes statistics of batch normalization anew, by a pass over the training data.
        name, arguments: see `Wrapper`.

    PyTorch counterpart: `torch.optim.swa_utils`. Paper: Izmailov et al., arXiv 1803.05407.
    """

    optional: ClassVar[frozenset[str]] = frozenset({"first"})

    def __init__(self, optimizer: Any = None, start: int | float = 0.75, every: int = 10, update_statistics: bool = True,
                 name: str | None = None, **arguments: Any) -> None:
        super().__init__(optimizer, name, **arguments)
        fits = 0.0 <= start < 1.0 if isinstance(start, float) else self._count("start", start, 0) is not None
        if not fits:
            raise ArgumentError(explain("SWA(start)", repr(start), "a number of updates, or a share of the training from 0.0 to below 1.0"))
        self.start = start
        self.every = self._count("every", every, 1)
        self.update_statistics = bool(update_statistics)
        self.restart()

    def restart(self) -> None:
        super().restart()
        self.averaged = 0
        self._first = self.start if isinstance(self.start, int) else None
        self._swa: WeightAverages | None = None

    @property
    def wants_statistics(self) -> bool:
        """True once there is a mean, unless `update_statistics` is off."""
        return self.update_statistics and self.averaged > 0

    def resolve(self, total_steps: int) -> None:
        super().resolve(total_steps)
        if isinstance(self.start, float) and (self._first is None or not self.steps):
            self._first = int(self.start * (total_steps // (self.innermost.gradient_accumulation_steps or 1)))

    def own_slots(self) -> dict[str, dict[str, Tensor]]:
        return {} if self._swa is None else {"mean": dict(zip(self._parameters, self._swa.tensors, strict=True))}

    def own_numbers(self) -> dict[str, int]:
        return {"averaged": self.averaged, **({} if self._first is None else {"first": self._first})}

    def set_own_numbers(self, numbers: Mapping[str, int]) -> None:
        self.averaged, self._first = numbers["averaged"], numbers.get("first")

    def make_own(self, parameters: dict[str, nn.Parameter]) -> None:
        self._swa = WeightAverages(list(parameters.values()))

    def prepare_step(self) -> None:
        super().prepare_step()
        if self._first is None:
            raise StateError(explain("SWA(start)", f"{self.start}, a share of a training of unknown length", "a known length",
                                     "Give start as a number of updates, or call resolve(total_steps)."))

    @torch.no_grad()
    def after_update(self) -> None:
        since = self.iterations - (self._first or 0)
        if since >= 0 and since % (self.every or 1) == 0 and self._swa is not None:
            self.averaged += 1
            torch._foreach_lerp_(self._swa.tensors, self._weights(), 1.0 / self.averaged)

    def apply_ema(self) -> None:
        """Puts the mean in the weights' place, until `restore`; before there is one, the averages of the optimizer inside."""
        self._require_own_weights("apply_ema")
        if self._swa is not None and self.averaged:
            self._swa.swap_in(list(self._parameters.values()))
        else:
            super().apply_ema()

    def restore(self) -> None:
        if self._swa is not None:
            self._swa.swap_out(list(self._parameters.values()))
        super().restore()

    def finalize_variable_values(self, var_list: object = None) -> None:
        """Overwrites the weights by their mean, for good."""
        super().finalize_variable_values(var_list)
        if self._swa is not None and self.averaged:
            self._swa.overwrite(list(self._parameters.values()))

    def _require_own_weights(self, call: str) -> None:
        super()._require_own_weights(call)
        if self._swa is not None and self._swa.set_aside:
            raise StateError(explain(f"{self.name}.{call}", "the mean in the weights' place", "the weights", "Call restore() first."))


@registry.register()
class LayerwiseDecay(Wrapper):
    """Lowers the rate from the output towards the input: the rate of a layer is lr · decay^(layers after it).

    Usual when a trained model is trained further: what the first layers know is kept. Weight decay, which goes with the
    rate, is lowered alike.

    Args:
        optimizer: AdamW if None; the optimizer inside makes an update for each rate.
        decay: from 0 to 1, factor from one layer to the one before.
        groups: regular expressions from the input to the output; a parameter belongs to the first that is found in its name,
            and what none fits to the last group, with the full rate. None: each layer of the model (or block, where layers
            are models themselves) is a group; those with biases and scales alone belong to the one before.
        name, arguments: see `Wrapper`.

    Papers: Howard & Ruder, arXiv 1801.06146; Clark et al., arXiv 2003.10555. timm calls it `layer_decay`.
    """

    usual: ClassVar[tuple[str, dict[str, Any]]] = ("AdamW", {})

    def __init__(self, optimizer: Any = None, decay: float = 0.75, groups: Sequence[str] | None = None, name: str | None = None,
                 **arguments: Any) -> None:
        super().__init__(optimizer, name, **arguments)
        self.decay = self._number("decay", decay, 0.0, 1.0)
        self.groups = None if groups is None else list(groups)

    def factors(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, float]:
        """Returns the factor of each parameter's rate by name."""
        depths: dict[str, int] = {}
        if self.groups is not None:
            last = len(self.groups)
            depths = {name: next((i for i, pattern in enumerate(self.groups) if re.search(pattern, name)), last) for name, _ in parameters}
        else:
            pairs = list(parameters)
            layers = list(dict.fromkeys(name.split(".")[0] for name, p in pairs if p.ndim > 1))
            depth = 0
            for name, _ in pairs:
                depth = layers.index(name.split(".")[0]) if name.split(".")[0] in layers else depth
                depths[name] = depth
            last = max(len(layers) - 1, 0)
        return {name: float(self.decay ** (last - depth)) for name, depth in depths.items()}

    def bind(self, named_parameters: Iterable[tuple[str, nn.Parameter]], exclude_from_weight_decay: Iterable[str] = (),
             rate_factors: Mapping[str, float] | None = None) -> None:
        pairs = list(named_parameters)
        given = rate_factors or {}
        own = self.factors([pair for pair in pairs if isinstance(pair, tuple) and len(pair) == 2])
        super().bind(pairs, exclude_from_weight_decay, {name: factor * given.get(name, 1.0) for name, factor in own.items()})


__all__ = ["SAM", "SWA", "LayerwiseDecay", "Lookahead"]
