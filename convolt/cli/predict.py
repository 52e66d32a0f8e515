"""`convolt predict`: its options. What it does is in `predicting.py`, which needs PyTorch."""

from __future__ import annotations

from typing import Annotated

import typer

from convolt.cli import options


def predict(
    file: options.File,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT…",
            show_default=False,
            help=("Pictures, folders of pictures, or arrays in [b].npy[/b] and [b].npz[/b] files."),
        ),
    ],
    top: Annotated[int, typer.Option("--top", min=1, help="Classes shown for each input.")] = 3,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FILE.csv", show_default=False, help="Write all predictions to a table.")
    ] = None,
    batch_size: options.BatchSize = 128,
    device: options.Device = "auto",
    code: options.Code = None,
) -> None:
    """Classify pictures with a saved model."""
    from convolt.cli.predicting import run

    run(file, inputs, top=top, out=out, batch_size=batch_size, device=device, code=code)
