"""Every metric against Keras, scikit-learn and torchmetrics; exact over all batches, however they are cut."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convolt import losses, metrics
from convolt.activations import sigmoid, softmax
from convolt.errors import ArgumentError, ArgumentTypeError, MissingFeatureError, ShapeError, StateError
from convolt.layout import to_inside
from convolt.metrics.base import Metric

COUNT, CLASSES = 97, 4


@dataclass
class Case:
    """A metric, how to make it, and what its labels and predictions are."""

    metric: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    labels: str = "real"
    predictions: str = "real"
    image: bool = True

    def __str__(self) -> str:
        return f"{self.metric}({', '.join(f'{k}={v}' for k, v in self.kwargs.items())})"

    def make(self, **more: Any) -> Metric:
        return metrics.registry.find(self.metric)(**self.kwargs, **more)

    def arrays(self, shape: tuple[int, ...] = (COUNT, CLASSES), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Channels-last labels and predictions."""
        rng = np.random.default_rng(seed)
        classes = rng.integers(0, shape[-1], shape[:-1])
        real = rng.normal(size=shape) * 1.5
        p = np.exp(real)
        kinds = {"real": lambda: rng.normal(size=shape), "positive": lambda: rng.uniform(0.5, 3, shape), "classes": lambda: classes,
                 "one_hot": lambda: np.eye(shape[-1])[classes], "binary": lambda: rng.integers(0, 2, shape),
                 "softmax": lambda: p / p.sum(-1, keepdims=True), "sigmoid": lambda: 1 / (1 + np.exp(-real)),
                 "guesses": lambda: np.where(rng.uniform(size=shape[:-1]) < 0.5, classes, rng.integers(0, shape[-1], shape[:-1])),
                 "ranking": lambda: np.argsort(-real, axis=-1), "fifths": lambda: rng.integers(0, 6, shape) / 5}
        labels, predictions = kinds[self.labels](), kinds[self.predictions]()
        return tuple(a.astype("float32") if a.dtype == float else a for a in (labels, predictions))


