"""One resample of a batch in plain PyTorch: what the kernels of `warp` mean and are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

FILLS = ("constant", "nearest", "reflect", "wrap", "outside")
"""What lies beyond the border: a constant (blended with at the border), the border pixel repeated, the picture mirrored with its border
pixel repeated (… b a | a b c | c b …), the picture again, or a constant that is never blended with (SciPy's "constant")."""

FARTHEST = 16_777_216.0
"""Coordinates are cut here, where float32 still has each integer."""

SMALLEST_DEPTH = 1e-6


def _place(place: Tensor, size: int, fill: str) -> tuple[Tensor, Tensor | None]:
    """Returns rows or columns inside the picture, and where they were inside (None: all count as inside)."""
    if fill == "reflect":
        place = place.remainder(2 * size)
        return torch.where(place >= size, 2 * size - 1 - place, place), None
    if fill == "wrap":
        return place.remainder(size), None
    clamped = place.clamp(0, size - 1)
    return clamped, (clamped == place) if fill in ("constant", "outside") else None


def _coordinates(matrix: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Returns where the places x (N, w) and y (N, h) lie in the source, each (N, h, w)."""
    m = matrix[:, :, :, None, None]
    x, y = x[:, None, :], y[:, :, None]
    u, v = (m[:, i, 0] * x + (m[:, i, 1] * y + m[:, i, 2]) for i in (0, 1))
    if matrix.shape[1] == 3:
        depth = m[:, 2, 0] * x + (m[:, 2, 1] * y + m[:, 2, 2])
        depth = torch.where(depth < SMALLEST_DEPTH, SMALLEST_DEPTH, depth)
        u, v = u / depth, v / depth
    return u.clamp(-FARTHEST, FARTHEST), v.clamp(-FARTHEST, FARTHEST)


def _sampled(images: Tensor, rows: Tensor, u: Tensor, v: Tensor, fill: str, value: float, nearest: bool) -> Tensor:
    """Returns the pictures' values at the places u, v (N, h, w), in the type of the places: (N, h, w, C)."""
    real = u.dtype

    def tap(row: Tensor, column: Tensor) -> Tensor:
        row, row_inside = _place(row, images.shape[1], fill)
        column, column_inside = _place(column, images.shape[2], fill)
        found = images[rows[:, None, None], row, column].to(real)
        if row_inside is None or column_inside is None:
            return found
        return torch.where((row_inside & column_inside)[..., None], found, value)

    if nearest:
        found = tap((v + 0.5).floor().long(), (u + 0.5).floor().long())
    else:
        left, top = u.floor(), v.floor()
        fx, fy = (u - left)[..., None], (v - top)[..., None]
        row, column = top.long(), left.long()
        upper, right = tap(row, column), tap(row, column + 1)
        upper = upper + fx * (right - upper)
        lower, right = tap(row + 1, column), tap(row + 1, column + 1)
        lower = lower + fx * (right - lower)
        found = upper + fy * (lower - upper)
    if fill == "outside":
        inside = (u >= 0) & (u <= images.shape[2] - 1) & (v >= 0) & (v <= images.shape[1] - 1)
        found = torch.where(inside[..., None], found, value)
    return found


def _resampled(images: Tensor, rows: Tensor, matrix: Tensor, size: tuple[int, int], samples: Tensor | None, most: int, fill: str,
               value: float, nearest: bool) -> Tensor:
    """Returns (N, h, w, C): each pixel one sample, or the mean of a grid of `samples` (N, 2) of up to `most` × `most` in it."""
    x, y = (torch.arange(n, device=matrix.device, dtype=matrix.dtype).expand(len(rows), -1) for n in (size[1], size[0]))
    if samples is None:
        return _sampled(images, rows, *_coordinates(matrix, x, y), fill, value, nearest)
    counts = samples.to(matrix.dtype)
    total = torch.zeros(len(rows), *size, images.shape[3], dtype=matrix.dtype, device=matrix.device)
    for i in range(most):
        for j in range(most):
            counted = ((i < samples[:, 0]) & (j < samples[:, 1]))[:, None, None, None]
            dy, dx = ((k + 0.5) / counts[:, axis, None] - 0.5 for axis, k in ((0, i), (1, j)))
            part = _sampled(images, rows, *_coordinates(matrix, x + dx, y + dy), fill, value, nearest)
            total = total + torch.where(counted, part, 0)
    return total / counts.prod(1)[:, None, None, None]


def _erased(pixels: Tensor, boxes: Tensor, values: Tensor) -> Tensor:
    """Returns pixels (N, h, w, C) with boxes (N, K, 4) of top, left, bottom, right, ends excluded, in the colours (N, K, C)."""
    y = torch.arange(pixels.shape[1], device=pixels.device)[None, :, None]
    x = torch.arange(pixels.shape[2], device=pixels.device)[None, None, :]
    for k in range(boxes.shape[1]):
        top, left, bottom, right = (boxes[:, k, i, None, None] for i in range(4))
        inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
        pixels = torch.where(inside[..., None], values[:, k, None, None, :].to(pixels.dtype), pixels)
    return pixels


def warp(images: Tensor, matrix: Tensor, *, index: Tensor | None = None, size: tuple[int, int] | None = None,
         samples: Tensor | None = None, most_samples: int = 1, fill_mode: str = "reflect", fill_value: float = 0.0,
         interpolation: str = "bilinear", colour: Tensor | None = None, limits: tuple[float, float] | None = None,
         boxes: Tensor | None = None, values: Tensor | None = None, scale: Tensor | None = None, shift: Tensor | None = None,
         dtype: torch.dtype | None = None) -> Tensor:
    """See `kernels.warp`."""
    count = len(images) if index is None else len(index)
    out = torch.empty(count, *(size or images.shape[1:3]), images.shape[3], dtype=dtype or torch.float32, device=images.device)
    return warp_fill(images, index, matrix, samples, most_samples, fill_mode, fill_value, interpolation == "nearest", colour, limits, boxes,
                     values, scale, shift, out)


def picture_means(images: Tensor, index: Tensor | None = None) -> Tensor:
    """See `kernels.picture_means`."""
    count = len(images) if index is None else len(index)
    wide = torch.float64 if images.dtype == torch.float64 else torch.float32
    return warp_means(images, index, torch.empty(count, images.shape[3], dtype=wide, device=images.device))


def warp_fill(images: Tensor, index: Tensor | None, matrix: Tensor, samples: Tensor | None, most: int, fill: str, value: float,
              nearest: bool, colour: Tensor | None, limits: tuple[float, float] | None, boxes: Tensor | None, values: Tensor | None,
              scale: Tensor | None, shift: Tensor | None, out: Tensor) -> Tensor:
    """The pass of `kernels.warp`: fills `out` (N, h, w, C)."""
    wide = torch.float64 if torch.float64 in (images.dtype, matrix.dtype, out.dtype) else torch.float32
    rows = torch.arange(len(images), device=images.device) if index is None else index.long()
    pixels = _resampled(images, rows, matrix.to(wide), (out.shape[1], out.shape[2]), samples, most, fill, value, nearest)
    if colour is not None:
        colour = colour.to(wide)
        pixels = torch.einsum("nhwc,ndc->nhwd", pixels, colour[:, :, :-1]) + colour[:, None, None, :, -1]
    if limits is not None:
        pixels = pixels.clamp(*limits)
    if boxes is not None and values is not None:
        pixels = _erased(pixels, boxes, values)
    if scale is not None and shift is not None:
        pixels = pixels * scale.to(wide) + shift.to(wide)
    if out.dtype == torch.uint8:
        pixels = (pixels + 0.5).floor().clamp(0, 255)
    return out.copy_(pixels)


def warp_means(images: Tensor, index: Tensor | None, out: Tensor) -> Tensor:
    """The pass of `kernels.picture_means`: fills `out` (N, C)."""
    chosen = images if index is None else images.index_select(0, index)
    return out.copy_(chosen.to(torch.promote_types(out.dtype, torch.float32)).mean((1, 2)))
