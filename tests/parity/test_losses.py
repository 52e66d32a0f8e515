"""Every loss against Keras: values and gradients, weights, reductions, shapes; gradcheck; large logits."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from convolt import losses
from convolt.activations import sigmoid, softmax
from convolt.errors import ArgumentError, ArgumentTypeError, ConvoltWarning, MissingFeatureError, ShapeError, StateError
from convolt.layout import to_inside
from convolt.losses.base import Loss

FLAT, IMAGE = (6, 5), (3, 3, 2, 5)
SHAPES = pytest.mark.parametrize("shape", [FLAT, IMAGE], ids=["flat", "image"])


@dataclass
class Case:
    """A loss, how to make it, and what its labels and predictions are."""

    loss: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    labels: str = "real"
    predictions: str = "real"
    keras: str = ""

    def __str__(self) -> str:
        return f"{self.loss}({', '.join(f'{k}={v}' for k, v in self.kwargs.items())})"

    def make(self, **more: Any) -> Loss:
        return losses.registry.find(self.loss)(**self.kwargs, **more)

    def arrays(self, shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Channels-last labels and predictions, kept off kinks and ties."""
        rng = np.random.default_rng(seed)
        classes = rng.integers(0, shape[-1], shape[:-1])
        labels = {
            "real": lambda: rng.normal(size=shape), "positive": lambda: rng.uniform(0.5, 3, shape),
            "sparse": lambda: classes, "one_hot": lambda: np.eye(shape[-1])[classes],
            "binary": lambda: rng.integers(0, 2, shape).astype(float), "signs": lambda: rng.choice([-1.0, 1.0], shape),
            "soft": lambda: softmax(torch.tensor(rng.normal(size=shape)), **({"axis": 1} if len(shape) > 2 else {})).numpy(),
        }[self.labels]()
        real = rng.normal(size=shape) * 1.5
        p = np.exp(real)
        predictions = {"real": real, "positive": rng.uniform(0.2, 3, shape), "softmax": p / p.sum(-1, keepdims=True),
                       "sigmoid": 1 / (1 + np.exp(-real))}[self.predictions]
        return labels if self.labels == "sparse" else labels.astype("float32"), predictions.astype("float32")


CASES = [
    Case("SparseCategoricalCrossentropy", {}, "sparse", "softmax"),
    Case("SparseCategoricalCrossentropy", {"from_logits": True}, "sparse"),
    Case("SparseCategoricalCrossentropy", {"from_logits": True, "ignore_class": 2}, "sparse"),
    Case("SparseCategoricalCrossentropy", {"ignore_class": 0}, "sparse", "softmax"),
    Case("CategoricalCrossentropy", {}, "one_hot", "softmax"),
    Case("CategoricalCrossentropy", {"from_logits": True}, "one_hot"),
    Case("CategoricalCrossentropy", {"label_smoothing": 0.1}, "one_hot", "softmax"),
    Case("CategoricalCrossentropy", {"from_logits": True, "label_smoothing": 0.2}, "soft"),
    Case("CategoricalFocalCrossentropy", {}, "one_hot", "softmax"),
    Case("CategoricalFocalCrossentropy", {"from_logits": True, "gamma": 1.5, "alpha": 0.4, "label_smoothing": 0.1}, "one_hot"),
    Case("BinaryCrossentropy", {}, "binary", "sigmoid"),
    Case("BinaryCrossentropy", {"from_logits": True}, "binary"),
    Case("BinaryCrossentropy", {"label_smoothing": 0.1}, "binary", "sigmoid"),
    Case("BinaryCrossentropy", {"from_logits": True, "label_smoothing": 0.2}, "binary"),
    Case("BinaryFocalCrossentropy", {}, "binary", "sigmoid"),
    Case("BinaryFocalCrossentropy", {"apply_class_balancing": True, "alpha": 0.3, "gamma": 3.0}, "binary", "sigmoid"),
    Case("BinaryFocalCrossentropy", {"from_logits": True, "label_smoothing": 0.1, "gamma": 0.5}, "binary"),
    Case("MeanSquaredError"),
    Case("MeanAbsoluteError"),
    Case("MeanAbsolutePercentageError"),
    Case("MeanSquaredLogarithmicError", {}, "positive", "positive"),
    Case("LogCosh"),
    Case("Huber"),
    Case("Huber", {"delta": 0.4}),
    Case("CosineSimilarity"),
    Case("CosineSimilarity", {"axis": 1}),
    Case("Hinge", {}, "binary"),
    Case("Hinge", {}, "signs"),
    Case("SquaredHinge", {}, "binary"),
    Case("SquaredHinge", {}, "signs"),
    Case("CategoricalHinge", {}, "one_hot"),
    Case("KLDivergence", {}, "soft", "softmax"),
    Case("Poisson", {}, "positive", "positive"),
    Case("Dice", {}, "binary", "sigmoid"),
    Case("Dice", {"axis": 1}, "binary", "sigmoid"),
    Case("Tversky", {"alpha": 0.3, "beta": 0.7}, "binary", "sigmoid"),
    Case("Tversky", {"axis": (1,)}, "binary", "sigmoid"),
]
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=str)
AUTOMATIC = {"Crossentropy"}
"""Losses that only choose among others; they have tests of their own."""


