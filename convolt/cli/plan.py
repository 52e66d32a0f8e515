"""`convolt plan`: in which form a model would train on DATA, measured, with a reason for each refusal."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from convolt.cli import options
from convolt.cli.options import ColorMode, Execution, Precision

Optimizer = Annotated[str, typer.Option("--optimizer", metavar="NAME", help="Whose step it would be.")]
Loss = Annotated[str, typer.Option("--loss", metavar="NAME", help="auto: as `convolt train` chooses it.")]
Precise = Annotated[Precision, typer.Option("--precision", help="What the model computes in.")]
Graph = Annotated[bool, typer.Option("--graph", help="Print the model's graph before and after the rewrites.")]
Json = Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")]


def plan(
    model: options.Model,
    data: options.Data,
    batch_size: options.BatchSize = 128,
    optimizer: Optimizer = "adam",
    loss: Loss = "auto",
    precision: Precise = Precision.AUTO,
    fusions: options.Fusions = "auto",
    execution: options.Executed = Execution.AUTO,
    micro_batch: options.MicroBatch = None,
    image_size: options.ImageSize = None,
    color_mode: options.Colors = ColorMode.AUTO,
    device: options.Device = "auto",
    code: options.Code = None,
    model_option: options.ModelOption = None,
    graph: Graph = False,
    json: Json = False,
) -> None:
    """Measure in which form a model trains fastest on DATA, and show each candidate with the reason for its verdict."""
    from json import dumps

    import numpy as np

    from convolt.cli import parts, recipe, say, starting

    source = starting.load_data(model, data, options.parse_size(image_size), color_mode, code)
    y = source.y_train
    begun = starting.begin(model, *parts.sample_shape(source), code=code, options=model_option or (),
                           several=parts.has_several_labels(source))
    made = begun.model
    chosen = recipe.choose(made, source, loss, [])
    made.compile(optimizer, chosen.loss, chosen.metrics, precision=precision.value, device=device,
                 fusions=options.parse_fusions(fusions), execution=execution.value, micro_batch=micro_batch)
    x, rows = parts.read(source.x_train, np.arange(min(4 * batch_size, len(y))))
    found = made.trainer.find_plan(x, y[rows], batch_size=batch_size)
    if json:
        typer.echo(dumps(found.to_json(), indent=2))
        return
    say.heading(f"{model} on {source.name}, batch {batch_size}: {found.device}, {found.precision}")
    say.rows(begun.rows)
    say.table(["candidate", "images/s", "kept for backward", "loss error", "gradient error", "verdict", "why"], _rows(found),
              right=[1, 2, 3, 4])
    if graph:
        say.line()
        say.line(found.graph())


def _rows(found: Any) -> list[list[str]]:
    """Returns the candidates as texts; errors are relative, against float64."""

    def text(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    return [[row.name, text(row.images_per_second, ",.0f"), "–" if row.memory is None else f"{row.memory / 2**20:,.1f} MiB",
             text(row.loss_error, ".0e"), text(row.gradient_error, ".0e"), f"{row.verdict}{', in doubt' * row.doubt}", row.why]
            for row in found.rows]
