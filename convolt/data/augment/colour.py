"""Transforms of colours. All of a list become one matrix for each sample, C × (C + 1), and one cut to the range of values."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from convolt.data.augment.base import Range, Transform, between, bounds, probability, registry, unless
from convolt.data.augment.draft import Draft
from convolt.errors import ArgumentError, ShapeError, explain

GRAY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in lightness (ITU-R BT.601), as in Pillow and Keras."""


YIQ = np.array([GRAY, (0.59590059, -0.27455667, -0.32134392), (0.21153661, -0.52273617, 0.31119955)])
QUARTER_TURN: list[list[float]] = (np.linalg.inv(YIQ) @ [[0, 0, 0], [0, 0, -1], [0, 1, 0]] @ YIQ).tolist()
"""A quarter turn of hue in RGB; it takes lightness away."""


class Colour(Transform):
    """Base of the transforms of colours.

    Args:
        value_range: least and greatest value of a pixel; None leaves it to the list: 0 … 255 for whole numbers, 0 … 1 for floats.
        probability: of changing a picture at all.
    """

    def __init__(self, value_range: tuple[float, float] | None = None, probability: float = 1.0) -> None:
        self.value_range = None if value_range is None else tuple(value_range)
        self.probability = _probability(type(self).__name__, probability)
        if value_range is not None and not (len(value_range) == 2 and value_range[0] < value_range[1]):
            raise ArgumentError(explain(f"{type(self).__name__}(value_range)", repr(value_range), "(least, greatest)"))


_probability = probability


class Factor(Colour):
    """Base of the transforms whose one argument is a factor, from 0 on (1 is no change): f means 1 - f … 1 + f."""

    draws = 2

    def __init__(self, factor: Range, value_range: tuple[float, float] | None = None, probability: float = 1.0) -> None:
        super().__init__(value_range, probability)
        self.factor = factor
        self._range = bounds(type(self).__name__, "factor", factor, about=1.0, least=0.0)

    def factors(self, u: Tensor) -> Tensor:
        """Returns (N,) factors, 1 for samples that are left alone."""
        return unless(u[:, 1] >= self.probability, between(u[:, 0], self._range), 1.0)


@registry.register()
class RandomBrightness(Colour):
    """Adds the same to all values of a picture.

    Args:
        factor: a number f for -f … f, or (low, high), as fractions of the range of values.
        value_range, probability: see `Colour`.

    Keras counterpart: `keras.layers.RandomBrightness`.
    """

    draws = 2

    def __init__(self, factor: Range, value_range: tuple[float, float] | None = None, probability: float = 1.0) -> None:
        super().__init__(value_range, probability)
        self.factor = factor
        self._range = bounds("RandomBrightness", "factor", factor, least=-1.0, most=1.0)

    def add(self, draft: Draft, u: Tensor) -> None:
        delta = unless(u[:, 1] >= self.probability, between(u[:, 0], self._range), 0.0)
        draft.shift_colours((delta * (draft.high - draft.low))[:, None])


@registry.register()
class RandomLightness(Factor):
    """Multiplies all values of a picture: `ImageDataGenerator`'s brightness_range, torchvision's brightness.

    Args:
        factor: a number f for 1 - f … 1 + f, or (low, high).
        value_range, probability: see `Colour`.
    """

    def add(self, draft: Draft, u: Tensor) -> None:
        draft.scale_colours(self.factors(u))


@registry.register()
class RandomContrast(Factor):
    """Scales the distance of values to the mean of their channel, as it was in the picture before it was moved.

    Args:
        factor: a number f for 1 - f … 1 + f, or (low, high).
        value_range, probability: see `Colour`.

    Keras counterpart: `keras.layers.RandomContrast`, whose pair (a, b) means 1 - a … 1 + b.
    """

    def add(self, draft: Draft, u: Tensor) -> None:
        draft.contrast(self.factors(u))


@registry.register()
class RandomSaturation(Factor):
    """Scales the distance of colours to the gray of the same lightness; pictures of one channel are left alone.

    Args:
        factor: a number f for 1 - f … 1 + f, or (low, high); 0 is gray.
        value_range, probability: see `Colour`.

    Counterpart: torchvision's saturation, Pillow's `ImageEnhance.Color`. `keras.layers.RandomSaturation` scales HSV's S instead.
    """

    def add(self, draft: Draft, u: Tensor) -> None:
        if has_colours("RandomSaturation", draft):
            draft.mix_colours(toward_gray(1 - self.factors(u), draft))


@registry.register()
class RandomHue(Colour):
    """Turns colours about the axis of grays, at the same lightness; pictures of one channel are left alone.

    Args:
        factor: a number f for -f … f, or (low, high), in half-turns: 1 turns red to cyan.
        value_range, probability: see `Colour`.

    Counterpart: `keras.layers.RandomHue`, which turns HSV's H. This turns in the plane of YIQ, which is linear.
    """

    draws = 2

    def __init__(self, factor: Range, value_range: tuple[float, float] | None = None, probability: float = 1.0) -> None:
        super().__init__(value_range, probability)
        self.factor = factor
        self._range = bounds("RandomHue", "factor", factor, least=-1.0, most=1.0)

    def add(self, draft: Draft, u: Tensor) -> None:
        if not has_colours("RandomHue", draft):
            return
        angle = unless(u[:, 1] >= self.probability, between(u[:, 0], self._range), 0.0) * math.pi
        draft.mix_colours(turned_hue(angle, draft))


