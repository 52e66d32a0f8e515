"""The weights' gradient of a depthwise convolution on the CPU.

oneDNN's own is fast for windows of 3 × 3 alone. Here the products of one line of results with one line of the input are
summed for all columns of the window at once, in registers, for sixteen channels; sums of a few lines are float32 and are added
up in float64. Channels belong to one thread each, so that the result does not depend on the number of threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from convolt.kernels.compiled import Compiled
from convolt.kernels.jit import LANES, cgutils, intrinsic, ir, types
from convolt.kernels.memory import bits, channels_last
from convolt.kernels.sums_numba import flush

RUN = 64
"""Products that are about summed in float32 before the sum is added in float64."""


def _correlate(taps: int) -> Callable[..., None]:
    """Returns an intrinsic `f(g, g_at, g_step, x, x_at, x_step, tap_step, sums, s_at, count)`.

    It adds, for t < taps and j < 16,

        sums[s_at + 16 · t + j] += Σ g[g_at + i · g_step + j] · x[x_at + i · x_step + t · tap_step + j]

    over i < count, in order. g and x are flat bits of float32 or bfloat16, sums are float32, all other arguments intp.
    """
    index = types.intp

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        from convolt.kernels.vectors_numba import multiply_add, numbers_at

        kinds = signature.args
        g, x, sums = (context.make_array(kinds[i])(context, builder, values[i]).data for i in (0, 3, 7))
        g_at, g_step, x_at, x_step, tap_step, s_at, count = (values[i] for i in (1, 2, 4, 5, 6, 8, 9))

        def place(data: Any, start: Any, step: Any, times: Any) -> Any:
            return builder.gep(data, [builder.add(start, builder.mul(step, times))])

        numbers = [ir.Constant(ir.IntType(64), t) for t in range(taps)]
        outs = [place(sums, s_at, ir.Constant(ir.IntType(64), LANES), t) for t in numbers]
        totals = [cgutils.alloca_once_value(builder, numbers_at(builder, out, kinds[7].dtype)) for out in outs]
        with cgutils.for_range(builder, count) as loop:
            left = numbers_at(builder, place(g, g_at, g_step, loop.index), kinds[0].dtype)
            start = builder.add(x_at, builder.mul(x_step, loop.index))
            for t, total in zip(numbers, totals, strict=True):
                right = numbers_at(builder, place(x, start, tap_step, t), kinds[3].dtype)
                builder.store(multiply_add(builder, left, right, builder.load(total), False), total)
        for out, total in zip(outs, totals, strict=True):
            value = builder.load(total)
            builder.store(value, builder.bitcast(out, value.type.as_pointer())).align = 4
        return context.get_dummy_value()

    @intrinsic
    def correlate(typing: Any, g: Any, g_at: Any, g_step: Any, x: Any, x_at: Any, x_step: Any, tap_step: Any, sums: Any, s_at: Any,
                  count: Any) -> Any:
        return types.void(g, index, index, x, index, index, index, sums, index, index), codegen

    result: Callable[..., None] = correlate
    return result


@functools.cache
def _kernel(columns: int) -> Compiled:
    """Returns the gradient for windows with so many columns."""
    correlate = _correlate(columns)

    def compute(grad: Any, x: Any, out: Any, sizes: Any, first: Any, last: Any) -> None:
        n, out_height, out_width, height, width, channels, rows, down, right = sizes
        taps, lines = rows * columns, max(1, RUN // out_width)
        sums, totals = np.zeros(taps * LANES, np.float32), np.empty(taps * LANES)
        for block in range(first, last):
            c = min(block * LANES, channels - LANES)
            totals[:] = 0.0
            for number in range(n * out_height):
                image, line = number // out_height, number % out_height
                g_at = number * out_width * channels + c
                x_at = (image * height + line * down) * width * channels + c
                for row in range(rows):
                    correlate(grad, g_at, channels, x, x_at + row * width * channels, right * channels, channels, sums,
                              row * columns * LANES, out_width)
                if number % lines == lines - 1 or number == n * out_height - 1:
                    flush(sums, totals)
            for tap in range(taps):
                for j in range(block * LANES - c, LANES):
                    out[tap * channels + c + j] = np.float32(totals[tap * LANES + j])

    return Compiled(compute, made_by=("_kernel", columns))


def weight_gradient(grad: Tensor, x: Tensor, window: tuple[int, int], strides: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """See `reference.depthwise_weight_gradient`; `grad` and `x` have channels-last memory and at least 16 channels."""
    up, left = padding
    x = channels_last(F.pad(x, (left, left, up, up)) if up or left else x)
    n, channels, height, width = x.shape
    sizes = (n, *grad.shape[2:], height, width, channels, window[0], *strides)
    out = torch.empty(*window, channels)
    arrays = (bits(grad), bits(x), out.view(-1), sizes)
    _kernel(window[1]).over_rows(arrays, -(-channels // LANES), grad.numel() * 4 * window[0])
    return out.movedim(-1, 0).unsqueeze(1)
