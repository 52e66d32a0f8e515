"""Mean average precision of object detection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.arrays import as_numbers
from convolt.errors import ArgumentError, ArgumentTypeError, ShapeError, StateError, explain
from convolt.layout import tensor_from_array
from convolt.losses.shapes import entered, outside
from convolt.metrics.base import Metric, registry
from convolt.metrics.coco import THRESHOLDS, Picture, evaluate

FORMATS = ("xyxy", "xywh", "cxcywh")

Detections = Mapping[str, Any]
"""The boxes of one picture by "boxes" `(D, 4)`, "labels" `(D,)`, and "scores" `(D,)` or for ground truths "iscrowd", "area"."""


@registry.register("detection_map", "coco_map")
class MeanAveragePrecision(Metric):
    """COCO's mean average precision: over classes, 101 recalls, and overlaps from 0.5 to 0.95 (Lin et al., 2014).

    Labels are `(N, objects, 5)`, a box and its class, with class -1 in rows that only fill up; predictions are
    `(N, detections, 6)`, a box, its class and its score. Instead, `update` takes lists of dictionaries, one for each picture,
    as torchmetrics does: "boxes", "labels", and "scores" for predictions; ground truths may have "iscrowd" and "area".

    Args:
        iou_thresholds: overlaps from which a detection is right; None: 0.5, 0.55 … 0.95.
        max_detections: how many detections of a class count in each picture; the precision is that for the last.
        box_format: "xyxy" (corners), "xywh" (corner and size) or "cxcywh" (centre and size), in pixels.

    The result cannot be summed over batches, so that this metric alone keeps all boxes until `reset`, and `result` and
    `results` bring them to the host and compute there: use it in `evaluate`, not among the metrics of a training step.
    `state()` has nothing of it. Counterparts: `pycocotools.cocoeval.COCOeval`, `torchmetrics.detection.MeanAveragePrecision`
    (which needs torchvision).
    """

    higher_is_better = True

    def __init__(self, iou_thresholds: Sequence[float] | None = None, max_detections: Sequence[int] = (1, 10, 100),
                 box_format: str = "xyxy", name: str | None = "mean_average_precision", dtype: Any = None) -> None:
        super().__init__(name, dtype)
        if iou_thresholds is not None and (not iou_thresholds or not all(0 <= t <= 1 for t in iou_thresholds)):
            raise ArgumentError(explain("MeanAveragePrecision(iou_thresholds)", repr(iou_thresholds), "numbers from 0 to 1, or None"))
        if not max_detections or list(max_detections) != sorted(set(max_detections)) or max_detections[0] < 1:
            raise ArgumentError(explain("MeanAveragePrecision(max_detections)", repr(max_detections), "ascending whole numbers from 1"))
        if box_format not in FORMATS:
            raise ArgumentError(explain("MeanAveragePrecision(box_format)", repr(box_format), f"one of {list(FORMATS)}"))
        self.iou_thresholds = None if iou_thresholds is None else list(iou_thresholds)
        self.max_detections, self.box_format = list(max_detections), box_format
        self._batches: list[tuple[Any, Any]] = []
        self._known: tuple[int, dict[str, Any]] | None = None

    def update(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Keeps the boxes of a batch; nothing is computed here.

        Raises:
            ShapeError: the shapes are not those of boxes.
            ArgumentError: there are weights, which this metric does not know.
            StateError: the step is being captured in a CUDA graph, in which nothing can be kept.
        """
        if sample_weight is not None:
            raise ArgumentError(explain("MeanAveragePrecision", "sample weights", "none", "List it in metrics, not in weighted_metrics."))
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise StateError(explain("MeanAveragePrecision", "a step that is captured in a CUDA graph", "evaluation",
                                     "A captured step cannot keep boxes."))
        if isinstance(y_pred, (list, tuple)) and all(isinstance(p, Mapping) for p in (*y_pred, *y_true)):
            if len(y_true) != len(y_pred):
                raise ShapeError(explain("MeanAveragePrecision", f"{len(y_true)} labels and {len(y_pred)} predictions", "equal numbers"))
            self._batches += [(_kept(t, "y_true", ("boxes", "labels"), ("iscrowd", "area")),
                               _kept(p, "y_pred", ("boxes", "labels", "scores"), ())) for t, p in zip(y_true, y_pred, strict=True)]
            return
        t, p = outside(*entered(y_true, y_pred))
        if t.ndim != 3 or p.ndim != 3 or t.shape[2] != 5 or p.shape[2] != 6 or len(t) != len(p):
            raise ShapeError(explain("MeanAveragePrecision", f"labels of shape {tuple(t.shape)} and predictions of shape {tuple(p.shape)}",
                                     "labels (N, objects, 5): box and class, and predictions (N, detections, 6): box, class and score"))
        self._batches.append((t.detach().clone(), p.detach().clone()))  # buffers of the step may be used again

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """The same as `update` for arrays; tensors are channels-last here."""
        if isinstance(y_pred, Tensor):
            y_pred = y_pred.movedim(-1, 1) if y_pred.ndim > 2 else y_pred
            y_true = y_true.movedim(-1, 1) if isinstance(y_true, Tensor) and y_true.ndim > 2 else y_true
        self.update(y_true, y_pred, sample_weight)

    def reset(self) -> None:
        """Forgets all boxes."""
        super().reset()
        self._batches.clear()
        self._known = None

    def result(self) -> Tensor:
        """Returns the mean average precision, -1 if no object was there, 0 before the first batch. Waits for the device."""
        value = self.results()["map"] if self._batches else 0.0
        return torch.tensor(value, dtype=self._sum_type(self._device), device=self._device)

    def results(self) -> dict[str, Any]:
        """Returns all of COCO's numbers by name; -1 stands for those that do not exist. Waits for the device.

        "map", "map_50", "map_75", "map_small", "map_medium", "map_large"; the mean highest recall "mar_1", "mar_10",
        "mar_100" (after `max_detections`), "mar_small" …; "classes", and for each of them "map_per_class".
        """
        if self._known is None or self._known[0] != len(self._batches):
            pictures = [picture for batch in self._batches for picture in self._pictures(*batch)]
            self._known = len(self._batches), evaluate(pictures, self.iou_thresholds or THRESHOLDS, self.max_detections)
        return dict(self._known[1])

    def _pictures(self, true: Any, predicted: Any) -> list[Picture]:
        if isinstance(predicted, Mapping):
            boxes, there = self._corners(_host(predicted["boxes"])), self._corners(_host(true["boxes"]))
            crowd = _host(true["iscrowd"]).astype(bool) if "iscrowd" in true else np.zeros(len(there), bool)
            area = _host(true["area"]) if "area" in true else _areas(there)
            return [Picture(boxes, _host(predicted["scores"]), _host(predicted["labels"]), there, _host(true["labels"]), crowd, area)]
        pictures = []
        for t, p in zip(_host(true), _host(predicted), strict=True):
            t, p = t[t[:, 4] >= 0], p[p[:, 4] >= 0]
            there = self._corners(t[:, :4])
            pictures.append(Picture(self._corners(p[:, :4]), p[:, 5], p[:, 4], there, t[:, 4], np.zeros(len(t), bool), _areas(there)))
        return pictures

    def _corners(self, boxes: Any) -> Any:
        """Returns boxes as (x0, y0, x1, y1), from `box_format`."""
        boxes = boxes.reshape(-1, 4)
        if self.box_format == "xyxy":
            return boxes
        first, size = boxes[:, :2], boxes[:, 2:]
        first = first - size / 2 if self.box_format == "cxcywh" else first
        return np.concatenate([first, first + size], 1)


