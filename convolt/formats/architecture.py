"""Models from descriptions in files, which may be hostile.

A description is JSON: classes by name with their arguments. Three looks are taken before a parameter exists: at the JSON alone (how many
layers and calls it means, names that are no names), at the model on PyTorch's meta device, where tensors have shapes and no memory,
and at what the file holds for it. Only then is the model made. Classes come from the closed registries or from the caller's
`custom_objects`; nothing that a description says is imported, called or opened.
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from typing import Any

import torch

from convolt import initializers
from convolt.errors import ConvoltError, ModelFileError, explain
from convolt.formats.guard import shorten

MAX_LAYERS = 5_000
MAX_CALLS = 100_000
MAX_SIZE = 2**63
MAX_METRIC_BYTES = 2**28
MAX_METRIC_SIZE = 5_000
FIX = "Pass your own classes: load_model(path, custom_objects={'Name': Class})."


def make(thing: str, description: Mapping[str, Any], custom: Mapping[str, Any], *, values: bool = True) -> Any:
    """Returns the model of a description: `{"class_name", "config", "build_shapes"}`.

    Args:
        thing: what holds the description, for messages.
        description: checked by `check`.
        custom: the user's own classes by name, which come before the registry's.
        values: False makes it on the meta device, with shapes and without memory.

    Raises:
        ModelFileError: a class is unknown, an argument is unknown or impossible, or it is no model.
    """
    from convolt.layers import registry
    from convolt.models import Model

    name = str(description.get("class_name"))
    try:
        with registry.extended(custom), initializers.later(), torch.device("cpu" if values else "meta"):
            cls = custom[name] if name in custom else registry.find(name)
            model = cls.from_config(description["config"])
            if not isinstance(model, Model):
                raise ModelFileError(explain(thing, f"a {name}", "a model"))
            if not all_built(model) and description.get("build_shapes"):
                model.build(*[tuple(shape) for shape in description["build_shapes"]])
    except ModelFileError:
        raise
    except Exception as error:  # constructors and shape rules of a hundred classes meet values that nobody thought of
        raise ModelFileError(refusal(f"{thing}: architecture", error, "arguments that its layers take", FIX)) from error
    return model


def refusal(thing: str, error: Exception, expected: str, fix: str) -> str:
    """Returns the message for an error while a part of a file was made: Convolt's own errors say themselves what is wrong."""
    if isinstance(error, ConvoltError):
        return f"{thing}: {shorten(str(error), 500)} {fix}"
    return explain(thing, f"something impossible ({shorten(f'{type(error).__name__}: {error}', 300)})", expected, fix)


def all_built(model: Any) -> bool:
    """Whether every layer of the model has its parameters."""
    return all(getattr(module, "built", True) for module in model.modules())


# -- the JSON alone ----------------------------------------------------------------------------------------------------


def check(thing: str, description: Any) -> None:
    """Refuses a description that means too much work, or whose names are no names.

    A layer is listed once and may be called often, and layers lie inside one another, so that a short text can mean 2^40 calls.

    Raises:
        ModelFileError: more than `MAX_LAYERS` layers or `MAX_CALLS` calls; a number above `MAX_SIZE`; a name with characters
            that end a string in generated code; an argument of a call that is no identifier.
    """
    thing = f"{thing}: architecture"
    if not isinstance(description, dict) or not isinstance(description.get("class_name"), str) or \
            not isinstance(description.get("config"), dict):
        raise ModelFileError(explain(thing, "no class with a configuration", '{"class_name": …, "config": {…}}'))
    layers = _check_values(thing, description)
    if layers > MAX_LAYERS:
        raise ModelFileError(explain(thing, f"{layers:,} layers and other objects", f"at most {MAX_LAYERS:,}"))
    if _calls(description) > MAX_CALLS:
        raise ModelFileError(explain(thing, f"layers that are called more than {MAX_CALLS:,} times", f"at most {MAX_CALLS:,} calls",
                                     "Models inside models multiply their calls."))


def _check_values(thing: str, description: Any) -> int:
    """Looks at every value and returns the number of objects that are described; without recursion."""
    objects, waiting = 0, [description]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            objects += "class_name" in value
            waiting += value.values()
            _check_names(thing, value)
        elif isinstance(value, (int, float)) and abs(value) > MAX_SIZE and isinstance(value, int):
            raise ModelFileError(explain(thing, f"the number {shorten(str(value), 40)}", f"sizes up to {MAX_SIZE:,}"))
    return objects


