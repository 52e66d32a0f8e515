"""Reshaping, merging, activation and preprocessing layers: views, symbolic calls, adapt, errors, repr."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from convolt import initializers, layers
from convolt.errors import ArgumentError, ArgumentTypeError, DataError, ShapeError, StateError
from convolt.layers import Input, Normalization, Rescaling, Softmax


def channels_last(*shape: int) -> torch.Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


# -- reshaping ---------------------------------------------------------------------------------------------------------


def test_flatten_is_in_height_width_channels_order_and_copies_nothing():
    x = channels_last(2, 3, 4, 5)
    y = layers.Flatten()(x)
    assert torch.equal(y, x.permute(0, 2, 3, 1).reshape(2, 60))
    assert y.data_ptr() == x.data_ptr()
    assert not torch.equal(y, torch.nn.Flatten()(x)), "PyTorch's order is another"


def test_reshape_and_permute_copy_nothing():
    x = channels_last(2, 6, 4, 5)
    for layer in (layers.Reshape((2, 2, 30)), layers.Reshape((-1, 5)), layers.Permute((3, 1, 2))):
        assert layer(x).data_ptr() == x.data_ptr(), layer
    assert layers.Reshape((4, 5, 6))(layers.Flatten()(x)).is_contiguous(memory_format=torch.channels_last)


def test_reshape_serves_batches_and_lengths_of_any_size():
    layer = layers.Reshape((-1, 6))
    assert layer.compute_output_shape((None, None, 3)) == (None, None, 6)
    assert layer(np.zeros((2, 4, 3), "float32")).shape == (2, 2, 6)
    assert layer(np.zeros((3, 8, 3), "float32")).shape == (3, 4, 6)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: layers.Reshape((-1, -1)), "-1 at most once"),
    (lambda: layers.Reshape((0, 2)), "whole numbers from 1"),
    (lambda: layers.Permute((0, 1)), "an order of the axes 1, 2"),
    (lambda: layers.Permute((1, 3)), "an order of the axes 1, 2"),
    (lambda: layers.Flatten(data_format="channels_first"), "channels_last"),
])
def test_reshaping_argument_errors(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize(("layer", "message"), [
    (layers.Reshape((5, 5)), "a shape of 24 values per sample"),
    (layers.Reshape((-1, 5)), "a shape of 24 values per sample"),
    (layers.Permute((2, 1)), "3 axes to reorder"),
])
def test_reshaping_shape_errors(layer, message):
    with pytest.raises(ShapeError, match=message):
        layer(Input((2, 3, 4)))


# -- merging -----------------------------------------------------------------------------------------------------------


FUNCTIONS = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "maximum": np.maximum, "minimum": np.minimum,
             "average": lambda a, b: (a + b) / 2, "concatenate": lambda a, b: np.concatenate([a, b], -1),
             "dot": lambda a, b: np.einsum("nhwc,nxyc->nhwxy", a, b)}


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_functional_forms(name):
    a, b = np.random.default_rng(0).normal(size=(2, 2, 3, 2, 4)).astype("float32")
    function = getattr(layers, name)
    np.testing.assert_allclose(function([a, b]), FUNCTIONS[name](a, b), rtol=1e-5, atol=1e-6)
    symbolic = function([Input((3, 2, 4)), Input((3, 2, 4))], name=f"my_{name}")
    assert symbolic.shape == (None, *FUNCTIONS[name](a, b).shape[1:]) and symbolic.node.layer.name == f"my_{name}"


def test_operators_on_symbolic_tensors():
    a, b = Input((2, 3)), Input((2, 3))
    assert [(x.node.layer.__class__.__name__, x.shape) for x in (a + b, a - b, a * b, a * 2, a + 1, a - 1, a / 2)] == [
        *((name, (None, 2, 3)) for name in ("Add", "Subtract", "Multiply", "Rescaling", "Rescaling", "Rescaling", "Rescaling"))]


@pytest.mark.parametrize(("layer", "shapes", "message"), [
    (layers.Add(), [(2, 3), (2, 4)], "shapes that can be broadcast"),
    (layers.Add(), [(2, 3), (3, 3)], "the same batch size"),
    (layers.Subtract(), [(2, 3)] * 3, "got 3 inputs; expected one list of 2 inputs"),
    (layers.Concatenate(), [(2, 3, 1), (2, 4, 1)], "the same shape but for axis -1"),
    (layers.Concatenate(), [(2, 3), (2, 3, 1)], "the same shape but for axis -1"),
    (layers.Concatenate(axis=3), [(2, 3), (2, 3)], "-2 to 1"),
    (layers.Dot(axes=1), [(2, 3), (2, 4)], "the same size of axis 1 and axis 1"),
])
def test_merging_errors(layer, shapes, message):
    with pytest.raises(ShapeError, match=message):
        layer([np.zeros(shape, "float32") for shape in shapes])


def test_merging_needs_one_list():
    a = np.zeros((2, 3), "float32")
    for arguments in ((a, a), (a,), ([],)):
        with pytest.raises(ShapeError, match=r"Call it as layer\(\[a, b\]\)"):
            layers.Add()(*arguments)
    with pytest.raises(ArgumentError, match="not 0, which is the batch"):
        layers.Dot(axes=(0, 1))


def test_merging_keeps_channels_last_memory():
    a, b = channels_last(2, 3, 4, 5), channels_last(2, 3, 4, 5)
    for layer in (layers.Add(), layers.Multiply(), layers.Concatenate()):
        assert layer([a, b]).is_contiguous(memory_format=torch.channels_last)


def test_merged_gradients_are_exact_for_one_input():
    x = torch.randn(2, 3, requires_grad=True)
    layers.Add()([x]).sum().backward()
    assert torch.equal(x.grad, torch.ones(2, 3))


# -- activations -------------------------------------------------------------------------------------------------------


def test_softmax_with_a_mask():
    x = torch.tensor([[1.0, 2.0, 5.0], [1.0, 1.0, 1.0]])
    y = Softmax()(x, mask=torch.tensor([[True, True, False], [False, False, False]]))
    torch.testing.assert_close(y, torch.tensor([[0.26894143, 0.73105857, 0.0], [0.0, 0.0, 0.0]]))
    half = Softmax()(x.half(), mask=torch.tensor([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(half[0], torch.tensor([0.26894143, 0.73105857, 0.0]).half(), rtol=1e-3, atol=0)


def test_softmax_remembers_logits():
    x = torch.randn(2, 3, 4, 4)
    assert Softmax()(x).logits is x
    assert layers.Activation("softmax")(x).logits is x
    assert not hasattr(Softmax(axis=1)(x), "logits")


def test_prelu_weights_are_channels_last():
    layer = layers.PReLU(alpha_initializer="ones")
    layer.ensure_built((None, 4, 5, 3))
    assert layer.get_weights()[0].shape == (4, 5, 3)
    with pytest.raises(ShapeError, match=r"shared_axes=\[1, 2\]"):
        layers.PReLU().ensure_built((None, None, None, 3))
    with pytest.raises(ArgumentError, match="not 0, which is the batch"):
        layers.PReLU(shared_axes=[0]).ensure_built((None, 3))
    per_channel = layers.PReLU(shared_axes=[1, 2])
    per_channel.ensure_built((None, None, None, 3))
    assert per_channel.weight.shape == (1, 1, 3)


@pytest.mark.parametrize("make", [lambda: layers.ReLU(max_value=-1), lambda: layers.ReLU(negative_slope=None),
                                  lambda: layers.ReLU(threshold=-1), lambda: layers.LeakyReLU(negative_slope=-0.1)])
def test_activation_argument_errors(make):
    with pytest.raises(ArgumentError, match="a number from 0"):
        make()


def test_glu_halves_the_channels():
    assert layers.Activation("glu")(Input((5, 6))).shape == (None, 5, 3)


# -- preprocessing -----------------------------------------------------------------------------------------------------


def test_rescaling_makes_floats_of_bytes():
    x = np.arange(24, dtype="uint8").reshape(2, 2, 2, 3)
    np.testing.assert_allclose(Rescaling(1 / 255)(x), x / 255, rtol=1e-6)
    y = Rescaling(2.0, offset=1.0)(torch.from_numpy(x).permute(0, 3, 1, 2))
    assert y.dtype == torch.float32 and y.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ShapeError, match="as many as the input"):
        Rescaling([1.0, 2.0])(x)
    with pytest.raises(ArgumentError, match="a finite number"):
        Rescaling(float("nan"))


DATA = np.random.default_rng(3).normal([1.0, -20.0, 300.0], [1.0, 5.0, 0.1], (2500, 2, 3)).astype("float32")


@pytest.mark.parametrize("data", [DATA, torch.from_numpy(DATA).movedim(-1, 1), [DATA[:1000], DATA[1000:1003], DATA[1003:]],
                                  ((batch, None) for batch in np.split(DATA, 5)), (DATA, None)],
                         ids=["array", "tensor", "list", "generator", "tuple"])
def test_adapt(data):
    layer = Normalization()
    layer.adapt(data)
    exact = DATA.astype("float64")
    np.testing.assert_allclose(layer.get_weights()[0], exact.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(layer.get_weights()[1], exact.var((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(layer(DATA).std((0, 1)), 1, rtol=1e-3)
    assert layer.mean.shape == layer.variance.shape == (1, 1, 3)


@pytest.mark.parametrize("axis", [None, -1, (1, 2), (0, 1)], ids=str)
def test_adapt_equals_keras_definition(axis):
    data = DATA[:8]
    layer = Normalization(axis=axis)
    layer.adapt(data)
    reduced = tuple(i for i in range(3) if i not in [a % 3 for a in layer.axis])
    np.testing.assert_allclose(layer.get_weights()[0], data.astype("float64").mean(reduced), rtol=1e-5)
    np.testing.assert_allclose(layer.get_weights()[1], data.astype("float64").var(reduced), rtol=1e-4)


def test_adapt_again_forgets_and_invert_undoes():
    layer, back = Normalization(), Normalization(invert=True)
    for data in (DATA * 5, DATA):
        layer.adapt(data)
    back.adapt(DATA)
    np.testing.assert_allclose(back(layer(DATA)), DATA, rtol=1e-4, atol=1e-4)


def test_adapt_on_bytes():
    data = np.random.default_rng(0).integers(0, 256, (3000, 2, 2, 1), dtype="uint8")
    layer = Normalization()
    layer.adapt(data)
    np.testing.assert_allclose(layer.get_weights()[0], data.mean(), rtol=1e-6)


@pytest.mark.parametrize(("data", "error", "message"), [
    (np.zeros((0, 3)), DataError, "at least one sample"),
    ([], DataError, "at least one sample"),
    (np.array([[1.0, np.nan]]), DataError, "NaN or infinity"),
    ("text", ArgumentTypeError, "an array, a tensor or an iterable of batches"),
    ([[1.0, 2.0]], ArgumentTypeError, "batches of list"),
    ([np.zeros((2, 3)), np.zeros((2, 4))], ShapeError, r"shape \(None, 3\)"),
])
def test_adapt_errors(data, error, message):
    with pytest.raises(error, match=message):
        Normalization().adapt(data)


def test_normalization_errors():
    with pytest.raises(StateError, match="Leave them out"):
        Normalization(mean=0.0, variance=1.0).adapt(DATA)
    with pytest.raises(ArgumentError, match="both or none"):
        Normalization(mean=0.0)
    with pytest.raises(ArgumentError, match="the same shape"):
        Normalization(mean=[0.0, 1.0], variance=1.0)
    with pytest.raises(ShapeError, match=r"one that fits \(3,\)"):
        Normalization(mean=[0.0, 1.0], variance=[1.0, 1.0])(DATA)
    with pytest.raises(ShapeError, match="a known size of axis 1"):
        Normalization()(Input((None,)))


def test_given_statistics_are_no_weights():
    layer = Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 4.0, 9.0])
    layer(DATA)
    assert layer.get_weights() == [] and layer.state_dict() == {}
    assert layer.get_config()["mean"] == [1.0, 2.0, 3.0]


# -- repr --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "text"), [
    (layers.Dense(3, activation="softmax"), "Dense(units=3, activation='softmax')"),
    (layers.Dense(3, kernel_initializer=initializers.HeNormal(seed=3), bias_initializer="ones"),
     "Dense(units=3, kernel_initializer=HeNormal(seed=3), bias_initializer='ones')"),
    (layers.Dense(3, kernel_regularizer="l2", use_bias=False, trainable=False, input_shape=(4,)),
     "Dense(units=3, use_bias=False, kernel_regularizer='l2', trainable=False, input_shape=(4,))"),
    (layers.BatchNormalization(momentum=0.9), "BatchNormalization(momentum=0.9)"),
    (layers.Flatten(), "Flatten()"),
    (layers.PReLU(), "PReLU()"),
    (layers.Activation("relu"), "Activation(activation='relu')"),
    (layers.SpatialDropout3D(0.5), "SpatialDropout3D(rate=0.5)"),
    (layers.Normalization(), "Normalization()"),
    (layers.Conv2D(8, 3), "Conv2D(filters=8, kernel_size=(3, 3))"),
], ids=str)
def test_repr_shows_what_differs_from_the_defaults(layer, text):
    assert repr(layer) == text
