"""Transforms that mix two samples, pictures and labels alike."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from convolt.data.augment.base import Transform, probability, registry
from convolt.data.augment.draft import Draft
from convolt.errors import ArgumentError, explain

KNOTS = 1024


class Mixing(Transform):
    """Base: a partner for each sample, drawn with the sample's key, and the sample's own share, drawn from Beta(alpha, alpha).

    Of several mixing transforms in a list, the first that acts on a sample is the only one.

    Args:
        alpha: of the Beta distribution; 1 is uniform, near 0 leaves one of the two almost alone.
        probability: of mixing at all.
    """

    draws = 5

    def __init__(self, alpha: float, probability: float) -> None:
        self.alpha = alpha
        self.probability = _probability(type(self).__name__, probability)
        if not isinstance(alpha, (int, float)) or not 0.01 <= alpha <= 100:
            raise ArgumentError(explain(f"{type(self).__name__}(alpha)", repr(alpha), "a number from 0.01 to 100"))

    def draw(self, draft: Draft, u: Tensor) -> tuple[Tensor, Tensor]:
        """Returns which samples (N,) are mixed, and shares (N,); the partner is drawn on the way."""
        if draft.partner is None:
            draft.partner = u[:, 1]
            draft.share = torch.ones_like(u[:, 0])
        assert draft.share is not None
        free = draft.share == 1 if draft.cut is None else (draft.share == 1) & (draft.cut[:, 2] <= draft.cut[:, 0])
        return (u[:, 0] < self.probability) & free, beta(u[:, 2], float(self.alpha))


_probability = probability


@registry.register()
class MixUp(Mixing):
    """Blends each picture with another, and their labels in the same shares.

    Args:
        alpha, probability: see `Mixing`.

    Source: Zhang et al. 2018. Keras counterpart: `keras.layers.MixUp`.
    """

    def __init__(self, alpha: float = 0.2, probability: float = 1.0) -> None:
        super().__init__(alpha, probability)

    def add(self, draft: Draft, u: Tensor) -> None:
        chosen, share = self.draw(draft, u)
        draft.share = torch.where(chosen, share, draft.share)  # type: ignore[arg-type]


@registry.register()
class CutMix(Mixing):
    """Replaces a rectangle of each picture by that of another; labels are mixed by area.

    Args:
        alpha, probability: see `Mixing`.

    Source: Yun et al. 2019. Keras counterpart: `keras.layers.CutMix`.
    """

    def __init__(self, alpha: float = 1.0, probability: float = 1.0) -> None:
        super().__init__(alpha, probability)

    def add(self, draft: Draft, u: Tensor) -> None:
        chosen, share = self.draw(draft, u)
        side = (1 - share).sqrt()
        edges = []
        for i, size in ((3, draft.height), (4, draft.width)):
            centre, half = (u[:, i] * size).floor(), (side * size / 2).floor()
            edges.append(((centre - half).clamp(0, size), (centre + half).clamp(0, size)))
        (top, bottom), (left, right) = edges
        cut = torch.where(chosen[:, None], torch.stack([top, left, bottom, right], 1), 0.0)
        draft.cut = cut if draft.cut is None else torch.where(chosen[:, None], cut, draft.cut)


def beta(u: Tensor, alpha: float) -> Tensor:
    """Returns numbers of Beta(alpha, alpha) from uniform numbers u: the inverse of the distribution function, between knots."""
    if alpha == 1.0:
        return u
    lower = torch.where(u < 0.5, u, 1 - u) * 2  # the distribution is symmetric
    place = lower * (KNOTS - 1)
    at = place.floor().clamp(0, KNOTS - 2)
    table = _table_on(alpha, u.device, u.dtype)
    left, right = table[at.long()], table[at.long() + 1]
    # t is the root of x that is near to linear in u
    half = 0.5 * (left + (place - at) * (right - left)).clamp(0, 1) ** (1.0 / alpha)
    return torch.where(u < 0.5, half, 1 - half)


@functools.lru_cache(maxsize=64)
def _table_on(alpha: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(quantiles(alpha), dtype=dtype, device=device)


def quantiles(alpha: float) -> list[float]:
    """Returns t at equal steps of u from 0 to 1/2, where x = t^(1/alpha) / 2 has the distribution function u.

    The distribution function up to 1/2 is x^a · F(a, 1 - a; a + 1; x) / (a · B(a, a)), whose series converges like 2^-n there.
    """
    t = np.linspace(0.0, 1.0, 16 * KNOTS)
    x = 0.5 * t ** (1.0 / alpha)
    term, total = np.ones_like(x), np.zeros_like(x)
    for n in range(400):
        total += term
        term = term * (alpha + n) * (1 - alpha + n) / ((alpha + 1 + n) * (n + 1)) * x
    distribution = t * total
    distribution /= distribution[-1]  # which is one half of the whole
    return [float(v) for v in np.interp(np.linspace(0.0, 1.0, KNOTS), distribution, t)]
