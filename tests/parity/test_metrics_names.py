"""What the names of metrics stand for, against scikit-learn and torchmetrics; metrics of the user."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
import torch

from convolt import losses, metrics
from convolt.activations import sigmoid, softmax
from convolt.errors import ArgumentError, ArgumentTypeError, ShapeError, StateError
from convolt.layout import to_inside
from convolt.metrics.base import Metric
from tests.parity.metric_cases import CASES, in_batches

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
    again = metrics.get({"class_name": "MeanMetricWrapper", "config": metric.get_config()})
    assert (again.name, again.get_config()) == (metric.name, metric.get_config())
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

    code = "import sys, convolt.metrics, convolt.losses, convolt.training.checks; assert 'torchmetrics' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
