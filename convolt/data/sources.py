"""What the command line calls DATA: a data set's name, a folder of class folders, a table, tar shards, a pack or an .npz file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from convolt.data import cifar, datasets
from convolt.data.left_out import BadFile
from convolt.data.npz import load_npz
from convolt.data.parts import Labelled, Samples, load_parts, mixed, pack_arrays, pack_beside, picture_parts
from convolt.errors import ArgumentError, DataError, did_you_mean, explain

DIGIT_NAMES = tuple("0123456789")

_NAMED: dict[str, tuple[Callable[[], tuple[datasets.Pair, datasets.Pair]], tuple[str, ...]]] = {
    "mnist": (lambda: datasets.load_mnist(), DIGIT_NAMES),
    "cifar10": (lambda: datasets.load_cifar10(), cifar.CLASSES),
    "digits": (lambda: datasets.load_digits(), DIGIT_NAMES),
}


@dataclass(frozen=True)
class Source:
    """A data set: in memory, or pictures that are not read yet.

    Attributes:
        x_train: (N, …); pictures are (N, H, W, C), or `Pictures` where they were left undecoded.
        y_train: (N,) for class labels.
        x_test, y_test: the held-out part (the validation part, if that is all there is); None without one.
        class_names: name of each label; empty if the labels are not classes.
        name: for headings and run folders.
        x_val, y_val: the validation part, where there is a test part besides.
        skipped: files and links that were left out, and why.
        note: how the pictures were read, where that is worth a word.
    """

    x_train: Samples
    y_train: np.ndarray
    x_test: Samples | None
    y_test: np.ndarray | None
    class_names: tuple[str, ...]
    name: str
    x_val: Samples | None = None
    y_val: np.ndarray | None = None
    skipped: tuple[BadFile, ...] = ()
    note: str = ""


def open_source(spec: str, *, image_size: tuple[int, int] | None = None, color_mode: str = "rgb",
                leave_beyond: int | None = None, decoder: str = "cpu") -> Source:
    """Loads DATA.

    Args:
        spec: `mnist`, `cifar10` or `digits`; a folder of class folders, or one with `train/` and `test/` or `val/`
            inside; a .csv table of paths and labels; tar shards, `shards-{000..009}.tar`; a .pack that `convolt data pack` wrote; an
            .npz file with x_train, y_train (and x_test, y_test, x_val, y_val), or x, y. A folder that is
            called like a data set is meant by `./mnist`.
        image_size: (height, width) for the pictures of a folder; None if they have one size.
        color_mode: "rgb", "rgba" or "grayscale" for the pictures of a folder.
        leave_beyond: bytes of decoded pictures beyond which they are left undecoded; see `load_parts`.
        decoder: "cpu" or "nvjpeg", see `ImageFolder`; for pictures in files.

    Raises:
        ArgumentError: `spec` is neither a known name nor an existing path.
        DataError: the data is missing or damaged, or training and held-out classes differ.
    """
    if spec in _NAMED:
        return _named(spec)
    path = Path(spec).expanduser()
    if path.is_dir():
        beside = pack_beside(path, image_size, color_mode)
        if beside:
            return _from_pack(beside, image_size, color_mode, leave_beyond)
        return _from_pictures(spec, image_size, color_mode, leave_beyond, decoder)
    if path.suffix.lower() == ".tar" or (path.suffix.lower() == ".csv" and path.is_file()):
        return _from_pictures(spec, image_size, color_mode, leave_beyond, decoder)
    if path.is_file():
        if path.suffix.lower() == ".pack":
            return _from_pack(path, image_size, None, leave_beyond)
        if path.suffix.lower() != ".npz":
            raise ArgumentError(explain("data", f"the file {spec}", "a folder of class folders, or a .csv, .tar, .pack or .npz file"))
        return _from_npz(path)
    if path.suffix or len(path.parts) > 1:
        raise DataError(explain("data", f"{spec}, which does not exist",
                                f"a folder of class folders, a .csv, .tar, .pack or .npz file, or one of {', '.join(_NAMED)}"))
    raise ArgumentError(explain("data", repr(spec), "a data set's name, a folder of class folders, or a .csv, .tar, .pack or .npz file",
                                did_you_mean(spec, _NAMED)))


def _named(name: str) -> Source:
    load, class_names = _NAMED[name]
    (x_train, y_train), (x_test, y_test) = load()

    def picture(x: np.ndarray) -> np.ndarray:
        return x[..., None] if x.ndim == 3 else x

    return Source(picture(x_train), y_train.reshape(-1), picture(x_test), y_test.reshape(-1), class_names, name)


def _from_npz(path: Path) -> Source:
    arrays = load_npz(path)
    names = arrays.pop("class_names", None)
    arrays = {key: _flat_labels(value) if key.startswith("y") else value for key, value in arrays.items()}
    labels = arrays["y_train"]
    if names is not None:
        class_names = tuple(str(name) for name in names.reshape(-1))
    elif labels.ndim == 1 and labels.dtype.kind in "iu":
        class_names = tuple(str(n) for n in range(int(labels.max()) + 1))
    else:
        class_names = tuple(str(n) for n in range(labels.shape[1])) if labels.ndim == 2 else ()
    for key in ("y_train", "y_test", "y_val"):
        if class_names and key in arrays:
            _check_labels(f"{path}: {key}", arrays[key], len(class_names))
    test, validation = (arrays.get("x_test"), arrays.get("y_test")), (arrays.get("x_val"), arrays.get("y_val"))
    return _source(path.stem, (arrays["x_train"], labels), test, validation, class_names)


def _flat_labels(y: np.ndarray) -> np.ndarray:
    return y[:, 0] if y.ndim == 2 and y.shape[1] == 1 and y.dtype.kind in "iu" else y


def _check_labels(thing: str, y: np.ndarray, classes: int) -> None:
    if y.ndim == 1 and y.dtype.kind in "iu" and (y.min() < 0 or y.max() >= classes):
        wrong = int(np.flatnonzero((y < 0) | (y >= classes))[0])
        raise DataError(explain(f"{thing}[{wrong}]", f"the label {y[wrong]}", f"labels from 0 to {classes - 1}, as in training"))


def _from_pictures(spec: str, image_size: tuple[int, int] | None, color_mode: str, leave_beyond: int | None, decoder: str) -> Source:
    parts = mixed(picture_parts(spec, image_size, color_mode, decoder))
    loaded = load_parts(spec, parts, leave_beyond)
    name = Path(spec).expanduser().resolve().name if Path(spec).expanduser().is_dir() else Path(spec).stem
    skipped = tuple(bad for part in parts.values() for bad in part.left_out)
    return _of_parts(name, loaded, tuple(parts["train"].class_names), skipped)


def _from_pack(path: Path, image_size: tuple[int, int] | None, color_mode: str | None, leave_beyond: int | None) -> Source:
    pack, loaded = pack_arrays(path, image_size, color_mode, leave_beyond)
    skipped = tuple(BadFile(*pair) for part in pack.parts.values() for pair in part.info.skipped)
    return _of_parts(path.stem, loaded, tuple(pack.class_names), skipped, f"from {path}")


def _of_parts(name: str, loaded: dict[str, Labelled], class_names: tuple[str, ...], skipped: tuple[BadFile, ...], note: str = "") -> Source:
    test, validation = (loaded.get(part, (None, None)) for part in ("test", "validation"))
    return replace(_source(name, loaded["train"], test, validation, class_names), skipped=skipped, note=note)


def _source(name: str, train: Labelled, test: tuple[Samples | None, np.ndarray | None],
            validation: tuple[Samples | None, np.ndarray | None], class_names: tuple[str, ...]) -> Source:
    if test[0] is None:
        test, validation = validation, (None, None)
    return Source(*train, *test, class_names, name, *validation)
