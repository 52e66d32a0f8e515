"""Runs the rows of a CPU kernel on `torch.get_num_threads()` threads.

In a program's main thread these are PyTorch's own: after each of PyTorch's ops its OpenMP threads spin for milliseconds, since the
next op may come at once, and a kernel on other threads shares the cores with them (a convolution took 1.5 times as long). A pool of
Python threads does the work in other threads, in a forked child, where not all of the team are wanted (OpenMP would end the others
and start them anew), and where PyTorch has another way to its threads.

Numba's own `prange` is not used: it compiles three to four times slower, its pool aborts the process when two Python
threads call it or a child is forked, and it wakes a second OpenMP team while PyTorch's still spins. A kernel compiled
with `nogil` has none of these and costs some tens of microseconds for each call.
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
from typing import Any

import torch

SMALLEST_PART = 1 << 17
"""Bytes below which another thread costs more than it saves."""
MOST_PARTS = 16
"""Memory bandwidth is used up by then on today's CPUs; waking more threads only costs."""

_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_forked = False
_Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _forget_threads() -> None:
    """Threads do not survive a fork; the child starts its own, which OpenMP cannot."""
    global _pool, _pool_size, _forked
    _pool, _pool_size, _forked = None, 0, True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


@functools.cache
def _openmp() -> Any:
    """Returns the function with which the OpenMP that PyTorch has loaded calls a task on each of its threads; None without one."""
    if sys.platform != "linux":
        return None
    try:
        parallel = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes, parallel.restype = (_Task, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return parallel


def _helpers(count: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    if _pool is None or _pool_size < count:
        _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="convolt-kernel"), count
    return _pool


def over_rows(run: Callable[[int, int], object], rows: int, size: int) -> None:
    """Calls `run(first, last)` on parts of `range(rows)`, in threads if the work is large enough.

    Args:
        run: works on rows first … last - 1 and writes only what belongs to them.
        rows: how many there are.
        size: bytes that the whole work reads and writes.
    """
    team = torch.get_num_threads()
    parts = max(1, min(team, MOST_PARTS, rows, size // SMALLEST_PART))
    if parts == 1:
        run(0, rows)
        return
    bounds = [rows * i // parts for i in range(parts + 1)]
    todo, errors = list(range(parts)), []

    def work(_: object = None) -> None:
        while todo:
            try:
                part = todo.pop()
            except IndexError:  # another thread was faster
                return
            try:
                run(bounds[part], bounds[part + 1])
            except BaseException as error:  # no exception passes OpenMP; all parts are done before it is raised
                errors.append(error)

    own = parts == team and not _forked and threading.current_thread() is threading.main_thread()
    parallel = _openmp() if own else None
    if parallel is not None:
        parallel(_Task(work), None, parts, 0)
    else:
        helpers = _helpers(parts - 1)
        waiting = [helpers.submit(work) for _ in range(parts - 1)]
        work()
        for future in waiting:
            future.result()
    if errors:
        raise errors[0]
