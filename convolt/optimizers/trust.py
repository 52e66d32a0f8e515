"""Lamb and LARS: each tensor's step is as long as the tensor itself allows, by a trust ratio of norms.

They are made for large batches, whose large rates no tensor would survive that has small weights and large gradients.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convolt.optimizers.base import Optimizer, registry
from convolt.optimizers.rules import Rule, Tensors, _average, _average_squares, _root_plus
from convolt.optimizers.standard import Numbers, Parameters, Rules, _Betas


def norms(tensors: Tensors) -> Tensor:
    """Returns the Euclidean norm of each tensor, as one tensor."""
    return torch.stack(list(torch._foreach_norm(tensors)))


def trust_ratios(weights: Tensor, changes: Tensor) -> Tensor:
    """Returns weights / changes, and 1 where one of the two is 0 (a new bias, a gradient that is 0)."""
    return torch.where((weights > 0) & (changes > 0), weights / changes, torch.ones_like(weights))


class LambRule(Rule):
    """r = (a · m) / (√(b · v) + epsilon); p ← p - lr · ‖p‖ / ‖r‖ · r, with the bias corrections a and b as device numbers."""

    slots: ClassVar[tuple[str, ...]] = ("momentum", "velocity")

    def update(self, ps: Tensors, gs: Tensors, state: dict[str, Tensors], group: dict[str, Any]) -> None:
        m, v = state["momentum"], state["velocity"]
        _average(m, gs, group["betas"][0])
        _average_squares(v, gs, group["betas"][1])
        change = list(torch._foreach_mul(m, group["a"]))
        torch._foreach_div_(change, _root_plus(list(torch._foreach_mul(v, group["b"])), group["eps"]))
        ratios = trust_ratios(norms(ps), norms(change)) * group["lr"]
        torch._foreach_mul_(change, list(ratios.to(change[0].dtype).unbind()))
        torch._foreach_sub_(ps, change)


class LarsRule(Rule):
    """v ← momentum · v + lr · λ · (g + decay · p); p ← p - v, with λ = trust · ‖p‖ / (‖g‖ + decay · ‖p‖ + epsilon)."""

    slots: ClassVar[tuple[str, ...]] = ("momentum",)

    def update(self, ps: Tensors, gs: Tensors, state: dict[str, Tensors], group: dict[str, Any]) -> None:
        v, decay = state["momentum"], group["decay"]
        change = list(torch._foreach_add(gs, ps, alpha=decay)) if decay else [g.clone() for g in gs]
        rate: Tensor = group["lr"]
        if group["adapt"]:
            sizes, slopes = norms(ps), norms(gs)
            ratios = trust_ratios(sizes * group["trust"], torch.where(slopes > 0, slopes + decay * sizes + group["eps"], 0.0))
            torch._foreach_mul_(change, list((ratios * rate).to(change[0].dtype).unbind()))
        else:
            torch._foreach_mul_(change, rate)
        torch._foreach_mul_(v, group["momentum"])
        torch._foreach_add_(v, change)
        torch._foreach_sub_(ps, torch._foreach_add(change, v, alpha=group["momentum"]) if group["nesterov"] else v)


@registry.register()
class Lamb(_Betas):
    """Adam whose change r of a tensor is stretched to the tensor's own norm: p ← p - lr · ‖p‖ / ‖r‖ · r.

    r is the bias-corrected m / (√v + epsilon). Where a norm is 0 the ratio is 1. `weight_decay` is that of all optimizers,
    before the update as in Keras; in the paper it is a part of r.

    Keras counterpart: `Lamb`. Paper: You et al., arXiv 1904.00962.
    """

    def numbers(self, rate: float, step: int) -> dict[str, float]:
        return {"lr": rate, "a": 1.0 / (1.0 - self.beta_1 ** (step + 1)), "b": 1.0 / (1.0 - self.beta_2 ** (step + 1))}

    def make_rules(self, parameters: Parameters, numbers: Numbers) -> Rules:
        return [LambRule(parameters.values(), betas=self.betas, eps=self.epsilon, **numbers)]


@registry.register()
class LARS(Optimizer):
    """Momentum whose rate in each tensor is scaled by λ = trust · ‖p‖ / (‖g‖ + weight_decay · ‖p‖ + epsilon).

    v ← momentum · v + lr · λ · (g + weight_decay · p); p ← p - v. **Weight decay is here the paper's, a part of the
    gradient**, not the decoupled one of the other optimizers. Tensors with at most one axis, and what
    `exclude_from_weight_decay` names, have neither decay nor λ, as is usual for LARS.

    Args:
        learning_rate: a step changes a matrix by this times `trust_coefficient` of its size, with momentum by ten times that;
            for large batches it is warmed up to 5 and more.
        momentum: from 0 to 1.
        trust_coefficient: the paper's η.
        nesterov: p ← p - (change + momentum · v).
        epsilon: added to the divisor.

    Keras has none. Paper: You et al., arXiv 1708.03888.
    """

    def __init__(self, learning_rate: Any = 1.0, momentum: float = 0.9, trust_coefficient: float = 0.001, nesterov: bool = False,
                 epsilon: float = 0.0, weight_decay: float | None = None, **kwargs: Any) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, **kwargs)
        self.momentum = self._number("momentum", momentum, 0.0, 1.0)
        self.trust_coefficient = self._number("trust_coefficient", trust_coefficient, math.nextafter(0.0, 1.0))
        self.nesterov = bool(nesterov)
        self.epsilon = self._number("epsilon", epsilon)

    def decay_of(self, name: str, parameter: nn.Parameter) -> float | None:
        """Returns None: the rule itself decays."""
        return None

    def make_rules(self, parameters: Parameters, numbers: Numbers) -> Rules:
        made: Rules = []
        for adapt in (True, False):
            chosen = [p for name, p in parameters.items() if self.may_decay(name, p) is adapt]
            if chosen:
                made.append(LarsRule(chosen, lr=numbers["lr"], momentum=self.momentum, nesterov=self.nesterov, adapt=adapt,
                                     trust=self.trust_coefficient, eps=self.epsilon,
                                     decay=(self.weight_decay or 0.0) if adapt else 0.0))
        return made


__all__ = ["LARS", "Lamb"]
