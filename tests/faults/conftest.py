"""Processes to be killed, and where the figures of the full counts are printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ZYGOTE = Path(__file__).with_name("zygote.py")


class Zygote:
    """Runs trainings in forked processes; see `zygote.py`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, folder: Path, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        folder.mkdir(parents=True, exist_ok=True)
        self._process.stdin.write(json.dumps({"folder": str(folder), **request}) + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def result(self, folder: Path, **request: Any) -> dict[str, Any]:
        """Runs a training to its end and returns its weights, history and sums."""
        answer = self.run(folder, **request)
        error = folder / "error.txt"
        assert answer["status"] == 0, error.read_text(encoding="utf-8") if error.exists() else answer
        return {**json.loads((folder / "result.json").read_text(encoding="utf-8")), **{k: answer[k] for k in ("seconds", "saves", "calls")}}


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen([sys.executable, str(ZYGOTE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    yield Zygote(process)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    process.stdout.close()
    process.wait()


@pytest.fixture
def figure(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints a figure past pytest's capture."""

    def show(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}")

    return show
