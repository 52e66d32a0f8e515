"""What is more than a resample and a colour matrix: blur, sharpness, steps in the values, noise. Each costs a pass of its own.

They act on the moved and coloured pictures, in this order, wherever the transforms stand in the list: blur, sharpness, autocontrast,
equalize, solarize, posterize (these four are one table, `convolt.data.augment.levels`), noise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from convolt.data.augment.base import Range, Transform, between, bounds, probability, registry, unless
from convolt.data.augment.draft import Draft, Parameters
from convolt.data.augment.keys import bits_of, derived, real_type
from convolt.data.augment.levels import changed_levels
from convolt.errors import ArgumentError, explain

WIDEST_BLUR = 16
"""Rows on either side that a blur looks at, at most."""


@registry.register()
class RandomNoise(Transform):
    """Adds Gaussian noise, drawn anew for each value of each picture with its key.

    Args:
        stddev: (low, high) or a number s for 0 … s, as fractions of the range of values.
        probability: of adding any.

    Keras counterpart: `keras.layers.GaussianNoise`.
    """

    draws = 2

    def __init__(self, stddev: Range, probability: float = 1.0) -> None:
        self.stddev = stddev
        self.probability = _probability("RandomNoise", probability)
        self._range = _from_zero("RandomNoise", "stddev", stddev)

    def add(self, draft: Draft, u: Tensor) -> None:
        if draft.noise is not None:
            raise ArgumentError(explain("augment", "two RandomNoise", "one"))
        draft.noise = unless(u[:, 1] >= self.probability, between(u[:, 0], self._range), 0.0) * (draft.high - draft.low)


_probability = probability


@registry.register()
class RandomBlur(Transform):
    """Blurs pictures with a Gaussian.

    Args:
        sigma: (low, high) or a number s for 0 … s: standard deviations in pixels of the output, up to 5.
        probability: of blurring at all.

    Keras counterpart: `keras.layers.RandomGaussianBlur`.
    """

    draws = 2

    def __init__(self, sigma: Range, probability: float = 1.0) -> None:
        self.sigma = sigma
        self.probability = _probability("RandomBlur", probability)
        self._range = _from_zero("RandomBlur", "sigma", sigma, most=5.0)

    def add(self, draft: Draft, u: Tensor) -> None:
        if draft.blur is not None:
            raise ArgumentError(explain("augment", "two RandomBlur", "one"))
        draft.blur = unless(u[:, 1] >= self.probability, between(u[:, 0], self._range), 0.0)
        draft.blur_radius = min(WIDEST_BLUR, max(1, math.ceil(3 * self._range[1])))


def _from_zero(transform: str, argument: str, value: Range, most: float = math.inf) -> tuple[float, float]:
    return bounds(transform, argument, (0.0, value) if isinstance(value, (int, float)) else value, least=0.0, most=most)


def sharpen(draft: Draft, amounts: Tensor) -> None:
    """Adds so much (N,) of what smoothing takes away: -1 smooths, 0 changes nothing; amounts of several add up.

    Counterpart: Pillow's `ImageEnhance.Sharpness`, whose factor is 1 more.
    """
    draft.sharpness = amounts if draft.sharpness is None else draft.sharpness + amounts


def autocontrast(draft: Draft, chosen: Tensor) -> None:
    """Stretches each channel of the chosen samples (N,) to the whole range of values: Pillow's `ImageOps.autocontrast`."""
    draft.autocontrast = chosen if draft.autocontrast is None else draft.autocontrast | chosen


def equalize(draft: Draft, chosen: Tensor) -> None:
    """Spreads the values of each channel of the chosen samples (N,) evenly over the range: Pillow's `ImageOps.equalize`."""
    draft.equalize = chosen if draft.equalize is None else draft.equalize | chosen


def solarize(draft: Draft, thresholds: Tensor) -> None:
    """Inverts values from thresholds (N,) on, in levels of 0 … 255; the least of several counts: Pillow's `ImageOps.solarize`."""
    draft.solarize = thresholds if draft.solarize is None else torch.minimum(draft.solarize, thresholds)


