"""Bfloat16 in Numba's kernels, which lacks it, as the upper half of a float32.

Kernels get float32 as int32 bits and bfloat16 as int16 bits. The functions here exist for both, chosen by type when a
kernel is compiled, so that a kernel is written once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from convolt.kernels.jit import overload, types


def ordered(v: Any) -> Any:
    """Bits → an integer that orders as the number does, with every NaN above infinity."""


def to_float(v: Any) -> Any:
    """Bits → float32."""


def from_float(f: Any, like: Any) -> Any:
    """Float32 → bits of the kind of `like`; bfloat16 is rounded to nearest, ties to even."""


@overload(ordered)
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


@overload(unordered)
def _unordered(v: Any) -> Callable[..., Any]:
    if v == types.int16:
        return lambda v: np.int16(v ^ np.int16(np.int16(v >> 15) & np.int16(0x7FFF)))
    return lambda v: np.int32(v ^ np.int32(np.int32(v >> 31) & np.int32(0x7FFFFFFF)))


@overload(to_float)
def _to_float(v: Any) -> Callable[..., Any]:
    if v == types.int16:
        return lambda v: np.int32(np.int32(v) << 16).view(np.float32)
    return lambda v: np.int32(v).view(np.float32)


@overload(from_float)
def _from_float(f: Any, like: Any) -> Callable[..., Any]:
    if like == types.int16:
        def from_float16(f: Any, like: Any) -> Any:
            raw = np.float32(f).view(np.int32)
            rounded = np.int32(raw + np.int32(0x7FFF) + np.int32(np.int32(raw >> 16) & np.int32(1)))
            return np.int16(rounded >> 16) if f == f else np.int16(0x7FC0)
        return from_float16
    return lambda f, like: np.float32(f).view(np.int32)
