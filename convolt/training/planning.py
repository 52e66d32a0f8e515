"""When the form of the step is chosen: the first step runs layer by layer at once, then the plan is made on the next batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch

from convolt import devices
from convolt.compiler import Plan, first_plan, make_plan
from convolt.compiler.compiled import Compiling, shapes_of, why_not_compiled
from convolt.compiler.execute import CapturedStep, CudaGraphs, GraphBackend, Pace, choose_together, why_not_captured, why_not_together
from convolt.compiler.host import computing
from convolt.compiler.measure import Probe
from convolt.compiler.plan import ASKED_FOR_EAGER, GRAPH
from convolt.compiler.replay import Recordings, ReplayedStep, why_not_replayed
from convolt.data.batches import Batch, Resident, Streamed
from convolt.data.files import cache_folder
from convolt.errors import CheckpointError, explain
from convolt.training.batch_size import AUTO
from convolt.training.feeding import Feeding
from convolt.training.memory import part_of
from convolt.training.own_step import defines, other_optimizer
from convolt.training.sampling import Drawing
from convolt.training.step import Step

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "mixed_bfloat16": torch.bfloat16}

EXECUTIONS = ("auto", "replay", "eager", "compile")

CHECKED_SAMPLES = 16
"""Of a batch, on which a candidate is held against float64: enough for statistics, few enough for time and memory.

In a ResNet-18 at its start bfloat16 is off by 0.28 to 0.32 of the gradient's length with 16 of them, and by 0.32 with 32, which
take as much memory as the whole rest of the training.
"""
FEWEST_CHECKED = 4
CHECKED_NUMBERS = 1 << 18
"""Of large samples, fewer: as many as have so many numbers together, and `FEWEST_CHECKED` at least.