def own(case: Case, y: np.ndarray, p: np.ndarray, weight: np.ndarray | None, **more: Any) -> tuple[float, np.ndarray]:
    """Value and gradient (channels last) of Convolt's loss, on tensors with the class axis at index 1."""
    leaf = torch.tensor(p, requires_grad=True)
    targets = losses.targets_to_inside(torch.tensor(y), p.ndim)
    value = case.make(**more)(targets, to_inside(leaf), None if weight is None else torch.tensor(weight))
    value.sum().backward()
    return value.detach().numpy(), leaf.grad.numpy()


def theirs(keras, case: Case, y: np.ndarray, p: np.ndarray, weight: np.ndarray | None, **more: Any) -> tuple[float, np.ndarray]:
    leaf = torch.tensor(p, requires_grad=True)
    predictions = leaf
    if case.labels == "sparse":  # Keras's backward fails on images: "grad_input must be contiguous"
        y, predictions, weight = y.reshape(-1), leaf.reshape(-1, p.shape[-1]), None if weight is None else weight.reshape(-1)
    value = getattr(keras.losses, case.loss)(**case.kwargs, **more)(torch.tensor(y), predictions, weight)
    value.sum().backward()
    return value.detach().numpy(), leaf.grad.numpy()


@EVERY_CASE
@SHAPES
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_value_and_gradient_are_keras_s(keras, case, shape, weighted):
    y, p = case.arrays(shape)
    per_sample = case.make(reduction="none")(y, p)
    weight = None
    if weighted:  # Keras aligns weights with the last axes, so that images need a weight for each pixel
        weight = np.random.default_rng(1).uniform(0, 2, (shape[0], *[1] * (per_sample.ndim - 1))).astype("float32")
        weight = np.broadcast_to(weight[: per_sample.shape[0]], per_sample.shape).copy() if per_sample.ndim else weight
    value, gradient = own(case, y, p, weight)
    expected, expected_gradient = theirs(keras, case, y, p, weight)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-5)


@EVERY_CASE
@pytest.mark.parametrize("reduction", ["sum", "mean", "mean_with_sample_weight", "none", None])
def test_reductions_are_keras_s(keras, case, reduction):
    y, p = case.arrays(FLAT)
    per_sample = case.make(reduction="none")(y, p)
    weight = np.linspace(0, 2, len(per_sample), dtype="float32") if per_sample.ndim else np.linspace(0, 2, 6, dtype="float32")
    for w in (None, weight):
        value, _ = own(case, y, p, w, reduction=reduction)
        expected, _ = theirs(keras, case, y, p, w, reduction=reduction)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


@EVERY_CASE
def test_functions_and_classes_agree_with_keras_s_functions(keras, case):
    function = case.make().get_config()["name"].removesuffix("_loss")
    y, p = case.arrays(FLAT)
    value = getattr(losses, function)(y, p, **case.kwargs)
    np.testing.assert_allclose(value, case.make(reduction="none")(y, p), rtol=1e-6)
    expected = getattr(keras.losses, function)(torch.tensor(y), torch.tensor(p), **case.kwargs)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


