"""Numba: compiling with a cache, and bfloat16, which Numba lacks, as the upper half of a float32.

Kernels get float32 as int32 bits and bfloat16 as int16 bits. The functions here exist for both, chosen by type when a
kernel is compiled, so that a kernel is written once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from numba.extending import overload, register_jitable

from convolt.kernels import team_numba, threads

_TOOLS = ("bits", "team", "vectors", "pixels", "places", "planes", "folded", "winograd_filters")
_INLINED = tuple(Path(__file__).with_name(f"{name}_numba.py") for name in _TOOLS)
_DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in _INLINED)).hexdigest()[:8]


class Compiled:
    """A function that Numba compiles at its first call, without the GIL, and caches on disk where a folder is writable.

    Numba looks for a writable folder itself: beside the source, then the user's cache folder, or `NUMBA_CACHE_DIR`.
    If there is none, or the disk is full, the kernel is compiled anew in each process.

    Args:
        function: to compile.
        fastmath: LLVM's flags of liberties with floats, none by default; "contract" fuses products and sums.
    """

    def __init__(self, function: Callable[..., Any], fastmath: Collection[str] = ()) -> None:
        # Numba notices a change of the kernel's own file only. The digest of the files that others inline goes
        # into the cached file's name, so that no stale code is ever loaded.
        function.__qualname__ += f"_{_DIGEST}"
        self._function = function
        self._fastmath = set(fastmath)
        self._made: dict[str, Callable[..., Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Calls the function itself."""
        return self._run("alone", arguments)

    def over_rows(self, arguments: tuple[Any, ...], rows: int, size: int) -> None:
        """Calls `function(*arguments, first, last)` on parts of `range(rows)`, in threads if the work is large enough (see `threads`).

        Args:
            arguments: of the function but for the last two. It works on rows first … last - 1 and writes only what belongs to them.
            rows: how many there are.
            size: bytes that the whole work reads and writes.
        """
        parts = threads.parts_of(rows, size)
        openmp = threads.openmp() if parts > 1 else 0
        if parts == 1 or openmp:
            self._part(openmp, parts, 0, rows, arguments)
        else:
            threads.in_pool(lambda first, last: self._part(0, 1, first, last, arguments), rows, parts)

    def _part(self, openmp: int, parts: int, first: int, last: int, arguments: tuple[Any, ...]) -> None:
        if self._run("rows", (openmp, torch.get_num_threads(), parts, first, last, arguments)):
            raise MemoryError(f"kernel {self._function.__name__}: no memory to work in")

    def _run(self, form: str, arguments: tuple[Any, ...]) -> Any:
        if form not in self._made:
            try:
                self._made[form] = self._jit(form, cache=True)
            except RuntimeError:  # no folder is writable
                self._made[form] = self._jit(form, cache=False)
        try:
            return self._made[form](*arguments)
        except OSError:  # the cache could not be read or written; the kernels themselves open no files
            self._made[form] = self._jit(form, cache=False)
            return self._made[form](*arguments)

    def _jit(self, form: str, cache: bool) -> Callable[..., Any]:
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "cache": cache}
        if form == "rows":
            return team_numba.compiled(self._function, options, self._fastmath)
        compiled: Callable[..., Any] = numba.njit(self._function, **options, fastmath=self._fastmath)
        return compiled


def ordered(v: Any) -> Any:
    """Bits → an integer that orders as the number does, with every NaN above infinity."""


def to_float(v: Any) -> Any:
    """Bits → float32."""


def from_float(f: Any, like: Any) -> Any:
    """Float32 → bits of the kind of `like`; bfloat16 is rounded to nearest, ties to even."""


@overload(ordered, strict=False)  # annotations differ
def _ordered(v: Any) -> Callable[..., Any]:
    if v == types.int16:
        def ordered16(v: Any) -> Any:
            magnitude = np.int16(v & np.int16(0x7FFF))
            signed = np.int16(v ^ np.int16(np.int16(v >> 15) & np.int16(0x7FFF)))
            return magnitude if magnitude > np.int16(0x7F80) else signed
        return ordered16

    def ordered32(v: Any) -> Any:
        magnitude = np.int32(v & np.int32(0x7FFFFFFF))
        signed = np.int32(v ^ np.int32(np.int32(v >> 31) & np.int32(0x7FFFFFFF)))
        return magnitude if magnitude > np.int32(0x7F800000) else signed
    return ordered32


def unordered(v: Any) -> Any:
    """The inverse of `ordered` (NaN stays NaN)."""


@overload(unordered, strict=False)  # annotations differ
def _unordered(v: Any) -> Callable[..., Any]:
    if v == types.int16:
        return lambda v: np.int16(v ^ np.int16(np.int16(v >> 15) & np.int16(0x7FFF)))
    return lambda v: np.int32(v ^ np.int32(np.int32(v >> 31) & np.int32(0x7FFFFFFF)))


@overload(to_float, strict=False)  # annotations differ
def _to_float(v: Any) -> Callable[..., Any]:
    if v == types.int16:
        return lambda v: np.int32(np.int32(v) << 16).view(np.float32)
    return lambda v: np.int32(v).view(np.float32)


@overload(from_float, strict=False)  # annotations differ
def _from_float(f: Any, like: Any) -> Callable[..., Any]:
    if like == types.int16:
        def from_float16(f: Any, like: Any) -> Any:
            raw = np.float32(f).view(np.int32)
            rounded = np.int32(raw + np.int32(0x7FFF) + np.int32(np.int32(raw >> 16) & np.int32(1)))
            return np.int16(rounded >> 16) if f == f else np.int16(0x7FC0)
        return from_float16
    return lambda f, like: np.float32(f).view(np.int32)


@register_jitable
def exp32(x: Any) -> Any:
    """Float32 exponential of whole vectors, within two units of the last place; NaN stays NaN (Cephes, Moshier 1989)."""
    low, high = np.float32(-87.0), np.float32(88.0)
    x = low if x < low else high if x > high else x
    n = (x * np.float32(1.44269504) + np.float32(12582912.0)) - np.float32(12582912.0)  # the nearest whole number
    r = (x - n * np.float32(0.693359375)) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * np.int32(np.int32(np.int32(n) + np.int32(127)) << 23).view(np.float32)
