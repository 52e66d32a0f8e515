"""One class per folder: pictures on the disk as arrays, with bad files skipped, counted and listed."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from convolt.data.decode import check_decoding
from convolt.data.index import FolderIndex, Labels, index_folder
from convolt.data.label_modes import LabelMode
from convolt.data.left_out import MAX_BAD_SHARE, BadFile, SkippedFilesWarning
from convolt.data.pictures import Pictures
from convolt.errors import DataError, explain

__all__ = ["MAX_BAD_SHARE", "MAX_FILE_BYTES", "BadFile", "ImageFolder", "PictureFiles", "SkippedFilesWarning", "check_same_classes",
           "read_file"]

MAX_FILE_BYTES = 256 * 2**20
PLAIN = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def read_file(path: str | Path) -> bytes:
    """Returns the content of a regular file of at most `MAX_FILE_BYTES`.

    Raises:
        DataError: it is a pipe or a device, which might never end, or it is too large.
        OSError: it cannot be read.
    """
    descriptor = os.open(path, PLAIN)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise DataError(explain(str(path), "a pipe, device or folder", "a regular file"))
        if status.st_size > MAX_FILE_BYTES:
            raise DataError(explain(str(path), f"{status.st_size:,} bytes", f"at most {MAX_FILE_BYTES:,}"))
        parts = []
        left = MAX_FILE_BYTES + 1
        while left > 0 and (part := os.read(descriptor, min(left, status.st_size + 1))):
            parts.append(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)
    finally:
        os.close(descriptor)


class PictureFiles(Pictures):
    """Pictures in files below a folder; what `ImageFolder` and `from_csv` have in common.

    Args:
        index: the files, their labels and classes.
        title: for messages.
        image_size, color_mode, interpolation, fit, workers: see `ImageFolder`.

    Attributes:
        root: the folder.
        ignored: links that were not followed, and why.
        others_ignored: number of files that do not end like pictures.
    """

    def __init__(self, index: FolderIndex, title: str, image_size: tuple[int, int] | None = None, color_mode: str = "rgb",
                 interpolation: str = "bilinear", fit: str = "stretch", workers: int | None = None) -> None:
        super().__init__(title, index.files, index.labels, index.class_names, image_size, color_mode, interpolation, fit, workers)
        self.root, self.others_ignored = index.root, index.others_ignored
        self.ignored = tuple(sorted(index.ignored, key=lambda link: link.path))
        self._below = str(index.root) + os.sep

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.root)!r}, {len(self.files)} pictures, {len(self.class_names)} classes)"

    def content(self, index: int) -> bytes:
        """Returns the content of the file."""
        return read_file(self._below + self.files[index])

    def root_text(self) -> str:
        """Returns the folder's path."""
        return str(self.root)


class ImageFolder(PictureFiles):
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
        label_mode: the form in which `fit` gets the labels: "int" for `sparse_categorical_crossentropy`, "categorical" (float32, `(N,
            classes)`) for `categorical_crossentropy`, "binary" (float32, `(N, 1)`) for `binary_crossentropy`, "multi_label" (float32,
            `(N, classes)`) for `binary_crossentropy` with an output for each class, or None for no labels.
        decoder: "cpu", which gives the same pixels everywhere, or "nvjpeg", which decodes JPEGs on an NVIDIA GPU and gives pixels that
            differ by a few levels.

    Attributes:
        files: paths relative to `path`, sorted.
        labels: int64 of shape (N,) whatever the `label_mode`, or None.
        class_names: name of each label.
        bad: the files that were met and left out so far, with the reason.
        ignored: links that were not followed, and why; they are listed with `bad` where a run is kept, and count as no bad files.
        others_ignored: number of files that do not end like pictures.

    Raises:
        ArgumentError: an argument is out of range or unknown.
        DataError: no such folder, no pictures, or a class without pictures.
        DeviceError: the GPU or the library of the decoder is missing.

    Keras counterpart: `keras.utils.image_dataset_from_directory`; PyTorch's: `torchvision.datasets.ImageFolder`.
    """

    def __init__(self, path: str | Path, image_size: tuple[int, int] | None = None, color_mode: str = "rgb",
                 labels: Labels = "inferred", class_names: Sequence[str] | None = None, interpolation: str = "bilinear",
                 fit: str = "stretch", follow_links: bool = False, workers: int | None = None,
                 label_mode: LabelMode = "int", decoder: str = "cpu") -> None:
        check_decoding(color_mode, image_size, interpolation, fit)
        index = index_folder(path, labels, class_names, follow_links)
        super().__init__(index, f"image folder {index.root}", image_size, color_mode, interpolation, fit, workers)
        self.label_mode, self.named, self.decoder = label_mode, isinstance(labels, str), decoder


def check_same_classes(train: Sequence[str], other: Sequence[str], where: str) -> None:
    """Raises `DataError` unless two folders have the same classes in the same order."""
    if list(train) == list(other):
        return
    missing = sorted(set(train) - set(other))
    extra = sorted(set(other) - set(train))
    raise DataError(explain(where, f"classes that differ from those of training (missing: {missing}, extra: {extra})",
                            f"the {len(train)} training classes {list(train)[:10]}", "Give both folders the same class folders."))
