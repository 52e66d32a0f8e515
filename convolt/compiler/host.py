"""What the host process is told before training: how freed memory is kept, how many threads compute, what float32 is."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from convolt import devices
from convolt.kernels.threads import on_each

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # glibc's malloc.h
_KEPT, _RETURNED = 2**30, 2**20  # bytes from which memory is not kept when it is freed


@functools.cache
def keep_freed_memory() -> str:
    """Tells glibc to keep freed memory for the next step; returns "kept", or why not. Works once per process.

    By default, each large temporary of a step is fresh memory from the kernel, which has to be cleared page by page, and
    goes back when it is freed. That alone takes a third to a half of a training step on a CPU.
    """
    if platform.libc_ver()[0] != "glibc":
        return f"left to the system (no glibc on {platform.system()})"
    libc = ctypes.CDLL(None)
    done = libc.mallopt(_MMAP_THRESHOLD, _KEPT) and libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    return "kept" if done else "left to the system (glibc refused)"


def release_freed_memory() -> None:
    """Gives what glibc keeps back to the system: what one candidate of a search has freed does not fit the next one's needs."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def returning_freed_memory() -> Iterator[None]:
    """Large memory goes back to the system when it is freed: for a pass that is done once and needs more than any step.

    What such a pass leaves in the heap fits nothing that comes later, and holes between its blocks take as much again.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    release_freed_memory()
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, _RETURNED)
    try:
        yield
    finally:
        if keep_freed_memory() == "kept":
            libc.mallopt(_MMAP_THRESHOLD, _KEPT)
        release_freed_memory()


@contextmanager
def computing(device: torch.device, exact: bool, training: bool = False) -> Iterator[None]:
    """What holds while a model is trained, evaluated or asked, and is as before afterwards: the number of threads, and what float32 is.

    Args:
        device: that computes.
        exact: whether float32 was asked for, which then is computed in nothing shorter (`devices.float32_as_said`).
        training: whether weights are changed, for which tiny numbers do not matter (`flushing_denormals`).
    """
    before = torch.get_num_threads()
    wanted = threads()
    if wanted != before:
        torch.set_num_threads(wanted)
    try:
        exactly = devices.float32_as_said(device) if exact else nullcontext()
        with exactly, flushing_denormals(device) if training else nullcontext():
            yield
    finally:
        if wanted != before:
            torch.set_num_threads(before)


@contextmanager
def flushing_denormals(device: torch.device) -> Iterator[None]:
    """Inside, float32 below 1.2e-38 counts as zero on a CPU, as TensorFlow and JAX have it; afterwards all is as before.

    Averages of gradients that have become zero, those of a unit that ReLU has switched off, come down to such numbers in some hundred
    steps. Many processors compute with them so slowly that Adam's update took six times as long from then on.
    """
    smallest = sys.float_info.min
    if device.type != "cpu" or smallest / 2 == 0.0:  # which the user has said already
        yield
        return
    on_each(lambda: torch.set_flush_denormal(True))
    try:
        yield
    finally:
        on_each(lambda: torch.set_flush_denormal(False))


def threads() -> int:
    """Returns how many threads compute on the host: one for each physical core that may be used, unless the user has said a number.

    It is said by `OMP_NUM_THREADS` or `MKL_NUM_THREADS`, or by `torch.set_num_threads`. PyTorch tells no such number from its own
    default, which is all cores or all CPUs of the machine; so a number that is neither counts as said.
    """
    now = torch.get_num_threads()
    if any(name in os.environ for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")):
        return now
    return devices.usable_cores() if now in devices.default_threads() else now
