"""Batch normalization's running statistics, freezing and errors; what the other normalizations refuse."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from convolt.compiler.fused import Norm
from convolt.errors import ArgumentError, ShapeError
from convolt.layers import BatchNormalization, GroupNormalization, LayerNormalization


@pytest.fixture
def x():
    return torch.randn(4, 3, 2, 5, generator=torch.Generator().manual_seed(0)) * 2 + 1  # (N, C, H, W)


def test_running_statistics_follow_the_written_recurrence(x):
    layer = BatchNormalization(momentum=0.9, bias_correction=False)
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
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    back = torch.nn.BatchNorm2d(3, eps=1e-3)
    back.load_state_dict(ours.state_dict())
    torch.testing.assert_close(back.eval()(x), ours.eval()(x))


# -- bias correction ---------------------------------------------------------------------------------------------------


def train_on(layer, batches):
    layer.train()
    for batch in batches:
        layer(batch)
    return layer


@pytest.fixture
def batches(x):
    return [x * (step + 1) - step for step in range(7)]


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9, 0.99, 0.9999])
def test_corrected_statistics_are_the_weighted_mean_of_the_batches_alone(batches, momentum):
    layer = BatchNormalization(momentum=momentum)
    layer.ensure_built((None, 2, 5, 3))
    layer.double()
    for t, batch in enumerate(batches, start=1):
        train_on(layer, [batch.double()])
        weights = torch.tensor([momentum ** (t - i) for i in range(1, t + 1)], dtype=torch.float64)
        seen = torch.stack([b.double().mean((0, 2, 3)) for b in batches[:t]])
        squared = torch.stack([b.double().var((0, 2, 3), correction=0) for b in batches[:t]])
        torch.testing.assert_close(layer.running_mean, weights @ seen / weights.sum(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(layer.running_var, weights @ squared / weights.sum(), rtol=1e-6, atol=1e-6)


def test_the_correction_is_that_of_adam(batches):
    """Keras's averages divided by 1 - momentum^t, the variance's start of one taken out first."""
    corrected = train_on(BatchNormalization(momentum=0.9), batches)
    plain = train_on(BatchNormalization(momentum=0.9, bias_correction=False), batches)
    left = 0.9 ** len(batches)
    torch.testing.assert_close(corrected.running_mean, plain.running_mean / (1 - left))
    torch.testing.assert_close(corrected.running_var, (plain.running_var - left) / (1 - left))


def test_after_many_batches_both_are_the_same(x):
    made = [BatchNormalization(momentum=0.9, bias_correction=on) for on in (True, False)]
    for layer in made:
        train_on(layer, [x + step % 5 for step in range(300)])
    torch.testing.assert_close(made[0].running_mean, made[1].running_mean)
    torch.testing.assert_close(made[0].running_var, made[1].running_var)


def test_momentum_one_keeps_the_initial_values(batches):
    layer = train_on(BatchNormalization(momentum=1.0), batches)
    assert layer.running_mean.abs().sum() == 0 and (layer.running_var == 1).all()


def test_the_count_is_no_weight_but_is_saved(batches):
    layer = train_on(BatchNormalization(), batches)
    assert len(layer.get_weights()) == len(layer.weights) == 4 and layer.count_params() == 12
    assert len(layer.non_trainable_weights) == 2
    assert int(layer.state_dict()["num_batches_tracked"]) == len(batches)
    assert list(BatchNormalization(bias_correction=False).state_dict()) == []
    resumed = BatchNormalization()
    resumed.ensure_built((None, 2, 5, 3))
    resumed.load_state_dict(layer.state_dict())
    for each in (layer, resumed):
        train_on(each, batches[:2])
    assert torch.equal(layer.running_mean, resumed.running_mean), "a resumed training goes on as if it had not stopped"


def test_weights_that_were_set_are_not_forgotten_at_the_first_batch(batches):
    trained = train_on(BatchNormalization(), batches)
    tuned = BatchNormalization()
    tuned.ensure_built((None, 2, 5, 3))
    tuned.set_weights(trained.get_weights())
    train_on(tuned, [batches[0] + 100])
    torch.testing.assert_close(tuned.running_mean, trained.running_mean.lerp((batches[0] + 100).mean((0, 2, 3)), 0.01))


def test_weights_that_are_set_back_to_the_start_begin_anew(batches):
    layer = BatchNormalization()
    layer.ensure_built((None, 2, 5, 3))
    start = layer.get_weights()
    train_on(layer, batches)
    layer.set_weights(start)
    train_on(layer, batches[:1])
    torch.testing.assert_close(layer.running_mean, batches[0].mean((0, 2, 3)))


def test_initial_values_of_ones_own_are_kept(batches):
    layer = train_on(BatchNormalization(moving_mean_initializer="ones"), batches[:1])
    torch.testing.assert_close(layer.running_mean, 0.99 + 0.01 * batches[0].mean((0, 2, 3)))


@pytest.mark.parametrize("then", ["relu", "add_relu", ""])
@pytest.mark.parametrize("correction", [True, False])
def test_fused_forms_move_the_same_statistics(batches, then, correction):
    """The fused module shares the layer's buffers; the kernel gets the corrected share."""
    alone, inside = (BatchNormalization(momentum=0.9, bias_correction=correction) for _ in range(2))
    for layer in (alone, inside):
        layer.ensure_built((None, 2, 5, 3))
        layer.train()
    fused = Norm(inside, then).train()
    for batch in batches:
        batch = batch.contiguous(memory_format=torch.channels_last)
        expected = alone(batch) + (batch if then == "add_relu" else 0)
        got = fused(batch, batch) if then == "add_relu" else fused(batch)
        torch.testing.assert_close(got, expected if then == "" else expected.relu(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(inside.running_mean, alone.running_mean)
        torch.testing.assert_close(inside.running_var, alone.running_var)
    assert not correction or int(inside.num_batches_tracked) == len(batches)
    fused.eval()(batches[0], *([batches[0]] if then == "add_relu" else []))
    assert not correction or int(inside.num_batches_tracked) == len(batches), "inference counts nothing"


def test_a_frozen_layer_counts_nothing(x):
    layer = BatchNormalization(trainable=False).train()
    layer(x)
    layer.eval()(x)
    assert int(layer.num_batches_tracked) == 0


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
    layer(x + 1)
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
