"""What a user says about checkpoints."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convolt.errors import ArgumentError, ArgumentTypeError, explain


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often `fit` keeps the state of a training; a path alone stands for these defaults.

    A checkpoint is written at the start, at the end of each epoch, on Ctrl-C and SIGTERM, and in the middle of an epoch
    every so many steps or seconds. Epochs that take less than a moment share one.

    Args:
        folder: of the run; checkpoints lie in `checkpoints` inside.
        every_steps: steps between two; None: only seconds count.
        every_seconds: seconds between two; None: only steps and epochs count.
        keep: how many of the newest stay.
        monitor: value whose best epoch stays too: a key of the logs; None: `val_loss`, or `loss` without validation.
        mode: whether `monitor` is better when lower ("min") or higher ("max"); "auto" knows by its name.

    Raises:
        ArgumentError: a number cannot be used.
    """

    folder: str | os.PathLike[str]
    every_steps: int | None = None
    every_seconds: float | None = 60.0
    keep: int = 3
    monitor: str | None = None
    mode: str = "auto"

    def __post_init__(self) -> None:
        for name in ("every_steps", "keep"):
            value = getattr(self, name)
            if (value is not None or name == "keep") and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ArgumentError(explain(f"Checkpoint({name})", repr(value), "a whole number from 1"))
        seconds = self.every_seconds
        if seconds is not None and not (isinstance(seconds, (int, float)) and math.isfinite(seconds) and seconds > 0):
            raise ArgumentError(explain("Checkpoint(every_seconds)", repr(seconds), "a number of seconds above 0, or None"))
        if self.mode not in ("auto", "min", "max"):
            raise ArgumentError(explain("Checkpoint(mode)", repr(self.mode), "'auto', 'min' or 'max'"))

    @property
    def path(self) -> Path:
        """The folder of the checkpoints themselves."""
        return Path(self.folder) / "checkpoints"

    @staticmethod
    def of(value: Any) -> Checkpoint | None:
        """Returns what `fit(checkpoint=…)` was given as an object; None stands for no checkpoints.

        Raises:
            ArgumentTypeError: it is neither a path nor a `Checkpoint`.
        """
        if value is None or isinstance(value, Checkpoint):
            return value
        if isinstance(value, (str, os.PathLike)):
            return Checkpoint(value)
        raise ArgumentTypeError(explain("fit(checkpoint)", repr(value), "a folder, or convolt.Checkpoint(folder, …)"))


def check_resume(value: Any) -> None:
    """Raises `ArgumentError` unless `value` is "auto", True or False."""
    if value != "auto" and not isinstance(value, bool):
        raise ArgumentError(explain("fit(resume)", repr(value), "'auto' (if there is something), True (or an error) or False (anew)"))
