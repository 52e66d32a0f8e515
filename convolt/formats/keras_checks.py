"""What is looked at in a Keras configuration before a layer is made: how much work it means, and its names."""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from typing import Any

from convolt.errors import ModelFileError, explain
from convolt.formats.architecture import MAX_CALLS, MAX_LAYERS, MAX_SIZE, is_plain_name
from convolt.formats.guard import shorten


def check(thing: str, spec: Any) -> None:
    """Refuses a configuration that means too much work, or whose names are no names.

    Raises:
        ModelFileError: more than `MAX_LAYERS` layers or `MAX_CALLS` calls; a number above `MAX_SIZE`; a name with characters
            that end a string in generated code; an argument of a call that is no identifier.
    """
    thing = f"{thing}: architecture"
    layers, waiting = 0, [spec]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, Mapping):
            waiting += value.values()
            layers += len(value["layers"]) if isinstance(value.get("layers"), list) else 0
            _check_names(thing, value)
        elif isinstance(value, int) and abs(value) > MAX_SIZE:
            raise ModelFileError(explain(thing, f"the number {shorten(str(value), 40)}", f"sizes up to {MAX_SIZE:,}"))
    if layers > MAX_LAYERS:
        raise ModelFileError(explain(thing, f"{layers:,} layers", f"at most {MAX_LAYERS:,}"))
    if _calls(spec) > MAX_CALLS:
        raise ModelFileError(explain(thing, f"layers that are called more than {MAX_CALLS:,} times", f"at most {MAX_CALLS:,} calls",
                                     "Models inside models multiply their calls."))


def _check_names(thing: str, value: Mapping[str, Any]) -> None:
    name = value.get("name")
    if name is not None and not (isinstance(name, str) and is_plain_name(name)):
        raise ModelFileError(explain(thing, f"the name {shorten(repr(name))}", "text without quotes, backslashes and control characters",
                                     "The file is not to be trusted."))
    nodes = value.get("inbound_nodes")
    for node in nodes if isinstance(nodes, list) else ():
        kwargs = node.get("kwargs") if isinstance(node, Mapping) else None
        for key in kwargs if isinstance(kwargs, Mapping) else ():
            if not key.isidentifier() or keyword.iskeyword(key):
                raise ModelFileError(explain(thing, f"the argument {shorten(repr(key))}", "the name of an argument",
                                             "The file is not to be trusted."))


def _calls(value: Any) -> int:
    """Returns how many layers one call of the described thing calls; a layer that is called n times counts n + 1 times.

    What wraps another layer may copy it once (`Bidirectional` does) and counts twice. The depth is bounded by `read_json`.
    """
    if isinstance(value, list):
        return min(sum(map(_calls, value)), 2 * MAX_CALLS)
    if not isinstance(value, Mapping):
        return 0
    nodes = value.get("inbound_nodes")
    config = value.get("config")
    inside = _calls(list(config.values())) if isinstance(config, Mapping) else _calls([v for k, v in value.items() if k != "inbound_nodes"])
    wraps = isinstance(config, Mapping) and "layer" in config
    times = (len(nodes) + 1 if isinstance(nodes, list) else 1) * (2 if wraps else 1)
    return min(times * (inside + ("class_name" in value)), 2 * MAX_CALLS)
