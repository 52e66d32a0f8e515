"""The optimizers, with Keras's names, arguments and defaults.

Each says which numbers change with the step, and which `torch.optim.Optimizer` reads them: PyTorch's own, fused, where
its recurrence is Keras's, else one of `convolt.optimizers.rules`. The arguments that all share are in `Optimizer`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convolt.errors import ArgumentError, explain
from convolt.optimizers import rules
from convolt.optimizers.base import FUSED_DEVICES, Optimizer, registry

Parameters = dict[str, nn.Parameter]
Numbers = dict[str, Tensor]
Rules = list[torch.optim.Optimizer]


def adam_rule(parameters: Iterable[nn.Parameter], rate: Tensor, betas: tuple[float, float], epsilon: float,
              amsgrad: bool = False) -> torch.optim.Optimizer:
    """Returns an Adam whose `rate` holds lr · √(1 - β₂ᵗ) / (1 - β₁ᵗ): torch's fused one, or `_foreach_` functions."""
    rule = rules.AdamFused if rate.device.type in FUSED_DEVICES else rules.AdamForeach
    return rule(list(parameters), lr=rate, betas=betas, eps=epsilon, amsgrad=amsgrad)


def corrected_rate(rate: float, betas: tuple[float, float], step: int) -> float:
    """Returns Adam's rate after `step` finished steps with the bias corrections of both averages."""
    return rate * math.sqrt(1.0 - betas[1] ** (step + 1)) / (1.0 - betas[0] ** (step + 1))


@registry.register()
class SGD(Optimizer):
    """Gradient descent, with momentum: v ← momentum · v - lr · g; p ← p + v.

    Args:
        learning_rate: see `Optimizer`.
        momentum: from 0 to 1.
        nesterov: look ahead: p ← p + momentum · v - lr · g.

    Keras counterpart: `SGD`. PyTorch's `SGD` is the same without momentum, or while lr is constant.
    """

    def __init__(self, learning_rate: Any = 0.01, momentum: float = 0.0, nesterov: bool = False,
                 weight_decay: float | None = None, **kwargs: Any) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, **kwargs)
        self.momentum = self._number("momentum", momentum, 0.0, 1.0)
        self.nesterov = bool(nesterov)

    def make_rules(self, parameters: Parameters, numbers: Numbers) -> Rules:
        rate, ps = numbers["lr"], list(parameters.values())
        if self.momentum:
            return [rules.SGDMomentum(ps, lr=rate, momentum=self.momentum, nesterov=self.nesterov)]
        fused = rate.device.type in FUSED_DEVICES
        return [torch.optim.SGD(ps, lr=rate, fused=True) if fused else rules.PlainSGD(ps, lr=rate)]


class _Betas(Optimizer):
    """What the optimizers of Adam's family share: two averages and an epsilon."""

    def __init__(self, learning_rate: Any = 0.001, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-7,
                 weight_decay: float | None = None, **kwargs: Any) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, **kwargs)
        below_one = math.nextafter(1.0, 0.0)
        self.beta_1 = self._number("beta_1", beta_1, 0.0, below_one)
        self.beta_2 = self._number("beta_2", beta_2, 0.0, below_one)
        self.epsilon = self._number("epsilon", epsilon)

    @property
    def betas(self) -> tuple[float, float]:
        """(`beta_1`, `beta_2`), as PyTorch writes them."""
        return self.beta_1, self.beta_2


@registry.register()
class Adam(_Betas):
    """p ← p - lr · √(1 - β₂ᵗ) / (1 - β₁ᵗ) · m / (√v + epsilon), m and v the averages of g and g².

    Args:
        learning_rate: see `Optimizer`.
        beta_1: momentum of the average of gradients.
        beta_2: momentum of the average of their squares.
        epsilon: Keras's "epsilon hat": added before the bias correction, where PyTorch adds it after.
        amsgrad: divide by the largest √v so far.

    Keras counterpart: `Adam`; PyTorch: `Adam` (fused). Paper: Kingma & Ba, arXiv 1412.6980.
    """

    def __init__(self, learning_rate: Any = 0.001, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-7,
                 amsgrad: bool = False, weight_decay: float | None = None, **kwargs: Any) -> None:
        super().__init__(learning_rate, beta_1, beta_2, epsilon, weight_decay, **kwargs)
        self.amsgrad = bool(amsgrad)

    def numbers(self, rate: float, step: int) -> dict[str, float]:
        return {"lr": corrected_rate(rate, self.betas, step)}

    def make_rules(self, parameters: Parameters, numbers: Numbers) -> Rules:
        return [adam_rule(parameters.values(), numbers["lr"], self.betas, self.epsilon, self.amsgrad)]