CASES = [
    Case("Accuracy", {}, "classes", "guesses"),
    Case("BinaryAccuracy", {}, "binary", "sigmoid"),
    Case("BinaryAccuracy", {"threshold": 0.3}, "binary", "sigmoid"),
    Case("CategoricalAccuracy", {}, "one_hot", "softmax"),
    Case("SparseCategoricalAccuracy", {}, "classes", "softmax"),
    Case("TopKCategoricalAccuracy", {"k": 2}, "one_hot", "softmax"),
    Case("TopKCategoricalAccuracy", {"k": 3}, "one_hot", "fifths"),
    Case("SparseTopKCategoricalAccuracy", {"k": 2}, "classes", "softmax"),
    Case("SparseTopKCategoricalAccuracy", {"k": 2, "from_sorted_ids": True}, "classes", "ranking", image=False),
    Case("Precision", {}, "binary", "sigmoid"),
    Case("Precision", {"thresholds": [0.8, 0.2, 0.5]}, "binary", "fifths"),
    Case("Precision", {"thresholds": 0.4, "class_id": 2}, "one_hot", "softmax"),
    Case("Precision", {"top_k": 2}, "one_hot", "softmax"),
    Case("Recall", {}, "binary", "sigmoid"),
    Case("Recall", {"thresholds": [0.2, 0.7]}, "binary", "fifths"),
    Case("Recall", {"top_k": 1, "class_id": 1}, "one_hot", "softmax"),
    Case("TruePositives", {"thresholds": [0.3, 0.6]}, "binary", "sigmoid"),
    Case("FalsePositives", {}, "binary", "sigmoid"),
    Case("TrueNegatives", {}, "binary", "sigmoid"),
    Case("FalseNegatives", {"thresholds": 0.7}, "binary", "sigmoid"),
    Case("AUC", {}, "binary", "sigmoid"),
    Case("AUC", {"curve": "PR"}, "binary", "sigmoid"),
    Case("AUC", {"curve": "PR", "summation_method": "minoring", "num_thresholds": 50}, "binary", "sigmoid"),
    Case("AUC", {"summation_method": "majoring", "num_thresholds": 7}, "binary", "sigmoid"),
    Case("AUC", {"thresholds": [0.1, 0.35, 0.9]}, "binary", "sigmoid"),
    Case("AUC", {"multi_label": True}, "binary", "sigmoid", image=False),
    Case("AUC", {"multi_label": True, "num_labels": 4, "curve": "PR", "label_weights": [1.0, 2.0, 0.0, 3.0]}, "binary", "sigmoid",
         image=False),
    Case("AUC", {"from_logits": True, "label_weights": [1.0, 2.0, 0.5, 3.0]}, "binary", "real"),
    Case("FBetaScore", {}, "one_hot", "softmax", image=False),
    Case("FBetaScore", {"average": "micro", "beta": 2.0, "threshold": 0.3}, "binary", "sigmoid", image=False),
    Case("F1Score", {"average": "macro"}, "one_hot", "softmax", image=False),
    Case("F1Score", {"average": "weighted", "threshold": 0.6}, "binary", "sigmoid", image=False),
    Case("IoU", {"num_classes": 4, "target_class_ids": [0, 2]}, "classes", "guesses"),
    Case("MeanIoU", {"num_classes": 4}, "classes", "guesses"),
    Case("MeanIoU", {"num_classes": 4, "ignore_class": 1, "sparse_y_pred": False}, "classes", "softmax"),
    Case("MeanIoU", {"num_classes": 6, "sparse_y_true": False, "sparse_y_pred": False}, "one_hot", "softmax"),
    Case("MeanSquaredError"),
    Case("RootMeanSquaredError"),
    Case("MeanAbsoluteError"),
    Case("MeanAbsolutePercentageError", {}, "positive"),
    Case("MeanSquaredLogarithmicError", {}, "positive", "positive"),
    Case("LogCoshError"),
    Case("CosineSimilarity"),
    Case("R2Score", {}, image=False),
    Case("R2Score", {"class_aggregation": None}, image=False),
    Case("R2Score", {"class_aggregation": "variance_weighted_average", "num_regressors": 3}, image=False),
    Case("BinaryCrossentropy", {"label_smoothing": 0.1}, "binary", "sigmoid"),
    Case("BinaryCrossentropy", {"from_logits": True}, "binary"),
    Case("CategoricalCrossentropy", {"label_smoothing": 0.1}, "one_hot", "softmax"),
    Case("SparseCategoricalCrossentropy", {"from_logits": True}, "classes"),
    Case("KLDivergence", {}, "softmax", "softmax"),
    Case("Poisson", {}, "positive", "positive"),
    Case("Hinge", {}, "binary"),
    Case("SquaredHinge", {}, "binary"),
    Case("CategoricalHinge", {}, "one_hot"),
]
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=str)
OWN = {"AutoAccuracy", "ConfusionMatrix", "MacroPrecision", "MacroRecall", "MacroF1", "MacroAUC", "Crossentropy", "Mean", "Sum"}
"""Metrics that Keras does not have, or whose `update` takes values alone; they have tests of their own."""

WEIGHTED_BY_INTEGERS = {"IoU", "MeanIoU"}  # Keras casts their weights to integers


