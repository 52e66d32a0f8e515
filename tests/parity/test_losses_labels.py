"""Losses and what users give them: labels of any kind, wrong shapes, weights, classes and functions of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from convolt import losses
from convolt.errors import ArgumentError, ArgumentTypeError, ShapeError, StateError
from convolt.losses.base import Loss
from tests.parity.loss_cases import FLAT, IMAGE, Case

# -- labels, shapes and weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "float64", "bool"])
def test_sparse_labels_of_any_type_and_trailing_axis(dtype):
    p = torch.rand(4, 3)
    y = np.array([0, 1, 1, 0]).astype(dtype)
    expected = losses.get("sparse_categorical_crossentropy")(np.array([0, 1, 1, 0]), p)
    for labels in (y, y[:, None]):
        torch.testing.assert_close(losses.get("sparse_categorical_crossentropy")(labels, p), expected)
    image = torch.rand(2, 3, 4, 5)
    y = np.random.default_rng(0).integers(0, 2, (2, 4, 5)).astype(dtype)
    torch.testing.assert_close(losses.get("sparse_categorical_crossentropy")(y[..., None], image),
                               losses.get("sparse_categorical_crossentropy")(y, image))


def test_classes_on_another_axis(keras):
    rng = np.random.default_rng(0)
    p, y = rng.normal(size=(2, 5, 3, 4)).astype("float32"), rng.integers(0, 5, (2, 3, 4))
    own = losses.SparseCategoricalCrossentropy(from_logits=True, axis=1)(y, p)
    np.testing.assert_allclose(own, keras.losses.SparseCategoricalCrossentropy(from_logits=True, axis=1)(y, p), rtol=1e-5)
    hot = np.moveaxis(np.eye(5, dtype="float32")[y], -1, 1)
    own = losses.CategoricalCrossentropy(from_logits=True, axis=1)(hot, p)
    np.testing.assert_allclose(own, keras.losses.CategoricalCrossentropy(from_logits=True, axis=1)(hot, p), rtol=1e-5)


@pytest.mark.parametrize("name", ["mse", "bce", "hinge"])
def test_one_axis_more_of_size_one_does_not_broadcast(name):
    y, p = torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0.2, 0.7, 0.4])
    expected = losses.get(name)(y[:, None], p[:, None])
    for targets, predictions in ((y, p[:, None]), (y[:, None], p), (y, p)):
        torch.testing.assert_close(losses.get(name)(targets, predictions), expected)


MESSAGES = [
    ("sparse_categorical_crossentropy", (7, 10), (7, 10), r"labels are one-hot with shape \(7, 10\): use categorical_crossentropy"),
    ("categorical_crossentropy", (7,), (7, 10), r"whole numbers with shape \(7,\): use sparse_categorical_crossentropy"),
    ("categorical_crossentropy", (7, 1), (7, 10), r"whole numbers with shape \(7, 1\): use sparse_categorical_crossentropy"),
    ("categorical_focal_crossentropy", (7,), (7, 10), "to_categorical"),
    ("sparse_categorical_crossentropy", (7,), (7, 1), "use binary_crossentropy"),
    ("sparse_categorical_crossentropy", (6,), (7, 10), r"labels of shape \(6,\) and predictions of shape \(7, 10\)"),
    ("categorical_crossentropy", (7, 9), (7, 10), r"labels of shape \(7, 9\) and predictions of shape \(7, 10\)"),
    ("binary_crossentropy", (7,), (7, 10), "use sparse_categorical_crossentropy"),
    ("mse", (7, 1), (7, 10), r"y_true of shape \(7, 1\) and y_pred of shape \(7, 10\)"),
    ("mse", (6, 2), (7, 2), "numbers of samples differ"),
    ("mse", (2, 8, 8, 3), (2, 8, 8, 1), r"\(2, 8, 8, 3\) and y_pred of shape \(2, 8, 8, 1\)"),
    ("sparse_categorical_crossentropy", (2, 8, 8, 3), (2, 8, 8, 3), r"one-hot with shape \(2, 8, 8, 3\)"),
]


@pytest.mark.parametrize(("name", "y_shape", "p_shape", "message"), MESSAGES)
def test_shapes_that_do_not_fit(name, y_shape, p_shape, message):
    with pytest.raises(ShapeError, match=message):
        losses.get(name)(np.zeros(y_shape, "float32"), np.full(p_shape, 0.5, "float32"))


def test_weights_of_images():
    y, p = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    weight = torch.tensor([1.0, 3.0])
    per_pixel = losses.MeanSquaredError(reduction="none")(y, p)
    expected = (per_pixel * weight[:, None, None]).mean()
    full = weight[:, None, None].expand(2, 4, 5)
    for w in (weight, weight[:, None, None], full, full[..., None].numpy()):
        torch.testing.assert_close(losses.get("mse")(y, p, w), expected)
    with pytest.raises(ShapeError, match="sample_weight"):
        losses.get("mse")(y, p, torch.ones(3))


def test_ignored_class_counts_nowhere():
    p, y = torch.randn(4, 3), torch.tensor([0, 255, 1, 255])
    loss = losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    torch.testing.assert_close(loss(y, p), losses.SparseCategoricalCrossentropy(from_logits=True)(y[[0, 2]], p[[0, 2]]))
    assert loss(torch.full((4,), 255), p) == 0


def test_automatic_crossentropy():
    p, y = torch.rand(4, 3).softmax(1), np.array([0, 1, 2, 0])
    for labels, scores, name in ((y, p, "sparse_categorical_crossentropy"), (np.eye(3)[y], p, "categorical_crossentropy"),
                                 (y % 2, p[:, :1], "binary_crossentropy")):
        torch.testing.assert_close(losses.get("ce")(labels, scores), losses.get(name)(labels, scores))


def test_focal_alpha_per_class(keras):
    y, p = Case("CategoricalFocalCrossentropy", {}, "one_hot", "softmax").arrays(FLAT)
    alpha = [0.1, 0.2, 0.3, 0.4, 0.5]
    np.testing.assert_allclose(losses.CategoricalFocalCrossentropy(alpha=alpha)(y, p),
                               keras.losses.CategoricalFocalCrossentropy(alpha=alpha)(y, p), rtol=1e-5)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: losses.MeanSquaredError(reduction="avg"), "reduction"), (lambda: losses.MeanSquaredError(dtype="int32"), "dtype"),
    (lambda: losses.CategoricalCrossentropy(label_smoothing=1.5), "label_smoothing"), (lambda: losses.Huber(delta=0), "delta"),
])
def test_wrong_arguments(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


# -- losses of the user --------------------------------------------------------------------------------------------


def test_subclass_with_keras_s_call():
    class Mine(Loss):
        def call(self, y_true, y_pred):
            assert y_pred.shape[-1] == 5, "channels last"
            return (y_true - y_pred).square().mean(-1)

    y, p = Case("MeanSquaredError").arrays(IMAGE)
    torch.testing.assert_close(Mine(name="mine")(y, p, [1, 2, 3]), losses.get("mse")(y, p, [1, 2, 3]))
    with pytest.raises(StateError, match="no method that computes the loss"):
        Loss()([1.0], [1.0])


def test_functions_of_the_user_and_of_pytorch():
    y, p = torch.rand(4, 3), torch.rand(4, 3)
    expected = losses.get("mse")(y, p)
    fn = losses.get(lambda y_true, y_pred: (y_true - y_pred).square().mean(-1))
    torch.testing.assert_close(fn(y, p), expected)
    assert losses.get(losses.mean_squared_error).name == "mean_squared_error"
    for module in (torch.nn.MSELoss(), torch.nn.functional.mse_loss):
        torch.testing.assert_close(losses.get(module)(y, p), expected)
    with pytest.raises(ShapeError, match="one loss per sample"):
        losses.get(torch.nn.MSELoss())(y, p, [1, 2, 3, 4])
    labels, scores = torch.tensor([0, 2], dtype=torch.uint8), torch.randn(2, 3)
    torch.testing.assert_close(losses.get(torch.nn.CrossEntropyLoss(reduction="none"))(labels, scores, [1.0, 3.0]),
                               losses.SparseCategoricalCrossentropy(from_logits=True)(labels, scores, [1.0, 3.0]))
    with pytest.raises(ArgumentTypeError, match="a tensor"):
        losses.get(lambda y_true, y_pred: 3.0)(y, p)


def test_class_weights(keras):
    from keras.src.trainers.data_adapters.data_adapter_utils import class_weight_to_sample_weights

    weights = {0: 0.5, 2: 3.0}
    y = np.array([0, 1, 2, 2, 5, 0])
    for labels in (y, y[:, None], y.astype("float32"), y.astype("uint8"), np.eye(6)[y]):
        own = losses.class_weights_to_sample_weights(torch.tensor(labels), weights)
        np.testing.assert_array_equal(own, class_weight_to_sample_weights(labels, weights))
    assert losses.class_weights_to_sample_weights(torch.tensor([-1, 4]), {}).tolist() == [1, 1]
    on_meta = losses.class_weights_to_sample_weights(torch.zeros(3, 5, device="meta"), weights)  # nothing is read
    assert on_meta.shape == (3,)
    for wrong in ({0: -1.0}, {-1: 1.0}, {0: float("nan")}, {"a": 1.0}):
        with pytest.raises(ArgumentError, match="class_weight"):
            losses.class_weights_to_sample_weights(torch.tensor([0]), wrong)
    with pytest.raises(ShapeError, match="sample_weight"):
        losses.class_weights_to_sample_weights(torch.zeros(2, 3, 4), weights)
