"""Several steps in one graph are the same steps one by one, bit for bit; callbacks are called once for all of them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import convolt
from convolt import layers
from convolt.compiler import Plan
from convolt.compiler.execute import CapturedStep, Pace, choose_together, why_not_together
from convolt.errors import ArgumentError
from convolt.models import Sequential
from convolt.training import planning
from convolt.training.checkpoint.keeper import CheckpointKeeper
from convolt.training.loop import executions
from tests.unit.compiler.replay import ReplayOnCpu
from tests.unit.compiler.test_execute import X, Y, batches, compiled, everything, snapshot_of

o = convolt.optimizers


def trained(model: Sequential, series: list[Any], together: int = 1, captured: bool = False) -> tuple[list[torch.Tensor], Any, Any]:
    """Trains on the batches from one random state on; returns all that came of it, the backend and the runner."""
    step = model.trainer._step
    step.together = together
    backend = ReplayOnCpu(snapshot_of(model))
    runner = CapturedStep(step, model.optimizer, backend, pytest.fail) if captured else step
    step.train_totals.reset()
    convolt.utils.set_random_seed(1)
    model.train()
    for group in executions(iter(series), lambda: together):
        runner.train_together(group)
    return everything(model), backend, runner


OPTIMIZERS: dict[str, tuple[Callable[[], Any], int, int]] = {  # how it is made, graphs of four steps, graphs of one (the last two)
    "adam": (lambda: "adam", 1, 1),
    "sgd-clipped": (lambda: o.SGD(0.05, momentum=0.9, nesterov=True, global_clipnorm=1.0), 1, 1),
    "adamw-schedule-ema": (lambda: o.AdamW(o.schedules.CosineDecay(0.01, 50), weight_decay=0.01, use_ema=True), 1, 1),
    "accumulation": (lambda: o.Adam(0.01, gradient_accumulation_steps=3), 3, 2),  # of the four, the 1st, 2nd or 3rd updates first
    "sam": (lambda: o.SAM(o.SGD(o.schedules.CosineDecay(0.05, 50)), rho=0.1), 1, 1),
    "layerwise": (lambda: o.LayerwiseDecay("adamw", decay=0.5, learning_rate=0.01), 1, 1),
}


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fifty_steps_four_at_a_time_equal_eager_ones(name: str) -> None:
    make, fours, ones = OPTIMIZERS[name]
    eager, captured = compiled(make()), compiled(make())
    expected, _, _ = trained(eager, batches())
    found, backend, runner = trained(captured, batches(), together=4, captured=True)
    assert equal(expected, found)
    assert backend.replays == 11 + 2, "the first four are eager, 44 steps are eleven graphs, and the last two are one by one"
    assert sorted(len(kinds) for kinds in runner._replays) == [1] * ones + [4] * fours
    assert eager.optimizer.iterations == captured.optimizer.iterations
    for key, value in eager.optimizer.state_dict().items():
        other = captured.optimizer.state_dict()[key]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, key


@pytest.mark.parametrize("options", [{"micro_batch": 3}, {"fusions": "all"}, {"seed": 5}], ids=["micro-batches", "numba", "seeded dropout"])
def test_what_a_step_has_goes_into_the_graph_of_several(options: dict[str, Any]) -> None:
    expected, _, _ = trained(compiled("adam", **options), batches())
    found, backend, _ = trained(compiled("adam", **options), batches(), together=4, captured=True)
    assert equal(expected, found) and backend.replays == 13


@pytest.mark.parametrize("make", [lambda: o.Lookahead("adam", every=5), lambda: o.Adam(use_ema=True, ema_overwrite_frequency=7),
                                  lambda: o.SAM(o.SWA("adam", start=10, every=4))], ids=["lookahead", "overwriting", "swa"])
def test_an_optimizer_that_works_between_steps_keeps_graphs_of_one(make: Callable[[], Any]) -> None:
    assert "between two steps" in str(why_not_together(make()))
    expected, _, _ = trained(compiled(make()), batches())
    found, backend, runner = trained(compiled(make()), batches(), together=4, captured=True)
    assert equal(expected, found) and backend.replays == 47 and {len(kinds) for kinds in runner._replays} == {1}


def test_a_group_with_a_smaller_batch_runs_step_by_step() -> None:
    series = [*batches(11), *batches(1, size=5), *batches(8), *batches(3), *batches(1, size=5)]
    expected, _, _ = trained(compiled("adam"), series)
    found, backend, _ = trained(compiled("adam"), series, together=4, captured=True)
    assert equal(expected, found)
    assert backend.replays == 1 + 3 + 2 + 4, "four; three and the eager first of its shape; two fours; four by themselves"


def test_a_rate_that_changes_between_executions_is_taken() -> None:
    results = []
    for together, captured in ((1, False), (4, True)):
        model = compiled(o.SGD(0.05))
        step = model.trainer._step
        step.together = together
        runner = CapturedStep(step, model.optimizer, ReplayOnCpu(snapshot_of(model)), pytest.fail) if captured else step
        step.train_totals.reset()
        convolt.utils.set_random_seed(1)
        model.train()
        for i, group in enumerate(executions(iter(batches(24)), lambda: 4)):
            model.optimizer.learning_rate = 0.05 / (i + 1)
            runner.train_together(group)
        results.append(everything(model))
    assert equal(*results)


# -- in fit --------------------------------------------------------------------------------------------------------


class Calls(convolt.callbacks.Callback):
    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.seen.append(("begin", batch))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        assert np.isfinite(logs["loss"])
        self.seen.append(("end", batch))

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen.append(("test", batch))


def net(**options: Any) -> Sequential:
    convolt.utils.set_random_seed(0)
    model = Sequential([layers.Input((8, 8, 2)), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(8, activation="relu"),
                        layers.Dropout(0.2), layers.Dense(3, activation="softmax")])
    model.compile(o.Adam(o.schedules.CosineDecay(0.01, 40)), "sparse_categorical_crossentropy", ["accuracy"], device="cpu", **options)
    return model


def test_callbacks_are_called_once_for_each_execution_with_the_last_number() -> None:
    calls = Calls()
    model = net(steps_per_execution=3)
    model.fit(X[:56].numpy(), Y[:56].numpy(), batch_size=8, validation_data=(X[:32].numpy(), Y[:32].numpy()), verbose=0, callbacks=[calls])
    assert calls.seen == [("begin", 0), ("end", 2), ("begin", 3), ("end", 5), ("begin", 6), ("end", 6), ("test", 2), ("test", 3)]
    assert model.plan.steps_per_execution == 3 and "callbacks every 3 steps" in model.plan.describe()


def test_fit_gives_the_same_whatever_is_executed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way from compile to the graph; the stand-in takes CUDA's place."""
    results, backends = [], []
    for together, graph in ((1, False), (3, False), (3, True)):
        model = net(steps_per_execution=together)
        if graph:
            monkeypatch.setattr(planning, "why_not_captured", lambda optimizer, device: None)
            monkeypatch.setattr(planning, "CudaGraphs", lambda device: backends.append(ReplayOnCpu(snapshot_of(model))) or backends[-1])  # noqa: B023
        history = model.fit(X[:60].numpy(), Y[:60].numpy(), batch_size=8, epochs=4, seed=1, verbose=0).history
        results.append((history, [w.tobytes() for w in model.get_weights()]))
    assert results[0] == results[1] == results[2]
    assert model.plan.execution == "graph" and "3 steps in one graph" in model.plan.describe()
    # epochs of seven batches and one of four samples are two groups, and 7 and 8 one by one; eager are the first two groups and the first 8
    assert backends[-1].replays == 1 + 3 * 4


