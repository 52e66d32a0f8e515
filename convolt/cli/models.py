"""`convolt models`: the architectures, with parameters, FLOPs, and how fast they are here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from convolt.cli import options

if TYPE_CHECKING:
    from pathlib import Path

    from convolt.applications.family import Architecture

Which = Annotated[
    str | None,
    typer.Argument(metavar="[PATTERN]", show_default=False, help="Part of a name or of a family, or a pattern such as [b]resnet*[/b]."),
]
Measure = Annotated[bool, typer.Option("--measure", help="Measure images/s of predict on this computer, and keep them for the next time.")]
Batch = Annotated[int, typer.Option("--batch-size", "-b", min=1, help="With --measure: pictures at once.")]
Json = Annotated[bool, typer.Option("--json", help="Print the list as JSON.")]


def models(pattern: Which = None, measure: Measure = False, batch_size: Batch = 8, device: options.Device = "auto",
           json: Json = False) -> None:
    """List the built-in architectures, with parameters, FLOPs per picture, and measured speed."""
    from json import dumps

    from convolt import devices
    from convolt.cli import say

    names = _chosen(pattern)
    place = devices.resolve(device)
    where = devices.describe(place).name
    measured = _measured()
    rows = []
    for name in names:
        row = _row(name)
        if measure:
            row["images_per_second"] = measured.setdefault(where, {})[name] = _speed(name, place, batch_size)
            _write(_speeds_file(), measured)
            if not json:
                say.line(f"{name}: {row['images_per_second']['value']:,.1f} images/s", "dim")
        else:
            row["images_per_second"] = measured.get(where, {}).get(name)
        rows.append(row)
    if json:
        typer.echo(dumps(rows, indent=2))
        return
    _show(rows, where)


def _show(rows: list[dict[str, Any]], where: str) -> None:
    from convolt.cli import say
    from convolt.models.summary import human

    def speed(row: dict[str, Any]) -> str:
        found = row["images_per_second"]
        return "–" if found is None else f"{found['value']:,.0f}" if found["value"] >= 10 else f"{found['value']:.2g}"

    body = [[row["name"], row["family"], "×".join(map(str, row["input_shape"])), f"{row['parameters']:,}", human(row["flops"]), speed(row)]
            for row in rows]
    say.table(["name", "family", "picture", "parameters", "FLOPs", "images/s"], body, right=[3, 4, 5])
    say.line()
    unknown = sum(row["images_per_second"] is None for row in rows)
    note = f" {unknown} not measured here yet: convolt models --measure does it." if unknown else ""
    say.line(f"{say.plural(len(rows), 'architecture')}, with the weights of all classes, and statistics, as Keras counts them. "
             "FLOPs of one picture, a multiply and an add are two. "
             f"images/s: predict on {where}.{note}")


def _row(name: str) -> dict[str, Any]:
    """Returns name, family, source, shape of a picture, classes, parameters and FLOPs of an architecture."""
    from convolt import applications
    from convolt.applications.figures import figures

    entry = applications.get(name)
    parameters, flops = figures(name)
    return {"name": name, "family": entry.family, "source": entry.source, "input_shape": list(_shape(entry)), "classes": entry.classes,
            "parameters": parameters, "flops": flops}


def _shape(entry: Architecture) -> tuple[int, int, int]:
    return entry.size, entry.size, entry.channels


def _chosen(pattern: str | None) -> list[str]:
    """Returns the names that a pattern means.

    Raises:
        ArgumentError: there are none.
    """
    import fnmatch

    from convolt import applications
    from convolt.errors import ArgumentError, did_you_mean, explain

    known = applications.names()
    if pattern is None:
        return known
    wanted = pattern.lower() if any(c in pattern for c in "*?[") else f"*{pattern.lower()}*"
    found = [name for name in known if any(fnmatch.fnmatchcase(text, wanted) for text in (name, applications.get(name).family.lower()))]
    if not found:
        raise ArgumentError(explain("convolt models", repr(pattern), "part of a name or family, or a pattern",
                                    did_you_mean(pattern, known)))
    return found


# -- speed -------------------------------------------------------------------------------------------------------------


def _speed(name: str, device: Any, batch_size: int) -> dict[str, Any]:
    """Measures `predict` on pictures of the architecture's size; the median of five runs, after one that is not counted."""
    import statistics
    import time

    import numpy as np

    from convolt import applications

    entry = applications.get(name)
    shape = _shape(entry)
    model = entry.make(shape, entry.classes).to(device)
    pictures = np.random.default_rng(0).integers(0, 256, (2 * batch_size, *shape)).astype(np.uint8)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        model.predict(pictures, batch_size=batch_size, verbose=0)
        seconds.append(time.perf_counter() - start)
    return {"value": len(pictures) / statistics.median(seconds[1:]), "batch_size": batch_size, "precision": "float32",
            "date": time.strftime("%Y-%m-%d")}


def _measured() -> dict[str, Any]:
    """Returns what was measured on this computer, by device and name."""
    return _read(_speeds_file())


def _speeds_file() -> Path:
    from convolt.data.files import cache_folder

    return cache_folder() / "models.json"


def _read(path: Path) -> dict[str, Any]:
    """Returns the JSON in a file of the cache; a damaged file is as good as none."""
    import json

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and all(isinstance(v, dict) for v in found.values()) else {}


def _write(path: Path, values: dict[str, Any]) -> None:
    import json
    import os

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(values, indent=2), encoding="utf-8")
    os.replace(temporary, path)
