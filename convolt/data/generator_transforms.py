"""What `ImageDataGenerator` does to a picture, as transforms of the engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convolt.data.augment.base import Transform, between
from convolt.data.augment.draft import Draft, Entry, Rows, product

Shift = float | int | Sequence[int] | Sequence[float]


def affine_rows(theta: Entry = 0.0, tx: Entry = 0.0, ty: Entry = 0.0, shear: Entry = 0.0, zx: Entry = 1.0, zy: Entry = 1.0,
                across: Entry = 1.0, down: Entry = 1.0) -> Rows:
    """Returns the matrix of Keras's `apply_affine_transform`, then flips: output to input, in pixels from the centre.

    Args:
        theta, shear: degrees.
        tx, ty: pixels; positive moves the picture to the left and up.
        zx, zy: above 1 zooms out.
        across, down: -1 mirrors left to right, upside down.
    """
    cos, sin = _cos_sin(theta)
    shear_cos, shear_sin = _cos_sin(shear)
    rows: Rows = [[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]]
    steps: tuple[Rows, ...] = (
        [[1.0, 0.0, tx], [0.0, 1.0, ty], [0.0, 0.0, 1.0]],
        [[1.0, -shear_sin, 0.0], [0.0, shear_cos, 0.0], [0.0, 0.0, 1.0]],
        [[zx, 0.0, 0.0], [0.0, zy, 0.0], [0.0, 0.0, 1.0]],
        [[across, 0.0, 0.0], [0.0, down, 0.0], [0.0, 0.0, 1.0]],
    )
    for step in steps:
        rows = product(rows, step)
    return rows


def _cos_sin(degrees: Entry) -> tuple[Entry, Entry]:
    if isinstance(degrees, Tensor):
        radians = degrees * (math.pi / 180)
        return radians.cos(), radians.sin()
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))


class GeneratorGeometry(Transform):
    """The geometry of an `ImageDataGenerator`: rotation, shift, shear, zoom, flips, drawn as Keras draws them."""

    draws = 9

    def __init__(self, rotation_range: float = 0.0, width_shift_range: Any = 0.0, height_shift_range: Any = 0.0, shear_range: float = 0.0,
                 zoom_range: Sequence[float] = (1.0, 1.0), horizontal_flip: bool = False, vertical_flip: bool = False) -> None:
        self.rotation_range, self.shear_range, self.zoom_range = rotation_range, shear_range, zoom_range
        self.width_shift_range, self.height_shift_range = width_shift_range, height_shift_range
        self.horizontal_flip, self.vertical_flip = horizontal_flip, vertical_flip

    def add(self, draft: Draft, u: Tensor) -> None:
        theta: Entry = between(u[:, 0], (-self.rotation_range, self.rotation_range)) if self.rotation_range else 0.0
        tx = drawn_shift(self.width_shift_range, draft.width, u[:, 1], u[:, 7])
        ty = drawn_shift(self.height_shift_range, draft.height, u[:, 2], u[:, 8])
        shear: Entry = between(u[:, 3], (-self.shear_range, self.shear_range)) if self.shear_range else 0.0
        zooms = (float(self.zoom_range[0]), float(self.zoom_range[1]))
        zx: Entry = 1.0 if zooms == (1.0, 1.0) else between(u[:, 4], zooms)
        zy: Entry = 1.0 if zooms == (1.0, 1.0) else between(u[:, 5], zooms)
        coin = (u[:, 6] * 4).floor()  # two coins of one number
        across: Entry = torch.where(coin >= 2, -1.0, 1.0).to(u.dtype) if self.horizontal_flip else 1.0
        down: Entry = torch.where(coin.remainder(2) == 1, -1.0, 1.0).to(u.dtype) if self.vertical_flip else 1.0
        rows = affine_rows(theta, tx, ty, shear, zx, zy, across, down)
        if any(isinstance(e, Tensor) or e != i for row, one in zip(rows, ((1, 0, 0), (0, 1, 0), (0, 0, 1)), strict=True)
               for e, i in zip(row, one, strict=True)):
            draft.move(rows)


class FixedGeometry(Transform):
    """A given map, the same for all samples."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def add(self, draft: Draft, u: Tensor) -> None:
        draft.move(self.rows)


def drawn_shift(shift: Any, size: int, u: Tensor, sign: Tensor) -> Entry:
    """Returns shifts in pixels, as Keras reads its ranges: a fraction below 1 of the size, a float of pixels, an int n for whole pixels
    from 0 to n - 1 of either sign, or a list to choose from, of either sign.
    """
    if isinstance(shift, (list, tuple)) or (isinstance(shift, int) and not isinstance(shift, bool) and shift > 0):
        choices = list(shift) if isinstance(shift, (list, tuple)) else list(range(shift))
        chosen = torch.zeros_like(u)
        for place, value in enumerate(choices):
            chosen = torch.where((u * len(choices)).floor() == place, float(value), chosen)
        fraction = max(choices) < 1 and isinstance(shift, (list, tuple))
        return torch.where(sign < 0.5, -chosen, chosen) * (size if fraction else 1)
    if not shift:
        return 0.0
    return between(u, (-float(shift), float(shift))) * (size if shift < 1 else 1)
