"""`convolt train`: its options. What it does is in `training.py`, which needs PyTorch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from convolt.cli import options, resuming
from convolt.cli.options import ColorMode, Decoder, Execution, Precision, Switch, Verbose


@dataclass(frozen=True)
class TrainOptions:
    """What the user asked for; the names are those of the options."""

    model: str
    data: str
    epochs: int = 5
    batch_size: int | str = 128
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
    weights: str | None = None
    freeze: tuple[str, ...] = ()
    gpustat: Switch = Switch.OFF
    augment: str | None = None
    sampler: str | None = None
    label_smoothing: float = 0.0
    fusions: str = "auto"
    execution: Execution = Execution.AUTO
    micro_batch: int | None = None
    steps_per_execution: int | str = 1
    model_option: tuple[str, ...] = ()
    decoder: Decoder = Decoder.CPU

    def as_command(self) -> list[str]:
        """Returns the line that repeats the run from its start: what differs from the defaults, the seed, and what a recipe sets."""
        from convolt.cli.defaults import NONE, recipe_of

        recipe = recipe_of(self.model)
        of_recipe = recipe.options() if recipe else {}
        command = ["convolt", "train", self.model, "--data", self.data]
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            if field.name in _OF_THIS_CALL:
                continue
            if value is None and field.name == "augment" and of_recipe.get("augment"):
                value = NONE
            if value is None or (value == field.default and field.name not in ("epochs", "seed", *of_recipe)):
                continue
            if field.name == "model_option":
                command += [word for text in value for word in ("--model-option", text)]
                continue
            command += ["--" + field.name.replace("_", "-"), ",".join(value) if isinstance(value, tuple) else str(value)]
        return command

    def as_json(self) -> dict[str, Any]:
        """Returns the options of the run as JSON values."""
        return {
            name: list(value)
            if isinstance(value, tuple)
            else str(value)
            if isinstance(value, (Precision, ColorMode, Decoder, Execution, Switch, Verbose))
            else value
            for name, value in asdict(self).items()
            if name not in _OF_THIS_CALL
        }


_OF_THIS_CALL = ("resume", "allow_change")
"""Options that say how this call goes on with a run, and are no part of the run."""


Epochs = Annotated[int, typer.Option("--epochs", "-e", "--num-epochs", min=1, help="Passes over the training set.")]
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
Smoothing = Annotated[
    float,
    typer.Option(
        "--label-smoothing", metavar="SHARE", min=0.0, max=1.0, help="Share of each label that is spread evenly over all classes."
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


Sampler = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        metavar="NAME",
        show_default=False,
        help="[b]balanced[/b]: draw from all classes alike, however large they are. Weights of samples or classes need Python: "
        "fit(sampler=weights).",
    ),
]
GpuStat = Annotated[
    Switch,
    typer.Option(
        "--gpustat",
        help="Show how busy the GPU is (where there is none: this process), and keep it in the run folder; "
        "[b]--gpustat[/b] alone is on.",
    ),
]


def train(
    context: typer.Context,
    model: options.OptionalModel = None,
    data: options.OptionalData = None,
    epochs: Epochs = 5,
    batch_size: options.BatchSizeOrAuto = "128",
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
    weights: options.Weights = None,
    freeze: options.Freeze = None,
    gpustat: GpuStat = Switch.OFF,
    augment: options.Augment = None,
    sampler: Sampler = None,
    label_smoothing: Smoothing = 0.0,
    fusions: options.Fusions = "auto",
    execution: options.Executed = Execution.AUTO,
    micro_batch: options.MicroBatch = None,
    steps_per_execution: options.Together = "1",
    model_option: options.ModelOption = None,
    decoder: options.Decoding = Decoder.CPU,
) -> None:
    """Train a model, and keep weights, plots and settings in a run folder.

    The state of the training is kept there too: a run that was stopped or killed goes on with --resume. A saved model without --data
    is trained on the data set among mnist, cifar10 and digits that it takes. Where an architecture has a recipe (speednet), options
    that are not given are as the recipe says.
    """
    given = {name: value for name, value in locals().items() if name != "context"}
    given |= {"metrics": tuple(options.split_names(metrics)), "allow_change": tuple(options.split_names(allow_change)),
              "freeze": tuple(options.split_names(freeze)), "model_option": tuple(model_option or ())}
    said = {name for name in given if context.get_parameter_source(name).name != "DEFAULT"}  # type: ignore[union-attr]
    anew = resume in (None, resuming.AUTO, resuming.NEVER)
    if not anew:
        given |= {name: value for name, value in resuming.saved_options(Path(str(resume)), TrainOptions).items() if name not in said}
    if given["data"] is None and given["model"] is not None:
        given["data"] = _fitting_data(given["model"], code)
    for name, shown in (("model", "argument 'MODEL'"), ("data", "option '--data'")):
        if given[name] is None:
            raise typer.BadParameter(_MISSING[name], param_hint=shown)
    from convolt.cli.defaults import with_recipe
    from convolt.cli.training import run

    exit_code = run(TrainOptions(**(with_recipe(given, said) if anew else given)))
    if exit_code:
        raise typer.Exit(exit_code)


_MISSING = {
    "model": "It is missing. Only with --resume RUN it may be left out.",
    "data": "It is missing. Give mnist, cifar10, digits, a folder with one folder per class, or a .csv, .tar, .pack or .npz file. "
    "Only with --resume RUN, or for a saved model that takes one of these data sets, it may be left out.",
}


def _fitting_data(model: str, code: str | None) -> str | None:
    """Returns the data set that a saved model takes, and says so; None where the model is no file."""
    from convolt.cli import model_spec, say, starting

    if not model_spec.is_saved(model):
        return None
    data = starting.fitting_data(model_spec.open_saved(model, code, "cpu"))
    say.line(f"No --data: taking {data}, whose pictures and classes are those of the model.")
    return data
