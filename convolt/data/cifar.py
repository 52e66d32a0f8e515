"""CIFAR-10 in the three forms that are read: the official binary batches, and JPEGs in an archive or in folders."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np

from convolt.data.archives import read_tar
from convolt.data.decode import decode_image
from convolt.data.folder import ImageFolder, check_same_classes
from convolt.data.split import fixed_permutation
from convolt.errors import DataError, explain

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE
PER_CLASS = {"train": 5000, "test": 1000}
Arrays = dict[str, np.ndarray]

_BATCH_NAMES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
_JPEG_NAME = re.compile(rf"(train|test)/({'|'.join(CLASSES)})/(\d{{4}})\.jpe?g")
_MEMBER_BYTES = 2**20
_TOTAL_BYTES = 512 * 2**20


def read_binary(path: Path, batch_records: int = 10_000) -> Arrays:
    """Reads `cifar-10-binary.tar.gz`: six files of records, each a label and three planes of 32×32.

    Args:
        path: the archive.
        batch_records: records per file.

    Raises:
        DataError: the archive is damaged, a file is missing or of another size, or a label is above 9.
    """
    names = {f"cifar-10-batches-bin/{name}" for name in _BATCH_NAMES}
    batch_bytes = batch_records * RECORD
    found = dict(read_tar(path, names.__contains__, member_bytes=batch_bytes, total_bytes=_TOTAL_BYTES))
    for name in sorted(names):
        if len(found.get(name, b"")) != batch_bytes:
            raise DataError(explain(f"{path}: {name}", f"{len(found.get(name, b'')):,} bytes", f"{batch_bytes:,}",
                                    "Fetch the archive again."))
    records = np.frombuffer(b"".join(found[f"cifar-10-batches-bin/{name}"] for name in _BATCH_NAMES), np.uint8)
    records = records.reshape(-1, RECORD)
    y = records[:, :1].copy()
    if y.max() > 9:
        raise DataError(explain(str(path), f"the label {y.max()}", "labels from 0 to 9", "Fetch the archive again."))
    x = np.ascontiguousarray(records[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
    split = 5 * batch_records
    return {"x_train": x[:split], "y_train": y[:split], "x_test": x[split:], "y_test": y[split:]}


def read_jpeg_archive(path: Path, per_class: dict[str, int] | None = None) -> Arrays:
    """Reads `cifar10-jpeg.tar.xz` with members `train|test/CLASS/NNNN.jpg`, numbered from 0000 in each class.

    Args:
        path: the archive.
        per_class: pictures per class in each part.

    Raises:
        DataError: the archive is damaged or hostile, or a picture is missing, superfluous, damaged or not 32×32.
    """
    per_class = per_class or PER_CLASS
    x = {part: np.empty((10, count, SIDE, SIDE, 3), np.uint8) for part, count in per_class.items()}
    filled = {part: np.zeros((10, count), bool) for part, count in per_class.items()}
    wanted = _JPEG_NAME.fullmatch
    for name, content in read_tar(path, lambda n: wanted(n) is not None, member_bytes=_MEMBER_BYTES, total_bytes=_TOTAL_BYTES):
        part, class_name, digits = _JPEG_NAME.fullmatch(name).groups()  # type: ignore[union-attr]  # it was wanted
        label, number = CLASSES.index(class_name), int(digits)
        if number >= per_class[part]:
            raise DataError(explain(f"{path}: {name}", f"the number {number}", f"numbers below {per_class[part]}"))
        x[part][label, number] = _decode(f"{path}: {name}", content)
        filled[part][label, number] = True
    for part, there in filled.items():
        if not there.all():
            label, number = np.argwhere(~there)[0]
            raise DataError(explain(str(path), f"{int(there.sum()):,} of {there.size:,} pictures of {part} (the first missing is "
                                    f"{part}/{CLASSES[label]}/{number:04d}.jpg)", "all of them", "Fetch the archive again."))
    arrays: Arrays = {}
    for part, count in per_class.items():
        labels = np.repeat(np.arange(10, dtype=np.uint8), count)
        arrays |= _mixed(part, x[part].reshape(-1, SIDE, SIDE, 3), labels)
    return arrays


def _decode(thing: str, content: bytes) -> np.ndarray:
    try:
        picture = decode_image(content, "rgb")
    except DataError as error:
        raise DataError(f"{thing}: {error}") from error
    if picture.shape != (SIDE, SIDE, 3):
        raise DataError(explain(thing, f"{picture.shape[0]}×{picture.shape[1]} pixels", f"{SIDE}×{SIDE}"))
    return picture


def read_jpeg_folder(path: Path) -> Arrays:
    """Reads a folder with `train/CLASS/*.jpg` and `test/CLASS/*.jpg`.

    Raises:
        DataError: a part or a class is missing or has another name, or pictures are not 32×32.
    """
    arrays: Arrays = {}
    for part in ("train", "test"):
        folder = ImageFolder(path / part)
        check_same_classes(CLASSES, folder.class_names, f"CIFAR-10 folder {path / part}")
        x, y = folder.load()
        if x.shape[1:] != (SIDE, SIDE, 3) or y is None:
            raise DataError(explain(f"CIFAR-10 folder {path / part}", f"{x.shape[1]}×{x.shape[2]} pixels", f"{SIDE}×{SIDE}"))
        arrays |= _mixed(part, x, y.astype(np.uint8))
    return arrays


def _mixed(part: str, x: np.ndarray, y: np.ndarray) -> Arrays:
    """Mixes the classes, as in the official files; a `validation_split` from the end would hold trucks alone."""
    order = fixed_permutation(len(y))
    return {f"x_{part}": x[order], f"y_{part}": y[order][:, None]}


def file_key(path: Path) -> str:
    """Returns a name for the cache from a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def folder_key(path: Path) -> str:
    """Returns a name for the cache from the names, sizes and times of a folder's pictures; their content is not read."""
    digest = hashlib.sha256(str(path.resolve()).encode())
    for part in ("train", "test"):
        for name in ImageFolder(path / part).files:
            status = (path / part / name).stat()
            digest.update(f"{part}/{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]
