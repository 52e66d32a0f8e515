"""MNIST, CIFAR-10 and handwritten digits as Keras's tuples `(x_train, y_train), (x_test, y_test)`.

Each is looked for in the folder `CONVOLT_DATA`, then in the cache, then downloaded and checked by its SHA-256.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np

from convolt.data import cifar
from convolt.data.download import Remote, fetch
from convolt.data.files import cached_arrays, find, search_folders
from convolt.data.npz import read_npz
from convolt.data.split import stratified_split
from convolt.errors import DataError, MissingPackageError, explain

Pair = tuple[np.ndarray, np.ndarray]

MNIST = Remote("mnist.npz", "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
               "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1", 64 * 2**20)
CIFAR10 = Remote("cifar-10-binary.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                 "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd", 256 * 2**20)
CIFAR10_JPEG = "cifar10-jpeg.tar.xz"
CIFAR10_FOLDERS = ("cifar10", "cifar10-jpeg")
CIFAR10_PYTHON = "cifar-10-python.tar.gz"

DECODED_VERSION = 1
"""Raised when decoding changes, so that what an older version left in the cache is not used."""

_MNIST_SHAPES = {"x_train": (60000, 28, 28), "y_train": (60000,), "x_test": (10000, 28, 28), "y_test": (10000,)}
_CIFAR_SHAPES = {"x_train": (50000, 32, 32, 3), "y_train": (50000, 1), "x_test": (10000, 32, 32, 3), "y_test": (10000, 1)}


def load_mnist(path: str | Path = "mnist.npz") -> tuple[Pair, Pair]:
    """Loads MNIST: 28×28 grey pictures of handwritten digits (LeCun et al. 1998).

    Args:
        path: the file's name in `CONVOLT_DATA` or in the cache, or the path of a copy.

    Returns:
        `(x_train, y_train), (x_test, y_test)`: uint8 of shapes (60000, 28, 28), (60000,), (10000, 28, 28), (10000,);
        pixels 0 … 255, labels 0 … 9.

    Raises:
        DataError: there is no copy and none can be downloaded, or the file is damaged or another.

    Keras counterpart: `keras.datasets.mnist.load_data`.
    """
    own = Path(path).expanduser()
    if own.is_absolute() or len(own.parts) > 1:
        file = own
    else:
        file = find(own.name) or fetch(MNIST)
    arrays = read_npz(file, tuple(_MNIST_SHAPES), max_bytes=MNIST.max_bytes)
    return _keras_tuples(file, arrays, _MNIST_SHAPES)


def load_cifar10() -> tuple[Pair, Pair]:
    """Loads CIFAR-10: 32×32 colour pictures of ten classes (Krizhevsky 2009).

    Looked for as the official `cifar-10-binary.tar.gz`, as `cifar10-jpeg.tar.xz`, and as a folder `cifar10` with
    `train|test/CLASS/NNNN.jpg`. JPEGs are decoded once and kept in the cache; their pixels differ slightly from the
    official ones, and their order is mixed in a fixed way. The official Python version is not read: it holds pickles,
    which can run any code.

    Returns:
        `(x_train, y_train), (x_test, y_test)`: uint8 of shapes (50000, 32, 32, 3), (50000, 1), (10000, 32, 32, 3),
        (10000, 1); pixels 0 … 255, labels 0 … 9 in the order of `convolt.data.cifar.CLASSES`.

    Raises:
        DataError: there is no copy and none can be downloaded, or it is damaged.

    Keras counterpart: `keras.datasets.cifar10.load_data`.
    """
    for folder in search_folders():
        if (path := folder / CIFAR10.name).is_file():
            return _keras_tuples(path, cifar.read_binary(path), _CIFAR_SHAPES)
        if (path := folder / CIFAR10_JPEG).is_file():
            return _keras_tuples(path, _decoded(path, cifar.file_key, cifar.read_jpeg_archive), _CIFAR_SHAPES)
        for name in CIFAR10_FOLDERS:
            if (path := folder / name).is_dir():
                return _keras_tuples(path, _decoded(path, cifar.folder_key, cifar.read_jpeg_folder), None)
    try:
        path = fetch(CIFAR10)
    except DataError as error:
        if (python := find(CIFAR10_PYTHON)) is None:
            raise
        refused = f"{python} was found, but holds Python pickles, which can run any code and are not read."
        raise DataError(f"{error} {refused}") from error
    return _keras_tuples(path, cifar.read_binary(path), _CIFAR_SHAPES)


def _decoded(path: Path, key: Callable[[Path], str], read: Callable[[Path], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return cached_arrays(f"cifar10-{DECODED_VERSION}-{key(path)}", lambda: read(path))


def load_digits(test_fraction: float = 0.2, seed: int = 0) -> tuple[Pair, Pair]:
    """Loads scikit-learn's 1,797 handwritten digits of 8×8 pixels; nothing is downloaded.

    Args:
        test_fraction: share of the test set; each class is split alike.
        seed: decides the split; the same seed gives the same split everywhere.

    Returns:
        `(x_train, y_train), (x_test, y_test)`: x uint8 (N, 8, 8), scaled from 0 … 16 to 0 … 255; y uint8 (N,).

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    try:
        rows = _digits()
    except ImportError as error:
        raise MissingPackageError(explain("data set digits", "no scikit-learn", "the package scikit-learn",
                                          "Install it: pip install 'convolt[demo]' (or pip install scikit-learn).")) from error
    x = np.rint(rows[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    y = rows[:, 64].astype(np.uint8)
    train, test = stratified_split(y, test_fraction, seed)
    return (x[train], y[train]), (x[test], y[test])


def _digits() -> np.ndarray:
    """Returns (1797, 65) numbers: 64 pixels and the label.

    They are read from scikit-learn's file where it lies in its package as ever: to import scikit-learn takes seconds.
    """
    package = importlib.util.find_spec("sklearn")
    for place in (package.submodule_search_locations or ()) if package else ():
        if (file := Path(place, "datasets", "data", "digits.csv.gz")).is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits as load

    return np.column_stack(load(return_X_y=True))


def _keras_tuples(path: Path, arrays: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]] | None) -> tuple[Pair, Pair]:
    for key, shape in (shapes or {}).items():
        array = arrays.get(key)
        if array is None or array.shape != shape or array.dtype != np.uint8:
            got = "nothing" if array is None else f"{array.dtype} of shape {array.shape}"
            raise DataError(explain(f"{path}: {key}", got, f"uint8 of shape {shape}",
                                    "Remove the file to have it fetched again."))
        if key.startswith("y") and array.max() > 9:
            raise DataError(explain(f"{path}: {key}", f"the label {array.max()}", "labels from 0 to 9"))
    return (arrays["x_train"], arrays["y_train"]), (arrays["x_test"], arrays["y_test"])
