"""`convolt verify-resume`: kills a training again and again, and compares what resumes with what was never killed."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from convolt.cli import model_options, options, resuming, say
from convolt.errors import StateError, explain

_ENDING = 2000  # characters of a failed training's output that are shown

Kills = Annotated[int, typer.Option("--kills", "-k", min=1, help="How many trainings are killed and resumed.")]
Inside = Annotated[bool, typer.Option("--inside-save", help="Kill while a checkpoint is being written.")]
Epochs = Annotated[int, typer.Option("--epochs", "-e", min=1, help="Of each training.")]
Every = Annotated[
    str,
    typer.Option("--checkpoint-every", metavar="TIME", callback=resuming.check_every, help="As in `convolt train`; often by default."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of the training and of the instants.")]
Keep = Annotated[str | None, typer.Option("--keep", metavar="FOLDER", show_default=False, help="Keep the runs here.")]


@dataclass(frozen=True)
class Outcome:
    """What became of one training that was killed.

    Attributes:
        after: seconds of training at which it was killed.
        place: where that was: "inside save 3", "after save 3" or "after its end".
        differing: parts that are not those of the training that was never killed; empty if all are.
    """

    after: float
    place: str
    differing: list[str]


def verify_resume(
    model: options.Model,
    data: options.Data,
    kills: Kills = 5,
    inside_save: Inside = False,
    epochs: Epochs = 3,
    batch_size: options.BatchSize = 128,
    checkpoint_every: Every = "3",
    image_size: options.ImageSize = None,
    seed: Seed = 0,
    device: options.Device = "auto",
    code: options.Code = None,
    model_option: options.ModelOption = None,
    keep: Keep = None,
) -> None:
    """Kill a training at random instants, resume it, and compare it with one that was never killed."""
    command = ["train", model, "--data", data, "--epochs", str(epochs), "--batch-size", str(batch_size), "--verbose", "0"]
    command += ["--seed", str(seed), "--device", device, "--checkpoint-every", checkpoint_every]
    for name, value in (("--image-size", image_size), ("--code", code)):
        command += [name, value] if value is not None else []
    command += model_options.flags(model_options.parse(model_option or ()))
    folder = Path(keep) if keep is not None else Path(tempfile.mkdtemp(prefix="convolt-verify-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        equal = Verification(command, folder, random.Random(seed), inside_save).run(kills)
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    if equal < kills:
        raise typer.Exit(1)


class Verification:
    """Trainings in processes of their own, as a user starts them.

    Args:
        command: arguments of `convolt` for one training.
        folder: where the run folders go.
        chance: decides the instants.
        inside_save: whether to kill inside of saves.
    """

    def __init__(self, command: list[str], folder: Path, chance: random.Random, inside_save: bool) -> None:
        self.command = command
        self.folder = folder
        self.chance = chance
        self.inside_save = inside_save

    def run(self, kills: int) -> int:
        """Trains once without a kill, then kills and resumes; prints the table and returns how many ended bit-equal."""
        from convolt.training.checkpoint.compare import PARTS, digest

        say.heading(f"convolt {' '.join(self.command)}")
        self._whole("uninterrupted")
        expected = digest(self.folder / "uninterrupted")
        saves = max(_numbers(self.folder / "uninterrupted", ".safetensors"))
        say.line(f"  uninterrupted: {say.plural(saves, 'checkpoint')} written, " + ", ".join(f"{p} {expected[p][:8]}" for p in PARTS))
        outcomes = []
        for number in range(1, kills + 1):
            outcome = self._killed(f"killed-{number}", saves, expected)
            outcomes.append(outcome)
            verdict = "bit-equal" if not outcome.differing else f"DIFFERS: {', '.join(outcome.differing)}"
            say.line(f"  kill {number}/{kills} {outcome.place}, {outcome.after:.2f} s after the training began: {verdict}")
        equal = sum(not outcome.differing for outcome in outcomes)
        inside = sum(outcome.place.startswith("inside") for outcome in outcomes)
        say.line()
        differing = [[part, f"{sum(part not in o.differing for o in outcomes)}/{kills}"] for part in PARTS]
        say.table(["of the uninterrupted training", "bit-equal"], differing, right=[1])
        say.heading(f"{equal}/{kills} resumed bit-equal, {inside} of them killed inside a save")
        return equal

    def _start(self, arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
        with open(log, "ab") as output:
            return subprocess.Popen([sys.executable, "-m", "convolt", *arguments], stdin=subprocess.DEVNULL, stdout=output,
                                    stderr=subprocess.STDOUT)  # fmt: skip

    def _whole(self, name: str, resume: bool = False) -> None:
        """Runs a training to its end.

        Raises:
            StateError: it failed; the message has the end of what it printed.
        """
        log = self.folder / f"{name}.log"
        process = self._start([*self.command, *self._where(name, resume)], log)
        if process.wait() != 0:
            text = log.read_text(encoding="utf-8", errors="replace")[-_ENDING:]
            raise StateError(explain(f"training {name!r}", f"exit code {process.returncode}", "0", f"It printed:\n{text}"))

    def _where(self, name: str, resume: bool) -> list[str]:
        return ["--runs", str(self.folder), "--name", name, "--resume", str(self.folder / name) if resume else resuming.NEVER]

    def _wait(self, process: subprocess.Popen[bytes], name: str, number: int, ending: str) -> None:
        """Waits until a file of at least this number is in the folder of checkpoints, or the training has ended."""
        while process.poll() is None and max(_numbers(self.folder / name, ending), default=-1) < number:
            pass  # a save takes milliseconds: looking without a pause is what hits it

    def _killed(self, name: str, saves: int, expected: dict[str, str]) -> Outcome:
        """Kills a training at a random instant, resumes it, and compares."""
        from convolt.training.checkpoint.compare import PARTS, digest

        process = self._start([*self.command, *self._where(name, False)], self.folder / f"{name}.log")
        lock = self.folder / name / "checkpoints" / ".lock"
        while not lock.exists() and process.poll() is None:
            time.sleep(0.002)
        begin = time.monotonic()
        number = self.chance.randint(1, saves)
        if self.inside_save:
            self._wait(process, name, number, ".part")
        else:
            self._wait(process, name, number, ".safetensors")
            time.sleep(self.chance.uniform(0, (time.monotonic() - begin) / number))  # about the time to the next checkpoint
        ended = process.poll() is not None
        process.kill()
        process.wait()
        after = time.monotonic() - begin
        inside = bool(_numbers(self.folder / name, ".part"))
        newest = max(_numbers(self.folder / name, ".safetensors"), default=0)
        place = "after its end" if ended else f"inside save {newest + 1}" if inside else f"after save {newest}"
        self._whole(name, resume=True)
        found = digest(self.folder / name)
        return Outcome(after, place, [part for part in PARTS if found.get(part) != expected[part]])


def _numbers(run: Path, ending: str) -> list[int]:
    """Returns the numbers of the files of this ending among a run's checkpoints."""
    try:
        names = os.listdir(run / "checkpoints")
    except FileNotFoundError:
        return []
    return [int(name.lstrip(".").partition("-")[0]) for name in names if name.endswith(ending)]
