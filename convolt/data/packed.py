"""The parts of a pack as `Pictures`: pixels in a mapped file, or encoded pictures; also in the place of the folder that was packed."""

from __future__ import annotations

import copy
import io
import zlib
from pathlib import Path
from typing import Self

import numpy as np

from convolt.data.decode import CHANNELS
from convolt.data.folder import PictureFiles
from convolt.data.left_out import BadFile
from convolt.data.pack_format import Header, PartInfo
from convolt.data.pictures import Pictures
from convolt.errors import ArgumentError, DataError, explain


class Packed(Pictures):
    """One part of a pack.

    Args:
        path: of the pack.
        info, header: what the pack says of the part and of all of it.
        labels: see `Pictures`.
        workers: threads that decode or copy.

    Raises:
        DataError: the header contradicts itself.

    Attributes:
        skipped: the files that were left out when the pack was written, with the reason; `bad` begins with them.
    """

    def __init__(self, path: Path, info: PartInfo, header: Header, labels: np.ndarray | None, workers: int | None) -> None:
        options = {name: str(value) for name in ("color_mode", "interpolation", "fit") if (value := header.decoding.get(name)) is not None}
        size = header.decoding.get("image_size")
        try:
            super().__init__(f"pack {path}: {info.name}", info.files, labels, header.class_names,
                             None if size is None else tuple(size), workers=workers, **options)
        except (ArgumentError, TypeError) as error:
            raise DataError(explain(str(path), f"a way of decoding that there is not ({error})", "a whole pack", "Pack the folder anew.")
                            ) from error
        self.origin = str(path)
        self.skipped = [BadFile(*pair) for pair in info.skipped]
        self._smaller = header.decoding.get("max_side")

    @property
    def bad(self) -> list[BadFile]:
        """The files that were left out when the pack was written, and those that were met and left out since, sorted by path."""
        found = {bad.path: bad for bad in self.skipped} | self._bad
        return [found[path] for path in sorted(found)]

    def fingerprint(self) -> str:
        """Returns what tells this set from others; of unchanged pictures the same as of the folder that was packed."""
        return super().fingerprint() + (f" at most {self._smaller}" if self._smaller else "")

    def holds(self, folder: PictureFiles) -> bool:
        """Whether these are the pictures of the folder, decoded as it decodes them; those that were left out count as well."""
        known = {*self.files, *(bad.path for bad in self.skipped)}
        return self._decodes_like(folder) and known.issuperset(folder.files)

    def _decodes_like(self, folder: PictureFiles) -> bool:
        return True

    def in_place_of(self, folder: PictureFiles) -> Self:
        """Returns the folder's pictures in their order, with its labels, read from the pack that `holds` them.

        What was left out keeps its place among the files, so that splits, orders and the keys of augmentation are those of the folder.
        """
        places = {name: row for row, name in enumerate(self.files)}
        left_out = {bad.path: bad for bad in self.skipped}
        found = copy.copy(self)
        found.title, found.files, found.labels, found.class_names = folder.title, folder.files, folder.labels, folder.class_names
        found.image_size, found.color_mode = folder.image_size, folder.color_mode
        found.interpolation, found.fit, found.workers = folder.interpolation, folder.fit, folder.workers
        found._label_mode, found.named, found.ignored = folder.label_mode, folder.named, folder.ignored
        found._rows = np.asarray([self._rows[places[name]] if name in places else -1 for name in folder.files])
        found._bad, found._whole, found._told, found.skipped = {}, folder, set(folder._told), []
        for index, name in enumerate(folder.files):
            if name in left_out:
                found._note(index, left_out[name])
        found._told.update(left_out)
        return found


class PackedPixels(Packed):
    """Decoded pictures, mapped from the pack.

    Args:
        pixels: uint8 (N, H, W, C).
    """

    def __init__(self, path: Path, info: PartInfo, header: Header, labels: np.ndarray | None, workers: int | None,
                 pixels: np.ndarray) -> None:
        super().__init__(path, info, header, labels, workers)
        size, channels = self.image_size or info.shape[:2], CHANNELS[self.color_mode]
        if (*size, channels) != info.shape:
            raise DataError(explain(str(path), f"pixels of shape {info.shape} decoded as {header.decoding}", "a whole pack",
                                    "Pack the folder anew."))
        self._pixels = pixels
        self._shape_of = (info.files[0], info.shape)

    def _decodes_like(self, folder: PictureFiles) -> bool:
        mine, others = ((p.image_size, p.color_mode, p.interpolation, p.fit) for p in (self, folder))
        return mine == others

    @property
    def mapped(self) -> bool:
        """Whether these are all pictures of the part in its order, so that `load` takes no memory.

        Not where files were left out: a set with bad files that is streamed trains otherwise than one in memory, and which of the two it
        is may not depend on whether there is a pack.
        """
        return not self._bad and np.array_equal(self._rows, np.arange(len(self._pixels)))

    def _good(self) -> np.ndarray:
        return np.flatnonzero([name not in self._bad for name in self.files])

    def load(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns (pixels, labels) of all that were not left out, mapped from the file where these are all in their order."""
        good = self._good()
        self._check_classes(np.setdiff1d(np.arange(len(self)), good))
        rows = self._rows[good]
        whole = np.array_equal(rows, np.arange(len(self._pixels)))
        return self._pixels if whole else self._pixels[rows], self.targets(good)

    def keep(self, room: int) -> None:
        """Keeps nothing: the system keeps what it has read of a mapped file, as far as there is room."""

    def content(self, index: int) -> bytes:
        """Returns the picture as a PNG."""
        from PIL import Image

        pixels = self._pixels[self._rows[index]]
        buffer = io.BytesIO()
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
        return buffer.getvalue()

    def _decode(self, index: int) -> np.ndarray | BadFile:
        known = self._bad.get(self.files[index])
        if known is not None:
            return known
        pixels: np.ndarray = self._pixels[self._rows[index]]
        return pixels


class PackedPictures(Packed):
    """Encoded pictures of a pack, decoded when they are needed.

    Args:
        data: the pictures one behind the other.
        offsets: where each begins, and where the last one ends.
        checksums: CRC-32 of each.
    """

    def __init__(self, path: Path, info: PartInfo, header: Header, labels: np.ndarray | None, workers: int | None, data: np.ndarray,
                 offsets: np.ndarray, checksums: np.ndarray) -> None:
        super().__init__(path, info, header, labels, workers)
        self._data, self._offsets, self._checksums = data, offsets, checksums

    def in_place_of(self, folder: PictureFiles) -> Self:
        """Does what that of all packs does; what decodes the folder's files decodes these."""
        found = super().in_place_of(folder)
        found._decoder = folder.decoder
        return found

    def content(self, index: int) -> bytes:
        """Returns the encoded picture, compared with its checksum."""
        row = self._rows[index]
        encoded = self._data[self._offsets[row] : self._offsets[row + 1]].tobytes()
        if zlib.crc32(encoded) != self._checksums[row]:
            raise DataError(explain(self.files[index], "bytes with another checksum", "those that were packed"))
        return encoded
