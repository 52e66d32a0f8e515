"""Trainings in processes that start at once: imports everything once, then forks a process for each request and kills it.

A request is a line of JSON on standard input, the answer one on standard output. A fork is a process like any other to
SIGKILL; what it saves is the import of PyTorch.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

import convolt.training.trainer  # noqa: F401 (imported when first needed otherwise, and so by each process anew)
from convolt.training.checkpoint import store
from convolt.training.checkpoint.keeper import CheckpointKeeper
from tests.faults import tiny

CALLS = ("open", "write", "fsync", "fstat", "close", "replace", "unlink", "listdir")


class CountedCalls:
    """The module `os` for the store: every call on the file system is counted, and one of them is the process's last."""

    def __init__(self, last: int | None, slow_fsync: float = 0.0) -> None:
        self.last = last
        self.slow_fsync = slow_fsync
        self.count = 0
        self.active = False

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            if name == "fsync" and self.active:
                time.sleep(self.slow_fsync)
            found = real(*arguments, **options)
            if self.active:
                self.count += 1
                if self.count == self.last:
                    os._exit(9)
            return found

        return call


def child(request: dict[str, Any], marks: int) -> None:
    """Trains in a forked process; `marks` gets an "s" at the first step, "b" and "e" around each save."""
    calls = CountedCalls(request.get("last_call"), request.get("slow_fsync", 0.0))
    store.os = calls  # type: ignore[attr-defined]
    save, start = store.Store.save, CheckpointKeeper.start
    numbers = {"save": 0}

    def marked_save(self: Any, *arguments: Any, **options: Any) -> Any:
        numbers["save"] += 1
        calls.active = numbers["save"] == request.get("in_save", numbers["save"])
        if calls.active and "limit" in request:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], resource.RLIM_INFINITY))
        os.write(marks, b"b")
        found = save(self, *arguments, **options)
        os.write(marks, b"e")
        calls.active = False
        return found

    def marked_start(self: Any, first: int) -> Any:
        found = start(self, first)
        os.write(marks, b"s")
        return found

    store.Store.save, CheckpointKeeper.start = marked_save, marked_start  # type: ignore[method-assign]
    if "limit" in request:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    folder = Path(request["folder"])
    tiny.train_and_report(folder, request.get("width", 16), **request.get("options", {}))
    os.write(marks, f"\n{calls.count}".encode())


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """Runs one training and returns how it ended."""
    reading, marks = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            child(request, marks)
            code = 0
        except BaseException as error:
            Path(request["folder"]).mkdir(parents=True, exist_ok=True)
            (Path(request["folder"]) / "error.txt").write_text(f"{error}\n\n{traceback.format_exc()}", encoding="utf-8")
        finally:
            os._exit(code)
    os.close(marks)
    seen = b""
    began = time.perf_counter()
    if "kill_at_save" in request:
        seen = _read_until(reading, b"b", request["kill_at_save"])
    elif "kill_after" in request or "signals" in request:
        seen = _read_until(reading, b"s", 1)
        began = time.perf_counter()
    if "kill_after" in request:
        time.sleep(request["kill_after"])
        os.kill(pid, signal.SIGKILL)
    for number, pause in request.get("signals", []):
        time.sleep(pause)
        os.kill(pid, number)
    while more := os.read(reading, 65536):
        seen += more
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    letters, _, calls = seen.partition(b"\n")
    return {"status": os.waitstatus_to_exitcode(status), "inside": letters.count(b"b") > letters.count(b"e"),
            "saves": letters.count(b"e"), "seconds": time.perf_counter() - began, "calls": int(calls or 0)}  # fmt: skip


def _read_until(reading: int, mark: bytes, count: int) -> bytes:
    seen = b""
    while seen.count(mark) < count and select.select([reading], [], [], 60)[0]:
        more = os.read(reading, 1)
        if not more:
            break
        seen += more
    return seen


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)
