"""Endless batches of changed pictures of a folder: what `ImageDataGenerator.flow_from_directory` returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.data.augment.keys import keys as make_keys
from convolt.data.batches import epoch_order
from convolt.data.folder import ImageFolder
from convolt.errors import ArgumentError, did_you_mean, explain

Array = np.ndarray[Any, Any]
Change = Callable[[Tensor, Tensor | None, Tensor], Array]
CLASS_MODES = ("categorical", "binary", "sparse", "input", None)


class DirectoryFlow:
    """Batches (x, y) of changed pictures. Indexing gives a batch of the present epoch; `next` goes on without end; `fit` takes it as it is.

    Args:
        change: called with decoded pictures, None and their keys.
        folder: the pictures.
        class_mode: "categorical" (float32 rows), "binary" (float32 numbers), "sparse" (numbers), "input" (the pictures) or None.
        batch_size: pictures per batch; the last of an epoch may be smaller.
        shuffle: another order in each epoch.
        seed: of order and changes.

    Attributes:
        n, samples: pictures.
        class_indices: number of each class, by name.
        classes: class of each picture.
        filenames: of the pictures, in the order of `classes`.
        epoch: number of the present epoch.

    Keras counterpart: `DirectoryIterator`.
    """

    def __init__(self, change: Change, folder: ImageFolder, class_mode: str | None, batch_size: int, shuffle: bool, seed: int) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ArgumentError(explain("flow_from_directory(batch_size)", repr(batch_size), "a whole number from 1"))
        if class_mode not in CLASS_MODES:
            raise ArgumentError(explain("flow_from_directory(class_mode)", repr(class_mode), f"one of {list(CLASS_MODES)}",
                                        did_you_mean(str(class_mode), [mode for mode in CLASS_MODES if mode])))
        if class_mode == "binary" and len(folder.class_names) != 2:
            raise ArgumentError(explain('flow_from_directory(class_mode="binary")', f"{len(folder.class_names)} classes", "two"))
        self._change, self.folder, self.class_mode = change, folder, class_mode
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.n = self.samples = len(folder)
        self.class_names, self.filenames = list(folder.class_names), list(folder.files)
        self.class_indices = {name: number for number, name in enumerate(folder.class_names)}
        self.num_classes = len(self.class_indices)
        self.classes = folder.labels
        self.epoch, self.batch_index = 0, 0

    def __len__(self) -> int:
        return -(-self.n // self.batch_size)

    def __getitem__(self, number: int) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        return next(self.of_epoch(self.epoch, number))

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[Any]:
        """Yields the batches of an epoch from batch number `first` on; the next ones are decoded while one is used."""
        rows = (epoch_order(self.n, self.seed, epoch) if self.shuffle else torch.arange(self.n)).numpy()
        orders = [rows[start : start + self.batch_size] for start in range(first * self.batch_size, self.n, self.batch_size)]
        for pictures, kept in self.folder.batches(orders, self.batch_size):
            if len(kept):
                x = self._change(torch.from_numpy(pictures), None, make_keys(self.seed, epoch, torch.from_numpy(kept)))
                yield x if self.class_mode is None else (x, x.copy() if self.class_mode == "input" else self._labels(kept))

    def _labels(self, rows: Array) -> Array:
        assert self.folder.labels is not None, "labels are inferred from the folders"
        labels: Array = self.folder.labels[rows]
        if self.class_mode == "categorical":
            one_hot: Array = np.eye(self.num_classes, dtype=np.float32)[labels]
            return one_hot
        return labels.astype(np.float32) if self.class_mode == "binary" else labels

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
