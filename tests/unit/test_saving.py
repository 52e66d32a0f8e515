"""Convolt's own file: one .safetensors with weights and architecture, whole or not there at all, and never trusted."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import convolt
from convolt import errors, layers
from convolt.models import Model, Sequential

RNG = np.random.default_rng(0)


def cnn() -> Sequential:
    return Sequential([layers.Input((8, 8, 1)), layers.Rescaling(1 / 255), layers.Conv2D(4, 3, kernel_regularizer="l2"),
                       layers.BatchNormalization(), layers.ReLU(), layers.MaxPooling2D(), layers.Flatten(), layers.Dropout(0.5),
                       layers.Dense(3, activation="softmax", name="kind")])


def functional() -> Model:
    image = layers.Input((8, 8, 1), name="image")
    left = layers.Conv2D(4, 3, padding="same", activation="relu")(image)
    joined = layers.Add()([left, layers.Conv2D(4, 1)(image)]) * 0.5
    return Model({"image": image}, {"kind": layers.Dense(3, activation="softmax")(layers.Flatten()(joined))})


class Own(Model):
    def __init__(self, units: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.flatten, self.dense = layers.Flatten(), layers.Dense(units)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(self.flatten(x))


IMAGES = RNG.integers(0, 256, size=(6, 8, 8, 1)).astype("float32")


@pytest.mark.parametrize("make", [cnn, functional])
def test_round_trip_predicts_bit_equal(make: object, tmp_path: Path) -> None:
    model = make()
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"], device="cpu")
    model.class_names = ["a", "b", "c"]
    model.save(tmp_path / "m.safetensors")
    again = convolt.load_model(tmp_path / "m.safetensors", device="cpu")
    expected, got = (m.predict(IMAGES, verbose=0) for m in (model, again))
    if isinstance(expected, dict):
        expected, got = expected["kind"], got["kind"]
    np.testing.assert_array_equal(expected, got)
    assert again.class_names == ["a", "b", "c"]
    assert again.get_config() == model.get_config()
    again.fit(IMAGES / 255, np.arange(6) % 3, verbose=0)  # it is compiled as it was


def test_any_safetensors_tool_reads_the_weights(tmp_path: Path) -> None:
    model = cnn()
    model.save(tmp_path / "m.safetensors")
    tensors = load_file(tmp_path / "m.safetensors")
    assert tensors["conv2d.weight"].shape == (4, 1, 3, 3)  # PyTorch's order of axes
    torch.testing.assert_close(tensors["kind.weight"], model.get_layer("kind").weight.detach())


def test_subclass_needs_its_class(tmp_path: Path) -> None:
    model = Own(4)
    expected = model(IMAGES)
    model.save(tmp_path / "m.safetensors")
    with pytest.raises(errors.ModelFileError, match="custom_objects"):
        convolt.load_model(tmp_path / "m.safetensors")
    again = convolt.load_model(tmp_path / "m.safetensors", custom_objects={"Own": Own}, device="cpu")
    np.testing.assert_array_equal(again(IMAGES), expected)


def test_weights_alone(tmp_path: Path) -> None:
    model, other = cnn(), cnn()
    model.save_weights(tmp_path / "w.safetensors")
    other.load_weights(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(model.predict(IMAGES, verbose=0), other.predict(IMAGES, verbose=0))
    with pytest.raises(errors.ModelFileError, match="weights without an architecture"):
        convolt.load_model(tmp_path / "w.safetensors")


def test_shared_tensors_are_written_once(tmp_path: Path) -> None:
    module = torch.nn.Module()
    module.a, module.b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    module.b.weight = module.a.weight
    module.forward = lambda x: module.b(module.a(x))
    Model.wrap(module).save_weights(tmp_path / "w.safetensors")
    assert set(load_file(tmp_path / "w.safetensors")) == {"module.a.weight", "module.a.bias", "module.b.bias"}
    Model.wrap(module).load_weights(tmp_path / "w.safetensors")


def test_a_wrapped_module_says_what_can_be_saved(tmp_path: Path) -> None:
    with pytest.raises(errors.ModelFileError, match="save_weights"):
        Model.wrap(torch.nn.Linear(2, 2)).save(tmp_path / "m.safetensors")


@pytest.mark.parametrize(("path", "message"), [("m.h5x", "safetensors"), ("no/m.safetensors", "does not exist"),
                                               ("here.safetensors", "overwrite=True")])
def test_a_target_that_cannot_be_written(path: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "here.safetensors").write_bytes(b"mine")
    with pytest.raises(errors.ModelFileError, match=message):
        cnn().save(tmp_path / path, overwrite=False)
    assert (tmp_path / "here.safetensors").read_bytes() == b"mine"


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    cnn().save(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    words = (r"m\.safetensors: got the error 'No space left on device', [\d,]+ bytes free; expected a disk that takes its [\d,]+ bytes\. "
             r"The file that was there stays as it was")
    with pytest.raises(errors.ModelFileError, match=words):
        cnn().save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def rewrite(path: Path, change: object) -> Path:
    """Writes the file again with a changed header entry."""
    with safe_open(path, "pt") as file:
        tensors, info = {k: file.get_tensor(k) for k in list(file.keys())}, json.loads(file.metadata()["convolt"])
    changed = change(tensors, info)
    save_file(changed if isinstance(changed, dict) and "kind.weight" in changed else tensors, path, {"convolt": json.dumps(info)})
    return path


@pytest.mark.parametrize(("change", "message"), [
    (lambda t, i: i.update(format=99), "Update convolt"),
    (lambda t, i: i["model"].update(class_name="os.system"), "os.system"),
    (lambda t, i: i["model"]["config"]["layers"][1].update(class_name="Conv2d"), "known layer|Did you mean|layer"),
    (lambda t, i: i["model"]["config"]["layers"][1]["config"].update(filtres=3), "filters"),
    (lambda t, i: i["model"]["config"]["layers"][1]["config"].update(filters=-3), "filters"),
    (lambda t, i: i["model"]["config"].pop("layers"), "layers"),
    (lambda t, i: {k: v for k, v in t.items() if k != "kind.bias"}, "missing kind.bias"),
    (lambda t, i: t | {"kind.bais": t.pop("kind.bias")}, "Did you mean|unknown kind.bais"),
    (lambda t, i: t | {"kind.bias": torch.zeros(4)}, r"kind.bias: got \(4,\)"),
    (lambda t, i: t | {"kind.bias": torch.full((3,), float("nan"))}, "NaN"),
    (lambda t, i: t | {"kind.bias": torch.zeros(3, dtype=torch.float16)}, "float16"),
    (lambda t, i: i["compile"].update(loss="no_such_loss"), "compile=False"),
])
def test_what_does_not_fit_is_named(change: object, message: str, tmp_path: Path) -> None:
    model = cnn()
    model.compile("adam", "sparse_categorical_crossentropy", device="cpu")
    model.save(tmp_path / "m.safetensors")
    with pytest.raises(errors.ModelFileError, match=message):
        convolt.load_model(rewrite(tmp_path / "m.safetensors", change), device="cpu")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    cnn().save(path)
    whole = path.read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    damaged = [whole[:n] for n in (0, 4, 8, 100, 8 + header, len(whole) - 1)]
    damaged += [b"\x80\x04pickle", whole + b"x", struct.pack("<Q", 2**62) + whole[8:]]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(errors.ModelFileError):
            convolt.load_model(path)
    with pytest.raises(errors.ModelFileError, match="no such file"):
        convolt.load_model(tmp_path / "other.safetensors")


def test_a_file_loads_in_a_fresh_process(tmp_path: Path) -> None:
    model = functional()
    model.save(tmp_path / "m.safetensors")
    code = ("import sys, numpy, convolt; m = convolt.load_model(sys.argv[1], device='cpu');"
            "numpy.save(sys.argv[2], m.predict(numpy.ones((1, 8, 8, 1), 'float32'), verbose=0)['kind'])")
    subprocess.run([sys.executable, "-c", code, tmp_path / "m.safetensors", tmp_path / "out.npy"], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), model.predict(np.ones((1, 8, 8, 1), "float32"), verbose=0)["kind"])
