"""How fast architectures are on this computer: measured on demand, kept in the cache, shown the next time with the date."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convolt import applications, optimizers
from convolt.applications.family import Architecture
from convolt.callbacks import Callback
from convolt.data.files import cache_folder
from convolt.models import Model

RUNS = 5
"""Measurements of which the median counts, after one that does not."""

Speed = dict[str, Any]
"""value: images/s; batch_size; precision; date."""


def picture_shape(entry: Architecture) -> tuple[int, int, int]:
    """Returns (height, width, channels) of the pictures that an architecture is measured on."""
    return entry.size, entry.size, entry.channels


def measure(name: str, what: str, device: torch.device, batch_size: int) -> Speed:
    """Measures an architecture on random pictures of its size, in float32.

    Args:
        name: of the architecture.
        what: "predict", or "training": steps of SGD, layer by layer.
        device: where.
        batch_size: pictures at once.
    """
    entry = applications.get(name)
    model = entry.make(picture_shape(entry), entry.classes).to(device)
    pictures = np.random.default_rng(0).integers(0, 256, (2 * batch_size, *picture_shape(entry))).astype(np.uint8)
    seconds = (_predicting if what == "predict" else _training)(model, pictures, device, batch_size)
    return {"value": len(pictures) / statistics.median(seconds[1:]), "batch_size": batch_size, "precision": "float32",
            "date": time.strftime("%Y-%m-%d")}


def _predicting(model: Model, pictures: np.ndarray, device: torch.device, batch_size: int) -> list[float]:
    """Returns the seconds of each pass over the pictures."""
    seconds = []
    for _ in range(1 + RUNS):
        start = time.perf_counter()
        model.predict(pictures, batch_size=batch_size, verbose=0)
        seconds.append(time.perf_counter() - start)
    return seconds


class _Clock(Callback):
    """Notes when epochs end, which is when the device has finished them."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Notes the time."""
        self.times.append(time.perf_counter())


def _training(model: Model, pictures: np.ndarray, device: torch.device, batch_size: int) -> list[float]:
    """Returns the seconds of each epoch; labels are classes, or a class for each pixel."""
    output = model.compute_output_shape((None, *pictures.shape[1:]))
    labels = np.random.default_rng(1).integers(0, output[-1], (len(pictures), *output[1:-1]))
    model.compile(optimizers.SGD(1e-6), "sparse_categorical_crossentropy", device=str(device), precision="float32", fusions="none")
    clock, start = _Clock(), time.perf_counter()
    model.fit(pictures, labels, batch_size=batch_size, epochs=1 + RUNS, callbacks=[clock], verbose=0)
    return np.diff([start, *clock.times]).tolist()  # type: ignore[no-any-return]


class Speeds:
    """What was measured on this computer and device, in a file of the cache.

    Args:
        device: its name for people, such as "AMD EPYC".
    """

    def __init__(self, device: str) -> None:
        self.path = cache_folder() / "speeds.json"
        self.place = f"{platform.node()}: {device}"
        self._all = _read(self.path)

    def get(self, name: str, what: str) -> Speed | None:
        """Returns a speed that was measured here before."""
        found = self._all.get(self.place, {}).get(f"{name} {what}")
        return found if isinstance(found, dict) and {"value", "batch_size", "precision", "date"} <= found.keys() else None

    def keep(self, name: str, what: str, speed: Speed) -> None:
        """Writes a speed into the file, in one piece."""
        self._all.setdefault(self.place, {})[f"{name} {what}"] = speed
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self._all, indent=2), encoding="utf-8")
        os.replace(temporary, self.path)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the JSON in a file of the cache; a damaged file is as good as none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and all(isinstance(v, dict) for v in found.values()) else {}
