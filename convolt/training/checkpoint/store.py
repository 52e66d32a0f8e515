"""The folder of checkpoints: what is in it, how one is added so that a kill at any instant leaves a whole one."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from convolt.errors import CheckpointError, explain
from convolt.training.checkpoint import format

_NAME = re.compile(r"(\d{6,})-epoch-(\d+)-step-(\d+)\.safetensors")
_PART = re.compile(r"\.\d{6,}-epoch-\d+-step-\d+\.safetensors\.part")
_WRITE = 1 << 24  # bytes given to the system at once


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read: where, its tensors and the rest of its state."""

    path: Path
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


class Store:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made if missing.
        keep: how many of the newest stay.

    Attributes:
        best: name of the file that stays beside the newest, or None.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder = folder
        self.keep = keep
        self.best: str | None = None
        self._replaced: set[str] = set()

    def make(self) -> None:
        """Makes the folder.

        Raises:
            CheckpointError: it cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(explain(f"run folder {str(self.folder)!r}", f"a folder that cannot be made ({error.strerror})",
                                          "one that can be written", "Choose another folder.")) from error

    def clean(self) -> None:
        """Removes what a killed process was writing; only for who holds the folder's lock."""
        for name in os.listdir(self.folder):
            if _PART.fullmatch(name):
                os.unlink(self.folder / name)

    def files(self) -> list[Path]:
        """Returns the checkpoints by name, oldest first; whether they are whole is not known."""
        if not self.folder.is_dir():
            return []
        found = {int(match[1]): name for name in os.listdir(self.folder) if (match := _NAME.fullmatch(name))}
        return [self.folder / found[number] for number in sorted(found)]

    def newest(self, tell: Callable[[str], object], read: Callable[[Path], Any] = format.decode) -> Any:
        """Returns what `read` gives of the newest whole checkpoint, with its path first; None where there is no file.

        Args:
            tell: called with a sentence about each damaged file.
            read: `format.decode` or `format.read_state`.

        Raises:
            CheckpointError: there are checkpoints, and all are damaged.
        """
        damaged: list[str] = []
        for path in reversed(self.files()):
            try:
                found = read(path)
            except CheckpointError as error:
                damaged.append(str(error))
                continue
            for text in damaged:
                tell(f"Checkpoint damaged: {text} The one before it is used: {path.name}.")
            return path, found
        if damaged:
            got = f"{len(damaged)} damaged files (the newest: {damaged[0]})"
            raise CheckpointError(explain(f"checkpoints in {str(self.folder)!r}", got, "at least one whole checkpoint",
                                          "resume=False starts anew."))
        return None

    def load(self, tell: Callable[[str], object]) -> Saved | None:
        """Returns the newest whole checkpoint, or None where there is no file; see `newest`."""
        found = self.newest(tell)
        if found is None:
            return None
        saved = Saved(found[0], *found[1])
        best = saved.state.get("best_file")
        self.best = best if isinstance(best, str) and _NAME.fullmatch(best) else None
        return saved

    def replace_all(self) -> None:
        """Lets the next checkpoint that is written take the place of all that are there now."""
        self._replaced = {path.name for path in self.files()}
        self.best = None

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], is_best: bool = False) -> Path:
        """Writes a checkpoint: beside its target, flushed to the disk, renamed, the folder flushed; then removes old ones.

        Raises:
            CheckpointError: it cannot be written; the checkpoints that are there stay as they were.
        """
        files = self.files()
        number = int(files[-1].name.partition("-")[0]) + 1 if files else 1
        cursor = state["cursor"]
        path = self.folder / f"{number:06}-epoch-{cursor['epoch']}-step-{state['optimizer']['iterations']}.safetensors"
        part = path.with_name(f".{path.name}.part")
        parts = format.encode(tensors, {**state, "best_file": path.name if is_best else self.best})
        try:
            _write(part, parts)
            os.replace(part, path)
            _flush_folder(self.folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise self._failed(path, error, sum(len(p) for p in parts)) from error
        if is_best:
            self.best = path.name
        self._prune()
        return path

    def _prune(self) -> None:
        """Removes all but the newest and the best; a file that cannot be removed only takes room."""
        files = self.files()
        stay = {path.name for path in files[-self.keep :]} - self._replaced | {self.best}
        for path in files:
            if path.name not in stay:
                with contextlib.suppress(OSError):
                    os.unlink(path)
        self._replaced.clear()

    def _failed(self, path: Path, error: OSError, size: int) -> CheckpointError:
        files = self.files()
        kept = f"The newest whole checkpoint is still {files[-1].name}." if files else "There is no earlier checkpoint."
        got = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            with contextlib.suppress(OSError):
                got += f", {shutil.disk_usage(self.folder).free:,} bytes free"
        return CheckpointError(explain(f"checkpoint {str(path)!r}", f"the error {got!r}", f"a disk that takes its {size:,} bytes", kept))


def _write(path: Path, parts: Sequence[memoryview]) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
    try:
        for part in parts:
            rest = part.cast("B")
            while rest:
                written = os.write(handle, rest[:_WRITE])
                if written <= 0:
                    raise OSError(errno.EIO, "a write that took nothing")
                rest = rest[written:]
        os.fsync(handle)
        size, expected = os.fstat(handle).st_size, sum(part.nbytes for part in parts)
        if size != expected:
            raise OSError(errno.EIO, f"a file of {size:,} bytes in place of {expected:,}")
    finally:
        os.close(handle)


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder, and writes its entries by itself
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
