"""Augmented batches out of pictures that lie on the device: all geometry, colour, erasing and normalisation in one pass."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from convolt.errors import ArgumentError, ArgumentTypeError, ShapeError, explain
from convolt.kernels.registry import choose, run
from convolt.kernels.warp_reference import FILLS

INTERPOLATIONS = ("bilinear", "nearest")
MOST_SAMPLES = 8
"""Samples along one side of an output pixel, at most."""
INPUTS = (torch.uint8, torch.float32, torch.float64)
OUTPUTS = (torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.float64)


def warp(images: Tensor, matrix: Tensor, *, index: Tensor | None = None, size: tuple[int, int] | None = None,
         samples: Tensor | None = None, most_samples: int = 1, fill_mode: str = "reflect", fill_value: float = 0.0,
         interpolation: str = "bilinear", colour: Tensor | None = None, limits: tuple[float, float] | None = None,
         boxes: Tensor | None = None, values: Tensor | None = None, scale: Tensor | None = None, shift: Tensor | None = None,
         dtype: torch.dtype | None = None, out: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Index → one resample → colour matrix → limits → erased boxes → `pixel · scale + shift` → cast, in one pass; no host sync.

    Where the matrix maps pixels onto pixels (flips, whole-pixel shifts, quarter turns) the pixels come out to the last bit.

    Args:
        images: (M, H, W, C) uint8 or float32, contiguous.
        matrix: (N, 2, 3) affine or (N, 3, 3) projective: (column, row, 1) of an output pixel → column and row in the picture.
        index: (N,) integers from 0 to M - 1, which picture; None takes all in order, and N is M.
        size: height and width of the output; the pictures' by default.
        samples: (N, 2) integers: the mean of so many rows × columns of samples inside each output pixel, for pictures that shrink.
        most_samples: a bound of `samples`, up to 8.
        fill_mode: what lies beyond the border: "constant", "nearest", "reflect" (border pixel repeated), "wrap", or "outside": constant
            as SciPy's, with no blending at the border.
        fill_value: of "constant" and "outside", in the pictures' units.
        interpolation: "bilinear" or "nearest".
        colour: (N, C, C + 1): pixel → colour[:, :, :C] · pixel + colour[:, :, C].
        limits: lowest and highest value after the colours.
        boxes, values: (N, K, 4) integers, top, left, bottom, right of output boxes (ends excluded), the later over the
            earlier, and their (N, K, C) colours in the pictures' units.
        scale, shift: (C,) at the very end.
        dtype: of the result: float32 (default), bfloat16, float16, or uint8 (rounded to nearest, cut to 0 … 255).
        out: where to write, (N, h, w, C) contiguous of type `dtype`.
        backend: "auto", "reference", "numba" (CPU; float32, bfloat16, uint8 out) or "triton" (CUDA).

    Returns:
        (N, h, w, C), contiguous; computed in float32 (float64 where an input is).

    Raises:
        ArgumentTypeError: a type cannot be used.
        ShapeError: a shape does not fit.
        ArgumentError: fill_mode, interpolation or most_samples is unknown.
    """
    dtype = dtype or (out.dtype if out is not None else torch.float32)
    count = len(images) if index is None else len(index)
    _check(images, index, matrix, count, samples, most_samples, fill_mode, interpolation, dtype)
    channels = int(images.shape[3])
    _check_colours(count, channels, colour, boxes, values, scale, shift)
    height, width = size or (int(images.shape[1]), int(images.shape[2]))
    shape = (count, height, width, channels)
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=images.device)
    elif out.shape != shape or out.dtype != dtype or not out.is_contiguous():
        raise ShapeError(explain("warp(out)", f"{out.dtype} of shape {tuple(out.shape)}", f"{dtype} of shape {shape}, contiguous"))
    if out.numel() == 0:
        return out
    chosen = choose("warp", images, backend)
    plain = torch.float64 in (matrix.dtype, dtype) or not images.is_contiguous() or (chosen == "numba" and dtype == torch.float16)
    return cast(Tensor, run("warp", "reference" if plain else chosen, "warp", "fill", images, index, matrix, samples, most_samples,
                            fill_mode, fill_value, interpolation == "nearest", colour, limits, boxes, values, scale, shift, out))


def picture_means(images: Tensor, index: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """Returns the mean of each channel of each picture that `index` (N,) names: images (M, H, W, C) → (N, C) float32; no host sync."""
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ShapeError(explain("picture_means", f"images of shape {tuple(images.shape)}", "(pictures, height, width, channels)"))
    count = len(images) if index is None else len(index)
    wide = torch.float64 if images.dtype == torch.float64 else torch.float32
    out = torch.empty(count, images.shape[3], dtype=wide, device=images.device)
    if count == 0:
        return out
    chosen = choose("picture_means", images, backend) if images.is_contiguous() else "reference"
    return cast(Tensor, run("picture_means", chosen, "warp", "means", images, index, out))


def _check(images: Tensor, index: Tensor | None, matrix: Tensor, count: int, samples: Tensor | None, most: int, fill_mode: str,
           interpolation: str, dtype: torch.dtype) -> None:
    if images.dtype not in INPUTS or dtype not in OUTPUTS:
        raise ArgumentTypeError(explain("warp", f"images of {images.dtype}, dtype={dtype}", f"images of {INPUTS} and dtype of {OUTPUTS}"))
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ShapeError(explain("warp", f"images of shape {tuple(images.shape)}", "(pictures, height, width, channels)"))
    if index is not None and index.ndim != 1:
        raise ShapeError(explain("warp(index)", f"shape {tuple(index.shape)}", "(samples,)"))
    if tuple(matrix.shape) not in ((count, 2, 3), (count, 3, 3)):
        raise ShapeError(explain("warp(matrix)", f"shape {tuple(matrix.shape)}", f"({count}, 2, 3) or ({count}, 3, 3)"))
    if samples is not None and tuple(samples.shape) != (count, 2):
        raise ShapeError(explain("warp(samples)", f"shape {tuple(samples.shape)}", f"({count}, 2)"))
    if not 1 <= most <= MOST_SAMPLES:
        raise ArgumentError(explain("warp(most_samples)", most, f"1 to {MOST_SAMPLES}"))
    for what, got, known in (("fill_mode", fill_mode, FILLS), ("interpolation", interpolation, INTERPOLATIONS)):
        if got not in known:
            raise ArgumentError(explain(f"warp({what})", repr(got), " or ".join(map(repr, known))))


def _check_colours(count: int, channels: int, colour: Tensor | None, boxes: Tensor | None, values: Tensor | None, scale: Tensor | None,
                   shift: Tensor | None) -> None:
    erased = 0 if boxes is None else int(boxes.shape[1])
    for what, tensor, shape in (("colour", colour, (count, channels, channels + 1)), ("boxes", boxes, (count, erased, 4)),
                                ("values", values, (count, erased, channels)), ("scale", scale, (channels,)),
                                ("shift", shift, (channels,))):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ShapeError(explain(f"warp({what})", f"shape {tuple(tensor.shape)}", f"{shape}"))
    if (boxes is None) != (values is None) or (scale is None) != (shift is None):
        raise ArgumentError(explain("warp", "one of a pair", "boxes with values, and scale with shift"))
