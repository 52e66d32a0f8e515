"""`convolt data`: what is in DATA, and what a model gets of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convolt.cli import data_check, data_pack, options
from convolt.cli.options import ColorMode

app = typer.Typer(
    name="data",
    help="Look at DATA, check it, and pack it for fast reading.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

app.command()(data_check.check)
app.command()(data_pack.pack)

Source = Annotated[str, typer.Argument(metavar="DATA", show_default=False, help=options.DATA)]
Output = Annotated[str, typer.Option("--output", "-o", metavar="FILE.png", help="Where the picture is written.")]
Count = Annotated[int, typer.Option("--count", "-n", min=1, max=36, help="Pictures in the grid.")]
Epoch = Annotated[int, typer.Option("--epoch", min=1, help="Whose pictures: they change with each epoch.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="As of convolt train.")]
InOrder = Annotated[bool, typer.Option("--in-order", help="The first pictures of DATA, not those of a shuffled epoch.")]


@app.command()
def show(
    data: Source,
    augment: options.Augment = None,
    output: Output = "batch.png",
    count: Count = 16,
    epoch: Epoch = 1,
    image_size: options.ImageSize = None,
    color_mode: options.Colors = ColorMode.AUTO,
    seed: Seed = 0,
    in_order: InOrder = False,
) -> None:
    """Draw a labelled grid of the pictures of an epoch's first batch, as the model gets them.

    Of a folder, a table or shards no other picture is decoded; mixup and cutmix mix those of the grid with each other.
    """
    from convolt.cli import parts, say
    from convolt.errors import DataError, explain
    from convolt.training.show import show_batch

    if Path(output).suffix.lower() != ".png":
        raise typer.BadParameter(f"{output!r} is no name of a PNG. Write -o grid.png.", param_hint="'--output'")
    source = parts.load(data, options.parse_size(image_size), color_mode, leave_beyond=0)
    x, y = parts.Part(source.x_train, source.y_train, source.name).given
    if y is not None and len(x.shape) != 4:
        raise DataError(explain(data, f"samples of shape {x.shape[1:]}", "pictures (height, width, channels)"))
    name = source.name + (f", augment {augment.replace(',', ', ')}" if augment else "")
    grid = show_batch(
        x, y, augment=augment, class_names=source.class_names or None, count=count, epoch=epoch - 1,
        seed=seed, shuffle=not in_order, path=output, title=f"{name}: epoch {epoch}",
    )  # fmt: skip
    height, width, channels = grid.pictures.shape[1:]
    say.line(f"{output}: {say.plural(len(grid.pictures), 'picture')} of {height}×{width}×{channels}, values "
             f"{grid.pictures.min():.3g} to {grid.pictures.max():.3g}, of {len(source.x_train):,} in {source.name}")
