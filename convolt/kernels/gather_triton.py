"""Batches out of a resident uint8 array on CUDA devices: index, crop, flip, normalise and cast in one kernel."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: N803 (compile-time constants are upper case, as in Triton's own code)

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from convolt.kernels.memory import current_device

BLOCK = 1024


@triton.jit
def _mirrored(place, size):
    period = tl.maximum(1, 2 * size - 2)
    place = place % period
    place = tl.where(place < 0, place + period, place)  # the remainder has the sign of the dividend, as in C
    return tl.where(place >= size, period - place, place)


@triton.jit
def _gather(images, index, flip, offset, scale, shift, out, in_height, in_width, channels, height, width, FLIP: tl.constexpr,
            OFFSET: tl.constexpr, REFLECT: tl.constexpr, ONE_SCALE: tl.constexpr, ONE_SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    size = height * width * channels
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = e < size
    c, x, y = e % channels, (e // channels) % width, e // (channels * width)
    if FLIP:
        x = tl.where(tl.load(flip + n) != 0, width - 1 - x, x)
    if OFFSET:
        y += tl.load(offset + 2 * n).to(tl.int32)
        x += tl.load(offset + 2 * n + 1).to(tl.int32)
    seen = mask
    if REFLECT:
        x, y = _mirrored(x, in_width), _mirrored(y, in_height)
    else:
        seen = mask & (x >= 0) & (x < in_width) & (y >= 0) & (y < in_height)
    sample = tl.load(index + n).to(tl.int64)
    pixel = tl.load(images + (sample * in_height + y) * in_width * channels + x * channels + c, mask=seen, other=0).to(tl.float32)
    factor = tl.load(scale + (c * 0 if ONE_SCALE else c), mask=mask, other=0.0).to(tl.float32)
    plus = tl.load(shift + (c * 0 if ONE_SHIFT else c), mask=mask, other=0.0).to(tl.float32)
    tl.store(out + n * size + e, (pixel * factor + plus).to(out.dtype.element_ty), mask=mask)


def fill(images: Tensor, index: Tensor, scale: Tensor, shift: Tensor, flip: Tensor | None, offset: Tensor | None, reflect: bool,
         out: Tensor) -> Tensor:
    """See `reference.gather_fill`; `out` has channels-last memory."""
    count, channels, height, width = out.shape
    with current_device(images):
        _gather[count, -(-height * width * channels // BLOCK)](
            images, index.contiguous(), index if flip is None else flip.contiguous(), index if offset is None else offset.contiguous(),
            scale.contiguous(), shift.contiguous(), out, images.shape[1], images.shape[2], channels, height, width, flip is not None,
            offset is not None, reflect, scale.numel() == 1, shift.numel() == 1, BLOCK)
    return out
