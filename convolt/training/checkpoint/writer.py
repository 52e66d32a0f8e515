"""Writing checkpoints in the background: training goes on while a copy of its state is hashed and written."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from convolt.errors import NonFiniteError, explain
from convolt.training.checkpoint.capture import to_host
from convolt.training.checkpoint.store import Store

_LOSSES = "totals/sums"


@dataclass
class Snapshot:
    """A copy of the state, on its way to the disk.

    Attributes:
        tensors: copies on the device.
        state: the rest, as JSON values.
        ready: CUDA event behind the copies; None on a CPU.
        is_best: whether it is the best epoch's so far.
        where: the place in the training, in words.
    """

    tensors: Mapping[str, Tensor]
    state: dict[str, Any]
    ready: Any = None
    is_best: bool = False
    where: str = ""


@dataclass
class Writer:
    """One thread that writes the snapshots it is given. One that still waits gives way to a newer one, unless it is the best.

    Args:
        store: where they go.
        may_be_infinite: names of weights that were not finite to begin with, such as masks.

    Attributes:
        written: path of the last checkpoint on the disk.
        seconds: spent on writing in all, beside the training.
        spare: copies that were written, whose memory the next ones may use.
    """

    store: Store
    may_be_infinite: Collection[str] = ()
    written: Path | None = None
    seconds: float = 0.0
    spare: Mapping[str, Tensor] | None = None
    _waiting: list[Snapshot] = field(default_factory=list)
    _busy: bool = False
    _closed: bool = False
    _error: BaseException | None = None
    _change: threading.Condition = field(default_factory=threading.Condition)
    _thread: threading.Thread | None = None
    _then: Callable[[], object] = bool
    _clock: Callable[[], float] = time.perf_counter

    @property
    def busy(self) -> bool:
        """Whether a snapshot is being written or waits."""
        return self._busy or bool(self._waiting)

    def submit(self, snapshot: Snapshot) -> None:
        """Hands a snapshot over and returns at once."""
        self.check()
        with self._change:
            self._waiting = [s for s in self._waiting if s.is_best and not snapshot.is_best] + [snapshot]
            if self._thread is None:
                # A daemon: a second Ctrl-C must not wait for the disk. What is on the disk is whole at any instant.
                self._thread = threading.Thread(target=self._run, name="convolt-checkpoints", daemon=True)
                self._thread.start()
            self._change.notify_all()

    def check(self) -> None:
        """Raises what went wrong in the background, once."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Returns when all is on the disk, or raises why it is not."""
        with self._change:
            self._change.wait_for(lambda: not self.busy or self._error is not None)
        self.check()

    def close(self, then: Callable[[], object], wait: bool = True) -> None:
        """Writes what waits, ends the thread, and calls `then`; errors are left for `check`.

        Args:
            then: called when nothing is written any more, by the thread itself if it is not waited for.
            wait: False drops what waits and returns at once.
        """
        with self._change:
            self._closed = True
            if not wait:
                self._waiting.clear()
            if self._thread is not None:
                self._then = then
            self._change.notify_all()
        if self._thread is None:
            then()
        elif wait:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    break
                snapshot, self._busy = self._waiting.pop(0), True
            try:
                self._save(snapshot)
            except BaseException as error:  # told in the training's thread, by `check`
                self._error = error
            with self._change:
                self._busy = False
                if self._error is not None:
                    self._waiting.clear()  # a later state must not hide what went wrong
                self._change.notify_all()
        self._then()

    def _save(self, snapshot: Snapshot) -> None:
        start = self._clock()
        tensors = to_host(snapshot.tensors, snapshot.ready)
        looked_at = {name: tensor for name, tensor in tensors.items() if name.startswith("model/") or name == _LOSSES}
        bad = [name for name, tensor in looked_at.items() if name not in self.may_be_infinite and not all_finite(tensor)]
        if bad:
            got = f"NaN or infinite values in {_few(bad)}"
            raise NonFiniteError(explain(f"state at {snapshot.where}", got, "finite weights and losses",
                                         "This state is not written over an earlier checkpoint."))
        self.written = self.store.save(tensors, snapshot.state, snapshot.is_best)
        self.spare = tensors if snapshot.ready is None else None
        self.seconds += self._clock() - start


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; most often one sum tells."""
    if not tensor.is_floating_point() or bool(tensor.sum().isfinite()):
        return True
    return bool(tensor.isfinite().all())


def _few(names: list[str], most: int = 3) -> str:
    shown = ["the loss" if name == _LOSSES else name.removeprefix("model/") for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")