def inside(y: np.ndarray, p: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return losses.targets_to_inside(torch.tensor(y), p.ndim), to_inside(torch.tensor(p))


def in_batches(metric: Metric, y: np.ndarray, p: np.ndarray, weight: np.ndarray | None, cuts: list[int]) -> np.ndarray:
    metric.reset()
    for start, stop in zip([0, *cuts], [*cuts, len(y)], strict=True):
        if stop > start:
            metric.update(*inside(y[start:stop], p[start:stop]), None if weight is None else torch.tensor(weight[start:stop]))
    return metric.result().numpy()


def weights_for(case: Case, count: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.integers(0, 4, count) if case.metric in WEIGHTED_BY_INTEGERS else rng.uniform(0, 2, count).astype("float32")


@EVERY_CASE
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_result_is_keras_s(keras, case, weighted):
    y, p = case.arrays()
    weight = weights_for(case, COUNT) if weighted else None
    reference = getattr(keras.metrics, case.metric)(**case.kwargs)
    reference.update_state(torch.tensor(y), torch.tensor(p), sample_weight=weight)
    np.testing.assert_allclose(in_batches(case.make(), y, p, weight, [10, 50, 96]), reference.result(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case.image], ids=str)
def test_images_are_keras_s(keras, case):
    y, p = case.arrays((5, 3, 2, CLASSES))
    reference = getattr(keras.metrics, case.metric)(**case.kwargs)
    reference.update_state(torch.tensor(y), torch.tensor(p))
    np.testing.assert_allclose(in_batches(case.make(), y, p, None, [2]), reference.result(), rtol=1e-5, atol=1e-5)
    direct = case.make()
    for method in (direct.update, direct.update_state):  # arrays are channels-last for both
        direct.reset()
        method(y, p)
        np.testing.assert_allclose(direct.result(), reference.result(), rtol=1e-5, atol=1e-5)


@EVERY_CASE
@settings(max_examples=5, deadline=None)
@given(cuts=st.lists(st.integers(0, COUNT), max_size=6), weighted=st.booleans())
def test_result_does_not_depend_on_the_batches(case, cuts, weighted):
    y, p = case.arrays(seed=5)
    weight = weights_for(case, COUNT) if weighted else None
    whole = in_batches(case.make(), y, p, weight, [])
    cut = in_batches(case.make(), y, p, weight, sorted(cuts))
    counted = not isinstance(case.make(), metrics.means.MeanOfSamples) or "Accuracy" in case.metric
    # Errors of a sample are float32, and the CPU rounds some functions differently at the end of a batch; sums are float64.
    np.testing.assert_allclose(cut, whole, rtol=1e-12 if counted else 1e-6, atol=1e-12)


@EVERY_CASE
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_no_host_sync(case, weighted):
    """On the meta device nothing can be read, so that a host sync is an error."""
    y, p = (tensor.to("meta") for tensor in inside(*case.arrays()))
    metric = case.make().to("meta")
    metric.update(y, p, torch.ones(COUNT, device="meta") if weighted else None)
    assert metric.result().device.type == "meta"
    metric.reset()


@pytest.mark.parametrize("name", ["accuracy", "precision", "recall", "f1", "auc", "confusion_matrix", "crossentropy"])
@pytest.mark.parametrize("labels", ["sparse", "one_hot", "binary"])
def test_no_host_sync_of_strings(name, labels):
    shape = {"sparse": (8,), "one_hot": (8, 3), "binary": (8, 1)}[labels]
    metric = metrics.get(name).to("meta")
    metric.update(torch.zeros(shape, device="meta"), torch.zeros(8, 1 if labels == "binary" else 3, device="meta"))
    assert metric.result().device.type == "meta"


@EVERY_CASE
def test_state_reset_and_move(case):
    y, p = case.arrays()
    metric = case.make()
    metric.update(*inside(y, p))
    first, state = metric.result().clone(), {k: v.clone() for k, v in metric.state().items()}
    tensors = {k: v.data_ptr() for k, v in metric.state().items()}
    metric.reset()
    assert all((value == 0).all() for value in metric.state().values())
    metric.update(*inside(y, p))
    assert {k: v.data_ptr() for k, v in metric.state().items()} == tensors, "the state is updated in place"
    torch.testing.assert_close(metric.result(), first)
    again = case.make()
    again.load_state(state)
    torch.testing.assert_close(again.result(), first)
    assert all(value.device.type == "meta" for value in case.make().to("meta").state().values())
    with pytest.raises(StateError, match="load_state"):
        again.load_state({})


@EVERY_CASE
def test_names_defaults_and_configuration_are_keras_s(keras, case):
    metric = case.make()
    theirs = inspect.signature(getattr(keras.metrics, case.metric))
    own = {n: p.default for n, p in inspect.signature(type(metric)).parameters.items()}
    if case.metric == "MeanIoU":
        assert own.pop("num_classes") is None
    assert {n: d for n, d in own.items() if n != "label_smoothing"} == {
        n: p.default for n, p in theirs.parameters.items() if n in own and n != "label_smoothing"}
    name = getattr(keras.metrics, case.metric)(**case.kwargs).name.rstrip("_0123456789")
    assert metric.name == {"io_u": "io_u", "mean_io_u": "mean_io_u"}.get(name, name)
    again = metrics.get({"class_name": case.metric, "config": metric.get_config()})
    assert again.get_config() == metric.get_config()


def _subclasses(cls: type) -> set[type]:
    return {cls, *(d for c in cls.__subclasses__() for d in _subclasses(c))} - {Metric}


def test_every_metric_has_a_case_and_is_registered():
    bases = {"MeanOfSamples", "MeanMetricWrapper", "Thresholded", "PerClass", "TorchMetric"}
    classes = {c.__name__ for c in _subclasses(Metric) if c.__module__.startswith("convolt.metrics.")} - bases
    assert classes == set(metrics.registry)
    assert {case.metric for case in CASES} | OWN == classes
    assert classes <= set(metrics.__all__)
    assert all(isinstance(metrics.registry.find(n).higher_is_better, bool) for n in classes - {"ConfusionMatrix", "Mean", "Sum"})


def test_every_name_of_keras_is_known(keras):
    from keras.src.metrics import ALL_OBJECTS_DICT

    abstract = {"Metric", "metric", "MeanMetricWrapper", "mean_metric_wrapper"}
    missing = {n for m in metrics._MISSING for n in (m, keras.src.utils.naming.to_snake_case(m))} | abstract
    for name in set(ALL_OBJECTS_DICT) - missing - {"IoU", "io_u", "mean_io_u", "binary_io_u", "one_hot_io_u", "one_hot_mean_io_u"}:
        assert isinstance(metrics.get(name), Metric), name
    for name in metrics._MISSING:
        with pytest.raises(MissingFeatureError, match=name):
            getattr(metrics, name)


# -- what strings stand for ----------------------------------------------------------------------------------------

SCORES = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}


def data(count: int = 200, classes: int = 5) -> tuple[np.ndarray, torch.Tensor]:
    rng = np.random.default_rng(4)
    y = rng.integers(0, classes - 1, count)  # the last class has no label
    return y, torch.tensor(rng.normal(size=(count, classes)) + 1.5 * np.eye(classes)[y], dtype=torch.float32)


@pytest.mark.parametrize("name", list(SCORES))
@pytest.mark.parametrize("labels", ["sparse", "column", "one_hot"])
def test_strings_average_over_classes(name, labels):
    y, x = data()
    given = {"sparse": y, "column": y[:, None], "one_hot": np.eye(5)[y]}[labels]
    guess = x.argmax(1).numpy()
    for average in ("macro", "micro", "weighted", None):
        metric = metrics.get({"class_name": type(metrics.get(name)).__name__, "config": {"average": average}})
        value = in_batches(metric, given, softmax(x).numpy(), None, [3, 77])
        expected = SCORES[name](y, guess, average=average, labels=range(5) if average is None else None, zero_division=0)
        np.testing.assert_allclose(value, expected, atol=1e-12)
        np.testing.assert_allclose(in_batches(metric, given, x.numpy(), None, []), expected, atol=1e-12)  # logits: same order
    weight = np.random.default_rng(0).uniform(size=200)
    metric = metrics.get(name)
    metric.update(given, x, weight)
    np.testing.assert_allclose(metric.result(), SCORES[name](y, guess, average="macro", sample_weight=weight, zero_division=0), rtol=1e-6)
    assert metric.name == name


@pytest.mark.parametrize("name", list(SCORES))
@pytest.mark.parametrize("remembered", [True, False])
def test_strings_on_one_output_and_on_many_labels(name, remembered):
    rng = np.random.default_rng(2)
    y, x = rng.integers(0, 2, (100, 3)), torch.tensor(rng.normal(size=(100, 3)), dtype=torch.float32)
    hint = None if remembered else "sigmoid"
    scores = sigmoid(x) if remembered else x
    metric = metrics.get(name, from_logits=hint)
    metric.update(y, scores)
    np.testing.assert_allclose(metric.result(), SCORES[name](y, x > 0, average="macro"), rtol=1e-12)
    for labels, one in ((y[:, :1], scores[:, :1]), (y[:, 0], scores[:, :1]), (y[:, 0], scores[:, 0])):
        metric = metrics.get(name, from_logits=None if remembered else True)
        metric.update(labels, one)
        np.testing.assert_allclose(metric.result(), SCORES[name](y[:, 0], x[:, 0] > 0), rtol=1e-12)


def test_accuracy_looks_at_the_shapes(keras):
    y, x = data()
    p = softmax(x)
    expected = (x.argmax(1).numpy() == y).mean()
    for name in ("accuracy", "acc"):
        for labels in (y, y[:, None], np.eye(5)[y], torch.tensor(y, dtype=torch.uint8)):
            metric = metrics.get(name)
            metric.update(labels, p)
            assert float(metric.result()) == pytest.approx(expected, abs=1e-12)
            assert metric.name == name
    binary = y > 1
    for labels in (binary, binary[:, None].astype("float32")):
        metric = metrics.get("accuracy")
        metric.update(labels, sigmoid(x[:, :1]))
        assert float(metric.result()) == pytest.approx(((x[:, 0] > 0).numpy() == binary).mean())
        metric = metrics.get("accuracy", from_logits=True)
        metric.update(labels, x[:, :1])
        assert float(metric.result()) == pytest.approx(((x[:, 0] > 0).numpy() == binary).mean())


def test_auc_string_is_the_mean_of_one_against_the_rest():
    y, x = data(classes=4)
    y[:4] = [0, 1, 2, 3]
    p = softmax(x)
    expected = sk.roc_auc_score(y, p.numpy(), multi_class="ovr", average="macro")
    for labels in (y, y[:, None], np.eye(4)[y]):
        metric = metrics.get("auc")
        metric.update(labels, p)
        assert float(metric.result()) == pytest.approx(expected, abs=2e-3)
        with_logits = metrics.get("auc", from_logits="softmax")
        with_logits.update(labels, x)
        assert float(with_logits.result()) == pytest.approx(float(metric.result()))
    binary = metrics.get("auc")
    binary.update(y > 1, p[:, 0])
    assert float(binary.result()) == pytest.approx(sk.roc_auc_score(y > 1, p[:, 0].numpy()), abs=2e-3)


@pytest.mark.parametrize("name", ["Precision", "Recall", "F1Score", "FBetaScore", "AUC"])
def test_classes_tell_what_to_do_with_whole_number_labels(name):
    with pytest.raises(ShapeError, match=r"whole-number labels of shape \(7,\).*metrics=\['(precision|recall|f1|auc)'\]"):
        metrics.get(name).update(np.zeros(7, int), np.zeros((7, 3), "float32"))
    with pytest.raises(ShapeError, match=r"y_true of shape \(7, 2\) and y_pred of shape \(7, 3\)"):
        metrics.get(name).update(np.zeros((7, 2)), np.zeros((7, 3), "float32"))


def test_logits_hint():
    rng = np.random.default_rng(0)
    y, x = rng.integers(0, 2, (50, 1)), torch.tensor(rng.normal(size=(50, 1)), dtype=torch.float32)
    for make in (metrics.BinaryAccuracy, lambda: metrics.BinaryAccuracy(threshold=0.3), metrics.Precision, metrics.Recall,
                 lambda: metrics.Precision([0.2, 0.6]), metrics.AUC, lambda: metrics.F1Score(threshold=0.4), metrics.TruePositives,
                 metrics.BinaryCrossentropy):
        on_logits, on_probabilities = metrics.get(make(), from_logits=True), make()
        on_logits.update(y, x)
        on_probabilities.update(y, x.sigmoid())
        torch.testing.assert_close(on_logits.result(), on_probabilities.result())
    threshold_0 = metrics.get(metrics.BinaryAccuracy(threshold=0.0), from_logits=True)  # written for logits
    threshold_0.update(y, x)
    assert float(threshold_0.result()) == ((x > 0).numpy() == y).mean()
    hints = {losses.BinaryCrossentropy(): False, losses.BinaryCrossentropy(from_logits=True): "sigmoid", losses.get("mse"): False,
             losses.SparseCategoricalCrossentropy(from_logits=True): "softmax", losses.Crossentropy(from_logits=True): True}
    assert all(metrics.logits_of_loss(loss) == hint for loss, hint in hints.items())


# -- references on the whole set -----------------------------------------------------------------------------------


def test_confusion_matrix_is_scikit_learn_s():
    y, x = data()
    expected = sk.confusion_matrix(y, x.argmax(1), labels=range(5))
    for labels in (y, np.eye(5)[y], y[:, None]):
        metric = metrics.ConfusionMatrix()
        np.testing.assert_array_equal(in_batches(metric, labels, x.numpy(), None, [1, 100]), expected)
    given = metrics.ConfusionMatrix(num_classes=5)
    given.update(y, x.argmax(1))
    np.testing.assert_array_equal(given.result(), expected)
    weight = np.arange(200)
    np.testing.assert_allclose(in_batches(metrics.get("confusion_matrix"), y, x.numpy(), weight, [9]),
                               sk.confusion_matrix(y, x.argmax(1), labels=range(5), sample_weight=weight))
    binary = metrics.ConfusionMatrix()
    binary.update(y > 1, x[:, :1].sigmoid())
    np.testing.assert_array_equal(binary.result(), sk.confusion_matrix(y > 1, x[:, 0] > 0))
    ignoring = metrics.ConfusionMatrix(ignore_class=2)
    ignoring.update(y, x)
    np.testing.assert_array_equal(ignoring.result(), expected * (np.arange(5) != 2)[:, None])
    out_of_range = metrics.ConfusionMatrix()
    out_of_range.update([0, -1, 255], torch.eye(3))
    assert out_of_range.result().sum() == 1
    with pytest.raises(ArgumentError, match="number of classes"):
        metrics.ConfusionMatrix().update(y, x.argmax(1))
    with pytest.raises(ShapeError, match="5 classes"):
        metrics.ConfusionMatrix(3).update(y, x)
    assert metrics.ConfusionMatrix().result().shape == (0, 0)


def test_torchmetrics_and_scikit_learn_agree():
    import torchmetrics.functional as tm

    y, x = data()
    t, p = torch.tensor(y), softmax(x)

    def value(metric: Metric, labels: Any = y, scores: Any = p) -> float:
        metric.update(labels, scores)
        return float(metric.result())

    assert value(metrics.get("accuracy")) == pytest.approx(float(tm.accuracy(p, t, "multiclass", num_classes=5, average="micro")))
    assert value(metrics.SparseTopKCategoricalAccuracy(k=3)) == pytest.approx(
        float(tm.accuracy(p, t, "multiclass", num_classes=5, average="micro", top_k=3)))
    assert value(metrics.SparseTopKCategoricalAccuracy(k=2)) == pytest.approx(sk.top_k_accuracy_score(y, p, k=2, labels=range(5)))
    assert value(metrics.get("f1")) == pytest.approx(float(tm.f1_score(p, t, "multiclass", num_classes=5, average="macro")))
    targets = x + 0.3 * torch.randn_like(x)
    for metric, reference in ((metrics.R2Score(), sk.r2_score), (metrics.MeanSquaredError(), sk.mean_squared_error),
                              (metrics.RootMeanSquaredError(), lambda a, b: sk.mean_squared_error(a, b) ** 0.5),
                              (metrics.MeanAbsoluteError(), sk.mean_absolute_error)):
        assert value(metric, targets, x) == pytest.approx(reference(targets.numpy(), x.numpy()), rel=1e-6)
    assert value(metrics.AUC(num_thresholds=2000), y > 1, p[:, :1]) == pytest.approx(sk.roc_auc_score(y > 1, p[:, 0]), abs=1e-3)
    assert value(metrics.MeanIoU()) == pytest.approx(
        np.mean([sk.jaccard_score(y, x.argmax(1), labels=[c], average=None) for c in range(5)]), abs=1e-6)
    assert value(metrics.MeanIoU(), np.zeros((2, 3, 4), int), torch.rand(2, 5, 3, 4)) <= 1


def test_torchmetrics_objects_and_functions_are_metrics():
    import torchmetrics

    y, x = data()
    wrapped = metrics.get(torchmetrics.Accuracy("multiclass", num_classes=5, validate_args=False))
    own = metrics.get("accuracy")
    for start in range(0, 200, 70):
        for metric in (wrapped, own):
            metric.update(y[start:start + 70, None], softmax(x[start:start + 70]))
    torch.testing.assert_close(wrapped.result().double(), own.result())
    again = metrics.get(torchmetrics.Accuracy("multiclass", num_classes=5, validate_args=False))
    again.load_state(wrapped.state())
    assert again.metric.compute() == wrapped.result()
    wrapped.reset()
    assert all((v == 0).all() for v in wrapped.state().values())
    mine = metrics.get(lambda y_true, y_pred: (y_true - y_pred.argmax(-1)).abs().float())
    mine.update(y, x)
    assert float(mine.result()) == pytest.approx(np.abs(y - x.argmax(1).numpy()).mean())
    by_loss = metrics.get(losses.Huber(delta=0.5))
    assert (by_loss.name, by_loss.higher_is_better) == ("huber_loss", False)
    assert metrics.get(metrics.sparse_categorical_accuracy).name == "sparse_categorical_accuracy"


def test_any_loss_is_a_metric_by_name():
    y, x = data()
    metric = metrics.get("categorical_focal_crossentropy")
    metric.update(np.eye(5)[y][:70], softmax(x[:70]))
    metric.update(np.eye(5)[y][70:], softmax(x[70:]))
    assert metric.name == "categorical_focal_crossentropy"
    assert float(metric.result()) == pytest.approx(float(losses.get("categorical_focal_crossentropy")(np.eye(5)[y], softmax(x))), rel=1e-6)
    on_logits = metrics.get("categorical_focal_crossentropy", from_logits="softmax")
    on_logits.update(np.eye(5)[y], x)
    assert float(on_logits.result()) == pytest.approx(float(metric.result()), rel=1e-6)


def test_counts_stay_exact_beyond_float32():
    metric = metrics.get("accuracy")
    metric.update([0], torch.eye(2)[:1])
    metric.total.fill_(2.0**24)
    metric.count.fill_(2.0**24)
    metric.update([0], torch.eye(2)[:1])
    assert metric.count == 2**24 + 1


# -- the class -----------------------------------------------------------------------------------------------------


def test_mean_and_sum(keras):
    for name in ("Mean", "Sum"):
        own, theirs = getattr(metrics, name)(), getattr(keras.metrics, name)()
        for values, weight in (([1.0, 3.0], None), (5.0, None), ([[1.0, 2.0], [3.0, 6.0]], [1.0, 3.0]), ([2.0, 4.0], [0.0, 1.0])):
            own.update(values, weight)
            theirs.update_state(values, weight)
            assert float(own.result()) == pytest.approx(float(theirs.result()), rel=1e-6)


def test_nothing_seen_is_zero(keras):
    for case in CASES:
        assert not case.make().result().isnan().any() or case.metric == "R2Score", str(case)
    assert float(metrics.get("f1").result()) == 0


def test_metric_of_the_user_in_keras_s_words():
    class Positives(metrics.Metric):
        def __init__(self, name="positives", **kwargs):
            super().__init__(name=name, **kwargs)
            self.seen = self.add_weight(name="count", shape=(), initializer="zeros")

        def update_state(self, y_true, y_pred, sample_weight=None):
            assert y_pred.shape[-1] == 3, "channels last"
            self.seen.add_((y_true == 1).sum())

        def result(self):
            return self.seen

    metric = Positives(dtype="float32")
    metric.update(torch.ones(2, 4, 5), torch.zeros(2, 3, 4, 5))
    metric.update_state(np.ones((2, 4, 5)), torch.zeros(2, 4, 5, 3))
    assert metric.result() == 80
    assert metric.to("meta").seen is metric.count
    with pytest.raises(StateError, match="no method"):
        metrics.Metric().update([1.0], [1.0])


def test_subclass_of_a_metric_that_calls_super():
    class Ids(metrics.MeanIoU):
        def update_state(self, y_true, y_pred, sample_weight=None):
            super().update_state(y_true, y_pred.argmax(-1), sample_weight)

    class Distance(metrics.Mean):
        def update_state(self, y_true, y_pred, sample_weight=None):
            super().update_state((y_true - y_pred).abs().mean(-1), sample_weight)

    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 3, (2, 4, 5)), to_inside(torch.tensor(rng.random((2, 4, 5, 3), "float32")))
    expected = metrics.MeanIoU()
    expected.update(torch.tensor(y), p)
    for labels in (torch.tensor(y), torch.tensor(y)[:, None]):
        own = Ids(num_classes=3)
        own.update(labels, p)
        torch.testing.assert_close(own.result(), expected.result())
    distance = Distance()
    distance.update([[1.0, 2.0]], [[2.0, 4.0]])
    assert distance.result() == 1.5


