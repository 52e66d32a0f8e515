"""The search on a clock that the candidates themselves move on: what is measured is what they cost, noise and busy seconds included."""

import functools
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn

from convolt import layers as L
from convolt.compiler import Plan, make_plan
from convolt.compiler.compiled import Compiled
from convolt.compiler.fuse import fuse
from convolt.compiler.measure import Probe
from convolt.compiler.replay import Recordings
from convolt.compiler.rounds import step_seconds
from convolt.compiler.search import MOST_OF_RUN, MOST_SECONDS, SEARCH_SECONDS
from convolt.compiler.trace import trace
from convolt.models import Sequential
from tests.unit.compiler.test_plan import LOSS, X, Y, cnn

KINDS = ("FirstConvReluPool", "ConvReluPool", "SparseConvReluPool", "Norm")
REWRITES = ("bn+relu", "conv+relu+pool", "sparse conv+relu+pool", "first conv+relu+pool", "bn")


class Machine:
    """A machine on which a step takes as long as is said: `layers` seconds, times a factor for each fused class in its form.

    Each run takes that long with some noise, and now and then, as other work comes in between, three times as long.
    """

    def __init__(self, layers: float, factors: dict[str, float], noise: float = 0.02, busy: float = 0.05, seed: int = 0) -> None:
        self.layers, self.factors, self.noise, self.busy = layers, factors, noise, busy
        self.rng = np.random.default_rng(seed)
        self.now, self.runs, self.halves = 100.0, 0, 0

    def step_seconds(self, module: Any) -> float:
        kinds = [type(part).__name__ for part in module.modules()] if isinstance(module, fx.GraphModule) else []
        return self.layers * float(np.prod([self.factors.get(kind, 1.0) for kind in kinds]))

    def loss_of(self, module: Any, precision: torch.dtype) -> torch.Tensor:
        slow = 3.0 if self.rng.random() < self.busy else 1.0
        self.now += self.step_seconds(module) * slow * max(0.5, 1 + self.noise * float(self.rng.standard_normal()))
        self.runs += 1
        loss: torch.Tensor = LOSS(Y, module(X.to(precision)))
        return loss

    def half_loss_of(self, module: Any, precision: torch.dtype) -> torch.Tensor:
        """Half of the batch takes half of the time."""
        self.halves += 1
        self.layers /= 2
        try:
            return self.loss_of(module, precision)
        finally:
            self.layers *= 2

    def probe(self, model: nn.Module, halves: bool = False) -> Probe:
        return Probe(model, self.loss_of, torch.device("cpu"), clock=lambda: self.now, half_loss_of=self.half_loss_of if halves else None)


def search(machine: Machine, steps: int, halves: bool = False) -> tuple[Plan, nn.Module, float]:
    """Returns the plan, what it runs, and the seconds on the machine's clock that it took to find it."""
    model, began = cnn(), machine.now
    plan, module = make_plan(model, [X[:2]], machine.probe(model, halves), precision=torch.float32, device=torch.device("cpu"),
                             batch_size=8, steps=steps)
    return plan, module, machine.now - began


def best_of_all(machine: Machine) -> float:
    traced = trace(cnn(), [X[:2]])
    assert isinstance(traced, fx.GraphModule)
    return min(machine.step_seconds(fuse(traced, kept).module) for n in range(len(REWRITES) + 1) for kept in combinations(REWRITES, n))


@pytest.mark.parametrize("seconds", [0.02, 0.3, 1.5])
def test_the_clock_gives_what_a_step_takes(seconds: float) -> None:
    machine = Machine(seconds, {}, noise=0.0, busy=0.0)
    model = cnn()
    assert machine.probe(model).seconds(model, torch.float32, budget=0.5) == pytest.approx(seconds)
    assert machine.runs == 1 + max(2, min(9, int(np.ceil(0.5 / seconds - 1e-9)))), "one to warm up, then as many as the budget has room for"


def test_one_busy_run_does_not_decide() -> None:
    machine = Machine(0.02, {}, busy=0.2, seed=3)
    model = cnn()
    assert machine.probe(model).seconds(model, torch.float32, budget=0.5) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("layers", [0.02, 0.15])
