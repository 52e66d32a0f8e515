"""Callbacks against Keras's on the same sequences of logs: what they do after each epoch, not how.

The values are multiples of 1/64: exact in float32, in which Keras compares, and in float64, in which Convolt does.
"""

from __future__ import annotations

import csv
import itertools
import random
from typing import Any

import pytest
import torch

from convolt import callbacks


class Optimizer:
    """Keeps a learning rate, as the optimizers of both do."""

    def __init__(self) -> None:
        self.learning_rate = 0.5


class Model:
    """What a callback may touch: weights, learning rate, `stop_training`, `save`. Both APIs of the weights are there."""

    def __init__(self) -> None:
        self.weight = torch.zeros(1)
        self.optimizer = Optimizer()
        self.stop_training = False
        self.saved: list[str] = []

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.weight.copy_(state["weight"])

    def get_weights(self) -> list[Any]:
        return [self.weight.clone()]

    def set_weights(self, weights: list[Any]) -> None:
        self.weight.copy_(weights[0])

    def save(self, path: str, overwrite: bool = True) -> None:
        self.saved.append(path)

    save_weights = save


def run(callback: Any, sequence: list[dict[str, float]], observe: Any) -> list[Any]:
    """Drives a callback through epochs as a loop does and returns what `observe` sees after each, and at the end."""
    model = Model()
    callback.set_params({"epochs": len(sequence), "steps": 4, "verbose": 0})
    callback.set_model(model)
    callback.on_train_begin()
    seen = []
    for epoch, logs in enumerate(sequence):
        callback.on_epoch_begin(epoch)
        for batch in range(4):
            callback.on_train_batch_end(batch, dict(logs))
        model.weight.fill_(epoch + 1.0)
        callback.on_epoch_end(epoch, logs)
        seen.append(observe(callback, model))
        if model.stop_training:
            break
    callback.on_train_end()
    return [*seen, observe(callback, model), float(model.weight), list(model.saved), model.stop_training]


def sequences(*names: str) -> list[list[dict[str, float]]]:
    """Random walks with plateaus and ties, a rise, a fall and a constant; the seed is fixed."""
    rng = random.Random(7)
    walks = [[rng.choice([-2, -1, 0, 0, 1]) for _ in range(14)] for _ in range(8)] + [[1] * 6, [-1] * 6, [0] * 6]
    found = []
    for steps in walks:
        values = [2 + step / 64 for step in itertools.accumulate(steps)]
        found.append([{name: value if "loss" in name else 4 - value for name in names} for value in values])
    return found


def early(callback: Any, model: Model) -> tuple[Any, ...]:
    return callback.wait, callback.best, callback.best_epoch, callback.stopped_epoch, model.stop_training


@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("options", [
    {"monitor": "val_loss"},
    {"monitor": "val_loss", "min_delta": 1 / 64},
    {"monitor": "val_loss", "min_delta": -2 / 64},
    {"monitor": "val_loss", "baseline": 2 - 2 / 64},
    {"monitor": "val_loss", "baseline": 1.0, "min_delta": 1 / 64},
    {"monitor": "val_score", "mode": "max"},
    {"monitor": "val_score", "mode": "max", "min_delta": 1 / 64, "baseline": 2 + 1 / 64},
    {"monitor": "val_score", "mode": "min"},
    {"monitor": "val_loss", "start_from_epoch": 3},
    {"monitor": "val_loss", "start_from_epoch": 2, "restore_best_weights": True, "baseline": 1.0},
    {"monitor": "val_loss", "restore_best_weights": True},
    {"monitor": "val_score", "mode": "max", "restore_best_weights": True, "min_delta": 1 / 64},
], ids=str)
def test_early_stopping(keras: Any, patience: int, options: dict[str, Any]) -> None:
    stopped = 0
    for theirs, ours in zip(sequences("val_loss", "val_score"), sequences("val_loss", "val_score"), strict=True):
        expected = run(keras.callbacks.EarlyStopping(patience=patience, **options), theirs, early)
        assert run(callbacks.EarlyStopping(patience=patience, **options), ours, early) == expected
        stopped += expected[-1]
    assert stopped > 0, "no sequence of these stops, so nothing was compared"


@pytest.mark.parametrize("options", [
    {"patience": 1},
    {"patience": 2, "cooldown": 2},
    {"patience": 1, "cooldown": 1, "factor": 0.5, "min_lr": 0.125},
    {"patience": 0, "factor": 0.25},
    {"patience": 2, "min_delta": 1 / 64},
    {"monitor": "val_score", "mode": "max", "patience": 1, "cooldown": 3},
    {"monitor": "learning_rate", "mode": "min", "patience": 1},
], ids=str)
def test_reduce_lr_on_plateau(keras: Any, options: dict[str, Any]) -> None:
    def observe(callback: Any, model: Model) -> tuple[Any, ...]:
        return model.optimizer.learning_rate, callback.wait, callback.cooldown_counter, callback.best

    reduced = 0
    for theirs, ours in zip(sequences("val_loss", "val_score"), sequences("val_loss", "val_score"), strict=True):
        expected = run(keras.callbacks.ReduceLROnPlateau(**options), theirs, observe)
        assert run(callbacks.ReduceLROnPlateau(**options), ours, observe) == expected
        assert ours == theirs  # the learning rate is put into the logs alike
        reduced += expected[-4][0] < 0.5
    assert reduced > 0, "no sequence of these lowers the learning rate, so nothing was compared"


