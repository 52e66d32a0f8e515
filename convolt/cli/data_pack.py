"""`convolt data pack`: pictures in one file, from which a training reads them without decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convolt.cli import options
from convolt.cli.options import ColorMode

Folder = Annotated[
    str,
    typer.Argument(metavar="DATA", show_default=False, help="A folder with one folder per class; a [b].csv[/b]; [b].tar[/b] shards."),
]
Out = Annotated[str, typer.Argument(metavar="FILE.pack", show_default=False, help="The file to write.")]
Encoded = Annotated[
    bool, typer.Option("--encoded", help="Keep the files as they are and decode them at each use: a tenth of the size.")
]
MaxSide = Annotated[
    int | None,
    typer.Option("--max-side", min=8, show_default=False, help="With --encoded: make pictures with a longer side smaller."),
]


def pack(
    data: Folder,
    out: Out,
    image_size: options.ImageSize = None,
    color_mode: options.Colors = ColorMode.AUTO,
    encoded: Encoded = False,
    max_side: MaxSide = None,
) -> None:
    """Write the pictures of DATA into one file, so that later trainings decode nothing."""
    if Path(out).suffix.lower() != ".pack":
        raise typer.BadParameter(f"{out!r} is no name of a pack. Write pets.pack.", param_hint="'FILE.pack'")
    if max_side is not None and not encoded:
        raise typer.BadParameter("It goes with --encoded.", param_hint="'--max-side'")
    from convolt.cli import say
    from convolt.data.pack_write import write_pack
    from convolt.data.parts import mixed, picture_parts

    colours = "rgb" if color_mode is ColorMode.AUTO else color_mode.value
    parts = mixed(picture_parts(data, options.parse_size(image_size), colours))
    header = write_pack(out, parts, encoded=encoded, max_side=max_side)
    counts = ", ".join(f"{part.count:,} to {part.name.replace('validation', 'validate')}" for part in header.parts)
    kind = "encoded" if encoded else "×".join(str(n) for n in header.parts[0].shape) + " uint8"
    say.line(f"{out}: {counts}, {kind}, {say.plural(len(header.class_names), 'class')}, {Path(out).stat().st_size / 2**20:,.1f} MB")
    skipped = sum(len(part.skipped) for part in header.parts)
    if skipped:
        say.line(f"  {say.plural(skipped, 'file')} left out, listed in the pack", "yellow")
    say.commands([["convolt", "train", "cnn", "--data", out]])
