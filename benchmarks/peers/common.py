"""What every peer of a benchmark shares: its arguments, the clock, the measurement and the line of JSON at the end.

A peer is a script that defines how its framework trains and predicts, and hands that to `run`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

START = float(os.environ.get("CONVOLT_BENCH_START", time.time()))
"""Wall-clock time at which the driver started this process; where there is no driver, of this import."""

sys.path.insert(0, str(Path(__file__).parent.parent))
from workloads import GO, TARGET, TURN, data, find, mnist  # noqa: E402


def elapsed() -> float:
    """Returns the seconds since the process was started."""
    return time.time() - START


def arguments() -> argparse.Namespace:
    """Returns what the driver asks of this process; `options.work` is the workload, `options.network` the network's name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", default="cnn")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", choices=["float32", "bfloat16", "default"], default="float32")
    parser.add_argument("--seconds", type=float, default=4.0, help="of steady work; for a target: after which it is given up")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--variant", default="")
    parser.add_argument("--images", type=int, help="of an epoch, in place of the workload's own number")
    options = parser.parse_args()
    options.work = find(options.workload)
    if options.images:
        options.work = dataclasses.replace(options.work, images=options.images)
    options.network = options.work.network
    return options


class Watch:
    """Is told when the first step and each epoch end; keeps the rates and says when it is enough.

    Args:
        images: pictures of one epoch.
        seconds: of steady work that are wanted. The first epoch is warm-up.
        target: whether accuracy is what counts: the run goes on until it reaches `TARGET`, or for `epochs`.
    """

    def __init__(self, images: int, seconds: float, target: bool = False, epochs: int | None = None) -> None:
        self.images, self.seconds, self.target, self.epochs = images, seconds, target, epochs
        self.first_step = 0.0
        self.rates: list[float] = []
        self.accuracies: list[tuple[float, float]] = []
        self.steady = self.last = self.began = 0.0
        self.in_turn = not target and "CONVOLT_BENCH_IN_TURN" in os.environ

    def step(self) -> None:
        """To be called when the first step's work is done; later calls do nothing."""
        self.first_step = self.first_step or elapsed()

    def epoch(self, accuracy: float | None = None) -> bool:
        """To be called when an epoch's work is done, with the test accuracy if there is a target; returns whether it is enough."""
        self.step()
        now = elapsed()
        if self.in_turn:
            return self._wait(now)
        if accuracy is not None:
            self.accuracies.append((round(now, 2), round(float(accuracy), 4)))
        if self.last:
            self.rates.append(self.images / (now - self.last))
        self.steady = self.steady or now
        self.last = now
        if self.target:
            enough = accuracy is None or accuracy >= TARGET if self.epochs is None else len(self.accuracies) >= self.epochs
            return enough or now > self.seconds
        return len(self.rates) >= 2 and now - self.steady >= self.seconds


    def _wait(self, now: float) -> bool:
        """Tells the driver that an epoch is done and waits for this process's next turn; the other peers' are between."""
        if self.began:
            self.rates.append(self.images / (now - self.began))
        print(TURN, flush=True)
        enough = sys.stdin.readline().strip() != GO
        self.began = elapsed()
        return enough


class Peer(Protocol):
    """How a framework does the work; what a script of this folder hands to `run`."""

    def train(self, x: Any, y: Any, test: tuple[Any, Any] | None, watch: Watch) -> None:
        """Trains on arrays until `watch` has enough; with `test`, the accuracy on it is told after each epoch."""

    def predict(self, x: Any) -> Any:
        """Returns the scores of the classes as an array."""

    def parameters(self) -> int:
        """Returns the number of trainable parameters."""


def run(name: str, options: argparse.Namespace, peer: Peer, packages: Sequence[str], more: Callable[[], dict[str, Any]] = dict) -> None:
    """Does the work that the driver asked for, and prints the report."""
    if options.work.task == "target":
        (x, y), test = mnist(options.work.images)
        watch = Watch(len(x), options.seconds, target=True, epochs=options.work.epochs)
        peer.train(x, y, test, watch)
    else:
        x, y = data(options.work, options.batch, options.device)
        watch = Watch(len(x), options.seconds)
        if options.work.task == "train":
            peer.train(x, y, None, watch)
        else:
            scores = peer.predict(x[:options.batch])
            assert scores.shape == (options.batch, options.work.classes), scores.shape
            watch.step()
            done = False
            while not done:
                peer.predict(x)
                done = watch.epoch()
    extra = {"parameters": int(peer.parameters()), **more()}
    if watch.target:
        extra |= {"accuracies": watch.accuracies, "seconds_to_target": next((s for s, a in watch.accuracies if a >= TARGET), None)}
    extra["versions"] = {package: importlib.metadata.version(package) for package in packages}
    report(name, options, watch.rates, watch.first_step, **extra)


def peak_mib() -> float:
    """Returns the most memory that this process held, in MiB: of the GPU where PyTorch used one, else resident."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return float(torch.cuda.max_memory_allocated() / 2**20)
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss also counts what the driver held before this program took the process over
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(side: str, options: argparse.Namespace, rates: list[float], first_step: float, **more: Any) -> None:
    """Prints the report as the last line of the output."""
    print(json.dumps({"side": side, "workload": options.workload, "batch": options.batch, "precision": options.precision,
                      "images_per_second": round(statistics.median(rates), 2) if rates else None,
                      "rates": [round(r, 2) for r in rates],
                      "first_step_seconds": round(first_step, 2), "peak_mib": round(peak_mib()), **more}))


def timed_rounds(epoch: Callable[[], int], seconds: float) -> list[float]:
    """Runs epochs (which return the number of pictures) for about `seconds`, at least three, and returns their rates."""
    rates: list[float] = []
    begin = time.perf_counter()
    while len(rates) < 3 or time.perf_counter() - begin < seconds:
        before = time.perf_counter()
        images = epoch()
        rates.append(images / (time.perf_counter() - before))
    return rates
