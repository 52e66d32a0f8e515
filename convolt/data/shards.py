"""Tar shards in the way of WebDataset: `KEY.jpg` and `KEY.cls` one behind the other.

Shards on a disk are indexed once, by their headers alone, and are then pictures as any others, in any order. What is too large for a
disk is streamed through the `webdataset` library (see `stream.py`).
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np

from convolt.data.archives import MAX_MEMBERS
from convolt.data.folder import MAX_FILE_BYTES
from convolt.data.index import EXTENSIONS
from convolt.data.label_modes import LabelMode
from convolt.data.pictures import Pictures
from convolt.errors import ArgumentError, DataError, explain

MAX_LABEL_BYTES = 2**20
MAX_SHARDS = 100_000
_BRACES = re.compile(r"\{([^{}]*)\}")


def expand(pattern: str) -> list[str]:
    """Returns the names that a pattern with braces stands for: "a-{08..10}.tar" → a-08.tar, a-09.tar, a-10.tar.

    Raises:
        ArgumentError: the braces hold neither a range nor alternatives, or stand for too many names.
    """
    parts = _BRACES.split(pattern)
    choices: list[list[str]] = []
    for place, part in enumerate(parts):
        if place % 2 == 0:
            choices.append([part])
        elif match := re.fullmatch(r"(\d+)\.\.(\d+)", part):
            first, last = int(match[1]), int(match[2])
            if not first <= last < first + MAX_SHARDS:
                raise ArgumentError(explain("shards", repr(pattern), f"a range that rises, of at most {MAX_SHARDS:,}"))
            choices.append([str(n).zfill(len(match[1])) for n in range(first, last + 1)])
        elif "," in part:
            choices.append(part.split(","))
        else:
            raise ArgumentError(explain("shards", repr(pattern), "braces around a range or alternatives", "Write shards-{000..009}.tar."))
    if np.prod([len(choice) for choice in choices]) > MAX_SHARDS:
        raise ArgumentError(explain("shards", repr(pattern), f"at most {MAX_SHARDS:,} names"))
    return ["".join(names) for names in product(*choices)]


def from_tar(shards: str | Path | Sequence[str | Path], *, class_names: Sequence[str] | None = None,
             image_size: tuple[int, int] | None = None, color_mode: str = "rgb", interpolation: str = "bilinear", fit: str = "stretch",
             workers: int | None = None, label_mode: LabelMode = "int") -> Pictures:
    """Returns the pictures of uncompressed tar shards on this disk.

    Args:
        shards: a path, several, or a pattern such as "shards-{000..009}.tar". In each, `KEY.jpg` (or .png, …) is a picture and
            `KEY.cls` its label (a whole number, or several with spaces between); `KEY.json` with "label" works as well.
        class_names: name of each label; None: the numbers.
        image_size, color_mode, interpolation, fit, workers: see `ImageFolder`.
        label_mode: the form in which `fit` gets the labels; see `ImageFolder`.

    Raises:
        ArgumentError: the pattern, `class_names` or `label_mode` cannot be used.
        DataError: a shard is missing, compressed, damaged, or holds links; a picture has no label while others do; a name occurs twice.
    """
    paths = [Path(name).expanduser() for given in ([shards] if isinstance(shards, (str, Path)) else shards) for name in expand(str(given))]
    files: list[str] = []
    places: list[tuple[int, int, int]] = []
    found: list[tuple[int, ...] | None] = []
    for number, path in enumerate(paths):
        for name, offset, size, label in _index(path):
            files.append(f"{path.name}/{name}")
            places.append((number, offset, size))
            found.append(label)
    if not files:
        raise DataError(explain(f"shards {shards}", "no pictures", f"members ending in {', '.join(EXTENSIONS)}"))
    labels, names = _labels(files, found, class_names)
    pictures = TarPictures(f"shards {shards}", paths, files, np.asarray(places, np.int64), labels, names, image_size, color_mode,
                           interpolation, fit, workers)
    pictures.named, pictures.label_mode = class_names is not None, label_mode
    return pictures


Entry = tuple[str, int, int, tuple[int, ...] | None]


def _index(path: Path) -> list[Entry]:
    """Returns (name, offset, bytes, label) of each picture of a shard, in its order."""
    if not path.is_file():
        raise DataError(explain(str(path), "no such file", "a tar shard"))
    pictures: dict[str, Entry] = {}
    labels: dict[str, tuple[int, ...]] = {}
    end = 0
    try:
        with tarfile.open(path, "r:") as archive:
            for count, member in enumerate(archive):
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header that it has met
                if count >= MAX_MEMBERS:
                    raise DataError(explain(str(path), f"more than {MAX_MEMBERS:,} members", "fewer"))
                _take(path, archive, member, pictures, labels)
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        with open(path, "rb") as file:  # tarfile takes a file that ends within a header for a whole one
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise DataError(explain(str(path), f"an end after {end:,} bytes without its mark", "a whole shard", "Fetch it again."))
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(explain(str(path), f"a file that cannot be read ({type(error).__name__}: {error})", "a whole, uncompressed tar",
                                "Unpack a compressed shard, or fetch a damaged one again.")) from error
    return [(name, offset, size, labels.get(key)) for key, (name, offset, size, _) in pictures.items()]


def _take(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo, pictures: dict[str, Entry],
          labels: dict[str, tuple[int, ...]]) -> None:
    folder, _, base = member.name.rpartition("/")
    stem, _, extension = base.partition(".")
    key, ending = f"{folder}/{stem}" if folder else stem, f".{extension.lower()}"
    is_picture, is_label = ending in EXTENSIONS, ending in (".cls", ".json")
    if not (is_picture or is_label) or member.isdir():
        return
    thing = f"{path}: {member.name}"
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        raise DataError(explain(thing, "a link, device or sparse file", "a plain file"))
    if member.size > (MAX_FILE_BYTES if is_picture else MAX_LABEL_BYTES):
        raise DataError(explain(thing, f"{member.size:,} bytes", "less"))
    if is_picture:
        if member.offset_data + member.size > path.stat().st_size:
            raise DataError(explain(thing, "a member that the file ends in", "a whole shard", "Fetch it again."))
        if key in pictures:
            raise DataError(explain(thing, "a second picture of this key", "one picture for each key"))
        pictures[key] = (member.name, member.offset_data, member.size, None)
        return
    file = archive.extractfile(member)
    label = label_of(thing, file.read() if file else b"", ending)
    if label is not None:
        labels[key] = label


def label_of(thing: str, content: bytes, ending: str) -> tuple[int, ...] | None:
    """Returns the labels in a `.cls` or `.json` member; None for a JSON member without any.

    Raises:
        DataError: they are no whole numbers from 0.
    """
    try:
        if ending == ".json":
            values = json.loads(content)
            named = values if isinstance(values, dict) else {}
            value = next((named[name] for name in ("label", "labels", "cls") if name in named), None)
            if value is None:
                return None
            numbers = value if isinstance(value, list) else [value]
        else:
            numbers = [int(part) for part in content.decode("ascii").split()]
        if not all(type(n) is int and 0 <= n < 2**31 for n in numbers) or (ending == ".cls" and not numbers):
            raise ValueError(f"{content[:40]!r}")
    except (ValueError, RecursionError) as error:
        raise DataError(explain(thing, f"no label ({error})", "a whole number from 0, or several with spaces between")) from error
    return tuple(numbers)


def _labels(files: list[str], found: list[tuple[int, ...] | None],
            class_names: Sequence[str] | None) -> tuple[np.ndarray | None, list[str]]:
    given = [label for label in found if label is not None]
    if not given:
        return None, list(class_names or [])
    if len(given) < len(found):
        raise DataError(explain(files[found.index(None)], "a picture without a label", "KEY.cls beside each KEY.jpg, or beside none"))
    highest = max((n for label in given for n in label), default=0)
    names = list(class_names) if class_names is not None else [str(n) for n in range(highest + 1)]
    if highest >= len(names):
        raise ArgumentError(explain("class_names", f"{len(names)} names", f"{highest + 1}: the highest label is {highest}"))
    if all(len(label) == 1 for label in given):
        return np.asarray([label[0] for label in given], np.int64), names
    several = np.zeros((len(given), len(names)), np.float32)
    for row, label in enumerate(given):
        several[row, list(label)] = 1
    return several, names


class TarPictures(Pictures):
    """Pictures inside tar shards; see `from_tar`."""

    def __init__(self, title: str, shards: list[Path], files: list[str], places: np.ndarray, labels: np.ndarray | None,
                 class_names: list[str], image_size: tuple[int, int] | None, color_mode: str, interpolation: str, fit: str,
                 workers: int | None) -> None:
        super().__init__(title, files, labels, class_names, image_size, color_mode, interpolation, fit, workers)
        self._shards, self._places = shards, places

    def content(self, index: int) -> bytes:
        """Returns the member's bytes."""
        shard, offset, size = (int(n) for n in self._places[self._rows[index]])
        with open(self._shards[shard], "rb", buffering=0) as file:
            file.seek(offset)
            content = file.read(size)
        if len(content) != size:
            raise DataError(explain(self.files[index], f"{len(content):,} bytes", f"{size:,}", "The shard was changed meanwhile."))
        return content
