"""Files of a set that could not be used: what is kept of them, told of them and written about them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convolt.data.files import atomic_file
from convolt.errors import ConvoltWarning

MAX_BAD_SHARE = 0.01
"""Share of bad files above which a set is refused."""


class SkippedFilesWarning(ConvoltWarning):
    """Some pictures of a set could not be used and were left out."""


@dataclass(frozen=True)
class BadFile:
    """A file that was left out, and why."""

    path: str
    reason: str


def write_skipped(path: Path, files: Sequence[BadFile]) -> None:
    """Writes files that were left out as a table with the columns `path` and `reason`, whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "reason"), *((bad.path, bad.reason) for bad in files)])
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())
