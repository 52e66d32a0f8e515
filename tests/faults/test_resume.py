"""Going on: what is restored, what may differ, what is said."""

from __future__ import annotations

import json
import multiprocessing
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import convolt
from convolt import callbacks
from convolt.errors import ArgumentError, ArgumentTypeError, CheckpointError
from convolt.training.checkpoint import format
from convolt.training.checkpoint.lock import FolderLock, is_locked
from convolt.training.checkpoint.signals import Signals
from convolt.training.checkpoint.store import Store
from tests.faults import tiny
from tests.faults.conftest import Zygote


def stopped(folder: Path, at: int = 14, **options: Any) -> None:
    """Leaves a training in the folder that was killed after so many steps."""
    with pytest.raises(tiny.Kill):
        tiny.fit(tiny.net(), folder, more=[tiny.KillAt(at)], **options)


def go_on(folder: Path, model: Any = None, **options: Any) -> dict[str, Any]:
    model = model or tiny.net()
    return tiny.result(model, tiny.fit(model, folder, more=[tiny.KillAt(None)], **options))


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """What the training gives without checkpoints and without a stop."""
    model = tiny.net()
    return tiny.result(model, tiny.fit(model, more=[tiny.KillAt(None)]))


# -- bit-equal ---------------------------------------------------------------------------------------------------------


def test_checkpoints_change_nothing(expected: dict[str, Any], tmp_path: Path) -> None:
    assert go_on(tmp_path) == expected


@pytest.mark.parametrize("at", [1, 9, 10, 11, 25, 40])
def test_a_stop_at_a_step_changes_nothing(expected: dict[str, Any], tmp_path: Path, at: int) -> None:
    stopped(tmp_path, at)
    assert go_on(tmp_path) == expected


def test_several_stops_change_nothing(expected: dict[str, Any], tmp_path: Path) -> None:
    for at in (3, 8, 6, 2):
        stopped(tmp_path, at)
    assert go_on(tmp_path) == expected


def test_a_start_without_seed_and_order_goes_on_in_the_same_order(tmp_path: Path) -> None:
    torch.manual_seed(11)
    model = tiny.net(seed=3)
    torch.manual_seed(77)
    history = tiny.fit(model, more=[tiny.KillAt(None)])
    torch.manual_seed(77)
    with pytest.raises(tiny.Kill):
        model_2 = tiny.net(seed=3)
        torch.manual_seed(77)
        tiny.fit(model_2, tmp_path, more=[tiny.KillAt(13)])
    torch.manual_seed(5)  # another process has other random numbers
    np.random.seed(5)
    assert go_on(tmp_path, tiny.net(seed=9)) == tiny.result(model, history)


OPTIMIZERS = {
    "sgd with momentum": lambda: convolt.optimizers.SGD(0.05, momentum=0.9),
    "rmsprop": lambda: convolt.optimizers.RMSprop(),
    "muon": lambda: convolt.optimizers.Muon(0.01),
    "gradients of three steps": lambda: convolt.optimizers.Adam(0.01, gradient_accumulation_steps=3),
    "lookahead": lambda: convolt.optimizers.Lookahead("adam"),
    "averages at the end": lambda: convolt.optimizers.SWA("adam"),
    "a class of PyTorch": lambda: convolt.optimizers.get(torch.optim.Rprop),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_kind_of_optimizer_goes_on(tmp_path: Path, name: str) -> None:
    def plateau() -> callbacks.Callback:
        return callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=10.0)

    def train(folder: Path | None, kill: int | None) -> dict[str, Any]:
        model = tiny.net(optimizer=OPTIMIZERS[name]())
        return tiny.result(model, tiny.fit(model, folder, more=[plateau(), tiny.KillAt(kill)]))

    with pytest.raises(tiny.Kill):
        train(tmp_path, 33)
    assert train(tmp_path, None) == train(None, None)


class Scheduled(callbacks.LearningRateScheduler):
    """Multiplies the rate at each epoch: done twice for one epoch, it would show."""

    def __init__(self) -> None:
        super().__init__(lambda epoch, rate: rate * 0.5)


def test_a_schedule_by_callback_is_not_applied_twice(tmp_path: Path) -> None:
    def train(folder: Path | None, kill: int | None) -> dict[str, Any]:
        model = tiny.net(optimizer="adam")
        return tiny.result(model, tiny.fit(model, folder, more=[Scheduled(), tiny.KillAt(kill)]))

    for kill in (20, 23):
        with pytest.raises(tiny.Kill):
            train(tmp_path / str(kill), kill)
        assert train(tmp_path / str(kill), None) == train(None, None)


