"""Reading HDF5 files that may be hostile.

The HDF5 library is 600,000 lines of C that trust the file; damaged files make it crash, hang, or open other files. So it never reads
a foreign file in this process. It does so in one of its own (`hdf5_worker.py`), which has bounded memory and time and cannot open any
further file or socket, whose whole job is to write out the arrays. If it dies, the file is refused, and nothing else has happened.

What is taken: groups and arrays of numbers, reached by hard links, each once; stored in the file itself, plain or with gzip, lzf and
shuffle; attributes that are text or numbers. Shapes are checked and summed up before the first value is read.
"""

from __future__ import annotations

import importlib.util
import json
import math
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from convolt.errors import ModelFileError, did_you_mean, explain
from convolt.formats import hdf5_worker
from convolt.formats.guard import HDF5_MAGIC, LIMITS, Limits, check_file, expect_kind, read_json, shorten

Attribute = str | int | float | bool | list[Any]
NEEDED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
"""Without these some installations of Python do not start; nothing else of the environment is handed on."""

TIMED_OUT = 124
WALL_SECONDS = 60
"""The most that reading a small file may take on a busy machine; the worker's own bound is on the seconds that it computes."""

Run = Callable[[IO[bytes], IO[bytes], IO[bytes], Limits, bool], int]
"""Runs the worker on (source, out, errors, limits, values) and returns its exit code, negative for a signal."""


class Hdf5File:
    """What the worker found in a file. Paths are like "model_weights/dense/kernel:0", without a slash at the front."""

    def __init__(self, thing: str, index: list[dict[str, Any]], values: mmap.mmap | bytes, start: int) -> None:
        self.thing, self._values, self._start = thing, values, start
        self._objects: dict[str, dict[str, Any]] = {entry["path"]: entry for entry in index}

    def __contains__(self, path: str) -> bool:
        return path.strip("/") in self._objects

    def names(self, prefix: str = "") -> list[str]:
        """Returns the names in a group: as they were made where the file kept that order, else sorted.

        Raises:
            ModelFileError: there is no such group.
        """
        children: list[str] = self._find(prefix, "children", "a group")
        return list(children)

    def arrays(self) -> list[str]:
        """Returns the paths of all arrays, in the order of the file."""
        return [path for path, entry in self._objects.items() if "shape" in entry]

    def attributes(self, path: str = "") -> dict[str, Attribute]:
        """Returns the attributes of a group or an array, text decoded; lists for one axis.

        Raises:
            ModelFileError: there is no such group or array.
        """
        found: dict[str, Attribute] = self._find(path, "attributes", "a group or an array")
        return dict(found)

    def shape(self, path: str) -> tuple[int, ...]:
        """Returns the shape of an array, in the order of axes of the file."""
        return tuple(self._find(path, "shape", "an array"))

    def dtype(self, path: str) -> np.dtype[Any]:
        """Returns the type of an array's values, in native byte order."""
        name: str = self._find(path, "dtype", "an array")
        return np.dtype(name)

    def array(self, path: str, finite: bool = False) -> np.ndarray:
        """Returns a copy of an array, native and in C order.

        Args:
            path: of the array.
            finite: whether to refuse NaN and infinite values.

        Raises:
            ModelFileError: there is no such array, or a value is not finite.
        """
        shape, dtype = self.shape(path), self.dtype(path)
        offset = self._start + self._objects[path.strip("/")]["offset"]
        array = np.frombuffer(self._values, dtype, math.prod(shape), offset).reshape(shape).copy()
        if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ModelFileError(explain(f"{self.thing}: {path}", "values that are NaN or infinite", "finite weights"))
        return array

    def _find(self, path: str, key: str, kind: str) -> Any:
        entry = self._objects.get(path.strip("/"))
        if entry is None or key not in entry:
            known = [name for name, other in self._objects.items() if key in other and name]
            got = "nothing of that name" if entry is None else "another kind of object"
            raise ModelFileError(explain(f"{self.thing}: {path or '/'}", got, kind,
                                         did_you_mean(path, known) if known and len(known) < 10_000 else ""))
        return entry[key]


@contextmanager
def open_hdf5(path: str | Path | bytes | bytearray | memoryview, *, values: bool = True, limits: Limits = LIMITS,
              thing: str = "", run: Run | None = None) -> Iterator[Hdf5File]:
    """Reads an HDF5 file in a process of its own and yields what it holds.

    Args:
        path: the file, or its bytes.
        values: False reads names, shapes and attributes alone.
        limits: the most that it may hold.
        thing: what it is, for messages; the path if there is none.
        run: how the worker is run; None for a new process.

    Raises:
        ModelFileError: the file is damaged, of another kind, or holds what is not taken (see this module); the message names it.
    """
    thing = thing or (str(path) if isinstance(path, (str, Path)) else "the HDF5 file")
    with _source(path, thing, limits) as source, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        code = (run or run_worker)(source, out, errors, limits, values)
        if code:
            raise ModelFileError(_reason(thing, code, errors))
        yield from _opened(thing, out, values, limits)


