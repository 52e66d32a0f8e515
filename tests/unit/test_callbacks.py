"""Callbacks: which hooks are called, what they cost, what they remember, what they say. Semantics: tests/parity."""

from __future__ import annotations

import csv
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from convolt import callbacks
from convolt.callbacks import (
    Callback,
    CallbackList,
    CSVLogger,
    EarlyStopping,
    History,
    LambdaCallback,
    LazyLogs,
    LearningRateScheduler,
    ModelCheckpoint,
    ReduceLROnPlateau,
    TensorBoard,
    TerminateOnNaN,
)
from convolt.errors import (
    ArgumentError,
    ArgumentTypeError,
    MissingFeatureError,
    MissingPackageError,
    StateError,
)
from convolt.training.hooks import HOOKS


class Model(nn.Module):
    """A module with what callbacks ask of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.stop_training = False
        self.optimizer: Any = type("Optimizer", (), {"learning_rate": 0.1})()
        self.saved: list[str] = []

    def save(self, path: str) -> None:
        self.saved.append(path)


def listed(*members: Any, model: Any = None) -> CallbackList:
    return CallbackList(list(members), model or Model(), {"epochs": 3, "steps": 2, "verbose": 0})


def never() -> dict[str, float]:
    raise AssertionError("the device was read")


# -- the list ------------------------------------------------------------------------------------------------------


def test_every_hook_reaches_a_callback_that_overrides_it_with_its_arguments() -> None:
    calls: list[tuple[Any, ...]] = []
    hooks = {hook: (lambda *a, hook=hook: calls.append((hook, *a))) for hook in HOOKS}
    every = listed(LambdaCallback(**hooks))
    expected = []
    for hook in HOOKS:
        arguments: tuple[Any, ...] = (7, {"loss": 1.0}) if "batch" in hook or "epoch" in hook else ({"loss": 1.0},)
        getattr(every, hook)(*arguments)
        expected.append((hook, *arguments))
    assert calls == expected
    assert len(set(HOOKS)) == 14


def test_list_knows_which_hooks_are_overridden() -> None:
    class Own(Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None: ...

    class Old(Callback):
        def on_batch_end(self, batch: int, logs: Any = None) -> None: ...

    batch_hooks = ("on_train_batch_begin", "on_train_batch_end")
    quiet = listed(Callback(), History(), EarlyStopping(), ModelCheckpoint("x.safetensors"), ReduceLROnPlateau(),
                   CSVLogger("x.csv"), TensorBoard("logs"), LearningRateScheduler(lambda e: 0.1))
    assert not quiet.listens(*batch_hooks)
    assert not listed().listens(*HOOKS)
    assert quiet.listens("on_epoch_end")
    for loud in (Own(), Old(), LambdaCallback(on_batch_end=lambda b, logs: None), ModelCheckpoint("x", save_freq=2),
                 TerminateOnNaN(), TensorBoard("logs", update_freq="batch"), TensorBoard("logs", write_steps_per_second=True)):
        assert listed(loud).listens("on_train_batch_end")
        assert not listed(loud).listens("on_train_batch_begin")


def test_old_batch_hooks_are_called_for_training_batches() -> None:
    seen: list[int] = []
    old = listed(LambdaCallback(on_batch_begin=lambda b, logs: seen.append(b), on_batch_end=lambda b, logs: seen.append(-b)))
    old.on_train_batch_begin(3)
    old.on_train_batch_end(3)
    old.on_test_batch_end(5)
    assert seen == [3, -3]


def test_list_gives_model_and_params_and_flattens() -> None:
    model, history = Model(), History()
    inner = CallbackList([History()], model, {})
    both = CallbackList([history, [LambdaCallback(), None], inner], model, {"epochs": 9, "steps": None, "verbose": 1})
    assert len(both.callbacks) == 3
    assert all(c.model is model and c.params["epochs"] == 9 for c in both.callbacks)
    assert CallbackList(history, model, {}).callbacks == [history]


@pytest.mark.parametrize(("wrong", "hint"), [
    ([EarlyStopping], "Write EarlyStopping"),
    (["early_stopping"], "objects of convolt.callbacks.Callback"),
    ([print], "LambdaCallback"),
    ({"a": History()}, "objects of"),
])
def test_what_is_no_callback_is_an_error(wrong: Any, hint: str) -> None:
    with pytest.raises(ArgumentTypeError, match=hint):
        CallbackList(wrong, Model(), {})


def test_public_module_lists_every_callback() -> None:
    from convolt.training import callbacks as inner

    assert sorted(callbacks.__all__) == sorted(inner.__all__)
    assert all(getattr(callbacks, name) is getattr(inner, name) for name in callbacks.__all__)


# -- logs of a batch -----------------------------------------------------------------------------------------------


def test_lazy_logs_read_once_and_only_when_a_value_is_looked_at() -> None:
    reads: list[int] = []

    def read() -> dict[str, float]:
        reads.append(1)
        return {"loss": 0.5, "accuracy": 0.75}

    logs = LazyLogs(read)
    assert (logs or {}) is logs
    assert repr(logs) == "LazyLogs(not read)"
    assert not reads
    assert logs["loss"] == 0.5
    assert logs.get("nothing") is None
    assert dict(logs) == {"loss": 0.5, "accuracy": 0.75}
    assert "accuracy" in logs
    assert len(reads) == 1


def test_callbacks_that_need_no_value_read_nothing(tmp_path: Path) -> None:
    model = Model()
    members = listed(TerminateOnNaN(check_every=10), ModelCheckpoint(tmp_path / "{epoch}-{batch}.safetensors", save_freq=2),
                     TensorBoard(tmp_path, update_freq=10, write_steps_per_second=True), model=model)
    members.on_train_begin()
    members.on_epoch_begin(0)
    for batch in range(9):
        members.on_train_batch_end(batch, LazyLogs(never))
    members.on_train_end()
    assert [Path(path).name for path in model.saved] == [f"1-{batch}.safetensors" for batch in (2, 4, 6, 8)]
    with pytest.raises(AssertionError, match="device was read"):
        members.on_train_batch_end(9, LazyLogs(never))


# -- the others ----------------------------------------------------------------------------------------------------


def test_history_collects_every_epoch() -> None:
    history = History()
    members = listed(history)
    for _ in range(2):  # a second fit goes on in the lists and counts its epochs anew, as in Keras
        members.on_train_begin()
        for epoch in range(2):
            members.on_epoch_end(epoch, {"loss": 1.0 / (epoch + 1)})
    assert history.history == {"loss": [1.0, 0.5, 1.0, 0.5]}
    assert history.epoch == [0, 1]


def test_lambda_callback_names_the_nearest_hook() -> None:
    with pytest.raises(ArgumentTypeError, match="Did you mean 'on_epoch_end'"):
        LambdaCallback(on_epoch_ends=print)
    with pytest.raises(ArgumentTypeError, match="a function"):
        LambdaCallback(on_epoch_end="print")


@pytest.mark.parametrize("rate", [None, "fast", float("nan"), -0.1])
def test_a_schedule_that_returns_no_rate_is_an_error(rate: Any) -> None:
    members = listed(LearningRateScheduler(lambda epoch: rate))
    with pytest.raises(ArgumentError, match=r"schedule\(2"):
        members.on_epoch_begin(2)


def test_an_error_inside_a_schedule_is_not_hidden() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        listed(LearningRateScheduler(lambda epoch, rate: rate + "x")).on_epoch_begin(0)  # type: ignore[operator]


def test_terminate_on_nan_looks_seldom_and_at_the_end_of_an_epoch() -> None:
    model = Model()
    members = listed(TerminateOnNaN(check_every=4), model=model)
    bad = {"loss": float("nan")}
    for batch in range(3):
        members.on_train_batch_end(batch, bad)
    assert not model.stop_training
    members.on_train_batch_end(3, bad)
    assert model.stop_training
    model.stop_training = False
    members.on_epoch_end(0, {"loss": float("inf")})
    assert model.stop_training
    with pytest.raises(StateError, match="Batch 3, loss: got nan"):
        listed(TerminateOnNaN(raise_error=True, check_every=2)).on_train_batch_end(3, bad)


def rows(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_csv_logger_resumes_behind_the_last_saved_row(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    first = listed(CSVLogger(path))
    first.on_train_begin()
    first.on_epoch_end(0, {"loss": 3.0, "val_loss": 1.0})
    state = json.loads(json.dumps(first.state_dict()))
    first.on_epoch_end(1, {"loss": 99.0, "val_loss": 1.0})  # the run is killed after this row, its checkpoint is older
    first.on_train_end()
    again = listed(CSVLogger(path))
    again.on_train_begin()
    again.load_state_dict(state)
    again.on_epoch_end(1, {"loss": 2.0, "val_loss": 1.0})
    again.on_train_end()
    assert rows(path) == [["epoch", "loss", "val_loss"], ["0", "3.0", "1.0"], ["1", "2.0", "1.0"]]


def test_csv_logger_appends_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("epoch,val_loss,loss\n0,1.0,3.0\n")
    members = listed(CSVLogger(path, append=True))
    members.on_train_begin()
    members.on_epoch_end(1, {"loss": 2.0, "val_loss": 0.5})
    members.on_train_end()
    assert rows(path)[1:] == [["0", "1.0", "3.0"], ["1", "0.5", "2.0"]]


def test_csv_logger_that_cannot_write_is_an_error_before_the_first_epoch(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="No such file"):
        listed(CSVLogger(tmp_path / "missing" / "log.csv")).on_train_begin()


def test_tensorboard_writes_what_can_be_read_back(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tensorboard's own imports
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    members = listed(TensorBoard(tmp_path, histogram_freq=1, update_freq=2, write_steps_per_second=True))
    members.on_train_begin()
    members.on_epoch_begin(0)
    for batch in range(4):
        members.on_train_batch_end(batch, LazyLogs(lambda b=batch: {"loss": float(b)}))
    members.on_epoch_end(0, {"loss": 0.5, "val_loss": 0.25})
    members.on_train_end()
    train, validation = (EventAccumulator(str(tmp_path / name)).Reload() for name in ("train", "validation"))
    assert [(e.step, e.value) for e in train.Scalars("batch_loss")] == [(2, 1.0), (4, 3.0)]
    assert [(e.step, e.value) for e in train.Scalars("epoch_loss")] == [(0, 0.5)]
    assert train.Scalars("epoch_steps_per_second")[0].value > 0
    assert [(e.step, e.value) for e in validation.Scalars("epoch_loss")] == [(0, 0.25)]
    assert "linear.weight" in train.Tags()["histograms"]


def test_values_that_are_arrays_do_not_disturb(tmp_path: Path) -> None:
    """A metric may be a confusion matrix: it is in the history and the CSV file, and none to watch or to plot."""
    history, logs = History(), {"loss": 1.0, "matrix": np.eye(2, dtype=int)}
    members = listed(history, CSVLogger(tmp_path / "log.csv"), TensorBoard(tmp_path), EarlyStopping("loss"))
    members.on_train_begin()
    members.on_epoch_end(0, logs)
    members.on_train_end()
    assert history.history["matrix"][0] is logs["matrix"]
    assert json.loads(json.dumps(history.state_dict()))["history"] == {"loss": [1.0], "matrix": [[[1, 0], [0, 1]]]}
    assert rows(tmp_path / "log.csv")[1] == ["0", "1.0", "[[1, 0], [0, 1]]", "NA", "NA"]
    with pytest.raises(ArgumentError, match=r"of shape \(2, 2\); expected one number; such are loss"):
        listed(EarlyStopping("matrix", mode="min")).on_epoch_end(0, logs)


def test_tensorboard_without_its_package_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingPackageError, match="pip install tensorboard"):
        listed(TensorBoard(tmp_path)).on_train_begin()


def test_tensorboard_features_that_do_not_exist_are_named() -> None:
    with pytest.raises(MissingFeatureError, match=r"TensorBoard\(write_images\)"):
        TensorBoard(write_images=True)


# -- state ---------------------------------------------------------------------------------------------------------


def watched() -> list[Callback]:
    return [EarlyStopping("loss", patience=3, restore_best_weights=True), ReduceLROnPlateau("loss", patience=2, cooldown=1),
            History()]


def drive(members: CallbackList, losses: list[float], first: int) -> list[Any]:
    """Runs epochs and returns what the callbacks did to the model after each."""
    model, seen = members.callbacks[0].model, []
    for epoch, loss in enumerate(losses, first):
        with torch.no_grad():
            model.linear.weight.fill_(float(epoch))
        members.on_epoch_end(epoch, {"loss": loss})
        seen.append((model.stop_training, model.optimizer.learning_rate))
    return seen


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_run_that_is_cut_and_resumed_ends_like_one_that_is_not(cut: int) -> None:
    losses = [3.0, 2.0, 2.5, 2.5, 1.5, 1.6, 1.7, 1.8]
    whole = listed(*watched())
    whole.on_train_begin()
    expected = drive(whole, losses, 0)
    first = listed(*watched())
    first.on_train_begin()
    seen = drive(first, losses[:cut], 0)
    model = Model()
    model.optimizer.learning_rate = first.callbacks[0].model.optimizer.learning_rate
    second = listed(*watched(), model=model)
    second.on_train_begin()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.load_tensors({name: tensor.clone() for name, tensor in first.tensors().items()})
    assert seen + drive(second, losses[cut:], cut) == expected
    assert second.state_dict() == whole.state_dict()
    second.on_train_end()
    assert (model.linear.weight == 4).all()


def test_state_of_other_callbacks_is_refused() -> None:
    state = listed(History(), EarlyStopping("loss")).state_dict()
    with pytest.raises(ArgumentError, match="same callbacks in the same order"):
        listed(EarlyStopping("loss"), History()).load_state_dict(state)


@pytest.mark.parametrize("make", [
    EarlyStopping, ReduceLROnPlateau, History, TerminateOnNaN, lambda: ModelCheckpoint("x"), lambda: CSVLogger("x"),
    TensorBoard, Callback,
])
def test_every_state_is_json(make: Callable[[], Callback]) -> None:
    state = make().state_dict()
    assert json.loads(json.dumps(state)) == state
