"""`Keeper`: what the loop tells about its progress, and what decides when the state is saved."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from convolt.compiler import Plan
from convolt.data.batches import Batch, Resident, Streamed
from convolt.errors import NonFiniteError, explain
from convolt.training.checkpoint.capture import Cursor, Live
from convolt.training.checkpoint.options import Checkpoint
from convolt.training.checkpoint.signals import Signals
from convolt.training.checkpoint.store import Saved, Store
from convolt.training.checkpoint.writer import Snapshot, Writer, all_finite
from convolt.training.monitors import Monitor, higher_is_better

BUDGET = 0.02
"""Share of the training's time that copies of its state may take at the ends of epochs."""
MOMENT = 10.0
"""Seconds of work that may be lost where epochs are so short that the budget does not allow a copy after each."""


class Keeper:
    """Keeps nothing: what the loop talks to when no checkpoints are asked for."""

    def start(self, first: int) -> Cursor:
        """Returns the place at which the loop begins."""
        return Cursor(first)

    def restore(self) -> None:
        """Puts the saved state back, if there is one; called after the hooks that come before the first batch."""

    def batches(self, data: Resident | Streamed, at: Cursor) -> Iterator[Batch]:
        """Returns the batches of an epoch from a place in it on."""
        return data.epoch(at.epoch, at.batch, at.seen)

    def step_done(self, epoch: int, batch: int, seen: int) -> None:
        """Told after each step, or after several that were executed together: batches and samples of the epoch so far."""

    def validation_begin(self, at: Cursor) -> None:
        """Told when an epoch's training is done and its validation begins."""

    def poll(self) -> None:
        """Told after each batch of validation."""

    def epoch_done(self, epoch: int, logs: Mapping[str, Any], last: bool) -> None:
        """Told at the end of each epoch, after the hooks."""

    def look(self, values: Mapping[str, Any], where: Cursor) -> None:
        """Shown losses that were read anyway."""

    def stop_note(self) -> str:
        """Returns what is said when Ctrl-C ends the training."""
        return "Stopped by Ctrl-C: the model keeps its present weights, and the history so far is returned."


