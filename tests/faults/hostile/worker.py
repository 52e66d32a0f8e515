"""A process with bounded memory that reads mutants one after another, and the watcher that starts it again where it dies.

    python -m tests.faults.hostile.worker KIND FIRST COUNT FOLDER

prints a line of JSON for each mutant that did not end in a read file or in an error of Convolt, and one with the counts. A mutant is
made from its number, so that a failure can be repeated: FIRST is its number, COUNT 1.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

MEMORY = 2**30
"""What reading may take beside what the process takes when it starts."""

PATIENCE = 30
"""Seconds after which a mutant is given up and its process killed. The promise is 5; a busy machine may be slower."""


@dataclass
class Result:
    """How many mutants were read, refused with Convolt's own error, and which ended otherwise than that.

    `slowest` are the seconds of the slowest reading by the clock, `slowest_number` its mutant, `work` the most that a reading
    computed, in seconds, `opening` the seconds for which the slowest process that read an HDF5 file computed.
    """

    read: int = 0
    refused: int = 0
    slowest: float = 0.0
    slowest_number: int = -1
    work: float = 0.0
    opening: float = 0.0
    failures: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def count(self) -> int:
        return self.read + self.refused + len(self.failures)


def run(kind: str, count: int, folder: Path, first: int = 0) -> Result:
    """Reads `count` mutants; a process that dies counts as a failure of the mutant that it was at, and the next goes on."""
    result, number, end = Result(), first, first + count
    progress = folder / f"{kind}.at"
    while number < end:
        progress.write_text(str(number))
        command = [sys.executable, "-m", "tests.faults.hostile.worker", kind, str(number), str(end - number), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
        for line in done.stdout.splitlines():
            _add(result, json.loads(line))
        if done.returncode == 0:
            return result
        number = int(progress.read_text())
        result.failures.append(f"{kind} {number}: the process ended with {done.returncode}: {done.stderr[-1500:]}")
        number += 1
    return result


def _add(result: Result, line: dict[str, Any]) -> None:
    if "failure" in line:
        result.failures.append(line["failure"])
    result.read += line.get("read", 0)
    result.refused += line.get("refused", 0)
    result.slowest, result.slowest_number = max((result.slowest, result.slowest_number), (line.get("slowest", 0.0), line.get("number", -1)))
    result.work = max(result.work, line.get("work", 0.0))
    result.opening = max(result.opening, line.get("opening", 0.0))
    result.reasons.update(line.get("reasons", {}))


# -- in the process ----------------------------------------------------------------------------------------------------


def main(kind: str, first: int, count: int, folder: Path) -> None:
    zygote = Zygote() if kind in ("h5", "keras") else None
    import torch

    from convolt.formats.inspect import inspect_file
    from tests.faults.hostile import mutate, seeds

    if zygote is not None:
        from convolt.formats import hdf5

        hdf5.run_worker = zygote.run
    torch.manual_seed(0)
    sources = getattr(seeds, kind)(folder)
    path, progress = folder / f"mutant.{kind}", folder / f"{kind}.at"
    for source in sources:  # all that is imported late is there before memory is bounded
        path.write_bytes(source)
        READERS[kind](path)
        if kind in MODELS:
            inspect_file(path)
    bound_memory()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    totals = no_totals()
    for number in range(first, first + count):
        progress.write_text(str(number))
        path.write_bytes(mutate.MUTANTS[kind](random.Random(f"{kind}/{number}"), sources))
        _attempt(kind, number, path, totals)
        if number % 50 == 49 or number == first + count - 1:  # what was counted is told before a later mutant kills the process
            print(json.dumps(totals | {"opening": zygote.slowest if zygote else 0.0}), flush=True)
            totals = no_totals()


def no_totals() -> dict[str, Any]:
    return {"read": 0, "refused": 0, "slowest": 0.0, "number": -1, "work": 0.0, "reasons": Counter()}


def _attempt(kind: str, number: int, path: Path, totals: dict[str, Any]) -> None:
    """Reads one mutant, and inspects every fifth model too; what is neither read nor refused is told at once."""
    from convolt.errors import ConvoltError
    from convolt.formats.inspect import inspect_file

    signal.alarm(PATIENCE)
    start = now()
    try:
        if number % 5 == 0 and kind in MODELS:
            inspect_file(path)
            _time(totals, number, start)
            start = now()
        READERS[kind](path)
        totals["read"] += 1
    except ConvoltError as error:
        totals["refused"] += 1
        totals["reasons"][_gist(str(error), path)] += 1
    except BaseException:
        print(json.dumps({"failure": f"{kind} {number}: {traceback.format_exc()[-3000:]}"}), flush=True)
    signal.alarm(0)
    _time(totals, number, start)


def now() -> tuple[float, float]:
    """Returns the seconds of the clock, and those for which this process and those that read HDF5 for it have computed."""
    return time.monotonic(), time.process_time() + Zygote.used


def _time(totals: dict[str, Any], number: int, start: tuple[float, float]) -> None:
    """Keeps the slowest reading and its mutant."""
    clock, work = (after - before for after, before in zip(now(), start, strict=True))
    totals["slowest"], totals["number"] = max((totals["slowest"], totals["number"]), (clock, number))
    totals["work"] = max(totals["work"], work)


def _gist(message: str, path: Path) -> str:
    import re

    return re.sub(r"(?<!signal )\d[\d,]*", "#", re.sub(r"'[^']*'", "'…'", message.replace(str(path), "FILE")))[:110]


def bound_memory() -> None:
    """Lets this process take `MEMORY` more than it has."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))


