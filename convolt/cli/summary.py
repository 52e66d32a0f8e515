"""`convolt summary`: layers, shapes, parameters and FLOPs of a model."""

from __future__ import annotations

from typing import Annotated

import typer

from convolt.cli import options
from convolt.cli.options import ColorMode


def summary(
    model: options.Model,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", "-d", metavar="DATA", show_default=False, help="Take the shape and the number of classes from DATA."
        ),
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option(
            "--input-shape",
            metavar="HEIGHT,WIDTH,CHANNELS",
            callback=options.check_shape,
            show_default=False,
            help="Shape of one sample.",
        ),
    ] = None,
    classes: Annotated[
        int | None, typer.Option("--classes", min=1, show_default=False, help="With --input-shape; 10 if not given.")
    ] = None,
    image_size: options.ImageSize = None,
    color_mode: options.Colors = ColorMode.AUTO,
    code: options.Code = None,
    model_option: options.ModelOption = None,
) -> None:
    """Show the layers of a model, with shapes, parameters and FLOPs."""
    if data is not None and (input_shape is not None or classes is not None):
        raise typer.BadParameter("--data and --input-shape (or --classes) say the same thing: give one of them.")
    from convolt.cli import model_spec, say, starting

    rows: list[tuple[str, str]] = []
    if model_spec.is_saved(model) and data is None and input_shape is None:
        if model_option:
            raise typer.BadParameter("A saved file has its architecture in it: --model-option is for built-in ones and file.py:function.")
        made = model_spec.open_saved(model, code, "cpu")
    else:
        if data is None and input_shape is None:
            raise typer.BadParameter("MODEL needs the shape of a sample: give --data DATA, or --input-shape such as 28,28,1.")
        shape, count = _shape_of(data, input_shape, classes, options.parse_size(image_size), color_mode)
        begun = starting.begin(model, shape, count, code=code, options=model_option or ())
        made, rows = begun.model, begun.rows
    made.summary()
    say.rows(rows)
    if made.class_names:
        shown = ", ".join(made.class_names[:20]) + (", …" if len(made.class_names) > 20 else "")
        typer.echo(f"Classes: {len(made.class_names)}: {shown}")


def _shape_of(
    data: str | None, input_shape: str | None, classes: int | None, image_size: tuple[int, int] | None, color_mode: ColorMode
) -> tuple[tuple[int, ...], int]:
    """Returns the shape of one sample and the number of classes."""
    if data is None:
        return options.parse_numbers(input_shape or ""), classes or 10
    from convolt.cli import parts

    return parts.sample_shape(parts.load(data, image_size, color_mode))
