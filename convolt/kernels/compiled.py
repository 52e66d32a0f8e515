"""A kernel that is compiled at its first call: its machine code, kept on disk, and the call, on PyTorch's threads.

The code is compiled in a process of its own (`builder.py`) and loaded without LLVM (`machine_code.py`), so that neither Numba nor LLVM
take memory here. Where this is not possible, on other systems or where no process can be started, they are used in this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import struct
import threading
import time
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from convolt.kernels import builder, machine_code, threads
from convolt.kernels.memory import KINDS, Flat

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
_PACKAGE = __name__.rsplit(".", 1)[0]
_CALL = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)
_lock = threading.Lock()
_spent = [0.0]


def compiling_seconds() -> float:
    """Returns for how long kernels have been compiled for this process so far."""
    return _spent[0]


def _begin_anew() -> None:
    """In a forked child no thread holds the lock."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)

_WHOLE: dict[tuple[Any, ...], tuple[str, ...]] = {(int,) * count: ("i",) * count for count in range(1, 24)}  # sizes
_FLOAT, _DOUBLE, _NARROW, _WIDE = (struct.Struct(letter) for letter in "fdiq")
_SCALARS: dict[type, tuple[str, Any, Any]] = {
    int: ("i", None, None), np.int64: ("i", None, None), bool: ("b", None, None), np.float32: ("f", _FLOAT.pack, _NARROW.unpack),
    float: ("d", _DOUBLE.pack, _WIDE.unpack), np.float64: ("d", _DOUBLE.pack, _WIDE.unpack)}

Function = Callable[[Any], int]
"""Takes the address of a block (see `team_numba`)."""
UNUSED_DAYS = 60
"""A kernel that was not loaded for so long is removed: of a version, or for a processor, that is no longer there."""
LONGEST_WAIT = 60.0
"""Seconds for which a process waits for another that compiles the same kernel."""
HEADER = 5
"""Numbers in a block before those of the arguments."""


class Compiled:
    """A function that Numba compiles at its first call, without the GIL, and caches on disk where a folder is writable.

    The folder is `NUMBA_CACHE_DIR`, else one beside the source, else `kernels` in the cache folder. If none is writable, or the disk is
    full, the kernel is compiled anew in each process.

    Args:
        function: to compile. It returns nothing.
        fastmath: LLVM's flags of liberties with floats, none by default; "contract" fuses products and sums.
        made_by: where it is no function of a module, but one that a function of the module makes: that one's name and arguments.
    """

    def __init__(self, function: Callable[..., Any], fastmath: Collection[str] = (), made_by: tuple[Any, ...] = ()) -> None:
        self.function = function
        self._fastmath = sorted(fastmath)
        self._made_by = made_by
        self._made: dict[tuple[Any, ...], tuple[Function, Any]] = {}

    def __call__(self, *arguments: Any) -> None:
        """Calls the function itself."""
        function, words = self._ready(False, arguments)
        self._run(function, array("q", words), arguments)

    def over_rows(self, arguments: tuple[Any, ...], rows: int, size: int) -> None:
        """Calls `function(*arguments, first, last)` on parts of `range(rows)`, in threads if the work is large enough (see `threads`).

        Args:
            arguments: of the function but for the last two. It works on rows first … last - 1 and writes only what belongs to them.
            rows: how many there are.
            size: bytes that the whole work reads and writes.
        """
        function, words = self._ready(True, arguments)
        self._in_parts(function, array("q", words), arguments, (), rows, size)

    def prepared(self, arguments: tuple[Any, ...], rows: int, size: int) -> Prepared:
        """Returns `over_rows` with such arguments, to be called with tensors in the arrays' places: what takes longest is done once."""
        function, words = self._ready(True, arguments)
        places = _addresses(arguments)
        run = functools.partial(self._in_parts, function, places=places, rows=rows, size=size)
        return Prepared(run, array("q", words), places)

    def _ready(self, rows: bool, arguments: tuple[Any, ...]) -> tuple[Function, list[int]]:
        """Returns the machine code for such arguments, and what it is given."""
        kinds: list[Any] = []
        words = [0] * HEADER
        _take_apart(arguments, kinds, words)
        key = (rows, *kinds)
        return (self._made.get(key) or self._make(key))[0], words

    def _run(self, function: Function, block: array[int], given: Sequence[Any], places: Sequence[int] = ()) -> None:
        """Calls machine code; `places` of addresses in the block are found from the arguments `given` where they are not known."""
        if (watcher := _watcher) is not None:
            watcher.called(self.function.__name__, function, block, places or _addresses(given), given)
        if function(block.buffer_info()[0]):
            raise no_memory(self.function.__name__)

    def _in_parts(self, function: Function, block: array[int], given: Sequence[Any], places: Sequence[int], rows: int, size: int) -> None:
        parts = threads.parts_of(rows, size)
        openmp = threads.openmp() if parts > 1 else 0
        if parts == 1 or openmp:
            block[:HEADER] = array("q", (openmp, torch.get_num_threads(), parts, 0, rows))
            self._run(function, block, given, places)
            return
        if (watcher := _watcher) is not None:
            watcher.elsewhere(self.function.__name__)

        def run(first: int, last: int) -> None:
            part = array("q", (0, 1, 1, first, last)) + block[HEADER:]
            if function(part.buffer_info()[0]):
                raise no_memory(self.function.__name__)

        threads.in_pool(run, rows, parts)

    def _make(self, key: tuple[Any, ...]) -> tuple[Function, Any]:
        """Returns the machine code for a kind of call, loaded, and what has to be kept."""
        with _lock:
            if key not in self._made:
                request = self._request(key)
                file = cache_file(request["name"])
                code = _read(file)
                if code is None:
                    began = time.monotonic()
                    with _in_turn(file):
                        code = _read(file)  # another process may have made it meanwhile
                        if code is None:
                            code = self._compile(request)
                            _write(file, code)
                    _spent[0] += time.monotonic() - began
                address, kept = _load(request["name"], code)
                self._made[key] = _CALL(address), kept
            return self._made[key]

    def _request(self, key: tuple[Any, ...]) -> dict[str, Any]:
        """Returns what `builder.compile_here` takes, with a name in which all that the code depends on has its part."""
        function, (rows, *kinds) = self.function, key
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        settings = [value for value in cells if isinstance(value, (bool, int, float, str))]
        depends = [_sources(function.__code__.co_filename), _system(), function.__module__, function.__qualname__, settings, kinds, rows,
                   self._fastmath]
        digest = hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:24]
        maker, *made_by = self._made_by or (function.__name__,)
        return {"name": f"{function.__name__.strip('_')}_{digest}", "module": function.__module__, "function": maker,
                "made_by": made_by if self._made_by else None, "kinds": kinds, "rows": rows, "fastmath": self._fastmath}

    def _compile(self, request: dict[str, Any]) -> bytes:
        """Returns the object file; a kernel from elsewhere, which another process might not find, is compiled in this one."""
        code = builder.compile_elsewhere(request) if request["module"].startswith(f"{_PACKAGE}.") else None
        if code is not None:
            return code
        from convolt.kernels import team_numba

        return team_numba.object_code(request["name"], self.function, request["kinds"], request["rows"], self._fastmath)


