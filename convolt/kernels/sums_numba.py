"""Sums of many numbers in Numba's kernels: short runs in float32, which are added up in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from convolt.kernels.compiled import Compiled
from convolt.kernels.jit import register_jitable


@register_jitable
def flush(narrow: Any, wide: Any) -> None:
    """Adds short float32 sums to float64 ones and starts them anew."""
    for i in range(narrow.size):
        wide[i] += narrow[i]
        narrow[i] = np.float32(0)


@Compiled
def add_up(parts: Any, total: Any) -> None:
    """Fills totals with the sums of parts that lie one behind the other."""
    total[:] = 0.0
    for start in range(0, parts.size, total.size):
        part = parts[start : start + total.size]
        for i in range(total.size):
            total[i] += part[i]
