"""Dropout and noise: statistics, seeds, masks that are shared along axes, errors."""

from __future__ import annotations

import copy

import pytest
import torch

from convolt.errors import ArgumentError, ShapeError
from convolt.layers import Dropout, GaussianNoise, SpatialDropout1D, SpatialDropout2D, SpatialDropout3D
from convolt.layout import to_inside

MAKERS = [lambda seed=None: Dropout(0.3, seed=seed), lambda seed=None: Dropout(0.3, noise_shape=(None, None, 1, None), seed=seed),
          lambda seed=None: SpatialDropout2D(0.3, seed=seed), lambda seed=None: GaussianNoise(0.3, seed=seed)]
EVERY = pytest.mark.parametrize("make", MAKERS, ids=["dropout", "noise_shape", "spatial", "gaussian"])


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def ones(*shape: int) -> torch.Tensor:
    return to_inside(torch.ones(shape))


@EVERY
def test_inference_changes_nothing(make):
    x = ones(2, 4, 4, 8)
    assert make().eval()(x) is x


@EVERY
def test_the_global_seed_decides_without_a_seed(make):
    x, layer = ones(2, 4, 4, 8), make().train()
    torch.manual_seed(1)
    first, second = layer(x), layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first) and not torch.equal(first, second)


@EVERY
def test_a_seed_of_its_own(make):
    x, layer = ones(2, 4, 4, 8), make(seed=4).train()
    state = torch.get_rng_state()
    first, second = layer(x), layer(x)
    assert torch.equal(state, torch.get_rng_state()), "the global generator is left alone"
    assert not torch.equal(first, second)
    again = make(seed=4).train()
    assert torch.equal(again(x), first) and torch.equal(again(x), second)
    assert not torch.equal(make(seed=5).train()(x), first)
    assert torch.equal(copy.deepcopy(layer)(x), first), "a copy starts from the seed"


@EVERY
def test_memory_stays_channels_last_and_does_not_decide(make):
    x = torch.randn(2, 4, 5, 6)
    results = []
    for arranged in (x, x.contiguous(memory_format=torch.channels_last)):
        torch.manual_seed(3)
        results.append(make().train()(arranged))
    assert torch.equal(*results)
    assert results[1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_dropout_keeps_the_mean(rate, seed):
    y = Dropout(rate, seed=seed).train()(torch.ones(200, 500))
    assert (y == 0).float().mean().item() == pytest.approx(rate, abs=0.01)
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - rate)))


def test_rates_at_the_ends():
    x = torch.randn(3, 4, requires_grad=True)
    assert torch.equal(Dropout(0).train()(x), x)
    for layer in (Dropout(1), Dropout(1, seed=1)):
        y = layer.train()(x)
        assert y.abs().sum() == 0 and y.requires_grad


def test_gradient_has_the_mask_of_the_output():
    for layer in (Dropout(0.5), Dropout(0.5, seed=1), SpatialDropout2D(0.5)):
        x = torch.ones(4, 3, 4, 4, requires_grad=True)
        y = layer.train()(x)
        y.sum().backward()
        assert torch.equal(x.grad, y.detach())


def test_noise_shape_is_channels_last():
    y = Dropout(0.5, noise_shape=(None, 1, 6, 1)).train()(ones(20, 5, 6, 7))  # inside: (N, C, H, W)
    assert torch.equal(y, y[:, :1, :1, :].expand_as(y))
    assert 0 < (y == 0).float().mean() < 1


@pytest.mark.parametrize(("layer", "shape"), [(SpatialDropout1D(0.5), (10, 5, 8)), (SpatialDropout2D(0.5), (10, 5, 6, 8)),
                                              (SpatialDropout3D(0.5), (10, 2, 3, 4, 8))], ids=["1d", "2d", "3d"])
def test_spatial_dropout_drops_channels(layer, shape):
    y = layer.train()(ones(*shape)).flatten(2)
    assert torch.equal(y, y[:, :, :1].expand_as(y))
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert (y[:, :1, 0] != y[:, :, 0]).any(), "channels of one sample have each their own fate"
    assert (y[:1, :, 0] != y[:, :, 0]).any(), "and so have samples"


def test_gaussian_noise():
    y = GaussianNoise(0.25).train()(torch.zeros(200, 500))
    assert y.std().item() == pytest.approx(0.25, rel=0.02) and y.mean().item() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Dropout(1.2), r"Dropout\(rate\): got 1.2; expected a number from 0 to 1"),
    (lambda: Dropout(-0.1), "a number from 0 to 1"),
    (lambda: Dropout("0.5"), "a number from 0 to 1"),
    (lambda: Dropout(0.5, noise_shape=(0, 1)), "a shape of whole numbers"),
    (lambda: Dropout(0.5, noise_shape=3), "a shape of whole numbers"),
    (lambda: Dropout(0.5, seed=1.5), "a whole number, or None"),
    (lambda: SpatialDropout2D(2), r"SpatialDropout2D\(rate\)"),
    (lambda: SpatialDropout2D(0.5, data_format="channels_first"), "channels_last"),
    (lambda: GaussianNoise(3), "a number from 0 to 1"),
])
def test_argument_errors(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_shape_errors():
    with pytest.raises(ShapeError, match="at each axis its size, 1 or None"):
        Dropout(0.5, noise_shape=(None, 3)).train()(torch.ones(2, 4))
    with pytest.raises(ShapeError, match="4 axes"):
        SpatialDropout2D(0.5)(torch.ones(2, 4))
