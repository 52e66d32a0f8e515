"""What lies in a folder of pictures: files, classes, labels; sorted, so that it is the same on every machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from convolt.data.left_out import BadFile
from convolt.errors import ArgumentError, DataError, did_you_mean, explain

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp")
"""Endings of files that are taken for pictures; what they hold is found from their content."""

Labels = Literal["inferred"] | Sequence[int] | None


@dataclass
class FolderIndex:
    """Pictures below `root`.

    Attributes:
        files: paths relative to `root`, with `/`, sorted.
        labels: int64 of shape (N,), or None.
        class_names: name of each label.
        ignored: links that lead outside `root`, to folders, in a circle or nowhere, relative to `root`, and which of these it is.
        others_ignored: files that do not end like a picture.
    """

    root: Path
    files: list[str] = field(default_factory=list)
    labels: np.ndarray | None = None
    class_names: list[str] = field(default_factory=list)
    ignored: list[BadFile] = field(default_factory=list)
    others_ignored: int = 0


def index_folder(path: str | Path, labels: Labels = "inferred", class_names: Sequence[str] | None = None,
                 follow_links: bool = False) -> FolderIndex:
    """Lists the pictures of a folder.

    Args:
        path: the folder. With `labels="inferred"` each folder in it is a class; pictures may lie deeper.
        labels: "inferred", None for none, or one whole number per picture in the order of the sorted paths.
        class_names: names of the class folders in the order of the labels; sorted names if None.
        follow_links: follow links that lead outside the folder, and links to folders.

    Raises:
        ArgumentError: `labels` or `class_names` do not fit.
        DataError: no such folder, no pictures, or a class without pictures.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(explain(f"image folder {path}", "a file" if root.exists() else "no such folder", "a folder of pictures"))
    index = FolderIndex(root)
    walk = _Walk(index, follow_links)
    if isinstance(labels, str):
        if labels != "inferred":
            raise ArgumentError(explain("labels", repr(labels), '"inferred", None or a sequence of whole numbers'))
        _index_classes(index, walk, class_names)
        return index
    if class_names is not None:
        raise ArgumentError(explain("class_names", list(class_names), 'None unless labels="inferred"'))
    index.files = sorted(walk.pictures(root))
    _check_any(index)
    if labels is not None:
        index.labels = _own_labels(labels, len(index.files))
        index.class_names = [str(n) for n in range(int(index.labels.max()) + 1)]
    return index


def _index_classes(index: FolderIndex, walk: _Walk, class_names: Sequence[str] | None) -> None:
    found = sorted(walk.subfolders(index.root))
    names = list(found if class_names is None else class_names)
    if class_names is not None and sorted(names) != found:
        unknown = [name for name in names if name not in found]
        hint = did_you_mean(unknown[0], found) if unknown and found else ""
        raise ArgumentError(explain("class_names", names, f"exactly the class folders {found}", hint))
    labels: list[int] = []
    for label, name in enumerate(names):
        files = sorted(walk.pictures(index.root / name))
        index.files += files
        labels += [label] * len(files)
    index.labels, index.class_names = np.asarray(labels, np.int64), names
    _check_any(index)
    counts = np.bincount(index.labels, minlength=len(names))
    if empty := [name for name, count in zip(names, counts, strict=True) if count == 0]:
        raise DataError(explain(f"image folder {index.root}", f"no pictures in the class {_some(empty)}",
                                "at least one picture per class", "Add pictures or remove the folder."))


def _check_any(index: FolderIndex) -> None:
    if index.files:
        return
    seen = f"no pictures ({index.others_ignored} other files, {len(index.ignored)} ignored links)"
    fix = "Put the pictures of each class into a folder of its own: FOLDER/CLASS/PICTURE."
    if index.ignored:
        fix += " Pass follow_links=True if the links are to be trusted."
    raise DataError(explain(f"image folder {index.root}", seen, f"files ending in {', '.join(EXTENSIONS)}", fix))


def _own_labels(labels: Sequence[int], count: int) -> np.ndarray:
    values = np.asarray(labels)
    if values.shape != (count,):
        raise ArgumentError(explain("labels", f"shape {values.shape}", f"one label for each of the {count} pictures"))
    if values.dtype.kind not in "iu" or values.min() < 0:
        raise ArgumentError(explain("labels", f"{values.dtype} from {values.min()}", "whole numbers from 0"))
    return values.astype(np.int64)


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(repr(name) for name in names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Returns what lies in a folder without hidden names; a folder that cannot be read is an error, for its share is unknown."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(explain(f"image folder {folder}", str(error), "a folder that can be read")) from error


class _Walk:
    """Goes through folders; decides about links and counts what it leaves out."""

    def __init__(self, index: FolderIndex, follow_links: bool) -> None:
        self.index, self.follow_links = index, follow_links
        self.real_root = Path(os.path.realpath(index.root))

    def subfolders(self, folder: Path) -> list[str]:
        """Returns the names of the class folders."""
        names = []
        for entry in _entries(folder):
            if entry.is_symlink() and not self._accepts(entry):
                self._ignore(entry)
            elif entry.is_dir():
                names.append(entry.name)
            else:
                self.index.others_ignored += 1
        return names

    def pictures(self, folder: Path) -> list[str]:
        """Returns the paths, relative to the root, of all pictures in and below a folder."""
        files: list[str] = []
        pending = [(folder, frozenset([os.path.realpath(folder)]))]
        while pending:
            here, above = pending.pop()
            for entry in _entries(here):
                if entry.is_symlink() and not self._accepts(entry):
                    self._ignore(entry)
                elif entry.is_dir():
                    real = os.path.realpath(entry.path)
                    if real in above:  # a link to a folder that it lies in
                        self._ignore(entry, "a link to a folder that it lies in")
                    else:
                        pending.append((Path(entry.path), above | {real}))
                elif entry.is_file() and entry.name.lower().endswith(EXTENSIONS):
                    files.append(Path(entry.path).relative_to(self.index.root).as_posix())
                else:
                    self.index.others_ignored += 1
        return files

    def _ignore(self, link: os.DirEntry[str], why: str = "") -> None:
        why = why or ("a link that leads nowhere or in a circle" if not os.path.exists(link.path) else
                      "a link out of the folder" if not Path(os.path.realpath(link.path)).is_relative_to(self.real_root) else
                      "a link to a folder")
        self.index.ignored.append(BadFile(Path(link.path).relative_to(self.index.root).as_posix(), why))

    def _accepts(self, link: os.DirEntry[str]) -> bool:
        """Whether a link is followed: to a picture inside the root always, elsewhere only on request."""
        if not os.path.exists(link.path):  # leads nowhere or in a circle
            return False
        return self.follow_links or (link.is_file() and Path(os.path.realpath(link.path)).is_relative_to(self.real_root))
