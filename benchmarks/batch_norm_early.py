"""What bias correction of batch normalization's running statistics does to the first epochs, to long trainings, and after a change.

    python benchmarks/batch_norm_early.py [--seeds 3] [--batch 64] [--epochs 12] [--changed 2] [--momentum 0.99] [--out FILE.json]

Blocks of convolution, batch normalization and ReLU on MNIST, 116 steps an epoch (7,424 pictures in batches of 64); 2,000
test pictures validate. Three questions, each with the correction off (as in Keras) and on:

- early: training and validation accuracy after each of the first three epochs;
- long: the same after many epochs, where the initial values are long forgotten;
- changed: two more epochs on negatives of the pictures, whose statistics are others.

Neither the weights nor the training accuracy depend on the running statistics: where a seed's training accuracies differ,
the comparison is void, and the program ends with an error.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import convolt
from convolt import datasets, layers

STEPS = 116


def build(correction: bool, momentum: float) -> convolt.Model:
    model = convolt.Sequential([layers.Input((28, 28, 1)), layers.Rescaling(1 / 255)])
    for filters in (16, 16, 32):
        model.add(layers.Conv2D(filters, 3, padding="same", use_bias=False))
        model.add(layers.BatchNormalization(momentum=momentum, bias_correction=correction))
        model.add(layers.ReLU())
        model.add(layers.MaxPooling2D())
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(10, activation="softmax"))
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"], fusions="none")
    return model


def train(seed: int, correction: bool, momentum: float, batch: int, epochs: int, changed_epochs: int) -> dict[str, list[float]]:
    """Returns training and validation accuracy of each epoch; the last ones are on negatives."""
    convolt.utils.set_random_seed(seed)
    (x, y), (x_test, y_test) = datasets.mnist.load_data()
    x, y, x_test, y_test = x[:STEPS * batch, ..., None], y[:STEPS * batch], x_test[:2000, ..., None], y_test[:2000]
    model = build(correction, momentum)
    found: dict[str, list[float]] = {"accuracy": [], "val_accuracy": [], "val_loss": []}
    for count, negative in ((epochs, False), (changed_epochs, True)):
        if count:
            given, held = (np.uint8(255) - x, np.uint8(255) - x_test) if negative else (x, x_test)
            history = model.fit(given, y, batch_size=batch, epochs=count, verbose=0, validation_data=(held, y_test), seed=seed).history
            for name, values in found.items():
                values += [round(float(v), 5) for v in history[name]]
    return found


def compare(seeds: int, *settings: Any) -> list[dict[str, Any]]:
    """Trains every seed with the correction off and on."""
    runs = []
    for seed in range(seeds):
        for correction in (False, True):
            runs.append({"seed": seed, "bias_correction": correction, **train(seed, correction, *settings)})
            print(runs[-1], flush=True)
        if runs[-1]["accuracy"] != runs[-2]["accuracy"]:
            raise SystemExit("the two trainings differ in more than the running statistics")
    return runs


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the median over seeds of each epoch's accuracy."""
    def of(name: str, correction: bool) -> list[float]:
        return [statistics.median(v) for v in zip(*(r[name] for r in runs if r["bias_correction"] is correction), strict=True)]

    return {"training": of("accuracy", True), "validation_off": of("val_accuracy", False), "validation_on": of("val_accuracy", True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--changed", type=int, default=2, help="epochs on negatives after that")
    parser.add_argument("--momentum", type=float, default=0.99)
    parser.add_argument("--out", default="benchmarks/results/batch_norm_early.json")
    options = parser.parse_args()
    start = time.perf_counter()
    runs = compare(options.seeds, options.momentum, options.batch, options.epochs, options.changed)
    report = {"steps_per_epoch": STEPS, "batch": options.batch, "momentum": options.momentum, "epochs": options.epochs,
              "then_on_negatives": options.changed, "torch": torch.__version__, "medians": medians(runs), "runs": runs}
    Path(options.out).write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["medians"], indent=1), f"\n{time.perf_counter() - start:.0f} s, written to {options.out}")


if __name__ == "__main__":
    main()
