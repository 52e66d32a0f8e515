"""Training speed of an LSTM on rows of pictures (28 steps of 28 pixels, 128 units, 10 classes): Convolt, PyTorch's nn.LSTM and Keras 3.

    python benchmarks/recurrent.py [--batch 32 128 512] [--rounds 3] [--device cpu|cuda] [--precision float32 bfloat16]
        [--peers-python PATH]  (an environment with keras, tensorflow and jax; without it only Keras on PyTorch is a peer)

Each side runs in a process of its own, in turn. Writes `benchmarks/results/recurrent_DEVICE_DATE.json` as it goes, and prints a
table: images per second (median of the rounds' medians), ratio to the best peer, seconds to the first step, peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "peers")]

from common import elapsed, report, timed_rounds  # noqa: E402

STEPS, PIXELS, UNITS, CLASSES = 28, 28, 128, 10
OWN = ("convolt", "pytorch", "keras torch")
SIDES = (*OWN, "keras tensorflow", "keras tensorflow+jit", "keras jax")


def data(batch: int) -> tuple[Any, Any]:
    """Returns pictures as sequences of rows, and labels; never zeros, on which matrix units run faster."""
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.random((16 * batch, STEPS, PIXELS), dtype="float32"), rng.integers(0, CLASSES, 16 * batch)


# -- the sides -----------------------------------------------------------------------------------------------------


def keras_like(api: Any) -> Any:
    """Returns the model in the API that Keras and Convolt share."""
    return api.Sequential([api.layers.Input((STEPS, PIXELS)), api.layers.LSTM(UNITS), api.layers.Dense(CLASSES, activation="softmax")])


def run_convolt(options: argparse.Namespace) -> None:
    """Convolt through `compile` and `fit`."""
    import convolt

    x, y = data(options.batch)
    model = keras_like(convolt)
    model.compile("adam", "sparse_categorical_crossentropy", device=options.device, precision=options.precision)
    model.fit(x[:options.batch], y[:options.batch], batch_size=options.batch, verbose=0)
    measure(options, lambda: model.fit(x, y, batch_size=options.batch, epochs=2, verbose=0), 2 * len(x))


def run_keras(options: argparse.Namespace) -> None:
    """Keras 3 through `compile` and `fit`, on the backend that the side's name has."""
    backend, _, jit = options.side.removeprefix("keras ").partition("+")
    os.environ |= {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"}
    import keras

    if options.precision == "bfloat16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    x, y = data(options.batch)
    model = keras_like(keras)
    model.compile("adam", "sparse_categorical_crossentropy", **({"jit_compile": True} if jit else {}))
    model.fit(x[:options.batch], y[:options.batch], batch_size=options.batch, verbose=0)
    measure(options, lambda: model.fit(x, y, batch_size=options.batch, epochs=2, verbose=0), 2 * len(x))


def run_pytorch(options: argparse.Namespace) -> None:
    """PyTorch's `nn.LSTM` in a loop as most write it, with the fused Adam and the data on the device."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.dense = nn.LSTM(PIXELS, UNITS, batch_first=True), nn.Linear(UNITS, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.dense(self.lstm(x)[1][0][0])  # type: ignore[no-any-return]

    device = torch.device(options.device)
    x, y = (torch.from_numpy(array).to(device) for array in data(options.batch))
    model = Net().to(device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    total = torch.zeros((), device=device)

    def epochs() -> None:
        for _ in range(2):
            for chosen in torch.randperm(len(x), device=device).split(options.batch):
                with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bfloat16"):
                    loss = F.cross_entropy(model(x[chosen]), y[chosen])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                total.add_(loss.detach())
            total.item()

    measure(options, epochs, 2 * len(x))


def measure(options: argparse.Namespace, epochs: Callable[[], Any], images: int) -> None:
    """Runs epochs once to warm up, then for as long as was asked, and prints the report."""
    first = elapsed()

    def one() -> int:
        epochs()
        return images

    one()
    options.workload = "recurrent"
    report(options.side, options, timed_rounds(one, options.seconds), first)


# -- in turn -------------------------------------------------------------------------------------------------------


def run_side(side: str, options: argparse.Namespace, batch: int, precision: str) -> dict[str, Any] | None:
    """Runs one side once in a process; returns its report, or None if it failed, which is printed."""
    python = sys.executable if side in OWN else options.peers_python
    command = [python, str(Path(__file__)), "--side", side, "--batch", str(batch), "--precision", precision, "--seconds",
               str(options.seconds), "--device", options.device]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode:
        print(f"  {side} failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}", flush=True)
        return None
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def compare(options: argparse.Namespace) -> None:
    """Runs all sides in turn, for each batch size and precision."""
    from suite import machine, table

    sides = [side for side in options.sides if side in OWN or options.peers_python]
    info, results = machine(options.device), []
    target = HERE / "results" / f"recurrent_{options.device}_{info['date']}.json"
    target.parent.mkdir(exist_ok=True)
    for precision in options.precision:
        for batch in options.batch:
            reports = [run_side(side, options, batch, precision) for _ in range(options.rounds) for side in sides]
            found = [r for r in reports if r]
            rows = table(found)
            results.append({"batch": batch, "precision": precision, "rows": rows, "reports": found})
            target.write_text(json.dumps({"machine": info, "results": results}, indent=1) + "\n")
            print(f"\nLSTM on rows, batch {batch}, {precision}, {options.device}: median of {options.rounds} rounds")
            for row in rows:
                print(f"  {row['side']:<24}{row['images_per_second']:>12,.0f} images/s  {row['to_best_peer'] or 0:>5.2f}× the best peer"
                      f"  first step {row['first_step_seconds']:>5.1f} s  {row['peak_mib']:>6,.0f} MiB", flush=True)
    print(f"\nwritten to {target}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--precision", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--peers-python", default=None)
    parser.add_argument("--side", default=None, choices=SIDES, help="run this side alone, in this process")
    options = parser.parse_args()
    if options.side is None:
        compare(options)
        return
    options.batch, options.precision = options.batch[0], options.precision[0]
    run = {"convolt": run_convolt, "pytorch": run_pytorch}.get(options.side, run_keras)
    run(options)


if __name__ == "__main__":
    main()
