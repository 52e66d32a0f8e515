"""Reading .npz files that may be hostile: no objects, declared sizes checked before anything is allocated."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np

from convolt.errors import DataError, did_you_mean, explain

MAX_BYTES = 32 * 2**30
"""Arrays of one file together, unless the caller sets another bound."""

MAX_MEMBERS = 64
MAX_AXES = 8
CHUNK = 16 * 2**20
KEYS = ("x_train", "y_train", "x_test", "y_test", "x_val", "y_val", "x", "y", "class_names")

_DAMAGE = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, SyntaxError)
"""What zipfile and NumPy raise for damaged files (RuntimeError: encryption or an unknown compression)."""


def load_npz(path: str | Path, max_bytes: int = MAX_BYTES) -> dict[str, np.ndarray]:
    """Returns the arrays of a data set in an .npz file, checked for pairs and lengths.

    Args:
        path: a file with the keys `x_train, y_train` (and `x_test, y_test` and `x_val, y_val`, as far as wanted),
            or `x, y`, which are taken for `x_train, y_train`; and `class_names` (strings), if there are names.
        max_bytes: the most that the arrays may take together.

    Returns:
        The arrays by key; `x…` is `(N, …)`, `y…` is `(N,)` or `(N, …)`.

    Raises:
        DataError: the file is missing, damaged, too large, holds other keys or objects, or lengths differ.
    """
    path = Path(path).expanduser()
    arrays = read_npz(path, KEYS, max_bytes)
    if "x" in arrays or "y" in arrays:
        if "x_train" in arrays or "y_train" in arrays:
            raise DataError(explain(str(path), "both x, y and x_train, y_train", "one of these pairs"))
        arrays = {{"x": "x_train", "y": "y_train"}.get(key, key): value for key, value in arrays.items()}
    if "x_train" not in arrays:
        raise DataError(explain(str(path), f"the keys {sorted(arrays)}", "x_train and y_train, or x and y",
                                "Write it with numpy.savez(path, x_train=…, y_train=…, x_test=…, y_test=…)."))
    for part in ("train", "test", "val"):
        _check_pair(path, arrays, f"x_{part}", f"y_{part}")
    return arrays


def _check_pair(path: Path, arrays: dict[str, np.ndarray], x: str, y: str) -> None:
    if (x in arrays) != (y in arrays):
        there, missing = (x, y) if x in arrays else (y, x)
        raise DataError(explain(str(path), f"{there} without {missing}", f"both {x} and {y}, or neither"))
    if x not in arrays:
        return
    if arrays[x].ndim < 2 or arrays[y].ndim < 1:
        raise DataError(explain(f"{path}: {x}, {y}", f"shapes {arrays[x].shape} and {arrays[y].shape}", "(N, …) and (N,)"))
    if len(arrays[x]) != len(arrays[y]):
        raise DataError(explain(f"{path}: {x}, {y}", f"{len(arrays[x])} samples and {len(arrays[y])} labels", "equal numbers"))
    if len(arrays[x]) == 0:
        raise DataError(explain(f"{path}: {x}", "no samples", "at least one"))


def read_npz(path: Path, allowed: Collection[str] | None = None, max_bytes: int = MAX_BYTES) -> dict[str, np.ndarray]:
    """Returns all arrays of an .npz file by name, in native byte order.

    Nothing is executed, and nothing is allocated before the declared shape, the stored size and `max_bytes` agree.

    Args:
        path: the file.
        allowed: names that may occur; None allows every name.
        max_bytes: the most that the arrays may take together.

    Raises:
        DataError: the file is missing, damaged, too large, or holds something else than plain arrays.
    """
    if not path.is_file():
        raise DataError(explain(str(path), "no such file", "an .npz file"))
    try:
        with zipfile.ZipFile(path) as archive:
            members = _check_members(path, archive.infolist(), allowed, max_bytes)
            arrays = {}
            for name, member in members.items():
                with archive.open(member) as stream:
                    arrays[name] = _read_array(f"{path}: {name}", stream, member.file_size)
            return arrays
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(explain(str(path), f"a file that cannot be read ({type(error).__name__}: {error})", "a whole .npz file",
                                "Make or fetch it again.")) from error


def _check_members(path: Path, infos: list[zipfile.ZipInfo], allowed: Collection[str] | None,
                   max_bytes: int) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    if len(infos) > MAX_MEMBERS:
        raise DataError(explain(str(path), f"{len(infos)} members", f"at most {MAX_MEMBERS}"))
    for info in infos:
        name = info.filename.removesuffix(".npy")
        if name == info.filename or not name.isidentifier():
            raise DataError(explain(str(path), f"the member {info.filename!r}", "members called NAME.npy"))
        if allowed is not None and name not in allowed:
            raise DataError(explain(str(path), f"the unknown key {name!r}", f"keys out of {', '.join(allowed)}",
                                    did_you_mean(name, allowed)))
        if name in members:
            raise DataError(explain(str(path), f"two members called {name!r}", "unique names"))
        members[name] = info
    total = sum(info.file_size for info in infos)
    if total > max_bytes:
        raise DataError(explain(str(path), f"{total:,} bytes of arrays", f"at most {max_bytes:,}",
                                "Give a larger max_bytes if the file is meant to be so large."))
    return members


def _read_array(thing: str, stream: IO[bytes], size: int) -> np.ndarray:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise DataError(explain(thing, f"array format {version}", "1.0 or 2.0"))
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if dtype.kind not in "biufU" or dtype.itemsize == 0 or len(shape) > MAX_AXES or any(n < 0 for n in shape):
        raise DataError(explain(thing, f"dtype {dtype} and shape {shape}", f"numbers (or text) with at most {MAX_AXES} axes",
                                "Python objects are not read: save plain arrays."))
    data_bytes = math.prod(shape) * dtype.itemsize
    if stream.tell() + data_bytes != size:
        raise DataError(explain(thing, f"{size:,} bytes", f"{stream.tell() + data_bytes:,} for {dtype} of shape {shape}"))
    flat = np.empty(math.prod(shape), dtype)
    bytes_of_array = flat.view(np.uint8)
    filled = 0
    while filled < data_bytes:
        chunk = stream.read(min(CHUNK, data_bytes - filled))
        if not chunk:
            raise DataError(explain(thing, f"{filled:,} of {data_bytes:,} bytes", "all of them", "Make or fetch it again."))
        bytes_of_array[filled : filled + len(chunk)] = np.frombuffer(chunk, np.uint8)
        filled += len(chunk)
    array = flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
    return np.ascontiguousarray(array, dtype.newbyteorder("="))
