"""The backward pass of convolution + ReLU + max-pooling on the CPU, over the windows that passed a gradient alone.

Both gradients are sums of patches: of the input, for a filter's weights, and of weights, for a window's inputs. Eight
patches are added at once, so that a sum is loaded and stored once for eight. Filters (images) belong to one thread each
and are summed in order: the result does not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from convolt.kernels import pool_numba
from convolt.kernels.compiled import Compiled
from convolt.kernels.jit import register_jitable
from convolt.kernels.memory import channels_last, empty_channels_last, numbers

BLOCK = 16  # filters whose gradients are read together: one cache line
AT_ONCE = 8  # patches
CHUNK = 1 << 17  # bytes of images that are gone through for one filter after the other: they stay in the second cache

U = np.uintp  # see conv_numba: unsigned indices and no slices, or LLVM makes no vectors
DEAD = np.uint8(255)


@register_jitable(fastmath={"contract"})
def _add_patches(total: Any, t: Any, total_line: Any, source: Any, source_line: Any, place: Any, factor: Any, count: Any, rows: Any,
                 span: Any) -> None:
    """`total[t:] += Σ factor · source[place:]`, for patches of `rows` lines of `span` numbers; lists are filled up with zeros."""
    for e in range(0, count, AT_ONCE):
        a, b, c, d = place[e], place[e + 1], place[e + 2], place[e + 3]
        p, q, r, s = place[e + 4], place[e + 5], place[e + 6], place[e + 7]
        fa, fb, fc, fd = factor[e], factor[e + 1], factor[e + 2], factor[e + 3]
        fp, fq, fr, fs = factor[e + 4], factor[e + 5], factor[e + 6], factor[e + 7]
        for row in range(rows):
            z, o = row * source_line, t + row * total_line
            for i in range(span):
                k = z + i
                first = (fa * source[a + k] + fb * source[b + k]) + (fc * source[c + k] + fd * source[d + k])
                second = (fp * source[p + k] + fq * source[q + k]) + (fr * source[r + k] + fs * source[s + k])
                total[o + i] += first + second


@register_jitable
def _fill_up(place: Any, factor: Any, count: Any) -> Any:
    """Makes the length of a list a multiple of `AT_ONCE`."""
    while count % AT_ONCE:
        place[count], factor[count] = place[0], np.float32(0)
        count += 1
    return count


def _weights(grad: Any, code: Any, x: Any, out: Any, bias: Any, sizes: Any, images: Any, first: Any, last: Any) -> None:
    """Gradients of weights and bias, for the blocks of filters first … last - 1."""
    n, out_height, out_width, filters, height, width, channels, rows, columns, ph, pw = sizes
    line, span, patch = U(width * channels), U(columns * channels), U(rows * columns * channels)
    most = images * out_height * out_width + AT_ONCE
    place, factor = np.empty((BLOCK, most), np.uintp), np.empty((BLOCK, most), np.float32)
    count = np.empty(BLOCK, np.int64)
    for block in range(first, last):
        f, here = block * BLOCK, min(BLOCK, filters - block * BLOCK)
        out[f * patch : (f + here) * patch] = np.float32(0)
        bias[f : f + here] = 0.0
        for chunk in range(0, n, images):
            count[:] = 0
            for image in range(chunk, min(n, chunk + images)):
                for window in range(out_height * out_width):
                    o = (image * out_height * out_width + window) * filters + f
                    corner = (image * height + window // out_width * ph) * width + window % out_width * pw
                    for j in range(here):
                        at = code[U(o + j)]
                        if at != DEAD:
                            k = count[j]
                            place[j, k], factor[j, k] = U((corner + at // pw * width + at % pw) * channels), grad[U(o + j)]
                            bias[f + j] += np.float64(grad[U(o + j)])
                            count[j] = k + 1
            for j in range(here):
                full = _fill_up(place[j], factor[j], count[j])
                _add_patches(out, U(f + j) * patch, span, x, line, place[j], factor[j], full, U(rows), span)


def _inputs(grad: Any, code: Any, weight: Any, out: Any, sizes: Any, first: Any, last: Any) -> None:
    """Gradients of the images first … last - 1."""
    _, out_height, out_width, filters, height, width, channels, rows, columns, ph, pw = sizes
    line, span, patch = U(width * channels), U(columns * channels), U(rows * columns * channels)
    place, factor = np.empty((ph * pw, filters + AT_ONCE), np.uintp), np.empty((ph * pw, filters + AT_ONCE), np.float32)
    count = np.empty(ph * pw, np.int64)
    for image in range(first, last):
        out[image * height * line : (image + 1) * height * line] = np.float32(0)
        for window in range(out_height * out_width):
            o = (image * out_height * out_width + window) * filters
            corner = (image * height + window // out_width * ph) * width + window % out_width * pw
            count[:] = 0
            for f in range(filters):
                at = code[U(o + f)]
                if at != DEAD:
                    k = count[at]
                    place[at, k], factor[at, k] = U(f) * patch, grad[U(o + f)]
                    count[at] = k + 1
            for at in range(ph * pw):
                full = _fill_up(place[at], factor[at], count[at])
                start = U((corner + at // pw * width + at % pw) * channels)
                _add_patches(out, start, line, weight, span, place[at], factor[at], full, U(rows), span)


_weight_gradients = Compiled(_weights, fastmath={"contract"})
_input_gradients = Compiled(_inputs, fastmath={"contract"})


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, pool: tuple[int, int], keep: bool) -> tuple[Tensor, Tensor | None]:
    """See `reference.pooled_forward`: PyTorch's convolution, then one pass for the rest."""
    y = F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    return pool_numba.forward(channels_last(y), None, pool, keep)


def backward(grad: Tensor, code: Tensor, x: Tensor, weight: Tensor, pool: tuple[int, int], want_x: bool,
             want_weight: bool) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """See `reference.pooled_backward`; `grad`, `code` and `x` have channels-last memory."""
    n, channels, height, width = x.shape
    filters, _, rows, columns = weight.shape
    sizes = (n, *grad.shape[2:], filters, height, width, channels, rows, columns, *pool)
    work = grad.numel() * rows * columns * channels * 4
    given = (numbers(grad.float()), numbers(code))
    dx = dweight = dbias = None
    if want_weight:
        dweight = torch.empty(filters, rows, columns, channels)
        dbias = torch.empty(filters, dtype=torch.float64)
        images = max(1, min(n, CHUNK // max(1, height * width * channels * 4)))
        arrays = (*given, numbers(x.float()), dweight.view(-1), dbias, sizes, images)
        _weight_gradients.over_rows(arrays, -(-filters // BLOCK), work)
        dweight, dbias = dweight.movedim(-1, 1), dbias.float()
    if want_x:
        total = empty_channels_last(tuple(x.shape), torch.float32, x.device)
        plain = weight.detach().float().movedim(1, -1).contiguous()
        outputs = (*given, plain.view(-1), numbers(total), sizes)
        _input_gradients.over_rows(outputs, n, work)
        dx = total.to(x.dtype)
    return dx, dweight, dbias