@registry.register()
class AdamW(Adam):
    """Adam with weight decay, 0.004 if nothing else is said. Keras counterpart: `AdamW`. Paper: arXiv 1711.05101."""

    def __init__(self, learning_rate: Any = 0.001, weight_decay: float = 0.004, beta_1: float = 0.9, beta_2: float = 0.999,
                 epsilon: float = 1e-7, amsgrad: bool = False, **kwargs: Any) -> None:
        super().__init__(learning_rate, beta_1, beta_2, epsilon, amsgrad, weight_decay, **kwargs)
        if weight_decay is None:
            raise ArgumentError(explain("AdamW(weight_decay)", None, "a number from 0", "Adam is AdamW without weight decay."))


@registry.register()
class RMSprop(Optimizer):
    """p ← p - lr · g / √(v + epsilon), v the average of g².

    Args:
        learning_rate: see `Optimizer`.
        rho: momentum of the average.
        momentum: of the change; 0 is none.
        epsilon: inside the root, where PyTorch adds it outside.
        centered: divide by the standard deviation of g instead of its root mean square.

    Keras counterpart: `RMSprop`.
    """

    def __init__(self, learning_rate: Any = 0.001, rho: float = 0.9, momentum: float = 0.0, epsilon: float = 1e-7,
                 centered: bool = False, weight_decay: float | None = None, **kwargs: Any) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, **kwargs)
        self.rho = self._number("rho", rho, 0.0, 1.0)
        self.momentum = self._number("momentum", momentum, 0.0, 1.0)
        self.epsilon = self._number("epsilon", epsilon)
        self.centered = bool(centered)

    def make_rules(self, parameters: Parameters, numbers: Numbers) -> Rules:
        return [rules.RMSprop(parameters.values(), lr=numbers["lr"], rho=self.rho, momentum=self.momentum, eps=self.epsilon,
                              centered=self.centered)]


@registry.register()
class Adagrad(Optimizer):
    """p ← p - lr · g / √(a + epsilon), a the sum of all g² on top of `initial_accumulator_value`.

    Keras counterpart: `Adagrad`. Paper: Duchi et al., JMLR 12 (2011).
    """

    def __init__(self, learning_rate: Any = 0.001, initial_accumulator_value: float = 0.1, epsilon: float = 1e-7,
                 weight_decay: float | None = None, **kwargs: Any) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, **kwargs)
        self.initial_accumulator_value = self._number("initial_accumulator_value", initial_accumulator_value)
        self.epsilon = self._number("epsilon", epsilon)

    def make_rules(self, parameters: Parameters, numbers: Numbers) -> Rules:
        return [rules.Adagrad(parameters.values(), lr=numbers["lr"], initial=self.initial_accumulator_value, eps=self.epsilon)]


@registry.register()
class Adadelta(Optimizer):
    """p ← p - lr · g · √(d + epsilon) / √(a + epsilon), a and d the averages of g² and of the changes' squares.

    Keras counterpart: `Adadelta` (whose rate of 0.001 is small; the paper's is 1). Paper: Zeiler, arXiv 1212.5701.
    """

    def __init__(self, learning_rate: Any = 0.001, rho: float = 0.95, epsilon: float = 1e-7, weight_decay: float | None = None,
                 **kwargs: Any) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, **kwargs)
        self.rho = self._number("rho", rho, 0.0, 1.0)
        self.epsilon = self._number("epsilon", epsilon)

    def make_rules(self, parameters: Parameters, numbers: Numbers) -> Rules:
        return [rules.Adadelta(parameters.values(), lr=numbers["lr"], rho=self.rho, eps=self.epsilon)]


@registry.register()
class Adamax(_Betas):
    """p ← p - lr / (1 - β₁ᵗ) · m / (u + epsilon), u the decaying maximum of |g|.

    Keras counterpart: `Adamax`. Paper: arXiv 1412.6980, section 7.
    """

    def numbers(self, rate: float, step: int) -> dict[str, float]:
        return {"lr": rate / (1.0 - self.beta_1 ** (step + 1))}

    def make_rules(self, parameters: Parameters, numbers: Numbers) -> Rules:
        return [rules.Adamax(parameters.values(), lr=numbers["lr"], betas=self.betas, eps=self.epsilon)]


