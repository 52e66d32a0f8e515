"""A training of a fraction of a second that has everything a checkpoint must hold: dropout with and without a seed, batch
norm, a schedule, averages of the weights, validation, callbacks with counters and with tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import convolt
from convolt import callbacks, layers
from convolt.training.checkpoint.compare import digest

RNG = np.random.default_rng(0)
X = RNG.normal(size=(96, 24)).astype("float32")
Y = (X[:, 0] > 0).astype("int64") + (X[:, 1] > 0)
BATCH, EPOCHS = 8, 4


def net(width: int = 16, seed: int = 0, **compile_options: Any) -> convolt.Sequential:
    convolt.utils.set_random_seed(seed)
    model = convolt.Sequential([
        layers.Input((24,)), layers.Dense(width, activation="relu"), layers.Dropout(0.2), layers.BatchNormalization(),
        layers.Dense(width, activation="relu"), layers.Dropout(0.1, seed=5), layers.Dense(3, activation="softmax"),
    ])  # fmt: skip
    optimizer = convolt.optimizers.AdamW("cosine", use_ema=True, clipnorm=1.0)
    usual = {"optimizer": optimizer, "loss": "sparse_categorical_crossentropy", "metrics": ["accuracy", "auc"][:1], "device": "cpu"}
    model.compile(**usual | compile_options)
    return model


def hooks() -> list[callbacks.Callback]:
    return [callbacks.EarlyStopping("val_loss", patience=50, restore_best_weights=True)]


def fit(model: Any, folder: Path | None = None, every_steps: int = 1, more: Any = (), **options: Any) -> Any:
    usual: dict[str, Any] = {"batch_size": BATCH, "epochs": EPOCHS, "verbose": 0, "validation_split": 0.17}
    if folder is not None:
        options.setdefault("checkpoint", convolt.Checkpoint(folder, every_steps=every_steps))
    return model.fit(X, Y, callbacks=[*hooks(), *more], **usual | options)


def result(model: Any, history: Any) -> dict[str, Any]:
    """What must be the same bit for bit, as JSON."""
    return {"history": history.history, "weights": [w.tobytes().hex() for w in model.get_weights()]}


class Kill(Exception):
    """In place of a kill, where the process is to live on."""


class KillAt(callbacks.Callback):
    """Leaves the training after so many steps."""

    def __init__(self, step: int | None) -> None:
        self.step = step
        self.count = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.count += 1
        if self.count == self.step:
            raise Kill


def train_and_report(folder: Path, width: int, **options: Any) -> None:
    """What a process does: trains, or goes on, and writes its result."""
    model = net(width)
    history = fit(model, folder, **options)
    (folder / "result.json").write_text(json.dumps({**result(model, history), "sums": digest(folder)}), encoding="utf-8")
