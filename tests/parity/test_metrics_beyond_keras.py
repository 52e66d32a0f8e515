"""Metrics that Keras lacks against torchmetrics, scikit-learn and their definitions; weights for each step against Keras."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
import torchmetrics.classification as tm
from torchmetrics.segmentation import DiceScore as TheirDiceScore

from convolt import layers, metrics
from convolt.errors import ArgumentError, ShapeError
from convolt.layout import to_inside
from convolt.masks import attach
from convolt.models import Sequential
from tests.parity.metric_cases import CASES, OWN_CASES, Case, in_batches, inside

SCORES = Case("", {}, "classes", "softmax")

# -- Dice ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:DiceScore metric currently defaults")  # torchmetrics says so whatever it is given
@pytest.mark.parametrize("average", ["macro", "micro", "weighted", None])
@pytest.mark.parametrize("per_image", [False, True], ids=["set", "images"])
@pytest.mark.parametrize("background", [False, True])
def test_dice_score_is_torchmetrics_s(average, per_image, background):
    y, p = SCORES.arrays((6, 5, 4, 4))
    y[:2] = y[:2] % 2  # classes that do not occur in an image
    p[:2, ..., 2:] = 0
    theirs = TheirDiceScore(4, include_background=background, average=average or "none", input_format="index",
                            aggregation_level="samplewise" if per_image else "global")
    theirs.update(torch.tensor(p).argmax(-1), torch.tensor(y))
    own = metrics.DiceScore(average, per_image, background)
    for labels in (y, np.eye(4)[y], y[..., None]):
        np.testing.assert_allclose(in_batches(own, labels, p, None, [1, 4]), theirs.compute(), rtol=1e-6)
    assert metrics.get("dice_score").get_config() == metrics.DiceScore().get_config()


def test_dice_score_of_masks_with_one_output_and_of_many_labels():
    rng = np.random.default_rng(0)
    y, x = rng.integers(0, 2, (5, 6, 4, 3)), rng.normal(size=(5, 6, 4, 3)).astype("float32")
    one = metrics.get(metrics.DiceScore(), from_logits="sigmoid")
    one.update(y[..., :1], x[..., :1])
    assert float(one.result()) == pytest.approx(sk.f1_score(y[..., 0].ravel(), x[..., 0].ravel() > 0))
    many = metrics.get(metrics.DiceScore(average=None), from_logits="sigmoid")
    many.update(y, x)
    np.testing.assert_allclose(many.result(), sk.f1_score(y.reshape(-1, 3), x.reshape(-1, 3) > 0, average=None))
    each = metrics.get(metrics.DiceScore(per_image=True), from_logits="sigmoid")
    each.update(y[..., :1], x[..., :1], [1.0, 0, 2, 0, 0])
    scores = [sk.f1_score(y[i, ..., 0].ravel(), x[i, ..., 0].ravel() > 0) for i in (0, 2)]
    assert float(each.result()) == pytest.approx((scores[0] + 2 * scores[1]) / 3)


def test_dice_score_weighs_pixels():
    y, p = SCORES.arrays((3, 4, 5, 4))
    weight = np.random.default_rng(1).integers(0, 3, (3, 4, 5))
    own = metrics.DiceScore()
    own.update(y, p, weight)
    assert float(own.result()) == pytest.approx(sk.f1_score(y.ravel(), p.argmax(-1).ravel(), average="macro", sample_weight=weight.ravel()))


# -- calibration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_is_torchmetrics_s(norm, bins):
    y, p = SCORES.arrays((200, 4))
    theirs = tm.MulticlassCalibrationError(4, bins, norm)
    theirs.update(torch.tensor(p), torch.tensor(y))
    for labels in (y, y[:, None], np.eye(4)[y]):
        value = in_batches(metrics.ExpectedCalibrationError(bins, norm), labels, p, None, [3, 120])
        np.testing.assert_allclose(value, theirs.compute(), rtol=1e-5, atol=1e-7)
    binary = tm.BinaryCalibrationError(bins, norm)
    binary.update(torch.tensor(p[:, 0]), torch.tensor(y == 0))
    for scores in (p[:, :1], p[:, 0]):
        np.testing.assert_allclose(in_batches(metrics.ExpectedCalibrationError(bins, norm), y == 0, scores, None, [50]),
                                   binary.compute(), rtol=1e-5, atol=1e-7)


def test_calibration_error_by_hand_on_logits_and_with_weights():
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [1.0, 0.0]], "float32")
    y = [0, 1, 1, 0]
    metric = metrics.ExpectedCalibrationError(num_bins=5)  # bins from 0.6 and from 0.8; 1 is in the last
    metric.update(y, p)
    assert float(metric.result()) == pytest.approx(0.25 * abs(1 - 0.7) + 0.75 * abs(2 / 3 - 0.9), abs=1e-6)
    metric.reset()
    metric.update(y, p, [0.0, 1, 1, 0])
    assert float(metric.result()) == pytest.approx(0.5 * 0.3 + 0.5 * 0.8, abs=1e-6)
    on_logits = metrics.get("ece", from_logits="softmax")
    plain = metrics.get("ece")
    x = torch.randn(50, 3)
    labels = torch.randint(3, (50,))
    on_logits.update(labels, x)
    plain.update(labels, x.softmax(1))
    torch.testing.assert_close(on_logits.result(), plain.result())
    image = metrics.get("ece")
    image.update(labels.reshape(2, 5, 5), to_inside(x.softmax(1).reshape(2, 5, 5, 3)))
    torch.testing.assert_close(image.result(), plain.result())


# -- average precision -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", ["macro", "micro", "weighted", None])
def test_average_precision_is_scikit_learn_s(average):
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, (300, 5))
    steps = ((rng.integers(0, 998, (300, 5)) + 0.5) / 999).astype("float32")  # each score in the middle of a step
    own = in_batches(metrics.AveragePrecision(average=average), y, steps, None, [7, 200])
    np.testing.assert_allclose(own, sk.average_precision_score(y, steps, average=average), rtol=1e-9)
    weight = rng.uniform(size=300).astype("float32")
    own = in_batches(metrics.AveragePrecision(average=average), y, steps, weight, [7, 200])
    np.testing.assert_allclose(own, sk.average_precision_score(y, steps, average=average, sample_weight=weight), rtol=1e-6)
    free = rng.uniform(size=(300, 5)).astype("float32")
    own = in_batches(metrics.AveragePrecision(average=average), y, free, None, [])
    np.testing.assert_allclose(own, sk.average_precision_score(y, free, average=average), atol=1e-2)


def test_average_precision_of_classes_and_of_one_output():
    y, p = SCORES.arrays((200, 4))
    p = (np.floor(p * 999) + 0.5).astype("float32") / 999
    expected = sk.average_precision_score(np.eye(4)[y], p)
    for labels in (y, y[:, None], np.eye(4)[y]):
        assert in_batches(metrics.get("average_precision"), labels, p, None, [9]) == pytest.approx(expected, rel=1e-9)
    binary = in_batches(metrics.get("average_precision"), y == 1, p[:, 1], None, [9])
    assert binary == pytest.approx(sk.average_precision_score(y == 1, p[:, 1]), rel=1e-9)
    without = y % 3  # class 3 has no label: it is in no mean
    expected = np.mean([sk.average_precision_score(without == c, p[:, c]) for c in range(3)])
    assert in_batches(metrics.get("average_precision"), without, p, None, []) == pytest.approx(expected, rel=1e-9)


# -- correlations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, -1, (0, 1), (1, 2)])
@pytest.mark.parametrize("name", ["pearson_correlation", "concordance_correlation"])
def test_correlations_along_other_axes_are_keras_s(keras, name, axis):
    y, p = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype("float32")
    expected = getattr(keras.metrics, name)(torch.tensor(y), torch.tensor(p), axis=axis)
    np.testing.assert_allclose(getattr(metrics, name)(y, p, axis), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(getattr(metrics, name)(y[0, 0], p[0, 0]), getattr(keras.metrics, name)(y[0, 0], p[0, 0]), rtol=1e-5)
    np.testing.assert_allclose(metrics.pearson_correlation(y[0, 0], p[0, 0]), np.corrcoef(y[0, 0], p[0, 0])[0, 1], rtol=1e-5)


# -- weights of steps ------------------------------------------------------------------------------------------------

STEPS = (5, 7, 4)
OF_PLACES = [case for case in CASES if case.image]


@pytest.mark.parametrize("case", OF_PLACES, ids=str)
def test_a_weight_for_each_step_is_keras_s(keras, case):
    """The mask of a sequence arrives as weights `(N, steps)`."""
    y, p = case.arrays(STEPS)
    mask = (np.arange(7) < np.array([[7], [3], [1], [5], [0]])).astype("float32")
    for weight in (mask, mask * np.arange(1, 8, dtype="float32")):
        given = weight
        if case.metric.endswith("IoU"):  # Keras counts in whole numbers
            given = weight.astype(int)
        if case.metric == "BinaryIoU" or (y.shape == STEPS and type(case.make()).__mro__[1] in (
                metrics.thresholds.Thresholded, metrics.curves.AtThresholds)) or case.metric == "AUC":
            given = np.repeat(given[..., None], STEPS[-1], -1)  # each output is a value of its own
        reference = getattr(keras.metrics, case.metric)(**case.kwargs)
        if case.kwargs.get("class_id") is not None and "class_id" in case.kwargs:
            given = weight[..., None]
        reference.update_state(torch.tensor(y), torch.tensor(p), sample_weight=given)
        own = in_batches(case.make(), y, p, weight, [2])
        np.testing.assert_allclose(own, reference.result(), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("case", [*OF_PLACES, *OWN_CASES], ids=str)
def test_steps_of_weight_zero_could_be_anything(case):
    y, p = case.arrays(STEPS)
    mask = (np.arange(7) < np.array([[7], [3], [1], [5], [2]])).astype("float32")
    other_y, other_p = case.arrays(STEPS, seed=9)
    kept = mask.astype(bool)
    other_y[kept], other_p[kept] = y[kept], p[kept]
    expected = in_batches(case.make(), y, p, mask, [])
    np.testing.assert_allclose(in_batches(case.make(), other_y, other_p, mask, []), expected, rtol=1e-6)
    masked = case.make()  # what the predictions carry as a mask counts as weights of zero
    targets, predictions = inside(other_y, other_p)
    masked.update(targets, attach(predictions, torch.tensor(kept)))
    np.testing.assert_allclose(masked.result(), expected, rtol=1e-6)
    whole = case.make()
    whole.update(*inside(other_y, other_p))
    assert any(not torch.allclose(value, whole.state()[name]) for name, value in masked.state().items()), "the weights do something"


# -- in training -----------------------------------------------------------------------------------------------------


def test_new_metrics_in_fit_and_evaluate_of_two_outputs():
    from convolt.models import Model

    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)).astype("float32")
    ids, labels = rng.integers(0, 3, 40), rng.integers(0, 2, (40, 4))
    inputs = layers.Input((6,))
    model = Model(inputs, {"a": layers.Dense(3, activation="softmax")(inputs), "b": layers.Dense(4, activation="sigmoid")(inputs)})
    model.compile(optimizer="adam", loss={"a": "sparse_categorical_crossentropy", "b": "tversky"}, device="cpu",
                  metrics={"a": ["accuracy", "ece", "average_precision", metrics.DiceScore()],
                           "b": [metrics.AveragePrecision(), metrics.BinaryIoU(), metrics.RecallAtPrecision(0.5)]})
    model.fit(x, {"a": ids, "b": labels}, epochs=1, batch_size=16, verbose=0)
    logs = model.evaluate(x, {"a": ids, "b": labels}, batch_size=16, verbose=0, return_dict=True)
    predicted = model.predict(x, verbose=0)
    for name, own, y in (("a_ece", metrics.get("ece"), ids), ("a_average_precision", metrics.AveragePrecision(), ids),
                         ("a_dice_score", metrics.DiceScore(), ids), ("b_average_precision", metrics.AveragePrecision(), labels),
                         ("b_binary_io_u", metrics.BinaryIoU(), labels), ("b_recall_at_precision", metrics.RecallAtPrecision(0.5), labels)):
        own.update(y, predicted[name[0]])
        assert logs[name] == pytest.approx(float(own.result()), rel=1e-5), name


def test_logits_reach_the_new_metrics():
    y, p = Case("", {}, "binary", "real").arrays((60, 3))
    for make in (metrics.BinaryIoU, lambda: metrics.PrecisionAtRecall(0.5), metrics.AveragePrecision,
                 lambda: metrics.BinaryIoU(threshold=0.2)):
        on_logits, plain = metrics.get(make(), from_logits="sigmoid"), make()
        on_logits.update(y, p)
        plain.update(y, 1 / (1 + np.exp(-p)))
        torch.testing.assert_close(on_logits.result(), plain.result())


def test_a_prediction_at_the_threshold_says_1(keras):
    own, theirs = metrics.BinaryIoU((1,)), keras.metrics.BinaryIoU((1,))
    own.update([1, 0, 1], [0.5, 0.2, 0.1])
    theirs.update_state([1, 0, 1], [0.5, 0.2, 0.1])
    assert float(own.result()) == pytest.approx(0.5) == pytest.approx(float(theirs.result()))


def test_losses_of_ignored_classes_as_metrics():
    from convolt import losses

    loss = losses.SparseCategoricalCrossentropy(ignore_class=1)
    y, p = SCORES.arrays((30, 4))
    metric = metrics.get(loss)
    metric.update(y[:11], p[:11])
    metric.update(y[11:], p[11:])
    assert float(metric.result()) == pytest.approx(float(loss(y, p)), rel=1e-6)


# -- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "message"), [
    (lambda: metrics.ExpectedCalibrationError(0), "num_bins"), (lambda: metrics.ExpectedCalibrationError(norm="L1"), "norm"),
    (lambda: metrics.DiceScore("mean"), "average"), (lambda: metrics.AveragePrecision(average="mean"), "average"),
    (lambda: metrics.PrecisionAtRecall(1.5), "recall"), (lambda: metrics.RecallAtPrecision(-1), "precision"),
    (lambda: metrics.SensitivityAtSpecificity(0.5, num_thresholds=0), "num_thresholds"),
    (lambda: metrics.SpecificityAtSensitivity("x"), "sensitivity"), (lambda: metrics.OneHotIoU(2, [2]), "target_class_ids"),
    (lambda: metrics.BinaryIoU([2]), "target_class_ids"),
])
def test_wrong_arguments(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize(("metric", "y", "p", "message"), [
    (metrics.BinaryIoU, (5,), (5, 3), "use MeanIoU"), (lambda: metrics.PrecisionAtRecall(0.5), (5,), (5, 3), "whole-number labels"),
    (metrics.ExpectedCalibrationError, (4,), (5, 3), r"labels of shape \(4,\)"),
    (metrics.PearsonCorrelation, (5, 2), (5, 3), "equal shapes"),
    (metrics.DiceScore, (4,), (5, 3), r"labels of shape \(4,\)"),
    (lambda: metrics.RecallAtPrecision(0.5, class_id=1), (5,), (5,), "class_id"),
])
def test_wrong_shapes(metric, y, p, message):
    with pytest.raises(ShapeError, match=message):
        metric().update(np.ones(y), np.full(p, 0.5, "float32"))


def test_dice_score_of_class_numbers_says_what_to_do():
    with pytest.raises(ArgumentError, match="to_categorical"):
        metrics.DiceScore().update(np.ones((2, 3), int), np.ones((2, 3), int))


def test_serialize():
    for metric in (metrics.BinaryIoU((1,), 0.3), metrics.AveragePrecision(50, None), metrics.PrecisionAtRecall(0.3, class_id=2)):
        again = metrics.deserialize(metrics.serialize(metric))
        assert type(again) is type(metric) and again.get_config() == metric.get_config()

    class Mine(metrics.Mean):
        pass

    assert isinstance(metrics.deserialize({"class_name": "Mine", "config": {}}, {"Mine": Mine}), Mine)
    with pytest.raises(ArgumentError, match="Mine"):
        metrics.deserialize("Mine")


def test_a_sequence_model_with_metrics_per_step():
    x = np.random.default_rng(0).normal(size=(12, 5, 3)).astype("float32")
    y = np.random.default_rng(1).integers(0, 4, (12, 5))
    model = Sequential([layers.Input((5, 3)), layers.Dense(4, activation="softmax")])
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", weighted_metrics=["accuracy", "ece"], device="cpu")
    mask = (np.arange(5) < np.arange(12)[:, None] % 6).astype("float32")
    logs = model.evaluate(x, y, sample_weight=mask, batch_size=5, verbose=0, return_dict=True)
    right = model.predict(x, verbose=0).argmax(-1) == y
    assert logs["accuracy"] == pytest.approx((right * mask).sum() / mask.sum(), rel=1e-6)
