"""Writing a model file: checks of the target, and a file that is whole or not there."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from convolt.errors import ModelFileError, did_you_mean, explain


def checked_target(filepath: str | Path, overwrite: bool, suffixes: tuple[str, ...]) -> Path:
    """Returns the path of a file that may be written.

    Raises:
        ModelFileError: the suffix is another, the file exists and `overwrite` is False, or its folder does not exist.
    """
    path = Path(filepath)
    if not path.name.endswith(suffixes):
        wanted = " or ".join(repr(suffix) for suffix in suffixes)
        near = did_you_mean(path.suffix, suffixes)
        raise ModelFileError(explain(f"save({str(filepath)!r})", f"the suffix {path.suffix!r}", wanted,
                                     near if near.startswith("Did") else f"Try {path.with_suffix(suffixes[0]).name!r}."))
    if path.exists() and not overwrite:
        raise ModelFileError(explain(str(path), "a file that exists", "a new name", "Pass overwrite=True to replace it."))
    if not path.parent.is_dir():
        raise ModelFileError(explain(str(path), f"the folder {str(path.parent)!r}, which does not exist", "a folder that exists"))
    return path


def write_whole(path: Path, *parts: bytes | memoryview) -> None:
    """Writes beside the target, flushes to the disk and renames, so that the target is always whole.

    Raises:
        ModelFileError: the disk is full or cannot be written; what was at the target stays.
    """
    try:
        _write(path, parts)
    except OSError as error:
        size = sum(len(part) for part in parts)
        kept = f"The file that was there stays as it was: {path.name}." if path.exists() else "No file was written."
        raise ModelFileError(explain(str(path), f"the error {(error.strerror or str(error))!r}{_room(error, path.parent)}",
                                     f"a disk that takes its {size:,} bytes", kept)) from error


def _room(error: OSError, folder: Path) -> str:
    """Returns how much room the disk has, where that is what is missing."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    return f", {shutil.disk_usage(folder).free:,} bytes free"


def _write(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, file_mode())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def file_mode() -> int:
    """Returns the permissions of a new file, which a temporary one does not get by itself: only its owner reads that."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
