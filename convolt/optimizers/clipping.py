"""Gradient clipping as Keras defines it: all tensors together, in place, and without reading a norm back to the host."""

from __future__ import annotations

import torch
from torch import Tensor


def clip_by_norm_(gradients: list[Tensor], limit: float) -> None:
    """Scales each tensor down to norm `limit`: g ← g · limit / max(‖g‖, limit)."""
    norms = torch.stack(list(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, list((limit / norms.clamp(min=limit)).unbind()))


def clip_by_global_norm_(gradients: list[Tensor], limit: float) -> None:
    """Scales all tensors down by one factor so that their common norm is at most `limit`; NaN if it is not finite."""
    norm = torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(gradients))))
    scale = limit / norm.clamp(min=limit)
    torch._foreach_mul_(gradients, scale + (norm - norm))


def clip_by_value_(gradients: list[Tensor], limit: float) -> None:
    """Cuts each value to the span from `-limit` to `limit`."""
    torch._foreach_clamp_min_(gradients, -limit)
    torch._foreach_clamp_max_(gradients, limit)
