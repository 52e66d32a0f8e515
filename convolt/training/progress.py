"""Progress: one live line on a terminal, one plain line for each epoch elsewhere.

A value on the screen must be read from the device, and reading makes the host wait. So the loop asks `wants_update()`,
which looks at the clock alone, and reads and shows only when a quarter of a second has passed.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal, Self, TextIO

import torch

from convolt.errors import ArgumentError, explain

INTERVAL = 0.25
"""Seconds from one update of the live line to the next, at the least."""

Verbose = Literal["auto", 0, 1, 2]


class Progress:
    """Shows how a `fit`, `evaluate` or `predict` goes.

    Args:
        epochs: how many there are.
        steps_per_epoch: batches of an epoch; None if unknown.
        verbose: 0 nothing; 1 a live line on a terminal or in a notebook, and a plain line for each epoch elsewhere;
            2 a plain line for each epoch; "auto" is 1.
        label: in place of "Epoch 1/5", for one pass: "evaluate", "predict".
        device: whose memory is shown; None: CUDA's if it is in use, else that of the process.
        stream: where lines go; None: standard output at the time of writing.
        clock: returns seconds.

    A loop calls:

        with Progress(epochs, steps, verbose) as progress:
            for epoch in range(epochs):
                progress.epoch_begin(epoch)
                for step, batch in enumerate(batches, 1):
                    images += ...
                    if progress.wants_update():
                        progress.update(step, images, read_values())
                progress.epoch_end(values, images)
    """

    def __init__(self, epochs: int, steps_per_epoch: int | None, verbose: Verbose | str | int = "auto", *,
                 label: str | None = None, device: torch.device | None = None, stream: TextIO | None = None,
                 clock: Callable[[], float] = time.perf_counter) -> None:
        if verbose not in ("auto", 0, 1, 2):
            raise ArgumentError(explain("verbose", repr(verbose),
                                        "'auto', 0 (nothing), 1 (live line) or 2 (a line for each epoch)"))
        self.epochs = epochs
        self.steps = steps_per_epoch
        self.label = label
        self.device = device
        self._stream = stream
        self._clock = clock
        self._silent = verbose == 0
        self._live = _live_line(stream, clock) if verbose in (1, "auto") else None
        self._epoch = self._images = self._before = 0
        self._start = self._shown = clock()
        self._trained: float | None = None
        self._validation_seconds = 0.0
        self._validation_steps: int | None = None
        self._phase = ""
        self._window: deque[tuple[float, int, int]] = deque(maxlen=20)
        self._last_learning_rate: float | None = None
        self.more: Callable[[bool], list[str]] = lambda done: []  # texts of others, for the live line or the line of an epoch

    def epoch_begin(self, epoch: int, step: int = 0, images: int = 0) -> None:
        """Starts the clock of an epoch; `epoch` counts from 0. Of one that goes on, `step` batches with `images` are done."""
        self._epoch, self._images, self._before, self._phase = epoch, images, images, ""
        self._start = self._shown = self._clock()
        self._trained = None
        self._restart_window(step, images)

    def validation_begin(self, steps: int | None, images: int | None = None) -> None:
        """Turns the live line to the validation of this epoch; `images` were trained on."""
        self._trained = self._clock() - self._start
        self._images = images if images is not None else self._images
        self._phase = "validation"
        self._validation_steps = steps
        self._restart_window()

    def _restart_window(self, step: int = 0, images: int = 0) -> None:
        self._window.clear()
        self._window.append((self._clock(), step, images))

    def wants_update(self) -> bool:
        """Whether the live line is due; looks at the clock alone, and is False where no live line is shown."""
        return self._live is not None and self._clock() - self._shown >= INTERVAL

    def update(self, step: int, images: int, values: Mapping[str, float]) -> None:
        """Shows the live line.

        Args:
            step: batches of this epoch (or of its validation) that are done.
            images: samples in them.
            values: loss and metrics so far.
        """
        now = self._clock()
        self._shown = now
        self._window.append((now, step, images))
        if not self._phase:
            self._images = images
        if self._live is not None:
            total = self._validation_steps if self._phase else self.steps
            self._live.show(self._name(), step, total, self._live_fields(step, total, values))

    def epoch_end(self, values: Mapping[str, float], images: int | None = None) -> None:
        """Prints the line of the epoch.

        Args:
            values: loss, metrics, `val_…`, learning rate.
            images: samples that were trained on; None: as many as the last update said.
        """
        seconds = self._clock() - self._start
        self._images = images if images is not None else self._images
        trained = self._trained if self._trained is not None else seconds
        self._validation_seconds = seconds - trained
        worked = self._images - self._before
        rate = worked / trained if worked and trained > 0 else None
        fields = [self._name(), _duration(seconds), _speed(rate), *self._values(values), _memory(self.device), *self.more(True)]
        self.note("  ".join(field for field in fields if field))

    def note(self, message: str) -> None:
        """Prints a line of its own, unless nothing is to be printed."""
        if self._live is not None:
            self._live.clear()
        if not self._silent:
            print(message, file=self._stream or sys.stdout, flush=True)

    def close(self) -> None:
        """Gives the terminal back; may be called twice, and must be called after an error too."""
        if self._live is not None:
            self._live.clear()
            self._live = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- what the lines say ----------------------------------------------------------------------------------------

    def _name(self) -> str:
        return self.label or f"Epoch {self._epoch + 1}/{self.epochs}"

    def _values(self, values: Mapping[str, float]) -> list[str]:
        """Losses and metrics; the learning rate too when it has changed since the last line."""
        rate = values.get("learning_rate")
        changed = rate is not None and self._last_learning_rate is not None and rate != self._last_learning_rate
        self._last_learning_rate = rate if rate is not None else self._last_learning_rate
        return [f"{name} {_number(value)}" for name, value in values.items() if name != "learning_rate" or changed]

    def _live_fields(self, step: int, total: int | None, values: Mapping[str, float]) -> list[str]:
        (then, _, old_images), (now, _, images) = self._window[0], self._window[-1]
        rate = (images - old_images) / (now - then) if now > then else None
        left = self._seconds_left(step, total)
        shown = [f"{name} {_number(value)}" for name, value in values.items() if name != "learning_rate"]
        fields = ["" if left is None else f"{_clock_time(left)} left", self._phase, *shown, _speed(rate), _memory(self.device),
                  *self.more(False)]
        return [field for field in fields if field]

    def _seconds_left(self, step: int, total: int | None) -> float | None:
        """Seconds to the end of all epochs at the speed of the last seconds; validation takes what it took last time."""
        then, old_step, _ = self._window[0]
        elapsed = self._window[-1][0] - then
        if total is None or step <= old_step or elapsed <= 0:
            return None
        per_step = elapsed / (step - old_step)
        rest = per_step * (total - step)
        if self._phase:
            per_epoch = (self._trained or 0.0) + per_step * total
        else:
            rest += self._validation_seconds
            per_epoch = per_step * total + self._validation_seconds
        return rest + per_epoch * max(self.epochs - self._epoch - 1, 0)


# -- the live line -------------------------------------------------------------------------------------------------


class _TerminalLine:
    """The live line on a terminal, drawn by rich, which is imported at the first one."""

    def __init__(self, stream: TextIO | None, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock
        self._display: Any = None
        self._width = 20

    def show(self, name: str, step: int, total: int | None, fields: list[str]) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if self._display is None:
            console = Console(file=self._stream)
            self._width = 20 if console.width >= 110 else 10
            self._display = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")
            self._display.start()
        line = Table.grid(padding=(0, 2))
        for minimum in (len(name), self._width, 0):
            line.add_column(no_wrap=True, min_width=minimum)
        line.add_column(no_wrap=True, overflow="ellipsis")
        bar = ProgressBar(total=total, completed=step, width=self._width, pulse=total is None, animation_time=self._clock())
        count = f"{step:,}/{total:,}" if total else f"{step:,}"
        line.add_row(Text(name, style="bold"), bar, Text(count), Text("  ".join(fields)))
        self._display.update(line, refresh=True)

    def clear(self) -> None:
        if self._display is not None:
            self._display.stop()
            self._display = None


class _NotebookLine:
    """The live line in a notebook: text written over itself, which needs no widgets."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._width = 0

    def show(self, name: str, step: int, total: int | None, fields: list[str]) -> None:
        filled = 20 * step // total if total else 0
        bar = f"[{'=' * filled}{'.' * (20 - filled)}]  {step:,}/{total:,}" if total else f"{step:,}"
        text = "  ".join((name, bar, *fields))
        print("\r" + text.ljust(self._width), end="", file=self._stream or sys.stdout, flush=True)
        self._width = len(text)

    def clear(self) -> None:
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=self._stream or sys.stdout, flush=True)
            self._width = 0


