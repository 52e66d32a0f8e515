"""Misspelt, wrong and contradictory settings: `messages/configuration.md` has what is said, word for word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convolt
from convolt import callbacks, layers, optimizers
from tests.faults import tiny
from tests.faults.spoken import Page, command

PAGE = Page("configuration", "What a user reads about settings", __file__)
X = np.random.default_rng(0).random((40, 6)).astype("float32")
Y = np.arange(40) % 3


def model(optimizer: Any = "sgd", loss: Any = "sparse_categorical_crossentropy", metrics: Any = None, **options: Any) -> Any:
    made = convolt.Sequential([layers.Input((6,)), layers.Dense(3, activation="softmax")])
    made.compile(optimizer, loss, metrics, device="cpu", **options)
    return made


def fit(**options: Any) -> Any:
    return model().fit(X, Y, **{"verbose": 0} | options)


def row(about: str, make: Callable[[], Any]) -> None:
    """Adds a call to the page that ends in an error."""
    def run(folder: Path, patch: pytest.MonkeyPatch) -> None:
        make()

    PAGE.row(about)(run)


row("An unknown argument of a layer", lambda: layers.Dense(10, activaton="relu"))
row("An unknown argument of an optimizer", lambda: optimizers.Adam(learning_rte=0.1))
row("An unknown argument of compile", lambda: model(metric=["accuracy"]))
row("An unknown argument of fit", lambda: fit(epoch=3))
row("An unknown layer", lambda: layers.Conv2DD)
row("A layer of Keras that Convolt does not have", lambda: layers.Lambda)
row("An unknown activation", lambda: layers.Dense(3, activation="rleu"))
row("An unknown initializer", lambda: layers.Dense(3, kernel_initializer="he_norml"))
row("An unknown optimizer", lambda: model("adm"))
row("An unknown loss", lambda: model(loss="sparse_categorical_crossentrpy"))
row("An unknown metric", lambda: model(metrics=["acuracy"]))
row("An unknown schedule", lambda: optimizers.Adam("cosin"))
row("An unknown padding", lambda: layers.Conv2D(3, 3, padding="sam"))
row("An unknown precision", lambda: model(precision="float16"))
row("A word in the place of a number", lambda: layers.Dense("three"))
row("A fraction in the place of a whole number", lambda: layers.Dense(2.5))  # type: ignore[arg-type]
row("A word in the place of epochs", lambda: fit(epochs="3"))
row("No epochs", lambda: fit(epochs=0))
row("Batches of nothing", lambda: fit(batch_size=0))
row("A class in the place of a callback", lambda: fit(callbacks=callbacks.EarlyStopping))
row("A function in the place of a callback", lambda: fit(callbacks=[print]))
row("A class in the place of a layer", lambda: convolt.Sequential([layers.Dense]))  # type: ignore[list-item]
row("A callback that watches what is not there", lambda: fit(callbacks=callbacks.EarlyStopping("val_loss")))
row("A weight of a class that is no number", lambda: fit(class_weight={0: 1.0, 1: "heavy"}))
row("A negative learning rate", lambda: optimizers.Adam(-1))
row("A learning rate that is NaN", lambda: optimizers.Adam(float("nan")))
row("A learning rate that is a word", lambda: optimizers.Adam("0.1"))
row("A momentum above 1", lambda: optimizers.SGD(momentum=1.5))
row("A rate of dropout above 1", lambda: layers.Dropout(1.5))
row("A share of validation above 1", lambda: fit(validation_split=1.5))
row("A window larger than the picture", lambda: convolt.Sequential([layers.Input((4, 4, 1)), layers.Conv2D(3, 5)]))
row("fit before compile", lambda: convolt.Sequential([layers.Input((6,)), layers.Dense(3)]).fit(X, Y))
row("No loss", lambda: model(loss=None).fit(X, Y, verbose=0))
row("Nothing to train", lambda: _frozen().fit(X, Y, verbose=0))
row("Two ways to clip gradients", lambda: optimizers.Adam(clipnorm=1.0, clipvalue=1.0))
row("A share of validation of a dataset", lambda: model().fit([(X, Y)].__iter__(), validation_split=0.1, verbose=0))
row("resume=True with nothing to resume", lambda: fit(checkpoint="run", resume=True))


def _frozen() -> Any:
    made = model()
    made.layers[0].trainable = False
    return made


@PAGE.row("Resuming with changed settings")
def changed_settings(folder: Path, patch: pytest.MonkeyPatch) -> None:
    _stopped(folder)
    tiny.fit(tiny.net(optimizer=optimizers.AdamW("cosine", use_ema=True, clipnorm=2.0)), folder, more=[tiny.KillAt(None)], batch_size=4)


@PAGE.row("Resuming with other data")
def changed_data(folder: Path, patch: pytest.MonkeyPatch) -> None:
    _stopped(folder)
    patch.setattr(tiny, "X", tiny.X + 1)
    tiny.fit(tiny.net(), folder, more=[tiny.KillAt(None)])


@PAGE.row("A misspelt setting that may differ")
def misspelt_allowance(folder: Path, patch: pytest.MonkeyPatch) -> None:
    _stopped(folder)
    tiny.fit(tiny.net(), folder, more=[tiny.KillAt(None)], resume_allow=["learning_rat"])


def _stopped(folder: Path) -> None:
    with pytest.raises(tiny.Kill):
        tiny.fit(tiny.net(), folder, more=[tiny.KillAt(14)])


LINES = {
    "An unknown command": "trian cnn",
    "An unknown option": "train cnn --data digits --epoch 3",
    "An unknown model": "train cn --data digits",
    "Unknown data": "train cnn --data digts",
    "An unknown optimizer on the command line": "train cnn --data digits --optimizer adm",
    "A learning rate below 0 on the command line": "train cnn --data digits --lr -1",
    "One option under two names": "train cnn --data digits --lr 0.1 --learning-rate 0.2",
    "One option twice": "train cnn --data digits --data mnist",
    "Options that say one thing twice": "summary cnn --data digits --input-shape 8,8,1",
    "An option is missing": "train cnn",
    "No run to resume": "train --resume nowhere",
    "An interval that is none": "train cnn --data digits --checkpoint-every soon",
    "An export to an unknown format": "export model.safetensors --to onx",
}


@pytest.fixture(autouse=True)
def _lines(capsys: pytest.CaptureFixture[str]) -> None:
    for about, line in LINES.items():
        PAGE.rows[about] = lambda folder, patch, line=line: command(line, capsys)


def test_every_message_is_the_one_that_was_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PAGE.check(tmp_path, monkeypatch)
    assert not list(tmp_path.rglob("runs"))