@contextmanager
def _source(path: str | Path | bytes | bytearray | memoryview, thing: str, limits: Limits) -> Iterator[IO[bytes]]:
    if isinstance(path, (str, Path)):
        expect_kind(path, "hdf5")
        check_file(Path(path), limits)
        with open(path, "rb") as file:
            yield file
        return
    if bytes(path[:8]) != HDF5_MAGIC:
        raise ModelFileError(explain(thing, "other content", "an HDF5 file", "The file is damaged."))
    with tempfile.TemporaryFile() as file:
        file.write(path)
        file.flush()
        file.seek(0)
        yield file


def run_worker(source: IO[bytes], out: IO[bytes], errors: IO[bytes], limits: Limits, values: bool) -> int:
    """Runs the worker as a new process with nothing but these three files."""
    command = [sys.executable, "-I", hdf5_worker.__file__, json.dumps(asdict(limits)), "values" if values else "index", *_folders()]
    environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HDF5_PLUGIN_PRELOAD": "::", "HDF5_USE_FILE_LOCKING": "FALSE"}
    environment |= {name: os.environ[name] for name in NEEDED if name in os.environ}
    try:
        return subprocess.run(command, stdin=source, stdout=out, stderr=errors, env=environment, check=False,
                              timeout=WALL_SECONDS + os.fstat(source.fileno()).st_size // 20_000_000).returncode
    except subprocess.TimeoutExpired:
        return TIMED_OUT


def _folders() -> list[str]:
    """Returns where h5py and NumPy lie, since an isolated Python looks neither in the user's own folder nor in PYTHONPATH."""
    origins = [spec.origin for name in ("h5py", "numpy") if (spec := importlib.util.find_spec(name)) is not None]
    return list(dict.fromkeys(str(Path(origin).parents[1]) for origin in origins if origin))


def _reason(thing: str, code: int, errors: IO[bytes]) -> str:
    """Returns the message for a worker that refused the file or died of it."""
    errors.seek(0)
    text = errors.read(2**16)
    if code == hdf5_worker.REFUSED:
        reason = read_json(thing, text)
        if isinstance(reason, list) and len(reason) == 4 and all(isinstance(part, str) for part in reason):
            where, got, expected, fix = (shorten(part, 300) for part in reason)
            return explain(f"{thing}: {where}" if where else thing, got, expected, fix)
    how = "took too long" if code in (TIMED_OUT, -24) else f"ended with signal {-code}" if code < 0 else f"ended with exit code {code}"
    shown = shorten(text.decode("utf-8", "replace").strip().rpartition("\n")[2], 160)
    return explain(thing, f"a file at which the process that reads HDF5 {how}{f' ({shown})' if shown and code > 0 else ''}",
                   "a whole HDF5 file", "Nothing else was harmed. Fetch or save it again.")


def _opened(thing: str, out: IO[bytes], values: bool, limits: Limits) -> Iterator[Hdf5File]:
    """Checks what the worker wrote, which is not believed either: a crash may have been more than one."""
    out.seek(0, 2)
    size = out.tell()
    out.seek(0)
    length = int.from_bytes(out.read(8), "little")
    if size < 8 or length > size - 8 or length > 8 * limits.attribute_bytes + 1024 * limits.tensors:
        raise ModelFileError(_broken(thing))
    index = read_json(thing, out.read(length), Limits(header_bytes=length))
    start = 8 + length + -(8 + length) % hdf5_worker.ALIGNMENT
    _check_index(thing, index, size - start if values else None)
    with mmap.mmap(out.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        yield Hdf5File(thing, index, mapped, start)


def _check_index(thing: str, index: Any, room: int | None) -> None:
    for entry in index:
        if "shape" not in entry:
            continue
        count = math.prod(entry["shape"])
        if entry["dtype"] not in hdf5_worker.NUMBERS or min(entry["shape"], default=0) < 0 or entry["offset"] < 0:
            raise ModelFileError(_broken(thing))
        if room is not None and entry["offset"] + count * np.dtype(entry["dtype"]).itemsize > room:
            raise ModelFileError(_broken(thing))


def _broken(thing: str) -> str:
    return explain(thing, "a file at which the process that reads HDF5 wrote nonsense", "a whole HDF5 file", "Fetch or save it again.")