def _live_line(stream: TextIO | None, clock: Callable[[], float]) -> _TerminalLine | _NotebookLine | None:
    """Returns what draws the live line here; None where lines cannot be written over (files, pipes, dumb terminals)."""
    if stream is None and "ipykernel" in sys.modules and not sys.stdout.isatty():
        return _NotebookLine(stream)
    target = stream or sys.stdout
    return _TerminalLine(stream, clock) if target.isatty() and os.environ.get("TERM") != "dumb" else None


# -- numbers as text -----------------------------------------------------------------------------------------------


def _number(value: float) -> str:
    """Four decimals; very small and very large values in scientific form."""
    value = float(value)
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 or value != value else f"{value:.2e}"


def _speed(rate: float | None) -> str:
    return "" if rate is None else f"{rate:,.0f} images/s" if rate >= 10 else f"{rate:.2g} images/s"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 99.95 else _clock_time(seconds)


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _memory(device: torch.device | None) -> str:
    used = memory_in_use(device)
    if used is None:
        return ""
    return f"{used / 2**20:,.0f} MiB" if used < 10 * 2**30 else f"{used / 2**30:.1f} GiB"


def memory_in_use(device: torch.device | None = None) -> int | None:
    """Returns bytes that this process holds on `device`, or in RAM for a CPU; None where the system does not tell.

    On a GPU that is what PyTorch's allocator has reserved. None of these calls waits for the device.
    """
    cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    kind = device.type if device is not None else "cuda" if cuda else "cpu"
    if kind == "cuda":
        return torch.cuda.memory_reserved(device)
    if kind == "xpu":
        return torch.xpu.memory_reserved(device)
    if kind == "mps":
        return torch.mps.driver_allocated_memory()
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        return _peak_memory()


def _peak_memory() -> int | None:
    """The peak of the process's RAM, which macOS tells and Windows does not."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
