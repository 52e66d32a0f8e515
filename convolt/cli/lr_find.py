"""`convolt lr-find`: which learning rate to train a model with on DATA."""

from __future__ import annotations

from typing import Annotated

import typer

from convolt.cli import options
from convolt.cli.options import ColorMode, Precision

Optimizer = Annotated[str, typer.Option("--optimizer", metavar="NAME", help="Whose rate it is.")]
Loss = Annotated[str, typer.Option("--loss", metavar="NAME", help="auto: what fits the labels.")]
Start = Annotated[float, typer.Option("--start", metavar="RATE", callback=options.check_rate, help="The first rate.")]
End = Annotated[float, typer.Option("--end", metavar="RATE", callback=options.check_rate, help="The last rate.")]
Steps = Annotated[int, typer.Option("--steps", min=10, help="Batches, one rate for each.")]
Plot = Annotated[str | None, typer.Option("--plot", metavar="FILE.png", show_default=False, help="Draw the losses over the rates.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Decides everything that is random.")]
Precise = Annotated[Precision, typer.Option("--precision", help="What the model computes in.")]
Json = Annotated[bool, typer.Option("--json", help="Print rates, losses and the suggestion as JSON.")]


def lr_find(
    model: options.Model,
    data: options.Data,
    batch_size: options.BatchSize = 128,
    optimizer: Optimizer = "adam",
    loss: Loss = "auto",
    start: Start = 1e-7,
    end: End = 10.0,
    steps: Steps = 100,
    plot: Plot = None,
    weights: options.Weights = None,
    freeze: options.Freeze = None,
    image_size: options.ImageSize = None,
    color_mode: options.Colors = ColorMode.AUTO,
    seed: Seed = 0,
    device: options.Device = "auto",
    precision: Precise = Precision.AUTO,
    code: options.Code = None,
    model_option: options.ModelOption = None,
    json: Json = False,
) -> None:
    """Suggest a learning rate: try all of them on a few batches of DATA."""
    from json import dumps

    from convolt.cli import parts, recipe, say, starting
    from convolt.utils import set_random_seed

    set_random_seed(seed)
    source = starting.load_data(model, data, options.parse_size(image_size), color_mode, code)
    begun = starting.begin(model, *parts.sample_shape(source), code=code, options=model_option or (), weights=weights,
                           freeze=options.split_names(freeze), several=parts.has_several_labels(source))
    made = begun.model
    chosen = recipe.choose(made, source, loss, [])
    made.compile(optimizer, chosen.loss, chosen.metrics, precision=precision.value, device=device)
    x, y = parts.Part(source.x_train, source.y_train, "the training set").given
    found = made.lr_find(x, y, batch_size=batch_size, start=start, end=end, steps=steps, seed=seed)
    if plot is not None:
        found.plot(plot)
    if json:
        typer.echo(dumps(found.as_json()))
        return
    say.heading(found.describe())
    if plot is not None:
        say.rows([("plot", plot)])
    say.rows(begun.rows)
    if found.suggestion is not None:
        same = [word for text in model_option or () for word in ("--model-option", text)]
        same += ["--weights", weights] if weights is not None else []
        same += ["--freeze", ",".join(options.split_names(freeze))] if freeze else []
        say.commands([["convolt", "train", model, "--data", data, *same, "--optimizer", optimizer, "--lr", f"{found.suggestion:.2g}"]])
