"""Any optimizer class of PyTorch, with Convolt's clipping, averages, schedules and weight-decay groups."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from convolt.errors import ArgumentError, ArgumentTypeError, ModelFileError, StateError, did_you_mean, explain
from convolt.optimizers.base import Optimizer, registry

# What these need, a step function of gradients alone does not have.
_UNFIT = {"LBFGS": "it evaluates the loss several times per step", "SparseAdam": "it needs sparse gradients"}


def _torch_classes() -> dict[str, type[torch.optim.Optimizer]]:
    """Returns the optimizer classes of `torch.optim` by name."""
    return {name: value for name, value in vars(torch.optim).items()
            if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer}


@registry.register()
class TorchOptimizer(Optimizer):
    """A class of `torch.optim`, or of your own on `torch.optim.Optimizer`, with PyTorch's arguments and defaults.

    Args:
        torch_class: the class, or the name of one in `torch.optim` (as configurations have it).
        arguments: its keyword arguments. `weight_decay` there is the class's own, for all but biases and normalizations.
        learning_rate: as in `Optimizer`; None: `lr` of `arguments`, or the class's default.

    The rate is a tensor on the device where the class can take one without waiting for it (`capturable` or `fused`),
    else a number, which a captured CUDA graph would freeze. `convolt.optimizers.get` makes this from a class or a partial:

    >>> import functools
    >>> from convolt import optimizers
    >>> optimizers.get(functools.partial(torch.optim.Rprop, lr=0.02)).learning_rate
    0.02
    """

    def __init__(self, torch_class: Any, arguments: Mapping[str, Any] | None = None, learning_rate: Any = None, *,
                 weight_decay: float | None = None, **kwargs: Any) -> None:
        self.torch_class = self._find(torch_class)
        self.arguments = {name: value for name, value in (arguments or {}).items() if name != "lr"}
        known = inspect.signature(self.torch_class).parameters
        for name in self.arguments:
            if name not in known:
                raise ArgumentTypeError(explain(self.torch_class.__name__, f"the unknown argument {name!r}",
                                                "an argument of this class", did_you_mean(name, known)))
        if "lr" not in known:
            raise ArgumentError(explain(f"torch_class {self.torch_class.__name__}", "no argument lr", "a learning rate"))
        default = known["lr"].default
        self._default_rate = (arguments or {}).get("lr", default if isinstance(default, float) else 0.001)
        rate = self._default_rate if learning_rate is None else learning_rate
        super().__init__(rate, weight_decay=weight_decay, **{"name": self.torch_class.__name__.lower(), **kwargs})

    @staticmethod
    def _find(torch_class: Any) -> type[torch.optim.Optimizer]:
        if isinstance(torch_class, str):
            known = _torch_classes()
            if torch_class not in known:
                raise ArgumentError(explain("TorchOptimizer(torch_class)", repr(torch_class), "a class of torch.optim",
                                            did_you_mean(torch_class, known)))
            torch_class = known[torch_class]
        if not (isinstance(torch_class, type) and issubclass(torch_class, torch.optim.Optimizer)):
            raise ArgumentTypeError(explain("TorchOptimizer(torch_class)", repr(torch_class),
                                            "a subclass of torch.optim.Optimizer"))
        if torch_class.__name__ in _UNFIT:
            raise ArgumentError(explain("TorchOptimizer(torch_class)", torch_class.__name__, "an optimizer of gradients alone",
                                        f"{_UNFIT[torch_class.__name__]}."))
        return torch_class

    def default_learning_rate(self) -> float:
        return float(self._default_rate)

    @property
    def capturable(self) -> bool:
        """Whether a step can be captured in a CUDA graph: its rate lies on the device, and the class does not refuse."""
        return self._on_device and all(group.get("capturable", True) for rule in self._rules for group in rule.param_groups)

    def make_rules(self, parameters: dict[str, nn.Parameter], numbers: dict[str, Tensor]) -> list[torch.optim.Optimizer]:
        """Returns one torch optimizer; its second group holds what must not decay."""
        known, given = inspect.signature(self.torch_class).parameters, dict(self.arguments)
        device = numbers["lr"].device.type
        if "capturable" in known and device in ("cuda", "xpu"):
            given.setdefault("capturable", True)
        self._on_device = bool(given.get("capturable") or given.get("fused"))
        plain = [p for name, p in parameters.items() if self.may_decay(name, p)]
        bare = [p for name, p in parameters.items() if not self.may_decay(name, p)]
        groups: list[dict[str, Any]] = [{"params": plain}] if plain else []
        if bare:
            groups.append({"params": bare, **({"weight_decay": 0.0} if "weight_decay" in known else {})})
        rate = numbers["lr"] if self._on_device else self._default_rate
        return [cast(Any, self.torch_class)(groups, lr=rate, **given)]

    def prepare_step(self) -> None:
        super().prepare_step()
        if not self._on_device:
            for rule, factor in zip(self._rules, dict.fromkeys(self._factors.values()), strict=True):
                for group in rule.param_groups:
                    group["lr"] = self.lr * factor

    def _plain_state(self) -> dict[str, Any]:
        """Returns what the class keeps beside tensors."""
        names = {id(p): name for name, p in self._parameters.items()}
        return {f"{slot}/{names[id(p)]}": value for rule in self._rules for p, state in rule.state.items()
                for slot, value in state.items() if not isinstance(value, Tensor)}

    def state_dict(self) -> dict[str, Any]:
        plain = self._plain_state()
        for key, value in plain.items():
            if not isinstance(value, (int, float)) and value is not None:
                raise StateError(explain(f"{self.name}.state_dict", f"{key} of type {type(value).__name__}",
                                         "tensors and numbers"))
        return {**super().state_dict(), **plain}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # The class makes its slots at its first step, so those of the file are taken as they are once their names fit.
        self._require_bound("load_state_dict")
        slots: dict[str, dict[str, Any]] = {}
        own = ("average/", "gradient_accumulator/")
        for key in [key for key in state if "/" in key and not key.startswith(own)]:
            slot, name = key.split("/", 1)
            if name not in self._parameters:
                raise ModelFileError(explain(f"state of {self.name}", repr(key), "state of the model's parameters",
                                             did_you_mean(name, self._parameters)))
            slots.setdefault(name, {})[slot] = state[key]
        before = [rule.state for rule in self._rules]
        for rule in self._rules:
            rule.state = defaultdict(dict)
        try:
            super().load_state_dict({key: value for key, value in state.items() if "/" not in key or key.startswith(own)})
        except ModelFileError:
            for rule, kept in zip(self._rules, before, strict=True):
                rule.state = kept
            raise
        rule_of = {id(p): rule for rule in self._rules for group in rule.param_groups for p in group["params"]}
        for name, found in slots.items():
            p = self._parameters[name]
            rule_of[id(p)].state[p] = {slot: self._adopt(slot, value, p) for slot, value in found.items()}

    def _adopt(self, slot: str, value: Any, p: nn.Parameter) -> Any:
        """Returns a copy of a slot on the device where the class reads it, in the memory order of its parameter."""
        if not isinstance(value, Tensor):
            return value
        if slot == "step":
            return value.detach().clone().to(p.device if self._on_device else "cpu")
        order = p.detach() if value.shape == p.shape else value
        return torch.empty_like(order, dtype=value.dtype, device=p.device).copy_(value)

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration; `from_config` finds the class by its name in `torch.optim`."""
        return {**super().get_config(), "torch_class": self.torch_class.__name__}