@registry.register()
class Nadam(_Betas):
    """Adam with Nesterov momentum: m is replaced by u' · m / (1 - U · u') + (1 - u) · g / (1 - U).

    u and u' are β₁ · (1 - ½ · 0.96ᵗ) for this step and the next, U the product of all u so far.

    Keras counterpart: `Nadam`. PyTorch's `NAdam` raises 0.96 to 0.004 t. Paper: Dozat, 2016.
    """

    _product = (0, 1.0)
    """(steps, product of their u): found anew from step 1 unless it was the last step's, always in the same order."""

    def numbers(self, rate: float, step: int) -> dict[str, float]:
        this, following, product = self._u(step + 1), self._u(step + 2), self._product_until(step + 1)
        return {"lr": rate, "a": rate * following / (1.0 - product * following), "b": rate * (1.0 - this) / (1.0 - product),
                "c": 1.0 / math.sqrt(1.0 - self.beta_2 ** (step + 1))}

    def _u(self, t: int) -> float:
        return float(self.beta_1 * (1.0 - 0.5 * 0.96**t))

    def _product_until(self, t: int) -> float:
        done, product = self._product if self._product[0] <= t else (0, 1.0)
        for i in range(done + 1, t + 1):
            product *= self._u(i)
            if product == 0.0:
                break
        self._product = (t, product)
        return product

    def make_rules(self, parameters: Parameters, numbers: Numbers) -> Rules:
        abc = {name: numbers[name] for name in "abc"}
        return [rules.Nadam(parameters.values(), betas=self.betas, eps=self.epsilon, **abc)]


@registry.register("radam", "rectified_adam")
class RAdam(_Betas):
    """Adam whose first steps, while v is too uncertain, go without dividing by √v.

    Keras has none; PyTorch counterpart: `RAdam`, with its epsilon 1e-8. Paper: Liu et al., arXiv 1908.03265.
    """

    def __init__(self, learning_rate: Any = 0.001, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-8,
                 weight_decay: float | None = None, **kwargs: Any) -> None:
        super().__init__(learning_rate, beta_1, beta_2, epsilon, weight_decay, **kwargs)

    def numbers(self, rate: float, step: int) -> dict[str, float]:
        t = step + 1
        square_correction = 1.0 - self.beta_2**t
        longest = 2.0 / (1.0 - self.beta_2) - 1.0
        length = longest - 2.0 * t * self.beta_2**t / square_correction
        plain = rate / (1.0 - self.beta_1**t)
        if length <= 5.0:
            return {"lr": rate, "a": 0.0, "b": plain}
        rectified = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)
        return {"lr": rate, "a": plain * math.sqrt(rectified * square_correction), "b": 0.0}

    def make_rules(self, parameters: Parameters, numbers: Numbers) -> Rules:
        return [rules.RAdam(parameters.values(), betas=self.betas, eps=self.epsilon, a=numbers["a"], b=numbers["b"])]


@registry.register()
class Lion(Optimizer):
    """p ← p - lr · sign(β₁ m + (1 - β₁) g), m the average of g with β₂: every weight moves by lr.

    A good rate is 3 to 10 times smaller than AdamW's, a good weight decay as much larger.

    Args:
        learning_rate: see `Optimizer`.
        beta_1: share of the average in the direction, above 0: without it only the gradient's sign would count.
        beta_2: momentum of the average of gradients.

    Keras counterpart: `Lion`. Paper: Chen et al., arXiv 2302.06675.
    """

    def __init__(self, learning_rate: Any = 0.001, beta_1: float = 0.9, beta_2: float = 0.99, weight_decay: float | None = None,
                 **kwargs: Any) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, **kwargs)
        self.beta_1 = self._number("beta_1", beta_1, math.nextafter(0.0, 1.0), 1.0)
        self.beta_2 = self._number("beta_2", beta_2, 0.0, 1.0)

    def make_rules(self, parameters: Parameters, numbers: Numbers) -> Rules:
        return [rules.Lion(parameters.values(), lr=numbers["lr"], betas=(self.beta_1, self.beta_2))]


