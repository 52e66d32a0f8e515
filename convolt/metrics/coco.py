"""Average precision of detections as COCO's evaluation computes it, on the host, in NumPy (Lin et al., 2014).

It follows `pycocotools.cocoeval` to its ties, with the loop over ground truths, thresholds and areas as array operations.
Shapes: D detections and G ground truths of a picture, A areas, T thresholds of overlap, R recalls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""Areas of objects in square pixels, both ends included."""

RECALLS = np.linspace(0.0, 1.0, 101)
"""Where the precision is read off."""

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())


@dataclass
class Picture:
    """What was found in a picture and what is there; boxes are (x0, y0, x1, y1), arrays of float64."""

    boxes: Array
    scores: Array
    labels: Array
    true_boxes: Array
    true_labels: Array
    crowd: Array
    area: Array


@dataclass
class Matches:
    """The detections of one class in one picture, best first, and how many ground truths count `(A,)`."""

    scores: Array  # (D,)
    right: Array  # (A, T, D)
    ignored: Array  # (A, T, D)
    counted: Array  # (A,)


def box_iou(a: Array, b: Array, crowd: Array) -> Array:
    """Returns intersection over union of all pairs of boxes, `(D, G)`; over the area of `a` alone where `b` is a crowd."""
    corner = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    both = np.clip(corner, 0, None).prod(2)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).prod(1) for x in (a, b))
    union = np.where(crowd, area_a[:, None], area_a[:, None] + area_b - both)
    overlap: Array = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
    return overlap


def match(picture: Picture, label: int, thresholds: Array, most: int) -> Matches | None:
    """Gives each detection of a class, best first, the ground truth that overlaps it most and is free.

    Ground truths of another area, and crowds, are ignored: they are taken only where no other fits, and a detection that
    takes one counts neither as right nor as wrong. Returns None if the class is neither there nor found.
    """
    found, there = picture.labels == label, picture.true_labels == label
    if not found.any() and not there.any():
        return None
    order = np.argsort(-picture.scores[found], kind="mergesort")[:most]
    boxes, scores = picture.boxes[found][order], picture.scores[found][order]
    crowd, area = picture.crowd[there], picture.area[there]
    low, high = np.array(list(AREAS.values())).T[:, :, None]
    ignored = crowd | (area < low) | (area > high)  # (A, G)
    overlap = box_iou(boxes, picture.true_boxes[there], crowd)
    right = np.zeros((len(AREAS), len(thresholds), len(boxes)), bool)
    took_ignored = np.zeros_like(right)
    free = np.ones((len(AREAS), len(thresholds), len(crowd)), bool)
    for d in range(len(boxes) if len(crowd) else 0):
        fits = free & (overlap[d] >= thresholds[:, None])  # (A, T, G)
        regular, spare = fits & ~ignored[:, None], fits & ignored[:, None]
        use_spare = ~regular.any(2)
        candidates = np.where(use_spare[..., None], spare, regular)
        taken = _last_best(np.where(candidates, overlap[d], -1.0))
        right[:, :, d] = candidates.any(2)
        took_ignored[:, :, d] = right[:, :, d] & use_spare
        a, t = np.nonzero(right[:, :, d])
        g = taken[a, t]
        free[a, t, g] = crowd[g]  # a crowd stays free
    size = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    outside = (size < low) | (size > high)  # (A, D)
    return Matches(scores, right, took_ignored | (~right & outside[:, None]), (~ignored).sum(1))


def _last_best(values: Array) -> Array:
    """Returns the place of the highest value along the last axis; of equal ones the last, as in pycocotools."""
    result: Array = values.shape[-1] - 1 - values[..., ::-1].argmax(-1)
    return result


def curves(matches: Sequence[Matches], thresholds: int, most: int) -> tuple[Array, Array]:
    """Returns (precision at each recall `(A, T, R)`, highest recall `(A, T)`) of a class; -1 where it has no object."""
    precision = np.full((len(AREAS), thresholds, len(RECALLS)), -1.0)
    recall = np.full((len(AREAS), thresholds), -1.0)
    order = np.argsort(-np.concatenate([m.scores[:most] for m in matches]), kind="mergesort")
    right, ignored = (np.concatenate([getattr(m, kind)[:, :, :most] for m in matches], 2)[:, :, order] for kind in ("right", "ignored"))
    counted = np.sum([m.counted for m in matches], 0)
    true = np.cumsum(right & ~ignored, 2, dtype=float)
    false = np.cumsum(~right & ~ignored, 2, dtype=float)
    for a in np.nonzero(counted)[0]:
        for t in range(thresholds):
            reached = true[a, t] / counted[a]
            exact = true[a, t] / (true[a, t] + false[a, t] + np.spacing(1))
            exact = np.maximum.accumulate(exact[::-1])[::-1]  # the best precision at this recall or a higher one
            places = np.searchsorted(reached, RECALLS, side="left")
            precision[a, t] = np.append(exact, 0.0)[np.minimum(places, len(exact))]
            recall[a, t] = reached[-1] if len(reached) else 0.0
    return precision, recall


def mean_of_known(values: Array) -> float:
    """Returns the mean of the values that exist (are not -1), and -1 if none does."""
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def evaluate(pictures: Sequence[Picture], thresholds: Sequence[float], most: Sequence[int]) -> dict[str, Any]:
    """Returns COCO's numbers by the names that torchmetrics gives them, such as "map_50" and "mar_100".

    Args:
        pictures: of the whole set.
        thresholds: of overlap; a detection is right from there.
        most: how many detections of a picture and class count, ascending; the precision is that for the last.
    """
    bounds = np.minimum(np.array(thresholds), 1 - 1e-10)
    labels = sorted({int(label) for picture in pictures for label in picture.true_labels})
    of_classes = {label: [m for p in pictures if (m := match(p, label, bounds, most[-1]))] for label in labels}
    at_most = {count: [curves(of_classes[label], len(bounds), count) for label in labels] for count in most}

    def stacked(count: int, which: int) -> Array:  # (classes, A, T[, R])
        parts = [pair[which] for pair in at_most[count]]
        return np.stack(parts) if parts else np.full((0, len(AREAS), len(bounds)), -1.0)

    precision, recall = stacked(most[-1], 0), stacked(most[-1], 1)
    result: dict[str, Any] = {"map": mean_of_known(precision[:, 0])}
    for at in (0.5, 0.75):
        places = [i for i, threshold in enumerate(thresholds) if abs(threshold - at) < 1e-6]
        result[f"map_{at * 100:.0f}"] = mean_of_known(precision[:, 0, places])
    for a, area in enumerate(AREAS):
        if area != "all":
            result[f"map_{area}"] = mean_of_known(precision[:, a])
            result[f"mar_{area}"] = mean_of_known(recall[:, a])
    for count in most:
        result[f"mar_{count}"] = mean_of_known(stacked(count, 1)[:, 0])
    result["classes"] = labels
    result["map_per_class"] = [mean_of_known(values[0]) for values in precision]
    return result
