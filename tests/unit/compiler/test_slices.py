"""Runs in slices: they do what the runs do, stop where gradients are off, and tell which form is faster on a machine with busy phases."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from convolt.compiler.measure import Probe
from convolt.compiler.replay import Recordings
from convolt.compiler.rounds import in_turn
from convolt.compiler.slices import SLICE_SECONDS, SlicedRun, seconds_in_slices

X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Flatten(),
                         nn.Linear(128, 4))


def captured(model: nn.Module) -> SlicedRun:
    def work() -> None:
        for p in model.parameters():
            p.grad = None
        model(X).square().mean().backward()

    recordings = Recordings()
    recordings.warm_up(work)
    run = recordings.capture(work)
    assert isinstance(run, SlicedRun)
    return run


def means(model: nn.Module) -> list[torch.Tensor]:
    return [buffer.clone() for name, buffer in model.named_buffers() if "running" in name]


def test_runs_in_slices_beside_each_other_do_what_they_do_alone() -> None:
    apart, beside = [net(), net()], [net(), net()]
    for model in apart:
        run = captured(model)
        for _ in range(3):
            run()
    tick = itertools.count()
    seconds_in_slices([captured(model) for model in beside], 3, lambda: next(tick) * SLICE_SECONDS / 2)
    for one, other in zip(apart, beside, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(means(one), means(other), strict=True))
    assert not torch.equal(means(net())[0], means(apart[0])[0])


def test_a_run_stops_with_gradients_off_and_leaves_them_as_they_were() -> None:
    run, stops = captured(net()), 0
    with torch.inference_mode():
        for _ in run.begin():
            stops += 1
            assert not torch.is_grad_enabled()
    assert stops > 3 and torch.is_grad_enabled()
    run()
    assert torch.is_grad_enabled()


class Busy:
    """A clock on which work takes as long as is said, but up to twice as long in phases of about a second.

    Args:
        seed: of the phases.
    """

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self._slow = 1 + np.random.default_rng(seed).uniform(0, 1, 1000).cumsum() % 1

    def run(self, seconds: float) -> SlicedRun:
        def slices() -> Iterator[None]:
            for _ in range(100):
                self.now += seconds / 100 * self._slow[int(self.now)]
                yield

        return SlicedRun(slices)


@pytest.mark.parametrize("seed", range(20))
def test_busy_phases_meet_both(seed: int) -> None:
    machine = Busy(seed)
    fast, slow = seconds_in_slices([machine.run(0.7), machine.run(0.75)], 1, lambda: machine.now)
    assert slow / fast == pytest.approx(0.75 / 0.7, rel=0.045), "the last 0.05 s are the slower one's alone"


def test_each_form_is_told_its_own_time() -> None:
    machine = Busy(0)
    machine._slow = np.ones(1000)
    seconds = [0.3, 0.001, 2.0]
    assert seconds_in_slices([machine.run(each) for each in seconds], 3, lambda: machine.now) == pytest.approx(seconds)


def test_forms_are_compared_in_slices_where_both_have_them() -> None:
    model, other = net(), net()

    def loss_of(module: nn.Module, precision: torch.dtype) -> torch.Tensor:
        loss: torch.Tensor = module(X).square().mean()
        return loss

    class Unrecordable(nn.Sequential):
        recordable = False

    for candidate, sliced in ((other, True), (Unrecordable(other), False)):
        probe = Probe(model, loss_of, torch.device("cpu"), graphs=Recordings())
        before = means(model)
        timed = in_turn(probe, (candidate, torch.float32), (model, torch.float32), 0.001)
        assert timed.sliced is sliced and timed.ratio > 0
        assert all(torch.equal(a, b) for a, b in zip(before, means(model), strict=True)), "the model is as it was"
