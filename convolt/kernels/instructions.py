"""What kernels call and LLVM's own words make: functions of `vectors_numba`, `lanes_numba`, `pixels_numba`, `planes_numba`, `lines_numba`.

These modules load Numba. So they are imported when a kernel is compiled, and the names here stand for theirs until then.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from convolt.kernels.jit import Later

_MODULES = ("vectors", "lanes", "pixels", "planes", "lines")


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    return Later(functools.partial(_found, name))


def _found(name: str) -> Any:
    for module in _MODULES:
        found = getattr(importlib.import_module(f"convolt.kernels.{module}_numba"), name, None)
        if found is not None:
            return found
    raise AttributeError(f"none of {', '.join(_MODULES)} has {name}")
