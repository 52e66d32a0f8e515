"""Errors that a user can cause.

Every message names the thing, what was got, what was expected and what to do. `explain` puts these four
in one order, so that all messages of Convolt read alike; each class also is the built-in error that Python
programmers would catch (`ValueError`, `TypeError`, …).
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class ConvoltError(Exception):
    """Base of every error that Convolt raises on purpose."""


class ArgumentError(ConvoltError, ValueError):
    """An argument has a value that cannot be used."""


class ArgumentTypeError(ConvoltError, TypeError):
    """An argument has a type that cannot be used."""


class ShapeError(ConvoltError, ValueError):
    """A tensor's shape does not fit; shapes in the message are as the user writes them (channels last)."""


class DataError(ConvoltError, ValueError):
    """Arrays, labels or files of a data set cannot be used."""


class ModelFileError(ConvoltError, ValueError):
    """A saved model is damaged, foreign or does not fit."""


class DeviceError(ConvoltError, RuntimeError):
    """The device that was asked for cannot be used."""


class StateError(ConvoltError, RuntimeError):
    """A call came too early, such as `fit` before `compile`."""


class DoesNotFitError(ConvoltError, MemoryError):
    """The device has not enough memory, also not for one sample at once."""


class CheckpointError(ConvoltError, RuntimeError):
    """A checkpoint cannot be written, is damaged, or belongs to another training than the one that asks for it."""


class NonFiniteError(StateError):
    """Losses or weights became NaN or infinite in a training."""


class MissingFeatureError(ConvoltError, AttributeError):
    """Something that Keras has and Convolt does not (yet) have, or a misspelt name."""


class MissingImportError(ConvoltError, ImportError):
    """The same in `from convolt.… import name` (see `convolt.missing`)."""


class MissingPackageError(ConvoltError, ImportError):
    """An optional package is not installed."""


class ConvoltWarning(UserWarning):
    """Something works but is probably not what the user means."""


def explain(thing: str, got: object, expected: str, fix: str = "") -> str:
    """Returns "`thing`: got …; expected …. `fix`", the one form of all messages.

    >>> explain("batch_size", 0, "a whole number from 1", "Try batch_size=32.")
    'batch_size: got 0; expected a whole number from 1. Try batch_size=32.'
    """
    shown = got if isinstance(got, str) else repr(got)
    return f"{thing}: got {shown}; expected {expected}.{' ' + fix if fix else ''}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns "Did you mean 'x'?" for the nearest known word, or the list of known words.

    >>> did_you_mean("adm", ["adam", "sgd"])
    "Did you mean 'adam'?"
    """
    names = sorted(set(known))
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f"Did you mean '{by_lower[near[0]]}'?" if near else f"Known: {', '.join(names)}."


def names_arguments(method: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Makes a method tell the nearest name where it gets an unknown argument, in place of Python's bare TypeError.

    >>> class Model:
    ...     @names_arguments
    ...     def fit(self, epochs=1): return epochs
    >>> Model().fit(epoch=3)
    Traceback (most recent call last):
    convolt.errors.ArgumentTypeError: fit(...): got the unknown argument 'epoch'; expected an argument of fit. Did you mean 'epochs'?
    """
    known = [name for name in inspect.signature(method).parameters if name != "self"]

    @functools.wraps(method)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        for argument in kwargs:
            if argument not in known:
                raise ArgumentTypeError(explain(f"{method.__name__}(...)", f"the unknown argument {argument!r}",
                                                f"an argument of {method.__name__}", did_you_mean(argument, known)))
        return method(*args, **kwargs)

    return call
