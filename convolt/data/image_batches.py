"""Batches of pictures from a folder: Keras's `image_dataset_from_directory`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convolt.data.batch_spec import BatchSpec
from convolt.data.folder import ImageFolder
from convolt.data.index import Labels
from convolt.data.label_modes import LabelMode, check_label_mode, targets_of
from convolt.errors import ArgumentError, did_you_mean, explain

SUBSETS = ("training", "validation", "both")


class ImageBatches:
    """Batches of a folder's pictures; can be gone through again and again.

    Each pass yields `(x, y)`, or `x` alone without labels. With `shuffle` each pass has another order, which depends
    on the seed and the number of the pass alone. `fit` and `evaluate` do not go through it: they take the folder as they take an
    `ImageFolder` (decoded once where it fits), in orders keyed by (seed, epoch), so that a resumed training goes on as it would have.

    Args:
        folder: the pictures; its `image_size` is set.
        batch_size: pictures per batch; the last may be smaller. None yields single pictures without a batch axis.
        shuffle: whether the order changes with each pass.
        seed: decides the orders.
        seeded: whether `seed` decides those of `fit`, too; else `fit`'s own does.
        label_mode: "int" (int64, `(N,)`), "categorical" or "multi_label" (float32, `(N, classes)`), "binary" (float32, `(N, 1)`)
            or None for no labels.

    Attributes:
        class_names: name of each label.
        file_paths: the pictures' paths, in the order of the folder.
    """

    def __init__(self, folder: ImageFolder, batch_size: int | None = 32, shuffle: bool = True, seed: int = 0,
                 label_mode: LabelMode = "int", seeded: bool = True) -> None:
        self.folder, self.batch_size, self.shuffle, self.seed = folder, batch_size, shuffle, seed
        self.seeded = seeded
        self.label_mode: LabelMode = label_mode if folder.labels is not None else None
        self.class_names = folder.class_names
        self.file_paths = [str(folder.root / name) for name in folder.files]
        self._passes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of batches in a pass. A bad file makes its batch smaller."""
        return -(-len(self.folder) // (self.batch_size or 1))

    def batch_spec(self) -> BatchSpec | None:
        """Returns what the batches are made of; None without labels, or for single pictures."""
        if self.label_mode is None or self.batch_size is None:
            return None
        return BatchSpec(self.folder.labelled(self.label_mode), self.batch_size, self.shuffle, self.seed if self.seeded else None)

    def __iter__(self) -> Iterator[Any]:
        with self._lock:
            this_pass, self._passes = self._passes, self._passes + 1
        order = np.arange(len(self.folder))
        if self.shuffle:
            order = np.random.Generator(np.random.PCG64([self.seed, this_pass])).permutation(order)
        step = self.batch_size or 1
        return (batch for start in range(0, len(order), step) for batch in self._batch(order[start : start + step]))

    def _batch(self, indices: np.ndarray) -> list[Any]:
        """Returns the batch in a list; an empty list if all its files are bad."""
        x, kept = self.folder.read(indices)
        if len(kept) == 0:
            return []
        y = targets_of(None if self.folder.labels is None else self.folder.labels[kept], self.label_mode, len(self.class_names))
        if self.batch_size is None:
            return [x[0] if y is None else (x[0], y[0])]
        return [x if y is None else (x, y)]


def image_dataset_from_directory(
        directory: str | Path, labels: Labels = "inferred", label_mode: LabelMode = "int",
        class_names: Sequence[str] | None = None, color_mode: str = "rgb", batch_size: int | None = 32,
        image_size: int | tuple[int, int] = (256, 256), shuffle: bool = True, seed: int | None = None,
        validation_split: float | None = None, subset: Literal["training", "validation", "both"] | None = None,
        interpolation: str = "bilinear", follow_links: bool = False, crop_to_aspect_ratio: bool = False,
        pad_to_aspect_ratio: bool = False, verbose: bool = True) -> ImageBatches | list[ImageBatches]:
    """Makes batches from a folder with one folder per class.

    Args:
        directory: the folder, `directory/CLASS/PICTURE`.
        labels: "inferred", None, or one whole number per picture in the order of the sorted paths.
        label_mode: "int", "categorical", "binary", "multi_label" or None; see `ImageBatches`.
        class_names: the class folders in the order of their labels; sorted by name if None.
        color_mode: "rgb", "rgba" or "grayscale".
        batch_size: pictures per batch; None yields single pictures.
        image_size: (height, width), or one number for both.
        shuffle: whether each pass has another order.
        seed: decides the order, and the split together with `validation_split`; if None the order is drawn from
            NumPy's generator (see `set_random_seed`), in `fit` it is that of `fit(seed=…)`, and the split is that of seed 0.
        validation_split: share for validation; each class is split alike.
        subset: "training", "validation" or "both" (returns the two in a list); goes with `validation_split`.
        interpolation: "bilinear", "nearest", "bicubic", "lanczos" or "area"; antialiased when shrinking.
        follow_links: follow links that lead outside the folder, and links to folders.
        crop_to_aspect_ratio, pad_to_aspect_ratio: cut or pad pictures of another shape instead of distorting them.
        verbose: print how many pictures and classes were found.

    Returns:
        `ImageBatches`: x is uint8 of shape (N, H, W, C) with values 0 … 255 (Keras: the same values as float32).

    Raises:
        ArgumentError: an argument is out of range, or two contradict each other.
        DataError: no such folder, no pictures, or a class without pictures.

    Keras counterpart: `keras.utils.image_dataset_from_directory`.
    """
    check_label_mode(label_mode, None, ())
    if batch_size is not None and (not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1):
        raise ArgumentError(explain("batch_size", batch_size, "a whole number from 1, or None", "Try batch_size=32."))
    if (validation_split is None) != (subset is None):
        raise ArgumentError(explain("validation_split, subset", f"{validation_split!r}, {subset!r}", "both or neither",
                                    'Try validation_split=0.2, subset="both".'))
    _check_choice("subset", subset, (*SUBSETS, None))
    if crop_to_aspect_ratio and pad_to_aspect_ratio:
        raise ArgumentError(explain("crop_to_aspect_ratio, pad_to_aspect_ratio", "True, True", "at most one of them"))
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size is None:
        raise ArgumentError(explain("image_size", None, "(height, width)", "Batches need pictures of one size."))
    fit = "crop" if crop_to_aspect_ratio else "pad" if pad_to_aspect_ratio else "stretch"
    folder = ImageFolder(directory, size, color_mode, labels, class_names, interpolation, fit, follow_links)
    check_label_mode(label_mode, folder.labels, folder.class_names)
    if verbose:
        print(f"Found {len(folder)} pictures of {len(folder.class_names)} classes in {directory}.")
    order_seed = int(np.random.randint(2**31)) if seed is None else seed
    if validation_split is None:
        return ImageBatches(folder, batch_size, shuffle, order_seed, label_mode, seed is not None)
    train, validation = folder.split(validation_split, seed or 0)
    both = [ImageBatches(train, batch_size, shuffle, order_seed, label_mode, seed is not None),
            ImageBatches(validation, batch_size, False, order_seed, label_mode)]
    return both if subset == "both" else both[SUBSETS.index(str(subset))]


def _check_choice(name: str, value: object, known: tuple[str | None, ...]) -> None:
    if value not in known:
        raise ArgumentError(explain(name, value, f"one of {list(known)}", did_you_mean(str(value), [k for k in known if k])))