def _areas(boxes: Any) -> Any:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def _host(values: Tensor) -> Any:
    return values.detach().cpu().double().numpy()


def _tensor(values: Any, key: str) -> Tensor:
    """Returns a copy as a tensor; float64 stays, since a rounded box may fall below a threshold."""
    return values.detach().clone() if isinstance(values, Tensor) else tensor_from_array(as_numbers(values, key)).clone()


def _kept(picture: Detections, name: str, needed: Sequence[str], optional: Sequence[str]) -> dict[str, Tensor]:
    """Returns copies of the boxes of one picture, after a look at their shapes."""
    if missing := [key for key in needed if key not in picture]:
        raise ArgumentTypeError(explain(f"MeanAveragePrecision: {name}", f"a picture without {missing}", f"the keys {list(needed)}"))
    found = {key: _tensor(picture[key], key) for key in (*needed, *optional) if key in picture}
    count = found["boxes"].numel() // 4
    boxes_fit = found["boxes"].shape == (count, 4) or not count
    if not boxes_fit or any(value.numel() != count for key, value in found.items() if key != "boxes"):
        raise ShapeError(explain(f"MeanAveragePrecision: {name}", str({key: tuple(value.shape) for key, value in found.items()}),
                                 "boxes (D, 4), and one entry for each of them in the others"))
    return found
