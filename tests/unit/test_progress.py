"""Progress: when it asks for values, what its lines say, and that the terminal is given back. The clock is a fake."""

from __future__ import annotations

import builtins
import io
import itertools
import re
import subprocess
import sys
from typing import Any

import pytest
import torch

from convolt.errors import ArgumentError
from convolt.training import progress as module
from convolt.training.progress import Progress, memory_in_use


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _plain_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same terminal and memory for each test, whatever runs them."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(module, "memory_in_use", lambda device: 512 * 2**20)


def visible(stream: io.StringIO) -> str:
    """What was written, less colours and movements of the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())


VALUES = {"loss": 0.0513, "accuracy": 0.9843, "val_loss": 0.0402, "val_accuracy": 0.9871, "learning_rate": 0.001}


def test_one_plain_line_for_each_epoch() -> None:
    clock, out = Clock(), io.StringIO()
    progress = Progress(5, 469, "auto", stream=out, clock=clock)
    progress.epoch_begin(2)
    clock.now += 12.3
    assert not progress.wants_update()
    progress.epoch_end(VALUES, images=59_901)
    progress.close()
    assert out.getvalue() == ("Epoch 3/5  12.3 s  4,870 images/s  loss 0.0513  accuracy 0.9843  val_loss 0.0402  "
                              "val_accuracy 0.9871  512 MiB\n")


def test_speed_leaves_validation_out() -> None:
    clock, out = Clock(), io.StringIO()
    progress = Progress(1, 10, 2, stream=out, clock=clock)
    progress.epoch_begin(0)
    clock.now += 2
    progress.validation_begin(3, images=1000)
    clock.now += 8
    progress.epoch_end({"loss": 1.0})
    assert out.getvalue() == "Epoch 1/1  10.0 s  500 images/s  loss 1.0000  512 MiB\n"


def test_a_changed_learning_rate_is_shown() -> None:
    clock, out = Clock(), io.StringIO()
    progress = Progress(3, 1, 2, stream=out, clock=clock)
    for epoch, rate in enumerate([1e-3, 1e-3, 1e-4]):
        progress.epoch_begin(epoch)
        clock.now += 1
        progress.epoch_end({"loss": 1.0, "learning_rate": rate})
    assert ["learning_rate" in line for line in out.getvalue().splitlines()] == [False, False, True]
    assert "learning_rate 1.00e-04" in out.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_silent(stream: Any) -> None:
    clock, out = Clock(), stream()
    progress = Progress(1, 10, 0, stream=out, clock=clock)
    progress.epoch_begin(0)
    clock.now += 9
    assert not progress.wants_update()
    progress.update(1, 1, {"loss": 1.0})
    progress.epoch_end({"loss": 1.0})
    progress.note("never")
    progress.close()
    assert out.getvalue() == ""


def test_a_terminal_asks_for_values_four_times_a_second_and_never_more() -> None:
    clock, out = Clock(), Terminal()
    shown = []
    with Progress(1, 1000, 1, stream=out, clock=clock) as progress:
        progress.epoch_begin(0)
        for step in range(1, 1001):
            clock.now += 0.01
            if progress.wants_update():
                progress.update(step, 128 * step, {"loss": 1.0 / step})
                shown.append(clock.now)
                assert not progress.wants_update()
    assert 36 <= len(shown) <= 40
    assert all(later - earlier >= 0.25 - 1e-9 for earlier, later in itertools.pairwise(shown))


def test_live_line_says_where_how_fast_and_how_long() -> None:
    clock, out = Clock(), Terminal()
    with Progress(3, 100, "auto", stream=out, clock=clock) as progress:
        progress.epoch_begin(0)
        clock.now += 5
        progress.update(25, 25 * 64, {"loss": 0.5, "accuracy": 0.75, "learning_rate": 0.1})
    text = visible(out)
    assert "Epoch 1/3" in text
    assert "25/100" in text
    assert "0:55 left  loss 0.5000  accuracy 0.7500  320 images/s  512 MiB" in text  # 75 steps and two epochs at 5 a second


def test_time_left_counts_validation_at_its_last_duration() -> None:
    clock, out = Clock(), Terminal()
    with Progress(2, 10, 1, stream=out, clock=clock) as progress:
        progress.epoch_begin(0)
        clock.now += 10
        progress.update(10, 100, {})
        progress.validation_begin(4, images=100)
        clock.now += 2
        progress.update(2, 20, {"loss": 1.0})
        assert "2/4  0:16 left  validation  loss 1.0000" in visible(out)  # 2 + (10 + 4)
        clock.now += 2
        progress.epoch_end({"loss": 1.0})
        progress.epoch_begin(1)
        clock.now += 5
        progress.update(5, 50, {})
        assert "0:09 left" in visible(out)  # 5 of training, 4 of validation


def test_speed_is_that_of_the_last_seconds() -> None:
    clock, out = Clock(), Terminal()
    with Progress(1, 10_000, 1, stream=out, clock=clock) as progress:
        progress.epoch_begin(0)
        clock.now += 60  # the first step compiles
        for step in range(1, 60):
            progress.update(step, step * 100, {})
            clock.now += 1
    assert re.findall(r"([\d.,]+) images/s", visible(out))[-1] == "100"


def test_unknown_number_of_steps() -> None:
    clock, out = Clock(), Terminal()
    with Progress(1, None, 1, stream=out, clock=clock) as progress:
        progress.epoch_begin(0)
        clock.now += 1
        progress.update(1234, 4000, {"loss": 1.0})
    assert "1,234" in visible(out)
    assert "left" not in visible(out)


def test_the_cursor_comes_back_after_an_error() -> None:
    clock, out, before = Clock(), Terminal(), sys.stdout
    with pytest.raises(KeyboardInterrupt), Progress(1, 10, 1, stream=out, clock=clock) as progress:
        progress.epoch_begin(0)
        clock.now += 1
        progress.update(1, 1, {"loss": 1.0})
        assert out.getvalue().count("\x1b[?25l") == 1
        raise KeyboardInterrupt
    assert out.getvalue().count("\x1b[?25h") == 1
    assert sys.stdout is before
    progress.close()


def test_a_message_of_a_callback_stands_above_the_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, out = Clock(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    with Progress(1, 10, 1, clock=clock) as progress:
        progress.epoch_begin(0)
        clock.now += 1
        progress.update(1, 1, {"loss": 1.0})
        print("Epoch 1: saving model")
        progress.note("Stopped.")
        progress.epoch_end({"loss": 1.0}, 10)
    lines = [line.strip() for line in visible(out).splitlines()]
    assert "Epoch 1: saving model" in lines
    assert lines[-2:] == ["Stopped.", "Epoch 1/1  1.0 s  10 images/s  loss 1.0000  512 MiB"]


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    clock = Clock()
    progress = Progress(1, 10, 1, stream=Terminal(), clock=clock)
    clock.now += 9
    assert not progress.wants_update()


def test_a_notebook_gets_one_line_written_over_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, out = Clock(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    progress = Progress(1, 10, "auto", clock=clock)
    progress.epoch_begin(0)
    clock.now += 1
    assert progress.wants_update()
    progress.update(5, 50, {"loss": 0.5})
    assert out.getvalue() == ("\rEpoch 1/1  [==========..........]  5/10  0:01 left  loss 0.5000  50 images/s  512 MiB")
    progress.epoch_end({"loss": 0.5}, 100)
    progress.close()
    assert out.getvalue().endswith("\rEpoch 1/1  1.0 s  100 images/s  loss 0.5000  512 MiB\n")


def test_evaluate_and_predict_have_their_word() -> None:
    for label, values, expected in (("evaluate", {"loss": 0.5}, "evaluate  2.0 s  50 images/s  loss 0.5000  512 MiB\n"),
                                    ("predict", {}, "predict  2.0 s  50 images/s  512 MiB\n")):
        clock, out = Clock(), io.StringIO()
        progress = Progress(1, 10, 2, label=label, stream=out, clock=clock)
        progress.epoch_begin(0)
        clock.now += 2
        progress.epoch_end(values, 100)
        assert out.getvalue() == expected


@pytest.mark.parametrize(("value", "text"), [
    (0.0, "0.0000"), (1.0, "1.0000"), (0.00123, "0.0012"), (0.000123, "1.23e-04"), (-0.5, "-0.5000"), (2.5e5, "2.50e+05"),
    (float("nan"), "nan"), (float("inf"), "inf"),
])  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    assert module._number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [
    (0.04, "0.0 s"), (99.94, "99.9 s"), (99.96, "1:40"), (3599.6, "1:00:00"), (7325, "2:02:05"),
])
def test_durations(seconds: float, text: str) -> None:
    assert module._duration(seconds) == text


@pytest.mark.parametrize("verbose", [3, "loud", None, -1])
def test_unknown_verbose(verbose: Any) -> None:
    with pytest.raises(ArgumentError, match="verbose"):
        Progress(1, 1, verbose)


def test_memory_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 10 * 2**20 < (memory_in_use(torch.device("cpu")) or 0) < 2**40
    real_open = builtins.open

    def without_proc(path: Any, *args: Any, **kwargs: Any) -> Any:
        if str(path).startswith("/proc"):
            raise FileNotFoundError(path)
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", without_proc)
    assert 10 * 2**20 < (memory_in_use(torch.device("cpu")) or 0) < 2**40


def test_rich_is_imported_only_for_a_terminal() -> None:
    code = ("import sys; from convolt.training.progress import Progress; p = Progress(1, 1, 'auto'); p.epoch_begin(0);"
            "p.update(1, 1, {'loss': 1.0}); p.epoch_end({'loss': 1.0}, 1); p.close(); sys.exit('rich' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
