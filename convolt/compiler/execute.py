"""Running what the plan chose: here, the whole training step as one captured graph that is replayed.

On CUDA, launching the hundred kernels of a small network's step costs more than running them. A CUDA graph launches all
of them at once. What that asks for: static addresses, so each batch is copied into the same buffers; nothing that reads
the device, which a step never does; and numbers that change from step to step (learning rate, bias corrections) in
device tensors, filled before each replay.
"""

from __future__ import annotations

import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import torch

from convolt.errors import ConvoltWarning

WARM_UP_STEPS = 3  # eager steps before the capture: they make optimizer state and choose algorithms


class CaptureWarning(ConvoltWarning):
    """A step could not be captured; it runs eagerly, with the same result."""


class GraphBackend(Protocol):
    """What can capture work on a device: CUDA graphs, or a stand-in that replays on the CPU."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Runs work in the way that a capture needs beforehand."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Records work without running it and returns what runs it."""


class CudaGraphs:
    """CUDA graphs through `torch.cuda.graph`.

    Args:
        device: where the work runs.
    """

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

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Records work; the pinning threads of a loader may go on meanwhile."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        # Graphs of one step never run at once, and none leaves anything in its memory for another: they share it.
        pool = next((other.pool() for other in self._graphs), None)
        with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        self._graphs.add(graph)
        return graph.replay


class CapturedStep:
    """A training step that is captured once and replayed for each batch of the same shape.

    The first steps and batches of another shape (the last one of an epoch) run eagerly; where augmentation gives pictures of
    another size from some epoch on, the graphs are made anew. Where steps differ in what they do on
    the device (an optimizer that adds up gradients updates only every k-th time), each variant is captured at its turn.
    Graphs are captured anew when memory runs out and the micro-batches become smaller. It stands in for the step in the
    loop: what it does not change, such as `evaluate`, is the step's own.

    Args:
        step: with `device_part(batch)`, the part of a step that touches the device alone; `attempt`, which tries again with
            smaller micro-batches; and `room.limit`, their size.
        optimizer: with `prepare_step()` and `finish_step()`, the parts of an update on the host, and `variant`, the name of
            the device part between them.
        backend: captures and replays.
        on_failure: called with the reason when the capture fails.
    """

    def __init__(self, step: Any, optimizer: Any, backend: GraphBackend, on_failure: Callable[[str], None]) -> None:
        self._step = step
        self._optimizer = optimizer
        self._backend = backend
        self._on_failure = on_failure
        self._warm_ups: Counter[Any] = Counter()
        self._static: Any = None
        self._stage: Any = None
        self._replays: dict[Any, Callable[[], None]] = {}
        self._limit: int | None = None
        self._failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)

    def train(self, batch: Any) -> None:
        """Trains on one batch."""
        if self._stage != (stage := _stage(batch)):  # pictures of another size from now on: as if from the start
            self._stage, self._static = stage, None
            self._replays.clear()
            self._warm_ups.clear()
        if self._failed or (self._static is not None and _shapes(batch) != _shapes(self._static)):
            self._step.train(batch)
        elif self._warm_ups.total() < WARM_UP_STEPS or not self._warm_ups[self._optimizer.variant]:
            self._warm_ups[self._optimizer.variant] += 1
            self._backend.warm_up(lambda: self._step.train(batch))
        else:
            self._train_captured(batch)

    def _train_captured(self, batch: Any) -> None:
        if self._static is None:
            self._static = batch.copied()
        else:
            for target, source in zip(self._static.tensors(), batch.tensors(), strict=True):
                target.copy_(source, non_blocking=True)
        self._optimizer.prepare_step()
        try:
            replay = self._captured()
        except RuntimeError as error:  # CUDA reports what a graph cannot hold as a RuntimeError
            self._give_up(error)
            self._step.attempt(lambda: self._step.device_part(batch), batch)
            self._optimizer.finish_step()
            return
        replay()
        self._optimizer.finish_step()

    def _captured(self) -> Callable[[], None]:
        """Returns the graph for what the step to come does, captured now if there is none."""
        if self._step.room.limit != self._limit:
            self._replays.clear()
        variant = self._optimizer.variant
        if variant not in self._replays:
            self._replays[variant] = self._step.attempt(self._capture, self._static)
            self._limit = self._step.room.limit
        return self._replays[variant]

    def _capture(self) -> Callable[[], None]:
        return self._backend.capture(lambda: self._step.device_part(self._static))

    def _give_up(self, error: RuntimeError) -> None:
        self._failed = True
        self._replays.clear()
        reason = str(error).splitlines()[0]
        self._on_failure(reason)
        warnings.warn(f"the training step could not be captured in a graph and runs eagerly: {reason}", CaptureWarning, stacklevel=4)


def _stage(batch: Any) -> Any:
    return None if batch.pending is None else batch.pending.stage


def _shapes(batch: Any) -> list[Any]:
    return [len(batch.y), len(batch.weights), *((t.shape, t.dtype) for t in batch.tensors())]


def why_not_captured(model: Any, optimizer: Any, device: torch.device) -> str | None:
    """Returns why a step cannot be captured on this device, by rule; None if it can."""
    if device.type != "cuda":
        return f"graphs of whole steps need CUDA, not {device.type}"
    seeded = [name for name, module in model.named_modules() if getattr(module, "generators", None)]
    if seeded:
        return f"layer {seeded[0]!r} has a seed, and so a random generator of its own"
    if not getattr(optimizer, "capturable", True):
        return f"the optimizer {optimizer.name!r} keeps its learning rate on the host"
    return None