def no_memory(name: str) -> MemoryError:
    """Returns the error of a kernel that could not have the memory in which it works."""
    return MemoryError(f"kernel {name}: no memory to work in")


class Watcher(Protocol):
    """What is told of each call of machine code (see `watch`)."""

    def called(self, name: str, function: Function, block: Sequence[int], places: Sequence[int], arguments: Sequence[Any]) -> None:
        """A kernel is about to be called with a block, in which addresses lie at `places`."""

    def elsewhere(self, name: str) -> None:
        """A kernel is about to be called in parts, on threads of Python."""


_watcher: Watcher | None = None


def watch(watcher: Watcher | None) -> None:
    """Has a watcher told of all calls of kernels from now on, in any thread; None: nobody any more."""
    global _watcher
    _watcher = watcher


class Prepared:
    """A call of which nothing but its arrays' places in memory changes from time to time.

    Args:
        run: takes the block, and the tensors `given`.
        block: that a kernel is given.
        places: of the addresses in it.
    """

    def __init__(self, run: Callable[..., None], block: array[int], places: Sequence[int]) -> None:
        self._run, self._block, self._places = run, block, places

    def __call__(self, *arrays: Tensor | None) -> None:
        """Runs with arrays, in the arguments' order, that are as those it was prepared with; None where these are empty."""
        block = self._block[:]
        for place, given in zip(self._places, arrays, strict=True):
            block[place] = 0 if given is None else given.data_ptr()
        self._run(block, given=arrays)


def _addresses(arguments: Sequence[Any]) -> list[int]:
    """Returns where in a block the addresses of the arrays are."""
    found, at = [], HEADER
    for argument in arguments:
        words: list[int] = []
        _take_apart((argument,), [], words)
        if isinstance(argument, (Tensor, Flat, np.ndarray)):
            found.append(at)
        at += len(words)
    return found


