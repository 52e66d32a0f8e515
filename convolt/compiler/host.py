"""What the host process is told once before training: how freed memory is kept."""

from __future__ import annotations

import ctypes
import functools
import platform

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # glibc's malloc.h


@functools.cache
def keep_freed_memory() -> str:
    """Tells glibc to keep freed memory for the next step; returns "kept", or why not. Works once per process.

    By default, each large temporary of a step is fresh memory from the kernel, which has to be cleared page by page, and
    goes back when it is freed. That alone takes a third to a half of a training step on a CPU.
    """
    if platform.libc_ver()[0] != "glibc":
        return f"left to the system (no glibc on {platform.system()})"
    libc = ctypes.CDLL(None)
    done = libc.mallopt(_MMAP_THRESHOLD, 2**30) and libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    return "kept" if done else "left to the system (glibc refused)"