class Stops(convolt.callbacks.Callback):
    """Fails at the end of a batch, as a program does that is killed."""

    is_setting = False

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == self.at:
            raise OSError("stopped")


@pytest.mark.parametrize(("every", "due"), [(3, [4, 8, 12, 16]), (5, [8, 12, 16])])
def test_checkpoints_come_with_the_execution_in_which_they_are_due_and_go_on_bit_equally(
    every: int, due: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = CheckpointKeeper._save
    monkeypatch.setattr(CheckpointKeeper, "_save", lambda self, at, *rest, **more: (saved.append(at.batch), save(self, at, *rest, **more)))
    options: dict[str, Any] = {"batch_size": 8, "epochs": 2, "seed": 1, "verbose": 0}
    data = X[:160].numpy(), Y[:160].numpy()
    whole = net(steps_per_execution=4)
    whole.fit(*data, **options)
    stopped = net(steps_per_execution=4)
    checkpoint = convolt.Checkpoint(tmp_path, every_steps=every, every_seconds=None, keep=99)
    with pytest.raises(OSError, match="stopped"):
        stopped.fit(*data, **options, checkpoint=checkpoint, callbacks=[Stops(19)])
    assert saved == [0, *due]
    resumed = net(steps_per_execution=4)
    resumed.fit(*data, **options, checkpoint=checkpoint)
    assert all(np.array_equal(a, b) for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True))


