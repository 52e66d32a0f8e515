"""Policies: each sample draws its own operations of fourteen. Moves are in the one matrix, and colours in the one colour matrix.

What a sample draws acts in the order of the engine, not in that of the draws: moves, then brightness, color and contrast (in the order
of the draws), then sharpness, autocontrast, equalize, solarize, posterize. With one operation for a sample that is the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convolt.data.augment.base import registry
from convolt.data.augment.colour import grays, has_colours
from convolt.data.augment.draft import Draft
from convolt.data.augment.effects import autocontrast, equalize, posterize, sharpen, solarize
from convolt.data.augment.geometry import Geometric
from convolt.errors import ArgumentError, explain

OPERATIONS = ("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast", "sharpness",
              "posterize", "solarize", "autocontrast", "equalize")
STRONGEST = 30
"""Levels of strength go from 0 to this."""


@dataclass(frozen=True)
class Space:
    """What the operations do at the greatest strength, from which the others follow in proportion.

    Attributes:
        shear: tangent of the angle, about the upper left corner.
        translate: (across, down) in whole pixels, rounded towards 0.
        degrees: of rotations.
        factor: by how much brightness, color, contrast and sharpness go from 1 up or down.
        bits: how many posterize drops, rounded. Solarize inverts from 255 (strength 0) down to 0.
    """

    shear: float
    translate: tuple[float, float]
    degrees: float
    factor: float
    bits: int


class Policy(Geometric):
    """Base of the policies: what the operations are."""

    def act(self, draft: Draft, space: Space, operation: Tensor, level: Tensor, sign: Tensor) -> None:
        """Adds one operation for each sample.

        Args:
            draft: changed in place.
            space: the greatest strengths.
            operation: (N,) places in `OPERATIONS`.
            level: (N,) from 0 to `STRONGEST`.
            sign: (N,) -1 or 1; autocontrast, equalize, posterize and solarize have none.

        Raises:
            ShapeError: pictures have other channels than 1, 3, or 4, of which the last (alpha) is moved and otherwise left alone.
        """
        has_colours(type(self).__name__, draft)

        def chosen(name: str) -> Tensor:
            return operation == OPERATIONS.index(name)

        def amount(name: str, most: float) -> Tensor:
            return torch.where(chosen(name), sign * level * (most / STRONGEST), 0.0)

        across, down = amount("shear_x", space.shear), amount("shear_y", space.shear)
        right, below = (amount(name, most).trunc() for name, most in zip(("translate_x", "translate_y"), space.translate, strict=True))
        angle = amount("rotate", space.degrees) * (math.pi / 180)
        draft.scaled_move(angle.cos(), across - angle.sin(), down + angle.sin(), angle.cos(),
                          across * (draft.height / 2) - right, down * (draft.width / 2) - below)
        brightness, color, contrast = (amount(name, space.factor) for name in ("brightness", "color", "contrast"))
        draft.mix_with_mean(grays(-color, 1 + brightness + color + contrast, draft),
                            grays(-contrast, torch.zeros_like(contrast), draft, last=0.0))
        sharpen(draft, amount("sharpness", space.factor))
        autocontrast(draft, chosen("autocontrast"))
        equalize(draft, chosen("equalize"))
        solarize(draft, torch.where(chosen("solarize"), 255 - level * (255 / STRONGEST), math.inf))
        posterize(draft, torch.where(chosen("posterize"), 8 - (level * (space.bits / STRONGEST)).round(), 8.0))


def _drawn(u: Tensor) -> tuple[Tensor, Tensor]:
    """Returns operations and signs, each (N,), of numbers (N, 2)."""
    return (u[:, 0] * len(OPERATIONS)).floor(), torch.where(u[:, 1] < 0.5, -1.0, 1.0).to(u.dtype)


@registry.register()
class TrivialAugment(Policy):
    """One operation of fourteen for each picture, at a strength drawn for each: nothing to tune.

    Operations (`policies.OPERATIONS`) are drawn alike, strengths from 31 levels, directions from two. At the greatest strength pictures
    are slanted by 0.99, shifted by 32 pixels, turned by 135°; brightness, color, contrast and sharpness go from 1 to 0.01 or 1.99,
    posterize leaves 2 bits, and solarize inverts all. Beside it in the list a flip and a crop are usual.

    Args:
        fill_mode, fill_value, interpolation: see `Geometric`; torchvision's are "constant" and "nearest".

    Raises (when used):
        ShapeError: pictures have other channels than 1, 3, or 4, of which the last (alpha) is moved and otherwise left alone.

    Source: Müller & Hutter 2021, the "wide" space. Counterpart: torchvision's `TrivialAugmentWide`.
    """

    draws = 3
    space = Space(0.99, (32.0, 32.0), 135.0, 0.99, 6)

    def add(self, draft: Draft, u: Tensor) -> None:
        operation, sign = _drawn(u)
        self.act(draft, self.space, operation, (u[:, 2] * (STRONGEST + 1)).floor(), sign)


@registry.register()
class RandAugment(Policy):
    """Several operations of fourteen for each picture, all at one strength.

    Operations (`policies.OPERATIONS`) are drawn alike, one may come twice; directions are drawn from two. At strength 30 pictures are
    slanted by 0.3, shifted by 150/331 of their width or height, turned by 30°; brightness, color, contrast and sharpness go from 1 to 0.1
    or 1.9, posterize leaves 4 bits, and solarize inverts all; strength 9 is nine thirtieths of that.

    A picture's operations act in the order of this module. Of those drawn twice, moves and colours act twice, the strengths of sharpness
    add up, and the others act once. The contrast's mean is that of the picture before it was moved.

    Args:
        count: operations for each picture.
        magnitude: strength of all of them, from 0 to 30. At 0 solarize still inverts white, autocontrast and equalize act as ever, and
            the others change nothing.
        fill_mode, fill_value, interpolation: see `Geometric`; torchvision's are "constant" and "nearest".

    Raises (when used):
        ShapeError: pictures have other channels than 1, 3, or 4, of which the last (alpha) is moved and otherwise left alone.

    Source: Cubuk et al. 2019. Counterparts: torchvision's `RandAugment(num_ops, magnitude)`; `keras.layers.RandAugment(num_ops, factor)`,
    whose factor goes from 0 to 1 and whose operations are others.
    """

    def __init__(self, count: int = 2, magnitude: float = 9, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 100:
            raise ArgumentError(explain("RandAugment(count)", repr(count), "a whole number from 1 to 100"))
        if isinstance(magnitude, bool) or not isinstance(magnitude, (int, float)) or not 0 <= magnitude <= STRONGEST:
            raise ArgumentError(explain("RandAugment(magnitude)", repr(magnitude), f"a number from 0 to {STRONGEST}"))
        self.count, self.magnitude = count, magnitude
        self.draws = 2 * count

    def add(self, draft: Draft, u: Tensor) -> None:
        space = Space(0.3, (150 / 331 * draft.width, 150 / 331 * draft.height), 30.0, 0.9, 4)
        level = draft.full(float(self.magnitude), u)
        for operation, sign in (_drawn(u[:, i : i + 2]) for i in range(0, self.draws, 2)):
            self.act(draft, space, operation, level, sign)
