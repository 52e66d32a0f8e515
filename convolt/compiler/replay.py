"""The whole training step on a CPU, recorded once and replayed as a program without autograd and layers.

The first steps run as ever. Two of them are recorded; if both did the same, that is made a program (`convolt.compiler.program`), and
what comes is done by it, with the same results to the last bit. A smaller last batch has a program of its own. Numbers that change
from step to step lie in tensors, which the optimizer fills before each step, as for a CUDA graph (`convolt.compiler.execute`).
"""

from __future__ import annotations

import functools
import inspect
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from convolt.compiler.arena import Arena
from convolt.compiler.execute import batch_shape
from convolt.compiler.host import returning_freed_memory
from convolt.compiler.program import CannotReplayError, Program, RecordingsDifferError, make_program, program_of, sliced_run_of
from convolt.compiler.record import Recorder, Recording

LONG_RUN = 3.0
"""Seconds of a run that is timed as it is, since what comes before its program is timed costs more than that tells.

A fused layer costs some 0.3 ms of Python in each step that is not replayed, more than PyTorch's own. By that alone a search refused batch
normalization's kernels at 0.84 of the speed in EfficientNetV2-B0's step of 230 ms, whose operations take 36 ms replayed and PyTorch's 44.
"""
ATTEMPTS = 3
"""Recordings after the first one that may differ from the one before: something was made in the first steps alone."""
MOST_PROGRAMS = 8
"""Of batches of different shapes; the others' steps run as ever."""


class ReplayedStep:
    """A training step that is recorded, and then replayed for each batch of the same shape.

    It stands in for the step in the loop; what it does not change is the step's own.

    Args:
        step: with `device_part(batch)`, the part of a step between the optimizer's `prepare_step` and `finish_step`; `attempt`, which
            tries again with smaller micro-batches; `room.limit` and `test_room.limit`, their size; and `evaluate(batch)`.
        optimizer: of the step; `variant` names what it does on the device.
        parts: losses and metrics of the step.
        on_failure: called with the reason when a step cannot be replayed.
    """

    def __init__(self, step: Any, optimizer: Any, parts: Sequence[Any], on_failure: Callable[[str], None]) -> None:
        self._step = step
        self._optimizer = optimizer
        self._parts = parts
        self._on_failure = on_failure
        self._settings: Any = None
        self._runs: Counter[Any] = Counter()
        self._attempts: Counter[Any] = Counter()
        self._recordings: dict[Any, Recording] = {}
        self._programs: dict[Any, Program] = {}
        self._unsure: set[Any] = set()
        self._failed = False
        self._arena = Arena()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)

    def is_of(self, step: Any, optimizer: Any) -> bool:
        """Whether this is the replay of a step with an optimizer."""
        return self._step is step and self._optimizer is optimizer

    def begin_training(self, on_failure: Callable[[str], None]) -> None:
        """Begins another training with what is known from the one before, and looks at it once more."""
        self._on_failure, self._failed, self._settings = on_failure, False, None

    def end_training(self) -> None:
        """Gives the memory in which programs work back until the next training."""
        self._arena.release()

    def begin_epoch(self) -> None:
        """Looks whether callbacks, or whoever was at work before the training, have changed a layer, its weights' place, or the optimizer.

        If so, the next step of each kind is recorded once more, and replayed from then on only if it did the same as before.
        """
        settings = [settings_of(part) for part in (*self._step.module.modules(), self._optimizer, *self._parts)]
        if settings != self._settings:
            self._settings = settings
            self._unsure = set(self._programs)

    def train(self, batch: Any) -> None:
        """Trains on one batch."""
        if self._failed:
            self._step.train(batch)
            return
        kind = (*_kind_of(batch), self._optimizer.variant, self._step.room.limit, self._step.module.training)
        program = self._program(kind)
        if program is None and not self._is_to_record(kind):
            first = self._runs.total() == 1  # what it leaves in the heap would not fit the program's needs
            with returning_freed_memory() if first else nullcontext():
                self._step.train(batch)
            return
        self._optimizer.prepare_step()
        if program is not None:
            program(*batch.tensors())
        else:
            self._step.attempt(lambda: self._record(kind, batch, lambda: self._step.device_part(batch)), batch)
            if reason := self._recordings[kind].reason:
                self._give_up(reason)
        self._optimizer.finish_step()

    def evaluate(self, batch: Any) -> None:
        """Evaluates a batch, as `Step.evaluate` does; validation between two epochs of the training is recorded as well."""
        kind = (*_kind_of(batch), "evaluation", self._step.test_room.limit, self._step.module.training)
        program = None if self._failed else self._program(kind)
        if program is not None:
            program(*batch.tensors())
        elif self._failed or not self._is_to_record(kind):
            self._step.evaluate(batch)
        else:
            self._record(kind, batch, lambda: self._step.evaluate(batch))

    def train_together(self, batches: Sequence[Any]) -> None:
        """Trains on several batches, one step after the other."""
        for batch in batches:
            self.train(batch)

    def _program(self, kind: Any) -> Program | None:
        return None if kind in self._unsure else self._programs.get(kind)

    def _is_to_record(self, kind: Any) -> bool:
        """Whether the step to come is recorded: not the first one of its kind, in which kernels are compiled and algorithms chosen."""
        runs, self._runs[kind] = self._runs[kind], self._runs[kind] + 1
        known = kind in self._programs or len(self._programs) < MOST_PROGRAMS
        refused = kind in self._recordings and bool(self._recordings[kind].reason)
        return runs > 0 and known and not refused

    def _record(self, kind: Any, batch: Any, work: Callable[[], None]) -> None:
        """Does the work, and makes it a program once it has done the same twice."""
        recorder = Recorder(batch.tensors())
        with returning_freed_memory(), recorder:
            work()
        recording, before = recorder.recording, self._recordings.get(kind)
        self._recordings[kind] = recording
        if kind in self._unsure:
            self._unsure.discard(kind)
            if recording.reason or before is None or before.difference(recording):
                del self._programs[kind]
        elif before is not None and not recording.reason:
            self._attempts[kind] += 1
            try:
                self._make(kind, before, recording)
            except CannotReplayError as error:
                if not isinstance(error, RecordingsDifferError) or self._attempts[kind] >= ATTEMPTS:
                    recording.reason = str(error)

    def _make(self, kind: Any, before: Recording, recording: Recording) -> None:
        """Makes a program, and the others anew if the memory in which they all work has moved."""
        memory = self._arena.memory
        self._programs[kind] = program_of(before, recording, self._arena)
        if self._arena.memory is not memory:
            self._programs |= {other: make_program(self._recordings[other], self._arena) for other in self._programs if other != kind}

    def _give_up(self, reason: str) -> None:
        self._failed = True
        self._recordings.clear()
        self._programs.clear()
        self._arena.release()
        self._on_failure(reason)


