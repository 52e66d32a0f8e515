"""The file format of packs: where each part lies, what is checked before a byte of it is used.

    64 bytes           magic, version, length of the header, SHA-256 of the header
    from 4096 on       for each part, each section on a multiple of 64: data, offsets (encoded pictures only), CRC-32s, labels
    at the end         the header, JSON

The positions follow from the counts in the header, so that no section can overlap another or lie outside, and the length of the file
must be what comes out. Integers are little-endian.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from convolt.errors import DataError, explain

MAGIC = b"CVLTPACK"
VERSION = 1
PREFIX = struct.Struct("<8sIIQ32s8x")
FIRST = 4096
ALIGN = 64
MAX_HEADER = 256 * 2**20
MAX_PARTS = 8
MAX_COUNT = 2**40
PIXELS, ENCODED = "pixels", "encoded"
LABELS = {"none": 0, "classes": 8, "several": 4}
"""Kinds of labels → bytes of one number: none, an int64 class, or a float32 for each class."""


@dataclass
class PartInfo:
    """One part of a pack.

    Attributes:
        name: "train", "test" or "validation".
        kind: "pixels" (uint8 of one shape) or "encoded" (files of pictures).
        count: number of pictures.
        shape: (H, W, C) of decoded pictures; () for encoded ones.
        bytes: of the data section.
        labels: "none", "classes" or "several".
        files: a name for each picture.
        skipped: (path, reason) of the files that were left out.
        source: the folder that the pictures came from; "" for none.
        state: digest of the names, sizes and times of the source's files.
    """

    name: str
    kind: str
    count: int
    shape: tuple[int, ...]
    bytes: int
    labels: str
    files: list[str]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    source: str = ""
    state: str = ""

    def sections(self, classes: int) -> dict[str, int]:
        """Returns the sections of the part with their bytes, in their order."""
        offsets = 8 * (self.count + 1) if self.kind == ENCODED else 0
        per_picture = classes if self.labels == "several" else 1
        return {"data": self.bytes, "offsets": offsets, "checksums": 4 * self.count,
                "labels": LABELS[self.labels] * self.count * per_picture}


@dataclass
class Header:
    """What a pack holds: its parts, the names of the classes, and how pictures were (or are to be) decoded."""

    parts: list[PartInfo]
    class_names: list[str]
    decoding: dict[str, Any]

    def places(self) -> tuple[list[dict[str, int]], int]:
        """Returns where each section of each part begins, and where the last one ends."""
        at = FIRST
        found = []
        for part in self.parts:
            places = {}
            for name, size in part.sections(len(self.class_names)).items():
                places[name] = at
                at = aligned(at + size)
            found.append(places)
        return found, at


def aligned(position: int) -> int:
    """Returns the next place where a section may begin."""
    return -(-position // ALIGN) * ALIGN


def write_header(file: BinaryIO, header: Header) -> None:
    """Writes the header behind the sections, and the first bytes of the file."""
    body = json.dumps(asdict(header), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    if len(body) > MAX_HEADER:
        raise DataError(explain("pack", f"{len(body):,} bytes of names", f"at most {MAX_HEADER:,}", "Pack parts of the folder."))
    file.seek(header.places()[1])
    file.write(body)
    file.seek(0)
    file.write(PREFIX.pack(MAGIC, VERSION, 0, len(body), hashlib.sha256(body).digest()))


def read_header(path: Path, file: BinaryIO) -> Header:
    """Reads and checks what a pack says of itself.

    Raises:
        DataError: it is no pack, of a newer version, cut off, damaged, or contradicts itself.
    """
    size = path.stat().st_size
    start = file.read(PREFIX.size)
    if len(start) < PREFIX.size or not start.startswith(MAGIC):
        raise DataError(explain(str(path), "a file that is no pack", "a file that `convolt data pack` wrote"))
    _, version, _, length, digest = PREFIX.unpack(start)
    if version != VERSION:
        raise DataError(explain(str(path), f"a pack of version {version}", f"version {VERSION}", "Pack the folder anew."))
    if length > min(MAX_HEADER, size - PREFIX.size):
        raise _damaged(path, f"{size:,} bytes, less than its header takes")
    file.seek(size - length)
    body = file.read(length)
    if hashlib.sha256(body).digest() != digest:
        raise _damaged(path, "a header with another checksum")
    try:
        header = _checked(json.loads(body))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(path, f"a header that cannot be used ({type(error).__name__}: {error})") from error
    end = header.places()[1]
    if end + length != size:
        raise _damaged(path, f"{size:,} bytes where {end + length:,} are announced")
    return header


def _damaged(path: Path, got: str) -> DataError:
    return DataError(explain(str(path), got, "a whole pack", "Pack the folder anew."))


def _checked(values: Any) -> Header:
    """Returns the header that JSON values mean; anything unexpected is a `ValueError` or `TypeError`."""
    names, decoding = values["class_names"], values["decoding"]
    _need(_are_texts(names) and isinstance(decoding, Mapping), "class names or decoding")
    _need(isinstance(values["parts"], list) and 1 <= len(values["parts"]) <= MAX_PARTS, "number of parts")
    parts = [_checked_part(part, len(names)) for part in values["parts"]]
    _need(len({part.name for part in parts}) == len(parts), "names of parts")
    return Header(parts, list(names), dict(decoding))


def _checked_part(values: Any, classes: int) -> PartInfo:
    part = PartInfo(**values)
    part.shape = tuple(part.shape)
    _need(part.kind in (PIXELS, ENCODED) and part.labels in LABELS, "kind")
    numbers = [part.count, part.bytes, *part.shape]
    _need(all(type(n) is int and 0 <= n < MAX_COUNT for n in numbers) and part.count > 0, "numbers")
    _need(_are_texts(part.files) and len(part.files) == part.count, "names of files")
    _need(_are_texts([part.name, part.source, part.state]), "texts")
    _need(isinstance(part.skipped, list) and all(_are_texts(pair) and len(pair) == 2 for pair in part.skipped), "skipped files")
    part.skipped = [(path, reason) for path, reason in part.skipped]
    if part.kind == PIXELS:
        _need(len(part.shape) == 3 and part.shape[2] in (1, 3, 4) and min(part.shape) > 0, "shape")
        _need(part.bytes == part.count * math.prod(part.shape), "bytes")
    _need(part.labels == "none" or classes > 0, "labels without classes")
    return part


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _need(right: bool, what: str) -> None:
    if not right:
        raise ValueError(what)
