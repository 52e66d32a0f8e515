"""`convolt evaluate`: how good a saved model is on DATA."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convolt.cli import options
from convolt.cli.options import ColorMode, Decoder, Precision, Verbose

if TYPE_CHECKING:
    from convolt.cli.parts import Part
    from convolt.cli.results import Result
    from convolt.data.sources import Source
    from convolt.models import Model


class PartName(StrEnum):
    """A part of DATA."""

    TEST = "test"
    VALIDATION = "validation"
    TRAIN = "train"


Which = Annotated[PartName, typer.Option("--part", help="The part of DATA.")]
Precise = Annotated[
    Precision | None,
    typer.Option("--precision", show_default=False, help="What the model computes in; as in its training if not given."),
]
Out = Annotated[
    str | None,
    typer.Option("--out", "-o", metavar="FOLDER", show_default=False, help="Write confusion.png and predictions.png there."),
]


def evaluate(
    file: options.File,
    data: options.Data,
    batch_size: options.BatchSize = 128,
    part: Which = PartName.TEST,
    image_size: options.ImageSize = None,
    color_mode: options.Colors = ColorMode.AUTO,
    decoder: options.Decoding = Decoder.CPU,
    device: options.Device = "auto",
    precision: Precise = None,
    out: Out = None,
    code: options.Code = None,
    verbose: options.Progress = Verbose.AUTO,
) -> None:
    """Measure a saved model on the test set of DATA."""
    from convolt.cli import model_spec, parts, results, say

    model = model_spec.open_saved(file, code, device)
    shapes = model.input_shapes
    source = parts.load(data, options.parse_size(image_size), color_mode, tuple(shapes[0][1:]) if shapes else None,
                        decoder=decoder.value)
    _check_classes(model, source)
    _compile(model, source, precision, device)
    several = parts.has_several_labels(source)
    classes = len(source.class_names) if several or parts.is_classification(source) else 0
    result = results.measure(model, _part(source, part).in_memory(), batch_size, classes=classes, several=several, verbose=verbose.for_fit)
    say.heading(f"Result: {results.sentence(result)}")
    if result.shares is not None:
        _show_classes(_counts(result), source.class_names)
        if mistakes := results.confusions(result, source.class_names):
            say.rows([("mistakes", f"most often {mistakes}")])
    if out is not None:
        from pathlib import Path

        from convolt.training.run import RunFolder

        Path(out).mkdir(parents=True, exist_ok=True)
        names = ", ".join(results.draw(RunFolder(out), result, source.class_names))
        say.rows([("files", f"{out}: {names or 'none, for these labels are no classes'}")])


def _compile(model: Model, source: Source, precision: Precision | None, device: str) -> None:
    """Gives the model a loss and metrics if its file has none, and the precision that was asked for."""
    from convolt.cli import recipe

    compiled = model._trainer
    if compiled is not None and precision is None:
        return
    plan = recipe.choose(model, source, "auto", [])
    loss, metrics = (plan.loss, plan.metrics) if compiled is None else (compiled.spec["loss"], compiled.spec["metrics"])
    model.compile("adam", loss, metrics, precision=(precision or Precision.AUTO).value, device=device)


def _part(source: Source, name: PartName) -> Part:
    """Returns the part of DATA that was asked for; `test` is the training part, and called so, where there is no other."""
    from convolt.cli.parts import Part
    from convolt.errors import DataError, explain

    if name is PartName.TRAIN:
        return Part(source.x_train, source.y_train, "the training set")
    x, y = (source.x_test, source.y_test) if name is PartName.TEST else (source.x_val, source.y_val)
    if x is not None and y is not None:
        return Part(x, y, f"the {name.value} set")
    if name is PartName.TEST:
        return Part(source.x_train, source.y_train, f"all of {source.name}, which has no test part")
    raise DataError(
        explain(
            f"--part {name.value}",
            f"{source.name}, which has no such part",
            "DATA with x_val and y_val, or a folder val/",
            "Leave --part out for the test part.",
        )
    )


def _check_classes(model: Model, source: Source) -> None:
    """Refuses DATA whose classes are not those of the model: the figures would mean nothing."""
    from convolt.errors import DataError, explain

    names = model.class_names
    if names and source.class_names and list(names) != list(source.class_names):
        raise DataError(explain(f"classes of {source.name}", _few(source.class_names), f"{_few(names)}, the model's own"))


def _few(names: tuple[str, ...] | list[str]) -> str:
    return f"{len(names)}: {', '.join(names[:10])}{', …' if len(names) > 10 else ''}"


def _counts(result: Result) -> tuple[Any, Any, Any]:
    """Returns for each class its samples, those that were taken for it, and those that rightly were."""
    if result.several:
        truth, found = result.labels()
        return truth.sum(axis=0), found.sum(axis=0), (truth & found).sum(axis=0)
    matrix = result.confusion()
    return matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()


def _show_classes(counts: tuple[Any, Any, Any], class_names: tuple[str, ...]) -> None:
    """Prints, for up to 30 classes, how many samples of each were recognized."""
    from convolt.cli import say

    totals, taken, right = counts
    if len(totals) > 30:
        return

    def share(part: int, whole: int) -> str:
        return say.percent(part / whole) if whole else "–"

    body = [
        [name, f"{totals[i]:,}", f"{right[i]:,}", share(right[i], totals[i]), share(right[i], taken[i])]
        for i, name in enumerate(class_names)
    ]
    say.table(["class", "samples", "right", "recall", "precision"], body, right=[1, 2, 3, 4])