def _check_names(thing: str, value: Mapping[str, Any]) -> None:
    name = value.get("name")
    if name is not None and not (isinstance(name, str) and is_plain_name(name)):
        raise ModelFileError(explain(thing, f"the name {shorten(repr(name))}", "text without quotes, backslashes and control characters",
                                     "The file is not to be trusted."))
    arguments = value.get("kwargs")
    for key in arguments if isinstance(arguments, dict) and "layer" in value else ():
        if not key.isidentifier() or keyword.iskeyword(key):
            raise ModelFileError(explain(thing, f"the argument {shorten(repr(key))}", "the name of an argument",
                                         "The file is not to be trusted."))


def is_plain_name(name: str) -> bool:
    """Whether text can be the name of a layer: `torch.fx` writes names into code, between quotation marks that it does not escape."""
    return 0 < len(name) <= 1000 and name.isprintable() and not set(name) & set("\"'\\`")


def _calls(value: Any) -> int:
    """Returns how many layers one call of the described thing calls, each as often as it is called; at most about `MAX_CALLS`.

    Keras's layers say beside them where they are called (`inbound_nodes`). What wraps another layer may copy it once
    (`Bidirectional` does) and counts twice. The depth is bounded by `read_json`.
    """
    if isinstance(value, list):
        return min(sum(map(_calls, value)), 2 * MAX_CALLS)
    if not isinstance(value, dict):
        return 0
    layers, calls = value.get("layers"), value.get("calls")
    inside = [part for key, part in value.items() if key not in ("layers", "calls")]
    if isinstance(layers, list) and isinstance(calls, list):
        costs = [_calls(layer) for layer in layers]
        numbers = [call.get("layer") for call in calls if isinstance(call, dict)]
        total = sum(costs) + sum(costs[n] for n in numbers if isinstance(n, int) and -len(costs) <= n < len(costs)) + _calls(inside)
    elif isinstance(layers, list):
        total = sum(_calls(layer) * _keras_calls(layer) for layer in layers) + _calls(inside)
    else:
        total = _calls(inside) * (2 if "class_name" in value else 1)
    return min(total + ("class_name" in value), 2 * MAX_CALLS)


def _keras_calls(layer: Any) -> int:
    nodes = layer.get("inbound_nodes") if isinstance(layer, dict) else None
    return max(1, len(nodes)) if isinstance(nodes, list) else 1


# -- what compile is given ---------------------------------------------------------------------------------------------


def check_compile(thing: str, config: Any) -> None:
    """Refuses metrics in a file whose state would fill the memory.

    Raises:
        ModelFileError: a metric is unknown, or has more than `MAX_METRIC_SIZE` classes or thresholds, or too large a state.
    """
    from convolt import metrics
    from convolt.metrics.base import Metric

    if not isinstance(config, dict):
        raise ModelFileError(explain(f"{thing}: compile", f"a {type(config).__name__}", "a mapping"))
    waiting = [config.get("metrics"), config.get("weighted_metrics")]
    total = 0
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict) and "class_name" in value:
            _check_metric_sizes(thing, value)
            try:
                made: Metric = metrics.get(value)
                total += sum(t.nbytes for t in made.state().values())
            except Exception as error:
                raise ModelFileError(explain(f"{thing}: metric", shorten(str(error), 300), "a known metric",
                                             "Load it with compile=False and compile it yourself.")) from error
            if total > MAX_METRIC_BYTES:
                raise ModelFileError(explain(f"{thing}: metrics", f"a state of {total:,} bytes", f"at most {MAX_METRIC_BYTES:,}"))
        elif isinstance(value, (list, dict)):
            waiting += value.values() if isinstance(value, dict) else value


def _check_metric_sizes(thing: str, config: Mapping[str, Any]) -> None:
    waiting: list[Any] = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, (list, dict)):
            waiting += value.values() if isinstance(value, dict) else value
        elif isinstance(value, int) and abs(value) > MAX_METRIC_SIZE:
            raise ModelFileError(explain(f"{thing}: metric", f"the number {value:,}", f"at most {MAX_METRIC_SIZE:,}"))
