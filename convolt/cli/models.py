"""`convolt models`: the architectures, with parameters, FLOPs, and how fast they are here."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convolt.cli import options

if TYPE_CHECKING:
    from convolt.cli.speeds import Speed


class Measured(StrEnum):
    """What `--measure` measures."""

    NOTHING = "nothing"
    PREDICT = "predict"
    TRAINING = "training"
    BOTH = "both"

    @property
    def parts(self) -> tuple[str, ...]:
        """The single measurements."""
        return () if self is Measured.NOTHING else ("predict", "training") if self is Measured.BOTH else (self.value,)


Which = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAMES]", show_default=False, help="Names, parts of names or of families, or patterns such as [b]resnet*[/b]."),
]
Measure = Annotated[
    Measured,
    typer.Option("--measure", help="Measure images/s on this computer, and keep them; [b]--measure[/b] alone is predict."),
]
Batch = Annotated[int, typer.Option("--batch-size", "-b", min=1, help="With --measure: pictures at once.")]
Json = Annotated[bool, typer.Option("--json", help="Print the list as JSON.")]

COLUMNS = {"predict": "images_per_second", "training": "training_images_per_second"}
"""What was measured → its name in JSON."""


def models(names: Which = None, measure: Measure = Measured.NOTHING, batch_size: Batch = 8, device: options.Device = "auto",
           json: Json = False) -> None:
    """List the built-in architectures, with parameters, FLOPs per picture, and the speed that was measured here."""
    from json import dumps

    from convolt import devices
    from convolt.cli import say, speeds

    chosen = _chosen(names or [])
    place = devices.resolve(device)
    where = devices.describe(place).name
    known = speeds.Speeds(where)
    rows = []
    for name in chosen:
        for what in measure.parts:
            speed = speeds.measure(name, what, place, batch_size)
            known.keep(name, what, speed)
            if not json:
                say.line(f"{name}: {what} {speed['value']:,.1f} images/s", "dim")
        rows.append(_row(name) | {column: known.get(name, what) for what, column in COLUMNS.items()})
    if json:
        typer.echo(dumps(rows, indent=2))
        return
    _show(rows, where)


def _show(rows: list[dict[str, Any]], where: str) -> None:
    from convolt.cli import say
    from convolt.models.summary import human

    def text(speed: Speed | None) -> str:
        return "–" if speed is None else f"{speed['value']:,.0f}" if speed["value"] >= 10 else f"{speed['value']:.2g}"

    def how(found: list[Speed]) -> str:
        return ", ".join(dict.fromkeys(f"{speed['date']}, batch {speed['batch_size']}" for speed in found)) or "–"

    body = []
    for row in rows:
        found = [row[column] for column in COLUMNS.values()]
        body.append([row["name"], row["family"], "×".join(map(str, row["input_shape"])), f"{row['parameters']:,}", human(row["flops"]),
                     *map(text, found), how([speed for speed in found if speed is not None])])
    say.table(["name", "family", "picture", "parameters", "FLOPs", "images/s", "training", "measured"], body, right=[3, 4, 5, 6])
    say.line()
    unknown = sum(row["images_per_second"] is None for row in rows)
    note = f" {unknown} not measured here yet: convolt models NAMES --measure does it." if unknown else ""
    say.line(f"{say.plural(len(rows), 'architecture')}, with the weights of all classes, and statistics, as Keras counts them. "
             "FLOPs of one picture, a multiply and an add are two. "
             f"images/s: predict on {where}, in float32; training: steps of SGD, layer by layer (--measure training).{note}")


def _row(name: str) -> dict[str, Any]:
    """Returns name, family, source, shape of a picture, classes, parameters and FLOPs of an architecture."""
    from convolt import applications
    from convolt.applications.figures import figures
    from convolt.cli.speeds import picture_shape

    entry = applications.get(name)
    parameters, flops = figures(name)
    return {"name": name, "family": entry.family, "source": entry.source, "input_shape": list(picture_shape(entry)),
            "classes": entry.classes, "parameters": parameters, "flops": flops}


def _chosen(patterns: list[str]) -> list[str]:
    """Returns the names that patterns mean, in the order of the list; a whole name means itself alone.

    Raises:
        ArgumentError: there are none for one of them.
    """
    import fnmatch

    from convolt import applications
    from convolt.errors import ArgumentError, did_you_mean, explain

    known = applications.names()
    found = set()
    for pattern in patterns:
        word = pattern.lower()
        wanted = word if any(c in word for c in "*?[") else f"*{word}*"
        fitting = {word} if word in known else {
            name for name in known if any(fnmatch.fnmatchcase(text, wanted) for text in (name, applications.get(name).family.lower()))}
        if not fitting:
            raise ArgumentError(explain("convolt models", repr(pattern), "part of a name or family, or a pattern",
                                        did_you_mean(word, known)))
        found |= fitting
    return [name for name in known if name in found] if patterns else known