def test_what_is_asked_for_is_checked() -> None:
    for wrong in (0, -2, 1.5, "four", True):
        with pytest.raises(ArgumentError, match=re.escape("compile(steps_per_execution)")):
            net(steps_per_execution=wrong)


# -- "auto" --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "pace", "count", "why"), [
    (0.001, Pace(160, 161), 16, "16 ms for all of them"),
    (0.006, Pace(160, 160), 8, "48 ms for all of them"),
    (0.04, Pace(160, 160), 1, "a step takes 40 ms"),
    (0.001, Pace(7, 8), 7, "7 ms"),
    (0.001, Pace(31, 31), 15, "30 of 31 are in whole groups"),
    (0.001, Pace(1, 1), 1, "an epoch has 1 whole batches"),
    (0.001, Pace(160, 160, every_steps=40), 10, "40 and 160 are multiples of 10, and of nothing larger"),
    (0.001, Pace(160, 161, every_steps=40), 1, "every 40 steps of 161"),
    (0.001, Pace(160, 160, hooks=True), 1, "callbacks are called"),
    (None, Pace(160, 160), 1, "was not measured"),
    (0.001, Pace(None, None), 1, "length of an epoch is not known"),
])  # fmt: skip
def test_as_many_steps_are_chosen_as_nobody_notices(seconds: float | None, pace: Pace, count: int, why: str) -> None:
    chosen, reason = choose_together(seconds, pace)
    assert chosen == count and (count in (10, 15) or why in reason)


def test_auto_on_a_cpu_is_one_with_its_reason() -> None:
    model = net(steps_per_execution="auto")
    model.fit(X[:56].numpy(), Y[:56].numpy(), batch_size=8, verbose=0)
    assert model.plan.steps_per_execution == 1 and model.trainer._step.together == 1
    assert "not graph of several steps: graphs of whole steps need CUDA, not cpu" in model.plan.describe()


class Graphs:
    """Has fits of a model run in graphs of the stand-in, which are listed, the plan's search's first; a step takes a millisecond."""

    def __init__(self, patch: pytest.MonkeyPatch, model: Sequential) -> None:
        self.made: list[ReplayOnCpu] = []
        self._model = model
        patch.setattr(planning, "why_not_captured", lambda optimizer, device: None)
        patch.setattr(planning, "CudaGraphs", self._make)
        patch.setattr(Plan, "step_seconds", lambda plan: 0.001)

    def _make(self, device: torch.device) -> ReplayOnCpu:
        self.made.append(ReplayOnCpu(snapshot_of(self._model)))
        return self.made[-1]


def test_auto_in_fit_gives_the_same_and_the_smaller_last_batch_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    data, options = (X[:124].numpy(), Y[:124].numpy()), {"batch_size": 8, "epochs": 4, "seed": 1, "verbose": 0}
    eager = net()
    expected = eager.fit(*data, **options).history
    model = net(steps_per_execution="auto")
    graphs = Graphs(monkeypatch, model)
    assert model.fit(*data, **options).history == expected
    assert all(np.array_equal(a, b) for a, b in zip(eager.get_weights(), model.get_weights(), strict=True))
    # 15 whole batches and one of four samples; the plan comes with the second, and the first group of 15 in the second epoch
    assert model.plan.steps_per_execution == 15 and "15 steps in one graph" in model.plan.describe()
    # one by one in the first epoch: 14 steps, three of them eager, and the small one, eager; later a group and the small one
    assert graphs.made[-1].replays == 11 + 3 * 2
    model.fit(*data, **options | {"epochs": 1}, callbacks=[Calls()])
    assert model.plan.steps_per_execution == 1 and "not graph of several steps: callbacks are called" in model.plan.describe()


def test_auto_keeps_the_instants_of_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    save = CheckpointKeeper._save
    monkeypatch.setattr(CheckpointKeeper, "_save", lambda self, at, *rest, **more: (saved.append(at.batch), save(self, at, *rest, **more)))
    model = net(steps_per_execution="auto")
    graphs = Graphs(monkeypatch, model)
    model.fit(X[:160].numpy(), Y[:160].numpy(), batch_size=8, epochs=2, seed=1, verbose=0,
              checkpoint=convolt.Checkpoint(tmp_path, every_steps=4, every_seconds=None, keep=99))
    assert model.plan.steps_per_execution == 4 and graphs.made[-1].replays
    assert [batch for batch in saved if batch] == [4, 8, 12, 16, 20] * 2
