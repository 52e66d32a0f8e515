"""Test accuracy of an architecture on CIFAR-10, epoch by epoch, trained from scratch with the measured plan.

    python benchmarks/curve.py resnet18 [--samples 50000] [--epochs 5] [--rate 0.002] [--plot docs/images/resnet18_cifar10.svg]

AdamW along a cosine, pictures flipped and shifted, all 10,000 test pictures after each epoch. Writes
`benchmarks/results/curve_NAME_DEVICE_DATE.json`, and with `--plot` the curve.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import convolt
from convolt import applications, datasets, optimizers, schedules

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from suite import machine  # noqa: E402


class Clock(convolt.callbacks.Callback):
    """Seconds since the training began, at the end of each epoch."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.began, self.seconds = time.perf_counter(), []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds.append(round(time.perf_counter() - self.began, 1))


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the history, with the plan and the clock."""
    (x, y), test = datasets.cifar10.load_data()
    convolt.utils.set_random_seed(options.seed)
    model = applications.get(options.name).make((32, 32, 3), 10)
    model.compile(optimizers.AdamW(schedules.by_word["cosine"](options.rate), weight_decay=0.05), "sparse_categorical_crossentropy",
                  ["accuracy"], device=options.device)
    clock = Clock()
    history = model.fit(x[: options.samples], y[: options.samples], batch_size=options.batch, epochs=options.epochs, seed=options.seed,
                        validation_data=test, augment=options.augment, callbacks=[clock], verbose=2).history
    names = ("loss", "accuracy", "val_loss", "val_accuracy")
    return {"parameters": model.count_params(), "plan": model.plan.describe(), "seconds": clock.seconds,
            **{name: [round(float(value), 5) for value in history[name]] for name in names}}


def plot(found: dict[str, Any], path: Path) -> None:
    """Draws accuracies over epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    epochs = range(1, len(found["accuracy"]) + 1)
    for name, label in (("accuracy", "training, augmented"), ("val_accuracy", "test")):
        axes.plot(epochs, found[name], marker="o", label=label)
    axes.set(xlabel="epoch", ylabel="accuracy", xticks=list(epochs), title=f"{found['name']}, {found['samples']:,} pictures of CIFAR-10")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--augment", default="flip,crop=32:4")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    info = machine("cpu" if options.device == "auto" else options.device)
    settings = {key: value for key, value in vars(options).items() if key not in ("plot", "device")}
    found = {"machine": info, **settings, **train(options)}
    out = HERE / "results" / f"curve_{options.name}_{options.device if options.device != 'auto' else 'cpu'}_{info['date']}.json"
    out.write_text(json.dumps(found, indent=1) + "\n")
    if options.plot:
        plot(found, options.plot)
    print(f"test accuracy {found['val_accuracy'][-1]:.4f}; written to {out}")


if __name__ == "__main__":
    main()