@registry.register()
class Muon(Optimizer):
    """Momentum whose change is made orthogonal by Newton-Schulz iterations for matrices; Adam for all else.

    Matrices are tensors with two axes or more: a convolution's weight is seen as (filters, all else), **where Keras
    leaves it to Adam**. Biases, scales, embeddings and what `exclude_layers` names go to Adam; name the last `Dense`
    there, which should not be orthogonal.

    Args:
        learning_rate: see `Optimizer`.
        adam_beta_1, adam_beta_2, epsilon: of Adam.
        adam_weight_decay: weight decay of the tensors that Adam updates.
        weight_decay: weight decay of the matrices.
        exclude_layers: regular expressions; a parameter in whose name one is found goes to Adam.
        exclude_embeddings: parameters with "embedding" in their name go to Adam.
        muon_a, muon_b, muon_c: coefficients of the iteration.
        adam_lr_ratio: Adam's rate over `learning_rate`.
        momentum, nesterov: of the matrices.
        ns_steps: number of iterations.
        rms_rate: the change is multiplied by this and by the root of the longer side, so that it has Adam's size; None: not.

    Keras counterpart: `Muon`. Papers: https://kellerjordan.github.io/posts/muon/, arXiv 2502.16982.
    """

    def __init__(self, learning_rate: Any = 0.001, adam_beta_1: float = 0.9, adam_beta_2: float = 0.999,
                 adam_weight_decay: float | None = 0.004, epsilon: float = 1e-7, weight_decay: float | None = 0.004, *,
                 exclude_layers: Sequence[str] | None = None, exclude_embeddings: bool = True, muon_a: float = 3.4445,
                 muon_b: float = -4.7750, muon_c: float = 2.0315, adam_lr_ratio: float = 1.0, momentum: float = 0.95,
                 ns_steps: int = 5, nesterov: bool = True, rms_rate: float | None = 0.2, **kwargs: Any) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, **kwargs)
        below_one = math.nextafter(1.0, 0.0)
        self.adam_beta_1 = self._number("adam_beta_1", adam_beta_1, 0.0, below_one)
        self.adam_beta_2 = self._number("adam_beta_2", adam_beta_2, 0.0, below_one)
        self.adam_weight_decay = self._number("adam_weight_decay", adam_weight_decay, optional=True)
        self.epsilon = self._number("epsilon", epsilon)
        self.exclude_layers = list(exclude_layers or [])
        self.exclude_embeddings = bool(exclude_embeddings)
        self.muon_a, self.muon_b, self.muon_c = muon_a, muon_b, muon_c
        self.adam_lr_ratio = self._number("adam_lr_ratio", adam_lr_ratio)
        self.momentum = self._number("momentum", momentum, 0.0, 1.0)
        self.ns_steps = int(self._number("ns_steps", ns_steps, 1))
        self.nesterov = bool(nesterov)
        self.rms_rate = self._number("rms_rate", rms_rate, optional=True)

    def is_matrix(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether a parameter is updated orthogonally, and not by Adam."""
        if parameter.ndim < 2 or (self.exclude_embeddings and "embedding" in name.lower()):
            return False
        return not any(re.search(pattern, name) for pattern in self.exclude_layers)

    def decay_of(self, name: str, parameter: nn.Parameter) -> float | None:
        decay: float | None = self.weight_decay if self.is_matrix(name, parameter) else self.adam_weight_decay
        return decay

    def numbers(self, rate: float, step: int) -> dict[str, float]:
        betas = (self.adam_beta_1, self.adam_beta_2)
        return {"lr": rate, "adam": corrected_rate(rate * self.adam_lr_ratio, betas, step)}

    def make_rules(self, parameters: Parameters, numbers: Numbers) -> Rules:
        matrices = [p for name, p in parameters.items() if self.is_matrix(name, p)]
        others = [p for name, p in parameters.items() if not self.is_matrix(name, p)]
        made: Rules = []
        if matrices:
            abc = (self.muon_a, self.muon_b, self.muon_c)
            made.append(rules.Muon(matrices, lr=numbers["lr"], momentum=self.momentum, nesterov=self.nesterov,
                                   ns_steps=self.ns_steps, rms_rate=self.rms_rate, coefficients=abc))
        if others:
            made.append(adam_rule(others, numbers["adam"], (self.adam_beta_1, self.adam_beta_2), self.epsilon))
        return made


__all__ = ["SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "Lion", "Muon", "Nadam", "RAdam", "RMSprop"]
