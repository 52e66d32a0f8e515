"""Bfloat16 in Numba's kernels, which lacks it, as the upper half of a float32.

Kernels get float32 as int32 bits and bfloat16 as int16 bits. The functions here exist for both, chosen by type when a
kernel is compiled, so that a kernel is written once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from convolt.kernels.jit import overload, register_jitable, types


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