def test_the_same_plan_is_taken_again(tmp_path: Path) -> None:
    from convolt import layers

    def net() -> convolt.Sequential:
        convolt.utils.set_random_seed(0)
        model = convolt.Sequential([layers.Input((8, 8, 1)), layers.Conv2D(4, 3, activation="relu"), layers.MaxPooling2D(),
                                    layers.Flatten(), layers.Dense(3)])  # fmt: skip
        model.compile("adam", convolt.losses.SparseCategoricalCrossentropy(from_logits=True), device="cpu", fusions="all")
        return model

    x, y = np.random.default_rng(0).random((40, 8, 8, 1), dtype="float32"), np.arange(40) % 3

    def train(folder: Path, kill: int | None) -> dict[str, Any]:
        model = net()
        history = model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=tiny.KillAt(kill),
                            checkpoint=convolt.Checkpoint(folder, every_steps=1))  # fmt: skip
        assert model.plan.form == "fused"
        return tiny.result(model, history)

    with pytest.raises(tiny.Kill):
        train(tmp_path / "killed", 5)
    assert train(tmp_path / "killed", None) == train(tmp_path / "whole", None)


# -- finished runs, more epochs ----------------------------------------------------------------------------------------


def test_a_finished_run_says_so_and_gives_its_model(expected: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go_on(tmp_path)
    assert go_on(tmp_path, verbose=2) == expected
    said = capsys.readouterr().out
    assert "Finished before: 4 of 4 epochs" in said and "nothing is left to train" in said


def test_more_epochs_go_on_where_the_rate_allows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def train(folder: Path | None, epochs: int) -> dict[str, Any]:
        model = tiny.net(optimizer="adam")
        return tiny.result(model, tiny.fit(model, folder, epochs=epochs, verbose=2))

    train(tmp_path, 2)
    resumed = train(tmp_path, 5)
    assert "Resuming after the end of epoch 2" in capsys.readouterr().out
    assert resumed == train(None, 5)


def test_more_epochs_change_a_schedule_over_the_whole_training(tmp_path: Path) -> None:
    go_on(tmp_path)
    with pytest.raises(CheckpointError, match="length of schedule: 40 → 60"):
        go_on(tmp_path, epochs=6)
    found = go_on(tmp_path, epochs=6, resume_allow=["epochs"])
    assert len(found["history"]["loss"]) == 6


def test_a_training_that_a_callback_stopped_stays_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def train() -> dict[str, Any]:
        model = tiny.net()
        stop = callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: setattr(model, "stop_training", epoch == 1))
        return tiny.result(model, tiny.fit(model, tmp_path, more=[stop], verbose=2))

    first = train()
    assert len(first["history"]["loss"]) == 2
    assert train() == first
    assert "a callback stopped the training after epoch 2" in capsys.readouterr().out


# -- what may differ ---------------------------------------------------------------------------------------------------

CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "batch size": ({"batch_size": 4}, {}, "batch_size: 8 → 4"),
    "seed": ({"seed": 3}, {}, "seed: nothing → 3"),
    "shuffle": ({"shuffle": False}, {}, "shuffle: true → false"),
    "validation": ({"validation_split": 0.2}, {}, "validation_split: 0.17 → 0.2"),
    "optimizer": ({}, {"optimizer": "sgd"}, "optimizer: AdamW → SGD"),
    "momentum": ({}, {"optimizer": convolt.optimizers.AdamW("cosine", use_ema=True, clipnorm=2.0)}, "optimizer.clipnorm: 1.0 → 2.0"),
    "loss": ({}, {"loss": "sparse_categorical_focal_crossentropy"}, "loss: sparse_categorical_crossentropy → sparse"),
    "precision": ({}, {"precision": "bfloat16"}, "precision: auto → bfloat16"),
    "class weight": ({"class_weight": {0: 1.0, 1: 2.0, 2: 1.0}}, {}, "class_weight.1: nothing → 2.0"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_setting_is_an_error_with_the_difference(tmp_path: Path, name: str) -> None:
    fit_options, compile_options, words = CHANGES[name]
    stopped(tmp_path)
    if name == "loss":
        compile_options = {"loss": convolt.losses.SparseCategoricalCrossentropy(ignore_class=2)}
        words = "loss: sparse_categorical_crossentropy → nothing"
    with pytest.raises(CheckpointError, match=re.escape(words)) as raised:
        go_on(tmp_path, tiny.net(**compile_options), **fit_options)
    assert "Before → now:" in str(raised.value) and "resume_allow=" in str(raised.value)


def test_changed_data_layers_and_callbacks_are_listed(tmp_path: Path) -> None:
    stopped(tmp_path)
    with pytest.raises(CheckpointError) as raised:
        other = tiny.net(width=8)
        other.fit(tiny.X[:90], tiny.Y[:90], batch_size=8, epochs=4, verbose=0, validation_split=0.17, checkpoint=tmp_path)
    text = str(raised.value)
    assert re.search(r"data: \(96, 24\) float32 \w+ → \(90, 24\) float32 \w+", text)
    assert re.search(r"model\.dense: Dense .*\"units\": 16.* → ", text)
    assert 'callbacks: ["0.History", "1.EarlyStopping", "2.KillAt"] → ["0.History"]' in text
    changed = tiny.X.copy()
    changed[5, 3] += 1
    with pytest.raises(CheckpointError, match="data: "):
        tiny.net().fit(changed, tiny.Y, batch_size=8, epochs=4, verbose=0, checkpoint=tmp_path, resume_allow=["callbacks"])


def test_a_rate_that_is_allowed_to_differ_is_the_new_one(tmp_path: Path) -> None:
    def train(rate: float, kill: int | None, **options: Any) -> Any:
        model = tiny.net(optimizer=convolt.optimizers.Adam(rate))
        return tiny.fit(model, tmp_path, more=[tiny.KillAt(kill)], **options)

    with pytest.raises(tiny.Kill):
        train(0.01, 14)
    with pytest.raises(CheckpointError, match=r"optimizer\.learning_rate: 0\.01 → 0\.002"):
        train(0.002, None)
    history = train(0.002, None, resume_allow=["learning_rate"])
    assert history.history["learning_rate"] == [0.01, 0.002, 0.002, 0.002]


def test_a_name_that_is_no_setting_is_an_error_with_the_nearest(tmp_path: Path) -> None:
    stopped(tmp_path)
    with pytest.raises(ArgumentError, match=r"'learning_rat'.*Did you mean 'learning_rate'"):
        go_on(tmp_path, resume_allow=["learning_rat"])
    with pytest.raises(ArgumentError, match=r"Write \['seed'\]"):
        go_on(tmp_path, resume_allow="seed")


@pytest.mark.parametrize(("options", "words"), [
    ({"every_steps": 0}, "whole number from 1"), ({"keep": 0}, "whole number from 1"), ({"every_seconds": -1}, "above 0"),
    ({"every_seconds": float("nan")}, "above 0"), ({"mode": "up"}, "'auto', 'min' or 'max'"),
])  # fmt: skip
def test_wrong_options_are_errors(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        convolt.Checkpoint(tmp_path, **options)


def test_wrong_arguments_of_fit_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ArgumentTypeError, match=r"a folder, or convolt\.Checkpoint"):
        tiny.net().fit(tiny.X, tiny.Y, checkpoint=3)
    with pytest.raises(ArgumentError, match="'auto'"):
        tiny.net().fit(tiny.X, tiny.Y, checkpoint=tmp_path, resume="yes")
    with pytest.raises(CheckpointError, match="got none; expected one to resume from"):
        tiny.net().fit(tiny.X, tiny.Y, checkpoint=tmp_path, resume=True)


# -- which checkpoints stay --------------------------------------------------------------------------------------------


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    losses = iter([0.5, 0.1, 0.4, 0.3, 0.6, 0.2])

    class Fixed(callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["val_loss"] = next(losses)

    options = convolt.Checkpoint(tmp_path, keep=2)
    tiny.fit(tiny.net(), more=[Fixed()], checkpoint=options, epochs=6)
    store = Store(tmp_path / "checkpoints")
    epochs = [format.read_state(path)["cursor"]["epoch"] for path in store.files()]
    assert epochs[0] == 2 and epochs[-1] == 6 and len(epochs) <= 3  # a copy that waits gives way to a newer one
    assert store.load(pytest.fail) is not None and store.best == store.files()[0].name  # type: ignore[arg-type]


def test_a_new_start_replaces_the_old_run_once_it_has_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    stopped(tmp_path)
    before = {path.name for path in Store(tmp_path / "checkpoints").files()}
    stopped(tmp_path, 3, resume=False)
    after = {path.name for path in Store(tmp_path / "checkpoints").files()}
    assert after and not after & before
    assert format.read_state(Store(tmp_path / "checkpoints").files()[-1])["optimizer"]["iterations"] <= 3


def test_the_record_tells_how_long_training_waited(tmp_path: Path) -> None:
    go_on(tmp_path)
    record = format.read_state(Store(tmp_path / "checkpoints").files()[-1])["record"]
    assert record["copies"] > 4 and 0 < record["stalled_seconds"] < record["trained_seconds"]
    assert record["stalled_share"] == pytest.approx(record["stalled_seconds"] / record["trained_seconds"])


def test_short_epochs_share_a_checkpoint(tmp_path: Path) -> None:
    keeper_file = tiny.net()
    keeper_file.fit(tiny.X[:8], tiny.Y[:8], batch_size=8, epochs=300, verbose=0, checkpoint=convolt.Checkpoint(tmp_path, monitor="none"))
    record = format.read_state(Store(tmp_path / "checkpoints").files()[-1])
    assert record["cursor"]["epoch"] == 300
    assert record["record"]["copies"] < 200
    assert record["record"]["stalled_share"] < 0.05


# -- one run in a folder -----------------------------------------------------------------------------------------------


def test_two_trainings_in_one_folder(zygote: Zygote, tmp_path: Path) -> None:
    with pytest.raises(tiny.Kill):
        tiny.fit(tiny.net(), tmp_path, more=[tiny.KillAt(3), _second(zygote, tmp_path)])
    assert not is_locked(tmp_path / "checkpoints")


def _second(zygote: Zygote, folder: Path) -> callbacks.Callback:
    def on_batch(batch: int, logs: Any) -> None:
        if batch == 0:
            assert zygote.run(folder)["status"] == 1
            error = (folder / "error.txt").read_text(encoding="utf-8")
            assert re.search(r"a folder in use by process \d+ on \S+ since .*; expected a folder of its own for each run", error)
            with pytest.raises(CheckpointError, match="in use by another training of this process"):
                FolderLock(folder / "checkpoints").acquire()

    return callbacks.LambdaCallback(on_train_batch_end=on_batch)


def test_the_lock_of_a_killed_training_is_free(zygote: Zygote, tmp_path: Path) -> None:
    zygote.run(tmp_path, kill_after=0.01)
    assert (tmp_path / "checkpoints" / ".lock").exists()
    assert not is_locked(tmp_path / "checkpoints")


# -- signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_checkpoint_and_an_end(zygote: Zygote, tmp_path: Path, number: int) -> None:
    options = {"epochs": 4000, "every_steps": None}
    answer = zygote.run(tmp_path, options=options, signals=[[number, 0.1]])
    assert answer["status"] == (-signal.SIGTERM if number == signal.SIGTERM else 0)  # after Ctrl-C fit returns
    state = format.read_state(Store(tmp_path / "checkpoints").files()[-1])
    assert state["cursor"]["epoch"] < 4000
    with pytest.raises(CheckpointError, match="length of schedule: 40000 → 40"):  # it is the state of that training
        go_on(tmp_path)


def test_a_second_ctrl_c_does_not_wait_for_the_save(zygote: Zygote, tmp_path: Path) -> None:
    answer = zygote.run(tmp_path, options={"epochs": 4000, "every_steps": None}, in_save=2, slow_fsync=20.0,
                        signals=[[signal.SIGINT, 0.05], [signal.SIGINT, 0.5]])  # fmt: skip
    assert answer["status"] == 1 and answer["seconds"] < 10
    assert "StopAtOnce" in (tmp_path / "error.txt").read_text(encoding="utf-8")


def _run_until_told(running: Any) -> None:
    running.set()
    time.sleep(60)


def test_a_worker_of_a_loader_ends_when_it_is_told_to() -> None:
    signals = Signals()
    signals.watch()
    try:
        context = multiprocessing.get_context("fork")
        running = context.Event()
        worker = context.Process(target=_run_until_told, args=(running,))
        worker.start()
        assert running.wait(30)  # Python drops signals that come while a forked process begins
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == -signal.SIGTERM and signals.received is None
    finally:
        signals.restore()


def test_a_stop_in_a_validation_goes_on_with_that_validation(expected: dict[str, Any], tmp_path: Path) -> None:
    def stop(batch: int, logs: Any) -> None:
        if model.optimizer.iterations == 20:
            signal.raise_signal(signal.SIGINT)

    model = tiny.net()
    interrupted = callbacks.LambdaCallback(on_test_batch_end=stop)
    tiny.fit(model, tmp_path, more=[interrupted, tiny.KillAt(None)])
    state = format.read_state(Store(tmp_path / "checkpoints").files()[-1])
    assert state["cursor"]["phase"] == "validation" and state["cursor"]["epoch"] == 1
    assert go_on(tmp_path, resume_allow=["callbacks"]) == expected
    assert json.dumps(state["cursor"]["logs"])
