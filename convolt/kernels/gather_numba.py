"""Batches out of a resident uint8 array on the CPU: index, crop, flip, normalise and cast in one pass over memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.kernels.bits_numba import Compiled, from_float
from convolt.kernels.memory import bits
from convolt.kernels.threads import over_rows


@Compiled
def _gather(images: Any, index: Any, flip: Any, offset: Any, scale: Any, shift: Any, out: Any, sizes: Any, first: Any, last: Any) -> None:
    in_height, in_width, channels, height, width, reflect = sizes
    line, out_line = in_width * channels, width * channels
    like = out.dtype.type(0)
    for row in range(first, last):
        sample, y = row // height, row % height
        top, left = (offset[2 * sample], offset[2 * sample + 1]) if offset.size > 0 else (0, 0)
        target = out[row * out_line : (row + 1) * out_line]
        y += top
        inside = 0 <= y < in_height
        if reflect and not inside:
            period = max(1, 2 * in_height - 2)
            y = y % period
            y = period - y if y >= in_height else y
        elif not inside:
            y = 0
        start = (index[sample] * in_height + y) * line
        source = images[start : start + line]
        flipped = flip.size > 0 and flip[sample] != 0
        if inside and not flipped and left >= 0 and left + width <= in_width:
            pixels = source[left * channels : left * channels + out_line]
            for i in range(out_line):
                target[i] = from_float(np.float32(pixels[i]) * scale[i] + shift[i], like)
            continue
        for column in range(width):
            x = (width - 1 - column if flipped else column) + left
            seen = inside and 0 <= x < in_width
            if reflect:
                period = max(1, 2 * in_width - 2)
                x = x % period
                x = period - x if x >= in_width else x
                seen = True
            for c in range(channels):
                value = np.float32(source[x * channels + c]) if seen else np.float32(0)
                target[column * channels + c] = from_float(value * scale[c] + shift[c], like)


def fill(images: Tensor, index: Tensor, scale: Tensor, shift: Tensor, flip: Tensor | None, offset: Tensor | None, reflect: bool,
         out: Tensor) -> Tensor:
    """See `reference.gather_fill`; fills `out` (N, C, h, w), float32 or bfloat16 with channels-last memory."""
    count, channels, height, width = out.shape
    nothing = torch.empty(0, dtype=torch.int64)
    flips = nothing if flip is None else flip.to(torch.int64).contiguous()
    offsets = nothing if offset is None else offset.to(torch.int64).contiguous()
    # A whole line at a time is what vectorises, so the values of each channel are laid out along a line.
    lines = [v.to(torch.float32).expand(channels).repeat(width).numpy() for v in (scale, shift)]
    arrays = (images.view(-1).numpy(), index.to(torch.int64).contiguous().numpy(), flips.numpy(), offsets.view(-1).numpy(), *lines,
              bits(out))
    sizes = (images.shape[1], images.shape[2], channels, height, width, int(reflect))
    over_rows(lambda first, last: _gather(*arrays, sizes, first, last), count * height, 2 * out.nbytes)
    return out