def read_model(path: Path) -> None:
    """Loads a model, or weights where the file has no architecture; what loads can predict, for its weights fit."""
    import convolt
    from convolt.errors import ModelFileError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", convolt.errors.ConvoltWarning)
        try:
            convolt.load_model(path, device="cpu")
        except ModelFileError as error:
            if "without an architecture" not in str(error):
                raise
            from convolt import layers

            small = convolt.Sequential([layers.Input((4,)), layers.Dense(3, name="dense")])
            small.load_weights(path)


def read_image(path: Path) -> None:
    from convolt.data.decode import decode_image

    pixels = decode_image(path.read_bytes(), "rgb", (16, 16))
    assert pixels.shape == (16, 16, 3) and pixels.dtype == "uint8"


def read_archive(path: Path) -> None:
    """Reads an archive with every reader of its kind."""
    from convolt.data.archives import read_tar
    from convolt.data.npz import load_npz
    from convolt.errors import ConvoltError
    from convolt.formats.archive import read_members

    head = path.read_bytes()[:6]
    if head[:2] == b"PK":
        for name in ("x", "x_train"):
            with contextlib.suppress(ConvoltError):
                read_members(path, {f"{name}.npy": 10_000}, optional={"class_names.npy": 1000})
        load_npz(path, max_bytes=2**24)
        return
    named = path.with_name("mutant.tar.xz" if head == b"\xfd7zXZ\x00" else "mutant.tar.gz")
    named.write_bytes(path.read_bytes())
    for name, content in read_tar(named, lambda name: name.endswith((".jpg", ".txt")), member_bytes=2**20, total_bytes=2**24):
        assert len(content) <= 2**20 and ".." not in name


def read_pickle(path: Path) -> None:
    """Looks at a pickle, which is all that is ever done with one."""
    from convolt.formats.inspect import inspect_file

    assert not inspect_file(path).safe


MODELS = ("safetensors", "h5", "keras")
READERS: dict[str, Callable[[Path], None]] = {"safetensors": read_model, "h5": read_model, "keras": read_model, "images": read_image,
                                              "archives": read_archive, "pickles": read_pickle}


class Zygote:
    """Runs the worker of `convolt.formats.hdf5` by a fork of a process that has imported h5py, which is 30 times faster than a new one.

    The rest is as in earnest: a process for each file, the same code, the same limits.
    """

    used = 0.0  # seconds for which the processes that read files have computed

    def __init__(self) -> None:
        self.slowest = 0.0
        self.socket, other = socket.socketpair()
        if os.fork() == 0:
            self.socket.close()
            self._serve(other)
        other.close()

    def _serve(self, connection: socket.socket) -> None:
        import importlib.util

        import h5py  # noqa: F401

        code = Path(__file__).parents[3] / "convolt" / "formats" / "hdf5_worker.py"  # alone: the package would bring PyTorch with it
        spec = importlib.util.spec_from_file_location("hdf5_worker", code)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        while True:
            message, files, _, _ = socket.recv_fds(connection, 65536, 3)
            if not message:
                os._exit(0)
            child = os.fork()
            if child == 0:
                self._work(module, json.loads(message), files)
            _, status, used = os.wait4(child, 0)
            for file in files:
                os.close(file)
            connection.sendall(b"%d %d\n" % (os.waitstatus_to_exitcode(status), 1000 * (used.ru_utime + used.ru_stime)))

    def _work(self, module: Any, order: dict[str, Any], files: list[int]) -> None:
        for target, file in enumerate(files):
            os.dup2(file, target)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115 (the process ends soon)
        try:
            os._exit(module.main(order["limits"], order["values"]))
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    def run(self, source: IO[bytes], out: IO[bytes], errors: IO[bytes], limits: Any, values: bool) -> int:
        from dataclasses import asdict

        order = json.dumps({"limits": asdict(limits), "values": values}).encode()
        source.seek(0)
        socket.send_fds(self.socket, [order], [source.fileno(), out.fileno(), errors.fileno()])
        status, milliseconds = map(int, self.socket.recv(64).split())
        self.slowest = max(self.slowest, milliseconds / 1000)
        Zygote.used += milliseconds / 1000
        return status


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