def posterize(draft: Draft, bits: Tensor) -> None:
    """Keeps so many bits (N,) of 8; the least of several counts: Pillow's `ImageOps.posterize`."""
    draft.bits = bits if draft.bits is None else torch.minimum(draft.bits, bits)


def has_effects(chosen: Parameters) -> bool:
    """Whether anything of this file is to be done."""
    return any(t is not None for t in (chosen.blur, chosen.sharpness, chosen.noise, *_steps(chosen)))


def _steps(chosen: Parameters) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    return chosen.autocontrast, chosen.equalize, chosen.solarize, chosen.bits


def with_effects(images: Tensor, chosen: Parameters, keys: Tensor, limits: tuple[float, float]) -> Tensor:
    """Returns float pictures (N, h, w, C) after all of these, cut to the range of values.

    A fourth channel, alpha, is blurred and gets noise, and is otherwise left alone, as in Pillow.
    """
    low, high = limits
    if chosen.blur is not None:
        images = blurred(images, chosen.blur.to(images.dtype), chosen.blur_radius)
    colours, alpha = (images[..., :3], images[..., 3:]) if images.shape[3] == 4 else (images, None)
    if chosen.sharpness is not None:
        colours = sharpened(colours, chosen.sharpness.to(images.dtype)).clamp(low, high)
    if any(t is not None for t in _steps(chosen)):
        colours = changed_levels(colours, limits, *_steps(chosen))
    images = colours if alpha is None else torch.cat([colours, alpha], 3)
    if chosen.noise is not None:
        noise = normal(keys, images[0].numel()).to(images.dtype).view(images.shape)
        images = images + noise * chosen.noise.to(images.dtype)[:, None, None, None]
    return images.clamp(low, high)


def blurred(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Returns (N, h, w, C) blurred by sigma (N,) along rows and columns; borders are mirrored, and sigma 0 changes nothing."""
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    weights = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]).square())
    weights = (weights / weights.sum(1, keepdim=True))[:, :, None, None, None]
    for axis in (1, 2):
        size = images.shape[axis]
        places = (torch.arange(-radius, size + radius, device=images.device)).remainder(2 * size)
        padded = images.index_select(axis, torch.where(places >= size, 2 * size - 1 - places, places))
        images = sum((weights[:, i] * padded.narrow(axis, i, size) for i in range(2 * radius + 1)), torch.zeros_like(images))
    return images


def sharpened(images: Tensor, amounts: Tensor) -> Tensor:
    """Returns (N, h, w, C) plus amounts (N,) of the difference to the smoothed picture.

    Smoothing weighs a pixel 5 times, its 8 neighbours once; pixels of the border are left alone. That is Pillow's `ImageFilter.SMOOTH`.
    """
    inner = images[:, 1:-1, 1:-1]
    if inner.numel() == 0:
        return images
    rows = (images[:, :-2] + images[:, 1:-1]).add_(images[:, 2:])
    smooth = (rows[:, :, :-2] + rows[:, :, 1:-1]).add_(rows[:, :, 2:]).add_(inner, alpha=4).div_(13)
    out = images.clone()
    out[:, 1:-1, 1:-1].add_(smooth.neg_().add_(inner).mul_(amounts[:, None, None, None]))
    return out


def normal(keys: Tensor, count: int) -> Tensor:
    """Returns (N, count) standard normal numbers, drawn with the keys (N,): Box and Muller's two from each hash of 64 bits."""
    pairs = (count + 1) // 2
    bits = bits_of(derived(keys, 2), torch.arange(pairs, device=keys.device))
    kind = torch.float32 if real_type(keys.device) == torch.float32 or keys.is_cuda else torch.float64
    radius = (((bits & 0xFFFFFF).to(kind) + 1) * 2.0**-24).log().mul(-2).sqrt()
    angle = ((bits >> 24) & 0xFFFFFF).to(kind) * (2 * math.pi * 2.0**-24)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :count]
