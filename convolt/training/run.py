"""The run folder: everything that is worth keeping of one training.

    runs/train-2/
        config.json        what was trained, on what, how
        command.txt        the line that repeats the run
        skipped.csv        files of the data that could not be used, if there are such
        history.csv .png   losses and metrics of each epoch
        first_batch.png    what the model saw first, with its labels
        confusion.png      which classes are taken for which
        predictions.png    test pictures, the most confidently wrong first
        model.safetensors  the trained model
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from convolt.configurable import to_json
from convolt.data.left_out import BadFile, write_skipped
from convolt.errors import ArgumentError, explain
from convolt.training import plots
from convolt.training.hooks import Callback, Logs, scalars


class RunFolder:
    """A folder for one run, and the files in it.

    Args:
        path: of a folder that exists; `RunFolder.create` makes a new one.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, root: str | os.PathLike[str] = "runs", name: str | None = None) -> Self:
        """Makes a new folder: `root/train`, or `root/train-2`, `root/train-3`, … if that exists.

        Making a folder either succeeds or finds it there, in one step of the file system; so two runs that start at the
        same instant get two folders.

        Args:
            root: made if missing.
            name: in place of "train"; letters, digits, "-", "_" and ".".

        Raises:
            ArgumentError: the name is none for a folder, or the folder cannot be made.
        """
        stem = "train" if name is None else name
        if not re.fullmatch(r"\w[\w.-]{0,99}", stem):
            raise ArgumentError(explain("run name", repr(stem), "up to 100 letters, digits, '-', '_' and '.'",
                                        "Give the folder that it lies in as root."))
        for count in itertools.count(1):
            path = Path(root) / (stem if count == 1 else f"{stem}-{count}")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.mkdir()
            except FileExistsError:
                if Path(root).is_dir():
                    continue
                raise ArgumentError(explain("run folder", f"the file {str(root)!r}", "a folder",
                                            "Choose another root.")) from None
            except OSError as error:
                raise ArgumentError(explain("run folder", f"{str(path)!r} ({error.strerror})", "a folder that can be made",
                                            "Choose another root.")) from error
            return cls(path)
        raise AssertionError("count does not end")

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def model(self) -> Path:
        """Path of `model.safetensors`, for `model.save`."""
        return self.path / "model.safetensors"

    @cached_property
    def history(self) -> RunHistory:
        """The callback that keeps `history.csv` and `history.png`; give it to `fit`."""
        return RunHistory(self.path)

    def write_config(self, config: Mapping[str, Any]) -> Path:
        """Writes `config.json`; objects with a `get_config` are written as class name and configuration."""
        return _write(self.path / "config.json", json.dumps(to_json(config), indent=2, ensure_ascii=False) + "\n")

    def write_skipped(self, files: Sequence[tuple[str, str]]) -> Path:
        """Writes `skipped.csv`: each file of the data that was left out, and why."""
        path = self.path / "skipped.csv"
        write_skipped(path, [BadFile(*pair) for pair in files])
        return path

    def write_command(self, arguments: Sequence[str]) -> Path:
        """Writes `command.txt`: the program and its arguments, quoted so that a shell takes them as they were."""
        return _write(self.path / "command.txt", shlex.join(arguments) + "\n")

    def write_history(self, history: Mapping[str, Sequence[float]], first_epoch: int = 0) -> None:
        """Writes `history.csv` (epochs from 1) and `history.png` of a `History.history`."""
        write_history_csv(history, self.path / "history.csv", first_epoch)
        plots.plot_history(history, self.path / "history.png")

    def write_confusion(self, matrix: Any, class_names: Sequence[str] | None = None) -> Path:
        """Writes `confusion.png`; see `plots.plot_confusion`."""
        path = self.path / "confusion.png"
        plots.plot_confusion(matrix, class_names, path)
        return path

    def write_first_batch(self, x: Any, labels: Any, class_names: Sequence[str] | None = None) -> Path:
        """Writes `first_batch.png`, pictures (N, H, W, C) with their classes."""
        path = self.path / "first_batch.png"
        plots.plot_images(x, labels, class_names, path, title="First batch of training")
        return path

    def write_predictions(self, x: Any, labels: Any, predictions: Any, probabilities: Any = None,
                          class_names: Sequence[str] | None = None) -> Path:
        """Writes `predictions.png`; see `plots.plot_images`. Give all test pictures: it shows the most telling ones."""
        path = self.path / "predictions.png"
        plots.plot_images(x, labels, class_names, path, predictions, probabilities)
        return path


class RunHistory(Callback):
    """Writes `history.csv` after each epoch, so that a run that is killed keeps it, and `history.png` at the end.

    Args:
        folder: where.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.values: dict[str, list[float]] = {}
        self.first_epoch: int | None = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.values = {}
        self.first_epoch = None

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self.first_epoch = epoch if self.first_epoch is None else self.first_epoch
        before = epoch - self.first_epoch
        for name, value in scalars(logs).items():
            self.values.setdefault(name, [float("nan")] * before).append(value)
        for values in self.values.values():  # a validation that is not made in each epoch leaves gaps
            values.extend([float("nan")] * (before + 1 - len(values)))
        write_history_csv(self.values, self.folder / "history.csv", self.first_epoch)

    def on_train_end(self, logs: Logs | None = None) -> None:
        if any(self.values.values()):
            plots.plot_history(self.values, self.folder / "history.png")

    def state_dict(self) -> dict[str, Any]:
        """Returns the values of all epochs so far."""
        return {"values": {name: list(values) for name, values in self.values.items()}, "first_epoch": self.first_epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up the values of all epochs so far."""
        self.values = {name: list(values) for name, values in state["values"].items()}
        self.first_epoch = state["first_epoch"]


def write_history_csv(history: Mapping[str, Sequence[float]], path: str | os.PathLike[str], first_epoch: int = 0) -> None:
    """Writes a row for each epoch, numbered from 1; missing values and NaN are empty cells, arrays are left out."""
    history = {name: values for name, values in history.items() if all(np.ndim(value) == 0 for value in values)}
    lines: list[list[str]] = [["epoch", *history]]
    for index in range(max((len(values) for values in history.values()), default=0)):
        row = [values[index] if index < len(values) else float("nan") for values in history.values()]
        lines.append([str(first_epoch + index + 1), *("" if value != value else repr(float(value)) for value in row)])
    target = Path(path)
    temporary = target.with_name(target.name + ".part")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
    os.replace(temporary, target)


def _write(path: Path, text: str) -> Path:
    """Writes a whole file or leaves the old one: beside it first, then renamed."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path
