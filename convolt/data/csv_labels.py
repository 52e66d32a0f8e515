"""Pictures whose labels stand in a table: a CSV file with a path and labels in each line."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from convolt.data.folder import PictureFiles, read_file
from convolt.data.index import FolderIndex
from convolt.data.label_modes import LabelMode
from convolt.errors import ArgumentError, DataError, did_you_mean, explain

MAX_ROWS = 100_000_000
MAX_CLASSES = 100_000
PATH_COLUMNS = ("path", "file", "filename", "image")
LABEL_COLUMNS = ("label", "labels", "class", "target", "tags")
SEPARATORS = ("|", ";", " ")


def from_csv(path: str | Path, path_column: str | None = None, label_column: str | Sequence[str] | None = None, *,
             root: str | Path | None = None, separator: str | None = None, class_names: Sequence[str] | None = None,
             image_size: tuple[int, int] | None = None, color_mode: str = "rgb", interpolation: str = "bilinear", fit: str = "stretch",
             follow_links: bool = False, workers: int | None = None, label_mode: LabelMode = "int", decoder: str = "cpu") -> PictureFiles:
    """Returns the pictures that a CSV file lists, in its order.

    Args:
        path: the table, UTF-8, with a line of headings, such as `path,label`.
        path_column: heading of the paths, relative to `root`; None: "path", "file", "filename" or "image".
        label_column: heading of the labels; None: "label", "labels", "class", "target" or "tags", and without one of these all other
            columns. Several headings: a column of 0 and 1 for each class, so that a picture may have several labels or none.
        root: folder of the pictures; None: that of the table.
        separator: of the names in one column where a picture may have several labels: "|", ";" or " "; None: one label each. "auto":
            "|" where a cell has one, as on the command line.
        class_names: names of the labels in their order; None: the names that occur, sorted (numbers by value).
        image_size, color_mode, interpolation, fit, workers: see `ImageFolder`.
        follow_links: accept links that lead out of the root.
        label_mode: the form in which `fit` gets the labels; see `ImageFolder`.
        decoder: "cpu" or "nvjpeg"; see `ImageFolder`.

    Raises:
        ArgumentError: there is no such column, or an argument is out of range.
        DataError: the table cannot be read; the line is named where a path leads out of the root, a file is listed twice, a label is
            missing or unknown, or a column of 0 and 1 holds something else.
    """
    path = Path(path).expanduser()
    table = _Table(path)
    paths = table.column(path_column, PATH_COLUMNS, "path_column")
    columns = table.label_columns(label_column, paths)
    base = Path(root).expanduser() if root is not None else path.parent
    if not base.is_dir():
        raise DataError(explain(f"{path}: root", f"{base}, which is no folder", "the folder that the paths begin in"))
    files = _files(table, paths, base, follow_links)
    if len(columns) > 1:
        labels, names = _flags(table, columns, class_names)
    elif (separator := _separator(table, columns[0], separator)) is not None:
        labels, names = _several(table, columns[0], separator, class_names)
    else:
        labels, names = _classes(table, columns[0], class_names)
    index = FolderIndex(base, files, labels, names)
    pictures = PictureFiles(index, f"table {path}", image_size, color_mode, interpolation, fit, workers)
    pictures.label_mode, pictures.decoder = label_mode, decoder
    return pictures


class _Table:
    """The lines of a CSV file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise DataError(explain(str(path), "no such file", "a CSV file with a line of headings, such as path,label"))
        try:
            text = read_file(path).decode("utf-8-sig")
            rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(explain(str(path), f"a file that cannot be read ({error})", "a CSV file in UTF-8")) from error
        if len(rows) < 2:
            raise DataError(explain(str(path), "no lines below the headings", "a line for each picture"))
        self.headings, self.rows = [heading.strip() for heading in rows[0]], rows[1:]
        for number, row in enumerate(self.rows):
            if len(row) != len(self.headings):
                raise self.error(number, f"{len(row)} cells", f"{len(self.headings)}, as there are headings")

    def error(self, row: int, got: str, expected: str, fix: str = "") -> DataError:
        """Returns an error that names a line, counted without empty ones."""
        return DataError(explain(f"{self.path}, line {row + 2}", got, expected, fix))

    def column(self, wanted: str | None, usual: Sequence[str], argument: str) -> int:
        """Returns the place of a column by its heading, or of the first with a usual one."""
        if wanted is not None:
            if wanted not in self.headings:
                raise ArgumentError(explain(f"from_csv({argument})", repr(wanted), f"one of the headings {self.headings}",
                                            did_you_mean(wanted, self.headings)))
            return self.headings.index(wanted)
        lower = [heading.lower() for heading in self.headings]
        for name in usual:
            if name in lower:
                return lower.index(name)
        raise ArgumentError(explain(f"{self.path}: headings", str(self.headings), f"one of {list(usual)}", f"Pass {argument}=…."))

    def label_columns(self, wanted: str | Sequence[str] | None, paths: int) -> list[int]:
        """Returns the places of the columns with labels."""
        if isinstance(wanted, str):
            return [self.column(wanted, (), "label_column")]
        if wanted is not None:
            return [self.column(name, (), "label_column") for name in wanted]
        lower = [heading.lower() for heading in self.headings]
        found = [lower.index(name) for name in LABEL_COLUMNS if name in lower][:1]
        found = found or [i for i in range(len(lower)) if i != paths]
        if not found:
            raise DataError(explain(f"{self.path}: headings", str(self.headings), "a column of labels beside the paths"))
        return found