class Recordings:
    """Runs of a candidate as they will be in a replayed step, for timing: a `GraphBackend` on the CPU.

    What cannot be replayed, and what is long beside all that Python does, is timed as it is.

    Args:
        clock: returns seconds.
    """

    keeps = True

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._long: bool | None = None

    def warm_up(self, work: Callable[[], None]) -> None:
        """Runs work. The first one, the model as it is, says whether all forms are timed as they are: one is compared with the other."""
        seconds = self._seconds(work)
        if self._long is None:
            near = LONG_RUN < seconds < 3 * LONG_RUN  # a first run takes longer than those that follow
            self._long = (self._seconds(work) if near else seconds) > LONG_RUN

    def _seconds(self, work: Callable[[], None]) -> float:
        began = self._clock()
        work()
        return self._clock() - began

    def capture(self, work: Callable[[], None], generators: Sequence[torch.Generator] = ()) -> Callable[[], None]:
        """Returns a program of the work, which it runs once for that, or the work itself."""
        if self._long:
            return work
        recorder = Recorder([])
        with recorder:
            work()
        try:
            return work if recorder.recording.reason else sliced_run_of(recorder.recording)
        except CannotReplayError:
            return work


def why_not_replayed(module: nn.Module, parts: Sequence[Any], optimizer: Any, device: torch.device) -> str | None:
    """Returns why a step cannot be replayed, by rule; None if it can.

    A replay calls no Python of layers, losses and metrics. Those of Convolt and PyTorch need no more than what a recording has.

    Args:
        module: that runs, the model or what stands in for it.
        parts: losses and metrics.
        optimizer: of the step.
        device: where it runs.
    """
    if device.type != "cpu":
        return f"steps are recorded on CPUs, not on {device.type}"
    if not getattr(optimizer, "capturable", True):
        return f"the optimizer {optimizer.name!r} keeps its learning rate on the host"
    if threading.current_thread() is not threading.main_thread():
        return "kernels run on Python's threads outside of the main thread"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on around fit"
    if torch.is_anomaly_enabled():
        return "autograd looks for anomalies"
    own = (f"{own} may do more than compute" for part in (*parts, optimizer) if (own := _own_code(part)))
    return why_not_recorded(module) or next(own, None)


def why_not_recorded(module: nn.Module) -> str | None:
    """Returns why what a module does in Python may be more than a recording has; None if it is not."""
    for name, layer in module.named_modules():
        if own := _own_code(layer):
            return f"{name or 'the model'} calls {own}, which may do more than compute"
        if any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)):
            return f"{name or 'the model'} has hooks"
    return None


def _own_code(part: Any, seen: frozenset[int] = frozenset()) -> str:
    """Returns the name of code in a layer, loss or metric that is neither Convolt's nor PyTorch's; "" if there is none."""
    if not _is_known(type(part)):
        return type(part).__name__
    seen |= {id(part)}
    for value in vars(part).values():
        for each in value if isinstance(value, (list, tuple)) else [value]:
            code = each.func if isinstance(each, functools.partial) else each
            code = code if inspect.isroutine(code) or isinstance(code, type) else type(code)
            if callable(each) and not isinstance(each, nn.Module) and not _is_known(code):
                return code.__name__
            inner = type(each).__module__.startswith("convolt.") and hasattr(each, "__dict__") and not isinstance(each, nn.Module)
            if inner and id(each) not in seen and (own := _own_code(each, seen)):
                return own
    return ""


def settings_of(part: Any) -> list[Any]:
    """Returns what of a layer, loss, metric or optimizer a program takes for granted: numbers, names, and where tensors lie."""
    found: list[Any] = [id(part)]
    for name, value in vars(part).items():
        if name in ("_parameters", "_buffers"):
            found += [(key, t.data_ptr(), t.requires_grad) for key, t in value.items() if t is not None]
        elif name.endswith("_hooks"):
            found.append((name, len(value)))
        elif isinstance(value, (float, str, bool, type(None))) or (isinstance(value, int) and isinstance(part, nn.Module)):
            found.append((name, value))
        elif isinstance(value, tuple):
            found.append((name, repr(value)))
        elif callable(value):
            found.append((name, id(value)))
    return found


def _kind_of(batch: Any) -> tuple[Any, ...]:
    strides = tuple(tensor.stride() for tensor in batch.tensors())
    return batch_shape(batch), strides, None if batch.pending is None else batch.pending.stage, torch.get_num_threads()


def _is_known(code: Any) -> bool:
    return str(getattr(code, "__module__", "")).split(".")[0] in ("convolt", "torch", "torchmetrics", "_operator", "builtins")
