"""`--model-option NAME=VALUE`: arguments of an architecture or of the user's function, by name, read as its signature says."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from convolt.errors import ArgumentError, did_you_mean, explain

FLAG = "--model-option"
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def parse(given: Sequence[str]) -> dict[str, str]:
    """Returns names and texts of values from "NAME=VALUE"; a name may be written with "-" in place of "_".

    Raises:
        ArgumentError: a text has no "=", or a name comes twice.
    """
    found: dict[str, str] = {}
    for text in given:
        name, sign, value = (part.strip() for part in text.partition("="))
        name = name.replace("-", "_")
        if not (sign and name.isidentifier() and value):
            raise ArgumentError(explain(FLAG, repr(text), "NAME=VALUE", "Such as variant=torch."))
        if name in found:
            raise ArgumentError(explain(FLAG, f"{name}={found[name]} and {name}={value}", "each name once"))
        found[name] = value
    return found


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Returns values as `parse` gives them; sequences with commas."""
    return {name: ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value) for name, value in values.items()}


def flags(given: Mapping[str, str]) -> list[str]:
    """Returns the words of a command line for names and texts of values."""
    return [word for name, value in given.items() for word in (FLAG, f"{name}={value}")]


def parameters_of(function: Callable[..., Any], others: Sequence[str]) -> dict[str, Any]:
    """Returns the arguments of a function by name with their defaults (None where there is none), but for `others`."""
    fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    return {p.name: None if p.default is p.empty else p.default for p in inspect.signature(function).parameters.values()
            if p.kind not in fixed and p.name not in others}


def typed(thing: str, defaults: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """Returns the values that texts mean, each of the type of its default.

    Args:
        thing: whose options they are, for messages.
        defaults: the options that there are. Where a default is None, the text decides: a number, true or false, or a text.
        given: names and texts.

    Raises:
        ArgumentError: there is no such option, or its value is of another type.
    """
    found = {}
    for name, text in given.items():
        if name not in defaults:
            known = f"an option of {thing}: {', '.join(defaults)}" if defaults else f"nothing: {thing} has no options"
            raise ArgumentError(explain(FLAG, repr(name), known, did_you_mean(name, defaults) if defaults else ""))
        try:
            found[name] = _value(text, defaults[name])
        except ValueError as error:
            default = texts({name: defaults[name]})[name]
            raise ArgumentError(explain(f"{FLAG} {name}", repr(text), f"{error}, such as {default}")) from error
    return found


def _value(text: str, default: Any) -> Any:
    """Reads a text as a value of a default's type; a ValueError says which that is."""
    if isinstance(default, (tuple, list)):
        return tuple(_value(part.strip(), default[0] if default else None) for part in text.strip("()[]").split(","))
    if isinstance(default, bool):
        if text.lower() not in _TRUTH:
            raise ValueError("true or false")
        return _TRUTH[text.lower()]
    if isinstance(default, int):
        return _number(int, text, "a whole number")
    if isinstance(default, float):
        return _number(float, text, "a finite number")
    if isinstance(default, str):
        return text
    if text.lower() in (*_TRUTH, "none"):
        return _TRUTH.get(text.lower())
    for kind in (int, float):
        try:
            return _number(kind, text, "")
        except ValueError:
            continue
    return text


def _number(kind: type[int] | type[float], text: str, what: str) -> int | float:
    try:
        value = kind(text)
    except ValueError as error:
        raise ValueError(what) from error
    if not math.isfinite(value):
        raise ValueError(what)
    return value
