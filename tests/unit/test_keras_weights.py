"""Weights alone: in Keras's files by path, order and name, and as state dicts of PyTorch."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import convolt
from convolt import Model, Sequential, errors, layers
from tests.unit.test_keras_files import cnn, small


@pytest.mark.parametrize("name", ["w.h5", "w.weights.h5", "w.safetensors", "m.keras", "m.h5"])
def test_weights_into_a_model_of_the_same_kind(name: str, tmp_path: Path) -> None:
    model, other = cnn(), cnn()
    (model.save if name.startswith("m.") else model.save_weights)(tmp_path / name)
    assert other.load_weights(tmp_path / name) is other
    for ours, theirs in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_by_order_and_by_name(tmp_path: Path) -> None:
    model = small()
    model.save_weights(tmp_path / "w.h5")
    inputs = layers.Input((4,))
    other = Model(inputs, layers.Dense(3, name="else")(layers.Dense(5, name="body")(inputs)))
    before = other.get_layer("else").get_weights()
    other.load_weights(tmp_path / "w.h5", by_name=True)
    np.testing.assert_array_equal(other.get_layer("body").get_weights()[0], model.get_layer("body").get_weights()[0])
    np.testing.assert_array_equal(other.get_layer("else").get_weights()[0], before[0])
    other.load_weights(tmp_path / "w.h5")
    np.testing.assert_array_equal(other.get_layer("else").get_weights()[0], model.get_layer("head").get_weights()[0])


@pytest.mark.parametrize("name", ["w.h5", "w.weights.h5"])
def test_what_does_not_fit_is_an_error_or_left_out(name: str, tmp_path: Path) -> None:
    small().save_weights(tmp_path / name)
    inputs = layers.Input((4,))
    other = Model(inputs, layers.Dense(7, name="head")(layers.Dense(5, name="body")(inputs)))
    before = [w.copy() for w in other.get_weights()]
    with pytest.raises(errors.ModelFileError, match=r"got shape \(5, 3\); expected \(5, 7\)"):
        other.load_weights(tmp_path / name)
    for now, then in zip(other.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    with pytest.warns(errors.ConvoltWarning, match="left out"):
        other.load_weights(tmp_path / name, skip_mismatch=True)
    assert not np.array_equal(other.get_weights()[0], before[0])
    np.testing.assert_array_equal(other.get_layer("head").get_weights()[0], before[2])


def test_weights_say_what_is_missing(tmp_path: Path) -> None:
    small().save_weights(tmp_path / "w.weights.h5")
    small().save_weights(tmp_path / "w.h5")
    other = Sequential([layers.Input((4,)), layers.Dense(5)])
    with pytest.raises(errors.ModelFileError, match="unknown layers/dense_1/vars/0"):
        other.load_weights(tmp_path / "w.weights.h5")
    with pytest.raises(errors.ModelFileError, match="2 layers with weights: body, head; expected 1"):
        other.load_weights(tmp_path / "w.h5")
    with pytest.raises(errors.ModelFileError, match="without an architecture"):
        convolt.load_model(tmp_path / "w.weights.h5")
    with pytest.raises(errors.ModelFileError, match="Leave by_name out"):
        other.load_weights(tmp_path / "w.weights.h5", by_name=True)
    small().save_weights(tmp_path / "w.safetensors")
    with pytest.raises(errors.ArgumentError, match="Leave by_name out"):
        small().load_weights(tmp_path / "w.safetensors", by_name=True)


def test_weights_with_nan_are_refused(tmp_path: Path) -> None:
    model = small()
    model.save(tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        file["model_weights/head/head/bias"][0] = np.nan
    with pytest.raises(errors.ModelFileError, match="NaN"):
        convolt.load_model(tmp_path / "m.h5")


@pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.h5", "m.keras"])
def test_pickles_are_never_loaded(name: str, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / name)
    with pytest.raises(errors.ModelFileError, match=r"holds a pickle.*safetensors\.torch\.save_file"):
        convolt.load_model(tmp_path / name)
    with pytest.raises(errors.ModelFileError, match=r"holds a pickle.*safetensors\.torch\.save_file"):
        small().load_weights(tmp_path / name)


def test_state_dicts_of_pytorch_go_into_wrapped_modules(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    save_file(module.state_dict(), tmp_path / "state.safetensors")
    own = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    Model.wrap(own).load_weights(tmp_path / "state.safetensors")
    for key, value in module.state_dict().items():
        torch.testing.assert_close(own.state_dict()[key], value, rtol=0, atol=0)
    small().save_weights(tmp_path / "w.safetensors")
    assert set(load_file(tmp_path / "w.safetensors")) == {"body.weight", "body.bias", "head.weight", "head.bias"}
