"""What `convolt predict` does: pictures and arrays → classes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convolt.cli import model_spec, say
from convolt.cli.recipe import are_probabilities, probabilities
from convolt.data.decode import decode_image
from convolt.data.folder import read_file
from convolt.data.npz import load_npz, read_npz
from convolt.errors import ArgumentError, DataError, explain
from convolt.models import Model

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp"}
SHOWN = 40
"""Rows printed; more go to the table of `--out`."""


@dataclass(frozen=True)
class Inputs:
    """What is predicted.

    Attributes:
        names: of each sample: a path, or "file.npz[3]".
        x: the samples, channels last.
        skipped: (path, reason) of pictures in folders that cannot be read.
    """

    names: list[str]
    x: np.ndarray
    skipped: list[tuple[str, str]]


def run(file: str, paths: Sequence[str], *, top: int, out: str | None, batch_size: int, device: str, code: str | None) -> None:
    """Predicts, prints and writes; see `convolt predict --help`."""
    if out is not None and not Path(out).resolve().parent.is_dir():
        raise ArgumentError(explain("--out", f"{out!r}, whose folder does not exist", "a file in an existing folder"))
    model = model_spec.open_saved(file, code, device)
    inputs = read_inputs(model, paths)
    outputs = model.predict(inputs.x, batch_size=batch_size, verbose=0)
    if not isinstance(outputs, np.ndarray) or outputs.ndim != 2:
        raise DataError(
            explain(f"model {file}", "outputs that are not (N, classes)", "a model of classes", "Use model.predict in Python.")
        )
    if model.class_names is None and not are_probabilities(outputs):  # numbers, not classes
        header = ["input", *(f"value_{i}" if i else "value" for i in range(outputs.shape[-1]))]
        rows = shown = [[name, *(f"{value:.6g}" for value in row)] for name, row in zip(inputs.names, outputs, strict=True)]
    else:
        header, rows, shown = _class_rows(model, inputs.names, probabilities(outputs), top)
    say.table(["input", "prediction"] if header[1] == "class" else header, shown[:SHOWN])
    if len(shown) > SHOWN:
        say.line(f"  … and {len(shown) - SHOWN:,} more{'' if out else '; --out predictions.csv writes all of them'}")
    for path, reason in inputs.skipped:
        say.line(f"  skipped {path}: {reason.removeprefix(f'{path}: ')}", "yellow")
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


def read_inputs(model: Model, paths: Sequence[str]) -> Inputs:
    """Returns the samples in pictures, folders (searched to the bottom) and array files, as the model takes them.

    Raises:
        DataError: a path does not exist, or what is in it cannot be used; pictures in folders are skipped instead, unless
            none of them can be read.
    """
    names: list[str] = []
    samples: list[np.ndarray] = []
    skipped: list[tuple[str, str]] = []
    shape = tuple(model.input_shapes[0][1:]) if model.input_shapes else (None, None, 3)
    for text in paths:
        path = Path(text).expanduser()
        if not path.exists():
            raise DataError(explain("INPUT", f"{text}, which does not exist", "a picture, a folder, an .npy or an .npz file"))
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
            if not found:
                raise DataError(
                    explain(
                        "INPUT", f"the folder {text} without pictures", f"files that end in {', '.join(sorted(PICTURE_SUFFIXES))}"
                    )
                )
            for picture in found:
                try:
                    samples.append(_picture(picture, shape)[None])
                    names.append(str(picture))
                except (DataError, OSError) as error:
                    skipped.append((str(picture), str(error)))
        elif path.suffix.lower() in (".npz", ".npy"):
            x = _as_samples(_array(path), shape)
            samples.append(x)
            names += [f"{text}[{i}]" for i in range(len(x))]
        else:
            samples.append(_picture(path, shape)[None])
            names.append(text)
    if not samples:
        raise DataError(explain("INPUT", f"no picture that can be read; the first: {skipped[0][1]}", "at least one picture"))
    sizes = {x.shape[1:] for x in samples}
    if len(sizes) > 1:
        raise DataError(explain("INPUT", f"samples of the shapes {sorted(sizes)}", "one shape", "Give them in several calls."))
    return Inputs(names, np.concatenate(samples), skipped)


def _picture(path: Path, shape: tuple[int | None, ...]) -> np.ndarray:
    if len(shape) != 3:
        raise DataError(explain("INPUT", f"the picture {path}", f"samples of the shape {shape}, in an .npy or .npz file"))
    size = None if shape[0] is None or shape[1] is None else (shape[0], shape[1])
    try:
        return decode_image(read_file(path), {1: "grayscale", 4: "rgba"}.get(shape[2] or 3, "rgb"), size)
    except DataError as error:
        raise DataError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def _array(path: Path) -> np.ndarray:
    """Returns the samples in an array file: of an .npz `x_test`, else `x_train` or `x`, else its one array."""
    if path.suffix.lower() == ".npy":
        try:
            return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]
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
