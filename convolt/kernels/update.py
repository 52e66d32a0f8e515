"""Updates of all parameters at once, by SGD and Adam, and Muon's orthogonalisation batched by shape."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from convolt.errors import ArgumentTypeError, ShapeError, explain
from convolt.kernels import reference
from convolt.kernels.memory import is_dense
from convolt.kernels.registry import choose, run


def adam_update(params: Sequence[Tensor], grads: Sequence[Tensor], exp_avgs: Sequence[Tensor], exp_avg_sqs: Sequence[Tensor], lr: Tensor, *,
                betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-7, decay: Tensor | None = None,
                shadows: Sequence[Tensor] = (), backend: str = "auto") -> None:
    """One step of Adam (AdamW, if `decay` is given) for all parameters, in place.

    `p ← p - decay · p; m ← β₁ m + (1 - β₁) g; v ← β₂ v + (1 - β₂) g²; p ← p - lr · m / (√v + eps)`, Keras's order, in
    which lr already holds the bias correction: learning rate · √(1 - β₂ᵗ) / (1 - β₁ᵗ).

    Args:
        params, exp_avgs, exp_avg_sqs: float32 for the kernel, on one device; state in the memory order of its parameter.
        grads: of one float type; those in another memory order than their parameter are copied.
        lr, decay: 0-d float32 tensors on the device, so that a captured graph sees their new values; decay is
            learning rate · weight decay.
        betas, eps: as written above.
        shadows: none, or a bfloat16 copy of each parameter, which is renewed.
        backend: "auto", "reference" or "triton" (CUDA).

    For a CUDA graph: call once before the capture with the same tensors, so that the table of addresses is on the device.

    Raises:
        ShapeError: the lists have different lengths or shapes.
        ArgumentTypeError: the gradients or the shadows have several types.
    """
    ps, gs = list(params), _aligned("adam_update", params, grads)
    _check("adam_update", ps, gs, [exp_avgs, exp_avg_sqs], shadows)
    if not ps:
        return
    chosen = _chosen("adam_update", ps, [*exp_avgs, *exp_avg_sqs], backend)
    with torch.no_grad():
        run("adam_update", chosen, "update", "adam", ps, gs, list(exp_avgs), list(exp_avg_sqs), lr, decay, betas, eps, list(shadows))


def sgd_update(params: Sequence[Tensor], grads: Sequence[Tensor], velocities: Sequence[Tensor], lr: Tensor, *, momentum: float = 0.0,
               nesterov: bool = False, decay: Tensor | None = None, shadows: Sequence[Tensor] = (), backend: str = "auto") -> None:
    """One step of SGD for all parameters, in place: `v ← momentum · v - lr · g; p ← p - decay · p + v`, Keras's recurrence.

    With Nesterov the parameter moves by `momentum · v - lr · g`; without `velocities` (an empty list) by `-lr · g`. The
    other arguments, and what is raised, are those of `adam_update`.
    """
    ps, gs = list(params), _aligned("sgd_update", params, grads)
    _check("sgd_update", ps, gs, [velocities] if len(velocities) else [], shadows)
    if not ps:
        return
    chosen = _chosen("sgd_update", ps, list(velocities), backend)
    with torch.no_grad():
        run("sgd_update", chosen, "update", "sgd", ps, gs, list(velocities), lr, decay, momentum, nesterov, list(shadows))


def _chosen(name: str, params: list[Tensor], states: list[Tensor], backend: str) -> str:
    """Returns the backend; the kernel takes whole models of float32 in dense memory only."""
    chosen = choose(name, params[0], backend)
    plain = all(t.dtype == torch.float32 and t.device == params[0].device and is_dense(t) for t in [*params, *states])
    return chosen if plain else "reference"


def _aligned(name: str, params: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
    """Returns the gradients in the memory order of their parameters."""
    if len(params) != len(grads):
        raise ShapeError(explain(name, f"{len(grads)} gradients", f"one for each of {len(params)} parameters"))
    return [g.detach() if g.stride() == p.stride() else torch.empty_like(p, dtype=g.dtype).detach().copy_(g.detach())
            for p, g in zip(params, grads, strict=True)]


def _check(name: str, params: list[Tensor], grads: list[Tensor], states: Sequence[Sequence[Tensor]], shadows: Sequence[Tensor]) -> None:
    for group in [grads, *states, *([shadows] if len(shadows) else [])]:
        if len(group) != len(params) or any(a.shape != b.shape for a, b in zip(params, group, strict=True)):
            raise ShapeError(explain(name, f"lists of {[len(params), len(group)]} tensors", "tensors of each parameter's shape"))
    for group in [*states, *([shadows] if len(shadows) else [])]:
        if any(a.stride() != b.stride() for a, b in zip(params, group, strict=True)):
            raise ShapeError(explain(name, "state in another memory order than its parameter", "the same strides",
                                     "Make it with torch.zeros_like(parameter)."))
    if len({g.dtype for g in grads}) > 1 or any(s.dtype != torch.bfloat16 for s in shadows):
        raise ArgumentTypeError(explain(name, f"gradients of {sorted({str(g.dtype) for g in grads})}", "one type, and bfloat16 shadows"))


def newton_schulz(updates: Sequence[Tensor], *, steps: int = 5, coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
                  eps: float = 1e-7, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Muon's approximate orthogonalisation `U Vᵀ` of each update `U S Vᵀ`, all updates of one shape as one batch.

    Args:
        updates: tensors with two axes or more; (out, in, kh, kw) counts as a matrix (out, in · kh · kw).
        steps: of the quintic iteration `X ← a X + (b A + c A²) X`, A = X Xᵀ.
        coefficients: a, b, c.
        eps: added to the norm by which X is divided first.
        dtype: of the products, such as torch.bfloat16; None is the updates' own.

    Returns:
        The results in order, each in its update's shape and type.
    Source: https://kellerjordan.github.io/posts/muon/.
    """
    by_shape: dict[tuple[int, int, torch.dtype, torch.device], list[int]] = {}
    matrices = [u.flatten(1) for u in updates]
    for i, m in enumerate(matrices):
        by_shape.setdefault((m.shape[0], m.shape[1], m.dtype, m.device), []).append(i)
    results: dict[int, Tensor] = {}
    for members in by_shape.values():
        stack = torch.stack([matrices[i] for i in members])
        for i, result in zip(members, reference.newton_schulz_iteration(stack, steps, coefficients, eps, dtype).unbind(), strict=True):
            results[i] = result.view(updates[i].shape)
    return [results[i] for i in range(len(updates))]