def test_names_are_unique_and_unknown_names_get_a_suggestion():
    assert [m.name for m in metrics.get_all(["accuracy", "accuracy", metrics.AUC(), metrics.AUC()])] == [
        "accuracy", "accuracy_1", "auc", "auc_1"]
    with pytest.raises(ArgumentError, match="Did you mean 'accuracy'"):
        metrics.get("acuracy")
    with pytest.raises(ArgumentTypeError, match="a Metric object"):
        metrics.get(3)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: metrics.Precision(thresholds=1.5), "thresholds"), (lambda: metrics.AUC(curve="roc"), "curve"),
    (lambda: metrics.AUC(num_thresholds=1), "num_thresholds"), (lambda: metrics.AUC(summation_method="sum"), "summation_method"),
    (lambda: metrics.AUC(num_labels=3), "num_labels"), (lambda: metrics.F1Score(average="mean"), "average"),
    (lambda: metrics.FBetaScore(beta=0), "beta"), (lambda: metrics.F1Score(threshold=2), "threshold"),
    (lambda: metrics.TopKCategoricalAccuracy(k=0), "k"), (lambda: metrics.R2Score("mean"), "class_aggregation"),
    (lambda: metrics.R2Score(num_regressors=-1), "num_regressors"), (lambda: metrics.IoU(2, [2]), "target_class_ids"),
    (lambda: metrics.ConfusionMatrix(1), "num_classes"), (lambda: metrics.MacroF1(average="x"), "average"),
])
def test_wrong_arguments(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_importing_does_not_import_torchmetrics():
    import subprocess
    import sys

    code = "import sys, convolt.metrics, convolt.losses, convolt.data.checks; assert 'torchmetrics' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
