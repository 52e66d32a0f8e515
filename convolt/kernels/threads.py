"""On which threads the rows of a CPU kernel run: `torch.get_num_threads()` of them (see `compiled.Compiled.over_rows`).

In a program's main thread these are PyTorch's own: after each of PyTorch's ops its OpenMP threads spin for milliseconds, since the
next op may come at once, and a kernel on other threads shares the cores with them (a convolution took 1.5 times as long). A pool of
Python threads does the work in other threads, in a forked child, and where PyTorch has another way to its threads.

Numba's own `prange` is not used: it compiles three to four times slower, its pool aborts the process when two Python
threads call it or a child is forked, and it wakes a second OpenMP team while PyTorch's still spins. A kernel compiled
with `nogil` has none of these. OpenMP's threads run it without Python (see `team_numba`), which costs a few microseconds.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

SMALLEST_PART = 1 << 17
"""Bytes below which another thread costs more than it saves."""
MOST_PARTS = 16
"""Memory bandwidth is used up by then on today's CPUs; waking more threads only costs."""

_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_forked = False


def _forget_threads() -> None:
    """Threads do not survive a fork; the child starts its own, which OpenMP cannot."""
    global _pool, _pool_size, _forked
    _pool, _pool_size, _forked = None, 0, True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


@functools.cache
def _gomp_parallel() -> int:
    """Returns the address of the function with which PyTorch's OpenMP calls a task on each of its threads; 0 without one."""
    if sys.platform != "linux":
        return 0
    try:
        parallel = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(parallel, ctypes.c_void_p).value or 0


def _helpers(count: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    if _pool is None or _pool_size < count:
        _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="convolt-kernel"), count
    return _pool


def parts_of(rows: int, size: int) -> int:
    """Returns into how many parts work on so many rows, which reads and writes `size` bytes, is divided."""
    return max(1, min(torch.get_num_threads(), MOST_PARTS, rows, size // SMALLEST_PART))


def openmp() -> int:
    """Returns the address of `GOMP_parallel` where PyTorch's own threads are to do the work, else 0.

    It is given as many threads as PyTorch has, whatever the number of parts: with another number OpenMP ends threads and starts them anew.
    """
    own = not _forked and threading.current_thread() is threading.main_thread()
    return _gomp_parallel() if own else 0


def on_each(work: Callable[[], object]) -> None:
    """Calls `work` once on each of PyTorch's threads; where these cannot be reached, in this thread alone."""
    address, count = openmp(), torch.get_num_threads()
    if not address or count == 1:
        work()
        return
    task = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    parallel = ctypes.CFUNCTYPE(None, task, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(address)
    parallel(task(lambda _: work()), None, count, 0)


def in_pool(run: Callable[[int, int], object], rows: int, parts: int) -> None:
    """Calls `run(first, last)` on parts of `range(rows)` in this thread and others of Python's.

    The first error comes back when all are done.

    Args:
        run: works on rows first … last - 1 and writes only what belongs to them.
        rows: how many there are.
        parts: into how many they are divided.
    """
    bounds = [rows * i // parts for i in range(parts + 1)]
    waiting = [_helpers(parts - 1).submit(run, bounds[i], bounds[i + 1]) for i in range(1, parts)]
    errors: list[BaseException] = []
    try:
        run(bounds[0], bounds[1])
    except BaseException as error:  # the others still write
        errors.append(error)
    errors += [failed for future in waiting if (failed := future.exception()) is not None]
    if errors:
        raise errors[0]
