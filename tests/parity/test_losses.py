"""Every loss against Keras: values and gradients, weights, reductions, shapes; gradcheck; large logits."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

from convolt import losses
from convolt.activations import sigmoid, softmax
from convolt.errors import ArgumentError, ArgumentTypeError, ConvoltWarning, MissingFeatureError
from convolt.layout import to_inside
from convolt.losses.base import Loss
from tests.parity.loss_cases import CASES, OWN_CASES, SHAPES, Case


def with_shapes(cases: list[Case]) -> list[Any]:
    return [pytest.param(case, shape, id=f"{case}-{'x'.join(map(str, shape))}") for case in cases for shape in case.shapes]


OF_KERAS = pytest.mark.parametrize("case", CASES, ids=str)
EVERY_CASE = pytest.mark.parametrize("case", CASES + OWN_CASES, ids=str)
OF_KERAS_IN_SHAPES = pytest.mark.parametrize(("case", "shape"), with_shapes(CASES))
EVERY_CASE_IN_SHAPES = pytest.mark.parametrize(("case", "shape"), with_shapes(CASES + OWN_CASES))
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


@OF_KERAS_IN_SHAPES
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


@OF_KERAS
@pytest.mark.parametrize("reduction", ["sum", "mean", "mean_with_sample_weight", "none", None])
def test_reductions_are_keras_s(keras, case, reduction):
    y, p = case.arrays(case.shapes[0])
    per_sample = case.make(reduction="none")(y, p)
    weight = np.linspace(0, 2, len(per_sample), dtype="float32") if per_sample.ndim else np.linspace(0, 2, 6, dtype="float32")
    for w in (None, weight):
        value, _ = own(case, y, p, w, reduction=reduction)
        expected, _ = theirs(keras, case, y, p, w, reduction=reduction)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


@OF_KERAS
def test_functions_and_classes_agree_with_keras_s_functions(keras, case):
    function = case.make().get_config()["name"].removesuffix("_loss")
    y, p = case.arrays(case.shapes[0])
    value = getattr(losses, function)(y, p, **case.kwargs)
    np.testing.assert_allclose(value, case.make(reduction="none")(y, p), rtol=1e-6)
    expected = getattr(keras.losses, function)(torch.tensor(y), torch.tensor(p), **case.kwargs)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


@EVERY_CASE_IN_SHAPES
def test_gradcheck(case, shape):
    y, p = case.arrays(shape, seed=3)
    targets = losses.targets_to_inside(torch.tensor(y), p.ndim)
    leaf = to_inside(torch.tensor(p, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda q: case.make()(targets, q), leaf, atol=1e-7, rtol=1e-5)


@EVERY_CASE_IN_SHAPES
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
    y, p = case.arrays(case.shapes[-1])
    tensors = losses.targets_to_inside(torch.tensor(y), p.ndim), to_inside(torch.tensor(p))
    np.testing.assert_allclose(case.make()(y, p), case.make()(*tensors), rtol=1e-6)
    half = case.make()(tensors[0], tensors[1].bfloat16())
    assert half.dtype == torch.float32
    np.testing.assert_allclose(half, case.make()(tensors[0], tensors[1].bfloat16().float()), rtol=1e-6)


@OF_KERAS
def test_names_defaults_and_configuration_are_keras_s(keras, case):
    loss = case.make()
    theirs = inspect.signature(getattr(keras.losses, case.loss))
    assert {n: p.default for n, p in inspect.signature(type(loss)).parameters.items()} == {
        n: p.default for n, p in theirs.parameters.items()}
    assert list(inspect.signature(type(loss)).parameters) == list(theirs.parameters)
    again = losses.get({"class_name": case.loss, "config": loss.get_config()})
    assert again.get_config() == loss.get_config()


def test_every_loss_has_a_case_and_is_registered():
    classes = {c.__name__ for c in _subclasses(Loss) if c.__module__.startswith("convolt.losses.")} - {"FunctionLoss", "_OfEmbeddings"}
    assert classes == set(losses.registry)
    assert {case.loss for case in CASES + OWN_CASES} | AUTOMATIC == classes
    assert classes <= set(losses.__all__)


def _subclasses(cls: type) -> set[type]:
    return {cls, *(d for c in cls.__subclasses__() for d in _subclasses(c))} - {Loss}


def test_every_name_of_keras_is_known(keras):
    from keras.src.losses import ALL_OBJECTS_DICT

    missing = {"Loss", "LossFunctionWrapper"}
    for name, theirs in ALL_OBJECTS_DICT.items():
        if name not in missing:
            loss = losses.get(name)
            assert name.lower() in {type(loss).__name__.lower(), loss.name, "huber"} or theirs.__name__ == loss.name


def test_misspelt_names_get_the_nearest():
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
