"""Transforms that paint over a rectangle of the output."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from convolt.data.augment.base import Range, Transform, between, bounds, probability, registry
from convolt.data.augment.draft import Draft
from convolt.errors import ArgumentError, explain


class Erasing(Transform):
    """Base: draws a colour, or takes the given one.

    Args:
        fill_value: in units of the pictures, a number or one per channel; None draws a colour for each picture.
        probability: of painting at all.
    """

    def __init__(self, fill_value: float | Sequence[float] | None, probability: float) -> None:
        self.fill_value = fill_value
        self.probability = _probability(type(self).__name__, probability)

    def paint(self, draft: Draft, box: Tensor, u: Tensor) -> None:
        """Adds a box (N, 4); u (N, 5) decides whether, and the colour."""
        box = torch.where((u[:, :1] < self.probability), box, 0.0)
        if self.fill_value is None:
            colours = between(u[:, 1 : 1 + draft.channels], (draft.low, draft.high))
            colours = colours if draft.channels <= colours.shape[1] else colours[:, :1].expand(-1, draft.channels)
        else:
            values = [self.fill_value] * draft.channels if isinstance(self.fill_value, (int, float)) else list(self.fill_value)
            if len(values) != draft.channels:
                raise ArgumentError(explain(f"{type(self).__name__}(fill_value)", f"{len(values)} numbers", f"one, or {draft.channels}"))
            colours = torch.stack([draft.full(float(v), u) for v in values], 1)
        draft.erase(box, colours)


_probability = probability


@registry.register()
class Cutout(Erasing):
    """Paints a square over each picture; its centre is anywhere, so that part of it may lie outside.

    Args:
        size: side of the square: a number of pixels (int), or a fraction of the picture's shorter side (float).
        fill_value, probability: see `Erasing`.

    Source: DeVries & Taylor 2017.
    """

    draws = 7

    def __init__(self, size: int | float = 0.5, fill_value: float | Sequence[float] | None = 0.0, probability: float = 1.0) -> None:
        super().__init__(fill_value, probability)
        self.size = size
        if isinstance(size, bool) or not isinstance(size, (int, float)) or size <= 0 or (isinstance(size, float) and size > 1):
            raise ArgumentError(explain("Cutout(size)", repr(size), "pixels (a whole number), or a fraction from 0.0 to 1.0"))

    def add(self, draft: Draft, u: Tensor) -> None:
        side = self.size if isinstance(self.size, int) else max(1, round(self.size * min(draft.height, draft.width)))
        top = (u[:, 0] * draft.height).floor() - side // 2
        left = (u[:, 1] * draft.width).floor() - side // 2
        self.paint(draft, torch.stack([top, left, top + side, left + side], 1), u[:, 2:])


@registry.register()
class RandomErasing(Erasing):
    """Paints a rectangle of random size, shape and place over pictures; it lies inside.

    Args:
        probability: of doing so at all.
        scale: (low, high), the rectangle's share of the picture.
        ratio: (low, high), width over height; the logarithm is uniform. Rectangles that do not fit are cut to the picture.
        fill_value: see `Erasing`; by default a random colour.

    Source: Zhong et al. 2017. Keras counterpart: `keras.layers.RandomErasing`, which paints noise.
    """

    draws = 9

    def __init__(self, probability: float = 1.0, scale: Range = (0.02, 0.33), ratio: Range = (0.3, 3.3),
                 fill_value: float | Sequence[float] | None = None) -> None:
        super().__init__(fill_value, probability)
        self.scale, self.ratio = scale, ratio
        self._scale = bounds("RandomErasing", "scale", scale, least=0.0, most=1.0)
        self._ratio = bounds("RandomErasing", "ratio", ratio, least=1e-2, most=100.0)

    def add(self, draft: Draft, u: Tensor) -> None:
        area = between(u[:, 0], self._scale) * (draft.height * draft.width)
        ratio = between(u[:, 1], (math.log(self._ratio[0]), math.log(self._ratio[1]))).exp()
        height = (area / ratio).sqrt().round().clamp(1, draft.height)
        width = (area * ratio).sqrt().round().clamp(1, draft.width)
        top = (u[:, 2] * (draft.height - height + 1)).floor()
        left = (u[:, 3] * (draft.width - width + 1)).floor()
        self.paint(draft, torch.stack([top, left, top + height, left + width], 1), u[:, 4:])
