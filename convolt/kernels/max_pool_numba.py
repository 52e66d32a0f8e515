"""Max-pooling alone on the CPU, where no gradient is wanted: float32 or bfloat16, as bits (see `bits_numba`) in channels-last order."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from convolt.kernels.compiled import Compiled
from convolt.kernels.instructions import if_larger, load, store
from convolt.kernels.jit import LANES
from convolt.kernels.memory import bits, empty_channels_last
from convolt.kernels.pool_reference import Window


@Compiled
def _forward(x: Any, out: Any, sizes: Any, first: Any, last: Any) -> None:
    height, width, channels, out_height, out_width, ph, pw, sh, sw, pt, pl = sizes
    line = width * channels
    for row in range(first, last):
        image, top = row // out_height, row % out_height * sh - pt
        begin, end = max(0, top), min(height, top + ph)
        for column in range(out_width):
            left, right = max(0, column * sw - pl), min(width, column * sw - pl + pw)
            start, o = (image * height + begin) * line, (row * out_width + column) * channels
            for k in range(0, channels, LANES):
                m = load(x, start + left * channels + k)
                for i in range(end - begin):
                    for j in range(left, right):
                        v = load(x, start + i * line + j * channels + k)
                        m = if_larger(v, m, v, m)
                store(out, o + k, m)


def forward(x: Tensor, window: Window, places: tuple[int, int], ceil_mode: bool) -> Tensor:
    """See `reference.maxpool_forward`; x has channels-last memory, and a multiple of `LANES` channels."""
    n, channels, height, width = x.shape
    out = empty_channels_last((n, channels, *places), x.dtype, x.device)
    _forward.over_rows((bits(x), bits(out), (height, width, channels, *places, *window)), n * places[0], x.nbytes)
    return out
