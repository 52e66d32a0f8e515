"""A verdict that noise may have made is marked, measured again by later runs, and replaced when two of them agree against it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn

import convolt
from convolt import layers
from convolt.compiler import Plan, make_plan, search
from convolt.compiler.candidates import BFLOAT16, worth_of
from convolt.compiler.rows import WORTH, WORTH_IN_SLICES, Row, Timed
from convolt.compiler.search import MOST_OF_RUN, SEARCH_SECONDS
from convolt.models import Sequential
from tests.unit.compiler.test_plan import X as INPUTS
from tests.unit.compiler.test_plan import cnn
from tests.unit.compiler.test_probe_clock import KINDS, LOSS, Machine


def small() -> Sequential:
    """A net whose only candidate is batch normalization with ReLU."""
    convolt.utils.set_random_seed(0)
    return Sequential([layers.Input((4, 4, 3)), layers.BatchNormalization(), layers.ReLU(), layers.Flatten(), layers.Dense(3)])


X = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 3


class Small(Machine):
    """The machine of the other tests, with the small net, on which the fused form takes `factor` of the time."""

    def __init__(self, factor: float, layers: float = 0.02, **options: Any) -> None:
        super().__init__(layers, {"Norm": factor}, **options)

    def loss_of(self, module: Any, precision: torch.dtype) -> torch.Tensor:
        slow = 3.0 if self.rng.random() < self.busy else 1.0
        self.now += self.step_seconds(module) * slow * max(0.5, 1 + self.noise * float(self.rng.standard_normal()))
        self.runs += 1
        loss: torch.Tensor = LOSS(Y, torch.softmax(module(X.to(precision)), 1))
        return loss


class Script(Small):
    """Each round goes as said, over and over: how many times as fast the fused form is in it."""

    def __init__(self, ratios: list[float]) -> None:
        super().__init__(1.0, noise=0.0, busy=0.0)
        self.left = list(ratios)

    def step_seconds(self, module: Any) -> float:
        return self.layers / self.left[0] if isinstance(module, fx.GraphModule) else self.layers

    def probe(self, model: nn.Module) -> Any:
        probe, machine = super().probe(model), self
        seconds = probe.seconds

        def timed(module: nn.Module, precision: torch.dtype, budget: float, **options: Any) -> float:
            found = seconds(module, precision, budget, **options)
            if not isinstance(module, fx.GraphModule) and budget != 0.3:  # a round ends with the form without it
                machine.left.append(machine.left.pop(0))
            return found

        probe.seconds = timed  # type: ignore[method-assign]
        return probe


def plan_on(machine: Machine, cache: Path, steps: int = 10**6) -> tuple[Plan, nn.Module]:
    model = small()
    return make_plan(model, [X[:2]], machine.probe(model), precision=torch.float32, device=torch.device("cpu"), batch_size=8, steps=steps,
                     cache=cache)


def row(plan: Plan) -> Row:
    return next(row for row in plan.rows if row.name == "bn+relu")


def test_rounds_that_disagree_leave_a_doubt() -> None:
    assert Timed([(1.0, 1.01), (1.0, 1.06), (1.0, 1.0)]).doubt
    assert Timed([(1.0, 1.0), (1.0, 1.06)] * 4).doubt and not Timed([(1.0, 1.04), (1.0, 1.5)]).doubt
    assert not Timed([(1.0, 1.0), (1.0, 0.8)]).doubt
    assert Timed([(1.0, 1.05)]).doubt and not Timed([(1.0, 1.3)]).doubt and not Timed([(1.0, 0.8)]).doubt, "one round: if it is near"
    assert not Timed([(1.0, 1.0), *[(1.0, 1.1)] * 6, (1.0, 0.5)]).doubt, "a busy second among many rounds"


def test_the_median_of_the_rounds_decides_in_each_of_which_both_meet_the_same_noise() -> None:
    busy_throughout, once_alone = [(3.0, 3.2), (3.1, 3.3)], [(1.0, 1.1), (2.0, 1.1), (1.0, 3.0)]
    assert Timed([*busy_throughout, (1.0, 1.2), (1.0, 1.05)]).ratio == 3.3 / 3.1
    assert Timed(once_alone).ratio == 1.1
    assert Timed([(1.0, 1.2), (1.0, 1.0)]).ratio == 1.0, "of two the lower"


def test_of_single_runs_the_fastest_of_each_side_tell() -> None:
    one_side_busy = [(1.5, 1.1), (1.0, 1.6), (1.4, 1.2)]
    assert Timed(one_side_busy, single=True).ratio == 1.1
    assert Timed(one_side_busy).ratio == 1.2 / 1.4
    assert Timed([(1.0, 1.0), (1.0, 1.06)], single=True, worth=1.03).doubt and not Timed([(1.0, 1.1), (1.0, 1.1)], single=True).doubt


def test_how_much_faster_a_change_must_be() -> None:
    many, single, one = Timed([(1.0, 1.01)] * 4), Timed([(1.0, 1.01)] * 2, single=True), Timed([(1.0, 1.01)], single=True)
    assert [worth_of("winograd conv", timed) for timed in (many, single, one)] == [WORTH, 1.0, WORTH]
    assert [worth_of("bn+relu, bn+add", timed) for timed in (many, single, one)] == [1.0] * 3, "it makes fewer tensors"
    assert [worth_of(name, single) for name in (BFLOAT16, "compiled")] == [WORTH] * 2, "they are no rewrites"
    sliced = Timed([(1.0, 1.01)] * 2, sliced=True)
    assert [worth_of(name, sliced) for name in ("winograd conv", "compiled", "bn+relu")] == [WORTH_IN_SLICES, WORTH, 1.0]
    doubts = [Timed([(1.0, ratio)] * count, sliced=True, worth=1.01).doubt for ratio, count in ((1.02, 1), (1.02, 6), (1.05, 1))]
    assert doubts == [True, False, False]


def test_doubt_is_about_the_verdict() -> None:
    around_one = [(1.0, 0.98), (1.0, 1.0), (1.0, 1.02)]
    assert Timed(around_one, worth=1.0).doubt and not Timed(around_one, worth=WORTH).doubt


def test_a_doubtful_verdict_is_replaced_when_two_later_runs_agree_against_it(tmp_path: Path) -> None:
    first, module = plan_on(Script([0.97, 1.1, 1.05]), tmp_path)
    assert row(first).verdict == "chosen" and row(first).doubt, "two noisy rounds of three"
    assert "in doubt, and measured by the next run: bn+relu" in first.describe()
    second, same = plan_on(Script([0.96, 0.97, 0.96]), tmp_path)
    assert (row(second).verdict, row(second).again, row(second).doubt) == ("chosen", "refused", True)
    assert second.cached and isinstance(same, fx.GraphModule) and isinstance(module, fx.GraphModule), "a repeated run takes the same form"
    third, other = plan_on(Script([0.96, 0.97, 0.96]), tmp_path)
    assert row(third).verdict == "refused" and not row(third).doubt and not isinstance(other, fx.GraphModule)
    assert "two runs found" in row(third).why and third.form == "layers" and third.rows[0].verdict == "chosen"
    settled = Script([2.0])
    fourth, last = plan_on(settled, tmp_path)
    assert settled.runs == 0 and fourth.rows == third.rows and not isinstance(last, fx.GraphModule), "no more is measured"


def test_a_doubtful_verdict_that_is_confirmed_stays(tmp_path: Path) -> None:
    for machine, again in ((Script([0.98, 1.06, 1.05]), ""), (Script([0.98, 0.98, 0.98]), "refused"), (Script([1.2, 1.2, 1.2]), "")):
        plan, _ = plan_on(machine, tmp_path)
        assert (row(plan).verdict, row(plan).again) == ("chosen", again)
    assert not row(plan).doubt and plan.form == "fused" and "in doubt" not in plan.describe()


def test_a_refused_one_can_come_back(tmp_path: Path) -> None:
    forms = []
    for ratio in (0.98, 1.2, 1.2):
        machine = Script([ratio])
        machine.layers = 1.1  # of such long steps a single round is measured
        plan, _ = plan_on(machine, tmp_path)
        forms.append(plan.form)
    assert forms == ["layers", "layers", "fused"] and not row(plan).doubt


def test_what_a_search_had_no_time_for_is_tried_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plan_of(machine: Machine) -> Plan:
        model = cnn()
        return make_plan(model, [INPUTS[:2]], machine.probe(model), precision=torch.float32, device=torch.device("cpu"), batch_size=8,
                         steps=10**6, cache=tmp_path)[0]

    faster = dict.fromkeys(KINDS, 0.8)
    with monkeypatch.context() as patch:
        patch.setattr(search, "MOST_SECONDS", SEARCH_SECONDS + 0.5)  # enough for the first candidate
        first = plan_of(Machine(0.02, faster, noise=0.0, busy=0.0))
    left = [row for row in first.rows if "the search has taken" in row.why]
    assert left and all(row.doubt and row.seconds is None for row in left)
    assert f"measured by the next run: {', '.join(row.name for row in left)}" in first.describe()
    second = plan_of(Machine(0.02, faster, noise=0.0, busy=0.0))
    assert second.cached and set(first.fusions) < set(second.fusions) and not any(row.doubt for row in second.rows)
    settled = Machine(0.02, faster)
    assert plan_of(settled).rows == second.rows and settled.runs == 0, "no more is measured"


def test_a_run_too_short_for_any_candidate_measures_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MOST_SECONDS", 0.0)
    first, _ = plan_on(Small(0.5), tmp_path)
    assert "the search has taken" in row(first).why and not row(first).doubt
    repeated = Small(0.5)
    plan_on(repeated, tmp_path)
    assert repeated.runs == 0


def test_another_processor_measures_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home folder may be shared by machines with and without some instructions."""
    plan_on(Small(0.5), tmp_path)
    has = torch.cpu.get_capabilities()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has | {"amx_bf16": not has.get("amx_bf16", False)})
    plan, _ = plan_on(Small(2.0), tmp_path)
    assert not plan.cached and row(plan).verdict == "refused"


