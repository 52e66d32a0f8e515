"""What every transform is: arguments, how many random numbers it takes, and what it adds to the parameters of a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convolt.configurable import Configurable, Registry, changed_arguments
from convolt.data.augment.draft import Draft
from convolt.errors import ArgumentError, explain

registry: Registry[Any] = Registry("transform")

Range = float | Sequence[float]


class Transform(Configurable):
    """Base of the transforms. Constructors keep each argument under its name, so that a list of transforms can be written to JSON.

    Subclasses set `draws`, the random numbers they take per sample, and write `add`.
    """

    draws = 0

    def add(self, draft: Draft, u: Tensor) -> None:
        """Adds what this transform does to a batch.

        Args:
            draft: what the transforms before this one add up to; changed in place.
            u: (N, draws) numbers from 0 to 1.
        """
        raise NotImplementedError

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the height and width that pictures of this size have afterwards."""
        return height, width

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in changed_arguments(self).items())})"


def bounds(transform: str, argument: str, value: Range, about: float = 0.0, least: float = -math.inf,
           most: float = math.inf, hint: str = "") -> tuple[float, float]:
    """Returns the range that a factor means: (low, high) as it is, a number f as about - f to about + f (from `least` on).

    Raises:
        ArgumentError: it is neither, or beyond `least` or `most`.
    """
    if isinstance(value, (int, float)):
        pair = [max(least, about - abs(value)), about + abs(value)]
    else:
        pair = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(pair) != 2 or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in pair) or not least <= pair[0] <= pair[1] <= most:
        allowed = "" if least == -math.inf and most == math.inf else f" from {least:g} to {most:g}"
        raise ArgumentError(explain(f"{transform}({argument})", repr(value), f"a number or (low, high){allowed}", hint))
    return float(pair[0]), float(pair[1])


def probability(transform: str, value: float, argument: str = "probability") -> float:
    """Returns a number from 0 to 1, checked."""
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ArgumentError(explain(f"{transform}({argument})", repr(value), "a number from 0 to 1"))
    return float(value)


def between(u: Tensor, pair: tuple[float, float]) -> Tensor:
    """Returns uniform numbers from `pair[0]` to `pair[1]`."""
    return u * (pair[1] - pair[0]) + pair[0]


def unless(skipped: Tensor, value: Tensor, neutral: float) -> Tensor:
    """Returns `value`, and `neutral` where a sample is skipped."""
    return torch.where(skipped, neutral, value)
