"""Writing packs: beside the target, flushed, and renamed, with no more in memory than a few batches."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from convolt.data.decode import decode_image
from convolt.data.files import atomic_file
from convolt.data.folder import ImageFolder
from convolt.data.left_out import BadFile
from convolt.data.pack import folder_state
from convolt.data.pack_format import ENCODED, FIRST, PIXELS, Header, PartInfo, aligned, write_header
from convolt.data.pictures import Pictures
from convolt.errors import ArgumentError, DataError, explain

BATCH = 256
QUALITY = 90
"""Of JPEGs that are made smaller."""


def write_pack(path: str | Path, parts: Mapping[str, Pictures], *, encoded: bool = False, max_side: int | None = None) -> Header:
    """Writes pictures into one file, from which a training reads them without decoding.

    Args:
        path: of the file; what lies there is replaced when the new one is whole.
        parts: "train", and "test" and "validation" as far as there are such.
        encoded: keep the pictures' files as they are, decoded at each use: a tenth of the size, for sets that would not fit decoded.
        max_side: of encoded pictures, those with a longer side are made smaller, as JPEGs of quality 90.

    Raises:
        ArgumentError: no parts, or `max_side` without `encoded`.
        DataError: more than 1% of the files are bad, a class has only bad files, or sizes differ (of decoded pictures).
        OSError: the file cannot be written.
    """
    if not parts or not set(parts) <= {"train", "test", "validation"}:
        raise ArgumentError(explain("write_pack(parts)", list(parts), '"train", and if there are such "test" and "validation"'))
    if max_side is not None and (not encoded or isinstance(max_side, bool) or not isinstance(max_side, int) or max_side < 8):
        raise ArgumentError(explain("write_pack(max_side)", max_side, "a whole number from 8, with encoded=True"))
    first = next(iter(parts.values()))
    if not encoded and first.decoder != "cpu":
        raise ArgumentError(explain("write_pack(parts)", f"pictures with decoder={first.decoder!r}", 'decoder="cpu"',
                                    "A pack holds the pixels that every machine decodes."))
    size = None if first.image_size is None else list(first.image_size)
    decoding = {"image_size": size, "color_mode": first.color_mode, "interpolation": first.interpolation, "fit": first.fit,
                **({"max_side": max_side} if max_side is not None else {})}
    infos = []
    with atomic_file(Path(path).expanduser()) as file:
        file.seek(FIRST)
        for name, pictures in parts.items():
            infos.append(_write_part(file, name, pictures, _encoded(pictures, max_side) if encoded else _decoded(pictures)))
        header = Header(infos, list(first.class_names), decoding)
        write_header(file, header)
    return header


Piece = tuple[int, Any]
"""Number of a picture in its set, and what is written of it."""


def _decoded(pictures: Pictures) -> Iterator[Piece]:
    rows = np.arange(len(pictures))
    for x, kept in pictures.batches([rows[start : start + BATCH] for start in range(0, len(rows), BATCH)], BATCH):
        yield from zip(kept.tolist(), x, strict=True)


def _encoded(pictures: Pictures, max_side: int | None) -> Iterator[Piece]:
    """Yields each picture's file; those that cannot be decoded are left out, as of decoded pictures."""
    for index, name in enumerate(pictures.files):
        try:
            content = pictures.content(index)
            pixels = decode_image(content, pictures.color_mode)
        except (DataError, OSError) as error:
            pictures._note(index, BadFile(name, str(error)))
            pictures._check_bad()
            pictures._check_classes([index])
            continue
        yield index, content if max_side is None or max(pixels.shape[:2]) <= max_side else _smaller(content, pixels, max_side)


def _smaller(content: bytes, pixels: np.ndarray, max_side: int) -> bytes:
    from PIL import Image

    height, width = (max(1, round(n * max_side / max(pixels.shape[:2]))) for n in pixels.shape[:2])
    mode = {1: "grayscale", 4: "rgba"}.get(pixels.shape[2], "rgb")
    small = decode_image(content, mode, (height, width))
    image = Image.fromarray(small[:, :, 0] if mode == "grayscale" else small)
    buffer = io.BytesIO()
    if mode == "rgba":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _write_part(file: BinaryIO, name: str, pictures: Pictures, pieces: Iterator[Piece]) -> PartInfo:
    source, state = _source_of(pictures)  # before reading: what changes meanwhile makes the pack stale
    kept: list[int] = []
    checksums: list[int] = []
    offsets = [0]
    shape: tuple[int, ...] = ()
    for index, piece in pieces:
        data = piece if isinstance(piece, bytes) else piece.tobytes()
        shape = () if isinstance(piece, bytes) else piece.shape
        kept.append(index)
        checksums.append(zlib.crc32(data))
        offsets.append(offsets[-1] + len(data))
        file.write(data)
    if not kept:
        raise DataError(explain(pictures.title, "no picture that can be read", "at least one"))
    labels = None if pictures.labels is None else pictures.labels[kept]
    kind = PIXELS if shape else ENCODED
    sections = [np.asarray(offsets if kind == ENCODED else [], "<i8"), np.asarray(checksums, "<u4")]
    sections.append(np.empty(0, np.uint8) if labels is None else labels.astype("<i8" if labels.ndim == 1 else "<f4"))
    for section in sections:
        file.seek(aligned(file.tell()))
        file.write(section.tobytes())
    file.seek(aligned(file.tell()))
    return PartInfo(name, kind, len(kept), shape, offsets[-1], "none" if labels is None else "classes" if labels.ndim == 1 else "several",
                    [pictures.files[i] for i in kept], [(bad.path, bad.reason) for bad in pictures.bad], source, state)


def _source_of(pictures: Pictures) -> tuple[str, str]:
    """Returns the folder that pictures come from and its state, so that a change can be noticed; "" where it is none."""
    if not isinstance(pictures, ImageFolder):
        return "", ""
    return str(pictures.root.resolve()), folder_state(pictures.root)
