"""What augmentation buys: a small CNN on CIFAR-10 with and without it, for equal epochs.

    python benchmarks/augmentation_curve.py [--epochs 30] [--samples 50000] [--batch 128] [--seed 0] [--augment WORDS]
                                            [--precision bfloat16] [--every 3] [--out FILE.json]

Both trainings begin with the same weights and see the same samples in the same order; only the pictures differ. All 10,000 test
pictures are evaluated after every third epoch, without augmentation. The learning rate falls along a cosine over the epochs.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

import convolt
from convolt import datasets, devices, layers, optimizers, schedules


def build(rate: float, precision: str) -> convolt.Model:
    model = convolt.Sequential([layers.Input((32, 32, 3)), layers.Rescaling(1 / 255)])
    for filters, pool in ((16, True), (32, True), (64, False), (64, True)):
        model.add(layers.Conv2D(filters, 3, padding="same", use_bias=False))
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
        if pool:
            model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(128, activation="relu"))
    model.add(layers.Dense(10, activation="softmax"))
    model.compile(optimizers.AdamW(schedules.by_word["cosine"](rate), weight_decay=0.01), "sparse_categorical_crossentropy", ["accuracy"],
                  precision=precision, fusions="none")
    return model


def train(words: str | None, options: argparse.Namespace) -> dict[str, Any]:
    """Returns accuracies and losses of each epoch."""
    (x, y), (x_test, y_test) = datasets.cifar10.load_data()
    convolt.utils.set_random_seed(options.seed)
    model = build(options.rate, options.precision)
    began = time.perf_counter()
    history = model.fit(x[: options.samples], y[: options.samples], batch_size=options.batch, epochs=options.epochs, seed=options.seed,
                        validation_data=(x_test, y_test), validation_batch_size=500, validation_freq=options.every, augment=words,
                        verbose=2).history
    names = ("accuracy", "loss", "val_accuracy", "val_loss")
    return {"seconds": round(time.perf_counter() - began, 1), "parameters": model.count_params(),
            **{name: [round(float(value), 5) for value in history[name]] for name in names}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=3, help="epochs between evaluations")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--augment", default="flip,translate=0.125,rotate=10,zoom=0.1,cutout=0.25")
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {"epochs": options.epochs, "samples": options.samples, "every": options.every, "batch": options.batch,
                             "seed": options.seed, "augment": options.augment, "precision": options.precision, "device": devices.cpu_name(),
                             "torch": torch.__version__, "convolt": convolt.__version__, "python": platform.python_version()}
    for name, words in (("without", None), ("with", options.augment)):
        found[name] = train(words, options)
        if options.out:
            options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    without, augmented = (found[name]["val_accuracy"][-1] for name in ("without", "with"))
    print(f"test accuracy after {options.epochs} epochs: {without:.4f} without, {augmented:.4f} with augmentation")


if __name__ == "__main__":
    main()
