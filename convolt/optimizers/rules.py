"""Update rules that PyTorch has not, as `torch.optim.Optimizer`s that follow Keras's recurrences to the letter.

All of a model's tensors are updated together by `torch._foreach_` functions. **A number that changes with the step
(rate, bias correction, …) is a 0-d tensor on the device**, filled from the host before each step by
`convolt.optimizers.Optimizer`: so no rule reads anything back, and a captured CUDA graph of a rule stays right.

In the comments: p parameter, g gradient, lr learning rate, t the step from 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

Tensors = list[Tensor]


class Rule(torch.optim.Optimizer):
    """Base of rules: `slots` names the state tensors, `update` computes.

    State is made at once, not at the first step: a step then allocates no state, and a checkpoint can be loaded
    before it.
    """

    slots: ClassVar[tuple[str, ...]] = ()

    def __init__(self, params: ParamsT, **hyper: Any) -> None:
        super().__init__(params, hyper)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {slot: self.initial(slot, p, group) for slot in self.slots_of(group)}

    def slots_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Returns the names of the state tensors that these hyper-parameters need."""
        return self.slots

    def initial(self, slot: str, p: Tensor, group: dict[str, Any]) -> Tensor:
        """Returns a state tensor's first value, in the memory order of the parameter."""
        return torch.zeros_like(p, memory_format=torch.preserve_format)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        for group in self.param_groups:
            ready = [p for p in group["params"] if p.grad is not None]
            if ready:
                states = {slot: [self.state[p][slot] for p in ready] for slot in self.slots_of(group)}
                self.update(ready, [p.grad for p in ready], states, group)

    def update(self, ps: Tensors, gs: Tensors, state: dict[str, Tensors], group: dict[str, Any]) -> None:
        """Updates `ps` and the state in place from the gradients `gs`, which stay as they are."""
        raise TypeError(f"{type(self).__name__} defines no update(ps, gs, state, group)")


def _average(averages: Tensors, values: Tensors, keep: float) -> None:
    """`a ← keep · a + (1 - keep) · value`."""
    torch._foreach_mul_(averages, keep)
    torch._foreach_add_(averages, values, alpha=1.0 - keep)


def _average_squares(averages: Tensors, values: Tensors, keep: float) -> None:
    """`a ← keep · a + (1 - keep) · value²`."""
    torch._foreach_mul_(averages, keep)
    torch._foreach_addcmul_(averages, values, values, value=1.0 - keep)


def _root_plus(values: Tensors, epsilon: float) -> Tensors:
    """Returns `√value + epsilon`."""
    roots = list(torch._foreach_sqrt(values))
    torch._foreach_add_(roots, epsilon)
    return roots


def _root_of_sum(values: Tensors, epsilon: float) -> Tensors:
    """Returns `√(value + epsilon)`: Keras's place for epsilon in RMSprop, Adagrad and Adadelta."""
    sums = list(torch._foreach_add(values, epsilon))
    torch._foreach_sqrt_(sums)
    return sums


def _times(tensors: Iterable[Tensor], factor: Tensor) -> Tensors:
    return list(torch._foreach_mul(list(tensors), factor))


class PlainSGD(Rule):
    """p ← p - lr · g, where PyTorch has no fused kernel."""

    def update(self, ps: Tensors, gs: Tensors, state: dict[str, Tensors], group: dict[str, Any]) -> None:
        torch._foreach_sub_(ps, _times(gs, group["lr"]))


class SGDMomentum(Rule):
    """v ← momentum · v - lr · g; p ← p + v, or with Nesterov p ← p + momentum · v - lr · g.

    `torch.optim.SGD` keeps lr out of its buffer, which is the same only while lr is constant.
    """

    slots = ("momentum",)

    def update(self, ps: Tensors, gs: Tensors, state: dict[str, Tensors], group: dict[str, Any]) -> None:
        v, scaled = state["momentum"], _times(gs, group["lr"])
        torch._foreach_mul_(v, group["momentum"])
        torch._foreach_sub_(v, scaled)
        if group["nesterov"]:
            torch._foreach_add_(ps, v, alpha=group["momentum"])
            torch._foreach_sub_(ps, scaled)
        else:
            torch._foreach_add_(ps, v)


NO_CORRECTION = 1e30
"""A count of steps for which beta^step is 0."""