def _take_apart(arguments: Sequence[Any], kinds: list[Any], words: list[int]) -> None:
    """Appends what arguments are, and their numbers as 64-bit words, to two lists.

    An array or tensor is "TYPE/AXES", a scalar "i" (whole), "b" (truth value), "f" (float32) or "d" (float64), a tuple a tuple of these.
    """
    for argument in arguments:
        kind = type(argument)
        if kind is Flat:
            kinds.append(argument[0])
            words += argument[1:3]
        elif kind is Tensor or isinstance(argument, Tensor):
            if not argument.is_contiguous():
                raise TypeError(f"a kernel was given a tensor of shape {tuple(argument.shape)} that is not contiguous")
            kinds.append(KINDS[argument.dtype, argument.ndim])
            words.append(argument.data_ptr())
            words += argument.shape
        elif kind is tuple:
            found = _WHOLE.get(tuple(map(type, argument)))
            if found is not None:
                kinds.append(found)
                words += argument
            else:
                inside: list[Any] = []
                _take_apart(argument, inside, words)
                kinds.append(tuple(inside))
        elif kind in _SCALARS:
            name, pack, unpack = _SCALARS[kind]
            kinds.append(name)
            words.append(unpack(pack(argument))[0] if pack else int(argument))
        elif kind is np.ndarray:
            if not argument.flags.c_contiguous:
                raise TypeError(f"a kernel was given an array of shape {argument.shape} that is not contiguous")
            kinds.append(f"{argument.dtype.str}/{argument.ndim}")
            words.append(argument.ctypes.data)
            words += argument.shape
        else:
            raise TypeError(f"a kernel was given a {kind.__name__}, expected arrays, numbers and tuples of them")


# -- machine code on disk ------------------------------------------------------------------------------------------


def source_files(file: str) -> list[Path]:
    """Returns a kernel's own source file and all those whose functions it may call and whose constants it may hold."""
    folder = Path(__file__).parent
    return [Path(file), *(path for names in ("*_numba.py", "*_reference.py", "jit.py") for path in sorted(folder.glob(names)))]


@functools.cache
def _sources(file: str) -> str:
    """Returns a digest of what the code is made from."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in source_files(file) if path.is_file())).hexdigest()


@functools.cache
def _system() -> list[Any]:
    """Returns what compiles, and for what: versions, what Numba is told to make, and the processor, whose instructions the code may use."""
    told = [os.environ.get(f"NUMBA_{name}") for name in ("CPU_NAME", "CPU_FEATURES", "ENABLE_AVX", "OPT")]
    return [importlib.metadata.version("numba"), importlib.metadata.version("llvmlite"), told, platform.machine(), _processor()]


def _processor() -> str:
    if machine_code.loads_here():
        with contextlib.suppress(OSError):
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            return " ".join(dict.fromkeys(line for line in lines if line.startswith(("model name", "flags"))))
    from llvmlite import binding  # which loads the code as well

    return f"{binding.get_host_cpu_name()} {binding.get_host_cpu_features().flatten()}"


def cache_file(name: str) -> Path | None:
    """Returns where the machine code of a kernel is kept; None where no folder is writable."""
    own, ours, home = (os.environ.get(name, "").strip() for name in ("NUMBA_CACHE_DIR", "CONVOLT_CACHE", "XDG_CACHE_HOME"))
    users = ours or f"{home or '~/.cache'}/convolt"
    folders = [own] if own else [str(Path(__file__).parent / "__pycache__"), f"{users}/kernels"]
    for given in folders:
        with contextlib.suppress(OSError, RuntimeError):  # a user without a home
            folder = Path(given).expanduser()
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder / f"{name}.kernel"
    return None


def _read(file: Path | None) -> bytes | None:
    """Returns what `_write` wrote; None where there is nothing, or it is damaged."""
    if file is None:
        return None
    try:
        digest, code = (content := file.read_bytes())[:32], content[32:]
    except OSError:
        return None
    if hashlib.sha256(code).digest() != digest:
        return None
    with contextlib.suppress(OSError):  # another user's file, which only its own loading keeps
        os.utime(file)
    return code


def _write(file: Path | None, code: bytes) -> None:
    """Writes beside the target, then renames; where the disk is full the next process compiles again."""
    if file is None:
        return
    beside = file.with_name(f".{file.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        beside.write_bytes(hashlib.sha256(code).digest() + code)
        os.replace(beside, file)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
    else:
        _remove_unused(file.parent)


@contextlib.contextmanager
def _in_turn(file: Path | None) -> Iterator[None]:
    """Waits while another process compiles this kernel, such as a rank that began together with this one; not for ever."""
    lock = None
    if fcntl is not None and file is not None:
        beside = file.with_name(f".{file.name}.lock")
        with contextlib.suppress(OSError):
            lock = beside.open("w")
    if lock is None or file is None:
        yield
        return
    with lock:
        until = time.monotonic() + LONGEST_WAIT
        while not (own := _locked(lock)) and time.monotonic() < until and not file.exists():
            time.sleep(0.02)
        try:
            yield
        finally:
            if own:
                beside.unlink(missing_ok=True)


def _locked(file: IO[str]) -> bool:
    """Whether this process has the lock of an open file now; on file systems without locks each has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@functools.cache
def _remove_unused(folder: Path) -> None:
    """Removes the kernels in a folder that no process has loaded for long; once for each process."""
    for file in folder.glob("*.kernel"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > UNUSED_DAYS * 86_400:
                file.unlink()


def _load(name: str, code: bytes) -> tuple[int, Any]:
    if machine_code.loads_here():
        with contextlib.suppress(machine_code.CannotLoadError):
            return machine_code.load(name, code)
    from convolt.kernels import team_numba

    found: tuple[int, Any] = team_numba.load(name, code)
    return found
