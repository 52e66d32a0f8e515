"""Reading packs: decoded pictures in a mapped file, which costs nothing to open twice, or encoded ones one behind the other."""

from __future__ import annotations

import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convolt.data.index import index_folder
from convolt.data.pack_format import ENCODED, PIXELS, Header, PartInfo, read_header
from convolt.data.packed import Packed, PackedPictures, PackedPixels
from convolt.data.pictures import PIECE, piece_of
from convolt.data.reader import ahead, default_workers
from convolt.errors import ConvoltWarning, DataError, explain


class StalePackWarning(ConvoltWarning):
    """The pictures that a pack was made from have changed since, or a pack beside its folder cannot be read."""


@dataclass(frozen=True)
class PackPart:
    """One part of a pack.

    Attributes:
        info: what the header says of it.
        pictures: uint8 (N, H, W, C), mapped from the file, or `Pictures` that are decoded when needed.
        labels: int64 (N,), float32 (N, classes), or None.
        as_pictures: the part as `Pictures`, pixels and all; what `fit` takes it for.
    """

    info: PartInfo
    pictures: np.ndarray | Packed
    labels: np.ndarray | None
    as_pictures: Packed


@dataclass(frozen=True)
class Pack:
    """An opened pack: its parts by name, and the names of the classes.

    `fit` takes its "train" part, `fit(validation_data=…)` its "validation" part or else its "test" part, `evaluate` its "test" part or
    else its "validation" part.
    """

    path: Path
    header: Header
    parts: dict[str, PackPart]

    @property
    def class_names(self) -> list[str]:
        """Name of each label."""
        return self.header.class_names

    def pictures_of(self, *names: str) -> Packed:
        """Returns the first of these parts that there is, as `Pictures`.

        Raises:
            DataError: there is none of them.
        """
        for name in names:
            if name in self.parts:
                return self.parts[name].as_pictures
        raise DataError(explain(f"pack {self.path}", f"the parts {list(self.parts)}", f"a part {' or '.join(map(repr, names))}",
                                "validation_split holds out a part of the pictures of training; pack.parts has each part."))

    def stale(self) -> str:
        """Returns what has changed in the folders that the pack was made from; "" if nothing has, or if they are not there."""
        for part in self.parts.values():
            if part.info.source and Path(part.info.source).is_dir() and folder_state(Path(part.info.source)) != part.info.state:
                return f"{part.info.source} has changed since {self.path} was packed"
        return ""


def open_pack(path: str | Path, verify: bool = True, workers: int | None = None) -> Pack:
    """Opens a pack that `convolt data pack` or `write_pack` wrote.

    Args:
        path: the file.
        verify: compare every picture with its checksum now, which reads the file once. Encoded pictures are compared when they are
            read, in any case.
        workers: threads that decode encoded pictures.

    Raises:
        DataError: it is no pack, cut off, damaged, or its labels and offsets contradict the header.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(explain(str(path), "no such file", "a pack"))
    with open(path, "rb") as file:
        header = read_header(path, file)
    whole: np.ndarray = np.memmap(path, np.uint8, "c")  # private: nothing that is written to it reaches the file
    parts = {}
    for info, places in zip(header.parts, header.places()[0], strict=True):
        sizes = info.sections(len(header.class_names))
        raw = {name: np.asarray(whole[places[name] : places[name] + sizes[name]]) for name in sizes}
        parts[info.name] = _part(path, info, header, raw, verify, workers)
    return Pack(path, header, parts)


def _part(path: Path, info: PartInfo, header: Header, raw: dict[str, np.ndarray], verify: bool, workers: int | None) -> PackPart:
    thing = f"{path}: {info.name}"
    checksums = raw["checksums"].view("<u4")
    labels = _labels(thing, info, raw["labels"], len(header.class_names))
    if info.kind == PIXELS:
        pixels = raw["data"].reshape(info.count, *info.shape)
        if verify:
            _verify(thing, pixels, checksums, info.files)
        return PackPart(info, pixels, labels, PackedPixels(path, info, header, labels, workers, pixels))
    offsets = raw["offsets"].view("<i8")
    if offsets[0] != 0 or offsets[-1] != info.bytes or (np.diff(offsets) < 0).any():
        raise DataError(explain(thing, "offsets that do not follow one another", "a whole pack", "Pack the folder anew."))
    pictures = PackedPictures(path, info, header, labels, workers, raw["data"], offsets, checksums)
    return PackPart(info, pictures, labels, pictures)


def _labels(thing: str, info: PartInfo, raw: np.ndarray, classes: int) -> np.ndarray | None:
    if info.labels == "none":
        return None
    if info.labels == "several":
        several = raw.view("<f4").reshape(info.count, classes).astype(np.float32)
        if not np.isin(several, (0, 1)).all():
            raise DataError(explain(thing, "labels besides 0 and 1", "zeros and ones", "Pack the folder anew."))
        return several
    labels = raw.view("<i8").astype(np.int64)
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(explain(thing, f"labels from {labels.min()} to {labels.max()}", f"labels from 0 to {classes - 1}",
                                "Pack the folder anew."))
    return labels


def _verify(thing: str, pixels: np.ndarray, checksums: np.ndarray, files: list[str]) -> None:
    """Compares all pictures with their checksums, large ones in several threads, and raises `DataError` for the first that differs."""
    piece = piece_of(pixels.shape[1:])

    def wrong(start: int) -> int | None:
        return next((n for n in range(start, min(start + piece, len(pixels))) if zlib.crc32(pixels[n]) != checksums[n]), None)

    workers = default_workers(None) if piece < PIECE else 1
    for number in ahead(wrong, range(0, len(pixels), piece), workers, 2 * workers):
        if number is not None:
            raise DataError(explain(f"{thing}: {files[number]}", "pixels with another checksum", "those that were packed",
                                    "The disk or a copy of the file is at fault: pack the folder anew."))


def folder_state(folder: Path) -> str:
    """Returns a digest of the names, sizes and times of the pictures in a folder; their content is not read."""
    digest = hashlib.sha256()
    for name in sorted(index_folder(folder, None).files):
        status = os.stat(folder / name)
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


__all__ = ["ENCODED", "PIXELS", "Pack", "PackPart", "Packed", "PackedPictures", "PackedPixels", "StalePackWarning", "folder_state",
           "open_pack"]
