"""How fast a small network trains with several steps in one CUDA graph, against one: `compile(steps_per_execution=k)`.

    python benchmarks/executions.py --device cuda --together 1 2 4 8 16 --output benchmarks/results/executions_cuda_2026-11-29.json

What can be won is the gap between two graphs, some microseconds of each step, so that it shows where steps are short: here a small
convolutional network on 28 × 28 pictures, in bfloat16, for each batch size. The settings take turns, epoch by epoch, and the median counts.
On a CPU nothing is captured, and the figures should not differ.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import convolt
from convolt import layers


def network(device: str, precision: str, together: int) -> Any:
    """Returns the compiled network."""
    convolt.utils.set_random_seed(0)
    model = convolt.Sequential([
        layers.Input((28, 28, 1)), layers.Rescaling(1 / 255), layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten(), layers.Dropout(0.5),
        layers.Dense(10, activation="softmax"),
    ])  # fmt: skip
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"], device=device, precision=precision, fusions="none",
                  steps_per_execution=together)
    return model


def measure(options: argparse.Namespace, batch: int) -> list[dict[str, Any]]:
    """Returns images per second for each number of steps in one graph, and what the plan says of it."""
    rng = np.random.default_rng(0)
    count = batch * options.steps
    x, y = rng.integers(0, 256, (count, 28, 28, 1), dtype="uint8"), rng.integers(0, 10, count)
    models = {together: network(options.device, options.precision, together) for together in options.together}
    times: dict[int, list[float]] = {together: [] for together in models}
    for round_ in range(options.rounds):
        for together, model in models.items():
            clock = Clock()
            model.fit(x, y, batch_size=batch, epochs=3, verbose=0, callbacks=clock)  # a fit captures anew, in its first epoch
            times[together] += clock.epochs[1:]
            print(f"batch {batch}, {together} together, round {round_ + 1}: {count / min(clock.epochs[1:]):,.0f} images/s", flush=True)
    alone = statistics.median(times[options.together[0]])
    rows = []
    for together, found in times.items():
        median, plan = statistics.median(found), models[together].plan.describe().splitlines()[0]
        rows.append({"batch": batch, "together": together, "images_per_second": count / median, "times_the_first": alone / median,
                     "plan": plan})
    return rows


class Clock(convolt.callbacks.Callback):
    """Seconds of each epoch; their ends wait for the device by themselves, since they read the losses."""

    def __init__(self) -> None:
        self.epochs: list[float] = []
        self._began = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs.append(time.perf_counter() - self._began)


def main() -> None:
    """Measures, prints, and writes where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--together", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--steps", type=int, default=320, help="of an epoch; a multiple of all numbers of steps in one graph")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = [row for batch in options.batches for row in measure(options, batch)]
    for row in rows:
        print(f"batch {row['batch']:>4}, {row['together']:>2} together: {row['images_per_second']:>12,.0f} images/s, "
              f"{row['times_the_first']:.3f}×  {row['plan']}")
    if options.output:
        name = torch.cuda.get_device_name() if options.device.startswith("cuda") else convolt.devices.cpu_name()
        options.output.write_text(json.dumps({"device": name, "torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
