"""`convolt train --resume` and `convolt verify-resume`, as a user meets them."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convolt.cli import resuming
from convolt.cli.main import main
from convolt.training.checkpoint.compare import digest
from convolt.training.checkpoint.keeper import CheckpointKeeper
from tests.faults.tiny import Kill

MODEL = """
from convolt import Sequential, layers

def make(input_shape, classes, rate=0.1):
    return Sequential([layers.Input(input_shape), layers.Flatten(), layers.Dropout(rate), layers.Dense(classes, activation="softmax")])
"""
LINE = ["train", "net.py:make", "--data", "small.npz", "--epochs", "4", "--batch-size", "16", "--device", "cpu", "--checkpoint-every", "1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    rng = np.random.default_rng(0)
    y = np.arange(96) % 3
    x = (rng.integers(0, 40, (96, 6, 5, 1)) + 80 * y[:, None, None, None]).astype(np.uint8)
    np.savez("small.npz", x_train=x[:80], y_train=y[:80], x_test=x[80:], y_test=y[80:], class_names=["dark", "grey", "bright"])
    Path("net.py").write_text(MODEL, encoding="utf-8")
    return tmp_path


def killed(monkeypatch: pytest.MonkeyPatch, *extra: str, at: int = 8) -> None:
    """Runs a training that ends at a step as a killed one does: nothing is written afterwards."""
    with monkeypatch.context() as patch:
        done = CheckpointKeeper.step_done

        def step_done(self: Any, epoch: int, batch: int, seen: int) -> None:
            done(self, epoch, batch, seen)
            if self.live.optimizer.iterations == at:
                self.finish()
                raise Kill

        patch.setattr(CheckpointKeeper, "step_done", step_done)
        with pytest.raises(Kill):
            main([*LINE, *extra])


def history(run: Path) -> list[dict[str, str]]:
    with open(run / "history.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_killed_run_goes_on_to_the_same_end(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LINE, "--name", "whole"]) == 0
    killed(monkeypatch)
    run = folder / "runs" / "net-small"
    assert json.loads((run / "config.json").read_text())["status"] == "running" and len(history(run)) == 1
    capsys.readouterr()
    assert main(["train", "--resume", "runs/net-small"]) == 0
    said = capsys.readouterr().out
    assert "Going on with runs/net-small: net.py:make on small.npz" in said and "Resuming after epoch 2, step 3" in said
    assert digest(run) == digest(folder / "runs" / "whole")
    assert [row["epoch"] for row in history(run)] == ["1", "2", "3", "4"]
    assert history(run) == history(folder / "runs" / "whole")
    config = json.loads((run / "config.json").read_text())
    assert (config["status"], config["resumed"]) == ("finished", 1)
    assert "--resume" not in (run / "command.txt").read_text()
    assert [path.name for path in sorted((folder / "runs").iterdir())] == ["net-small", "whole"]


def test_auto_takes_the_unfinished_run_of_the_same_name(folder: Path, monkeypatch: pytest.MonkeyPatch,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    killed(monkeypatch)
    assert main([*LINE, "--lr", "0.5", "--resume", "auto"]) == 0
    assert "runs/net-small is unfinished too, with another learning_rate." in capsys.readouterr().out
    assert main([*LINE, "--resume", "auto"]) == 0
    assert "Resuming after epoch 2, step 3" in capsys.readouterr().out
    assert main([*LINE, "--resume", "auto"]) == 0  # nothing is unfinished now
    assert "Resuming" not in capsys.readouterr().out
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["net-small", "net-small-2", "net-small-3"]


def test_without_a_terminal_nothing_is_asked_and_the_way_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    killed(monkeypatch)
    assert main(LINE) == 0
    said = "runs/net-small is unfinished (1 of 4 epochs done); --resume runs/net-small (or --resume auto) goes on with it."
    assert said in capsys.readouterr().out
    assert main([*LINE, "--resume", "never"]) == 0
    assert "unfinished" not in capsys.readouterr().out


@pytest.mark.parametrize("answer", [True, False])
def test_on_a_terminal_it_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    killed(monkeypatch)
    asked = []
    monkeypatch.setattr(resuming, "_on_terminal", lambda: True)
    monkeypatch.setattr(resuming.typer, "confirm", lambda text, default: asked.append(text) or answer)
    assert main(LINE) == 0
    assert asked == ["runs/net-small is unfinished (1 of 4 epochs done). Go on with it?"]
    assert (folder / "runs" / "net-small-2").exists() != answer


def test_a_refused_change_leaves_the_run_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    killed(monkeypatch)
    run = folder / "runs" / "net-small"
    before = (run / "config.json").read_text()
    assert main(["train", "--resume", str(run), "--lr", "0.5", "--batch-size", "8"]) == 1
    error = capsys.readouterr().err
    assert "batch_size: 16 → 8" in error and "optimizer.learning_rate.config.initial_learning_rate: 0.003 → 0.5" in error
    assert "--allow-change" in error
    assert json.loads((run / "config.json").read_text()) == json.loads(before)
    assert main(["train", "--resume", str(run), "--lr", "0.5", "--allow-change", "learning_rate"]) == 0


def test_more_epochs_for_a_finished_run(folder: Path) -> None:
    line = [*LINE, "--schedule", "constant"]
    assert main(line) == 0
    assert main(["train", "--resume", "runs/net-small", "--epochs", "6"]) == 0
    assert len(history(folder / "runs" / "net-small")) == 6


@pytest.mark.filterwarnings("default::convolt.errors.ConvoltWarning")
def test_a_damaged_checkpoint_is_told_as_a_line(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    killed(monkeypatch)
    newest = max((folder / "runs" / "net-small" / "checkpoints").glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    capsys.readouterr()
    assert main(["train", "--resume", "runs/net-small"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^Checkpoint damaged: runs/net-small/checkpoints/.*The one before it is used: ", said, re.MULTILINE)
    assert "Warning" not in said


@pytest.mark.parametrize(("line", "words"), [
    ("train --data small.npz", "argument 'MODEL'"),
    ("train net.py:make", "'--data'"),
    ("train --resume nowhere", "a run folder, which has a config.json"),
    ("train net.py:make --data small.npz --checkpoint-every soon", "'soon' is neither a time nor a number of steps"),
    ("train net.py:make --data small.npz --checkpoint-every 0", "neither a time"),
])  # fmt: skip
def test_wrong_lines(folder: Path, capsys: pytest.CaptureFixture[str], line: str, words: str) -> None:
    assert main(line.split()) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", '{"options": 3}', '{"options": {"epochs": "many"}}'])
def test_a_damaged_config_is_an_error(folder: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (folder / "runs" / "x").mkdir(parents=True)
    (folder / "runs" / "x" / "config.json").write_text(text)
    assert main(["train", "--resume", "runs/x"]) == 2
    assert "config.json" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "expected"), [("500", (500, None)), ("30s", (None, 30.0)), ("1.5m", (None, 90.0)), ("2 h", (None, 7200))])
def test_intervals(text: str, expected: tuple[int | None, float | None]) -> None:
    assert resuming.parse_every(text) == expected


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["--inside-save"], ["--model-option", "rate=0.4", "--keep", "kept"]])
def test_verify_resume(folder: Path, capsys: pytest.CaptureFixture[str], extra: list[str]) -> None:
    line = ["verify-resume", *LINE[1:4], "--kills", "2", "--epochs", "40", "--batch-size", "16", "--device", "cpu"]
    assert main([*line, *extra]) == 0
    said = capsys.readouterr().out
    assert "2/2 resumed bit-equal" in said and re.search(r"random state +2/2", said)
    for run in Path("kept").glob("*/config.json"):
        assert json.loads(run.read_text(encoding="utf-8"))["model"]["options"] == {"rate": "0.4"}
    assert len(list(Path("kept").glob("*/config.json"))) == 3 * ("--keep" in extra)


def test_verify_resume_hands_options_of_the_model_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["verify-resume", *LINE[1:4], "--kills", "1", "--device", "cpu"]
    assert main([*line, "--model-option", "deep=3"]) == 1
    said = capsys.readouterr().err
    assert "'deep'" in said and "rate" in said
    assert main([*line, "--model-option", "rate"]) == 2
    assert "NAME=VALUE" in capsys.readouterr().err
