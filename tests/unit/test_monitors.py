"""Early stopping, checkpoints, plateau: directions, missing values, kept weights, messages. Semantics: tests/parity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from convolt.callbacks import EarlyStopping, ModelCheckpoint, ReduceLROnPlateau, TensorBoard, TerminateOnNaN
from convolt.errors import ArgumentError, ConvoltWarning
from tests.unit.test_callbacks import Model, listed


@pytest.mark.parametrize(("monitor", "logs", "hint"), [
    ("val_accurracy", {"accuracy": 0.5, "val_accuracy": 0.4}, "Did you mean 'val_accuracy'?"),
    ("val_loss", {"loss": 1.0, "accuracy": 0.5}, "Give fit validation_data"),
])
@pytest.mark.parametrize("make", [
    lambda m: EarlyStopping(m, mode="max"), lambda m: ReduceLROnPlateau(m, mode="max"),
    lambda m: ModelCheckpoint("x", m, save_best_only=True, mode="max"),
])
def test_missing_monitor_warns_once_and_names_the_keys(make: Callable[[str], Any], monitor: str, logs: dict[str, float],
                                                       hint: str) -> None:
    callback = make(monitor)
    callback.set_model(Model())
    with pytest.warns(ConvoltWarning) as caught:
        callback.on_epoch_end(0, dict(logs))
        callback.on_epoch_end(1, dict(logs))
    assert len(caught) == 1
    message = str(caught[0].message)
    assert hint in message
    assert repr(monitor) in message
    assert all(name in message for name in logs)


@pytest.mark.parametrize(("monitor", "higher"), [
    ("loss", False), ("val_loss", False), ("head_loss", False), ("val_mean_absolute_error", False), ("mse", False),
    ("kl_divergence", False), ("val_false_positives", False), ("accuracy", True), ("val_sparse_categorical_accuracy", True),
    ("auc", True), ("val_top_k_categorical_accuracy", True), ("f1_score", True), ("mean_iou", True), ("r2_score", True),
    ("true_positives", True), ("acc", True),
])  # fmt: skip
def test_direction_of_names(monitor: str, higher: bool) -> None:
    stopping = EarlyStopping(monitor)
    stopping.set_model(Model())
    stopping.on_train_begin()
    assert stopping.is_improvement(2.0, 1.0) == higher
    assert stopping.is_improvement(1.0, 2.0) != higher


def test_direction_comes_from_the_metric_when_it_says_one() -> None:
    model = Model()
    model.metrics = [type("Metric", (), {"name": "quality", "higher_is_better": False})()]
    for monitor in ("val_quality", "quality", "val_head_quality"):
        stopping = EarlyStopping(monitor)
        stopping.set_model(model)
        stopping.on_train_begin()
        assert stopping.is_improvement(1.0, 2.0)
        assert not stopping.is_improvement(2.0, 1.0)


def test_unknown_direction_is_an_error_before_the_first_epoch() -> None:
    members = listed(EarlyStopping("val_zork"))
    with pytest.raises(ArgumentError, match="mode='max'"):
        members.on_train_begin()


@pytest.mark.parametrize("make", [
    lambda: EarlyStopping(mode="maximum"), lambda: ReduceLROnPlateau(factor=1.0), lambda: ReduceLROnPlateau(factor=0.0),
    lambda: ModelCheckpoint("{epoch", mode="min"), lambda: ModelCheckpoint("x", save_freq="batch"),
    lambda: ModelCheckpoint("x", save_freq=0),
    lambda: TerminateOnNaN(check_every=0), lambda: TensorBoard(update_freq="epochs"), lambda: TensorBoard(update_freq=0),
])
def test_arguments_that_cannot_be_used(make: Callable[[], Any]) -> None:
    with pytest.raises(ArgumentError, match="expected"):
        make()


def epochs_of(stopping: Any, values: list[float], model: Any) -> None:
    """Trains: each epoch fills the weights and the statistics with its number."""
    stopping.set_model(model)
    stopping.on_train_begin()
    for epoch, value in enumerate(values):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.fill_(epoch)
        stopping.on_epoch_end(epoch, {"val_loss": value})
    stopping.on_train_end()


def test_best_weights_come_back_with_statistics_and_in_place() -> None:
    model = Model()
    places = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    stopping = EarlyStopping(patience=2, restore_best_weights=True)
    epochs_of(stopping, [3.0, 2.0, 1.0, 4.0, 5.0], model)
    assert model.stop_training
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == places
    for name, tensor in model.state_dict().items():
        assert (tensor == 2).all(), name


def test_best_weights_are_copied_into_the_same_memory() -> None:
    model, stopping = Model(), EarlyStopping(patience=9, restore_best_weights=True)
    epochs_of(stopping, [3.0], model)
    before = {name: tensor.data_ptr() for name, tensor in stopping.tensors().items()}
    stopping.on_epoch_end(1, {"val_loss": 1.0})
    assert {name: tensor.data_ptr() for name, tensor in stopping.tensors().items()} == before
    assert before.keys() == {f"best_weights.{name}" for name in model.state_dict()}
    assert all(tensor.data_ptr() not in before.values() for tensor in model.state_dict().values())


def test_early_stopping_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    epochs_of(EarlyStopping(patience=1, restore_best_weights=True, verbose=1), [1.0, 2.0], Model())
    assert capsys.readouterr().out.splitlines() == [
        "Epoch 2: early stopping", "Restoring model weights from the end of the best epoch: 1."]


def test_checkpoint_makes_folders_and_names_a_field_that_is_missing(tmp_path: Path) -> None:
    model = Model()
    checkpoint = ModelCheckpoint(tmp_path / "a" / "b" / "{epoch:02d}-{acuracy:.2f}.safetensors")
    checkpoint.set_model(model)
    checkpoint.on_train_begin()
    assert (tmp_path / "a" / "b").is_dir()
    with pytest.raises(ArgumentError, match="Did you mean 'accuracy'"):
        checkpoint.on_epoch_end(0, {"loss": 1.0, "accuracy": 0.5})
    assert model.saved == []


def test_checkpoint_that_cannot_be_written_is_an_error_before_the_first_epoch(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x.safetensors", tmp_path):
        with pytest.raises(ArgumentError, match="that can be written"):
            listed(ModelCheckpoint(path)).on_train_begin()


def test_checkpoint_says_what_it_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "x", monitor="loss", save_best_only=True, verbose=1)
    checkpoint.set_model(Model())
    for epoch, loss in enumerate([1.0, 2.0]):
        checkpoint.on_epoch_end(epoch, {"loss": loss})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Epoch 1: loss improved from None to 1.00000, saving model to {tmp_path / 'x'}"
    assert lines[-1] == "Epoch 2: loss did not improve from 1.00000"
