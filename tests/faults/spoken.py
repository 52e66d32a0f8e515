"""What a user reads about a fault, word for word, beside the fault that is really made: the pages of `tests/faults/messages`.

A test module makes a `Page`, adds a function for each fault with `@page.row("what went wrong")`, and checks the page. A function makes
its fault in an empty folder; what it raises, warns of or returns is the message. After a change of words, write a page anew with
`CONVOLT_WRITE_MESSAGES=1 pytest tests/faults/test_messages_….py`, and read it.
"""

from __future__ import annotations

import os
import re
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convolt.errors import ConvoltError

MESSAGES = Path(__file__).with_name("messages")
Row = Callable[[Path, pytest.MonkeyPatch], Any]


class Page:
    """The messages about one group of faults.

    Args:
        name: of the file in `messages`, without its suffix.
        title: its first line.
        module: the file of the tests, as a reader finds it.
    """

    def __init__(self, name: str, title: str, module: str) -> None:
        self.path = MESSAGES / f"{name}.md"
        self.title, self.module = title, Path(module).name
        self.rows: dict[str, Row] = {}

    def row(self, about: str) -> Callable[[Row], Row]:
        """Adds a fault to the page."""
        assert about not in self.rows, about

        def add(function: Row) -> Row:
            self.rows[about] = function
            return function

        return add

    def check(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        """Makes each fault and compares what was said with the page."""
        lines = [f"# {self.title}", "", f"Written by `tests/faults/{self.module}`."]
        for number, (about, function) in enumerate(self.rows.items()):
            own = folder / str(number)
            own.mkdir()
            with patch.context() as context:
                context.chdir(own)
                lines += ["", f"## {about}", "", *said(lambda own=own, f=function, c=context: f(own, c), own)]
        text = "\n".join(lines) + "\n"
        if os.environ.get("CONVOLT_WRITE_MESSAGES"):
            self.path.write_text(text, encoding="utf-8")
        assert self.path.read_text(encoding="utf-8") == text


def said(make: Callable[[], Any], folder: Path) -> list[str]:
    """Returns a line for each warning and for the error or the text that a fault ends in; silence is a failure."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            end = make()
        except ConvoltError as error:
            end = f"`{type(error).__name__}`: {error}"
    lines = [f"warning `{item.category.__name__}`: {item.message}" for item in caught]
    lines += [] if end is None else [str(end)]
    assert lines, "nothing was said"
    steady_lines = [steady(line, folder) for line in lines]
    return [part for line in steady_lines for part in (line, "")][:-1]


def steady(text: str, folder: Path) -> str:
    """Returns a text without what differs from run to run: folders, processes, hosts, times, room on a disk, lists of names."""
    text = text.replace(str(folder), "FOLDER").replace(socket.gethostname(), "HOST")
    text = re.sub(r"\bprocess \d+", "process PID", text)
    text = re.sub(r"'(sequential|functional|model)_\d+'", r"'\1'", text)  # counted over a process
    text = re.sub(r"\d{6}-epoch-\d+-step-\d+", r"NUMBER-epoch-N-step-N", text)  # as many as a thread had time for
    text = re.sub(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?", "TIME", text)
    text = re.sub(r"[\d,]+ bytes( free| in place of|\. The newest|\. There is no|\. No file)", r"N bytes\1", text)
    text = re.sub(r"\(DataLoader worker .*?\)(?=;)", "(…)", text)  # PyTorch has two ways to find out
    text = re.sub(r"got \d+ damaged files", "got N damaged files", text)
    text = re.sub(r"in place of [\d,]+", "in place of N", text)
    text = re.sub(r"PyTorch [\w.+]+ built for [\w. ]+;", "PyTorch VERSION built for BUILD;", text)
    return re.sub(r"Known: [^.…]*[.…]", "Known: ….", text)


def command(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Returns what a `convolt` command says on the error stream, and its exit code."""
    from convolt.cli.main import main

    capsys.readouterr()
    code = main(line.split())
    text = capsys.readouterr().err.strip()
    assert text, "the error stream is empty"
    return f"`convolt {line}`, exit code {code}: {text}"
