"""Whole models through files: written by Keras and read here, written here and read by Keras; predictions are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convolt
from convolt.layers import registry
from tests.e2e.keras_zoo import ZOO, available
from tests.parity.conftest import keras  # noqa: F401 (a fixture)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own, with NumPy 2

NAMES = sorted(available(registry))
EVERY = pytest.mark.parametrize("name", NAMES)
SUFFIX = pytest.mark.parametrize("suffix", ["h5", "keras"])
BATCH = 5


def inputs_of(model: Any) -> Any:
    """Returns a batch for each input of a model of Convolt."""
    rng = np.random.default_rng(1)
    made = [rng.integers(0, 11, (BATCH, *shape[1:])).astype("int32") if "int" in dtype else
            rng.normal(0, 1, (BATCH, *shape[1:])).astype("float32")
            for shape, dtype in zip(model.input_shapes, model.input_dtypes, strict=True)]
    return made[0] if len(made) == 1 else dict(zip(model.input_names, made, strict=True))


def drawn(value: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
    if value.dtype.kind != "f":
        return value
    values = rng.normal(0, 0.4, value.shape)
    return (np.abs(values) + 0.5 if "var" in name else values).astype("float32")


def randomize_keras(model: Any) -> None:
    rng = np.random.default_rng(2)
    for variable in model.weights:
        variable.assign(drawn(variable.value.detach().numpy(), variable.name, rng))


def flat(outputs: Any) -> dict[str, np.ndarray]:
    """Returns outputs by name, one alone under "0"."""
    if not isinstance(outputs, dict):
        outputs = {str(i): y for i, y in enumerate(outputs if isinstance(outputs, (list, tuple)) else [outputs])}
    return {key: y if isinstance(y, np.ndarray) else y.detach().numpy() for key, y in outputs.items()}


def close(ours: Any, theirs: Any) -> None:
    ours, theirs = flat(ours), flat(theirs)
    assert ours.keys() == theirs.keys()
    for key, y in theirs.items():
        np.testing.assert_allclose(ours[key], y, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(y).max())), err_msg=key)


@SUFFIX
@EVERY
def test_models_of_keras_load_here(keras, name: str, suffix: str, tmp_path: Path) -> None:  # noqa: F811
    theirs = ZOO[name](keras)
    randomize_keras(theirs)
    theirs.save(tmp_path / f"m.{suffix}")
    ours = convolt.load_model(tmp_path / f"m.{suffix}", device="cpu")
    x = inputs_of(ours)
    given = list(x.values()) if isinstance(x, dict) and not isinstance(theirs.input, dict) else x
    close(ours.predict(x, verbose=0), theirs(given, training=False))


@SUFFIX
@EVERY
def test_models_from_here_load_in_keras(keras, name: str, suffix: str, tmp_path: Path) -> None:  # noqa: F811
    ours = ZOO[name](convolt)
    rng = np.random.default_rng(2)
    ours.set_weights([drawn(value.numpy(), key, rng) for key, value in ours.keras_weights()])
    ours.save(tmp_path / f"m.{suffix}")
    theirs = keras.models.load_model(tmp_path / f"m.{suffix}")
    x = inputs_of(ours)
    given = list(x.values()) if isinstance(x, dict) and not isinstance(theirs.input, dict) else x
    close(ours.predict(x, verbose=0), theirs(given, training=False))
    again = convolt.load_model(tmp_path / f"m.{suffix}", device="cpu")
    for key, y in flat(again.predict(x, verbose=0)).items():
        np.testing.assert_array_equal(y, flat(ours.predict(x, verbose=0))[key])


@pytest.mark.parametrize("suffix", [pytest.param("h5", marks=pytest.mark.slow), "weights.h5"])
@EVERY
def test_weights_alone_go_both_ways(keras, name: str, suffix: str, tmp_path: Path) -> None:  # noqa: F811
    theirs, ours = ZOO[name](keras), ZOO[name](convolt)
    randomize_keras(theirs)
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    ours.load_weights(tmp_path / "theirs.weights.h5")
    ours.save_weights(tmp_path / f"ours.{suffix}")
    other = ZOO[name](keras)
    other.load_weights(tmp_path / f"ours.{suffix}")
    for ours_then, theirs_then in zip(other.weights, theirs.weights, strict=True):
        np.testing.assert_array_equal(ours_then.value.detach().numpy(), theirs_then.value.detach().numpy())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV2", "EfficientNetB0", "DenseNet121", "InceptionV3", "ResNet50V2"])
def test_applications_of_keras(keras, name: str, tmp_path: Path) -> None:  # noqa: F811
    theirs = getattr(keras.applications, name)(weights=None, classes=10, input_shape=(96, 96, 3))
    rng = np.random.default_rng(2)
    for variable in theirs.weights:
        if "moving" in variable.name or "gamma" in variable.name:
            variable.assign(np.abs(rng.normal(0, 0.2, variable.shape)) + 0.5)
    theirs.save(tmp_path / "m.keras")
    ours = convolt.load_model(tmp_path / "m.keras", device="cpu")
    x = rng.uniform(0, 255, (2, 96, 96, 3)).astype("float32")
    close(ours.predict(x, verbose=0), theirs(x, training=False))
    ours.save(tmp_path / "m.h5")
    close(ours.predict(x, verbose=0), keras.models.load_model(tmp_path / "m.h5")(x, training=False))


def test_the_zoo_is_large_enough() -> None:
    assert len(NAMES) >= 15
