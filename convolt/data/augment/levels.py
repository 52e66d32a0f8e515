"""Steps in the values: autocontrast, equalize, solarize and posterize as one table of 256 levels for each sample and channel.

Pillow does these to bytes, by tables. Here they are one histogram and one look into a table, whatever a sample has of them; no host sync.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convolt.data.augment.keys import real_type

LEVELS = 256


def changed_levels(images: Tensor, limits: tuple[float, float], autocontrast: Tensor | None = None, equalize: Tensor | None = None,
                   solarize: Tensor | None = None, bits: Tensor | None = None) -> Tensor:
    """Returns float pictures (N, h, w, C) after these four, in this order; None: for no sample.

    The range of values is taken as 256 levels, to the nearest. Samples of which nothing is wanted stay as they are, to the last bit.

    Args:
        images: within `limits`.
        limits: least and greatest value.
        autocontrast, equalize: (N,) bool.
        solarize: (N,) level from which values are inverted; above 255 none is.
        bits: (N,) from 1 to 8, how many are kept.
    """
    low, high = limits
    count, channels = images.shape[0], images.shape[3]
    # In place where that can be: fresh memory for whole batches costs more than what is computed there.
    levels = (images - low).mul_(255 / (high - low)).add_(0.5).floor_().clamp_(0, 255).to(torch.int32)
    first = torch.arange(0, count * channels * LEVELS, LEVELS, dtype=torch.int32, device=images.device)
    places = levels.add_(first.view(count, 1, 1, channels)).view(-1)
    table = torch.arange(LEVELS, device=images.device).expand(count, channels, -1)
    touched = torch.zeros(count, dtype=torch.bool, device=images.device)
    if autocontrast is not None or equalize is not None:
        one = torch.ones((), dtype=torch.int64, device=images.device)
        histogram = torch.zeros(count * channels * LEVELS, dtype=torch.int64, device=images.device)
        histogram = histogram.index_add_(0, places, one.expand(len(places))).view(count, channels, LEVELS)
        if autocontrast is not None:
            table, touched = torch.where(autocontrast[:, None, None], stretched(histogram), table), touched | autocontrast
        if equalize is not None:
            seen = torch.zeros_like(histogram).scatter_add_(2, table, histogram)
            even = evened(seen).gather(2, table)
            table, touched = torch.where(equalize[:, None, None], even, table), touched | equalize
    if solarize is not None:
        table, touched = torch.where(table >= solarize[:, None, None], 255 - table, table), touched | (solarize <= 255)
    if bits is not None:
        dropped = (8 - bits.to(torch.int64))[:, None, None]
        table, touched = (table >> dropped) << dropped, touched | (bits < 8)
    units = table.to(images.dtype).contiguous().view(-1).mul_((high - low) / 255).add_(low)
    return torch.where(touched[:, None, None, None], units.index_select(0, places).view(images.shape), images)


def stretched(histogram: Tensor) -> Tensor:
    """Returns tables (…, 256) that map the least level of histograms (…, 256) to 0 and the greatest to 255."""
    kind = real_type(histogram.device)
    level = torch.arange(LEVELS, device=histogram.device)
    least = torch.where(histogram > 0, level, 255).amin(-1, keepdim=True)
    most = torch.where(histogram > 0, level, 0).amax(-1, keepdim=True)
    width = (most - least).clamp(min=1).to(kind)
    scale = torch.full_like(width, 255.0) / width  # 255.0 / width would be a product with the reciprocal, which rounds twice
    table = (level.to(kind) * scale - least.to(kind) * scale).clamp(0, 255).to(torch.int64)
    return torch.where(most > least, table, level)


def evened(histogram: Tensor) -> Tensor:
    """Returns tables (…, 256) after which levels of histograms (…, 256) are about equally frequent."""
    level = torch.arange(LEVELS, device=histogram.device)
    most = torch.where(histogram > 0, level, 0).amax(-1, keepdim=True)
    step = (histogram.sum(-1, keepdim=True) - histogram.gather(-1, most)) // 255
    below = histogram.cumsum(-1) - histogram
    return torch.where(step > 0, ((step // 2 + below) // step.clamp(min=1)).clamp(max=255), level)
