"""What `convolt predict` does: pictures and arrays → classes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convolt.cli import model_spec, say
from convolt.cli.recipe import are_probabilities, probabilities, rates_each_label
from convolt.cli.results import LEAST
from convolt.data.folder import read_file
from convolt.data.index import EXTENSIONS
from convolt.data.left_out import BadFile
from convolt.data.npz import load_npz, read_npz
from convolt.data.pictures import Pictures
from convolt.errors import ArgumentError, DataError, explain
from convolt.models import Model

SHOWN = 40
"""Rows printed; more go to the table of `--out`."""


class NamedPictures(Pictures):
    """Pictures in files that are named one by one, or found in folders; of the latter, those that cannot be read are left out.

    Args:
        files: their paths.
        named: those that the user named; one of them that cannot be read is an error.
        size, colours: how they are read.
    """

    def __init__(self, files: Sequence[Path], named: Sequence[Path], size: tuple[int, int] | None, colours: str) -> None:
        super().__init__("INPUT", [str(path) for path in files], None, (), size, colours)
        self._named = {str(path) for path in named}
        self._told.update(self.files)  # the caller lists what was left out

    def content(self, index: int) -> bytes:
        """Returns the content of the file."""
        return read_file(self.files[index])

    def _note(self, index: int, outcome: np.ndarray | BadFile | tuple[int, ...]) -> bool:
        if isinstance(outcome, BadFile) and outcome.path in self._named:
            raise DataError(outcome.reason if outcome.path in outcome.reason else f"{outcome.path}: {outcome.reason}")
        return super()._note(index, outcome)

    def _check_bad(self) -> None:
        """Any number of files may be bad, as long as one is not."""


def run(file: str, paths: Sequence[str], *, top: int, out: str | None, batch_size: int, device: str, code: str | None) -> None:
    """Predicts, prints and writes; see `convolt predict --help`."""
    if out is not None and not Path(out).resolve().parent.is_dir():
        raise ArgumentError(explain("--out", f"{out!r}, whose folder does not exist", "a file in an existing folder"))
    model = model_spec.open_saved(file, code, device)
    names, outputs, skipped = predict_all(model, paths, batch_size)
    if not isinstance(outputs, np.ndarray) or outputs.ndim != 2:
        raise DataError(
            explain(f"model {file}", "outputs that are not (N, classes)", "a model of classes", "Use model.predict in Python.")
        )
    if rates_each_label(model, outputs):
        header, rows, shown = _label_rows(model, names, probabilities(outputs, several=True))
    elif model.class_names is None and not are_probabilities(outputs):  # numbers, not classes
        header = ["input", *(f"value_{i}" if i else "value" for i in range(outputs.shape[-1]))]
        rows = shown = [[name, *(f"{value:.6g}" for value in row)] for name, row in zip(names, outputs, strict=True)]
    else:
        header, rows, shown = _class_rows(model, names, probabilities(outputs), top)
    say.table(["input", "prediction"] if header[1] in ("class", "labels") else header, shown[:SHOWN])
    if len(shown) > SHOWN:
        say.line(f"  … and {len(shown) - SHOWN:,} more{'' if out else '; --out predictions.csv writes all of them'}")
    for bad in skipped:
        say.line(f"  skipped {bad.path}: {bad.reason.removeprefix(f'{bad.path}: ')}", "yellow")
    if out is not None:
        with open(out, "w", newline="", encoding="utf-8") as target:
            csv.writer(target, lineterminator="\n").writerows([header, *rows])
        say.rows([("table", f"{out} ({say.plural(len(rows), 'row')})")])


def _class_rows(
    model: Model, names: Sequence[str], shares: np.ndarray, top: int
) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Returns (columns, rows) of the table in the file, and the rows on the screen."""
    class_names = model.class_names or [str(i) for i in range(shares.shape[1])]
    count = min(top, len(class_names))
    order = np.argsort(-shares, axis=1, kind="stable")[:, :count]
    columns = [
        "input",
        "class",
        "probability",
        *(f"{word}_{i}" for i in range(2, count + 1) for word in ("class", "probability")),
    ]
    rows, shown = [], []
    for name, best, share in zip(names, order, shares, strict=True):
        pairs = [(class_names[i], float(share[i])) for i in best]
        rows.append([name, *(cell for label, p in pairs for cell in (label, f"{p:.6f}"))])
        shown.append([name, "   ".join(f"{label} {100 * p:.1f}%" for label, p in pairs)])
    return columns, rows, shown


