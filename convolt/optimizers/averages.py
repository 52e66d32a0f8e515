"""Exponential moving averages of the weights, updated on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class WeightAverages:
    """One average per parameter, starting as its copy. The parameters are given at each call, in the same order.

    Attributes:
        tensors: the averages.
        set_aside: the weights while the averages are in their place, else empty.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.tensors = _copies(parameters)
        self.set_aside: list[Tensor] = []

    @torch.no_grad()
    def update(self, parameters: list[Tensor], keep: Tensor, add: Tensor) -> None:
        """`average ← keep · average + add · parameter`, with two 0-d tensors."""
        torch._foreach_mul_(self.tensors, keep)
        torch._foreach_add_(self.tensors, torch._foreach_mul(parameters, add))

    @torch.no_grad()
    def overwrite(self, parameters: list[Tensor]) -> None:
        """Writes the averages over the parameters."""
        torch._foreach_copy_(parameters, self.tensors)

    def swap_in(self, parameters: list[Tensor]) -> None:
        """Keeps the parameters' values and writes the averages over them."""
        self.set_aside = _copies(parameters)
        self.overwrite(parameters)

    @torch.no_grad()
    def swap_out(self, parameters: list[Tensor]) -> None:
        """Gives the parameters their own values back, if the averages are in their place."""
        if self.set_aside:
            torch._foreach_copy_(parameters, self.set_aside)
            self.set_aside = []


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().clone(memory_format=torch.preserve_format) for t in tensors]
