"""What is done to all pictures alike at the very end: the range in which the model learns."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from convolt.data.augment.base import Transform, registry
from convolt.data.augment.draft import Draft
from convolt.errors import ArgumentError, explain

Numbers = float | Sequence[float]


class Scaling(Transform):
    """Base: value · scale + shift for each channel, after everything else, wherever it stands in the list."""

    def add(self, draft: Draft, u: Tensor) -> None:
        """Adds nothing: it comes after everything that is random."""

    def scale_and_shift(self, channels: int) -> tuple[list[float], list[float]]:
        """Returns what to multiply each channel by, and what to add."""
        raise NotImplementedError

    def _each(self, argument: str, value: Numbers, channels: int) -> list[float]:
        values = [float(value)] * channels if isinstance(value, (int, float)) else [float(v) for v in value]
        if len(values) != channels:
            raise ArgumentError(explain(f"{type(self).__name__}({argument})", f"{len(values)} numbers",
                                        f"one number, or one for each of the {channels} channels"))
        return values


@registry.register()
class Rescale(Scaling):
    """`value · scale + offset`: `Rescale(1 / 255)` brings pixels to 0 … 1.

    Args:
        scale, offset: numbers, or one per channel.

    Keras counterpart: `keras.layers.Rescaling`.
    """

    def __init__(self, scale: Numbers = 1 / 255, offset: Numbers = 0.0) -> None:
        self.scale, self.offset = scale, offset

    def scale_and_shift(self, channels: int) -> tuple[list[float], list[float]]:
        return self._each("scale", self.scale, channels), self._each("offset", self.offset, channels)


@registry.register()
class Normalize(Scaling):
    """`(value - mean) / std`, in units of the pictures.

    Args:
        mean, std: numbers, or one per channel.

    Keras counterpart: `keras.layers.Normalization` with given statistics.
    """

    def __init__(self, mean: Numbers, std: Numbers) -> None:
        self.mean, self.std = mean, std
        if any(s <= 0 for s in ([std] if isinstance(std, (int, float)) else std)):
            raise ArgumentError(explain("Normalize(std)", repr(std), "numbers above 0"))

    def scale_and_shift(self, channels: int) -> tuple[list[float], list[float]]:
        means, stds = self._each("mean", self.mean, channels), self._each("std", self.std, channels)
        return [1 / s for s in stds], [-m / s for m, s in zip(means, stds, strict=True)]
