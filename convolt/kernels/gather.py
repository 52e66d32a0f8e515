"""Batches out of a resident array: the epoch's uint8 images stay on the device, a batch is made there in one pass."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from convolt.errors import ArgumentError, ArgumentTypeError, ShapeError, explain
from convolt.kernels import reference
from convolt.kernels.memory import channels_last, empty_channels_last
from convolt.kernels.registry import choose, run

BORDERS = ("constant", "reflect")
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def gather_normalize(images: Tensor, index: Tensor, scale: Tensor, shift: Tensor, *, flip: Tensor | None = None,
                     offset: Tensor | None = None, size: tuple[int, int] | None = None, border: str = "constant",
                     dtype: torch.dtype = torch.float32, out: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Index → crop, flip → `pixel · scale + shift` → cast, in one pass; no host sync.

    Args:
        images: (S, H, W, C) uint8, contiguous: the resident set.
        index: (N,) integers from 0 to S - 1, which samples. The caller answers for their range: reading it would be a sync.
        scale, shift: (C,) or (1,) float32, such as 1 / (255 · std) and -mean / std.
        flip: (N,) bool or integers; where true, the window is mirrored left to right.
        offset: (N, 2) integers, row and column of the window's upper left pixel; may be negative or reach beyond the image.
        size: height and width of the window; the image's by default.
        border: what lies outside the image: "constant" is pixel 0, "reflect" mirrors without repeating the border pixel.
        dtype: of the result: float32, bfloat16 or float16.
        out: where to write the batch, (N, C, h, w) of type `dtype`, channels-last memory (a graph's static input).
        backend: "auto", "reference", "numba" (CPU; not float16) or "triton" (CUDA).

    Returns:
        (N, C, h, w) with channels-last memory; `out` if that was given.

    Raises:
        ArgumentTypeError: images are not uint8, or dtype is another type.
        ShapeError: a shape does not fit.
        ArgumentError: the border is unknown.
    """
    _check(images, index, scale, shift, flip, offset, border, dtype)
    height, width = size or (int(images.shape[1]), int(images.shape[2]))
    shape = (index.shape[0], images.shape[3], height, width)
    if out is not None and (out.shape != shape or out.dtype != dtype or not out.movedim(1, -1).is_contiguous()):
        raise ShapeError(explain("gather_normalize(out)", f"{out.dtype} of shape {tuple(out.shape)} and strides {out.stride()}",
                                 f"{dtype} of shape {shape} with channels-last memory"))
    chosen = choose("gather_normalize", images, backend)
    if chosen == "reference" or not images.is_contiguous() or (chosen == "numba" and dtype is torch.float16):
        made = reference.gather_normalize(images, index, scale, shift, flip=flip, offset=offset, size=size, border=border, dtype=dtype,
                                          out=out)
        return made if out is not None else channels_last(made)
    target = empty_channels_last(shape, dtype, images.device) if out is None else out
    arguments = (images, index, scale, shift, flip, offset, border == "reflect", target)
    return cast(Tensor, run("gather_normalize", chosen, "gather", "fill", *arguments))


def _check(images: Tensor, index: Tensor, scale: Tensor, shift: Tensor, flip: Tensor | None, offset: Tensor | None, border: str,
           dtype: torch.dtype) -> None:
    if images.dtype != torch.uint8 or dtype not in TYPES:
        raise ArgumentTypeError(explain("gather_normalize", f"images of {images.dtype}, dtype={dtype}", f"uint8 images and one of {TYPES}"))
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ShapeError(explain("gather_normalize", f"images of shape {tuple(images.shape)}", "(samples, height, width, channels)"))
    for what, values, shapes in (("index", index, [(index.numel(),)]), ("scale", scale, [(1,), (images.shape[3],)]),
                                 ("shift", shift, [(1,), (images.shape[3],)]), ("flip", flip, [(index.numel(),)]),
                                 ("offset", offset, [(index.numel(), 2)])):
        if values is not None and tuple(values.shape) not in shapes:
            raise ShapeError(explain(f"gather_normalize({what})", f"shape {tuple(values.shape)}", " or ".join(map(str, shapes))))
    if border not in BORDERS:
        raise ArgumentError(explain("gather_normalize(border)", repr(border), " or ".join(map(repr, BORDERS))))
