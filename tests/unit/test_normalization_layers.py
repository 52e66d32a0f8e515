"""Batch normalization's running statistics, freezing and errors; what the other normalizations refuse."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from convolt.errors import ArgumentError, ShapeError
from convolt.layers import BatchNormalization, GroupNormalization, LayerNormalization


@pytest.fixture
def x():
    return torch.randn(4, 3, 2, 5, generator=torch.Generator().manual_seed(0)) * 2 + 1  # (N, C, H, W)


def test_running_statistics_follow_the_written_recurrence(x):
    layer = BatchNormalization(momentum=0.9)
    mean, variance = torch.zeros(3), torch.ones(3)
    for step in range(5):
        batch = x * (step + 1)
        layer.train()(batch)
        mean = mean * 0.9 + batch.mean((0, 2, 3)) * 0.1
        variance = variance * 0.9 + batch.var((0, 2, 3), correction=0) * 0.1
    torch.testing.assert_close(layer.running_mean, mean)
    torch.testing.assert_close(layer.running_var, variance)


def test_running_variance_is_biased_and_pytorchs_is_not(x):
    ours, theirs = BatchNormalization(momentum=0.0), torch.nn.BatchNorm2d(3, eps=1e-3, momentum=1.0)
    torch.testing.assert_close(ours.train()(x), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var * 39 / 40)
    assert not torch.allclose(ours.running_var, theirs.running_var)


def test_weights_go_to_pytorch_and_back(x):
    ours, theirs = BatchNormalization(), torch.nn.BatchNorm2d(3, eps=1e-3)
    theirs(x * 3)
    ours.ensure_built((None, 2, 5, 3))
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k != "num_batches_tracked"})
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_calling_twice_before_backward(x):
    layer = BatchNormalization().train()
    (layer(x.clone().requires_grad_()).square().sum() + layer(x * 2).square().sum()).backward()
    assert layer.weight.grad.isfinite().all()


def test_frozen_layers_run_in_inference_mode(x):
    layer = BatchNormalization()
    layer.train()(x)
    before, expected = copy.deepcopy(layer.state_dict()), layer.eval()(x)
    layer.trainable = False
    torch.testing.assert_close(layer.train()(x), expected)
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())
    layer.trainable = True
    layer(x)
    assert not torch.equal(before["running_mean"], layer.running_mean)


def test_statistics_do_not_move_in_inference(x):
    layer = BatchNormalization().eval()
    layer(x)
    assert layer.running_mean.abs().sum() == 0


def test_memory_stays_channels_last(x):
    for layer in (BatchNormalization(), GroupNormalization(3), LayerNormalization(), LayerNormalization(axis=(1, 2, 3))):
        y = layer.train()(x.contiguous(memory_format=torch.channels_last))
        assert y.is_contiguous(memory_format=torch.channels_last), layer


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1), (0, 3)], ids=str)
def test_one_sample_has_no_variance(shape):
    layer = BatchNormalization(name="norm")
    with pytest.raises(ShapeError, match=r"'norm' in training: got [01] value per channel .*larger batch"):
        layer.train()(torch.zeros(shape))
    assert layer.eval()(torch.zeros(1, 3)).shape == (1, 3)
    layer.trainable = False
    assert layer.train()(torch.zeros(1, 3)).shape == (1, 3)


def test_one_image_is_enough_where_it_has_pixels():
    assert BatchNormalization().train()(torch.randn(1, 3, 2, 2)).isfinite().all()


def test_large_means_do_not_cost_digits():
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64) + 100
    layer = GroupNormalization(4, epsilon=1e-3)
    got = layer(x.float().contiguous(memory_format=torch.channels_last)).double()
    torch.testing.assert_close(got, torch.group_norm(x.float().double(), 4, eps=1e-3), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: BatchNormalization(momentum=1.5), "a number from 0 to 1"),
    (lambda: BatchNormalization(epsilon=-1), "a number from 0"),
    (lambda: BatchNormalization(synchronized=True), "False"),
    (lambda: LayerNormalization(axis=()), "a whole number or several"),
    (lambda: LayerNormalization(axis="1"), "a whole number or several"),
    (lambda: GroupNormalization(groups=0), "a whole number from 1"),
])
def test_argument_errors(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize(("layer", "shape", "message"), [
    (BatchNormalization(), (None,), "two axes or more"),
    (BatchNormalization(axis=0), (None, 3), "other than the batch"),
    (BatchNormalization(axis=2), (None, 3), "-2 to 1"),
    (BatchNormalization(), (None, 3, None), "a known size of axis -1"),
    (LayerNormalization(axis=(1, 2)), (None, None, 3), "a known size of axis 1"),
    (LayerNormalization(axis=4), (None, 2, 3), "-3 to 2"),
    (GroupNormalization(4), (None, 6), r"a divisor of 6, or -1. Divisors: \[1, 2, 3, 6\]"),
    (GroupNormalization(axis=0), (None, 32), "axis"),
])
def test_shape_errors(layer, shape, message):
    with pytest.raises(ShapeError, match=message):
        layer.ensure_built(shape)


def test_arrays_in_and_out():
    x = np.random.default_rng(0).normal(5, 3, (8, 4, 4, 3)).astype("float32")
    y = BatchNormalization()(x, training=True)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1, atol=1e-3)
