"""Losses that Keras lacks against their definitions, written out with loops; CTC's recursion against PyTorch; hard cases of both."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch

from convolt import layers, losses, optimizers
from convolt.errors import ArgumentError, DataError, ShapeError
from convolt.losses.sequences import alignments
from convolt.models import Sequential
from tests.parity.loss_cases import FLAT, OWN_CASES, STEPS, WORDS, Case


def distance(a: np.ndarray, b: np.ndarray, metric: str) -> float:
    if metric == "angular":
        return 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    return float(((a - b) ** 2).sum()) ** (0.5 if metric == "L2" else 1)


def semihard(y, p, margin=1.0, distance_metric="L2"):
    costs = []
    for anchor, positive in itertools.permutations(range(len(y)), 2):
        if y[anchor] != y[positive]:
            continue
        near = distance(p[anchor], p[positive], distance_metric)
        negatives = [distance(p[anchor], p[i], distance_metric) for i in range(len(y)) if y[i] != y[anchor]]
        farther = [d for d in negatives if d > near]
        costs.append(max(near - (min(farther) if farther else max(negatives)) + margin, 0))
    return np.mean(costs)


def hard(y, p, margin=1.0, soft=False, distance_metric="L2"):
    costs = []
    for anchor in range(len(y)):
        to = [distance(p[anchor], p[i], distance_metric) for i in range(len(y))]
        gap = max(d for i, d in enumerate(to) if y[i] == y[anchor]) - min(d for i, d in enumerate(to) if y[i] != y[anchor])
        costs.append(np.log1p(np.exp(gap)) if soft else max(gap + margin, 0))
    return np.mean(costs)


def khosla(y, p, temperature=0.1):
    unit = p / np.linalg.norm(p, axis=1, keepdims=True)
    costs = []
    for i in range(len(y)):
        scores = {a: np.exp(unit[i] @ unit[a] / temperature) for a in range(len(y)) if a != i}
        positives = [a for a in scores if y[a] == y[i]]
        costs.append(-np.mean([np.log(scores[a] / sum(scores.values())) for a in positives]) if positives else 0)
    return np.mean(costs)


def hadsell(y, p, margin=1.0):
    return np.mean([d**2 if same else max(margin - d, 0) ** 2 for same, d in zip(y.ravel(), p.ravel(), strict=True)])


def pinball(y, p, quantiles=0.5):
    if isinstance(quantiles, float):
        return sklearn.metrics.mean_pinball_loss(y.ravel(), p.ravel(), alpha=quantiles)
    each = [sklearn.metrics.mean_pinball_loss(y.ravel(), p[..., i].ravel(), alpha=q) for i, q in enumerate(quantiles)]
    return np.mean(each)


REFERENCES = {"TripletSemiHard": semihard, "TripletHard": hard, "SupervisedContrastive": khosla, "Contrastive": hadsell,
              "Quantile": pinball}


@pytest.mark.parametrize("case", OWN_CASES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_own_losses_are_their_definitions(case, seed):
    for shape in case.shapes:
        y, p = case.arrays(shape, seed)
        p = p.astype("float64")
        given = torch.tensor(p) if p.ndim < 3 else torch.tensor(p).movedim(-1, 1)
        value = case.make()(losses.targets_to_inside(torch.tensor(y), p.ndim), given)
        assert value.dtype == torch.float64
        np.testing.assert_allclose(value, REFERENCES[case.loss](y, p, **case.kwargs), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("metric", "semihard_value", "hard_value", "soft_value"), [
    ("L2", 0.8418093919754028, 3.268193483352661, 2.4062695503234863),
    ("squared-L2", 0.5675784945487976, 14.533869743347168, 13.565370559692383),
    ("angular", 0.9045220017433167, 2.0491416454315186, 1.3638417720794678),
])
def test_triplets_are_those_of_tensorflow_addons(metric, semihard_value, hard_value, soft_value):
    """What the functions of tensorflow-addons 0.23.0, which does not go with Keras 3, returned for these arrays."""
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 4, 20), rng.normal(size=(20, 6)).astype("float32")
    for loss, expected in ((losses.TripletSemiHard(1.0, metric), semihard_value), (losses.TripletHard(1.0, False, metric), hard_value),
                           (losses.TripletHard(1.0, True, metric), soft_value)):
        assert float(loss(y, p)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("case", OWN_CASES, ids=str)
def test_names_configuration_and_functions_of_own_losses(case):
    y, p = case.arrays(case.shapes[0])
    loss = case.make()
    again = losses.deserialize(losses.serialize(loss))
    assert type(again) is type(loss) and again.get_config() == loss.get_config()
    np.testing.assert_array_equal(getattr(losses, loss.name)(y, p, **case.kwargs), case.make(reduction="none")(y, p))
    weight = np.linspace(0, 2, len(p), dtype="float32")
    per_sample = case.make(reduction="none")(y, p)
    weighted = per_sample * torch.tensor(weight).reshape(-1, *[1] * (per_sample.ndim - 1))
    torch.testing.assert_close(case.make(reduction="sum")(y, p, weight), weighted.sum())
    torch.testing.assert_close(loss(y, p, weight), weighted.mean())


@pytest.mark.parametrize(("name", "cls"), [
    ("ctc", "CTC"), ("circle", "Circle"), ("triplet_semihard_loss", "TripletSemiHard"), ("TripletHardLoss", "TripletHard"),
    ("contrastive_loss", "Contrastive"), ("supcon", "SupervisedContrastive"), ("pinball", "Quantile"), ("quantile", "Quantile"),
])
def test_strings(name, cls):
    assert type(losses.get(name)).__name__ == cls


# -- triplets and other embeddings -----------------------------------------------------------------------------------

EMBEDDING = [Case(name, {}, "ids", shapes=(FLAT,)) for name in ("TripletSemiHard", "TripletHard", "SupervisedContrastive", "Circle")]


@pytest.mark.parametrize("case", EMBEDDING, ids=str)
@pytest.mark.parametrize("batch", ["one class", "one sample", "equal embeddings", "no positives", "nearly equal"])
def test_batches_without_triplets_have_finite_gradients(case, batch):
    y, p = case.arrays(FLAT)
    y, p = {"one class": (y * 0, p), "one sample": (y[:1], p[:1]), "equal embeddings": (y, p * 0 + 0.3),
            "no positives": (np.arange(len(y)), p), "nearly equal": (y, p * 1e-20)}[batch]
    leaf = torch.tensor(p, requires_grad=True)
    loss = case.make()(y, leaf)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(leaf.grad).all()
    if batch in ("one class", "one sample") and case.loss != "SupervisedContrastive":
        assert loss == 0


@pytest.mark.parametrize("name", ["triplet_semihard", "triplet_hard", "supcon", "circle"])
def test_embeddings_are_not_multiplied_in_half_precision(name):
    y, p = EMBEDDING[0].arrays((16, 5))
    p = torch.nn.functional.normalize(torch.tensor(p), dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = losses.get(name)(y, p)
    torch.testing.assert_close(under_autocast, losses.get(name)(y, p), rtol=0, atol=0)


def test_distances_of_near_embeddings_far_from_the_origin_are_exact():
    p = 10 + 1e-3 * torch.randn(8, 16)
    y = np.arange(8) % 2
    value = losses.get({"class_name": "TripletHard", "config": {"margin": 0.001}})(y, p)
    assert float(value) == pytest.approx(hard(y, p.double().numpy(), margin=0.001), rel=1e-4)


def test_training_on_triplets_separates_the_classes():
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = (rng.normal(size=(120, 8)) + 2 * np.eye(8)[y]).astype("float32")
    model = Sequential([layers.Input((8,)), layers.Dense(16, activation="relu"), layers.Dense(4)])
    model.compile(optimizer=optimizers.Adam(0.02), loss=losses.TripletSemiHard(), device="cpu")
    history = model.fit(x, y, batch_size=60, epochs=40, verbose=0)
    assert history.history["loss"][-1] < 0.6 * history.history["loss"][0]


def test_a_negative_as_far_as_the_positive_is_not_semi_hard():
    y, p = np.array([0, 0, 1, 1]), np.array([[0.0], [1.0], [-1.0], [4.0]], "float32")
    value = losses.TripletSemiHard(20.0, "squared-L2")(y, p)
    assert float(value) == semihard(y, p, 20.0, "squared-L2")


def test_circle_with_references_is_keras_s(keras):
    y, p = Case("Circle", {}, "ids", "unit").arrays(FLAT)
    others, references = Case("Circle", {}, "ids", "unit").arrays((4, 5), seed=1)
    for more in ({}, {"remove_diagonal": False}, {"gamma": 3.0, "margin": 0.1}):
        own = losses.circle(y, p, others, references, **more)
        expected = keras.losses.circle(torch.tensor(y), torch.tensor(p), torch.tensor(others), torch.tensor(references), **more)
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-5)


def test_circle_s_mean_leaves_out_anchors_without_loss(keras):
    p = torch.nn.functional.normalize(torch.eye(4) + 0.01 * torch.randn(4, 4), dim=1).repeat(2, 1)
    p[7] = p[1]  # one that is far from its class
    y = np.arange(8) % 4
    loss = losses.Circle(gamma=400.0)
    values = losses.circle(y, p, gamma=400.0)
    assert 0 < (values == 0).sum() < 8
    torch.testing.assert_close(loss(y, p), values.sum() / (values > 0).sum())
    np.testing.assert_allclose(loss(y, p), keras.losses.Circle(gamma=400.0)(y, p), rtol=1e-5)


# -- CTC -------------------------------------------------------------------------------------------------------------


def brute_force(word: list[int], log_p: np.ndarray) -> float:
    """The sum over all paths whose repeats and blanks, taken out, leave the word."""
    total = 0.0
    for path in itertools.product(range(log_p.shape[1]), repeat=len(log_p)):
        merged = [a for a, _ in itertools.groupby(path)]
        if [a for a in merged if a] == word:
            total += np.exp(sum(log_p[t, a] for t, a in enumerate(path)))
    return -np.log(total)


def test_ctc_is_the_sum_over_all_alignments():
    x = torch.randn(3, 5, 3, dtype=torch.float64)
    words = [[1, 1], [2, 0], [1, 2]]
    value = losses.ctc(torch.tensor(words), x.movedim(-1, 1))
    expected = [brute_force([a for a in word if a], row.log_softmax(1).numpy()) for word, row in zip(words, x, strict=True)]
    np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_the_recursion_for_devices_is_pytorch_s_ctc():
    rng = np.random.default_rng(0)
    for steps, length, classes in ((12, 5, 4), (3, 1, 2), (1, 1, 3), (30, 14, 7)):
        x = torch.tensor(rng.normal(size=(steps, 6, classes)) * 3, requires_grad=True)
        lengths = torch.tensor(rng.integers(0, length + 1, 6))
        labels = torch.tensor(rng.integers(1, classes, (6, length))) * (torch.arange(length) < lengths[:, None])
        fits = lengths + ((labels[:, 1:] == labels[:, :-1]) & (labels[:, 1:] > 0)).sum(1) <= steps
        own = alignments(x.log_softmax(2), labels, lengths)[fits]
        theirs = torch.nn.functional.ctc_loss(x.log_softmax(2), labels, torch.full((6,), steps), lengths, reduction="none")[fits]
        torch.testing.assert_close(own, theirs, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(*(torch.autograd.grad(v.sum(), x)[0] for v in (own, theirs)), rtol=1e-9, atol=1e-10)


def test_the_recursion_stays_finite_with_certain_predictions():
    x = torch.full((40, 1, 3), -200.0)
    x[:, :, 0] = 200.0
    x.requires_grad_()
    value = alignments(x.log_softmax(2), torch.tensor([[1, 2]]), torch.tensor([2]))
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(x.grad).all()
    expected = torch.nn.functional.ctc_loss(x.log_softmax(2), torch.tensor([[1, 2]]), torch.tensor([40]), torch.tensor([2]))
    torch.testing.assert_close(value.mean() / 2, expected)


@pytest.mark.parametrize("device", ["cpu", "elsewhere"])
def test_sequences_that_do_not_fit_are_infinite_without_spoiling_the_gradient(device, monkeypatch):
    if device == "elsewhere":
        monkeypatch.setattr("convolt.losses.sequences.F.ctc_loss",
                            lambda log_p, labels, steps, lengths, *_, **__: alignments(log_p, labels, lengths))
    x = torch.randn(3, 4, 3, requires_grad=True)  # three steps
    value = losses.ctc([[1, 1, 2], [1, 2, 3], [9, 0, 0]], x)
    assert value[0] == float("inf") and torch.isfinite(value[1]) and value[2].isnan()
    value[:2].sum().backward()
    assert torch.isfinite(x.grad).all() and (x.grad[0] == 0).all() and x.grad[1].abs().sum() > 0


def test_ctc_takes_the_logits_that_probabilities_remember():
    from convolt.activations import softmax

    x = torch.randn(*STEPS).movedim(-1, 1)
    torch.testing.assert_close(losses.CTC()(WORDS, softmax(x)), losses.CTC()(WORDS, x))


def sequences() -> Sequential:
    model = Sequential([layers.Input((7, 5)), layers.Dense(5)])
    model.compile(optimizer="adam", loss="ctc", device="cpu")
    return model


def test_training_with_ctc():
    rng = np.random.default_rng(0)
    words = rng.integers(1, 5, (64, 3))
    x = np.repeat(np.eye(5, dtype="float32")[words], 2, axis=1)
    x = np.concatenate([x, np.zeros((64, 1, 5), "float32")], 1)
    model = sequences()
    model.compile(optimizer=optimizers.Adam(0.05), loss="ctc", device="cpu")
    history = model.fit(x, words, epochs=60, batch_size=32, verbose=0)
    assert history.history["loss"][-1] < 0.6 * history.history["loss"][0]


@pytest.mark.parametrize(("labels", "error", "message"), [
    ([[1, 5, 2]], DataError, r"y\[0, 1\]: got 5; expected whole numbers from 1 to 4"),
    ([[1, 1.5, 2]], DataError, r"y\[0, 1\]: got 1.5"), ([[1, -1, 2]], DataError, r"y\[0, 1\]: got -1"),
    ([[1, 0, 2]], DataError, r"y\[0, 1\]: got 0 before the end.*need y \+ 1"),
    ([[1, 2, 3, 4, 1, 2, 3, 4]], DataError, r"y\[0\]: got 8 labels, which take 8 steps; expected at most the 7 steps"),
    ([[1, 1, 1, 1, 1, 0, 0, 0]], DataError, r"5 labels, which take 9 steps"),
    ([1, 2, 3], ShapeError, r"labels of shape \(3,\).*Pad shorter sequences with 0"),
])
def test_labels_that_ctc_cannot_use(labels, error, message):
    y = np.array(labels)
    with pytest.raises(error, match=message):
        sequences().fit(np.zeros((len(y), 7, 5), "float32"), y, verbose=0)


# -- wrong shapes and arguments --------------------------------------------------------------------------------------

WRONG_SHAPES: list[tuple[str, Any, Any, str]] = [
    ("ctc", (4, 3), (4, 5), "predictions of shape (4, 5); expected logits (N, steps, classes)"),
    ("ctc", (3, 3), (4, 7, 5), "labels of shape (3, 3) for predictions of shape (4, 7, 5)"),
    ("ctc", (4, 3, 1), (4, 7, 5), "labels of shape (4, 3, 1)"),
    ("triplet_semihard", (4, 3), (4, 3), "class numbers (N,) and embeddings (N, features)"),
    ("triplet_hard", (5,), (4, 3), "labels of shape (5,) and embeddings of shape (4, 3)"),
    ("supcon", (4,), (4, 2, 3), "embeddings of shape (4, 2, 3)"),
    ("circle", (4, 2), (4, 3), "One-hot labels become class numbers"),
    ("contrastive", (4, 2), (4, 1), "y_true of shape (4, 2) and y_pred of shape (4, 1)"),
    ("quantile", (4, 2), (4, 1), "y_true of shape (4, 2) and y_pred of shape (4, 1)"),
    ("categorical_generalized_cross_entropy", (4, 3), (4, 3), "labels are one-hot"),
]


@pytest.mark.parametrize(("name", "y", "p", "message"), WRONG_SHAPES)
def test_wrong_shapes(name, y, p, message):
    loss = losses.get(name)
    with pytest.raises(ShapeError, match=re.escape(message)):
        loss(np.ones(y, "float32"), np.full(p, 0.5, "float32"))
    inside = torch.empty(p).movedim(-1, 1) if len(p) > 2 else torch.empty(p)
    with pytest.raises(ShapeError, match=re.escape(message)):  # what `fit` says before the first step
        loss.check_shapes(losses.targets_to_inside(torch.empty(y), len(p)), inside)


def test_several_quantiles_need_an_output_for_each():
    loss = losses.Quantile([0.1, 0.9])
    for y, p in (((4,), (4, 3)), ((4, 2), (4, 2)), ((4,), (4,))):
        with pytest.raises(ShapeError, match=r"targets \(N, 1\) and predictions \(N, 2\)"):
            loss(torch.zeros(y), torch.zeros(p))
    assert loss(torch.zeros(4), torch.zeros(4, 2)) == loss(torch.zeros(4, 1), torch.zeros(4, 2)) == 0


@pytest.mark.parametrize(("make", "message"), [
    (lambda: losses.TripletSemiHard(margin=0), "margin"), (lambda: losses.TripletHard(distance_metric="l2"), "Did you mean 'L2'"),
    (lambda: losses.Contrastive(margin=-1), "margin"), (lambda: losses.SupervisedContrastive(temperature=0), "temperature"),
    (lambda: losses.Quantile(1.0), "quantiles"), (lambda: losses.Quantile([0.1, 2]), "quantiles"),
    (lambda: losses.Quantile([]), "quantiles"),
    (lambda: losses.CategoricalGeneralizedCrossEntropy(q=1), "q"),
])
def test_wrong_arguments(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_generalized_crossentropy_has_a_slope_where_the_right_class_is_excluded():
    p = torch.tensor([[0.0, 1.0]], requires_grad=True)
    losses.get("categorical_generalized_cross_entropy")([0], p).backward()
    assert torch.isfinite(p.grad).all()


# -- weights of steps ------------------------------------------------------------------------------------------------


OF_STEPS = [
    Case("MeanSquaredError"), Case("BinaryCrossentropy", {"from_logits": True}, "binary"), Case("Huber"),
    Case("CategoricalCrossentropy", {"from_logits": True}, "one_hot"), Case("SparseCategoricalCrossentropy", {}, "sparse", "softmax"),
    Case("KLDivergence", {}, "soft", "softmax"), Case("CosineSimilarity"), Case("CategoricalHinge", {}, "one_hot"),
    Case("CategoricalFocalCrossentropy", {}, "one_hot", "softmax"),
]


@pytest.mark.parametrize("case", OF_STEPS, ids=str)
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight", "none"])
def test_a_weight_for_each_step_is_keras_s(keras, case, reduction):
    """The mask of a sequence arrives as weights `(N, steps)`; a weight per sample is `(N, 1)` for Keras."""
    y, p = case.arrays(STEPS)
    mask = (np.arange(7) < np.array([[7], [3], [1], [0]])).astype("float32")
    reference = getattr(keras.losses, case.loss)(**case.kwargs, reduction=reduction)
    own = case.make(reduction=reduction)
    inside = losses.targets_to_inside(torch.tensor(y), 3), torch.tensor(p).movedim(-1, 1)
    for weight in (mask, mask * np.linspace(0.5, 2, 7, dtype="float32"), np.arange(4, dtype="float32")[:, None]):
        full = weight if reduction != "mean_with_sample_weight" else np.broadcast_to(weight, (4, 7)).copy()  # Keras sums (N, 1) as it is
        expected = reference(torch.tensor(y), torch.tensor(p), torch.tensor(full))
        for value in (own(y, p, weight), own(*inside, torch.tensor(weight)), own(y, p, weight[:, :, None])):
            np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_steps_whose_number_is_that_of_the_samples_are_not_taken_for_samples():
    y, p = torch.randn(3, 5, 3), torch.randn(3, 5, 3)  # inside: five features, three steps, three samples
    weight = torch.tensor([[1.0, 1, 0], [1, 0, 0], [0, 0, 0]])
    expected = ((y - p).square().mean(1) * weight).mean()
    torch.testing.assert_close(losses.get("mse")(y, p, weight), expected)
    with pytest.raises(ShapeError, match="sample_weight"):
        losses.get("ctc")(torch.ones(3, 2), torch.randn(3, 5, 4), torch.ones(3, 4))
