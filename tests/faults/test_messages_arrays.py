"""Arrays and labels that cannot be trained on: `messages/arrays.md` has what `fit` says, word for word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convolt
from convolt import layers
from tests.faults.spoken import Page

PAGE = Page("arrays", "What a user reads about arrays and labels", __file__)
X = np.random.default_rng(0).random((40, 8, 8, 3)).astype("float32")
Y = np.arange(40) % 10


def net(loss: Any = "sparse_categorical_crossentropy", units: int = 10, activation: str | None = "softmax") -> Any:
    model = convolt.Sequential([layers.Input((8, 8, 3)), layers.Flatten(), layers.Dense(units, activation=activation)])
    model.compile("sgd", loss, device="cpu")
    return model


def compiled(*chain: Any) -> Any:
    model = convolt.Sequential([*chain, layers.Dense(10, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy", device="cpu")
    return model


def without_input() -> Any:
    return compiled(layers.Flatten())


def gray() -> Any:
    return compiled(layers.Input((8, 8, 1)), layers.Flatten())


def flat() -> Any:
    return compiled(layers.Input((192,)))


def normalized() -> Any:
    return compiled(layers.Input((8, 8, 3)), layers.Flatten(), layers.BatchNormalization())


def fit(x: Any = X, y: Any = Y, model: Any = None, **options: Any) -> None:
    (model or net()).fit(x, y, verbose=0, **options)


def changed(array: np.ndarray, place: Any, value: float) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


def row(about: str, x: Any = X, y: Any = Y, model: Any = net, **options: Any) -> None:
    """Adds a call of `fit` to the page."""
    PAGE.row(about)(lambda folder, patch: fit(x, y, model(), **options))


row("NaN in the inputs", changed(X, (37, 2, 3, 0), np.nan))
row("Inf in the inputs", changed(X, (5, 0, 0, 1), np.inf))
row("NaN in the targets of a regression", X, changed(Y.astype("float32"), 7, np.nan), lambda: net("mse", 1, None))
row("NaN in the sample weights", sample_weight=changed(np.ones(40, "float32"), 3, np.nan))
row("NaN in the validation data", validation_data=(changed(X, (1, 1, 1, 1), np.nan), Y))
row("A label out of range", X, changed(Y, 17, 12))
row("Labels that start at 1", X, Y + 1)
row("A negative label", X, changed(Y, 4, -1))
row("A label that is no whole number", X, changed(Y.astype("float32"), 4, 2.5))
row("Labels 0 to 9 for a binary crossentropy", X, Y, lambda: net("binary_crossentropy", 1, "sigmoid"))
row("Labels -1 and 1 for a binary crossentropy", X, np.where(Y > 4, 1, -1), lambda: net("binary_crossentropy", 1, "sigmoid"))
row("Lengths that differ", X, Y[:-1])
row("Lengths that differ, with sample weights", X, Y, sample_weight=np.ones(3))
row("Channels first", np.ascontiguousarray(X.transpose(0, 3, 1, 2)))
row("Channels first, in a model that has no Input", np.zeros((4, 3, 32, 32), "float32"), Y[:4], without_input)
row("No axis of channels", X[..., 0], Y, gray)
row("One sample without the batch axis", X[0], Y[:1])
row("Pictures of another size", np.zeros((40, 10, 10, 3), "float32"))
row("Colours for a model of grey pictures", X, Y, gray)
row("Pictures for a model that begins with Dense", X, Y, flat)
row("Floats from 0 to 255", X * 255)
row("One-hot labels against a sparse loss", X, np.eye(10)[Y])
row("Whole numbers against a loss of one-hot labels", X, Y, lambda: net("categorical_crossentropy"))
row("Targets of another shape than the outputs", X, np.zeros((40, 3), "float32"), lambda: net("mse", 2, None))
row("No samples", X[:0], Y[:0])
row("A size of zero", np.zeros((4, 8, 0, 3), "float32"), Y[:4])
row("One number", 3.0, Y)
row("Too many arrays", [X, X], Y)
row("Labels are missing", X, None)
row("BatchNormalization with one sample", X[:1], Y[:1], normalized)
row("BatchNormalization, whose last batch is one sample", X[:33], Y[:33], normalized)
row("Rows that differ in length", [[1.0, 2.0], [3.0]], Y[:2])
row("Words", X, np.array(["cat", "dog"] * 20))
row("Python objects", np.array([{"a": 1}] * 40, dtype=object), Y)
row("Complex numbers", X * 1j, Y)


def test_every_message_is_the_one_that_was_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PAGE.check(tmp_path, monkeypatch)


@pytest.mark.parametrize("kind", ["strided", "big-endian", "read-only", "fortran"])
def test_arrays_of_every_kind_train_to_the_same_weights(kind: str) -> None:
    read_only = X.copy()
    read_only.flags.writeable = False
    arrays = {"strided": np.repeat(X, 2, axis=0)[::2], "big-endian": X.astype(">f4"), "read-only": read_only,
              "fortran": np.asfortranarray(X)}
    weights = []
    for x in (X, arrays[kind]):
        convolt.utils.set_random_seed(0)
        model = net()
        fit(x, Y, model, seed=0)
        weights.append(model.get_weights())
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))
