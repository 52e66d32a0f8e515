"""Loading an optimizer's state: everything is checked before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from convolt.errors import ModelFileError, explain

_SAME_SETTINGS = "Give the optimizer the settings that it was saved with."


def check_tensors(name: str, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raises `ModelFileError` unless `given` has the names, shapes and dtypes of `own`."""
    for key in sorted(own.keys() ^ given.keys()):
        got = "an unknown" if key in given else "no"
        raise ModelFileError(explain(f"state of {name}", f"{got} tensor {key!r}", f"these {len(own)}: {sorted(own)}",
                                     _SAME_SETTINGS))
    for key, value in own.items():
        if given[key].shape != value.shape or given[key].dtype != value.dtype:
            raise ModelFileError(explain(f"state of {name}: {key}", f"{tuple(given[key].shape)} {given[key].dtype}",
                                         f"{tuple(value.shape)} {value.dtype}", _SAME_SETTINGS))


def check_numbers(name: str, numbers: Mapping[str, Any], rate: str, *, optional: bool, limits: Mapping[str, int] | None = None) -> None:
    """Raises `ModelFileError` unless `numbers` are `iterations`, those of `limits`, and `rate`, which may be missing if `optional`.

    Args:
        name: of the optimizer.
        numbers: what a state holds beside tensors.
        rate: `"learning_rate"` of a constant, or `"total_steps"` of a schedule.
        optional: whether this one may be missing.
        limits: the highest value of further whole numbers.
    """
    limits = limits or {}
    for key in sorted({"iterations", rate, *limits} ^ numbers.keys()):
        if not (optional and key == rate):
            got = "an unknown" if key in numbers else "no"
            raise ModelFileError(explain(f"state of {name}", f"{got} number {key!r}", " and ".join(["iterations", *limits, rate]),
                                         "A state saved with a schedule needs a schedule, one with a constant rate none."
                                         if key in ("learning_rate", "total_steps") else _SAME_SETTINGS))
    for key, value in numbers.items():
        check_number_of_state(f"state of {name}: {key}", value, whole=key != "learning_rate", low=1 if key == "total_steps" else 0,
                              high=limits.get(key))


def check_number_of_state(what: str, value: Any, *, whole: bool = True, low: int = 0, high: int | None = None) -> None:
    """Raises `ModelFileError` unless `value` is a finite number in this span."""
    fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or value < low or (high is not None and value > high):
        raise ModelFileError(explain(what, repr(value), f"a {'whole' if whole else 'finite'} number from {low}"
                                     + (f" to {high}" if high is not None else "")))


@torch.no_grad()
def copy_tensors(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Copies the values of `given` into the tensors of `own`."""
    for key, value in own.items():
        value.copy_(given[key])
