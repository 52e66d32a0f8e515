"""Positions, the class token and spectral normalization, where the sweep of layers does not reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import convolt
from convolt import layers
from convolt.errors import ArgumentError, ArgumentTypeError, ShapeError
from convolt.layout import to_outside
from convolt.masks import attach, mask_of


def test_learned_positions_start_anywhere_and_are_no_copy():
    layer = layers.PositionEmbedding(10)
    x = torch.randn(2, 3, 4)
    y = to_outside(layer(x, start_index=5))
    assert torch.equal(y[0], layer.weight[5:9]) and torch.equal(y[1], y[0])
    assert y.untyped_storage().data_ptr() == layer.weight.untyped_storage().data_ptr()


def test_without_gradients_the_output_needs_none():
    layer, x = layers.PositionEmbedding(4), torch.randn(2, 3, 4)
    assert layer(x).requires_grad
    with torch.no_grad():
        assert not layer(x).requires_grad


def test_sinusoids_are_those_of_the_paper():
    steps, features = 50, 8
    got = layers.SinePositionEncoding()(np.zeros((1, steps, features), "float32"))[0]
    for position in (0, 1, 37):
        for i in range(features // 2):
            angle = position / 10000 ** (2 * i / features)
            np.testing.assert_allclose(got[position, [2 * i, 2 * i + 1]], [np.sin(angle), np.cos(angle)], atol=1e-5)
    later = layers.SinePositionEncoding()(torch.zeros(1, features, 10), start_index=30)
    np.testing.assert_allclose(to_outside(later)[0], got[30:40], atol=1e-6)


def test_encodings_in_a_model():
    x = convolt.Input((6, 4))
    y = x + layers.PositionEmbedding(6)(x) + layers.SinePositionEncoding()(x)
    model = convolt.Model(x, layers.ClassToken()(y))
    assert model.outputs[0].shape == (None, 7, 4)
    assert model.predict(np.zeros((3, 6, 4), "float32"), verbose=0).shape == (3, 7, 4)


def test_the_class_token_is_never_masked():
    x = attach(torch.randn(2, 3, 4), torch.tensor([[True, True, False, False], [True, False, False, False]]))
    assert mask_of(layers.ClassToken()(x)).sum(1).tolist() == [3, 2]


def test_steps_without_positions_are_an_error():
    layer = layers.PositionEmbedding(4, name="places")
    with pytest.raises(ShapeError, match=r"'places': got positions 0 to 5; expected 0 to 3.*sequence_length=6"):
        layer(torch.ones(2, 3, 6))
    with pytest.raises(ShapeError, match="got positions -1"):
        layer(torch.ones(2, 3, 2), start_index=-1)


@pytest.mark.parametrize(("work", "kind", "message"), [
    (lambda: layers.PositionEmbedding(0), ArgumentError, "sequence_length"),
    (lambda: layers.SinePositionEncoding(0), ArgumentError, r"max_wavelength\): got 0; expected a number above 0"),
    (lambda: layers.PositionEmbedding(4)(torch.ones(2, 3)), ShapeError, r"\(batch, steps, features\)"),
    (lambda: layers.ClassToken()(torch.ones(2, 3, 4, 5)), ShapeError, r"expected \(batch, steps, features\)"),
    (lambda: layers.SpectralNormalization("dense"), ArgumentTypeError, "a layer object"),
    (lambda: layers.SpectralNormalization(layers.ReLU())(torch.ones(2, 3)), ArgumentTypeError, "a layer with one kernel"),
    (lambda: layers.SpectralNormalization(layers.Dense(2), power_iterations=0), ArgumentError, "power_iterations"),
])
def test_errors(work, kind, message):
    with pytest.raises(kind, match=message):
        work()


# -- spectral normalization --------------------------------------------------------------------------------------------


def largest(layer) -> float:
    kernel = layer.get_weights()[0]
    return float(np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0])


@pytest.mark.parametrize(("inside", "shape"), [(lambda: layers.Dense(5), (4, 7)), (lambda: layers.Conv2D(6, 3), (2, 3, 5, 5))])
def test_the_largest_singular_value_becomes_one(inside, shape):
    layer = layers.SpectralNormalization(inside(), power_iterations=100).train()
    layer(torch.randn(shape))
    assert largest(layer.layer) == pytest.approx(1.0, abs=1e-3)


def test_it_stays_one_over_a_training():
    model = convolt.Sequential([layers.Input((8,)), layers.SpectralNormalization(layers.Dense(4)), layers.Dense(1)])
    model.compile(convolt.optimizers.Adam(0.05), "mse", device="cpu")
    rng = np.random.default_rng(0)
    model.fit(rng.normal(size=(256, 8)).astype("float32"), rng.normal(size=(256, 1)).astype("float32"), epochs=5, verbose=0)
    layer = model.layers[0].train()
    layer(torch.zeros(1, 8))
    assert largest(layer.layer) == pytest.approx(1.0, abs=0.05)


def test_a_kernel_of_zeros_stays():
    layer = layers.SpectralNormalization(layers.Dense(3, kernel_initializer="zeros")).train()
    layer.ensure_built((None, 4))
    before = layer.vector_u.clone()
    assert torch.equal(layer(torch.ones(2, 4)), torch.zeros(2, 3)) and torch.equal(layer.vector_u, before)


def test_inference_changes_nothing():
    layer = layers.SpectralNormalization(layers.Dense(3)).eval()
    layer(torch.ones(2, 4))
    before = layer.get_weights()
    layer(torch.ones(2, 4))
    assert all(np.array_equal(a, b) for a, b in zip(before, layer.get_weights(), strict=True))


def test_choosing_a_plan_leaves_the_kernel_alone():
    from convolt.compiler.measure import Probe

    layer = layers.SpectralNormalization(layers.Dense(3))
    layer.ensure_built((None, 4))
    before = [w.copy() for w in layer.get_weights()]
    x = torch.randn(5, 4)
    probe = Probe(layer, lambda module, dtype: module(x.to(dtype)).square().sum(), torch.device("cpu"))
    probe.gradients(layer, torch.float32)
    probe.reference()
    assert all(np.array_equal(a, b) for a, b in zip(before, layer.get_weights(), strict=True))
