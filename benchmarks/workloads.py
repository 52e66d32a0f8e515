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
        wide: batch sizes at which all peers run; at the others the peers that have `everywhere` do.
        peers: the only peers that run it, by the beginning of their name; () for all.
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
    peers: tuple[str, ...] = ()


MNIST, CIFAR, IMAGENET = (28, 28, 1), (32, 32, 3), (224, 224, 3)
HEAVY = ("convolt", "pytorch tuned", "torch.compile", "keras")
"""Peers of the networks at 224×224, where one step takes seconds on a CPU."""

WORKLOADS = {
    "cnn": Workload("cnn", "train", MNIST, 10, (128, 512, 32), 6400, wide=(128,)),
    "defaults": Workload("cnn", "train", MNIST, 10, (32,), 6400, ("default",), peers=("convolt", "keras"), wide=(32,)),
    "resnet18": Workload("resnet18", "train", CIFAR, 10, (128,), 256, limit=90),
    "mnist": Workload("cnn", "target", MNIST, 10, (128,), 60_000, ("bfloat16",), limit=150, wide=(128,)),
    "resnet50_predict": Workload("resnet50", "predict", IMAGENET, 1000, (16,), 32, limit=90, peers=HEAVY),
    "vgg16_predict": Workload("vgg16", "predict", IMAGENET, 1000, (16,), 32, limit=90, peers=HEAVY),
    "resnet50": Workload("resnet50", "train", IMAGENET, 1000, (8,), 8, limit=120, peers=HEAVY),
    "vgg16": Workload("vgg16", "train", IMAGENET, 1000, (8,), 8, limit=120, peers=HEAVY),
}
"""In the order of the full round: what is cut off when its time is up is what comes last."""

TARGET = 0.99
"""Test accuracy of MNIST at which the clock of "target" stops."""


def data(workload: Workload, batch: int, device: str = "cpu") -> tuple[Any, Any]:
    """Returns random pictures, float32 in [0, 1), and labels; never zeros, on which matrix units run faster.

    A GPU gets enough batches for an epoch to be longer than what surrounds it.
    """
    import numpy as np

    count = max(batch, workload.images // batch * batch) if device == "cpu" else max(workload.images, 16 * batch) // batch * batch
    rng = np.random.default_rng(0)
    return rng.random((count, *workload.shape), dtype="float32"), rng.integers(0, workload.classes, count)


def mnist() -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Returns MNIST's training and test pictures, float32 in [0, 1] and channels last, from `mnist.npz` in the folder `CONVOLT_DATA`."""
    import numpy as np

    with np.load(Path(os.environ["CONVOLT_DATA"]) / "mnist.npz") as arrays:
        return tuple(((arrays[f"x_{part}"][..., None] / 255).astype("float32"), arrays[f"y_{part}"].astype("int64"))
                     for part in ("train", "test"))  # type: ignore[return-value]
