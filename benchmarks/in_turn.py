"""The peers of one cell at once, each of which does an epoch while the others wait: a busy second of the machine falls on all of them.

A process that is ready says so (`workloads.TURN`) and waits to be told to go on. Their first steps and warm-up run alone, one process after
the other. What remains is noise that both sides of a ratio share.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from workloads import GO, TURN

FEWEST_TURNS = 5
SETTLE = 0.03
"""Seconds between two turns: OpenMP's threads spin for some milliseconds after their work, and would take a part of the next one's."""


class Waiting:
    """A peer's process.

    Args:
        process: how it is run (`suite.Process`).
        report_of: makes a row of how it ended.
    """

    def __init__(self, process: Any, report_of: Callable[..., dict[str, Any]]) -> None:
        self._how, self._report_of, self._began = process, report_of, time.time()
        self._late = False
        self._output = ""
        self._errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in `row`
        variables = process.variables | {"CONVOLT_BENCH_START": repr(self._began), "CONVOLT_BENCH_IN_TURN": "1"}
        self._process = subprocess.Popen(process.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
                                         env=variables)
        self.ready = self._wait()

    def turn(self) -> None:
        """Lets it do an epoch."""
        self._say(GO)
        self.ready = self._wait()

    def row(self) -> dict[str, Any]:
        """Ends it, and returns its row."""
        self._say("end")
        while self._wait():
            pass
        with self._process, self._errors:
            status = self._process.wait()
            self._errors.seek(0)
            errors = self._errors.read()
        if self._late:
            return {**self._how.row, "status": f"not done within {self._how.limit:.0f} s"}
        return {**self._report_of(self._how.row, status, self._output, errors, time.time() - self._began), "in_turn": True}

    def _say(self, word: str) -> None:
        try:
            os.write(self._process.stdin.fileno(), f"{word}\n".encode())  # type: ignore[union-attr]
        except BrokenPipeError:
            self.ready = False  # it has ended: its status says why

    def _wait(self) -> bool:
        """Returns whether it is ready for a turn; False where it has ended, or was ended because it took too long."""
        timer = threading.Timer(self._how.limit, self._end)
        timer.start()
        try:
            for line in self._process.stdout:  # type: ignore[union-attr]
                if line.strip() == TURN:
                    return True
                self._output += line
            return False
        finally:
            timer.cancel()

    def _end(self) -> None:
        self._late = True
        self._process.kill()


def run(processes: Sequence[Any], report_of: Callable[..., dict[str, Any]], budget: float) -> Iterator[dict[str, Any]]:
    """Yields the row of each peer, measured in turn for `budget` seconds of each, every second time in reversed order.

    Args:
        processes: `suite.Process` of each.
        report_of: makes a row of how a process ended; `suite.report_of`.
        budget: seconds.
    """
    peers = [Waiting(process, report_of) for process in processes]
    began, rounds = time.time(), 0
    while any(peer.ready for peer in peers) and (rounds < FEWEST_TURNS or time.time() - began < budget * len(peers)):
        for peer in peers if rounds % 2 else reversed(peers):
            if peer.ready:
                time.sleep(SETTLE)
                peer.turn()
        rounds += 1
    yield from (peer.row() for peer in peers)
