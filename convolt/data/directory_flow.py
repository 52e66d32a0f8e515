"""Endless batches of changed pictures of a folder: what `ImageDataGenerator.flow_from_directory` returns."""

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
from convolt.data.folder import ImageFolder
from convolt.data.label_modes import LabelMode, targets_of
from convolt.errors import ArgumentError, DataError, did_you_mean, explain

Array = np.ndarray[Any, Any]
Change = Callable[[Tensor, Tensor | None, Tensor], Array]
CLASS_MODES = ("categorical", "binary", "sparse", "input", None)
LABEL_MODES: dict[str, LabelMode] = {"categorical": "categorical", "binary": "binary", "sparse": "int", "input": None}


class DirectoryFlow:
    """Batches (x, y) of changed pictures. Indexing gives a batch of the present epoch; `next` goes on without end.

    `fit` and `evaluate` do not iterate it: they take the folder's pictures as they take an `ImageFolder` (decoded once where they fit),
    and change them inside the step, by the same keys, so that a model sees the same pictures in the same order. Their "binary" labels
    are float32 (N, 1).

    Args:
        change: called with decoded pictures, None and their keys.
        folder: the pictures.
        class_mode: "categorical" (float32 rows), "binary" (float32 numbers), "sparse" (numbers), "input" (the pictures) or None.
        batch_size: pictures per batch; the last of an epoch may be smaller.
        shuffle: another order in each epoch.
        seed: of order and changes.
        whole: returns all that `change` does as an `Augmentation`; None where it is none, and only iterating tells.

    Attributes:
        n, samples: pictures.
        class_indices: number of each class, by name.
        classes: class of each picture.
        filenames: of the pictures, in the order of `classes`.
        epoch: number of the present epoch.

    Keras counterpart: `DirectoryIterator`.
    """

    def __init__(self, change: Change, folder: ImageFolder, class_mode: str | None, batch_size: int, shuffle: bool, seed: int,
                 whole: Callable[[], Augmentation | None] = lambda: None) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ArgumentError(explain("flow_from_directory(batch_size)", repr(batch_size), "a whole number from 1"))
        if class_mode not in CLASS_MODES:
            raise ArgumentError(explain("flow_from_directory(class_mode)", repr(class_mode), f"one of {list(CLASS_MODES)}",
                                        did_you_mean(str(class_mode), [mode for mode in CLASS_MODES if mode])))
        if class_mode == "binary" and len(folder.class_names) != 2:
            raise ArgumentError(explain('flow_from_directory(class_mode="binary")', f"{len(folder.class_names)} classes", "two"))
        self._change, self._whole, self.folder, self.class_mode = change, whole, folder, class_mode
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.n = self.samples = len(folder)
        self.class_names, self.filenames = list(folder.class_names), list(folder.files)
        self.class_indices = {name: number for number, name in enumerate(folder.class_names)}
        self.num_classes = len(self.class_indices)
        self.classes = folder.labels
        self.epoch, self.batch_index = 0, 0

    def __len__(self) -> int:
        return -(-self.n // self.batch_size)

    def batch_spec(self) -> BatchSpec | None:
        """Returns what the batches are made of; None without labels, or where a function of the user changes the pictures."""
        if self.class_mode is None or (whole := self._whole()) is None:
            return None
        pictures = self.folder.labelled(LABEL_MODES[self.class_mode])
        return BatchSpec(pictures, self.batch_size, self.shuffle, self.seed, augmentation=whole, reconstructs=self.class_mode == "input")

    def __getitem__(self, number: int) -> Any:
        """Returns a batch of the present epoch; no other picture is decoded.

        Raises:
            IndexError: there is no such batch.
            DataError: none of its files can be read.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        if (batch := self._at(number)) is None:
            raise DataError(explain(f"batch {number} of {self.folder.title}", "only files that cannot be read", "a picture",
                                    "The attribute folder.bad lists them."))
        return batch

    def _at(self, number: int) -> Any:
        return self._batch(*self.folder.read(self._orders(self.epoch, number)[0]), self.epoch)

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[Any]:
        """Yields the batches of an epoch from batch number `first` on; the next ones are decoded while one is used."""
        for pictures, kept in self.folder.batches(self._orders(epoch, first), self.batch_size):
            if (batch := self._batch(pictures, kept, epoch)) is not None:
                yield batch

    def _orders(self, epoch: int, first: int) -> list[Array]:
        """Returns the rows of each batch of an epoch, from batch number `first` on."""
        rows = (epoch_order(self.n, self.seed, epoch) if self.shuffle else torch.arange(self.n)).numpy()
        return [rows[start : start + self.batch_size] for start in range(first * self.batch_size, self.n, self.batch_size)]

    def _batch(self, pictures: Array, kept: Array, epoch: int) -> Any:
        """Returns decoded pictures, changed, with their labels; None if there are none."""
        if not len(kept):
            return None
        x = self._change(torch.from_numpy(pictures), None, make_keys(self.seed, epoch, torch.from_numpy(kept)))
        if self.class_mode is None:
            return x
        assert self.folder.labels is not None, "labels are inferred from the folders"
        if self.class_mode == "input":
            return x, x.copy()
        labels = targets_of(self.folder.labels[kept], LABEL_MODES[self.class_mode], self.num_classes)
        return x, labels.reshape(-1) if self.class_mode == "binary" and labels is not None else labels

    def on_epoch_end(self) -> None:
        """Goes on to the next epoch."""
        self.epoch += 1

    def reset(self) -> None:
        """Begins the present epoch anew."""
        self.batch_index = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        batch = None
        while batch is None:  # of bad files alone
            batch = self._at(self.batch_index)
            self.batch_index += 1
            if self.batch_index == len(self):
                self.batch_index = 0
                self.on_epoch_end()
        return batch
