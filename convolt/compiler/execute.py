"""Running what the plan chose: here, the whole training step as one captured graph that is replayed, or several steps in one.

On CUDA, launching the hundred kernels of a small network's step costs more than running them. A CUDA graph launches all
of them at once. What that asks for: static addresses, so each batch is copied into the same buffers; nothing that reads
the device, which a step never does; and numbers that change from step to step (learning rate, bias corrections) in
device tensors, filled before each replay. A graph of several steps takes these numbers from the rows of one tensor.
"""

from __future__ import annotations

import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from convolt.errors import ConvoltWarning

MOST_TOGETHER = 16  # steps in a graph: the start of a graph is then a sixteenth of what it was, and capturing takes sixteen times as long
TOGETHER_SECONDS = 0.05  # of the steps in a graph: progress lines, Ctrl-C and checkpoints wait for the end of it
WHOLE_GROUPS = 0.9  # share of an epoch's batches that must be in whole groups: what is left at its end runs step by step
WARM_UP_STEPS = 3  # eager steps before the capture: they make optimizer state and choose algorithms


class CaptureWarning(ConvoltWarning):
    """A step could not be captured; it runs eagerly, with the same result."""


class GraphBackend(Protocol):
    """What can capture work on a device: CUDA graphs, or recordings on the CPU.

    Attributes:
        keeps: whether a capture takes little memory, so that it can be used again later.
    """

    keeps: bool

    def warm_up(self, work: Callable[[], None]) -> None:
        """Runs work in the way that a capture needs beforehand."""

    def capture(self, work: Callable[[], None], generators: Sequence[torch.Generator] = ()) -> Callable[[], None]:
        """Records work, which draws from `generators` beside PyTorch's own, and returns what runs it; on CUDA without running it."""


class CudaGraphs:
    """CUDA graphs through `torch.cuda.graph`.

    Args:
        device: where the work runs.
    """

    keeps = False

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def warm_up(self, work: Callable[[], None]) -> None:
        """Runs work on a side stream, as captures need it."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def capture(self, work: Callable[[], None], generators: Sequence[torch.Generator] = ()) -> Callable[[], None]:
        """Records work; the pinning threads of a loader may go on meanwhile. Each replay moves the generators on."""
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            if generator.device == self._device:
                graph.register_generator_state(generator)
        torch.cuda.synchronize(self._device)
        # Graphs of one step never run at once, and none leaves anything in its memory for another: they share it.
        pool = next((other.pool() for other in self._graphs), None)
        with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        self._graphs.add(graph)
        return graph.replay


class CapturedStep:
    """A training step that is captured once and replayed for each batch of the same shape.

    The first steps run eagerly, and so does the first one of each shape (that of the last batch of an epoch is another) and of
    each variant: an optimizer that adds up gradients updates only every k-th time. Where augmentation gives pictures of another
    size from some epoch on, the graphs are made anew, as they are when memory runs out and the micro-batches become smaller. It
    stands in for the step in the loop: what it does not change, such as `evaluate`, is the step's own.

    Args:
        step: with `device_part(batch)`, the part of a step that touches the device alone; `attempt`, which tries again with
            smaller micro-batches; `room.limit`, their size; `kept.generators()`, from which the model draws; and `together`,
            how many steps are executed at once. That many batches of one shape are one graph.
        optimizer: with `prepare_step()` and `finish_step()`, the parts of an update on the host, and `variant`, the name of
            the device part between them; for several steps `numbers_ahead`, `use_numbers` and `works_between`.
        backend: captures and replays.
        on_failure: called with the reason when the capture fails.
    """

    def __init__(self, step: Any, optimizer: Any, backend: GraphBackend, on_failure: Callable[[str], None]) -> None:
        self._step = step
        self._optimizer = optimizer
        self._backend = backend
        self._on_failure = on_failure
        self._warm_ups: Counter[Any] = Counter()
        self._static: dict[Any, list[Any]] = {}
        self._numbers: torch.Tensor | None = None
        self._stage: Any = None
        self._replays: dict[Any, Callable[[], None]] = {}
        self._limit: int | None = None
        self._failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)

    def train(self, batch: Any) -> None:
        """Trains on one batch."""
        self._train([batch])

    def train_together(self, batches: Sequence[Any]) -> None:
        """Trains on several batches, one step after the other, in one graph where there are `together` of one shape."""
        alike = len({batch_shape(batch) for batch in batches}) == 1
        if len(batches) == self._step.together and why_not_together(self._optimizer) is None and alike:
            self._train(batches)
        else:
            for batch in batches:
                self._train([batch])

    def _train(self, batches: Sequence[Any]) -> None:
        if self._stage != (stage := _stage(batches[0])):  # pictures of another size from now on: as if from the start
            self._stage = stage
            self._static.clear()
            self._replays.clear()
            self._warm_ups.clear()
        kinds = self._kinds(batches)
        if self._failed:
            self._run_eagerly(batches)
        elif self._warm_ups.total() < WARM_UP_STEPS or not all(self._warm_ups[kind] for kind in kinds):
            self._warm_ups.update(kinds)
            self._backend.warm_up(lambda: self._run_eagerly(batches))
        else:
            self._train_captured(batches, kinds)

    def _run_eagerly(self, batches: Sequence[Any]) -> None:
        for batch in batches:
            self._step.train(batch)

    def _kinds(self, batches: Sequence[Any]) -> tuple[Any, ...]:
        """Returns what each of the steps to come does on the device: the shape of its batch and the optimizer's variant."""
        start, kinds = self._optimizer.steps, []
        for batch in batches:
            kinds.append((batch_shape(batch), self._optimizer.variant))
            self._optimizer.steps += 1
        self._optimizer.steps = start
        return tuple(kinds)

    def _train_captured(self, batches: Sequence[Any], kinds: tuple[Any, ...]) -> None:
        static = self._filled(batches)
        if len(batches) == 1:
            self._optimizer.prepare_step()
        else:
            numbers = self._optimizer.numbers_ahead(len(batches))
            self._numbers = numbers if self._numbers is None else self._numbers.copy_(numbers)
        try:
            replay = self._captured(static, kinds)
        except RuntimeError as error:  # CUDA reports what a graph cannot hold as a RuntimeError
            self._give_up(error)
            self._run_eagerly(batches)
            return
        replay()
        for _ in batches:
            self._optimizer.finish_step()

    def _filled(self, batches: Sequence[Any]) -> list[Any]:
        """Returns batches in memory that stays, filled with the given ones."""
        static = self._static.setdefault(batch_shape(batches[0]), [])
        for place, batch in enumerate(batches):
            if place == len(static):
                static.append(batch.copied())
                continue
            for target, source in zip(static[place].tensors(), batch.tensors(), strict=True):
                target.copy_(source, non_blocking=True)
        return static[: len(batches)]

    def _captured(self, static: list[Any], kinds: tuple[Any, ...]) -> Callable[[], None]:
        """Returns the graph for what the steps to come do, captured now if there is none."""
        if self._step.room.limit != self._limit:
            self._replays.clear()
        if kinds not in self._replays:
            self._replays[kinds] = self._step.attempt(lambda: self._capture(static), static[0])
            self._limit = self._step.room.limit
        return self._replays[kinds]

    def _capture(self, static: list[Any]) -> Callable[[], None]:
        return self._backend.capture(lambda: self._device_part(static), self._step.kept.generators())

    def _device_part(self, static: list[Any]) -> None:
        if len(static) == 1:
            self._step.device_part(static[0])
            return
        assert self._numbers is not None
        start = self._optimizer.steps
        try:
            for batch, row in zip(static, self._numbers.unbind(), strict=True):
                self._optimizer.use_numbers(row)
                self._step.device_part(batch)
                self._optimizer.steps += 1  # the variant of the next step follows from it; nothing else does between two steps
        finally:
            self._optimizer.steps = start

    def _give_up(self, error: RuntimeError) -> None:
        self._failed = True
        self._replays.clear()
        self._static.clear()
        reason = str(error).splitlines()[0]
        self._on_failure(reason)
        warnings.warn(f"the training step could not be captured in a graph and runs eagerly: {reason}", CaptureWarning, stacklevel=4)


