"""Antialiased bilinear resizing of a uint8 picture on one CPU thread, without the GIL: lines first, then columns, as in Pillow.

Pixels are four bytes, whatever their channels. Four lines are resized at once: their pixels lie side by side, so that one vector holds
a column of them, and a weight is multiplied with sixteen values. Sums stay in registers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.kernels.compiled import Compiled
from convolt.kernels.instructions import block, column_of_four, side_by_side
from convolt.kernels.jit import register_jitable
from convolt.kernels.resize_reference import triangle_weights

ROWS = 4
"""Lines that are resized at once."""
WIDE = 4
"""Bytes of a pixel."""
LANES = ROWS * WIDE
BLOCK = 16
"""Pixels of a line that are summed along the columns at once."""


@register_jitable
def _four_lines(x: Any, top: Any, height: Any, width: Any, channels: Any, out: Any) -> None:
    """Lays four lines side by side: out[16 · column + 4 · row + channel]; beyond the last line lies anything."""
    line, column = width * channels, 0
    if channels == 3 and top + ROWS <= height:
        while column + ROWS <= width:
            side_by_side(x, top * line + 3 * column, line, out, LANES * column)
            column += ROWS
    for row in range(min(ROWS, height - top)):
        for rest in range(column, width):
            for c in range(channels):
                out[LANES * rest + WIDE * row + c] = x[(top + row) * line + rest * channels + c]


@Compiled
def _resized(x: Any, first_column: Any, column_weights: Any, first_row: Any, row_count: Any, row_weights: Any, out: Any,
             sizes: Any) -> None:
    """Resizes a picture. x: (H · W · C) bytes, out: (h · w · C)."""
    height, width, after_height, after_width, channels, column_taps, row_taps = sizes
    line = -(-after_width // BLOCK) * BLOCK * WIDE
    lines = np.empty(-(-height // ROWS) * ROWS * line, np.uint8)
    four = np.zeros((width + column_taps) * LANES, np.uint8)
    for top in range(0, height, ROWS):
        _four_lines(x, top, height, width, channels, four)
        for column in range(after_width):
            column_of_four(four, first_column[column] * LANES, column_weights, column * column_taps, column_taps, lines,
                            top * line + column * WIDE, line)
    step = BLOCK * (3 if channels == 3 else WIDE)
    made = np.empty(line // (BLOCK * WIDE) * step, np.uint8)
    for row in range(after_height):
        for number in range(line // (BLOCK * WIDE)):
            block(lines, first_row[row] * line + number * BLOCK * WIDE, line, row_weights, row * row_taps, row_count[row], made,
                  number * step, channels == 3)
        target = out[row * after_width * channels : (row + 1) * after_width * channels]
        if channels == 3:
            target[:] = made[: 3 * after_width]
        else:
            for column in range(after_width):
                for c in range(channels):
                    target[column * channels + c] = made[WIDE * column + c]


def picture(x: Tensor, size: tuple[int, int]) -> Tensor:
    """See `reference.resize_picture`."""
    height, width, channels = x.shape
    first_column, count, column_weights = triangle_weights(width, size[1])
    taps = int(count.max())
    first_row, row_count, row_weights = triangle_weights(height, size[0])
    out = np.empty(size[0] * size[1] * channels, np.uint8)
    _resized(x.view(-1), first_column, np.ascontiguousarray(column_weights[:, :taps]).reshape(-1), first_row, row_count,
             row_weights.reshape(-1), out, (height, width, *size, channels, taps, row_weights.shape[1]))
    return torch.from_numpy(out.reshape(*size, channels))