def _files(table: _Table, column: int, root: Path, follow_links: bool) -> list[str]:
    """Returns the paths, each checked to lie below the root."""
    files: list[str] = []
    seen: set[str] = set()
    real_root = os.path.realpath(root)
    for number, row in enumerate(table.rows):
        name = row[column].strip().replace("\\", "/")
        pure = PurePosixPath(name)
        if not name or "\0" in name or pure.is_absolute() or ".." in pure.parts or name[1:2] == ":":
            raise table.error(number, f"the path {name!r}", "a path below the root", "Pass root=FOLDER if the pictures lie elsewhere.")
        name = str(pure)
        if name in seen:
            raise table.error(number, f"{name!r} for the second time", "each picture once",
                              'Several labels of one picture go into one cell ("cat|dog", separator="|") or into columns of 0 and 1.')
        if not follow_links and not os.path.realpath(root / name).startswith(real_root + os.sep):
            raise table.error(number, f"{name!r}, a link out of {root}", "files below the root", "Pass follow_links=True to trust it.")
        seen.add(name)
        files.append(name)
    return files


def _classes(table: _Table, column: int, class_names: Sequence[str] | None) -> tuple[np.ndarray, list[str]]:
    cells = [row[column].strip() for row in table.rows]
    if "" in cells:
        raise table.error(cells.index(""), "no label", "one", "A picture without labels needs several columns or a separator.")
    names = _names(table, cells, class_names)
    place = {name: label for label, name in enumerate(names)}
    for number, cell in enumerate(cells):
        _known(table, number, cell, place)
    return np.asarray([place[cell] for cell in cells], np.int64), names


def _separator(table: _Table, column: int, asked: str | None) -> str | None:
    if asked != "auto":
        return asked
    return "|" if any("|" in row[column] for row in table.rows) else None


def _several(table: _Table, column: int, separator: str, class_names: Sequence[str] | None) -> tuple[np.ndarray, list[str]]:
    if separator not in SEPARATORS:
        raise ArgumentError(explain("from_csv(separator)", repr(separator), f"one of {list(SEPARATORS)}, 'auto', or None"))
    cells = [[part.strip() for part in row[column].split(separator) if part.strip()] for row in table.rows]
    names = _names(table, [part for parts in cells for part in parts], class_names)
    place = {name: label for label, name in enumerate(names)}
    labels = np.zeros((len(cells), len(names)), np.float32)
    for number, parts in enumerate(cells):
        for part in parts:
            labels[number, _known(table, number, part, place)] = 1
    return labels, names


def _flags(table: _Table, columns: list[int], class_names: Sequence[str] | None) -> tuple[np.ndarray, list[str]]:
    names = [table.headings[column] for column in columns]
    if class_names is not None and list(class_names) != names:
        raise ArgumentError(explain("from_csv(class_names)", list(class_names), f"the headings {names}, or None"))
    labels = np.zeros((len(table.rows), len(columns)), np.float32)
    for number, row in enumerate(table.rows):
        for place, column in enumerate(columns):
            cell = row[column].strip()
            if cell not in ("0", "1", "0.0", "1.0"):
                raise table.error(number, f"{cell!r} in the column {table.headings[column]!r}", "0 or 1",
                                  "Pass label_column=NAME if one column holds the classes.")
            labels[number, place] = float(cell)
    return labels, names


def _names(table: _Table, cells: Sequence[str], class_names: Sequence[str] | None) -> list[str]:
    if class_names is not None:
        return list(class_names)
    names = set(cells)
    if len(names) > MAX_CLASSES or not names:
        raise DataError(explain(f"{table.path}: labels", f"{len(names):,} different ones", f"1 to {MAX_CLASSES:,} classes"))
    return sorted(names, key=lambda name: (int(name), "") if name.isascii() and name.isdigit() and len(name) < 10 else (10**9, name))


def _known(table: _Table, number: int, name: str, place: dict[str, int]) -> int:
    if name not in place:
        raise table.error(number, f"the label {name!r}", f"one of the {len(place)} classes", did_you_mean(name, place))
    return place[name]