def _stage(batch: Any) -> Any:
    return None if batch.pending is None else batch.pending.stage


def batch_shape(batch: Any) -> Any:
    """Returns what batches must have in common for one graph, or one program, to be right for them."""
    return len(batch.y), len(batch.weights), *((t.shape, t.dtype) for t in batch.tensors())


def why_not_captured(optimizer: Any, device: torch.device) -> str | None:
    """Returns why a step cannot be captured on this device, by rule; None if it can."""
    if device.type != "cuda":
        return f"graphs of whole steps need CUDA, not {device.type}"
    if not getattr(optimizer, "capturable", True):
        return f"the optimizer {optimizer.name!r} keeps its learning rate on the host"
    return None


def why_not_together(optimizer: Any) -> str | None:
    """Returns why several steps cannot be captured in one graph, by rule; None if they can."""
    return f"the optimizer {optimizer.name!r} works on the weights between two steps" if optimizer.works_between else None


@dataclass(frozen=True)
class Pace:
    """What of a training looks in between its steps.

    Attributes:
        full_batches: of an epoch, the smaller last one left out; None if unknown.
        steps: of an epoch; None if unknown.
        hooks: whether callbacks are called at batches.
        every_steps: at which steps a checkpoint is due; None: at none.
    """

    full_batches: int | None = None
    steps: int | None = None
    hooks: bool = False
    every_steps: int | None = None


def choose_together(seconds: float | None, pace: Pace) -> tuple[int, str]:
    """Returns how many steps are one graph where that is to be chosen, and why; nobody can tell the steps from single ones.

    Args:
        seconds: of a step; None where it was not measured.
        pace: of the training.
    """
    if pace.hooks:
        return 1, "callbacks are called at each batch"
    if seconds is None:
        return 1, "the time of a step was not measured"
    if pace.full_batches is None:
        return 1, "the length of an epoch is not known"
    for count in range(MOST_TOGETHER, 1, -1):
        due = pace.every_steps is None or (pace.every_steps % count == 0 and pace.steps is not None and pace.steps % count == 0)
        if count * seconds <= TOGETHER_SECONDS and due and pace.full_batches // count * count >= WHOLE_GROUPS * pace.full_batches:
            return count, f"{count * seconds * 1e3:.0f} ms for all of them"
    if 2 * seconds > TOGETHER_SECONDS:
        return 1, f"a step takes {seconds * 1e3:.0f} ms, beside which its start is nothing"
    if pace.every_steps is not None:
        return 1, f"a checkpoint is due every {pace.every_steps} steps of {pace.steps} in an epoch"
    return 1, f"an epoch has {pace.full_batches} whole batches"