@registry.register()
class RandomChannelShift(Colour):
    """Adds a random number to each channel.

    Args:
        factor: a number f for -f … f, or (low, high), as fractions of the range of values.
        same: add the same to all channels, as `ImageDataGenerator` does.
        value_range, probability: see `Colour`.
    """

    draws = 5

    def __init__(self, factor: Range, same: bool = False, value_range: tuple[float, float] | None = None, probability: float = 1.0) -> None:
        super().__init__(value_range, probability)
        self.factor, self.same = factor, bool(same)
        self._range = bounds("RandomChannelShift", "factor", factor)

    def add(self, draft: Draft, u: Tensor) -> None:
        if draft.channels > 4 and not self.same:
            raise ShapeError(explain("RandomChannelShift", f"{draft.channels} channels", "up to 4 channels, or same=True"))
        shift = between(u[:, 1:2] if self.same else u[:, 1 : 1 + draft.channels], self._range) * (draft.high - draft.low)
        draft.shift_colours(torch.where(u[:, :1] >= self.probability, 0.0, shift))


@registry.register()
class RandomGrayscale(Transform):
    """Takes the colours of some pictures away, keeping their channels.

    Args:
        factor: which share of the pictures.

    Keras counterpart: `keras.layers.RandomGrayscale`.
    """

    draws = 1

    def __init__(self, factor: float = 0.5) -> None:
        self.factor = probability("RandomGrayscale", factor, "factor")

    def add(self, draft: Draft, u: Tensor) -> None:
        if has_colours("RandomGrayscale", draft):
            draft.mix_colours(toward_gray((u[:, 0] < self.factor).to(u.dtype), draft))


@registry.register()
class RandomInvert(Colour):
    """Turns some pictures into negatives.

    Args:
        factor: which share of the pictures.
        value_range: see `Colour`.

    Keras counterpart: `keras.layers.RandomInvert`.
    """

    draws = 1

    def __init__(self, factor: float = 0.5, value_range: tuple[float, float] | None = None) -> None:
        super().__init__(value_range)
        self.factor = probability("RandomInvert", factor, "factor")

    def add(self, draft: Draft, u: Tensor) -> None:
        invert(draft, u[:, 0] < self.factor)


def invert(draft: Draft, chosen: Tensor) -> None:
    """Turns the chosen samples (N,) into negatives."""
    sign = torch.where(chosen, -1.0, 1.0).to(draft_type(draft))
    draft.scale_colours(sign)
    draft.shift_colours(((1 - sign) * ((draft.low + draft.high) / 2))[:, None])


def draft_type(draft: Draft) -> torch.dtype:
    """Returns the type in which parameters are computed."""
    return torch.float32 if draft.keys.device.type == "mps" else torch.float64


def has_colours(transform: str, draft: Draft) -> bool:
    """Whether pictures have red, green and blue.

    Raises:
        ShapeError: there are other channels than one (gray), three, or four, of which the last is left alone.
    """
    if draft.channels not in (1, 3, 4):
        raise ShapeError(explain(transform, f"pictures of {draft.channels} channels", "1, 3 or 4 channels"))
    return draft.channels > 1


def toward_gray(share: Tensor, draft: Draft) -> Tensor:
    """Returns matrices (N, C, C) that mix colours with the gray of the same lightness, `share` (N,) of it."""
    return grays(share, 1 - share, draft)


def grays(share: Tensor, kept: Tensor, draft: Draft, last: float = 1.0) -> Tensor:
    """Returns matrices (N, C, C): the gray of the same lightness times `share` (N,) plus the colour times `kept` (N,).

    One channel is its own gray; a fourth channel is kept (`last` 1) or left out (0).
    """
    if draft.channels == 1:
        return (share + kept)[:, None, None]
    return _blended([[*GRAY]] * 3, share, kept, draft, last)


def turned_hue(angle: Tensor, draft: Draft) -> Tensor:
    """Returns matrices (N, C, C) that turn hues by angles (N,) in radians: gray + cos · (1 - gray) + sin · (quarter turn)."""
    cos, sin = angle.cos(), angle.sin()
    return grays(1 - cos, cos, draft) + _blended(QUARTER_TURN, sin, torch.zeros_like(sin), draft, last=0.0)


def _blended(matrix: list[list[float]], share: Tensor, kept: Tensor, draft: Draft, last: float = 1.0) -> Tensor:
    """Returns share · matrix + kept · identity as (N, C, C); a fourth channel is kept (`last` 1) or left out (0).

    Made without transfers.
    """
    rows = []
    for i in range(draft.channels):
        for j in range(draft.channels):
            if max(i, j) == 3:
                rows.append(torch.full_like(share, last if i == j else 0.0))
            else:
                rows.append(share * matrix[i][j] + kept if i == j else share * matrix[i][j])
    return torch.stack(rows, 1).view(draft.count, draft.channels, draft.channels)
