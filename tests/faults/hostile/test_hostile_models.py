"""Hostile model files end in Convolt's own error: nothing runs, no file or socket is opened, memory and time are bounded.

Every message stands verbatim in `tests/faults/messages/model_files.md`. After a change of words, write it anew with
`CONVOLT_WRITE_MESSAGES=1 pytest tests/faults/hostile/test_hostile_models.py`, and read it.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.hostile import corpus, corpus_keras  # noqa: F401 (which list their files)
from tests.faults.hostile.builders import CORPUS

MESSAGES = Path(__file__).parents[1] / "messages" / "model_files.md"
ROOT = Path(__file__).parents[3]
SECONDS, MEMORY = 5.0, 300 * 2**20


class Port:
    """A port of this machine that counts who comes."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.number, self.visits = self.server.getsockname()[1], 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:  # closed
                return
            self.visits += 1
            connection.close()


@pytest.fixture(scope="module")
def port() -> Iterator[Port]:
    made = Port()
    yield made
    made.server.close()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, port: Port) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("hostile")
    done = subprocess.run([sys.executable, "-m", "tests.faults.hostile.attempt", str(folder), str(port.number)], cwd=ROOT, text=True,
                          capture_output=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-500:]
    return {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", [thing.name for thing in CORPUS])
def test_a_hostile_file_is_refused_and_nothing_else_happens(name: str, outcomes: dict[str, dict[str, Any]]) -> None:
    outcome = outcomes[name]
    assert outcome["class"] == "ModelFileError", outcome["message"]
    assert not outcome["canary"], "code of the file ran"
    assert outcome["seconds"] < SECONDS
    assert outcome["grown"] < MEMORY
    assert outcome["message"].startswith("MODELS/") and "; expected " in outcome["message"]


def test_nobody_came_to_the_port(outcomes: dict[str, dict[str, Any]], port: Port) -> None:
    assert len(outcomes) == len(CORPUS)
    assert port.visits == 0
    socket.create_connection(("127.0.0.1", port.number)).close()  # it does count
    while not port.visits:
        pass


FITS_ONLY_WITH_VALUES = {"nonfinite_weights", "nonfinite_in_h5"}


@pytest.mark.parametrize("name", [thing.name for thing in CORPUS if thing.name not in FITS_ONLY_WITH_VALUES])
def test_inspect_says_that_it_is_not_safe(name: str, outcomes: dict[str, dict[str, Any]]) -> None:
    if outcomes[name]["class"] == "ModelFileError" and "without an architecture" in outcomes[name]["message"]:
        return  # weights alone are safe
    assert not outcomes[name]["safe"], outcomes[name]


def steady(message: str) -> str:
    """Returns a message without what differs from run to run, or with versions of libraries: ports, sizes of files, lists of names."""
    message = re.sub(r"Known: [^.…]*[.…]", "Known: ….", message)
    message = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", message)
    message = re.sub(r"\((OSError|RuntimeError): .*\)(?=;)", r"(\1: …)", message)  # the words of HDF5 and PyTorch
    return re.sub(r"\b(archive|file) of [\d,]+", r"\1 of N", message)


def test_every_message_is_the_one_that_was_judged(outcomes: dict[str, dict[str, Any]]) -> None:
    lines = ["# What a user reads about a model file that is refused", "", "Written by `tests/faults/hostile/test_hostile_models.py`."]
    for thing in CORPUS:
        lines += ["", f"## {thing.about}", "", f"`{thing.name}`: {steady(outcomes[thing.name]['message'])}"]
    text = "\n".join(lines) + "\n"
    if os.environ.get("CONVOLT_WRITE_MESSAGES"):
        MESSAGES.write_text(text, encoding="utf-8")
    assert MESSAGES.read_text(encoding="utf-8") == text


def test_tar_archives_that_climb_out_are_refused(tmp_path: Path) -> None:
    from convolt.data.archives import read_tar
    from convolt.errors import DataError
    from tests.faults.hostile.mutate import tar_of

    for name in ("../canary", "/tmp/canary", "a/../../canary", "C:\\canary"):
        (tmp_path / "a.tar.gz").write_bytes(tar_of({name: b"out"}, "w:gz"))
        with pytest.raises(DataError, match="names inside the archive's own folder"):
            list(read_tar(tmp_path / "a.tar.gz", lambda _: True, member_bytes=100, total_bytes=10**6))
    assert not (tmp_path.parent / "canary").exists() and not Path("/canary").exists()
