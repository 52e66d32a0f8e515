"""Exponential moving averages of the weights, updated on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from convolt.errors import StateError, explain


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


class HasAverages:
    """Gives an optimizer what a user does with the averages of `use_ema`."""

    name: str
    _parameters: dict[str, nn.Parameter]
    _averages: WeightAverages | None

    def apply_ema(self) -> None:
        """Puts the averages in the weights' place, until `restore`; without averages nothing happens."""
        if self._averages is not None:
            self._require_own_weights("apply_ema")
            self._averages.swap_in(list(self._parameters.values()))

    def restore(self) -> None:
        """Puts the weights back that `apply_ema` set aside."""
        if self._averages is not None:
            self._averages.swap_out(list(self._parameters.values()))

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The weights are their averages inside this `with`, as for an evaluation."""
        self.apply_ema()
        try:
            yield
        finally:
            self.restore()

    def finalize_variable_values(self, var_list: object = None) -> None:
        """Overwrites the weights by their averages, for good; Keras does so at the end of `fit`.

        Args:
            var_list: Keras's argument; the optimizer knows its parameters without.
        """
        if self._averages is not None:
            self._averages.overwrite(list(self._parameters.values()))

    def _require_own_weights(self, call: str) -> None:
        if self._averages is not None and self._averages.set_aside:
            raise StateError(explain(f"{self.name}.{call}", "averages in the weights' place", "the weights",
                                     "Call restore() first."))


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().clone(memory_format=torch.preserve_format) for t in tensors]
