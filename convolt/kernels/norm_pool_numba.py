"""Batch normalization + ReLU + max-pooling on the CPU, in training and inference, float32 or bfloat16.

Arrays are flat, in channels-last order, and hold bits (see `bits_numba`); the inner loops run over channels. The sums of
the backward pass go over windows, since all but their maxima have no gradient; the input's gradient goes over lines of x.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.kernels.bits_numba import from_float, to_float
from convolt.kernels.compiled import Compiled
from convolt.kernels.memory import bits, empty_channels_last, empty_like, numbers
from convolt.kernels.norm_numba import statistics
from convolt.kernels.norm_reference import follow
from convolt.kernels.pool_reference import Window
from convolt.kernels.sums_numba import add_up, flush

RUN = 8
"""Windows whose sums are taken in float32 before they are added in float64."""
PARTS = 256
"""Most parts into which the windows are divided for sums."""


@Compiled
def _forward(x: Any, out: Any, code: Any, keep: Any, mean: Any, scale: Any, shift: Any, sizes: Any, first: Any, last: Any) -> None:
    height, width, channels, out_height, out_width, ph, pw, sh, sw, pt, pl = sizes
    line, out_line = width * channels, out_width * channels
    best, scratch = np.empty(out_line, np.float32), np.empty(out_line, np.uint8)
    for row in range(first, last):
        image, top = row // out_height, row % out_height * sh - pt
        where = code[row * out_line : (row + 1) * out_line] if keep else scratch
        best[:] = np.float32(-np.inf)
        where[:] = np.uint8(0)
        for i in range(max(0, -top), min(ph, height - top)):
            start = (image * height + top + i) * line
            for column in range(out_width):
                o, left = column * channels, column * sw - pl
                m, w = best[o : o + channels], where[o : o + channels]
                for j in range(max(0, -left), min(pw, width - left)):
                    s, place = start + (left + j) * channels, np.uint8(i * pw + j)
                    a = x[s : s + channels]
                    for k in range(channels):
                        z = (to_float(a[k]) - mean[k]) * scale[k] + shift[k]
                        better = (z > m[k]) | (z != z)
                        w[k] = place if better else w[k]
                        m[k] = z if better else m[k]
        y = out[row * out_line : (row + 1) * out_line]
        for k in range(out_line):
            dead = best[k] <= np.float32(0)
            y[k] = from_float(np.float32(0) if dead else best[k], y[k])
            where[k] = np.uint8(255) if dead else where[k]


@Compiled
def _reduce(grad: Any, code: Any, x: Any, mean: Any, rstd: Any, sums: Any, products: Any, sizes: Any, chunk: Any, first: Any,
            last: Any) -> None:
    height, width, channels, out_height, out_width, ph, pw, sh, sw, pt, pl = sizes
    rows = grad.size // (out_width * channels)
    total, product = np.zeros(channels, np.float32), np.zeros(channels, np.float32)
    for part in range(first, last):
        wide_total, wide_product = sums[part * channels : (part + 1) * channels], products[part * channels : (part + 1) * channels]
        wide_total[:] = 0.0
        wide_product[:] = 0.0
        for row in range(part * chunk, min(rows, (part + 1) * chunk)):
            image, top = row // out_height, row % out_height * sh - pt
            for column in range(out_width):
                o, left = (row * out_width + column) * channels, column * sw - pl
                g, w = grad[o : o + channels], code[o : o + channels]
                for k in range(channels):
                    v = to_float(g[k])
                    total[k] += np.float32(0) if w[k] == np.uint8(255) else v
                for i in range(max(0, -top), min(ph, height - top)):
                    for j in range(max(0, -left), min(pw, width - left)):
                        s, here = ((image * height + top + i) * width + left + j) * channels, np.uint8(i * pw + j)
                        a = x[s : s + channels]
                        for k in range(channels):
                            v = to_float(g[k]) * ((to_float(a[k]) - mean[k]) * rstd[k])
                            product[k] += v if w[k] == here else np.float32(0)
                if column % RUN == RUN - 1 or column == out_width - 1:
                    flush(total, wide_total)
                    flush(product, wide_product)


@Compiled
def _input_gradient(grad: Any, code: Any, x: Any, out: Any, mean: Any, rstd: Any, scale: Any, mean_grad: Any, mean_product: Any,
                    sizes: Any, first: Any, last: Any) -> None:
    height, width, channels, out_height, out_width, ph, pw, sh, sw, pt, pl = sizes
    line, out_line = width * channels, out_width * channels
    dz = np.empty(line, np.float32)
    for row in range(first, last):
        image, place = row // height, row % height + pt
        dz[:] = np.float32(0)
        for out_row in range(max(0, -((ph - 1 - place) // sh)), min(out_height, place // sh + 1)):
            start, i = (image * out_height + out_row) * out_line, place - out_row * sh
            for column in range(out_width):
                o, left = start + column * channels, column * sw - pl
                g, w = grad[o : o + channels], code[o : o + channels]
                for j in range(max(0, -left), min(pw, width - left)):
                    s, here = (left + j) * channels, np.uint8(i * pw + j)
                    d = dz[s : s + channels]
                    for k in range(channels):
                        v = to_float(g[k])
                        d[k] += v if w[k] == here else np.float32(0)
        for column in range(width):
            s = row * line + column * channels
            a, y, d = x[s : s + channels], out[s : s + channels], dz[column * channels : (column + 1) * channels]
            for k in range(channels):
                centred = (to_float(a[k]) - mean[k]) * rstd[k]
                y[k] = from_float(scale[k] * (d[k] - mean_grad[k] - centred * mean_product[k]), a[k])


def _sizes(x: Tensor, window: Window) -> tuple[int, ...]:
    """Returns height, width, channels, those of the result, and the window."""
    _, channels, height, width = x.shape
    ph, pw, sh, sw, pt, pl = window
    return height, width, channels, (height + 2 * pt - ph) // sh + 1, (width + 2 * pl - pw) // sw + 1, *window


def _scale_and_shift(x: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns those of each channel, float32."""
    scale = rstd if weight is None else rstd * weight.detach().to(torch.float32)
    return scale, torch.zeros(x.shape[1]) if bias is None else bias.detach().to(torch.float32)


