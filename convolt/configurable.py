"""Objects that can be written to JSON and made again: layers, losses, optimizers, initializers.

One rule gives every class `get_config` and `from_config` without a line of its own: **the constructor keeps each
argument in an attribute of the same name** (scikit-learn's rule for estimators). A `Registry` is the closed list
of the classes of one kind; only what is listed there can be made from a name or from a file.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, Self, TypeVar, cast

import numpy as np

from convolt.errors import ArgumentError, ArgumentTypeError, did_you_mean, explain

T = TypeVar("T")


class Configurable:
    """Gives `get_config` and `from_config` to a class whose constructor keeps its arguments as attributes."""

    @classmethod
    def _argument_names(cls) -> list[str]:
        """Names of the constructor's arguments; `**kwargs` is followed to the next class that defines `__init__`."""
        names: list[str] = []
        for owner in cls.__mro__:
            if "__init__" not in owner.__dict__ or owner is object:
                continue
            parameters = list(inspect.signature(owner.__dict__["__init__"]).parameters.values())[1:]
            named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
            names += [p.name for p in parameters if p.kind in named and p.name not in names]
            if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
                break
        return names

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as JSON values."""
        return {name: to_json(value) for name, value in self._arguments().items()}

    def _arguments(self) -> dict[str, Any]:
        """Returns the constructor's arguments as they were kept."""
        return {name: getattr(self, name) for name in self._argument_names() if hasattr(self, name)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Makes an object from what `get_config` returned.

        Raises:
            ArgumentTypeError: the configuration has a key that the constructor does not know.
        """
        known = cls._argument_names()
        for key in config:
            if key not in known:
                raise ArgumentTypeError(
                    explain(f"{cls.__name__}.from_config", f"the unknown key {key!r}", "arguments of the constructor",
                            did_you_mean(key, known)))
        return cls(**config)


def to_json(value: Any) -> Any:
    """Returns `value` as JSON: objects become `{"class_name", "config"}`, tuples lists, functions their names."""
    if isinstance(value, Configurable):
        return {"class_name": type(value).__name__, "config": value.get_config()}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    if hasattr(value, "tolist"):  # NumPy numbers and arrays, tensors
        return value.tolist()
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__
    raise ArgumentTypeError(explain("configuration", type(value).__name__, "a value that JSON can hold"))


def changed_arguments(thing: Configurable) -> dict[str, str]:
    """Returns the constructor's arguments that differ from their defaults, each as short text for `repr`."""
    defaults = defaults_of(type(thing))
    return {name: _short(value) for name, value in thing._arguments().items() if not _is_default(value, defaults.get(name))}


def defaults_of(cls: type) -> dict[str, Any]:
    """Returns the defaults of a class's arguments, those of its parents included."""
    defaults: dict[str, Any] = {}
    for owner in reversed(cls.__mro__):
        if "__init__" in owner.__dict__ and owner is not object:
            defaults |= {name: p.default for name, p in inspect.signature(owner.__dict__["__init__"]).parameters.items()}
    return defaults


def _short(value: Any) -> str:
    """Returns a class's name in snake_case (as users write it), with its arguments only where they are not the defaults."""
    if isinstance(value, Configurable):
        changed = changed_arguments(value)
        if not changed:
            return repr(snake_case(type(value).__name__))
        return f"{type(value).__name__}({', '.join(f'{k}={v}' for k, v in changed.items())})"
    return repr(value.__name__) if callable(value) and hasattr(value, "__name__") else repr(value)


def _is_default(value: Any, default: Any) -> bool:
    """Whether an argument's kept value is what its default resolves to: a name to an object, one number to several."""
    if isinstance(value, Configurable):
        return isinstance(default, str) and _short(value) == repr(snake_case(default))
    if callable(value) and hasattr(value, "__name__"):
        return value is default or value.__name__ == (default or "linear")
    if isinstance(value, tuple) and isinstance(default, int):
        return all(v == default for v in value)
    if isinstance(value, tuple) and isinstance(default, list):
        return list(value) == default
    return type(value) is type(default) and bool(np.all(value == default))


def snake_case(name: str) -> str:
    """Returns a class name as Keras writes it in strings: `CategoricalCrossentropy` → `categorical_crossentropy`."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


class Registry(Generic[T]):
    """The closed list of the classes (or functions) of one kind, found by class name, snake_case name or alias."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Any] = {}
        self._aliases: dict[str, str] = {}

    def register(self, *aliases: str) -> Callable[[T], T]:
        """Class decorator that lists a class under its name, its snake_case name and `aliases`."""

        def add(entry: T) -> T:
            name = cast(Any, entry).__name__
            self._entries[name] = entry
            for alias in {name.lower(), snake_case(name), *aliases} - {name}:
                self._aliases[alias] = name
            return entry

        return add

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries or name in self._aliases

    def items(self) -> list[tuple[str, T]]:
        """Returns (class name, class) for each entry, in order of registration."""
        return list(self._entries.items())

    def find(self, name: str) -> T:
        """Returns the class called `name`.

        Raises:
            ArgumentError: there is none; the message names the nearest.
        """
        key = self._aliases.get(name, name)
        if key not in self._entries:
            names = [*self._entries, *self._aliases]
            raise ArgumentError(explain(self.kind, repr(name), f"the name of a known {self.kind}", did_you_mean(name, names)))
        return cast(T, self._entries[key])

    @contextmanager
    def extended(self, extra: Mapping[str, T]) -> Iterator[None]:
        """Lists the user's own classes while a file is read; they come first."""
        before = dict(self._entries)
        self._entries.update(extra)
        try:
            yield
        finally:
            self._entries = before

    def make(self, identifier: Any, base: type) -> Any:
        """Returns an object of class `base` from an object, a class, a name or a `{"class_name", "config"}` mapping.

        Raises:
            ArgumentError: the name is unknown.
            ArgumentTypeError: `identifier` is none of these.
        """
        if isinstance(identifier, base):
            return identifier
        if isinstance(identifier, str):
            return cast(Any, self.find(identifier))()
        if isinstance(identifier, type) and issubclass(identifier, base):
            return identifier()
        if isinstance(identifier, Mapping) and "class_name" in identifier:
            return cast(Any, self.find(identifier["class_name"])).from_config(identifier.get("config", {}))
        raise ArgumentTypeError(
            explain(self.kind, type(identifier).__name__, f"a name, a configuration or a {base.__name__} object"))
