"""What is measured: networks, tasks, sizes and data. Read by the driver and, in its own environment, by every peer: NumPy at most.

Every peer builds the same network: Keras's definitions and Keras's initial weights (Glorot uniform, zero biases), which the number of
parameters in each report shows. Adam with its usual settings, crossentropy, shuffled batches.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Workload:
    """One network and what is done with it.

    Attributes:
        network: "cnn", "resnet18", "resnet50" or "vgg16".
        task: "train" (steady images per second of training), "predict", or "target" (test accuracy by the clock).
        shape: of one picture, channels last.
        classes: number of them.
        batches: batch sizes, the most telling first.
        images: pictures of an epoch; at least one batch is taken.
        precisions: "float32", "bfloat16", or "default": whatever the framework takes when nothing is said.
        limit: seconds after which a process of this workload is ended on a CPU.
        wide: batch sizes at which all peers run, not only `peers`.
        epochs: of a target: how many there are, whatever the accuracy; None: until `TARGET` is reached.
        peers: that run it; () for all.
        zoo: whether the network is a function of `applications` by its name, and plain PyTorch runs Convolt's own model.
    """

    network: str
    task: str
    shape: tuple[int, int, int]
    classes: int
    batches: tuple[int, ...]
    images: int
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    limit: float = 60.0
    wide: tuple[int, ...] = ()
    epochs: int | None = None
    peers: tuple[str, ...] = ()
    zoo: bool = False


MNIST, CIFAR, IMAGENET = (28, 28, 1), (32, 32, 3), (224, 224, 3)
MAIN = ("convolt", "pytorch eager", "pytorch tuned", "pytorch tuned, kept memory", "keras tensorflow")
HEAVY = ("convolt", "pytorch tuned, kept memory", "torch.compile", "keras tensorflow")
"""Peers of the networks at 224×224, where one step takes seconds on a CPU."""

WORKLOADS = {
    "cnn": Workload("cnn", "train", MNIST, 10, (128, 512, 32), 6400, wide=(128,), peers=MAIN),
    "defaults": Workload("cnn", "train", MNIST, 10, (32,), 6400, ("default",),
                         peers=("convolt", "keras tensorflow", "keras jax", "keras torch")),
    "resnet18": Workload("resnet18", "train", CIFAR, 10, (128,), 256, limit=90, peers=(*MAIN, "torch.compile")),
    "accuracy": Workload("cnn", "target", MNIST, 10, (128,), 12_800, ("float32",), epochs=2, limit=90),
    "mnist": Workload("cnn", "target", MNIST, 10, (128,), 60_000, ("bfloat16",), limit=150,
                      peers=("convolt", "pytorch eager", "pytorch tuned, kept memory", "keras tensorflow")),
    "resnet50_predict": Workload("resnet50", "predict", IMAGENET, 1000, (16,), 16, limit=90, peers=HEAVY),
    "vgg16_predict": Workload("vgg16", "predict", IMAGENET, 1000, (16,), 16, limit=90, peers=HEAVY),
    "resnet50": Workload("resnet50", "train", IMAGENET, 1000, (8,), 16, limit=120, peers=HEAVY),
    "vgg16": Workload("vgg16", "train", IMAGENET, 1000, (8,), 16, limit=120, peers=HEAVY),
}
"""In the order of the full round: what is cut off when its time is up is what comes last."""

TURN, GO = "turn", "go"
"""What a peer says when an epoch is done, and what it is told when its next one may begin (see `in_turn.py`)."""

ZOO = "zoo/"
"""Beginning of the names of `benchmarks/zoo.py`'s workloads: zoo/FUNCTION/TASK."""

SMALL = {"LeNet5": ((28, 28, 1), 10), "SpeedNet": (CIFAR, 10)}
"""Networks of the zoo for smaller pictures and fewer classes than the rest: shape and classes."""

TURN_IMAGES = {"LeNet5": 9600, "SpeedNet": 960}
"""Pictures of an epoch of theirs, a fifth of a second or more: a process whose threads wake on one core was half as fast in 25 ms."""


def find(name: str) -> Workload:
    """Returns a workload of the table, or one of the zoo: "zoo/DenseNet121/predict".

    Raises:
        KeyError: there is none.
    """
    if not name.startswith(ZOO):
        return WORKLOADS[name]
    _, function, task = name.split("/")
    shape, classes = SMALL.get(function, ((96, 96, 3), 1000))
    images = TURN_IMAGES.get(function) or (48 if task == "train" else 240)  # those of one call of `predict`
    return Workload(function, task, shape, classes, (16,), images, ("float32",), limit=60,
                    peers=("convolt", "pytorch eager", "pytorch tuned, kept memory", "keras tensorflow"), zoo=True)


TARGET = 0.99
"""Test accuracy of MNIST at which the clock of "target" stops."""


def data(workload: Workload, batch: int, device: str = "cpu") -> tuple[Any, Any]:
    """Returns pictures, float32 from 0 to 1, and labels: MNIST's where `CONVOLT_DATA` has them and they fit, else random ones.

    Never zeros, on which matrix units run faster. On random pictures a network soon learns nothing but to be silent, and what skips
    gradients that are zero looks faster than it is. A GPU gets enough batches for an epoch to be longer than what surrounds it.
    """
    import numpy as np

    count = max(batch, workload.images // batch * batch) if device == "cpu" else max(workload.images, 16 * batch) // batch * batch
    if workload.shape == MNIST and os.environ.get("CONVOLT_DATA"):
        (x, y), _ = mnist(count)
        order = np.arange(count) % len(x)
        return x[order], y[order]
    rng = np.random.default_rng(0)
    return rng.random((count, *workload.shape), dtype="float32"), rng.integers(0, workload.classes, count)


def mnist(count: int = 60_000) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Returns at most `count` of MNIST's training and test pictures each, float32 in [0, 1] and channels last, with their labels.

    They come from `mnist.npz` in the folder that `CONVOLT_DATA` names.
    """
    import numpy as np

    with np.load(Path(os.environ["CONVOLT_DATA"]) / "mnist.npz") as arrays:
        train, test = (((arrays[f"x_{part}"][:count][..., None] / np.float32(255)), arrays[f"y_{part}"][:count].astype("int64"))
                       for part in ("train", "test"))
    return train, test
