"""What batches are made of, and how: so `fit` takes apart what gives batches by itself, and makes them where that is fastest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from convolt.data.augment.engine import Augmentation
from convolt.data.pictures import Pictures

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class BatchSpec:
    """Samples, and how batches come of them. What has a method `batch_spec` that returns one need not be iterated by `fit`.

    Attributes:
        x: pictures that are not read yet, or a tensor (samples, height, width, channels).
        y, weights: labels and sample weights of a tensor; None for pictures, which have theirs.
        batch_size: samples per batch.
        shuffle: another order in each epoch, keyed by (seed, epoch).
        seed: of the order and of the augmentation; None: `fit`'s.
        augmentation: what is done to each picture, keyed by (seed, epoch, sample); None: what `fit(augment=…)` says.
        reconstructs: the labels are the changed pictures themselves.
    """

    x: Pictures | Tensor
    batch_size: int
    shuffle: bool
    seed: int | None = None
    y: Array | None = None
    weights: Array | None = None
    augmentation: Augmentation | None = None
    reconstructs: bool = False


def spec_of(x: Any) -> BatchSpec | None:
    """Returns what batches of `x` are made of; None where only iterating tells."""
    method = getattr(x, "batch_spec", None)
    return method() if callable(method) else None