@pytest.mark.parametrize("seed", range(6))
def test_a_long_run_gets_nearly_the_best_form(layers: float, seed: int) -> None:
    factors = dict(zip(KINDS, np.random.default_rng(seed).uniform(0.6, 1.3, 4), strict=True))
    machine = Machine(layers, factors, seed=seed)
    _, module, spent = search(machine, steps=10**6)
    assert machine.step_seconds(module) <= best_of_all(machine) * 1.12
    # three rounds of a third of a second for a candidate and for the best form; beside that, each round warms up and runs over once
    assert spent <= 0.5 + len(REWRITES) * (2.0 + 20 * layers)


@pytest.mark.parametrize("layers", [0.3, 0.9, 3.0])
def test_nobody_waits_long_for_the_search_however_long_the_run_is(layers: float) -> None:
    machine = Machine(layers, dict.fromkeys(KINDS, 1.01), noise=0.0, busy=0.0)
    plan, _, spent = search(machine, steps=10**9)
    assert spent <= max(MOST_SECONDS, MOST_SECONDS * layers) + 8 * layers, "the last candidate is measured to its end"
    assert plan.form == "layers"


def test_half_of_a_batch_tells_what_all_of_it_takes() -> None:
    machine = Machine(0.9, {}, noise=0.0, busy=0.0)
    model = cnn()
    assert not machine.probe(model).halve()
    probe, spent = machine.probe(model, halves=True), []
    for halved in (True, False):
        began = machine.now
        assert probe.seconds(model, torch.float32, budget=0.0, least=1) == pytest.approx(0.9)
        spent.append(machine.now - began)
        assert probe.halve() is halved
    assert spent == [pytest.approx(1.8), pytest.approx(0.9)]
    assert probe.kept_bytes(model, torch.float32) > 0 and machine.halves == 3


def test_a_program_of_half_of_a_batch_is_not_timed_as_all_of_it() -> None:
    model, x, sizes = nn.Linear(40, 40), torch.rand(64, 40), []

    def loss_of(count: int) -> Any:
        def compute(module: Any, precision: torch.dtype) -> torch.Tensor:
            sizes.append(count)
            return module(x[:count]).square().mean()

        return compute

    probe = Probe(model, loss_of(64), torch.device("cpu"), graphs=Recordings(), half_loss_of=loss_of(32))
    for _ in range(2):
        sizes.clear()
        assert step_seconds(probe, (model, torch.float32), halve=True) > 0
        assert probe.parts == 1
        assert sizes in ([32, 32, 64], []), "one run tells how long it takes, and each is recorded once: the first time"


def test_compiled_code_is_timed_as_it_is() -> None:
    """A recording would not see what is in it."""
    model, x = nn.Linear(4, 4), torch.rand(8, 4)
    probe = Probe(model, lambda module, precision: module(x).square().mean(), torch.device("cpu"), graphs=Recordings())
    for form in (Compiled(model, ((1, 1),)), model):
        assert probe.seconds(form, torch.float32, budget=0.0) > 0
    assert [module for module, *_ in probe._kept_runs] == [model]


@pytest.mark.parametrize(("layers", "halved"), [(0.05, False), (0.3, False), (0.5, True), (0.9, True)])
def test_a_long_step_is_searched_on_half_of_a_batch(layers: float, halved: bool) -> None:
    factors, found = dict(zip(KINDS, (0.7, 0.9, 1.1, 0.8), strict=True)), []
    for halves in (True, False):
        machine = Machine(layers, factors, noise=0.0, busy=0.0)
        plan, module, spent = search(machine, steps=10**6, halves=halves)
        assert (machine.halves > 2) is (halves and halved), "two runs tell whether a step is long"
        found.append((plan.fusions, machine.step_seconds(module), spent))
    assert found[0][1] <= found[1][1], "there is time for more candidates"
    if not halved:
        assert found[0][0] == found[1][0] and found[0][2] == pytest.approx(found[1][2] + layers)


def test_what_takes_little_of_a_long_step_is_not_tried() -> None:
    model = Sequential([L.Input((72, 72, 32)), L.Conv2D(64, 9, padding="same"), L.GlobalAveragePooling2D(), L.Dense(3),
                        L.BatchNormalization(), L.ReLU()])
    machine, x = Machine(0.3, {"Norm": 0.1}), torch.rand(8, 32, 72, 72)
    probe = Probe(model, lambda module, precision: machine.loss_of(lambda _: module(x.to(precision)), precision), torch.device("cpu"),
                  clock=lambda: machine.now)
    plan, module = make_plan(model, [x[:2]], probe, precision=torch.float32, device=torch.device("cpu"), batch_size=8, steps=10**6)
    assert module is model
    assert {row.name: row.why for row in plan.rows}["bn+relu"].startswith("the layers that it replaces take ")


