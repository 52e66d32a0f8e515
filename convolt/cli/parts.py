"""DATA as the verbs use it: a training part, a part to validate on, a part to test on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convolt.cli.options import ColorMode
from convolt.data.budget import data_memory
from convolt.data.parts import Samples
from convolt.data.pictures import Pictures
from convolt.data.sources import Source, open_source
from convolt.data.split import fixed_permutation, stratified_split
from convolt.errors import DataError, explain

DEFAULT_SHARE = 0.1
"""Held out of the training part where DATA has no test part."""


@dataclass(frozen=True)
class Part:
    """Samples and labels, and what they are called in sentences."""

    x: Samples
    y: np.ndarray
    name: str

    def __len__(self) -> int:
        return len(self.x)

    @property
    def dtype(self) -> str:
        """Type of the samples' values."""
        return "uint8" if isinstance(self.x, Pictures) else str(self.x.dtype)

    @property
    def given(self) -> tuple[Samples, np.ndarray | None]:
        """Samples and labels as `fit` takes them: pictures bring theirs."""
        return (self.x, None) if isinstance(self.x, Pictures) else (self.x, self.y)

    def in_memory(self) -> Part:
        """Returns the part decoded where it fits into memory, else as it is, to be streamed."""
        if not isinstance(self.x, Pictures) or self.x.nbytes > data_memory():
            return self
        x, y = self.x.load()
        assert y is not None, "DATA has labels"
        return Part(x, y, self.name)

    def readable(self) -> Part:
        """Returns the part without the files that were met and could not be read."""
        if not isinstance(self.x, Pictures) or not self.x.bad:
            return self
        bad = {file.path for file in self.x.bad}
        return self.subset(np.flatnonzero([name not in bad for name in self.x.files]), self.name)

    def subset(self, rows: np.ndarray, name: str) -> Part:
        """Returns some of the samples under another name."""
        return Part(self.x.subset(rows) if isinstance(self.x, Pictures) else self.x[rows], self.y[rows], name)


def read(x: Samples, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (the samples in these rows, the rows of those that can be read); no others are decoded."""
    return x.read(rows) if isinstance(x, Pictures) else (x[rows], rows)


@dataclass(frozen=True)
class Parts:
    """What a training needs.

    Attributes:
        train: learned from.
        validation: looked at after each epoch; None with `--validation-split 0` and no test part.
        test: what the result is measured on; the validation part where there is no other, else the training part.
    """

    train: Part
    validation: Part | None
    test: Part


def is_classification(source: Source) -> bool:
    """Whether labels are classes: numbers with names, or one-hot rows."""
    return bool(source.class_names) and (source.y_train.ndim == 1 or _is_one_hot(source.y_train))


def has_several_labels(source: Source) -> bool:
    """Whether a sample may have several of the classes, or none: rows of zeros and ones, not all of which have a single one."""
    y = source.y_train
    flags = y.ndim == 2 and y.shape[1] > 1 and bool(((y == 0) | (y == 1)).all())
    return bool(source.class_names) and flags and not _is_one_hot(y)


def _is_one_hot(y: np.ndarray) -> bool:
    return y.ndim == 2 and y.shape[1] > 1 and bool(((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all())


def class_numbers(y: np.ndarray) -> np.ndarray:
    """Returns class numbers (N,) from class numbers or one-hot rows."""
    return y.argmax(axis=1) if y.ndim == 2 else y


def label_sets(rows: Sequence[np.ndarray], class_names: Sequence[str]) -> tuple[list[np.ndarray], list[str]]:
    """Returns (a number for each row's set of labels, the names of these sets) of arrays (N, classes) of truth values.

    Args:
        rows: several such arrays; their numbers mean the same sets.
        class_names: of the columns.
    """
    sets, numbers = np.unique(np.concatenate(rows).astype(bool), axis=0, return_inverse=True)
    names = [", ".join(name for name, has in zip(class_names, row, strict=True) if has) or "none" for row in sets]
    return np.split(numbers.reshape(-1), np.cumsum([len(part) for part in rows])[:-1]), names


def sample_shape(source: Source) -> tuple[tuple[int, ...], int]:
    """Returns the shape of one sample and the number of classes (of outputs, where labels are no classes)."""
    y = source.y_train
    return tuple(int(n) for n in source.x_train.shape[1:]), len(source.class_names) or (y.shape[1] if y.ndim == 2 else 1)


def describe_shape(shape: tuple[int, ...]) -> str:
    """Returns the shape of a sample as words: "28×28×1"."""
    return "×".join(str(n) for n in shape)


def load(
    data: str, image_size: tuple[int, int] | None, color_mode: ColorMode, input_shape: tuple[int | None, ...] | None = None,
    leave_beyond: int | None = 0, decoder: str = "cpu",
) -> Source:
    """Loads DATA; pictures stay undecoded unless `leave_beyond` says otherwise.

    Args:
        data: what the user wrote.
        image_size, color_mode: for the pictures of a folder; where they are left open, they follow from `input_shape`.
        input_shape: (height, width, channels) of the model, where there is one already.
        leave_beyond: bytes of decoded pictures beyond which they are left undecoded; see `convolt.data.parts.load_parts`.
        decoder: "cpu" or "nvjpeg", for the pictures of files.
    """
    if input_shape is not None and len(input_shape) == 3:
        height, width, channels = input_shape
        if image_size is None and height is not None and width is not None:
            image_size = (height, width)
        if color_mode is ColorMode.AUTO:
            color_mode = {1: ColorMode.GRAYSCALE, 4: ColorMode.RGBA}.get(channels or 3, ColorMode.RGB)
    colours = "rgb" if color_mode is ColorMode.AUTO else color_mode.value
    return open_source(data, image_size=image_size, color_mode=colours, leave_beyond=leave_beyond, decoder=decoder)


def split(source: Source, share: float | None) -> Parts:
    """Decides what is trained on, validated on and tested on.

    Args:
        source: DATA.
        share: of the training part that is held out for validation; None: DATA's validation or test part, and if it has
            neither, a tenth of the training part.

    Raises:
        DataError: there are too few samples to hold some out.
    """
    train = Part(source.x_train, source.y_train, "the training set")
    test = None if source.x_test is None or source.y_test is None else Part(source.x_test, source.y_test, "the test set")
    validation = None if source.x_val is None or source.y_val is None else Part(source.x_val, source.y_val, "the validation set")
    if share is None and validation is None and test is None:
        share = DEFAULT_SHARE
    if share:
        train, validation = _hold_out(source, share)
    validation = validation or test
    return Parts(train, validation, test or validation or train)


def _hold_out(source: Source, share: float) -> tuple[Part, Part]:
    whole = Part(source.x_train, source.y_train, "")
    x, y = whole.x, whole.y
    if is_classification(source):
        first, second = stratified_split(class_numbers(y), share)
    else:
        cut = len(x) - max(1, round(len(x) * share))
        if cut < 1:
            raise DataError(explain("--validation-split", f"{share} of {len(x)} samples", "at least one sample on either side"))
        order = fixed_permutation(len(x))
        first, second = np.sort(order[:cut]), np.sort(order[cut:])
    return whole.subset(first, "the training set"), whole.subset(second, f"{share:.0%} held out of the training set")