class AdamFused(Rule):
    """Adam by PyTorch's fused kernels: p ← p - lr · √(1 - β₂ᵗ) / (1 - β₁ᵗ) · m / (√v + epsilon).

    The factor before m is the device number `lr`. PyTorch's kernels divide by 1 - beta^step themselves; Keras adds epsilon before that
    correction, so it is put into the factor, and theirs is switched off. They are called directly: what `torch.optim.Adam` does
    around them takes as long as they do for a small network.
    """

    def __init__(self, params: ParamsT, **hyper: Any) -> None:
        super().__init__(params, **hyper)
        self._steps: dict[torch.device, Tensor] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Fills in what `torch.optim.Optimizer` does not copy."""
        super().__setstate__(state)
        self._steps = {}

    def slots_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        return AdamForeach.slots_of(self, group)  # type: ignore[arg-type]

    def update(self, ps: Tensors, gs: Tensors, state: dict[str, Tensors], group: dict[str, Any]) -> None:
        columns = [ps, gs, state["exp_avg"], state["exp_avg_sq"], state.get("max_exp_avg_sq", [])]
        kinds = {(p.device, p.dtype) for p in ps}
        for kind in kinds:  # a kernel takes tensors of one kind
            own = columns if len(kinds) == 1 else [[t for t, p in zip(column, ps, strict=True) if (p.device, p.dtype) == kind]
                                                   if column else [] for column in columns]
            device = kind[0]
            if device not in self._steps:
                self._steps[device] = torch.full((), NO_CORRECTION, dtype=torch.float32, device=device)
            weights, gradients, averages, squares, largest = own
            torch._fused_adam_(weights, gradients, averages, squares, largest, [self._steps[device]] * len(weights), lr=group["lr"],
                               beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=0.0, eps=group["eps"],
                               amsgrad=group["amsgrad"], maximize=False)


class AdamForeach(Rule):
    """Adam where PyTorch has no fused kernel: p ← p - lr · √(1 - β₂ᵗ) / (1 - β₁ᵗ) · m / (√v + epsilon).

    The factor before m is the device number `lr`.
    """

    def slots_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group["amsgrad"] else ("exp_avg", "exp_avg_sq")

    def update(self, ps: Tensors, gs: Tensors, state: dict[str, Tensors], group: dict[str, Any]) -> None:
        m, v = state["exp_avg"], state["exp_avg_sq"]
        _average(m, gs, group["betas"][0])
        _average_squares(v, gs, group["betas"][1])
        if group["amsgrad"]:
            torch._foreach_maximum_(state["max_exp_avg_sq"], v)
            v = state["max_exp_avg_sq"]
        change = _times(m, group["lr"])
        torch._foreach_div_(change, _root_plus(v, group["eps"]))
        torch._foreach_sub_(ps, change)


class RMSprop(Rule):
    """v ← ρ v + (1 - ρ) g²; Δ = lr · g / √(v - mean² + epsilon), the mean only if centered; p ← p - Δ with momentum."""

    def slots_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("velocity", *(["mean"] if group["centered"] else []), *(["momentum"] if group["momentum"] else []))

    def update(self, ps: Tensors, gs: Tensors, state: dict[str, Tensors], group: dict[str, Any]) -> None:
        rho, v = group["rho"], state["velocity"]
        _average_squares(v, gs, rho)
        if group["centered"]:
            mean = state["mean"]
            _average(mean, gs, rho)
            v = list(torch._foreach_addcmul(v, mean, mean, value=-1.0))
        change = _times(gs, group["lr"])
        torch._foreach_div_(change, _root_of_sum(v, group["eps"]))
        if group["momentum"]:
            torch._foreach_mul_(state["momentum"], group["momentum"])
            torch._foreach_add_(state["momentum"], change)
            change = state["momentum"]
        torch._foreach_sub_(ps, change)


class Adagrad(Rule):
    """a ← a + g²; p ← p - lr · g / √(a + epsilon), with a starting above zero."""

    slots = ("accumulator",)

    def initial(self, slot: str, p: Tensor, group: dict[str, Any]) -> Tensor:
        return torch.full_like(p, group["initial"], memory_format=torch.preserve_format)

    def update(self, ps: Tensors, gs: Tensors, state: dict[str, Tensors], group: dict[str, Any]) -> None:
        torch._foreach_addcmul_(state["accumulator"], gs, gs)
        change = _times(gs, group["lr"])
        torch._foreach_div_(change, _root_of_sum(state["accumulator"], group["eps"]))
        torch._foreach_sub_(ps, change)


class Adadelta(Rule):
    """a ← ρ a + (1 - ρ) g²; Δ = g · √(d + epsilon) / √(a + epsilon); d ← ρ d + (1 - ρ) Δ²; p ← p - lr · Δ."""

    slots = ("accumulated_grad", "accumulated_delta")

    def update(self, ps: Tensors, gs: Tensors, state: dict[str, Tensors], group: dict[str, Any]) -> None:
        a, d, epsilon = state["accumulated_grad"], state["accumulated_delta"], group["eps"]
        _average_squares(a, gs, group["rho"])
        delta = _root_of_sum(d, epsilon)
        torch._foreach_mul_(delta, gs)
        torch._foreach_div_(delta, _root_of_sum(a, epsilon))
        _average_squares(d, delta, group["rho"])
        torch._foreach_sub_(ps, _times(delta, group["lr"]))


class Adamax(Rule):
    """m ← β₁ m + (1 - β₁) g; u ← max(β₂ u, |g|); p ← p - lr / (1 - β₁ᵗ) · m / (u + epsilon).

    `torch.optim.Adamax` adds epsilon to |g| inside the maximum. The factor before m is the device number `lr`.
    """

    slots = ("m", "u")

    def update(self, ps: Tensors, gs: Tensors, state: dict[str, Tensors], group: dict[str, Any]) -> None:
        m, u = state["m"], state["u"]
        _average(m, gs, group["betas"][0])
        torch._foreach_mul_(u, group["betas"][1])
        torch._foreach_maximum_(u, torch._foreach_abs(gs))
        change = _times(m, group["lr"])
        torch._foreach_div_(change, torch._foreach_add(u, group["eps"]))
        torch._foreach_sub_(ps, change)


class Nadam(Rule):
    """p ← p - (a · m + b · g) / (c · √v + epsilon), with m and v as in Adam.

    The device numbers a, b, c hold Keras's momentum schedule and bias corrections, see `convolt.optimizers.Nadam`.
    """

    slots = ("momentum", "velocity")

    def update(self, ps: Tensors, gs: Tensors, state: dict[str, Tensors], group: dict[str, Any]) -> None:
        m, v = state["momentum"], state["velocity"]
        _average(m, gs, group["betas"][0])
        _average_squares(v, gs, group["betas"][1])
        roots = list(torch._foreach_sqrt(v))
        torch._foreach_mul_(roots, group["c"])
        torch._foreach_add_(roots, group["eps"])
        change = _times(m, group["a"])
        torch._foreach_add_(change, _times(gs, group["b"]))
        torch._foreach_div_(change, roots)
        torch._foreach_sub_(ps, change)


class RAdam(Rule):
    """p ← p - a · m / (√v + epsilon) - b · m, with m and v as in Adam.

    The device numbers are (lr · rectification · √(1 - β₂ᵗ) / (1 - β₁ᵗ), 0) once the variance can be rectified, and
    (0, lr / (1 - β₁ᵗ)) before: the same operations at every step, where `torch.optim.RAdam` branches on the host.
    """

    slots = ("momentum", "velocity")

    def update(self, ps: Tensors, gs: Tensors, state: dict[str, Tensors], group: dict[str, Any]) -> None:
        m, v = state["momentum"], state["velocity"]
        _average(m, gs, group["betas"][0])
        _average_squares(v, gs, group["betas"][1])
        change = _times(m, group["a"])
        torch._foreach_div_(change, _root_plus(v, group["eps"]))
        torch._foreach_add_(change, _times(m, group["b"]))
        torch._foreach_sub_(ps, change)


class Lion(Rule):
    """p ← p - lr · sign(β₁ m + (1 - β₁) g); m ← β₂ m + (1 - β₂) g."""

    slots = ("momentum",)

    def update(self, ps: Tensors, gs: Tensors, state: dict[str, Tensors], group: dict[str, Any]) -> None:
        m, (beta_1, beta_2) = state["momentum"], group["betas"]
        change = list(torch._foreach_mul(m, beta_1))
        torch._foreach_add_(change, gs, alpha=1.0 - beta_1)
        torch._foreach_sign_(change)
        torch._foreach_sub_(ps, _times(change, group["lr"]))
        _average(m, gs, beta_2)


class Muon(Rule):
    """m ← momentum · m + g; p ← p - lr · scale · orthogonalized(g + momentum · m), for matrices.

    A tensor with more than two axes is seen as the matrix (first axis, all others). Matrices of equal shape go
    through Newton-Schulz as one batch, tall ones transposed. Paper: Jordan, https://kellerjordan.github.io/posts/muon/.
    """

    slots = ("momentum",)

    def update(self, ps: Tensors, gs: Tensors, state: dict[str, Tensors], group: dict[str, Any]) -> None:
        m, momentum = state["momentum"], group["momentum"]
        torch._foreach_mul_(m, momentum)
        torch._foreach_add_(m, gs)
        directions = list(torch._foreach_add(gs, m, alpha=momentum)) if group["nesterov"] else m
        batches: dict[tuple[Any, ...], list[tuple[Tensor, Tensor]]] = {}
        for p, direction in zip(ps, directions, strict=True):
            x = direction.flatten(1)
            x = x.mT if x.shape[0] > x.shape[1] else x
            batches.setdefault((x.shape, x.dtype), []).append((p, x))
        for batch in batches.values():
            x = newton_schulz(torch.stack([x for _, x in batch]), group["coefficients"], group["ns_steps"])
            scale = 1.0 if group["rms_rate"] is None else max(x.shape[-2:]) ** 0.5 * group["rms_rate"]
            x = x * (group["lr"] * scale)
            torch._foreach_sub_([p for p, _ in batch], [_back(u, p) for u, (p, _) in zip(x, batch, strict=True)])


def _back(x: Tensor, p: Tensor) -> Tensor:
    """Returns the matrix `x` in the shape of the parameter that it came from."""
    rows = p.shape[0]
    return (x.mT if rows > p.numel() // rows else x).reshape(p.shape)


def newton_schulz(x: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """Returns a batch of matrices (N, rows, columns), rows ≤ columns, with singular values pushed towards 1.

    The quintic iteration of Keras's Muon, in the precision of `x`.
    """
    a, b, c = coefficients
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
