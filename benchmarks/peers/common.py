"""What every side of a benchmark shares: the data, the clock, and the line of JSON at the end."""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable

START = time.perf_counter()

SHAPES = {"cnn": (28, 28, 1), "resnet18": (32, 32, 3)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", choices=list(SHAPES), default="cnn")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--variant", default="")
    return parser.parse_args()


def data(workload: str, count: int):
    """Random pictures and labels; never zeros, on which matrix units run faster."""
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.random((count, *SHAPES[workload]), dtype="float32"), rng.integers(0, 10, count)


def report(side: str, options: argparse.Namespace, rates: list[float], first_step: float, **more: str) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"side": side, "workload": options.workload, "batch": options.batch, "precision": options.precision,
                      "images_per_second": sorted(rates)[len(rates) // 2], "rates": [round(r, 1) for r in rates],
                      "first_step_seconds": round(first_step, 2), "peak_mib": round(peak), **more}))


def timed_rounds(epoch: Callable[[], int], seconds: float) -> list[float]:
    """Runs epochs (which return the number of pictures) for about `seconds`, at least three, and returns their rates."""
    rates: list[float] = []
    begin = time.perf_counter()
    while len(rates) < 3 or time.perf_counter() - begin < seconds:
        before = time.perf_counter()
        images = epoch()
        rates.append(images / (time.perf_counter() - before))
    return rates