@pytest.mark.parametrize("factor", [0.92, 1.06])
def test_on_a_noisy_machine_later_runs_lose_less_and_none_surprises(factor: float, tmp_path: Path) -> None:
    """Each run of a step is off by 8%, and one in five takes three times as long."""
    lost = []
    for seed in range(10):
        machine, plans = Small(factor, noise=0.08, busy=0.2, seed=seed), []
        for _ in range(4):
            before = machine.now
            plan, module = plan_on(machine, tmp_path / str(seed))
            assert machine.now - before <= 2 * SEARCH_SECONDS + 1
            plans.append((plan, machine.step_seconds(module) / (machine.layers * min(factor, 1.0)) - 1))
        for (earlier, _), (later, _) in itertools.pairwise(plans):
            assert later.fusions == earlier.fusions or any(row.doubt for row in earlier.rows), "only what was said to be in doubt changes"
        assert plans[1][0].fusions == plans[0][0].fusions
        lost.append([share for _, share in plans])
    first, last = np.mean(lost, axis=0)[[0, -1]]
    assert last <= first and last < 0.02, lost


def test_measuring_again_keeps_within_the_run(tmp_path: Path) -> None:
    steps = int(40 / 0.02)  # a run of forty seconds may search for six at the most
    plan, _ = plan_on(Script([0.97, 1.1, 1.05]), tmp_path, steps)
    assert row(plan).doubt
    machine = Script([0.96] * 3)
    plan_on(machine, tmp_path, steps)
    assert machine.now - 100 <= MOST_OF_RUN * 40
    short = Script([0.96])
    plan_on(short, tmp_path, 100)
    assert short.now - 100 < 0.5


def test_a_repeated_fit_measures_again_and_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real steps: what is in doubt is measured in the middle of the run, with dropout and statistics, and leaves no trace."""
    monkeypatch.setattr(search, "SEARCH_SECONDS", 0.0)
    monkeypatch.setattr(search, "MOST_OF_RUN", 1e9)
    monkeypatch.setattr(Timed, "doubt", property(lambda self: True))
    again: list[str] = []
    measure = search.Search._again
    monkeypatch.setattr(search.Search, "_again", lambda self, row: (again.append(row.name), measure(self, row))[1])
    x, y = np.random.default_rng(0).random((48, 12, 12, 1), "float32"), np.arange(48) % 3
    results = []
    for _ in range(2):
        convolt.utils.set_random_seed(0)
        model = Sequential([layers.Input((12, 12, 1)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(),
                            layers.Dropout(0.2), layers.Flatten(), layers.Dense(3, activation="softmax")])
        model.compile("adam", "sparse_categorical_crossentropy", device="cpu", precision="float32", execution="eager")
        model.fit(x, y, batch_size=16, epochs=2, verbose=0, seed=1)
        results.append(model.get_weights())
    assert "bn+relu" in again and model.plan.cached
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))
