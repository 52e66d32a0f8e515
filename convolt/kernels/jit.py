"""Numba's decorators, whose work waits until a kernel has to be compiled.

Numba with LLVM takes a hundred megabytes and half a second of a process, and compiling as much again. A process that finds its kernels
compiled on disk needs none of that (`compiled.py`), so a module of kernels says here what it wants of Numba, which is imported later.
"""

from __future__ import annotations

import functools
import importlib
import typing
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

LANES = 16
"""Numbers in a vector of the kernels (`vectors_numba.py`)."""

_waiting: list[Callable[[], object]] = []


class _Module:
    """A module that is imported when something of it is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)


cgutils: Any = _Module("numba.core.cgutils")
ir: Any = _Module("llvmlite.ir")
types: Any = _Module("numba.core.types")


class Later:
    """What kernels call, or what makes it, by a way to get it, which is gone when a kernel is compiled.

    Args:
        make: returns it.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = functools.cache(make)

    def __call__(self, *arguments: Any) -> Any:
        """Returns what a function that makes something will return."""
        return Later(lambda: self._make()(*arguments))

    @property
    def _numba_type_(self) -> Any:
        from numba.core.registry import cpu_target

        found = self._make()
        cpu_target.typing_context.refresh()  # which takes up what has just been made
        cpu_target.target_context.refresh()
        return cpu_target.typing_context.resolve_value_type(found)


def intrinsic(function: Callable[..., Any]) -> Any:
    """`numba.extending.intrinsic`."""
    return Later(lambda: importlib.import_module("numba.extending").intrinsic(function))


@typing.overload
def register_jitable(function: F, /) -> F: ...


@typing.overload
def register_jitable(*, fastmath: set[str], forceinline: bool = False) -> Callable[[F], F]: ...


def register_jitable(function: Any = None, /, **options: Any) -> Any:
    """`numba.extending.register_jitable`."""
    if function is None:
        return functools.partial(_register, options)
    return _register({}, function)


def _register(options: dict[str, Any], function: F) -> F:
    _waiting.append(lambda: importlib.import_module("numba.extending").overload(function, jit_options=options, strict=False)(
        lambda *arguments: function))  # what Numba's decorator of this name does
    return function


def overload(target: Callable[..., Any]) -> Callable[[F], F]:
    """`numba.extending.overload`; names of arguments may differ in their annotations."""
    def wait(function: F) -> F:
        _waiting.append(lambda: importlib.import_module("numba.extending").overload(target, strict=False)(function))
        return function

    return wait


def tell_numba() -> None:
    """Tells Numba what was declared since the last call; compiling comes after that."""
    while _waiting:
        _waiting.pop(0)()