def _pooled(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, window: Window, keep: bool) -> tuple[Tensor, Tensor]:
    sizes = _sizes(x, window)
    shape = (x.shape[0], *sizes[2:5])
    out = empty_channels_last(shape, x.dtype, x.device)
    code = empty_channels_last(shape if keep else (0, *sizes[2:5]), torch.uint8, x.device)
    arrays = (bits(x), bits(out), numbers(code), keep, mean, scale, shift, sizes)
    _forward.over_rows(arrays, shape[0] * shape[2], x.nbytes)
    return out, code


def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
            momentum: float | Tensor, factor: float, eps: float, window: Window) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `reference.normpool_forward`; x has channels-last memory."""
    mean, rstd, var = statistics(x, eps)
    out, code = _pooled(x, mean, *_scale_and_shift(x, rstd, weight, bias), window, keep=True)
    follow(running_mean, running_var, mean, var, momentum, factor)
    return out, code, mean, rstd


def inference(x: Tensor, scale: Tensor, shift: Tensor, window: Window) -> Tensor:
    """See `reference.normpool_inference`."""
    return _pooled(x, torch.zeros(x.shape[1]), scale.detach().float(), shift.detach().float(), window, keep=False)[0]


def backward(grad: Tensor, code: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None,
             window: Window) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.normpool_backward`; all large tensors have channels-last memory."""
    sizes, rows, places = _sizes(x, window), grad.shape[0] * grad.shape[2], x.numel() // x.shape[1]
    chunk = -(-rows // PARTS)
    parts = -(-rows // chunk)
    scale, _ = _scale_and_shift(x, rstd, weight, None)
    sums, products = torch.empty(2, parts * x.shape[1], dtype=torch.float64)
    total, product = torch.empty(2, x.shape[1], dtype=torch.float64)
    arrays, dx = (bits(grad), numbers(code), bits(x)), empty_like(x)
    _reduce.over_rows((*arrays, mean, rstd, sums, products, sizes, chunk), parts, x.nbytes)
    add_up(sums, total)
    add_up(products, product)
    means = ((total / places).float(), (product / places).float())
    spread = (*arrays, bits(dx), mean, rstd, scale, *means, sizes)
    _input_gradient.over_rows(spread, x.shape[0] * x.shape[2], 3 * x.nbytes)
    return dx, product.float(), total.float()