With four pictures of 224 × 224 in place of eight, a process that trains ResNet-50 in float32 takes 1,708 MiB in place of 2,341.
"""


class FirstStep:
    """Trains the first batch as the model is; before the second one lets the plan be made on it, and hands over to what it runs.

    So a training begins at once, and a measured plan changes nothing of how: a run whose plan is known from an earlier one takes its
    first step in the same form, and ends bit-equal.

    Args:
        step: runs the first batch.
        begun: whether the first step is done, as in a training that is resumed right after it.
        plan: called with the next batch; returns what runs from then on.
    """

    def __init__(self, step: Step, begun: bool, plan: Callable[[Batch], Step | CapturedStep | ReplayedStep]) -> None:
        self._runner: Step | CapturedStep | ReplayedStep = step
        self._begun = begun
        self._plan: Callable[[Batch], Step | CapturedStep | ReplayedStep] | None = plan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def train(self, batch: Batch) -> None:
        """Trains on one batch."""
        self.train_together([batch])

    def train_together(self, batches: Sequence[Batch]) -> None:
        """Trains on several batches, one step after the other."""
        left = list(batches)
        if not self._begun:
            self._runner.train(left.pop(0))
            self._begun = True
        if left and self._plan is not None:
            plan, self._plan = self._plan, None
            self._runner = plan(left[0])
        if left:
            self._runner.train_together(left)


Runner = Step | CapturedStep | ReplayedStep | FirstStep
"""What trains on one batch after the other."""


class Planning(Feeding):
    """The part of `Trainer` that chooses the form in which the step runs; see `convolt.compiler`."""

    optimizer: Any
    device: torch.device
    plan: Plan | None
    precision: str
    fusions: Any
    execution: str
    steps_per_execution: int | str
    _pace: Pace
    _replay: ReplayedStep | None
    _step: Step | None
    _example: list[torch.Tensor]

    def _first_plan(self, step: Step, data: Resident | Streamed, saved: Plan | None) -> bool:
        """Sets the plan with which the training begins; returns whether it is a new one that is final."""
        if saved is not None:
            self.plan = self._plan(step, data, data_batch(data), None, saved)
            return False
        if self.plan is not None and not self.plan.provisional:
            return False
        searches = (self.fusions == "auto" or self.precision == "auto") and any(head.loss is not None for head in self._heads)
        if searches or self.execution == "compile":  # code is made for the shape of a batch, which a stream tells with the first one
            self.plan = replace(first_plan(self.device, step.precision), micro_batch=step.room.limit,
                                residency=data.residency, residency_why=data.why)
            return False
        self.plan = self._plan(step, data, data_batch(data), None)
        return True

    def _runner(self, step: Step, data: Resident | Streamed, epochs: int, begun: bool = False,
                chosen: Callable[[Plan], None] = lambda plan: None) -> Runner:
        """Returns what trains as the plan says, or what makes the plan after the first step.

        Args:
            step: of the training.
            data: of the training.
            epochs: how many are to come.
            begun: whether steps of this training were done before.
            chosen: called with the plan once it is made.
        """
        assert self.plan is not None
        if not self.plan.provisional:
            return self._planned(step)

        def make(batch: Batch) -> Step | CapturedStep | ReplayedStep:
            self.plan = self._plan(step, data, batch, data.steps * epochs if data.steps else None)
            runner = self._planned(step)
            chosen(self.plan)
            return runner

        return FirstStep(step, begun, make)

    def _planned(self, step: Step) -> Step | CapturedStep | ReplayedStep:
        """Returns the step, or what captures it in a graph, as the plan says."""
        if self.plan is not None and self.steps_per_execution == AUTO:
            self.plan = self._with_together(self.plan)
            step.together = self.plan.steps_per_execution
        if self.plan is not None and self.plan.execution == "graph":
            return CapturedStep(step, self.optimizer, CudaGraphs(self.device), self._capture_failed)
        return self._replayed(step) if self.device.type == "cpu" else step

    def _replayed(self, step: Step) -> Step | ReplayedStep:
        """Returns what records and replays the step, which a later training goes on with, or the step where the plan says why not."""
        if self.plan is None or self.plan.compiled_for:
            return step
        self.plan = self.plan.with_replay(self._why_not_replayed(step))
        if self.plan.execution != "replay":
            return step
        if self._replay is None or not self._replay.is_of(step, self.optimizer):
            self._replay = ReplayedStep(step, self.optimizer, self._losses_and_metrics(), self._replay_failed)
        self._replay.begin_training(self._replay_failed)
        return self._replay

    def _why_not_replayed(self, step: Step) -> str | None:
        if self.execution == "eager":
            return ASKED_FOR_EAGER
        if defines(self.model, "train_step"):
            return "train_step may do more than compute"
        if self._pace.hooks:
            return "callbacks are called at each batch"
        return why_not_replayed(step.module, self._losses_and_metrics(), self.optimizer, self.device)

    def _losses_and_metrics(self) -> list[Any]:
        losses = [loss for head in self._heads for loss in (head.loss, head.soft_loss) if loss is not None]
        return [*losses, *(metric for head in self._heads for metric in head.all_metrics())]

    def _replay_failed(self, reason: str) -> None:
        assert self.plan is not None
        self.plan = self.plan.with_replay(reason)

    def _with_together(self, plan: Plan) -> Plan:
        """Returns the plan with as many steps in a graph as suits the present training."""
        if plan.execution != "graph":
            return plan.with_together(1, next(row.why for row in reversed(plan.rows) if row.name == GRAPH))
        if apart := why_not_together(self.optimizer):
            return plan.with_together(1, apart)
        return plan.with_together(*choose_together(plan.step_seconds(), self._pace))

    def _capture_failed(self, reason: str) -> None:
        assert self.plan is not None
        self.plan = self.plan.with_execution(reason)
        if self.steps_per_execution == AUTO and self._step is not None:
            self.plan = self._with_together(self.plan)
            self._step.together = 1

    def computing(self, training: bool = False) -> AbstractContextManager[None]:
        """Returns the context in which the model computes: its threads, and what float32 is (see `host.computing`)."""
        return computing(self.device, exact=self.precision == "float32", training=training)

    def find_plan(self, x: Any, y: Any, batch_size: int) -> Plan:
        """Returns the plan for training on such data, measured as for a long run; nothing is trained."""
        data, _ = self._data("fit", self._given("fit", x), y, None, batch_size, None, Drawing(0, shuffle=True))
        with self.computing(training=True):
            return self._plan(self._ready_step(bind=True), data, data_batch(data), 10**9)

    def _plan(self, step: Step, data: Resident | Streamed, batch: Batch | None, steps: int | None, saved: Plan | None = None) -> Plan:
        """Chooses the form in which the step runs, or takes that of a saved plan.

        Args:
            step: whose module and precision are set.
            data: where batches come from.
            batch: one of them, to measure on; None: nothing is measured.
            steps: how many are to come; None if unknown.
            saved: is to be taken.
        """
        whole = None if batch is None else batch.ready()
        if saved is not None and saved.micro_batch is not None and step.room.limit is None:
            step.room.limit = saved.micro_batch
        plan = step.attempt(lambda: self._choose(step, steps, saved, step.room.pieces(whole)[0] if whole else None, data), whole)
        return replace(plan, micro_batch=step.room.limit, residency=data.residency, residency_why=data.why)

    def _choose(self, step: Step, steps: int | None, saved: Plan | None, batch: Batch | None, data: Resident | Streamed) -> Plan:
        example = step.inputs(batch)[:] if batch else self._example
        searches = saved is None and batch is not None and any(head.loss is not None for head in self._heads)
        refused = self._why_no_graph(data)
        plan, step.module = make_plan(
            self.model, [x[:2] for x in example], self._probe(step, batch, self._graphs_of(step, refused)) if searches and batch else None,
            precision=step.precision if saved is None else PRECISIONS[saved.precision], device=self.device,
            lower=devices.why_not_bfloat16(self.device) if self.precision == "auto" and saved is None else "",
            batch_size=batch.size if batch else 0, steps=steps, fusions=self.fusions if saved is None else saved.as_fusions(),
            cache=cache_folder() / "plans", compiling=self._compiling(example, saved))
        step.precision = PRECISIONS[plan.precision]
        if saved is not None:
            if (plan.form, plan.fusions) != (saved.form, saved.fusions):
                raise CheckpointError(explain("plan", f"{plan.form} {plan.fusions}", f"the checkpoint's {saved.form} {saved.fusions}",
                                              "This version rewrites the model otherwise; resume=False starts anew."))
            if saved.compiled_for != plan.compiled_for:
                raise CheckpointError(explain("plan", why_not_compiled(self.device), "torch.compile, as in the checkpoint's plan",
                                              "Install what is missing; resume=False starts anew."))
            return replace(saved, before=plan.before, after=plan.after)
        plan = plan.with_execution(refused, 1 if self.steps_per_execution == AUTO else int(self.steps_per_execution),
                                   why_not_together(self.optimizer))
        replays = self.device.type == "cpu" and plan.execution == "eager"
        return plan.with_replay(self._why_not_replayed(step)) if replays else plan

    def _why_no_graph(self, data: Resident | Streamed) -> str | None:
        """Returns why the steps will not be graphs; None if they will."""
        if self.execution == "eager":
            return ASKED_FOR_EAGER
        refused = why_not_captured(self.optimizer, self.device) if isinstance(data, Resident) else "batches of a stream differ in shape"
        return refused or other_optimizer(self.model)

    def _compiling(self, example: Sequence[torch.Tensor], saved: Plan | None) -> Compiling | None:
        """Returns how `torch.compile` may be used: as saved, where it was asked for, or where something else is measured too."""
        if saved is not None:
            return Compiling(saved.compiled_for, why_not_compiled(self.device), asked=True) if saved.compiled_for else None
        asked = self.execution == "compile"
        if not asked and (self.execution in ("eager", "replay") or not (self.fusions == "auto" or self.precision == "auto")):
            return None
        return Compiling(shapes_of(example), why_not_compiled(self.device), asked)

    def _graphs_of(self, step: Step, refused: str | None) -> GraphBackend | None:
        """Returns what captures candidates for timing as the step will run; None where it runs as it is."""
        if refused is None:
            return CudaGraphs(self.device)
        return Recordings() if self.execution != "compile" and self._why_not_replayed(step) is None else None

    def _probe(self, step: Step, batch: Batch, graphs: GraphBackend | None) -> Probe:
        """Returns what measures on a batch, in graphs or not, and what holds results against float64 on a part of it."""
        samples = checked_samples(batch)
        few = batch if batch.size <= samples else part_of(batch, slice(0, samples))
        half = part_of(batch, slice(0, batch.size // 2)) if batch.size >= 2 * FEWEST_CHECKED and batch.size % 2 == 0 else None

        def loss_of(module: Any, precision: torch.dtype) -> torch.Tensor:
            return step.loss_alone(batch, module, precision)

        def checked_loss_of(module: Any, precision: torch.dtype) -> torch.Tensor:
            return step.loss_alone(few, module, precision)

        def half_loss_of(module: Any, precision: torch.dtype) -> torch.Tensor:
            assert half is not None
            return step.loss_alone(half, module, precision)

        return Probe(self.model, loss_of, self.device, checked_loss_of, graphs=graphs, half_loss_of=half_loss_of if half else None)


def checked_samples(batch: Batch) -> int:
    """Returns how many samples of a batch candidates are held against float64 on."""
    numbers = sum(x[0].numel() for x in batch.x)
    return max(FEWEST_CHECKED, min(CHECKED_SAMPLES, CHECKED_NUMBERS // max(1, numbers)))


def data_batch(data: Resident | Streamed) -> Batch | None:
    """Returns the first batch of data on the device; None of a stream, whose first batch would be gone."""
    return next(data.epoch()) if isinstance(data, Resident) else None
