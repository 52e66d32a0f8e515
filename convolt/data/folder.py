"""One class per folder: pictures on the disk as arrays, with bad files skipped, counted and listed."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convolt.data.decode import check_decoding, decode_image
from convolt.data.index import Labels, index_folder
from convolt.data.split import stratified_split
from convolt.errors import ArgumentError, DataError, explain

MAX_BAD_SHARE = 0.01
"""Share of bad files above which a folder is refused."""

MAX_FILE_BYTES = 256 * 2**20
CHUNK = 256


class SkippedFilesWarning(UserWarning):
    """Some files of a folder could not be used and were left out."""


@dataclass(frozen=True)
class BadFile:
    """A file that was left out, and why."""

    path: str
    reason: str


def read_file(path: Path) -> bytes:
    """Returns the content of a regular file of at most `MAX_FILE_BYTES`.

    Raises:
        DataError: it is a pipe or a device, which might never end, or it is too large.
        OSError: it cannot be read.
    """
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise DataError(explain(str(path), "a pipe, device or folder", "a regular file"))
        if status.st_size > MAX_FILE_BYTES:
            raise DataError(explain(str(path), f"{status.st_size:,} bytes", f"at most {MAX_FILE_BYTES:,}"))
        return file.read(MAX_FILE_BYTES + 1)


class ImageFolder:
    """The pictures of a folder with one folder per class, indexed but not yet read.

    Args:
        path: the folder; `path/CLASS/PICTURE`, pictures may lie deeper.
        image_size: (height, width) to resize to; None if all pictures have one size already.
        color_mode: "rgb", "rgba" or "grayscale"; see `convolt.data.decode`.
        labels: "inferred" from the folders, None, or one whole number per picture in the order of the sorted paths.
        class_names: the class folders in the order of their labels; sorted by name if None.
        interpolation, fit: how pictures are resized; see `decode_image`.
        follow_links: follow links that lead outside the folder, and links to folders.
        workers: threads that decode; None takes one per core, at most 8.

    Attributes:
        files: paths relative to `path`, sorted.
        labels: int64 of shape (N,), or None.
        class_names: name of each label.
        bad: the files that were met and left out so far, with the reason.
        links_ignored, others_ignored: links that were not followed; files that do not end like pictures.

    Raises:
        ArgumentError: an argument is out of range or unknown.
        DataError: no such folder, no pictures, or a class without pictures.

    Keras counterpart: `keras.utils.image_dataset_from_directory`; PyTorch's: `torchvision.datasets.ImageFolder`.
    """

    def __init__(self, path: str | Path, image_size: tuple[int, int] | None = None, color_mode: str = "rgb",
                 labels: Labels = "inferred", class_names: Sequence[str] | None = None, interpolation: str = "bilinear",
                 fit: str = "stretch", follow_links: bool = False, workers: int | None = None) -> None:
        check_decoding(color_mode, image_size, interpolation, fit)
        if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
            raise ArgumentError(explain("workers", workers, "a whole number from 1, or None"))
        index = index_folder(path, labels, class_names, follow_links)
        self.root, self.files, self.labels, self.class_names = index.root, index.files, index.labels, index.class_names
        self.links_ignored, self.others_ignored = index.links_ignored, index.others_ignored
        self.image_size, self.color_mode = image_size, color_mode
        self.interpolation, self.fit, self.workers = interpolation, fit, workers or min(8, os.cpu_count() or 1)
        self._bad: dict[str, BadFile] = {}
        self._shape_of: tuple[str, tuple[int, ...]] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        return f"ImageFolder({str(self.root)!r}, {len(self.files)} pictures, {len(self.class_names)} classes)"

    @property
    def bad(self) -> list[BadFile]:
        """The files that were met and left out so far, sorted by path."""
        return [self._bad[path] for path in sorted(self._bad)]

    def subset(self, indices: np.ndarray) -> ImageFolder:
        """Returns a folder with some of the pictures, and the same classes."""
        part = object.__new__(ImageFolder)
        part.__dict__.update(self.__dict__)
        part.files = [self.files[int(i)] for i in indices]
        part.labels = None if self.labels is None else self.labels[indices]
        part._bad = {path: self._bad[path] for path in part.files if path in self._bad}
        return part

    def split(self, fraction: float, seed: int = 0) -> tuple[ImageFolder, ImageFolder]:
        """Returns (training part, validation part); each class is split alike, and the same seed splits the same way.

        Raises:
            ArgumentError: `fraction` is not between 0 and 1.
            DataError: one part would be empty.
        """
        labels = self.labels if self.labels is not None else np.zeros(len(self), np.int64)
        first, second = stratified_split(labels, fraction, seed)
        return self.subset(first), self.subset(second)

    def load(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Decodes everything.

        Returns:
            (x, y): uint8 of shape (N, H, W, C) and int64 of shape (N,), in the order of `files` without those in
            `bad`; y is None for a folder without labels.

        Raises:
            DataError: more than 1% of the files are bad, a class has only bad files, or sizes differ.

        Warns:
            SkippedFilesWarning: files were left out.
        """
        x, kept = self.read(np.arange(len(self)))
        if self.labels is None:
            return x, None
        y = self.labels[kept]
        present = np.bincount(y, minlength=len(self.class_names))
        for label in np.unique(self.labels):
            if present[label] == 0:
                raise DataError(explain(f"image folder {self.root}", f"only bad files in the class {self.class_names[label]!r}",
                                        "at least one picture that can be read", self._bad_text()))
        return x, y

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decodes some pictures with several threads.

        Args:
            indices: positions in `files`.

        Returns:
            (x, kept): uint8 (M, H, W, C), and the M of the `indices` whose pictures could be read, in their order.

        Raises:
            DataError: more than 1% of the folder's files are bad, or sizes differ.

        Warns:
            SkippedFilesWarning: files were left out that had not been met before.
        """
        bad_before = len(self._bad)
        x: np.ndarray | None = None
        kept: list[int] = []
        with ThreadPoolExecutor(self.workers) as pool:
            for start in range(0, len(indices), CHUNK):
                chunk = [int(i) for i in indices[start : start + CHUNK]]
                for i, picture in zip(chunk, pool.map(self._decode, chunk), strict=True):
                    if isinstance(picture, BadFile):
                        self._bad[picture.path] = picture
                        continue
                    self._check_size(self.files[i], picture)
                    if x is None:
                        x = np.empty((len(indices), *picture.shape), np.uint8)
                    x[len(kept)] = picture
                    kept.append(i)
                self._check_bad()
        if len(self._bad) > bad_before:
            warnings.warn(f"{self.root}: {self._bad_text()}", SkippedFilesWarning, stacklevel=2)
        shape = (0, *(self._shape_of[1] if self._shape_of else (0, 0, 0)))
        return np.empty(shape, np.uint8) if x is None else x[: len(kept)], np.asarray(kept, np.int64)

    def _decode(self, index: int) -> np.ndarray | BadFile:
        name = self.files[index]
        try:
            return decode_image(read_file(self.root / name), self.color_mode, self.image_size,
                                interpolation=self.interpolation, fit=self.fit)
        except (DataError, OSError) as error:
            return BadFile(name, str(error))

    def _check_size(self, name: str, picture: np.ndarray) -> None:
        if self._shape_of is None:
            self._shape_of = (name, picture.shape)
        first, shape = self._shape_of
        if picture.shape != shape:
            raise DataError(explain(f"image folder {self.root}", f"{first} with {shape[0]}×{shape[1]} pixels and {name} with "
                                    f"{picture.shape[0]}×{picture.shape[1]}", "one size",
                                    "Pass image_size=(height, width) to resize all pictures."))

    def _check_bad(self) -> None:
        if len(self._bad) > MAX_BAD_SHARE * len(self.files):
            raise DataError(explain(f"image folder {self.root}", f"more than {MAX_BAD_SHARE:.0%} bad files",
                                    "pictures that can be read", f"Mend or remove them. {self._bad_text()}"))

    def _bad_text(self, most: int = 10) -> str:
        listed = "; ".join(f"{bad.path}: {bad.reason}" for bad in self.bad[:most])
        more = f"; and {len(self._bad) - most} more" if len(self._bad) > most else ""
        return f"{len(self._bad)} of {len(self.files)} files left out: {listed}{more}"


def check_same_classes(train: Sequence[str], other: Sequence[str], where: str) -> None:
    """Raises `DataError` unless two folders have the same classes in the same order."""
    if list(train) == list(other):
        return
    missing = sorted(set(train) - set(other))
    extra = sorted(set(other) - set(train))
    raise DataError(explain(where, f"classes that differ from those of training (missing: {missing}, extra: {extra})",
                            f"the {len(train)} training classes {list(train)[:10]}", "Give both folders the same class folders."))
