"""`Pictures`: labelled pictures that lie somewhere, indexed but not yet read. Folders, tables, tar shards and packs are such."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from convolt.data.decode import CHANNELS, check_decoding, decode_image, warn
from convolt.data.label_modes import LabelMode, check_label_mode, targets_of
from convolt.data.left_out import MAX_BAD_SHARE, BadFile, SkippedFilesWarning, write_skipped
from convolt.data.reader import SMALL, ahead, default_workers
from convolt.data.split import stratified_split
from convolt.errors import DataError, explain

PIECE = 64
"""Small pictures that a thread decodes before it asks for more."""

PIECE_PIXELS = PIECE * SMALL
"""Of larger pictures, pixels: the fewer they take, the shorter threads wait for the last one at the end."""

AHEAD = 3
"""Batches that are decoded while one is used."""


def piece_of(shape: tuple[int, ...]) -> int:
    """Returns how many pictures of a shape (H, W, C) a thread decodes before it asks for more."""
    return max(1, min(PIECE, PIECE_PIXELS // (shape[0] * shape[1])))


Rows = np.ndarray | Sequence[int]
Allocate = Callable[[tuple[int, ...]], Any]
Outcome = BadFile | tuple[int, ...] | np.ndarray | bytes


class Pictures(ABC):
    """Pictures with their labels, read when they are needed, by several threads, in the order that is asked for.

    What can be read of them is the same in every process that asks: the order follows from the files' names alone, and a bad file is
    left out wherever it is met.

    Attributes:
        title: for messages, such as "image folder pets".
        files: a name for each picture.
        labels: int64 `(N,)` for classes, float32 `(N, classes)` of zeros and ones for several labels each, or None.
        class_names: name of each label.
        label_mode: the form in which `fit` gets the labels: "int" as they are, "categorical" float32 `(N, classes)`, "binary" float32
            `(N, 1)`, "multi_label" float32 `(N, classes)` also of pictures with several labels or none, None without. It can be set.
        image_size, color_mode, interpolation, fit: how pictures are decoded; see `decode_image`.
        workers: threads that decode.
        decoder: what decodes: "cpu", or "nvjpeg" where an NVIDIA GPU and its library are, see `convolt.data.nvjpeg`. It can be set.
        bad: the files that were met and left out so far, with the reason, here or in a `subset`.
        ignored: what was not taken for a picture of the set, and why: links that are not followed.
        origin: the pack that the pixels come from; "" for none.
        named: whether `class_names` are names, and not the labels' numbers, which nobody named.
    """

    origin = ""
    named = True
    ignored: tuple[BadFile, ...] = ()

    def __init__(self, title: str, files: list[str], labels: np.ndarray | None, class_names: Sequence[str],
                 image_size: tuple[int, int] | None = None, color_mode: str = "rgb", interpolation: str = "bilinear",
                 fit: str = "stretch", workers: int | None = None) -> None:
        check_decoding(color_mode, image_size, interpolation, fit)
        self.title, self.files, self.labels, self.class_names = title, files, labels, list(class_names)
        self.image_size, self.color_mode, self.interpolation, self.fit = image_size, color_mode, interpolation, fit
        self.workers = default_workers(workers)
        self._rows = np.arange(len(files))
        self._label_mode: LabelMode = "int"
        self._decoder = "cpu"
        self._bad: dict[str, BadFile] = {}
        self._told: set[str] = set()  # the bad files that a warning has named, of these pictures and all their parts
        self._whole: Pictures | None = None  # what these are a subset of
        self._shape_of: tuple[str, tuple[int, ...]] | None = None
        self._decoded: np.ndarray | None = None  # of the first pictures, those that `keep` found room for
        self._is_decoded = np.zeros(0, bool)

    @abstractmethod
    def content(self, index: int) -> bytes:
        """Returns the encoded bytes of picture number `index`.

        Raises:
            DataError: there is no such picture any more, or it is no plain file.
            OSError: it cannot be read.
        """

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.title!r}, {len(self.files)} pictures, {len(self.class_names)} classes)"

    @property
    def bad(self) -> list[BadFile]:
        """The files that were met and left out so far, sorted by path."""
        return [self._bad[path] for path in sorted(self._bad)]

    @property
    def left_out(self) -> list[BadFile]:
        """`bad` and `ignored`, sorted by path: what is listed where a run is kept."""
        return sorted({*self.bad, *self.ignored}, key=lambda bad: bad.path)

    @property
    def mapped(self) -> bool:
        """Whether `load` takes no memory, since the pixels lie decoded in a mapped file."""
        return False

    @property
    def label_mode(self) -> LabelMode:
        """The form in which `fit` gets the labels."""
        return self._label_mode

    @label_mode.setter
    def label_mode(self, mode: LabelMode) -> None:
        check_label_mode(mode, self.labels, self.class_names)
        self._label_mode = mode

    @property
    def decoder(self) -> str:
        """What decodes the pictures: "cpu" or "nvjpeg"."""
        return self._decoder

    @decoder.setter
    def decoder(self, decoder: str) -> None:
        if decoder != "cpu":
            from convolt.data import nvjpeg

            nvjpeg.check_decoder(decoder, self)
        self._decoder = decoder

    def targets(self, rows: Rows) -> np.ndarray | None:
        """Returns what a loss is given for some pictures: their labels in the form of `label_mode`; None without labels."""
        return targets_of(None if self.labels is None else self.labels[rows], self.label_mode, len(self.class_names))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all pictures together, (N, H, W, C); reads the first if no size was given.

        Raises:
            DataError: none can be read.
        """
        return (len(self), *self.picture_shape())

    @property
    def nbytes(self) -> int:
        """Bytes of all pictures, decoded."""
        return int(np.prod(self.shape))

    def picture_shape(self) -> tuple[int, ...]:
        """Returns (H, W, C) of each picture."""
        if self.image_size is not None:
            return (*self.image_size, CHANNELS[self.color_mode])
        for index in range(len(self)):
            if self._shape_of is not None:
                break
            self._note(index, self._decode(index))
        if self._shape_of is None:
            raise DataError(explain(self.title, "no picture that can be read", "at least one", self._bad_text()))
        return self._shape_of[1]

    def fingerprint(self) -> str:
        """Returns what tells this set from others: a digest of names, labels and the way of decoding. Nothing is read."""
        digest = hashlib.sha256("\n".join(self.files).encode())
        digest.update(b"" if self.labels is None else np.ascontiguousarray(self.labels).tobytes())
        mode = ("" if self.label_mode == "int" else f" {self.label_mode}") + ("" if self.decoder == "cpu" else f" {self.decoder}")
        return f"{len(self)} pictures {self.image_size} {self.color_mode} {self.interpolation} {self.fit} {digest.hexdigest()[:16]}{mode}"

    def subset(self, indices: Rows) -> Self:
        """Returns some of the pictures, with the same classes."""
        part = copy.copy(self)
        part._whole = self
        part.files = [self.files[int(i)] for i in indices]
        part.labels = None if self.labels is None else self.labels[indices]
        part._rows = self._rows[indices]
        part._bad = {path: self._bad[path] for path in part.files if path in self._bad}
        part._decoded, part._is_decoded = None, np.zeros(0, bool)
        return part

    def labelled(self, mode: LabelMode) -> Self:
        """Returns the pictures with another `label_mode`."""
        part = self.subset(np.arange(len(self)))
        part.label_mode = mode
        return part

    def split(self, fraction: float, seed: int = 0) -> tuple[Self, Self]:
        """Returns (training part, validation part); each class is split alike, and the same seed splits the same way.

        Of a set with several labels for each picture, those with the same labels are split alike.

        Raises:
            ArgumentError: `fraction` is not between 0 and 1.
            DataError: one part would be empty.
        """
        labels = self.labels if self.labels is not None else np.zeros(len(self), np.int64)
        if labels.ndim == 2:
            labels = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
        first, second = stratified_split(labels, fraction, seed)
        return self.subset(first), self.subset(second)

    def load(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Decodes everything.

        Returns:
            (x, y): uint8 of shape (N, H, W, C) and the labels in the form of `label_mode`, in the order of `files` without those in
            `bad`; y is None for pictures without labels.

        Raises:
            DataError: more than 1% of the files are bad, a class has only bad files, or sizes differ.

        Warns:
            SkippedFilesWarning: files were left out.
        """
        x, kept = self.read(np.arange(len(self)))
        return x, self.targets(kept)

    def read(self, indices: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Decodes some pictures with several threads.

        Args:
            indices: positions in `files`.

        Returns:
            (x, kept): uint8 (M, H, W, C), and the M of the `indices` whose pictures could be read, in their order.

        Raises:
            DataError: more than 1% of the set's files are bad, a class has only bad files, or sizes differ.

        Warns:
            SkippedFilesWarning: files were left out that had not been met before.
        """
        rows = np.asarray(indices, np.int64)
        if len(rows) == 0:
            return np.empty((0, *(self._shape_of[1] if self._shape_of else (0, 0, 0))), np.uint8), rows
        return next(self.batches([rows], len(rows)))

    def batches(self, orders: Sequence[Rows], size: int, allocate: Allocate | None = None,
                most: int = AHEAD) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields `read(rows)` for each of `orders`, where the next ones are decoded while one is used.

        Args:
            orders: positions in `files`, of each batch.
            size: of the largest batch.
            allocate: makes an uninitialised uint8 array of a shape; NumPy's if None. Where a GPU decodes, it may make tensors there.
            most: batches that are decoded ahead of the one in use, which bounds the memory.
        """
        shape = self._common_shape(orders)
        make = allocate or (lambda whole: np.empty(whole, np.uint8))
        workers = self.workers if shape[0] * shape[1] > SMALL else 1
        piece = piece_of(shape)
        pieces = ((x, rows[start : start + piece], start) for rows in orders for x in [make((len(rows), *shape))]
                  for start in range(0, len(rows), piece))
        per_batch = -(-size // piece)
        done = ahead(lambda part: self._fill(*part), pieces, workers, max(workers + 1, most * per_batch))
        for rows in orders:
            kept: list[int] = []
            missed: list[int] = []
            for start in range(0, len(rows), piece):
                x, outcomes = next(done)
                for place, outcome in enumerate(outcomes, start):
                    if isinstance(outcome, (bytes, np.ndarray)):  # for the GPU
                        from convolt.data import nvjpeg

                        outcome = nvjpeg.put(self, int(rows[place]), outcome, x, place)
                    if self._note(int(rows[place]), outcome):
                        if len(kept) < place:  # close the gap that a bad file left
                            x[len(kept)] = x[place]
                        kept.append(place)
                    else:
                        missed.append(int(rows[place]))
                self._check_bad()
            if not self._told.issuperset(self.files[i] for i in missed):
                self._told.update(self._bad)
                warn(f"{self.root_text()}: {self._bad_text()}", SkippedFilesWarning, 3)
            self._check_classes(missed)
            yield x[: len(kept)], np.asarray(rows, np.int64)[kept]

    @property
    def kept(self) -> int:
        """Number of pictures, from the first on, that stay in memory once they are decoded."""
        return len(self._is_decoded)

    def keep(self, room: int) -> None:
        """Keeps the first pictures in memory once they are decoded, as many as `room` bytes hold; none that a GPU decodes."""
        shape = self.picture_shape()
        count = min(len(self), room // int(np.prod(shape))) if self.decoder == "cpu" else 0
        if count != self.kept:
            self._decoded, self._is_decoded = np.empty((count, *shape), np.uint8), np.zeros(count, bool)

    def root_text(self) -> str:
        """Returns where the pictures lie, for warnings."""
        return self.title

    def write_skipped(self, path: Path) -> None:
        """Writes the files that were left out as a table with the columns `path` and `reason`, whole or not at all."""
        write_skipped(path, self.left_out)

    # -- in the threads ------------------------------------------------------------------------------------------------

    def _fill(self, x: np.ndarray, rows: Rows, start: int) -> tuple[np.ndarray, list[Outcome]]:
        """Decodes a piece of a batch to x[start : …].

        Returns:
            The batch, and of each picture its shape, or what is wrong with it. Where a GPU decodes, nothing is written, and there are
            files and pixels for `nvjpeg.put`.
        """
        outcomes: list[Outcome] = []
        for place, row in enumerate(rows, start):
            index = int(row)
            if index < self.kept and self._is_decoded[index]:
                x[place] = self._decoded[index]  # type: ignore[index]  # there is one where `kept` is not 0
                outcomes.append(x.shape[1:])
                continue
            picture = self._decode(index) if self.decoder == "cpu" else self._read(index)
            if isinstance(picture, BadFile) or self.decoder != "cpu":
                outcomes.append(picture)
                continue
            assert isinstance(picture, np.ndarray)
            if picture.shape == x.shape[1:]:
                x[place] = picture
                if index < self.kept:
                    self._decoded[index] = picture  # type: ignore[index]
                    self._is_decoded[index] = True
            outcomes.append(picture.shape)
        return x, outcomes

    def _decode(self, index: int) -> np.ndarray | BadFile:
        if (known := self._bad.get(self.files[index])) is not None:
            return known
        try:
            return decode_image(self.content(index), self.color_mode, self.image_size, interpolation=self.interpolation, fit=self.fit)
        except (DataError, OSError) as error:
            return BadFile(self.files[index], str(error))

    def _read(self, index: int) -> np.ndarray | BadFile | bytes:
        """Returns the file of a picture that nvJPEG takes, and what `_decode` does of all others."""
        from convolt.data import nvjpeg

        if (known := self._bad.get(self.files[index])) is not None:
            return known
        try:
            content = self.content(index)
        except (DataError, OSError) as error:
            return BadFile(self.files[index], str(error))
        return content if nvjpeg.takes(content) else self._decode(index)

    # -- in the consumer's thread --------------------------------------------------------------------------------------

    def _common_shape(self, orders: Sequence[Rows]) -> tuple[int, ...]:
        """Returns the shape of the first of these pictures that can be read, which all others must have."""
        if self.image_size is None and self._shape_of is None:
            for index in (int(i) for rows in orders for i in rows):
                outcome = self._decode(index)
                if not isinstance(outcome, BadFile):
                    self._note(index, outcome)
                    break
        return self.picture_shape()

    def _note(self, index: int, outcome: np.ndarray | BadFile | tuple[int, ...]) -> bool:
        """Keeps what was found out about a picture; returns whether it can be used.

        Raises:
            DataError: it has another size than the first.
        """
        name = self.files[index]
        if isinstance(outcome, BadFile):
            owner: Pictures | None = self
            while owner is not None:  # the set that a part was taken from lists it, too
                owner._bad[outcome.path] = outcome
                owner = owner._whole
            return False
        found = outcome if isinstance(outcome, tuple) else outcome.shape
        if self._shape_of is None:
            self._shape_of = (name, found)
        first, shape = self._shape_of
        if found != shape:
            raise DataError(explain(self.title, f"{first} with {shape[0]}×{shape[1]} pixels and {name} with {found[0]}×{found[1]}",
                                    "one size", "Pass image_size=(height, width) to resize all pictures."))
        return True

    def _check_bad(self) -> None:
        """Raises `DataError` for too many bad files, of the whole set where these are a part: of a small part, one would be too many."""
        whole = self if self._whole is None else self._whole
        while whole._whole is not None:
            whole = whole._whole
        if len(whole._bad) > MAX_BAD_SHARE * len(whole.files):
            raise DataError(explain(self.title, f"more than {MAX_BAD_SHARE:.0%} bad files", "pictures that can be read",
                                    f"Mend or remove them. {whole._bad_text()}"))

    def _check_classes(self, missed: Rows) -> None:
        """Raises `DataError` if one of these pictures, which are bad, was the last hope of its class."""
        if self.labels is None or self.labels.ndim > 1:
            return
        for label in np.unique(self.labels[missed]):
            if all(self.files[i] in self._bad for i in np.flatnonzero(self.labels == label)):
                raise DataError(explain(self.title, f"only bad files in the class {self.class_names[label]!r}",
                                        "at least one picture that can be read", self._bad_text()))

    def _bad_text(self, most: int = 10) -> str:
        listed = "; ".join(f"{bad.path}: {bad.reason}" for bad in self.bad[:most])
        more = f"; and {len(self._bad) - most} more" if len(self._bad) > most else ""
        return f"{len(self._bad)} of {len(self.files)} files left out: {listed}{more}"
