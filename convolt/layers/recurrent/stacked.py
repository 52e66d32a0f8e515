"""What any cell has (sizes, first states), and several cells as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convolt.errors import ArgumentError, explain
from convolt.layers.base import Layer, registry


def states_of(cell: Any) -> Sequence[Any]:
    """Returns the size of each state of a cell; raises `ArgumentError` if it does not say."""
    size = getattr(cell, "state_size", None)
    if size is None:
        raise ArgumentError(explain(f"cell {type(cell).__name__}", "no attribute `state_size`",
                                    "the size of the state, or a list of sizes"))
    return list(size) if isinstance(size, (list, tuple)) else [size]


@registry.register()
class StackedRNNCells(Layer):
    """Cells one on top of the other, as one cell: each is called on the output of the one before.

    Args:
        cells: cells, or their configurations.

    States: a list with the states of each cell. Keras counterpart: `keras.layers.StackedRNNCells`.
    """

    def __init__(self, cells: Sequence[Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cells: Any = nn.ModuleList(registry.make(cell, nn.Module) for cell in cells)
        if not len(self.cells):
            raise ArgumentError(explain("StackedRNNCells(cells)", "no cells", "one or more"))
        for cell in self.cells:
            states_of(cell)

    def _arguments(self) -> dict[str, Any]:
        return {**super()._arguments(), "cells": list(self.cells)}

    @property
    def state_size(self) -> list[Any]:
        """Sizes of the states of each cell."""
        return [cell.state_size for cell in self.cells]

    @property
    def output_size(self) -> int:
        """Size of the last cell's output."""
        return output_size(self.cells[-1])

    def build(self, input_shape: Any, *_: Any) -> None:
        for cell in self.cells:
            if hasattr(cell, "ensure_built"):
                cell.ensure_built(tuple(input_shape))
            input_shape = (input_shape[0], output_size(cell))

    def get_initial_state(self, batch_size: int | None = None) -> list[Any]:
        """Returns the first states of each cell."""
        return [initial_state(cell, batch_size) for cell in self.cells]

    def forward(self, inputs: Tensor, states: Sequence[Any]) -> tuple[Tensor, list[Any]]:
        """Returns (output of the last cell, new states of each)."""
        after = []
        for cell, own in zip(self.cells, states, strict=True):
            inputs, new = cell(inputs, list(own) if isinstance(own, (list, tuple)) else [own])
            after.append(list(new) if isinstance(own, (list, tuple)) else new[0] if isinstance(new, (list, tuple)) else new)
        return inputs, after


def output_size(cell: Any) -> int:
    """Returns the size of a cell's output: its `output_size`, or the size of its first state."""
    size = getattr(cell, "output_size", None)
    first = states_of(cell)[0] if size is None else size
    return int(first)


def initial_state(cell: Any, batch_size: int | None) -> Any:
    """Returns a cell's first states: what its `get_initial_state` gives, or zeros."""
    if hasattr(cell, "get_initial_state"):
        return cell.get_initial_state(batch_size=batch_size)
    zeros = [torch.zeros(batch_size or 1, int(size)) for size in states_of(cell)]
    return zeros if isinstance(cell.state_size, (list, tuple)) else zeros[0]