def _label_rows(model: Model, names: Sequence[str], shares: np.ndarray) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Returns what `_class_rows` does where a sample may have several labels: those above 0.5, and in the file all probabilities."""
    class_names = model.class_names or [str(i) for i in range(shares.shape[1])]
    rows, shown = [], []
    for name, share in zip(names, shares, strict=True):
        best = np.argsort(-share, kind="stable")
        found = [i for i in best if share[i] > LEAST]
        rows.append([name, "|".join(class_names[i] for i in sorted(found)), *(f"{p:.6f}" for p in share)])
        likely = "   ".join(f"{class_names[i]} {100 * share[i]:.1f}%" for i in found or best[:1])
        shown.append([name, likely if found else f"none (most likely {likely})"])
    return ["input", "labels", *class_names], rows, shown


def predict_all(model: Model, paths: Sequence[str], batch_size: int) -> tuple[list[str], Any, list[BadFile]]:
    """Returns (a name for each sample, the outputs, what was left out) of pictures, folders (searched to the bottom) and array files.

    Pictures are read as they are needed, and stay in memory no longer than that where they are too many.

    Raises:
        DataError: a path does not exist, or what is in it cannot be used; pictures in folders are skipped instead, unless
            none of them can be read.
    """
    names: list[str] = []
    parts: list[Any] = []
    skipped: list[BadFile] = []
    for given, x in _inputs(model, paths):
        outputs = _outputs(model, x, batch_size)
        bad = {file.path: file for file in x.bad} if isinstance(x, NamedPictures) else {}
        skipped += bad.values()
        names += [name for name in given if name not in bad]
        parts += [] if outputs is None else [outputs]
    if not parts:
        raise DataError(explain("INPUT", f"no picture that can be read; the first: {skipped[0].reason}", "at least one picture"))
    return names, np.concatenate(parts) if all(isinstance(part, np.ndarray) for part in parts) else parts[0], skipped


def _outputs(model: Model, x: np.ndarray | NamedPictures, batch_size: int) -> Any:
    """Returns the outputs for some samples; None where none of the pictures can be read."""
    try:
        return model.predict(x, batch_size=batch_size, verbose=0)
    except DataError:
        if not isinstance(x, NamedPictures) or len(x.bad) < len(x):
            raise
        return None


def _inputs(model: Model, paths: Sequence[str]) -> list[tuple[list[str], np.ndarray | NamedPictures]]:
    """Returns (names, samples) of pictures that follow one another, and of each array file."""
    shape = tuple(model.input_shapes[0][1:]) if model.input_shapes else (None, None, 3)
    found: list[tuple[list[str], np.ndarray | NamedPictures]] = []
    files: list[Path] = []
    named: list[Path] = []

    def close() -> None:
        if files:
            found.append(([str(path) for path in files], _pictures(files, named, shape)))
            files.clear()

    for text in paths:
        path = Path(text).expanduser()
        if not path.exists():
            raise DataError(explain("INPUT", f"{text}, which does not exist", "a picture, a folder, an .npy or an .npz file"))
        if path.suffix.lower() in (".npz", ".npy") and not path.is_dir():
            close()
            x = _as_samples(_array(path), shape)
            found.append(([f"{text}[{i}]" for i in range(len(x))], x))
        elif path.is_dir():
            files += _in_folder(path)
        else:
            files.append(path)
            named.append(path)
    close()
    return found


def _in_folder(folder: Path) -> list[Path]:
    """Returns the pictures in and below a folder, by name."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
    if not found:
        raise DataError(explain("INPUT", f"the folder {folder} without pictures", f"files that end in {', '.join(EXTENSIONS)}"))
    return found


def _pictures(files: Sequence[Path], named: Sequence[Path], shape: tuple[int | None, ...]) -> NamedPictures:
    if len(shape) != 3:
        raise DataError(explain("INPUT", f"the picture {files[0]}", f"samples of the shape {shape}, in an .npy or .npz file"))
    size = None if shape[0] is None or shape[1] is None else (shape[0], shape[1])
    return NamedPictures(files, named, size, {1: "grayscale", 4: "rgba"}.get(shape[2] or 3, "rgb"))


def _array(path: Path) -> np.ndarray:
    """Returns the samples in an array file: of an .npz `x_test`, else `x_train` or `x`, else its one array."""
    if path.suffix.lower() == ".npy":
        try:
            return np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))  # read as far as it is needed
        except (ValueError, EOFError, OSError) as error:
            raise DataError(
                explain(str(path), f"a file that cannot be read ({error})", "one array of numbers that numpy.save wrote")
            ) from error
    arrays = read_npz(path)
    if "y_train" in arrays or "y" in arrays:
        arrays = load_npz(path)
    for key in ("x_test", "x", "x_train"):
        if key in arrays:
            return arrays[key]
    if len(arrays) != 1:
        raise DataError(explain(str(path), f"the arrays {sorted(arrays)}", "x, x_test or one array"))
    return next(iter(arrays.values()))


def _as_samples(x: np.ndarray, shape: tuple[int | None, ...]) -> np.ndarray:
    """Returns samples with a batch axis in front and, for pictures in grey, a channel axis behind."""
    wanted = len(shape)
    if x.ndim == wanted and shape[-1] == 1 and x.shape[-1] != 1:
        return x[..., None]
    return x[None] if x.ndim == wanted else x
