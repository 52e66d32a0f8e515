"""`convolt doctor`: what is installed, which devices there are, what is missing."""

from __future__ import annotations

from typing import Annotated

import typer

MARKS = {"ok": ("✓", "green"), "info": ("·", ""), "missing": ("–", "yellow"), "problem": ("✗", "bold red")}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False) -> None:
    """Show what is installed, which devices there are and what is missing.

    The exit code is 1 if something is wrong.
    """
    from convolt import doctor as report_of
    from convolt.cli import say

    rows = report_of.report()
    wrong = report_of.problems(rows)
    if as_json:
        import json

        print(json.dumps(report_of.as_json(rows), indent=2, ensure_ascii=False))
        raise typer.Exit(1 if wrong else 0)
    from rich.text import Text

    console, width, section = say.console(), max(len(row.name) for row in rows), ""
    for row in rows:
        if row.section != section:
            section = row.section
            say.heading(section.capitalize())
        mark, style = MARKS[row.state]
        console.print(
            Text.assemble("  ", (mark, style), f" {row.name:<{width}}  ", (row.value, style if row.state == "problem" else ""))
        )
        if row.fix and row.state != "ok":
            console.print(Text(f"    {'':<{width}}  → {row.fix}", "dim"))
    say.line()
    if wrong:
        say.line(f"{say.plural(len(wrong), 'problem')}: {', '.join(row.name for row in wrong)}", "bold red")
        raise typer.Exit(1)
    say.line("Nothing is wrong.", "bold green")
