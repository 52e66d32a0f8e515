"""The files of a training's data that are left out: counted, told, and listed where the run is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from convolt.data.left_out import BadFile, write_skipped
from convolt.data.pictures import Pictures
from convolt.data.stream import SampleStream
from convolt.training.callbacks import History
from convolt.training.hooks import Callback, CallbackList, Logs
from convolt.training.run import RunHistory

NAME = "skipped.csv"


class SkippedFiles(Callback):
    """Looks at the start, after each epoch and at the end whether files of the data were left out that are not listed yet.

    They come into `history.skipped`, into `skipped.csv` of the folders, and a line tells their number.

    Args:
        sources: data of training and validation; only those that read pictures leave any out.
        history: what `fit` returns.
        note: prints a line.
        folders: where `skipped.csv` is written: of checkpoints, and of `RunHistory` callbacks.
    """

    is_setting = False

    def __init__(self, sources: Iterable[Any], history: History, note: Callable[[str], object], folders: Iterable[Path] = ()) -> None:
        found = [getattr(source, "folder", source) for source in sources]  # batches of a folder have one
        self._sources = [source for source in found if isinstance(source, (Pictures, SampleStream))]
        self._history, self._note, self._folders = history, note, list(folders)

    def also_in_folders_of(self, callbacks: CallbackList) -> None:
        """Lists the files in the run folders that callbacks write to as well."""
        self._folders += [callback.folder for callback in callbacks.callbacks if isinstance(callback, RunHistory)]

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._look()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self._look()

    def on_train_end(self, logs: Logs | None = None) -> None:
        self._look()

    def _look(self) -> None:
        files = sorted({bad for source in self._sources for bad in source.left_out}, key=lambda bad: bad.path)
        if len(files) == len(self._history.skipped):
            return
        self._history.skipped = files
        paths = list(dict.fromkeys(folder / NAME for folder in self._folders))
        for path in paths:
            write_skipped(path, files)
        self._note(f"{len(files)} {'file' if len(files) == 1 else 'files'} of the data left out, "
                   + (f"listed in {paths[0]}." if paths else f"listed in history.skipped: {_few(files)}."))


def _few(files: list[BadFile]) -> str:
    return ", ".join(bad.path for bad in files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
