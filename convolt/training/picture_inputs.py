"""Pictures that are given to `fit`: decoded once into memory where they fit, else decoded anew (or kept in part) in each epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from convolt import losses
from convolt.data import nvjpeg
from convolt.data.batches import Order
from convolt.data.budget import data_memory
from convolt.data.pictures import AHEAD, Pictures
from convolt.errors import ArgumentError, DataError, ShapeError, explain

TRAINING_SHARE = 0.75
"""Part of `data_memory()` for the pictures of training; the rest is for those that are evaluated."""


@dataclass(frozen=True)
class Opened:
    """Pictures as arrays, or as a stream.

    Attributes:
        x: uint8 (N, H, W, C), or a `PictureStream`.
        y: labels, or None where `x` is a stream, which brings them.
    """

    x: Any
    y: np.ndarray | None


def open_pictures(what: str, pictures: Pictures, y: Any, split: float, device: torch.device,
                  labelled: bool = True) -> tuple[Opened, Opened | None]:
    """Returns (the pictures, those held out by `split` or None).

    Args:
        what: "fit", "evaluate" …, for messages.
        pictures: with labels, if they must have such.
        y: must be None.
        split: part of each class that is held out.
        device: where batches are needed; batches for a GPU lie in pinned memory.
        labelled: whether labels are needed.

    Raises:
        ArgumentError: labels beside the pictures.
        DataError: pictures without labels, or too many bad files.
    """
    if y is not None:
        raise ArgumentError(explain(f"{what}(y)", "labels beside pictures that have theirs", "None: x brings the labels"))
    if labelled and (pictures.labels is None or pictures.label_mode is None):
        raise DataError(explain(f"{what}(x)", f"{pictures!r} without labels", "pictures with labels",
                                "Put each class into a folder of its own, or use convolt.data.from_csv."))
    share = TRAINING_SHARE if what == "fit" else 1 - TRAINING_SHARE
    if not split:
        return _open(pictures, int(share * data_memory()), device), None
    first, second = pictures.split(split)
    room = data_memory()
    return _open(first, int(TRAINING_SHARE * room), device), _open(second, int((1 - TRAINING_SHARE) * room), device)


def check_label_form(pictures: Pictures, loss: Any) -> None:
    """Raises `ShapeError`, with what to do, where class numbers would meet a loss that takes one-hot labels.

    Args:
        pictures: with labels.
        loss: as in `compile`.
    """
    if pictures.labels is None or pictures.labels.ndim > 1 or pictures.label_mode != "int" or loss is None:
        return
    if isinstance(loss, (list, tuple, Mapping)):  # one for each of several outputs, which pictures have no labels for
        return
    found = losses.get(loss)
    if isinstance(found, (losses.CategoricalCrossentropy, losses.CategoricalFocalCrossentropy)):
        sparse = "Use sparse_categorical_crossentropy, or" if isinstance(found, losses.CategoricalCrossentropy) else "Use"
        raise ShapeError(explain(found.name, f"the class numbers of {pictures.title}", "one-hot labels",
                                 f"{sparse} label_mode=\"categorical\" where the pictures are opened (of a pack: "
                                 "pictures.label_mode = \"categorical\")."))


def _open(pictures: Pictures, room: int, device: torch.device) -> Opened:
    if pictures.mapped or pictures.nbytes <= room:
        return Opened(*pictures.load())
    return Opened(PictureStream(pictures, room, device), None)


class PictureBatch(tuple[np.ndarray, ...]):
    """`(x, y)` of a stream of pictures, or `(x,)` where they have no labels.

    Attributes:
        places: of the pictures in their epoch, int64 (N,) on the CPU; those of bad files are not among them, and move no other.
    """

    places: torch.Tensor

    def __new__(cls, x: np.ndarray, y: np.ndarray | None, places: np.ndarray) -> PictureBatch:
        """Returns the pair, which knows its places."""
        made = super().__new__(cls, (x,) if y is None else (x, y))
        made.places = torch.from_numpy(places)
        return made


class PictureStream(Dataset[Any]):
    """Pictures as batches, decoded ahead of their use; the first of them stay decoded, as far as there is room.

    Args:
        pictures: with labels.
        room: bytes for decoded pictures: those that stay, and the batches under way.
        device: where batches are needed.
    """

    def __init__(self, pictures: Pictures, room: int, device: torch.device) -> None:
        self.pictures, self.labels, self.room = pictures, pictures.labels, room
        self._allocate: Callable[[tuple[int, ...]], Any] | None = None
        if device.type == "cuda":
            self._allocate = _pinned if pictures.decoder == "cpu" else nvjpeg.empty(device)

    def __len__(self) -> int:
        return len(self.pictures)

    def example_targets(self) -> np.ndarray | None:
        """Returns labels that show what all are like: class numbers all of them, rows some of them; None where there are none."""
        first = self.pictures.targets([0])
        return self.pictures.targets(np.arange(len(self) if first is not None and first.ndim == 1 else min(len(self), 1000)))

    @property
    def why(self) -> str:
        """Why they are not in memory at once."""
        kept = self.pictures.kept
        part = f", the first {kept:,} kept decoded" if kept else ", JPEGs decoded by nvJPEG" * (self.pictures.decoder == "nvjpeg")
        return f"{_gigabytes(self.pictures.nbytes)} of pictures, more than the {_gigabytes(self.room)} that they may take{part}"

    def largest_batch(self) -> int:
        """Returns the samples of the largest batch of which as many as are read ahead fit into the room."""
        return max(1, self.room // (self._each * (AHEAD + 2)))

    @property
    def _each(self) -> int:
        return int(np.prod(self.pictures.picture_shape()))

    def opener(self, batch_size: int, order: Order | None) -> tuple[Callable[[int, int], Iterator[Any]], int]:
        """Returns ((epoch, first batch) → iterator over `(x, y)`, number of batches)."""
        self.pictures.keep(max(0, self.room - (AHEAD + 2) * batch_size * self._each))
        count = len(self) if order is None else len(order(0))

        def batches(epoch: int, first: int) -> Iterator[Any]:
            rows = np.arange(count) if order is None else order(epoch).numpy()
            orders = [rows[start : start + batch_size] for start in range(first * batch_size, count, batch_size)]
            found = self.pictures.batches(orders, batch_size, self._allocate)
            for number, (x, kept) in enumerate(found, first):
                places = number * batch_size + np.flatnonzero(np.isin(orders[number - first], kept))
                if len(kept):
                    yield PictureBatch(x, self.pictures.targets(kept), places[: len(kept)])

        return batches, -(-count // batch_size)


def _pinned(shape: tuple[int, ...]) -> np.ndarray:
    """Returns memory that a GPU copies from by itself; PyTorch keeps freed pieces for the next batch, and so makes a ring of them."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**29 else f"{count / 2**20:.1f} MB"
