"""`convolt inspect`: what a model file holds and whether it is safe, without loading it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from convolt.formats.inspect import Report

AnyFile = Annotated[str, typer.Argument(metavar="FILE", show_default=False, help="A model file of any kind.")]


def inspect(
    file: AnyFile,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    all_weights: Annotated[bool, typer.Option("--all", help="List every layer and weight, not the first 40.")] = False,
) -> None:
    """Show what a model file holds and whether it is safe, without loading it.

    The exit code is 1 if Convolt would not read it.
    """
    from convolt.formats.inspect import inspect_file

    report = inspect_file(file)
    if as_json:
        import json

        print(json.dumps(report.as_json(), indent=2, ensure_ascii=False))
    else:
        _show(report, most=10**9 if all_weights else 40)
    if not report.safe:
        raise typer.Exit(1)


def _show(report: Report, most: int) -> None:
    from convolt.cli import say

    say.heading(f"{report.file}: {report.kind}, {_size(report.bytes)}")
    say.line(("✓ " if report.safe else "✗ ") + report.verdict, "bold green" if report.safe else "bold red")
    for problem in report.problems:
        say.line(f"  · {problem}", "red")
    say.rows(report.facts)
    say.rows([("input", text) for text in report.preprocessing])
    if report.layers:
        say.line()
        say.heading("Architecture")
        rows = [["  " * row.depth + row.name, row.kind + ("" if row.known else " (unknown)"), row.arguments] for row in report.layers]
        say.table(["layer", "class", "arguments"], rows[:most])
        _more(len(report.layers) - most)
    if report.weights:
        say.line()
        total = sum(row.bytes for row in report.weights)
        say.heading(f"Weights: {say.plural(len(report.weights), 'array')}, {_size(total)}")
        say.table(["name", "type", "shape", "bytes"],
                  [[row.name, row.dtype, "×".join(map(str, row.shape)) or "one number", f"{row.bytes:,}"] for row in report.weights[:most]],
                  right=[3])
        _more(len(report.weights) - most)
    if report.imports:
        say.line()
        say.heading("Loading it would import")
        for name in report.imports[:most]:
            say.line(f"  {name}")
        _more(len(report.imports) - most)


def _size(count: int) -> str:
    """Returns "812 bytes", "3.4 MB" (millions of bytes)."""
    if count < 10_000:
        return f"{count:,} bytes"
    return f"{count / 1e6:,.1f} MB" if count >= 1_000_000 else f"{count / 1e3:,.1f} kB"


def _more(count: int) -> None:
    from convolt.cli import say

    if count > 0:
        say.line(f"  … and {count:,} more (--all shows them)", "dim")
