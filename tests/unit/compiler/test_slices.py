"""Runs in slices: they do what the runs do, stop where gradients are off, and tell which form is faster on a machine with busy phases."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import nn

from convolt.compiler.measure import Probe
from convolt.compiler.replay import Recordings
from convolt.compiler.rounds import in_turn
from convolt.compiler.slices import SLICE_SECONDS, SlicedRun, seconds_in_slices
from tests.unit.compiler.test_probe_clock import KINDS, Machine, best_of_all, search

X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Flatten(),
                         nn.Linear(128, 4))


def captured(model: nn.Module) -> SlicedRun:
    """Returns a recorded step of training by plain gradient descent."""
    weights = list(model.parameters())

    def work() -> None:
        gradients = torch.autograd.grad(model(X).square().mean(), weights)
        with torch.no_grad():
            for p, gradient in zip(weights, gradients, strict=True):
                p.sub_(gradient, alpha=0.01)

    recordings = Recordings()
    recordings.warm_up(work)
    run = recordings.capture(work)
    assert isinstance(run, SlicedRun)
    return run


def state(model: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def test_runs_in_slices_beside_each_other_do_what_they_do_alone() -> None:
    apart, beside = [net(), net()], [net(), net()]
    for model in apart:
        run = captured(model)
        begun = state(model)
        for _ in range(3):
            run()
        assert not torch.equal(begun[0], state(model)[0]), "the first weights are trained"
    tick = itertools.count()
    seconds_in_slices(*map(captured, beside), 3, lambda: next(tick) * SLICE_SECONDS / 2, hopeless=9.0)
    for one, other in zip(apart, beside, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(state(one), state(other), strict=True))


def test_a_run_stops_with_gradients_off() -> None:
    run, stops = captured(net()), 0
    with torch.inference_mode():
        for _ in run.begin():
            stops += 1
            assert not torch.is_grad_enabled()
    assert stops > 3 and torch.is_grad_enabled()


def test_gradients_are_on_again_after_slices_whatever_happens() -> None:
    run, other = captured(net()), captured(net())
    ticks = iter([0.0] * 9)  # then there are no more
    with pytest.raises((StopIteration, RuntimeError)):
        seconds_in_slices(run, other, 1, lambda: next(ticks), hopeless=9.0)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_what_a_run_makes_is_known() -> None:
    x = torch.randn(1000, 1000, requires_grad=True)

    def work() -> None:
        (gradient,) = torch.autograd.grad((x * 2).relu().exp().sum(), x)
        with torch.no_grad():
            x.sub_(gradient)

    run = Recordings().capture(work)
    assert isinstance(run, SlicedRun)
    assert 2 * 4_000_000 <= run.bytes_at_once <= 4 * 4_000_000, "what comes before ReLU and after it, and a gradient or two"


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
    fast, slow = seconds_in_slices(machine.run(0.7), machine.run(0.75), 1, lambda: machine.now, hopeless=9.0)
    assert slow / fast == pytest.approx(0.75 / 0.7, rel=0.045), "the last 0.05 s are the slower one's alone"


def test_each_form_is_told_its_own_time_and_a_hopeless_one_is_not_waited_for() -> None:
    machine = Busy(0)
    machine._slow = np.ones(1000)
    for first, second in ((0.3, 0.4), (0.001, 0.3), (0.9, 0.9)):
        found = seconds_in_slices(machine.run(first), machine.run(second), 3, lambda: machine.now, hopeless=1.5)
        assert found == pytest.approx((first, second))
    began = machine.now
    slow, other = seconds_in_slices(machine.run(50.0), machine.run(0.3), 1, lambda: machine.now, hopeless=1.5)
    assert 0.45 <= slow < 1.0 and other == pytest.approx(0.3) and machine.now - began < 1.5


def loss_of(module: nn.Module, precision: torch.dtype) -> torch.Tensor:
    loss: torch.Tensor = module(X).square().mean()
    return loss


class Unrecordable(nn.Sequential):
    recordable = False


@pytest.mark.parametrize(("wrapped", "free", "sliced"), [(False, 1 << 40, True), (True, 1 << 40, False), (False, 1 << 14, False)])
def test_forms_are_compared_in_slices_where_both_have_them(wrapped: bool, free: int, sliced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convolt.compiler.measure.free_bytes", lambda device: free)
    model, other = net(), net()
    probe = Probe(model, loss_of, torch.device("cpu"), graphs=Recordings())
    before = state(model)
    timed = in_turn(probe, (Unrecordable(other) if wrapped else other, torch.float32), (model, torch.float32), 0.001)
    assert timed.sliced is sliced
    assert all(torch.equal(a, b) for a, b in zip(before, state(model), strict=True)), "the model is as it was"


class BusyMachine(Machine):
    """The machine of the search's tests, with busy phases, on which runs are recorded."""

    keeps = True

    def __init__(self, layers: float, factors: dict[str, float], seed: int) -> None:
        super().__init__(layers, factors, noise=0.0, busy=0.0)
        self._slow = 1 + np.random.default_rng(seed).uniform(0, 1, 100_000).cumsum() % 1
        self._last = layers

    def loss_of(self, module: nn.Module, precision: torch.dtype) -> torch.Tensor:
        self._last = self.step_seconds(module)
        return super().loss_of(module, precision)

    def warm_up(self, work: Callable[[], None]) -> None:
        work()

    def capture(self, work: Callable[[], None], generators: Sequence[torch.Generator] = ()) -> SlicedRun:
        work()
        seconds = self._last

        def slices() -> Iterator[None]:
            for _ in range(100):
                self.now += seconds / 100 * self._slow[int(self.now)]
                yield

        return SlicedRun(slices)

    def probe(self, model: nn.Module, halves: bool = False) -> Probe:
        return Probe(model, self.loss_of, torch.device("cpu"), clock=lambda: self.now, graphs=self)


@pytest.mark.parametrize("layers", [0.02, 0.6])
@pytest.mark.parametrize("seed", range(6))
def test_a_busy_machine_gets_nearly_the_best_form(layers: float, seed: int) -> None:
    """A machine that is up to twice as slow from one second to the next; single runs of each form would not tell 30%."""
    factors = dict(zip(KINDS, np.random.default_rng(seed).choice([0.85, 0.93, 1.07, 1.2], 4), strict=True))
    machine = BusyMachine(layers, factors, seed)
    plan, module, _ = search(machine, steps=10**6)
    assert machine.step_seconds(module) <= best_of_all(machine) * 1.02, plan.describe()
    gain = plan.rows[0].seconds / [row.seconds for row in plan.rows if row.verdict == "chosen" and row.seconds][-1]
    assert gain == pytest.approx(layers / machine.step_seconds(module), rel=0.1), "what the plan says of it"
