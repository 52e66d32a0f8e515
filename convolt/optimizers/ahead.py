"""The numbers of several steps at once, for a graph that holds all of these steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class StepsAhead:
    """Gives an optimizer what a graph of several steps needs beside `update`: their numbers as rows of one tensor."""

    steps: int
    ema_overwrite_frequency: int | None
    _numbers: dict[str, Tensor]
    _filled: dict[str, float]
    _values: Any
    _require_bound: Any
    _require_own_weights: Any

    @property
    def works_between(self) -> bool:
        """Whether `finish_step` sometimes launches work on the device, so that each step needs a graph of its own."""
        return self.ema_overwrite_frequency is not None

    def numbers_ahead(self, count: int) -> Tensor:
        """Returns the numbers of the next `count` steps, `(count, numbers)` on the device, without waiting: part 1 of each of them.

        Raises:
            StateError: not bound, or the averages are in the weights' place.
        """
        self._require_bound("step")
        self._require_own_weights("step")
        start, rows = self.steps, []
        for _ in range(count):
            values = self._values()
            rows.append([values[name] for name in self._numbers])
            self.steps += 1
        self.steps = start
        self._filled = {}  # what lies in the tensors after these steps is the last row, or an earlier one if they fail
        sample = next(iter(self._numbers.values()))
        host = torch.tensor(rows, dtype=sample.dtype)
        return (host.pin_memory() if sample.device.type == "cuda" else host).to(sample.device, non_blocking=True)

    def use_numbers(self, row: Tensor) -> None:
        """Fills the numbers of a step, a row of `numbers_ahead`, into their tensors; on the device alone, fit for capture."""
        torch._foreach_copy_(list(self._numbers.values()), list(row.unbind()))