@pytest.mark.parametrize("options", [
    {},
    {"save_best_only": True},
    {"save_best_only": True, "initial_value_threshold": 2 - 3 / 64},
    {"save_best_only": True, "monitor": "val_score", "mode": "max"},
    {"save_freq": 3},
    {"save_freq": 5, "save_best_only": True, "monitor": "val_loss"},
    {"save_weights_only": True},
], ids=str)
def test_model_checkpoint(keras: Any, options: dict[str, Any], tmp_path: Any) -> None:
    name = "{epoch:02d}-{val_loss:.2f}" + (".weights.h5" if "save_weights_only" in options else ".keras")
    for theirs, ours in zip(sequences("val_loss", "val_score"), sequences("val_loss", "val_score"), strict=True):
        expected = run(keras.callbacks.ModelCheckpoint(str(tmp_path / name), **options), theirs, lambda c, m: c.best)
        assert run(callbacks.ModelCheckpoint(tmp_path / name, **options), ours, lambda c, m: c.best) == expected


def test_learning_rate_scheduler(keras: Any) -> None:
    for schedule in (lambda epoch, rate: rate * 0.5, lambda epoch: 1.0 / (epoch + 1)):
        seen = [run(module.LearningRateScheduler(schedule), [{"loss": 1.0} for _ in range(4)],
                    lambda c, m: m.optimizer.learning_rate) for module in (keras.callbacks, callbacks)]
        assert seen[0] == seen[1]
        assert seen[0][:4] != [0.5] * 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1.0])
def test_terminate_on_nan_of_each_batch(keras: Any, value: float, capsys: pytest.CaptureFixture[str]) -> None:
    for batches in ([1.0, value, 2.0], [1.0, 2.0]):
        outcomes = []
        for callback in (keras.callbacks.TerminateOnNaN(), callbacks.TerminateOnNaN(check_every=1)):
            model = Model()
            callback.set_model(model)
            callback.on_train_begin()
            stops = []
            for batch, loss in enumerate(batches):
                callback.on_train_batch_end(batch, {"loss": loss})
                stops.append(model.stop_training)
            outcomes.append((stops, capsys.readouterr().out.strip()))
        assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("logs", [
    [{"loss": 1.0, "accuracy": 0.5}, {"loss": 0.5, "accuracy": 0.75, "val_loss": 2.0}],
    [{"loss": 1.0, "val_loss": 2.0}, {"loss": 0.5}, {"loss": 0.25, "val_loss": 1.0}],
    [{"loss": float("nan"), "val_loss": float("inf")}],
], ids=["validation later", "validation sometimes", "not finite"])
@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("separator", [",", ";"])
def test_csv_logger_writes_the_same_cells(keras: Any, logs: list[dict[str, float]], append: bool, separator: str,
                                              tmp_path: Any) -> None:
    rows = []
    for name, module in (("keras.csv", keras.callbacks), ("convolt.csv", callbacks)):
        for _ in range(2):  # the second run overwrites the first, or adds to it
            run(module.CSVLogger(str(tmp_path / name), separator=separator, append=append), logs, lambda c, m: None)
        with open(tmp_path / name, newline="", encoding="utf-8") as file:
            rows.append(list(csv.reader(file, delimiter=separator)))
    assert rows[0] == rows[1]
    assert len(rows[0]) == 1 + len(logs) * (2 if append else 1)


def test_order_and_arguments_of_the_hooks_in_a_real_fit(keras: Any) -> None:
    """The same callback sees the same calls in Keras's `fit` and in Convolt's, batch hooks and validation included."""
    import numpy as np

    import convolt.layers
    import convolt.models

    def recorder(module: Any) -> Any:
        calls: list[Any] = []
        hooks = ["train_begin", "train_end", "epoch_begin", "epoch_end", "train_batch_begin", "train_batch_end",
                 "test_begin", "test_end", "test_batch_begin", "test_batch_end"]

        def hook(name: str) -> Any:
            def called(self: Any, *args: Any, **kwargs: Any) -> None:
                values = [*args, *kwargs.values()]
                logs = next((v for v in values if v is not None and not isinstance(v, int)), None)
                keys = sorted(set(logs or {}) - {"learning_rate"}) if name.endswith("_end") else []
                calls.append((name, [v for v in values if isinstance(v, int)], keys))
            return called

        kind = type("Recorder", (module.callbacks.Callback,), {f"on_{name}": hook(name) for name in hooks})
        return kind(), calls

    x, y = np.random.default_rng(0).normal(size=(10, 3)).astype("float32"), np.zeros((10, 1), "float32")
    seen = []
    for module in (keras, convolt):
        callback, calls = recorder(module)
        model = module.models.Sequential([module.layers.Input((3,)), module.layers.Dense(1)])
        model.compile("sgd", "mse", metrics=["mae"])
        model.fit(x, y, batch_size=4, epochs=2, validation_data=(x, y), verbose=0, callbacks=[callback])
        seen.append(calls)
    assert seen[0] == seen[1]
