"""Transforms that move pixels. All of a list become one matrix for each sample, and one resample.

Matrices map output to input, in pixels from the centre of the picture, x to the right and y down.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from convolt.data.augment.base import Range, Transform, between, bounds, probability, registry, unless
from convolt.data.augment.draft import Draft, Entry, Rows
from convolt.errors import ArgumentError, ShapeError, explain
from convolt.kernels.warp import INTERPOLATIONS, MOST_SAMPLES
from convolt.kernels.warp_reference import FILLS

FLIPS = ("horizontal", "vertical", "horizontal_and_vertical")


class Geometric(Transform):
    """Base of the transforms that move pixels.

    Args:
        fill_mode: what lies beyond the border ("constant", "nearest", "reflect", "wrap"), of the one resample of the whole list;
            None leaves it to the list ("reflect" where nobody says anything).
        fill_value: of "constant", in units of the pictures; None is 0.
        interpolation: "bilinear" or "nearest", of the one resample; None leaves it to the list ("bilinear").
    """

    def __init__(self, fill_mode: str | None = None, fill_value: float | None = None, interpolation: str | None = None) -> None:
        self.fill_mode = fill_mode
        self.fill_value = fill_value
        self.interpolation = interpolation
        for what, value, known in (("fill_mode", fill_mode, FILLS), ("interpolation", interpolation, INTERPOLATIONS)):
            if value is not None and value not in known:
                raise ArgumentError(explain(f"{type(self).__name__}({what})", repr(value), f"one of {', '.join(known)}"))


STEEPEST = 4.0
"""Tangent beyond which nobody slants pictures (76°): such a number was meant as degrees."""


@registry.register()
class RandomFlip(Transform):
    """Mirrors pictures left to right, upside down, or each of both independently.

    Args:
        mode: "horizontal", "vertical" or "horizontal_and_vertical".
        probability: of each flip.

    Keras counterpart: `keras.layers.RandomFlip`, whose probability is 0.5.
    """

    draws = 2

    def __init__(self, mode: str = "horizontal_and_vertical", probability: float = 0.5) -> None:
        self.mode = mode
        self.probability = check_probability("RandomFlip", probability)
        if mode not in FLIPS:
            raise ArgumentError(explain("RandomFlip(mode)", repr(mode), f"one of {', '.join(map(repr, FLIPS))}"))

    def add(self, draft: Draft, u: Tensor) -> None:
        signs = torch.where(u < self.probability, -1.0, 1.0).to(u.dtype)
        across: Entry = signs[:, 0] if "horizontal" in self.mode else 1.0
        down: Entry = signs[:, 1] if "vertical" in self.mode else 1.0
        draft.scaled_move(across, 0.0, 0.0, down)


@registry.register()
class AlternatingFlip(Transform):
    """Mirrors half of the pictures left to right, and in the next epoch the other half: two epochs show each picture both ways.

    In `fit(augment=…)`, which makes keys whose lowest bit alternates (`convolt.data.augment.keys.alternating`). With other keys each
    picture is mirrored at random. Source: Jordan 2024, arXiv 2404.00498, which found it to learn faster than random flips.
    """

    def add(self, draft: Draft, u: Tensor) -> None:
        signs = (1 - 2 * (draft.keys & 1)).to(u.dtype)
        draft.scaled_move(signs, 0.0, 0.0, 1.0)


check_probability = probability


@registry.register()
class RandomRotation(Geometric):
    """Turns pictures about their centre.

    Args:
        degrees: a number d for -d … d, or (low, high); positive turns counter-clockwise.
        probability: of turning at all.
        fill_mode, fill_value, interpolation: see `Geometric`.

    Keras counterpart: `keras.layers.RandomRotation`, whose factor is a fraction of a whole turn: its 0.1 is 36 here.
    """

    draws = 2

    def __init__(self, degrees: Range, probability: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.degrees = degrees
        self.probability = check_probability("RandomRotation", probability)
        self._range = bounds("RandomRotation", "degrees", degrees)

    def add(self, draft: Draft, u: Tensor) -> None:
        angle = unless(u[:, 1] >= self.probability, between(u[:, 0], self._range), 0.0) * (math.pi / 180)
        cos, sin = angle.cos(), angle.sin()
        draft.scaled_move(cos, -sin, sin, cos)


@registry.register()
class RandomShear(Geometric):
    """Slants pictures: an output pixel that lies y below the centre shows what lies `x_factor` · y to its right, and so for columns.

    Args:
        x_factor, y_factor: a number f for -f … f, or (low, high), from -4 to 4; tangents of the angle, not degrees.
        probability: of slanting at all.
        fill_mode, fill_value, interpolation: see `Geometric`.

    Keras counterpart: `keras.layers.RandomShear`, which slants about the upper left corner.
    """

    draws = 3

    def __init__(self, x_factor: Range = 0.0, y_factor: Range = 0.0, probability: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.x_factor, self.y_factor = x_factor, y_factor
        self.probability = check_probability("RandomShear", probability)
        self._x, self._y = (bounds("RandomShear", name, factor, least=-STEEPEST, most=STEEPEST, hint="It is a tangent: 0.2 slants by 11°.")
                            for name, factor in (("x_factor", x_factor), ("y_factor", y_factor)))

    def add(self, draft: Draft, u: Tensor) -> None:
        skipped = u[:, 2] >= self.probability
        across, down = (0.0 if pair == (0.0, 0.0) else unless(skipped, between(u[:, i], pair), 0.0)
                        for i, pair in enumerate((self._x, self._y)))
        draft.scaled_move(1.0, across, down, 1.0)


@registry.register()
class RandomZoom(Geometric):
    """Zooms about the centre: a factor of 0.2 zooms out, showing 1.2 times the height; -0.2 zooms in.

    Args:
        height_factor: a number f for -f … f, or (low, high), above -1.
        width_factor: likewise; None keeps the aspect ratio.
        probability: of zooming at all.
        fill_mode, fill_value, interpolation: see `Geometric`.

    Keras counterpart: `keras.layers.RandomZoom`.
    """

    draws = 3

    def __init__(self, height_factor: Range, width_factor: Range | None = None, probability: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.height_factor, self.width_factor = height_factor, width_factor
        self.probability = check_probability("RandomZoom", probability)
        self._height = bounds("RandomZoom", "height_factor", height_factor, least=-0.99)
        self._width = None if width_factor is None else bounds("RandomZoom", "width_factor", width_factor, least=-0.99)

    def add(self, draft: Draft, u: Tensor) -> None:
        skipped = u[:, 2] >= self.probability
        down = unless(skipped, between(u[:, 0], self._height) + 1, 1.0)
        across = down if self._width is None else unless(skipped, between(u[:, 1], self._width) + 1, 1.0)
        draft.scaled_move(across, 0.0, 0.0, down)


@registry.register()
class RandomTranslation(Geometric):
    """Shifts pictures: positive factors move them down and to the right.

    Args:
        height_factor, width_factor: a number f for -f … f, or (low, high), as fractions of the height and width.
        whole_pixels: round shifts to whole pixels, which loses nothing to interpolation.
        probability: of shifting at all.
        fill_mode, fill_value, interpolation: see `Geometric`.

    Keras counterpart: `keras.layers.RandomTranslation`.
    """

    draws = 3

    def __init__(self, height_factor: Range, width_factor: Range, whole_pixels: bool = False, probability: float = 1.0,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.height_factor, self.width_factor = height_factor, width_factor
        self.whole_pixels = bool(whole_pixels)
        self.probability = check_probability("RandomTranslation", probability)
        self._height = bounds("RandomTranslation", "height_factor", height_factor)
        self._width = bounds("RandomTranslation", "width_factor", width_factor)

    def add(self, draft: Draft, u: Tensor) -> None:
        skipped = u[:, 2] >= self.probability
        down = unless(skipped, between(u[:, 0], self._height), 0.0) * draft.height
        across = unless(skipped, between(u[:, 1], self._width), 0.0) * draft.width
        if self.whole_pixels:
            down, across = down.round(), across.round()
        draft.scaled_move(1.0, 0.0, 0.0, 1.0, -across, -down)


@registry.register()
class RandomCrop(Geometric):
    """Cuts out a window of a fixed size at a random place, in whole pixels.

    Args:
        height, width: of the window; width None is the height.
        padding: pixels that the picture is first widened by on each side, with what `fill_mode` says.
        fill_mode, fill_value, interpolation: see `Geometric`.

    Raises (when used):
        ShapeError: the padded picture is smaller than the window.

    Keras counterpart: `keras.layers.RandomCrop`, which has no padding, and stretches pictures that are too small.
    """

    draws = 2

    def __init__(self, height: int, width: int | None = None, padding: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.height, self.width, self.padding = _size("RandomCrop", height, width)[0], width, int(padding)
        self._size = _size("RandomCrop", height, width)
        if padding < 0:
            raise ArgumentError(explain("RandomCrop(padding)", padding, "a whole number from 0"))

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        if height + 2 * self.padding < self._size[0] or width + 2 * self.padding < self._size[1]:
            raise ShapeError(explain("RandomCrop", f"pictures of {height} × {width} pixels", f"at least {self._size[0]} × {self._size[1]}",
                                     "Use padding=, a smaller window, or Resize before it."))
        return self._size

    def add(self, draft: Draft, u: Tensor) -> None:
        size = self.output_size(draft.height, draft.width)
        moves = []
        for i, (outside, inside) in enumerate(zip((draft.height, draft.width), size, strict=True)):
            places = outside + 2 * self.padding - inside + 1
            start = (u[:, i] * places).floor() - self.padding
            moves.append(start + (inside - 1) / 2 - (outside - 1) / 2)
        draft.move([[1.0, 0.0, moves[1]], [0.0, 1.0, moves[0]], [0.0, 0.0, 1.0]], size)


@registry.register()
class CenterCrop(Geometric):
    """Cuts out the middle; a window larger than the picture shows what `fill_mode` says around it.

    Args:
        height, width: of the window; width None is the height.
        fill_mode, fill_value, interpolation: see `Geometric`.

    Keras counterpart: `keras.layers.CenterCrop`.
    """

    def __init__(self, height: int, width: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.height, self.width = height, width
        self._size = _size("CenterCrop", height, width)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return self._size

    def add(self, draft: Draft, u: Tensor) -> None:
        down, across = ((outside - inside) // 2 + (inside - 1) / 2 - (outside - 1) / 2
                        for outside, inside in zip((draft.height, draft.width), self._size, strict=True))
        draft.move([[1.0, 0.0, across], [0.0, 1.0, down], [0.0, 0.0, 1.0]], self._size)


@registry.register()
class Resize(Geometric):
    """Stretches pictures to a size, smoothed where they shrink (see `RandomResizedCrop`).

    Args:
        height, width: of the result; width None is the height.
        fill_mode, fill_value, interpolation: see `Geometric`.

    Keras counterpart: `keras.layers.Resizing`.
    """

    def __init__(self, height: int, width: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.height, self.width = height, width
        self._size = _size("Resize", height, width)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return self._size

    def add(self, draft: Draft, u: Tensor) -> None:
        smooth(draft, self._size)
        height, width = self._size
        draft.move([[draft.width / width, 0.0, 0.0], [0.0, draft.height / height, 0.0], [0.0, 0.0, 1.0]], self._size)


@registry.register()
class RandomResizedCrop(Geometric):
    """Cuts out a window of random area and aspect ratio and stretches it to a size: the augmentation of ImageNet.

    Where the window is larger than the output, each output pixel is the mean of a grid of samples, one for each picture pixel that it
    covers, up to 8 × 8: the picture is not aliased.

    Args:
        height, width: of the result; width None is the height.
        scale: (low, high), the window's share of the picture's area.
        ratio: (low, high), the window's width over height; the logarithm is uniform. Windows that do not fit are cut to the picture.
        fill_mode, fill_value, interpolation: see `Geometric`.

    Source: Szegedy et al. 2015; torchvision's `RandomResizedCrop`.
    """

    draws = 4

    def __init__(self, height: int, width: int | None = None, scale: Range = (0.08, 1.0), ratio: Range = (3 / 4, 4 / 3),
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.height, self.width, self.scale, self.ratio = height, width, scale, ratio
        self._size = _size("RandomResizedCrop", height, width)
        self._scale = bounds("RandomResizedCrop", "scale", scale, least=1e-4, most=1.0)
        self._ratio = bounds("RandomResizedCrop", "ratio", ratio, least=1e-2, most=100.0)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return self._size

    def add(self, draft: Draft, u: Tensor) -> None:
        smooth(draft, self._size)
        area = between(u[:, 0], self._scale) * (draft.height * draft.width)
        ratio = between(u[:, 1], (math.log(self._ratio[0]), math.log(self._ratio[1]))).exp()
        width = (area * ratio).sqrt().round().clamp(1, draft.width)
        height = (area / ratio).sqrt().round().clamp(1, draft.height)
        left, top = ((u[:, 2] * (draft.width - width + 1)).floor(), (u[:, 3] * (draft.height - height + 1)).floor())
        across = left + (width - draft.width) / 2
        down = top + (height - draft.height) / 2
        draft.move([[width / self._size[1], 0.0, across], [0.0, height / self._size[0], down], [0.0, 0.0, 1.0]], self._size)


@registry.register()
class RandomPerspective(Geometric):
    """Shows pictures as if seen from the side: each corner of the output looks at a place further inside the picture.

    Args:
        factor: the corners move inwards by up to this share of half the height and width, from 0 to 1.
        probability: of doing so at all.
        fill_mode, fill_value, interpolation: see `Geometric`.

    Counterparts: torchvision's `RandomPerspective(distortion_scale)`, the other way around, so that nothing beyond the border is shown;
    `keras.layers.RandomPerspective`.
    """

    draws = 9

    def __init__(self, factor: float = 0.5, probability: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = bounds("RandomPerspective", "factor", factor, most=1.0)[1]
        self.probability = check_probability("RandomPerspective", probability)

    def add(self, draft: Draft, u: Tensor) -> None:
        amount = unless(u[:, 8] >= self.probability, draft.full(self.factor, u), 0.0)
        inwards = 1 - u[:, :8] * amount[:, None]
        half = ((draft.width - 1) / 2, (draft.height - 1) / 2)
        corners = [(sx * half[0] * inwards[:, 2 * i], sy * half[1] * inwards[:, 2 * i + 1])
                   for i, (sx, sy) in enumerate(((-1, -1), (1, -1), (1, 1), (-1, 1)))]
        draft.move(_from_square(corners, max(half[0], 0.5), max(half[1], 0.5)))


def _from_square(corners: list[tuple[Tensor, Tensor]], half_width: float, half_height: float) -> Rows:
    """Returns the projective map of the rectangle about the centre onto four corners, upper left first, clockwise (Heckbert 1989)."""
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners
    dx1, dx2, sx = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
    dy1, dy2, sy = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
    determinant = dx1 * dy2 - dx2 * dy1
    g, h = (sx * dy2 - dx2 * sy) / determinant, (dx1 * sy - sx * dy1) / determinant
    unit: Rows = [[x1 - x0 + g * x1, x3 - x0 + h * x3, x0], [y1 - y0 + g * y1, y3 - y0 + h * y3, y0], [g, h, 1.0]]
    # From the rectangle to the unit square: s = x / (2 · half) + 1/2.
    moved: Rows = []
    for a, b, c in unit:
        moved.append([a / (2 * half_width), b / (2 * half_height), (a + b) * 0.5 + c])
    depth = moved[2][2]
    return [[entry / depth for entry in row] for row in moved]


def smooth(draft: Draft, size: tuple[int, int]) -> None:
    """Allows as many samples for each output pixel as the picture is larger than `size`."""
    shrinks = max(draft.height / size[0], draft.width / size[1])
    draft.most_samples = max(draft.most_samples, min(MOST_SAMPLES, math.ceil(shrinks - 1e-3)))


def _size(transform: str, height: int, width: int | None) -> tuple[int, int]:
    found = (height, height if width is None else width)
    if not all(isinstance(n, int) and n > 0 for n in found):
        raise ArgumentError(explain(f"{transform}(height, width)", f"{height!r}, {width!r}", "whole numbers from 1"))
    return found
