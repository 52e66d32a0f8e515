"""Stochastic depth and DropBlock: what is dropped, how often, and that the mean stays; against the papers' definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from convolt.errors import ArgumentError, ShapeError
from convolt.layers import DropBlock2D, StochasticDepth
from convolt.layout import to_inside


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# -- stochastic depth --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, 4])
@pytest.mark.parametrize("shape", [(2000, 3), (2000, 3, 2), (2000, 2, 3, 3)], ids=str)
def test_a_sample_is_dropped_whole(shape, seed):
    y = StochasticDepth(0.3, seed=seed).train()(torch.ones(shape)).flatten(1)
    assert torch.equal(y, y[:, :1].expand_as(y)), "one fate for all of a sample"
    assert (y[:, 0] == 0).float().mean().item() == pytest.approx(0.3, abs=0.04)
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / 0.7))


def test_expectation_is_that_of_inference():
    x = torch.randn(5, 3, 4, 4)
    layer = StochasticDepth(0.5).train()
    mean = torch.stack([layer(x) for _ in range(2000)]).mean(0)
    torch.testing.assert_close(mean, layer.eval()(x), rtol=0.2, atol=0.2)


def test_stochastic_depth_ends():
    x = torch.randn(4, 3)
    assert torch.equal(StochasticDepth(0).train()(x), x)
    assert StochasticDepth(1).train()(x).abs().sum() == 0
    assert StochasticDepth(0.5).eval()(x) is x


def test_gradient_of_a_dropped_branch_is_zero():
    x = torch.ones(50, 3, requires_grad=True)
    y = StochasticDepth(0.5).train()(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach()) and set(y.unique().tolist()) == {0.0, 2.0}


# -- DropBlock ---------------------------------------------------------------------------------------------------------


def paper(x, rate, size, starts):
    """Algorithm 1 of the paper, block by block, for starts at a block's first corner."""
    mask = np.ones_like(x)
    for n, i, j, c in zip(*np.nonzero(starts), strict=True):
        mask[n, i : i + size[0], j : j + size[1], c] = 0
    return x * mask * mask.size / mask.sum()


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_blocks_are_those_of_the_paper(size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 7, 9, 2)).astype("float32")
    layer = DropBlock2D(0.3, size, seed=5).train()
    got = layer(to_inside(torch.from_numpy(x)))
    gamma = 0.3 / size**2 * 63 / ((7 - size + 1) * (9 - size + 1))
    drawn = torch.empty(3, 7 - size + 1, 9 - size + 1, 2).bernoulli_(gamma, generator=torch.Generator().manual_seed(5))
    np.testing.assert_allclose(got.permute(0, 2, 3, 1), paper(x, 0.3, (size, size), drawn.numpy()), rtol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_the_rate_is_that_of_the_formula(size):
    """A place is kept if none of the blocks that would cover it starts."""
    height = width = 16
    zeros = (DropBlock2D(0.2, size).train()(torch.ones(200, 8, height, width)) == 0).float().mean((0, 1))
    gamma = 0.2 / size**2 * height * width / (height - size + 1) ** 2
    covering = np.array([min(i, height - size) - max(0, i - size + 1) + 1 for i in range(height)])
    expected = 1 - (1 - gamma) ** np.outer(covering, covering)
    np.testing.assert_allclose(zeros, expected, atol=0.05)
    assert zeros.mean().item() == pytest.approx(expected.mean(), abs=0.01)
    assert expected.mean() == pytest.approx(0.2, abs=0.03), "overlaps make it a little less than the rate"


def test_the_mean_stays_in_each_call():
    x = torch.ones(20, 8, 12, 12)
    for _ in range(5):
        assert DropBlock2D(0.3, 3).train()(x).mean().item() == pytest.approx(1.0, abs=1e-5)


def test_channels_and_samples_have_blocks_of_their_own():
    y = DropBlock2D(0.3, 3).train()(torch.ones(4, 4, 12, 12)) == 0
    assert (y[:, 0] != y[:, 1]).any() and (y[0] != y[1]).any()


def test_drop_block_ends():
    x = torch.randn(3, 2, 4, 4)
    assert DropBlock2D(0.3).eval()(x) is x and DropBlock2D(0.0).train()(x) is x
    assert torch.equal(DropBlock2D(1.0, 1).train()(x), x * 0)
    assert torch.isfinite(DropBlock2D(1.0, 9).train()(x)).all(), "a block larger than the picture is the picture"


def test_the_order_of_memory_does_not_decide():
    x = torch.randn(2, 4, 6, 5)
    results = [DropBlock2D(0.4, 2, seed=3).train()(v) for v in (x, x.contiguous(memory_format=torch.channels_last))]
    assert torch.equal(*results) and results[1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("work", "kind", "message"), [
    (lambda: StochasticDepth(1.5), ArgumentError, r"StochasticDepth\(rate\): got 1.5"),
    (lambda: StochasticDepth(0.5, seed=0.1), ArgumentError, "a whole number, or None"),
    (lambda: DropBlock2D(0.1, 0), ArgumentError, r"DropBlock2D\(block_size\): got 0"),
    (lambda: DropBlock2D(0.1)(torch.ones(2, 3, 4)), ShapeError, "4 axes"),
])
def test_errors(work, kind, message):
    with pytest.raises(kind, match=message):
        work()
