"""Compiled models through files: Keras and Convolt evaluate alike, and training goes on alike with the optimizer's state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convolt
from tests.parity.conftest import keras  # noqa: F401 (a fixture)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own, with NumPy 2

SUFFIX = pytest.mark.parametrize("suffix", ["h5", "keras"])
RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 6, 6, 2)).astype("float32")
Y = (np.arange(8) % 3).astype("int32")


def cnn(api: Any) -> Any:
    L = api.layers
    return api.Sequential([api.Input((6, 6, 2)), L.Conv2D(4, 3, activation="relu"), L.BatchNormalization(), L.Flatten(),
                           L.Dense(3, activation="softmax")])


def optimizer(api: Any, name: str) -> Any:
    classes = api.optimizers
    return {"adam": lambda: classes.Adam(0.01, beta_1=0.8), "sgd": lambda: classes.SGD(0.1, momentum=0.9, nesterov=True),
            "plain": lambda: classes.SGD(0.1), "rmsprop": lambda: classes.RMSprop(0.01), "adamw": lambda: classes.AdamW(0.01, 0.0),
            "clipped": lambda: classes.Adam(0.01, clipnorm=0.5),
            "schedule": lambda: classes.Adam(classes.schedules.ExponentialDecay(0.01, 2, 0.5))}[name]()


def compile_(api: Any, model: Any, name: str, **options: Any) -> Any:
    model.compile(optimizer(api, name), api.losses.SparseCategoricalCrossentropy(), metrics=["accuracy"], **options)
    return model


def values(model: Any) -> list[np.ndarray]:
    found = [getattr(w, "value", w) for w in model.weights] if not isinstance(model, convolt.Model) else model.get_weights()
    return [w if isinstance(w, np.ndarray) else w.detach().numpy().copy() for w in found]


def train(model: Any) -> None:
    model.train_on_batch(X, Y)


def same(ours: Any, theirs: Any) -> None:
    for a, b in zip(values(ours), values(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def evaluated_alike(ours: Any, theirs: Any) -> None:
    got = ours.evaluate(X, Y, verbose=0, return_dict=True)
    expected = theirs.evaluate(X, Y, verbose=0, return_dict=True)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(got[key], float(value), rtol=1e-4, err_msg=key)


@SUFFIX
@pytest.mark.parametrize("name", ["adam", "sgd", "plain", "clipped", "schedule", "rmsprop", "adamw"])
def test_training_of_keras_goes_on_here(keras, name: str, suffix: str, tmp_path: Path) -> None:  # noqa: F811
    theirs = compile_(keras, cnn(keras), name)
    for _ in range(3):
        train(theirs)
    theirs.save(tmp_path / f"m.{suffix}")
    ours = convolt.load_model(tmp_path / f"m.{suffix}", device="cpu")
    evaluated_alike(ours, theirs)
    assert ours.optimizer.iterations == 3
    assert float(ours.optimizer.learning_rate) == pytest.approx(float(theirs.optimizer.learning_rate.value
                                                                      if hasattr(theirs.optimizer.learning_rate, "value")
                                                                      else theirs.optimizer.learning_rate))
    train(ours)
    train(theirs)
    same(ours, theirs)


@SUFFIX
@pytest.mark.parametrize("name", ["adam", "sgd", "plain", "clipped", "schedule", "rmsprop", "adamw"])
def test_training_from_here_goes_on_in_keras(keras, name: str, suffix: str, tmp_path: Path) -> None:  # noqa: F811
    ours = cnn(convolt)
    for layer in ours.layers:
        if hasattr(layer, "bias_correction"):
            layer.bias_correction = False  # Keras's rule for the first batches
    ours = compile_(convolt, convolt.Sequential.from_config(ours.get_config()), name, device="cpu")
    for _ in range(3):
        train(ours)
    ours.save(tmp_path / f"m.{suffix}")
    theirs = keras.models.load_model(tmp_path / f"m.{suffix}")
    evaluated_alike(ours, theirs)
    train(theirs)
    if suffix == "keras":  # Keras cannot train a model with its state from a legacy file, so that there it starts afresh
        assert int(theirs.optimizer.iterations.value) == 4
        train(ours)
        same(ours, theirs)


@SUFFIX
def test_a_model_that_was_compiled_and_not_trained(keras, suffix: str, tmp_path: Path) -> None:  # noqa: F811
    ours = compile_(convolt, cnn(convolt), "adam", device="cpu")
    ours.save(tmp_path / f"a.{suffix}")
    evaluated_alike(ours, keras.models.load_model(tmp_path / f"a.{suffix}"))
    theirs = compile_(keras, cnn(keras), "adam")
    theirs.save(tmp_path / f"b.{suffix}")
    again = convolt.load_model(tmp_path / f"b.{suffix}", device="cpu")
    evaluated_alike(again, theirs)
    again.fit(X, Y, verbose=0)


@SUFFIX
def test_losses_and_metrics_by_output(keras, suffix: str, tmp_path: Path) -> None:  # noqa: F811
    def build(api: Any, **options: Any) -> Any:
        inputs = api.Input((4,))
        a, b = api.layers.Dense(3, activation="softmax", name="a")(inputs), api.layers.Dense(1, name="b")(inputs)
        model = api.Model(inputs, {"a": a, "b": b})
        model.compile("sgd", {"a": "sparse_categorical_crossentropy", "b": api.losses.LogCosh(reduction="sum")},
                      loss_weights={"a": 1.0, "b": 0.5}, metrics={"a": ["accuracy"], "b": ["mae"]}, **options)
        return model

    x, labels = RNG.normal(size=(6, 4)).astype("float32"), {"a": np.arange(6) % 3, "b": np.arange(6.0).reshape(6, 1).astype("float32")}
    theirs = build(keras)
    theirs.save(tmp_path / f"m.{suffix}")
    ours = convolt.load_model(tmp_path / f"m.{suffix}", device="cpu")
    got, expected = ours.evaluate(x, labels, verbose=0, return_dict=True), theirs.evaluate(x, labels, verbose=0, return_dict=True)
    for key in ("loss", "a_loss", "b_loss", "a_accuracy", *(["b_mae"] if suffix == "keras" else [])):
        np.testing.assert_allclose(got[key], float(expected[key]), rtol=1e-4, err_msg=key)
    ours = build(convolt, device="cpu")
    ours.save(tmp_path / f"o.{suffix}")
    back = keras.models.load_model(tmp_path / f"o.{suffix}")
    got, expected = ours.evaluate(x, labels, verbose=0, return_dict=True), back.evaluate(x, labels, verbose=0, return_dict=True)
    for key in ("loss", "a_loss", "b_loss", "a_accuracy", *(["b_mae"] if suffix == "keras" else [])):
        np.testing.assert_allclose(got[key], float(expected[key]), rtol=1e-4, err_msg=key)
