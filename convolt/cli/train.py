"""`convolt train`: its options. What it does is in `training.py`, which needs PyTorch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from convolt.cli import options, resuming
from convolt.cli.options import ColorMode, Precision, Verbose


@dataclass(frozen=True)
class TrainOptions:
    """What the user asked for; the names are those of the options."""

    model: str
    data: str
    epochs: int = 5
    batch_size: int = 128
    optimizer: str = "adam"
    learning_rate: float | None = None
    schedule: str = "cosine"
    loss: str = "auto"
    metrics: tuple[str, ...] = ()
    validation_split: float | None = None
    image_size: str | None = None
    color_mode: ColorMode = ColorMode.AUTO
    seed: int = 0
    device: str = "auto"
    precision: Precision = Precision.AUTO
    name: str | None = None
    runs: str = "runs"
    code: str | None = None
    verbose: Verbose = Verbose.AUTO
    checkpoint_every: str = "60s"
    resume: str | None = None
    allow_change: tuple[str, ...] = ()

    def as_command(self) -> list[str]:
        """Returns the line that repeats the run from its start: what differs from the defaults, and the seed."""
        command = ["convolt", "train", self.model, "--data", self.data]
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            if field.name in _OF_THIS_CALL:
                continue
            if value == field.default and field.name not in ("epochs", "seed"):
                continue
            command += ["--" + field.name.replace("_", "-"), ",".join(value) if isinstance(value, tuple) else str(value)]
        return command

    def as_json(self) -> dict[str, Any]:
        """Returns the options of the run as JSON values."""
        return {
            name: list(value)
            if isinstance(value, tuple)
            else str(value)
            if isinstance(value, (Precision, ColorMode, Verbose))
            else value
            for name, value in asdict(self).items()
            if name not in _OF_THIS_CALL
        }


_OF_THIS_CALL = ("resume", "allow_change")
"""Options that say how this call goes on with a run, and are no part of the run."""


Epochs = Annotated[int, typer.Option("--epochs", "-e", min=1, help="Passes over the training set.")]
Optimizer = Annotated[str, typer.Option("--optimizer", metavar="NAME", help="adam, adamw, sgd, rmsprop, muon, …")]
Rate = Annotated[
    float | None,
    typer.Option(
        "--learning-rate",
        "--lr",
        metavar="RATE",
        callback=options.check_rate,
        help="The highest one; by default the optimizer's own, times three under a schedule.",
        show_default=False,
    ),
]
Schedule = Annotated[
    str,
    typer.Option(
        "--schedule", metavar="NAME", help="Of the learning rate: constant, cosine, warmup_cosine, one_cycle, linear, …"
    ),
]
Loss = Annotated[str, typer.Option("--loss", metavar="NAME", help="auto: what fits the labels.")]
Metrics = Annotated[
    list[str] | None,
    typer.Option("--metrics", metavar="NAMES", show_default=False, help="Such as accuracy,f1; accuracy if not given."),
]
Share = Annotated[
    float | None,
    typer.Option(
        "--validation-split",
        metavar="SHARE",
        callback=options.check_share,
        show_default=False,
        help="Part of the training set to validate on. Without it that is the test set, or a tenth if there is none.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Decides everything that is random.")]
Precise = Annotated[Precision, typer.Option("--precision", help="What the model computes in.")]
Name = Annotated[str | None, typer.Option("--name", metavar="NAME", show_default=False, help="Of the run's folder.")]
Runs = Annotated[str, typer.Option("--runs", metavar="FOLDER", help="Where run folders are made.")]
Every = Annotated[
    str,
    typer.Option(
        "--checkpoint-every",
        metavar="TIME",
        callback=resuming.check_every,
        help="Save the state of the training so often (30s, 5m, or 500 for steps), and after each epoch.",
    ),
]
Resume = Annotated[
    str | None,
    typer.Option(
        "--resume",
        metavar="RUN",
        show_default=False,
        help="Go on with this run folder, whose options hold; auto: with the unfinished run of the same name; never: begin anew.",
    ),
]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow-change", metavar="NAMES", show_default=False, help="Settings that may differ from the resumed run's."),
]


def train(
    context: typer.Context,
    model: options.OptionalModel = None,
    data: options.OptionalData = None,
    epochs: Epochs = 5,
    batch_size: options.BatchSize = 128,
    optimizer: Optimizer = "adam",
    learning_rate: Rate = None,
    schedule: Schedule = "cosine",
    loss: Loss = "auto",
    metrics: Metrics = None,
    validation_split: Share = None,
    image_size: options.ImageSize = None,
    color_mode: options.Colors = ColorMode.AUTO,
    seed: Seed = 0,
    device: options.Device = "auto",
    precision: Precise = Precision.AUTO,
    name: Name = None,
    runs: Runs = "runs",
    code: options.Code = None,
    verbose: options.Progress = Verbose.AUTO,
    checkpoint_every: Every = "60s",
    resume: Resume = None,
    allow_change: Allow = None,
) -> None:
    """Train a model, and keep weights, plots and settings in a run folder.

    The state of the training is kept there too: a run that was stopped or killed goes on with --resume.
    """
    given = {name: value for name, value in locals().items() if name != "context"}
    given |= {"metrics": tuple(options.split_names(metrics)), "allow_change": tuple(options.split_names(allow_change))}
    if resume not in (None, resuming.AUTO, resuming.NEVER):
        said = {name for name in given if context.get_parameter_source(name).name != "DEFAULT"}  # type: ignore[union-attr]
        given |= {name: value for name, value in resuming.saved_options(Path(str(resume)), TrainOptions).items() if name not in said}
    for name, shown in (("model", "argument 'MODEL'"), ("data", "option '--data'")):
        if given[name] is None:
            raise typer.BadParameter("It is missing. Only with --resume RUN it may be left out.", param_hint=shown)
    from convolt.cli.training import run

    exit_code = run(TrainOptions(**given))
    if exit_code:
        raise typer.Exit(exit_code)
