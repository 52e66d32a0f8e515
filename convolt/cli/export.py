"""`convolt export`: a saved model for other programs, kept only if it computes the same."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convolt.cli import options
from convolt.cli.options import ColorMode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from convolt.data.pictures import Pictures
    from convolt.formats.export import Comparison
    from convolt.models import Model


FEWEST = 8
"""Pictures that are compared at once, at least."""


class FormatName(StrEnum):
    """A format that other programs read."""

    ONNX = "onnx"
    H5 = "h5"
    KERAS = "keras"
    PT2 = "pt2"


class InputType(StrEnum):
    """What the file takes."""

    FLOAT32 = "float32"
    UINT8 = "uint8"


To = Annotated[FormatName, typer.Option("--to", "-t", show_default=False, help="The format.")]
Out = Annotated[
    str | None, typer.Option("--out", "-o", metavar="FILE", show_default=False, help="The file to write; beside FILE if not given.")
]
Check = Annotated[
    str | None,
    typer.Option("--check", metavar="DATA", show_default=False, help="Compare outputs and the metric on the test set of DATA."),
]
Samples = Annotated[int, typer.Option("--samples", min=1, help="With --check, how many samples are compared at most.")]
Takes = Annotated[InputType, typer.Option("--input-type", help="What the file takes: uint8 are the bytes of pictures (onnx, pt2).")]


def export(
    file: options.File,
    to: To,
    out: Out = None,
    check: Check = None,
    samples: Samples = 10_000,
    input_type: Takes = InputType.FLOAT32,
    image_size: options.ImageSize = None,
    color_mode: options.Colors = ColorMode.AUTO,
    code: options.Code = None,
) -> None:
    """Write a saved model as ONNX, Keras file or torch.export program, and check that it computes the same."""
    from pathlib import Path

    from convolt.cli import model_spec, say
    from convolt.formats.export import export as write

    model = model_spec.open_saved(file, code, "cpu")
    target = Path(out) if out else Path(file).with_suffix(f".{to.value}")
    if target == Path(file):
        raise typer.BadParameter(f"{file!r} is such a file already. Give --out another name.")
    given, metric = (None, None) if check is None else _checked_on(model, check, samples, options.parse_size(image_size), color_mode)
    result = write(model, target, to.value, input_dtype=input_type.value, check=given, metric=metric)
    say.heading(f"Wrote {target}")
    say.rows(_rows(result, check))


def _checked_on(model: Model, data: str, samples: int, size: tuple[int, int] | None, color: ColorMode) -> tuple[Any, Any]:
    """Returns (inputs, function of the outputs that gives the metric or None) from the test part of DATA; pictures are not read yet."""
    import numpy as np

    from convolt.cli import parts
    from convolt.data.pictures import Pictures

    shapes = model.input_shapes
    source = parts.load(data, size, color, tuple(shapes[0][1:]) if shapes else None)
    part = parts.split(source, None).test
    part = part.subset(np.arange(min(samples, len(part))), part.name)
    x = _chunks(part.x) if isinstance(part.x, Pictures) else [part.x]
    if not parts.is_classification(source):
        return x, None

    def accuracy(outputs: Any) -> float:
        truth = parts.class_numbers(part.readable().y)
        scores = outputs[0]
        guesses = scores.argmax(axis=-1) if scores.shape[-1] > 1 else (scores[..., 0] > 0.5).astype(int)
        return float(np.mean(guesses == truth))

    return x, accuracy


def _chunks(pictures: Pictures) -> Iterator[list[Any]]:
    """Yields pictures as arrays: as floats, each takes an eighth of the memory for data, or what a batch does."""
    import numpy as np

    from convolt.data.budget import data_memory

    each = 4 * pictures.nbytes // len(pictures)
    size = max(FEWEST, data_memory() // 8 // each)
    orders = [np.arange(start, min(start + size, len(pictures))) for start in range(0, len(pictures), size)]
    yield from ([x] for x, kept in pictures.batches(orders, size, most=1) if len(kept))


def _rows(result: Comparison, data: str | None) -> list[tuple[str, str]]:
    """Returns what was compared, as labels and sentences."""
    from convolt.cli import say

    rows = [
        ("run by", result.runner),
        ("outputs", f"{f'off by {result.difference:.2g} at most' if result.difference else 'equal'}, "
                    f"on {say.plural(result.samples, 'sample')} {'of random values' if data is None else f'of {data}'}"),
    ]
    if result.before is not None and result.after is not None:
        rows.append(("accuracy", f"{say.percent(result.before)} before, {say.percent(result.after)} after"))
    return rows