@pytest.mark.parametrize("run", [12.0, 30.0, 60.0, 200.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_search_takes_no_more_of_a_run_than_is_said(run: float, seed: int) -> None:
    layers = 0.05
    factors = dict(zip(KINDS, np.random.default_rng(seed).uniform(0.8, 1.2, 4), strict=True))
    machine = Machine(layers, factors, seed=seed)
    plan, module, spent = search(machine, steps=int(run / layers))
    assert spent <= max(0.15 * SEARCH_SECONDS, MOST_OF_RUN * run * 1.1), plan.describe()  # noise of the first measurement included
    assert machine.step_seconds(module) <= layers * 1.02, "never slower than layer by layer"
    given_up = [row.why for row in plan.rows if "the search has taken" in row.why]
    assert bool(given_up) == (run < 100), "a search that would take too much ends early, and says so"


@pytest.mark.parametrize(("compiling", "tried"), [(15.0, True), (60.0, False)])
def test_compiling_is_waited_for_apart_from_the_search(compiling: float, tried: bool) -> None:
    machine = Machine(0.02, dict.fromkeys(KINDS, 0.99), noise=0.0, busy=0.0)
    model, spent = cnn(), [0.0]

    class Compiling(Probe):
        """The first candidate has kernels to be compiled."""

        def gradients(self, module: nn.Module, *arguments: Any, **options: Any) -> Any:
            if isinstance(module, fx.GraphModule) and not spent[0]:
                spent[0] = compiling
                machine.now += compiling
            return super().gradients(module, *arguments, **options)

        def compiling_seconds(self) -> float:
            return spent[0]

    probe = Compiling(model, machine.loss_of, torch.device("cpu"), clock=lambda: machine.now)
    plan, _ = make_plan(model, [X[:2]], probe, precision=torch.float32, device=torch.device("cpu"), batch_size=8, steps=10**6)
    late = [row for row in plan.rows if row.why.startswith("the search has taken")]
    assert bool(late) != tried
    assert all("40 of them for compiling kernels" in row.why for row in late)


@pytest.mark.parametrize("tiles", [True, False])
def test_winograd_in_bfloat16_is_not_tried_beside_units_for_matrices(tiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Sequential([L.Input((8, 8, 32)), L.Conv2D(32, 3, padding="same"), L.GlobalAveragePooling2D(), L.Dense(3)])
    machine, x = Machine(0.02, {}), torch.rand(8, 32, 8, 8)

    def loss_of(module: Any, precision: torch.dtype) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            return machine.loss_of(lambda _: module(x.double() if precision == torch.float64 else x), precision)

    probe = Probe(model, loss_of, torch.device("cpu"), clock=lambda: machine.now)
    monkeypatch.setattr("convolt.compiler.search.multiplies_in_tiles", lambda: tiles)
    for precision, refused in ((torch.bfloat16, tiles), (torch.float32, False)):
        plan, _ = make_plan(model, [x[:2]], probe, precision=precision, device=torch.device("cpu"), batch_size=8, steps=10**6)
        row = next(row for row in plan.rows if row.name == "winograd conv")
        assert (row.seconds is None and "AMX" in row.why) == refused, row


@pytest.mark.parametrize(("seconds", "recorded"), [((4.5, 2.7), True), ((2.4,), True), ((4.5, 3.6), False), ((27.0,), False)], ids=str)
def test_the_first_form_says_whether_all_are_timed_as_they_are(seconds: tuple[float, ...], recorded: bool) -> None:
    """A candidate is compared with it, whose own first run may be shorter or longer."""
    now, model, x = [0.0], nn.Linear(4, 4), torch.rand(8, 4)
    recordings = Recordings(lambda: now[0])

    def work(took: list[float]) -> None:
        model(x).square().mean().backward()
        now[0] += took.pop(0)

    for times in (list(seconds), [0.2, 0.2, 0.2], [5.0, 5.0, 5.0]):
        recordings.warm_up(functools.partial(work, times))
        times += [1.0] * 3
        run = functools.partial(work, times)
        assert (recordings.capture(run) is not run) is recorded
