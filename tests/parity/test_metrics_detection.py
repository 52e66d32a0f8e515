"""Mean average precision of detections against pycocotools, and against cases worked out by hand."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import torch

from convolt import metrics
from convolt.errors import ArgumentError, ArgumentTypeError, DataError, ShapeError
from convolt.metrics.coco import box_iou

NAMES = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_1", "mar_10", "mar_100", "mar_small", "mar_medium",
         "mar_large")
"""In the order of pycocotools's `stats`."""


def pictures(seed: int, count: int = 12, classes: int = 3, crowds: bool = False, ties: bool = False,
             whole: bool = True) -> tuple[list[dict], list[dict]]:
    """Ground truths, and detections most of which are near to one, as dictionaries of arrays."""
    rng = np.random.default_rng(seed)
    rounded = np.round if whole else np.asarray
    truths, found = [], []
    for _ in range(count):
        objects = int(rng.integers(0, 9))
        size = rng.choice([12, 50, 150], (objects, 1)) * rng.uniform(0.7, 1.3, (objects, 2))
        corner = rng.uniform(0, 200, (objects, 2))
        boxes = rounded(np.concatenate([corner, corner + size], 1))
        labels = rng.integers(0, classes, objects)
        copies = rng.integers(0, 4, objects)
        near = np.repeat(boxes, copies, 0)
        near = near + rounded(rng.normal(size=near.shape) * (near[:, 2:] - near[:, :2]).mean(1, keepdims=True) * 0.08)
        loose = rounded(rng.uniform(0, 100, (3, 2)))
        near = np.concatenate([near, np.concatenate([loose, loose + rounded(rng.uniform(5, 120, (3, 2)))], 1)])
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        guess = np.concatenate([np.repeat(labels, copies), rng.integers(0, classes + 1, 3)])
        scores = rng.integers(0, 6, len(near)) / 8 if ties else rng.uniform(size=len(near)).astype("float32")
        truths.append({"boxes": boxes, "labels": labels} | ({"iscrowd": rng.integers(0, 2, objects)} if crowds else {}))
        found.append({"boxes": near, "labels": guess, "scores": scores})
    return truths, found


