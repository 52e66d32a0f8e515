"""What the verbs print: lines that read well on a terminal and in a log, where nothing is coloured or wrapped."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text

from convolt.errors import ConvoltWarning

LABEL_WIDTH = 12


def console() -> Console:
    """Returns a console on the present standard output."""
    return Console(soft_wrap=True, highlight=False)


def heading(text: str) -> None:
    """Prints a line that begins a part."""
    console().print(Text(text, "bold"))


def rows(pairs: Iterable[tuple[str, str]]) -> None:
    """Prints labels and what belongs to them, in two columns."""
    for label, text in pairs:
        console().print(Text.assemble("  ", (f"{label:<{LABEL_WIDTH}}", "cyan"), text))


def line(text: str = "", style: str = "") -> None:
    """Prints one line."""
    console().print(Text(text, style))


def commands(lines: Sequence[Sequence[str]]) -> None:
    """Prints commands that can be copied, under "Next"."""
    import shlex

    heading("Next")
    for arguments in lines:
        line(f"  {shlex.join(arguments)}")


def table(columns: Sequence[str], body: Iterable[Sequence[str]], right: Iterable[int] = ()) -> None:
    """Prints rows under headings, each column as wide as its longest cell."""
    cells = [list(columns), *(list(row) for row in body)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    to_right = set(right)
    for number, row in enumerate(cells):
        padded = [
            cell.rjust(width) if i in to_right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        line(("  " + "  ".join(padded)).rstrip(), "bold" if number == 0 else "")


@contextmanager
def spoken_warnings() -> Iterator[None]:
    """Convolt's own warnings inside of this `with` are lines, each once, without Python's file and line number."""
    before = warnings.showwarning
    said: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, ConvoltWarning):
            if str(message) not in said:
                line(str(message), "yellow")
            said.add(str(message))
        else:
            before(message, category, *place, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def percent(share: float) -> str:
    """Returns a share with two decimals: 0.9912 → "99.12%"."""
    return f"{100 * share:.2f}%"


def plural(count: int, word: str) -> str:
    """Returns "1 picture", "10,000 pictures", "10 classes"."""
    ending = "" if count == 1 else "es" if word.endswith("s") else "s"
    return f"{count:,} {word}{ending}"


def duration(seconds: float) -> str:
    """Returns "8.3 s" or "2:05" (minutes and seconds)."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
