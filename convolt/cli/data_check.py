"""`convolt data check`: what is in DATA, and what is wrong with it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Folder = Annotated[
    str,
    typer.Argument(metavar="DATA", show_default=False, help="A folder with one folder per class; a [b].csv[/b]; [b].tar[/b] shards."),
]
Json = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]
SHOWN = 5


def check(data: Folder, json: Json = False) -> None:
    """Decode every picture of DATA once: classes, sizes, broken files, duplicates, leaks. Exit code 1 if something is wrong."""
    from convolt.data.parts import picture_parts
    from convolt.data.survey import survey

    found = survey(picture_parts(data, None, "rgb"))
    if json:
        import json as writer

        print(writer.dumps(found.as_json(), indent=2, ensure_ascii=False))
    else:
        _print(data, found)
    if found.faults:
        raise typer.Exit(1)


def _print(data: str, found: Any) -> None:
    from convolt.cli import say

    for name, part in found.parts.items():
        say.heading(f"{data}: {name}" if len(found.parts) > 1 else data)
        sizes = list(part.sizes.items())
        few = min(part.classes.values(), default=0)
        many = max(part.classes.values(), default=0)
        each = f"{few:,} to {many:,} pictures" if few != many else f"{few:,} pictures each"
        conflicts = f", {len(part.conflicts)} with labels that differ" if part.conflicts else ""
        rows = [
            ("pictures", f"{part.pictures:,}"),
            ("classes", f"{len(part.classes):,}, of {each}"),
            ("sizes", ", ".join(f"{size} ({count:,})" for size, count in sizes[:SHOWN]) + _more(len(sizes))),
            ("broken", _count(len(part.broken), "file")),
            *([("ignored", _count(len(part.ignored), "link"))] if part.ignored else []),
            ("duplicates", _count(len(part.duplicates), "group") + conflicts),
        ]
        say.rows(rows)
        if 1 < len(part.classes) <= 30 and few != many:
            say.table(["class", "pictures"], [[label, f"{count:,}"] for label, count in part.classes.items()], right=[1])
        for bad in part.broken[:SHOWN]:
            say.line(f"  broken {bad.path}: {bad.reason}", "yellow")
        for bad in part.ignored[:SHOWN]:
            say.line(f"  ignored {bad.path}: {bad.reason}")
        for group in part.conflicts[:SHOWN]:
            say.line(f"  one picture, several labels: {', '.join(group[:SHOWN])}{_more(len(group))}", "yellow")
        for group in [g for g in part.duplicates if g not in part.conflicts][:SHOWN]:
            say.line(f"  duplicates: {', '.join(group[:SHOWN])}{_more(len(group))}")
    for one, other in found.leaks[:SHOWN]:
        say.line(f"  leak: {one} is also {other}", "yellow")
    if len(found.parts) > 1:
        say.rows([("leaks", f"{len(found.leaks) or 'none'} from training into other parts")])
    for part, label in found.empty_classes:
        say.line(f"  no pictures of {label} in {part}", "yellow")
    say.heading(f"{say.plural(found.faults, 'fault')}: --json lists all of them" if found.faults else "Nothing wrong.")


def _more(count: int) -> str:
    return f" and {count - SHOWN:,} more" if count > SHOWN else ""


def _count(count: int, word: str) -> str:
    from convolt.cli import say

    return say.plural(count, word) if count else "none"
