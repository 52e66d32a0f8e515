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
    json: Json = False,
) -> None:
    """Suggest a learning rate: try all of them on a few batches of DATA."""
    from json import dumps

    from convolt.cli import model_spec, parts, recipe, say, starting
    from convolt.utils import set_random_seed

    set_random_seed(seed)
    source = parts.load(data, options.parse_size(image_size), color_mode)
    y = source.y_train
    count = len(source.class_names) or (y.shape[1] if y.ndim == 2 else 1)
    made = model_spec.make_model(model, tuple(int(n) for n in source.x_train.shape[1:]), count, code)
    if weights is not None:
        starting.load_start(made, model, weights)
    if names := options.split_names(freeze):
        starting.freeze(made, names)
    chosen = recipe.choose(made, source, loss, [])
    made.compile(optimizer, chosen.loss, chosen.metrics, precision=precision.value, device=device)
    found = made.lr_find(source.x_train, y, batch_size=batch_size, start=start, end=end, steps=steps, seed=seed)
    if plot is not None:
        found.plot(plot)
    if json:
        typer.echo(dumps(found.as_json()))
        return
    say.heading(found.describe())
    if plot is not None:
        say.rows([("plot", plot)])
    if found.suggestion is not None:
        say.commands([["convolt", "train", model, "--data", data, "--optimizer", optimizer, "--lr", f"{found.suggestion:.2g}"]])
