"""What moves along with pictures: labels of mixed samples, boxes and masks."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from convolt.errors import ArgumentError, ShapeError, explain
from convolt.kernels.warp import warp

DROPPED = -1.0


def soft_labels(labels: Tensor, classes: int | None) -> Tensor:
    """Returns labels as shares of classes: integers (N,) or (N, 1) as one-hot rows, floats as they are.

    Raises:
        ArgumentError: the labels are numbers of classes, and nobody said how many there are.
    """
    if labels.is_floating_point():
        return labels
    if labels.ndim == 2 and labels.shape[1] > 1:
        return labels.to(torch.float32)
    if classes is None:
        raise ArgumentError(explain("augment (labels)", f"{labels.dtype} labels of shape {tuple(labels.shape)}",
                                    "one-hot labels, or classes=, where MixUp or CutMix mixes them"))
    return F.one_hot(labels.reshape(-1).long(), classes).to(torch.float32)


BOX_FORMATS = ("xyxy", "rel_xyxy")
"""Left, top, right, bottom in pixels, or as fractions of the picture's width and height; the names are Keras's."""


def moved_boxes(boxes: Tensor, matrix: Tensor | None, size: tuple[int, int], least_visible: float,
                unit: tuple[int, int] | None = None) -> Tensor:
    """Returns boxes (N, B, 4), or one for each picture (N, 4), as they lie in the output.

    Boxes are left, top, right, bottom in pixels, counted from the picture's corner, so that the whole picture is 0, 0, width, height.
    The output's box is the smallest upright one around the four moved corners, cut to the output. It is dropped, all four numbers -1,
    where less than `least_visible` of its area is left, and where the given box had no area (such as one of -1s).

    Args:
        boxes: (N, B, 4) or (N, 4).
        matrix: (N, 2, 3) or (N, 3, 3), output pixel → picture, or None.
        size: height and width of the output.
        least_visible: share of the area, from 0 to 1.
        unit: height and width of the pictures where boxes are fractions of them, and then of the output's; None: pixels.
    """
    if boxes.ndim == 2:
        return moved_boxes(boxes[:, None], matrix, size, least_visible, unit)[:, 0]
    if boxes.ndim != 3 or boxes.shape[2] != 4:
        raise ShapeError(explain("augment (boxes)", f"shape {tuple(boxes.shape)}", "(samples, boxes, 4), or (samples, 4)"))
    boxes = boxes if boxes.is_floating_point() else boxes.to(torch.float32)
    left, top, right, bottom = boxes.unbind(2)
    if unit is not None:
        left, top, right, bottom = left * unit[1], top * unit[0], right * unit[1], bottom * unit[0]
    given = (right > left) & (bottom > top)
    if matrix is not None:
        x = torch.stack([left, right, right, left], 2).flatten(1) - 0.5
        y = torch.stack([top, top, bottom, bottom], 2).flatten(1) - 0.5
        m = _adjugate(matrix.to(boxes.dtype))
        u, v, depth = (m[:, i, 0:1] * x + m[:, i, 1:2] * y + m[:, i, 2:3] for i in range(3))
        u, v = ((t / depth + 0.5).view(*left.shape, 4) for t in (u, v))
        left, right, top, bottom = u.amin(2), u.amax(2), v.amin(2), v.amax(2)
    area = (right - left) * (bottom - top)
    height, width = size
    cut = (left.clamp(0, width), top.clamp(0, height), right.clamp(0, width), bottom.clamp(0, height))
    visible = (cut[2] - cut[0]) * (cut[3] - cut[1])
    kept = given & (visible > 0) & (visible >= least_visible * area)
    if unit is not None:
        cut = (cut[0] / width, cut[1] / height, cut[2] / width, cut[3] / height)
    return torch.where(kept[:, :, None], torch.stack(cut, 2), DROPPED)


def _adjugate(m: Tensor) -> Tensor:
    """Returns the inverse of matrices (N, 2, 3) or (N, 3, 3) up to a factor, in plain products: nothing to wait for."""
    a, b, c, d, e, f = (m[:, i, j] for i in (0, 1) for j in range(3))
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    g, h, i = (m[:, 2, j] for j in range(3)) if m.shape[1] == 3 else (zero, zero, one)
    entries = [e * i - f * h, c * h - b * i, b * f - c * e,
               f * g - d * i, a * i - c * g, c * d - a * f,
               d * h - e * g, b * g - a * h, a * e - b * d]
    return torch.stack(entries, 1).view(-1, 3, 3)


def moved_masks(masks: Tensor, index: Tensor | None, matrix: Tensor, size: tuple[int, int], fill_mode: str, fill_value: float) -> Tensor:
    """Returns masks (M, H, W) or (M, H, W, K) as they lie in the output, in their type: the nearest value, never a blend."""
    if masks.ndim not in (3, 4):
        raise ShapeError(explain("augment (masks)", f"shape {tuple(masks.shape)}",
                                 "(samples, height, width) or (samples, height, width, kinds)"))
    given = masks if masks.ndim == 4 else masks[..., None]
    whole = given.dtype == torch.uint8
    pictures = (given if whole else given.to(torch.float32)).contiguous()
    moved = warp(pictures, matrix, index=index, size=size, fill_mode=fill_mode, fill_value=fill_value, interpolation="nearest",
                 dtype=torch.uint8 if whole else torch.float32)
    moved = moved.to(masks.dtype)
    return moved if masks.ndim == 4 else moved[..., 0]
