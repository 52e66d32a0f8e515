"""Where the files of data sets lie: the folder `CONVOLT_DATA`, then the cache, then the web.

A file appears under its name only when it is whole: it is written beside its target under a name of its own,
flushed, and renamed. So a reader never sees half a file, and processes that fetch the same file at the same time
do not disturb each other.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from convolt.data.npz import read_npz
from convolt.errors import DataError, explain

STALE_SECONDS = 24 * 3600
"""Age from which a temporary file is taken for the remains of a killed process."""


def data_folder() -> Path | None:
    """Returns the folder that the environment variable `CONVOLT_DATA` names, or None if it is not set.

    Raises:
        DataError: the variable names something that is not a folder.
    """
    value = os.environ.get("CONVOLT_DATA", "").strip()
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise DataError(explain("environment variable CONVOLT_DATA", repr(value), "an existing folder",
                                "Correct it, or unset it to use the cache."))
    return folder


def cache_folder() -> Path:
    """Returns the folder for downloads and decoded sets: `CONVOLT_CACHE`, `XDG_CACHE_HOME`/convolt or ~/.cache/convolt."""
    if own := os.environ.get("CONVOLT_CACHE", "").strip():
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "convolt"


def download_folder() -> Path:
    """Returns the part of the cache that holds data sets as they were downloaded."""
    return cache_folder() / "datasets"


def search_folders() -> list[Path]:
    """Returns the folders in which a data set's file is looked for, in order."""
    own = data_folder()
    return [*([own] if own else []), download_folder()]


def find(name: str) -> Path | None:
    """Returns the file or folder called `name` in `CONVOLT_DATA` or in the cache, or None."""
    return next((folder / name for folder in search_folders() if (folder / name).exists()), None)


def places_text() -> str:
    """Returns the places that `find` looks at, as words of an error message."""
    own = data_folder()
    return f"CONVOLT_DATA ({own or 'not set'}) and the cache ({download_folder()})"


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[BinaryIO]:
    """Opens a new file for writing that takes the place of `target` when the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(target)
    temporary = target.parent / f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.part"
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_stale(target: Path) -> None:
    """Removes what killed processes left behind; a file that another process removed first is no error."""
    for path in target.parent.glob(f".{target.name}.*.part"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


def cached_arrays(key: str, build: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the arrays kept in the cache under `key`, and makes them with `build` if there are none.

    The file is an uncompressed .npz, whose checksums are verified on reading. A damaged one is made again; a cache
    that cannot be written costs a warning, not the data.
    """
    path = cache_folder() / "decoded" / f"{key}.npz"
    if path.is_file():
        try:
            return read_npz(path)
        except DataError as error:
            warnings.warn(f"{path} in the cache is damaged and is made again ({error})", stacklevel=2)
    arrays = dict(build())
    try:
        with atomic_file(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # NumPy's stub wants bool for every keyword
    except OSError as error:
        warnings.warn(f"the decoded data could not be kept in {path.parent} ({error}); it is decoded at every start",
                      stacklevel=2)
    return arrays
