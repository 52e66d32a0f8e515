"""Endless batches of changed pictures: what `ImageDataGenerator.flow` returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.data.augment.engine import Augmentation
from convolt.data.augment.keys import keys as make_keys
from convolt.data.batch_spec import BatchSpec
from convolt.data.batches import epoch_order
from convolt.errors import ArgumentError, explain

Array = np.ndarray[Any, Any]
Change = Callable[[Tensor, Tensor | None, Tensor], Array]


class ArrayFlow:
    """Batches (x, y, weights) of changed pictures. Indexing gives a batch of the present epoch; `next` goes on without end.

    `fit` and `evaluate` do not iterate it: they take the arrays, and change the pictures inside the step, by the same keys.

    Args:
        change: called with all pictures, the rows of a batch and their keys.
        pictures: (samples, height, width, channels).
        y, weights: arrays in the same order, or None.
        batch_size: samples per batch.
        shuffle: another order in each epoch.
        seed: of order and changes.
        whole: returns all that `change` does as an `Augmentation`; None where it is none, and only iterating tells.

    Attributes:
        n: samples.
        epoch: number of the present epoch.

    Keras counterpart: `NumpyArrayIterator`.
    """

    def __init__(self, change: Change, pictures: Tensor, y: Array | None, weights: Array | None, batch_size: int, shuffle: bool,
                 seed: int, whole: Callable[[], Augmentation | None] = lambda: None) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ArgumentError(explain("flow(batch_size)", repr(batch_size), "a whole number from 1"))
        self._change, self._whole, self._pictures, self._y, self._weights = change, whole, pictures, y, weights
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.n, self.epoch, self.batch_index = len(pictures), 0, 0
        self._order: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return -(-self.n // self.batch_size)

    def batch_spec(self) -> BatchSpec | None:
        """Returns what the batches are made of; None without labels, with labels of pixels (which stay where they are, as in Keras, while
        `fit(augment=…)` moves them), or where a function of the user changes the pictures.
        """
        if self._y is None or self._y.shape[1:3] == tuple(self._pictures.shape[1:3]) or (whole := self._whole()) is None:
            return None
        return BatchSpec(self._pictures, self.batch_size, self.shuffle, self.seed, self._y, self._weights, whole)

    def _rows(self) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.n)
        if self._order is None or self._order[0] != self.epoch:
            self._order = (self.epoch, epoch_order(self.n, self.seed, self.epoch))
        return self._order[1]

    def __getitem__(self, number: int) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        rows = self._rows()[number * self.batch_size : (number + 1) * self.batch_size]
        x = self._change(self._pictures, rows, make_keys(self.seed, self.epoch, rows))
        parts = (x, *(a[rows.numpy()] for a in (self._y, self._weights) if a is not None))
        return parts if len(parts) > 1 else x

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[Any]:
        """Yields the batches of an epoch from batch number `first` on."""
        before, self.epoch = self.epoch, epoch
        try:
            for number in range(first, len(self)):
                self.epoch = epoch
                yield self[number]
        finally:
            self.epoch = before

    def on_epoch_end(self) -> None:
        """Goes on to the next epoch."""
        self.epoch += 1

    def reset(self) -> None:
        """Begins the present epoch anew."""
        self.batch_index = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        batch = self[self.batch_index]
        self.batch_index += 1
        if self.batch_index == len(self):
            self.batch_index = 0
            self.on_epoch_end()
        return batch