class CheckpointKeeper(Keeper):
    """Saves the state of a training, and goes on from a saved one.

    Args:
        options: when and where.
        store: the folder, locked.
        writer: writes in the background.
        live: what is saved.
        common: entries of the state that stay the same through the training: settings, seeds.
        plan: how the step runs.
        saved: the checkpoint to go on from; None: from the start.
        allowed: settings that may differ from the saved ones.

    Attributes:
        plan: as above; may be set once the training has begun.
        reached: the last place that the loop told.
    """

    def __init__(self, options: Checkpoint, store: Store, writer: Writer, live: Live, common: Mapping[str, Any], plan: Plan,
                 saved: Saved | None, allowed: tuple[str, ...] = (), clock: Callable[[], float] = time.perf_counter) -> None:
        self._options = options
        self._store = store
        self._writer = writer
        self.live = live
        self._common = dict(common)
        self.plan = plan
        self._saved = saved
        self._allowed = frozenset(allowed)
        self._clock = clock
        self._signals = Signals()
        self._started = self._last = clock()
        self._stalled = 0.0
        self._count = 0
        self._epoch_random: dict[str, Tensor] = {}
        self._before_validation: tuple[Cursor, dict[str, Tensor]] | None = None
        self._best: tuple[str, float] | None = None
        self._steps = int(live.optimizer.steps)
        self.reached = Cursor(0)

    # -- what the loop calls -----------------------------------------------------------------------------------------

    def start(self, first: int) -> Cursor:
        """Returns the saved place; without one writes the first checkpoint, so that a disk fault shows before the first step."""
        self._writer.may_be_infinite = {f"model/{name}" for name, tensor in self.live.weights() if not all_finite(tensor)}
        self._signals.watch()
        if self._saved is None:
            self._save(Cursor(first))
            self._writer.wait()
            self._started = self._last = self._clock()
            self._stalled = 0.0
            return Cursor(first)
        return Cursor.from_json(self._saved.state.get("cursor"))

    def restore(self) -> None:
        """Puts the saved state back."""
        if self._saved is not None:
            self.restore_from(self._saved)
            self._saved = None  # its memory is free again

    def restore_from(self, saved: Saved) -> None:
        """Puts the state of a checkpoint back."""
        tensors, state = saved.tensors, saved.state
        rate = bool(self._allowed & {"learning_rate", "optimizer.learning_rate", "optimizer", "epochs", "length of schedule"})
        self.live.restore(tensors, state, keep_rate=rate, other_callbacks="callbacks" in self._allowed)
        self._epoch_random = _under(tensors, "random_at_epoch/")
        self.live.set_random(_under(tensors, "random/"))
        self._steps = self.live.optimizer.steps
        best = state.get("best")
        self._best = (str(best[0]), float(best[1])) if isinstance(best, list) and len(best) == 2 else None
        self._started = self._last = self._clock()

    def batches(self, data: Resident | Streamed, at: Cursor) -> Iterator[Batch]:
        """Returns the batches from a place on; in the middle of an epoch its order is drawn again as at its start."""
        if at.batch == 0:
            self._epoch_random = self.live.random()
            return data.epoch(at.epoch)
        now = self.live.random()
        self.live.set_random(self._epoch_random)
        found = data.epoch(at.epoch, at.batch, at.seen)
        self.live.set_random(now)
        return found

    def step_done(self, epoch: int, batch: int, seen: int) -> None:
        """Saves when it is time to; on Ctrl-C or SIGTERM saves and stops."""
        self.reached = Cursor(epoch, batch, seen)
        if self._signals.received is not None:
            self._stop(self.reached)
        self._writer.check()
        if self._is_due() or self._is_time():
            self._save(self.reached)

    def validation_begin(self, at: Cursor) -> None:
        """Remembers the place, to which a stop in the middle of the validation returns."""
        self._before_validation = at, self.live.random()
        if self._is_time():
            self._save(at)

    def poll(self) -> None:
        """Stops on Ctrl-C or SIGTERM in a validation, as if it had not begun."""
        if self._signals.received is not None and self._before_validation is not None:
            at, random = self._before_validation
            self._stop(at, random)

    def epoch_done(self, epoch: int, logs: Mapping[str, Any], last: bool) -> None:
        """Saves the end of an epoch, unless epochs are so short that copies would take more than their share of time."""
        self._before_validation = None
        is_best = self._is_best(logs)
        now = self._clock()
        too_much = self._stalled > BUDGET * (now - self._started) and now - self._last < MOMENT
        stopping = self._signals.received is not None
        if last or is_best or stopping or not too_much:
            self._save(Cursor(epoch + 1), is_best)
        if stopping:
            self._pass_on()

    def look(self, values: Mapping[str, Any], where: Cursor) -> None:
        """Raises `NonFiniteError` for a loss that is NaN or infinite."""
        loss = values.get("loss")
        if loss is not None and not math.isfinite(loss):
            raise NonFiniteError(explain(f"loss in epoch {where.epoch + 1}, up to step {where.batch}", str(float(loss)), "a finite number"))

    def stop_note(self) -> str:
        """Returns where the checkpoint is and how to go on."""
        if self._writer.written is None or self._signals.received is None:
            return super().stop_note()
        return f"Stopped: all is saved in {self._writer.written}. The same call again goes on from there."

    # -- the end -----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Waits until the last checkpoint is on the disk; raises what went wrong, and a signal that came too late for the loop."""
        self._writer.wait()
        if self._signals.pending:
            self._signals.pass_on()

    def close(self, then: Callable[[], object] = bool, wait: bool = True) -> None:
        """Ends the writing and gives the signals back, also after an error; see `Writer.close`."""
        self._signals.restore()
        self._writer.close(then, wait)

    def record(self) -> dict[str, float]:
        """Returns seconds that copies kept the training waiting, seconds of the training, their ratio, and the number of copies."""
        trained = max(self._clock() - self._started, 1e-9)
        share = self._stalled / trained
        return {"stalled_seconds": self._stalled, "trained_seconds": trained, "stalled_share": share, "copies": self._count}

    # -- saving ------------------------------------------------------------------------------------------------------

    def _is_due(self) -> bool:
        """Whether a multiple of `every_steps` has been reached since the last look; several steps may lie between two looks."""
        every, steps, before = self._options.every_steps, self.live.optimizer.steps, self._steps
        self._steps = steps
        return every is not None and steps // every > before // every

    def _is_time(self) -> bool:
        seconds = self._options.every_seconds
        return seconds is not None and self._clock() - self._last >= seconds and not self._writer.busy

    def _save(self, at: Cursor, is_best: bool = False, random: dict[str, Tensor] | None = None) -> None:
        start = self._clock()
        spare, self._writer.spare = self._writer.spare, None
        tensors, state = self.live.capture(spare)
        tensors |= {f"random/{name}": value for name, value in (random or self.live.random()).items()}
        if at.within:
            tensors |= {f"random_at_epoch/{name}": value for name, value in self._epoch_random.items()}
        state |= self._common | {"cursor": at.to_json(), "plan": self.plan.to_json(), "best": self._best}
        state["written"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._count += 1
        copied = self._clock()
        self._stalled += copied - start
        state["record"] = self.record()
        self._writer.submit(Snapshot(tensors, state, _event(tensors), is_best, at.words()))
        self._last = self._clock()
        self._stalled += self._last - copied

    def _stop(self, at: Cursor, random: dict[str, Tensor] | None = None) -> None:
        self._save(at, random=random)
        self._pass_on()

    def _pass_on(self) -> None:
        self._writer.wait()
        self._signals.pass_on()

    def _is_best(self, logs: Mapping[str, Any]) -> bool:
        validated = "val_loss" in logs or (self._best is not None and self._best[0] == "val_loss")
        name = self._options.monitor or ("val_loss" if validated else "loss")
        value = logs.get(name)
        if value is None or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        if self._best is None or self._best[0] != name or self._better(name, float(value), self._best[1]):
            self._best = (name, float(value))
            return True
        return False

    def _better(self, name: str, value: float, than: float) -> bool:
        monitor = Monitor(name, self._options.mode)
        monitor.set_model(self.live.model)
        return value > than if higher_is_better(monitor) else value < than


def _event(tensors: Mapping[str, Tensor]) -> Any:
    """Returns a CUDA event behind the copies, or None where all lie on the host."""
    device = next((t.device for t in tensors.values() if t.device.type == "cuda"), None)
    return None if device is None else torch.cuda.current_stream(device).record_event()


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
