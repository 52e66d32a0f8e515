"""Runs the rows of a CPU kernel on `torch.get_num_threads()` threads.

Numba's own `prange` is not used: it compiles three to four times slower, its pool aborts the process when two Python
threads call it or a child is forked, and it wakes a second OpenMP team while PyTorch's still spins. A kernel compiled
with `nogil` on a few Python threads has none of these and costs some tens of microseconds for each call.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

SMALLEST_PART = 1 << 17
"""Bytes below which another thread costs more than it saves."""
MOST_PARTS = 16
"""Memory bandwidth is used up by then on today's CPUs; waking more threads only costs."""

_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _forget_pool() -> None:
    """Threads do not survive a fork; the child starts its own."""
    global _pool, _pool_size
    _pool, _pool_size = None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


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
    parts = max(1, min(torch.get_num_threads(), MOST_PARTS, rows, size // SMALLEST_PART))
    if parts == 1:
        run(0, rows)
        return
    bounds = [rows * i // parts for i in range(parts + 1)]
    helpers = _helpers(parts - 1)
    waiting = [helpers.submit(run, bounds[i], bounds[i + 1]) for i in range(1, parts)]
    try:
        run(bounds[0], bounds[1])
    finally:  # nobody writes to the tensors after this call, even if it fails
        errors = [future.exception() for future in waiting]
    for error in errors:
        if error is not None:
            raise error