def coco(truths: list[dict], found: list[dict]) -> Any:
    """What pycocotools says; it prints, and keeps boxes as corner and size."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(items: list[dict]) -> list[dict]:
        listed = []
        for image, item in enumerate(items):
            for i, box in enumerate(item["boxes"]):
                x0, y0, x1, y1 = map(float, box)
                row = {"id": len(listed) + 1, "image_id": image, "category_id": int(item["labels"][i]), "bbox": [x0, y0, x1 - x0, y1 - y0],
                       "area": (x1 - x0) * (y1 - y0), "iscrowd": int(item["iscrowd"][i]) if "iscrowd" in item else 0}
                listed.append(row | ({"score": float(item["scores"][i])} if "scores" in item else {}))
        return listed

    with contextlib.redirect_stdout(io.StringIO()):
        truth, result = COCO(), COCO()
        labels = {int(label) for item in (*truths, *found) for label in item["labels"]}
        for api, items in ((truth, truths), (result, found)):
            api.dataset = {"images": [{"id": i} for i in range(len(items))], "annotations": rows(items),
                           "categories": [{"id": label} for label in sorted(labels)]}
            api.createIndex()
        evaluation = COCOeval(truth, result, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["plain", "crowds", "ties", "fractions"])
def test_every_number_is_pycocotools_s(seed, kind):
    truths, found = pictures(seed, crowds=kind == "crowds", ties=kind == "ties", whole=kind != "fractions")
    expected = coco(truths, found)
    metric = metrics.MeanAveragePrecision()
    for start, stop in ((0, 5), (5, 6), (6, 12)):
        metric.update(truths[start:stop], found[start:stop])
    results = metric.results()
    np.testing.assert_allclose([results[name] for name in NAMES], expected.stats, atol=1e-9)
    assert 0.05 < results["map"] < 0.95 and float(metric.result()) == results["map"]
    per_class = {label: expected.eval["precision"][:, :, k, 0, 2] for k, label in enumerate(expected.params.catIds)}
    for label, value in zip(results["classes"], results["map_per_class"], strict=True):
        assert value == pytest.approx(per_class[label].mean(), abs=1e-9)


def test_more_detections_than_count():
    truths, found = pictures(3, count=2, classes=1)
    many = {key: np.concatenate([found[0][key]] * 30) for key in found[0]}
    many["scores"] = np.random.default_rng(0).uniform(size=len(many["scores"])).astype("float32")
    assert len(many["scores"]) > 100
    expected = coco(truths, [many, found[1]])
    metric = metrics.MeanAveragePrecision()
    metric.update(truths, [many, found[1]])
    np.testing.assert_allclose([metric.results()[name] for name in NAMES], expected.stats, atol=1e-9)


def test_tensors_of_boxes_are_the_same_as_lists():
    truths, found = pictures(1)
    y = np.full((12, 10, 5), -1.0, "float32")
    p = np.full((12, 40, 6), -1.0, "float32")
    for i, (t, f) in enumerate(zip(truths, found, strict=True)):
        y[i, :len(t["labels"])] = np.column_stack([t["boxes"], t["labels"]])
        p[i, :len(f["labels"])] = np.column_stack([f["boxes"], f["labels"], f["scores"]])
    expected = metrics.MeanAveragePrecision()
    expected.update(truths, found)
    inside = torch.tensor(y).movedim(-1, 1), torch.tensor(p).movedim(-1, 1)
    outside = torch.tensor(y), torch.tensor(p)
    for given, method in (((y, p), "update"), (inside, "update"), ((y, p), "update_state"), (outside, "update_state")):
        own = metrics.get("coco_map")
        getattr(own, method)(*given)
        assert own.results() == expected.results()
        own.reset()
        assert own.result() == 0


@pytest.mark.parametrize("box_format", ["xywh", "cxcywh"])
def test_other_formats_of_boxes(box_format):
    truths, found = pictures(2)

    def converted(item: dict) -> dict:
        first, size = item["boxes"][:, :2], item["boxes"][:, 2:] - item["boxes"][:, :2]
        return item | {"boxes": np.concatenate([first + size / 2 if box_format == "cxcywh" else first, size], 1)}

    expected, own = metrics.MeanAveragePrecision(), metrics.MeanAveragePrecision(box_format=box_format)
    expected.update(truths, found)
    own.update([converted(t) for t in truths], [converted(f) for f in found])
    assert own.results() == expected.results()


def one(boxes: list, labels: list, scores: list | None = None) -> dict:
    found = {"boxes": np.array(boxes, float).reshape(-1, 4), "labels": np.array(labels)}
    return found if scores is None else found | {"scores": np.array(scores)}


def test_by_hand():
    a, b, c = [0, 0, 10, 10], [20, 20, 40, 40], [60, 60, 70, 70]
    cases = [
        ([a, b], [0, 0], [a, b], [0, 0], [0.9, 0.8], 1.0),  # all found
        ([a, b], [0, 0], [a], [0], [0.9], 51 / 101),  # recall to 0.5: the recalls 0, 0.01 … 0.5
        ([a], [0], [c, a], [0, 0], [0.9, 0.8], 0.5),  # a wrong one before the right one
        ([a], [0], [a, c], [0, 0], [0.9, 0.8], 1.0),  # a wrong one behind it
        ([a], [0], [a], [1], [0.9], 0.0),  # the wrong class
        ([a, b], [0, 1], [a], [0], [0.9], 0.5),  # mean over classes
        ([a], [0], [[0, 0, 10, 5]], [0], [0.9], 0.1),  # an overlap of exactly 0.5: right at one of ten thresholds
        ([a], [0], [a, a], [0, 0], [0.9, 0.9], 1.0),  # found twice: the second is wrong, but behind
        ([], [], [a], [0], [0.9], -1.0), ([a], [0], [], [], [], 0.0),
    ]
    for true, labels, boxes, guesses, scores, expected in cases:
        metric = metrics.MeanAveragePrecision()
        metric.update([one(true, labels)], [one(boxes, guesses, scores)])
        assert float(metric.result()) == pytest.approx(expected, abs=1e-12)
    at_half = metrics.MeanAveragePrecision(iou_thresholds=[0.5])
    at_half.update([one([a], [0])], [one([[0, 0, 10, 5]], [0], [0.9])])
    assert at_half.results()["map_50"] == float(at_half.result()) == pytest.approx(1) and at_half.results()["map_75"] == -1


def test_overlaps_by_hand():
    a = np.array([[0, 0, 10, 10], [5, 5, 15, 15], [30, 30, 31, 31], [3, 3, 3, 3.0]])
    overlap = box_iou(a, a, np.zeros(4, bool))
    np.testing.assert_allclose(overlap[:2, :2], [[1, 25 / 175], [25 / 175, 1]])
    assert overlap[0, 2] == overlap[3, 3] == overlap[3, 0] == 0
    np.testing.assert_allclose(box_iou(a[:2], a[:1], np.ones(1, bool))[:, 0], [1, 0.25])


def test_boxes_are_kept_and_not_read():
    truths, found = np.full((2, 3, 5), 1.0, "float32"), torch.rand(2, 6, 4)
    metric = metrics.MeanAveragePrecision()
    metric.update(torch.tensor(truths, device="meta").movedim(-1, 1), found.to("meta"))  # the meta device has no values
    metric.reset()
    metric.update(truths, found)
    before = float(metric.result())
    found.zero_()
    metric._known = None
    assert float(metric.result()) == before, "buffers of a step are used again"


def test_in_evaluate():
    from convolt import layers
    from convolt.models import Sequential

    truths, found = pictures(1)
    p = np.full((12, 40, 6), -1.0, "float32")
    y = np.full((12, 40, 5), -1.0, "float32")
    for i, (t, f) in enumerate(zip(truths, found, strict=True)):
        y[i, :len(t["labels"])] = np.column_stack([t["boxes"], t["labels"]])
        p[i, :len(f["labels"])] = np.column_stack([f["boxes"], f["labels"], f["scores"]])
    model = Sequential([layers.Input((40, 6)), layers.Activation("linear")])
    model.compile(loss=lambda y_true, y_pred: (y_pred[..., :5] - y_true).square().mean((-1, -2)), metrics=["detection_map"], device="cpu")
    logs = model.evaluate(p, y, batch_size=5, verbose=0, return_dict=True)
    assert logs["detection_map"] == pytest.approx(coco(truths, found).stats[0], abs=1e-6)


def test_configuration():
    metric = metrics.MeanAveragePrecision([0.5, 0.75], (1, 20), "xywh")
    again = metrics.get({"class_name": "MeanAveragePrecision", "config": metric.get_config()})
    assert again.get_config() == metric.get_config()
    assert metric.state() == {} and metrics.MeanAveragePrecision().result() == 0
    truths, found = pictures(0)
    metric.update(truths, found)
    assert set(metric.results()) >= {"map", "mar_1", "mar_20"}


@pytest.mark.parametrize(("make", "message"), [
    (lambda: metrics.MeanAveragePrecision(iou_thresholds=[1.5]), "iou_thresholds"),
    (lambda: metrics.MeanAveragePrecision([]), "iou_thresholds"),
    (lambda: metrics.MeanAveragePrecision(max_detections=(10, 1)), "max_detections"),
    (lambda: metrics.MeanAveragePrecision(box_format="yxyx"), "box_format"),
])
def test_wrong_arguments(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_wrong_boxes():
    metric = metrics.MeanAveragePrecision()
    with pytest.raises(ShapeError, match=r"labels of shape \(2, 3, 4\) and predictions of shape \(2, 3, 6\)"):
        metric.update(np.zeros((2, 3, 4)), np.zeros((2, 3, 6)))
    with pytest.raises(ArgumentError, match="weighted_metrics"):
        metric.update(np.zeros((2, 3, 5)), np.zeros((2, 3, 6)), np.ones(2))
    with pytest.raises(ArgumentTypeError, match=r"without \['scores'\]"):
        metric.update([one([], [])], [one([], [])])
    with pytest.raises(ShapeError, match="one entry for each"):
        metric.update([one([], [])], [one([[0, 0, 1, 1]], [0, 1], [0.5])])
    with pytest.raises(DataError, match="boxes"):
        metric.update([one([], [])], [one([], [], []) | {"boxes": [["a"]]}])
    with pytest.raises(ShapeError, match="1 labels and 2 predictions"):
        metric.update([one([], [])], [one([], [], [])] * 2)