@EVERY_CASE
@SHAPES
def test_gradcheck(case, shape):
    y, p = case.arrays(shape, seed=3)
    targets = losses.targets_to_inside(torch.tensor(y), p.ndim)
    leaf = to_inside(torch.tensor(p, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda q: case.make()(targets, q), leaf, atol=1e-7, rtol=1e-5)


@EVERY_CASE
@SHAPES
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_no_host_sync(case, shape, weighted):
    """On the meta device nothing can be read, so that a host sync is an error."""
    y, p = case.arrays(shape)
    y, p = losses.targets_to_inside(torch.tensor(y), p.ndim).to("meta"), to_inside(torch.tensor(p)).to("meta").requires_grad_()
    per_sample = case.make(reduction="none")(y, p)
    value = case.make()(y, p, torch.ones(per_sample.shape[:1] or shape[:1], device="meta") if weighted else None)
    value.sum().backward()
    assert p.grad.shape == p.shape


@EVERY_CASE
def test_arrays_are_channels_last_and_half_precision_is_computed_in_float32(case):
    y, p = case.arrays(IMAGE)
    tensors = losses.targets_to_inside(torch.tensor(y), p.ndim), to_inside(torch.tensor(p))
    np.testing.assert_allclose(case.make()(y, p), case.make()(*tensors), rtol=1e-6)
    half = case.make()(tensors[0], tensors[1].bfloat16())
    assert half.dtype == torch.float32
    np.testing.assert_allclose(half, case.make()(tensors[0], tensors[1].bfloat16().float()), rtol=1e-6)


@EVERY_CASE
def test_names_defaults_and_configuration_are_keras_s(keras, case):
    loss = case.make()
    theirs = inspect.signature(getattr(keras.losses, case.loss))
    assert {n: p.default for n, p in inspect.signature(type(loss)).parameters.items()} == {
        n: p.default for n, p in theirs.parameters.items()}
    assert list(inspect.signature(type(loss)).parameters) == list(theirs.parameters)
    again = losses.get({"class_name": case.loss, "config": loss.get_config()})
    assert again.get_config() == loss.get_config()


def test_every_loss_has_a_case_and_is_registered():
    classes = {c.__name__ for c in _subclasses(Loss) if c.__module__.startswith("convolt.losses.")} - {"FunctionLoss"}
    assert classes == set(losses.registry)
    assert {case.loss for case in CASES} | AUTOMATIC == classes
    assert classes <= set(losses.__all__)


def _subclasses(cls: type) -> set[type]:
    return {cls, *(d for c in cls.__subclasses__() for d in _subclasses(c))} - {Loss}


def test_every_name_of_keras_is_known(keras):
    from keras.src.losses import ALL_OBJECTS_DICT

    missing = set(losses._MISSING) | {"Loss", "LossFunctionWrapper"}
    for name, theirs in ALL_OBJECTS_DICT.items():
        if name not in missing:
            loss = losses.get(name)
            assert name.lower() in {type(loss).__name__.lower(), loss.name, "huber"} or theirs.__name__ == loss.name


def test_missing_names_say_so():
    with pytest.raises(MissingFeatureError, match="'CTC'"):
        losses.CTC  # noqa: B018
    with pytest.raises(MissingFeatureError, match="Did you mean 'huber'"):
        losses.hubert  # noqa: B018
    with pytest.raises(ArgumentError, match="Did you mean 'mse'"):
        losses.get("msee")
    with pytest.raises(ArgumentTypeError, match="a name, a configuration or a Loss object"):
        losses.get(3)


# -- stability -----------------------------------------------------------------------------------------------------

LOGIT_LOSSES = [
    ("SparseCategoricalCrossentropy", "sparse"), ("CategoricalCrossentropy", "one_hot"),
    ("CategoricalFocalCrossentropy", "one_hot"), ("BinaryCrossentropy", "binary"), ("BinaryFocalCrossentropy", "binary"),
]


@pytest.mark.parametrize(("name", "labels"), LOGIT_LOSSES)
@pytest.mark.parametrize("remembered", [True, False])
def test_large_logits_stay_finite(name, labels, remembered):
    y, p = Case(name, {}, labels).arrays((8, 4))
    for scale in (1e4, -1e4):
        x = torch.tensor(np.sign(p) * scale, requires_grad=True)
        activation = sigmoid if labels == "binary" else softmax
        loss = losses.get({"class_name": name, "config": {"from_logits": not remembered}})(y, activation(x) if remembered else x)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(x.grad).all()
        assert name.endswith("FocalCrossentropy") or x.grad.abs().sum() > 0


@pytest.mark.parametrize(("name", "labels"), LOGIT_LOSSES)
@pytest.mark.parametrize("grad", [True, False])
@SHAPES
def test_remembered_logits_are_the_logits(name, labels, grad, shape):
    y, p = Case(name, {}, labels).arrays(shape)
    y = losses.targets_to_inside(torch.tensor(y), p.ndim)
    x = to_inside(torch.tensor(p)).requires_grad_(grad)
    probabilities = (sigmoid if labels == "binary" else softmax)(x)
    probabilities.logits.data.add_(0)  # the attribute is there
    config = {"class_name": name, "config": {"from_logits": True}}
    torch.testing.assert_close(losses.get(name)(y, probabilities), losses.get(config)(y, x), rtol=0, atol=0)


def test_logits_of_another_activation_are_not_used():
    x, y = torch.randn(5, 3), torch.eye(3)[[0, 1, 2, 0, 1]]
    for grad in (True, False):
        x.requires_grad_(grad)
        for loss, activation in (("bce", softmax), ("categorical_crossentropy", sigmoid)):
            on_probabilities = losses.get(loss)(y, activation(x).detach())
            torch.testing.assert_close(losses.get(loss)(y, activation(x)), on_probabilities)


def test_from_logits_after_softmax_warns():
    with pytest.warns(ConvoltWarning, match="a model that ends in softmax"):
        losses.SparseCategoricalCrossentropy(from_logits=True)([1, 0], softmax(torch.randn(2, 3)))


def test_half_precision_logits_are_used_in_float32():
    x = torch.randn(4, 3).bfloat16()
    torch.testing.assert_close(losses.get("sparse_categorical_crossentropy")([0, 1, 2, 0], softmax(x)),
                               torch.nn.functional.cross_entropy(x.float(), torch.tensor([0, 1, 2, 0])))


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
