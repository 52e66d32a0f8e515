"""Exports run in their own programs and compute what the model computes."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import convolt as cv
from convolt import layers
from convolt.errors import ArgumentError, MissingPackageError, ModelFileError, ShapeError, StateError
from convolt.formats import onnx as onnx_format
from convolt.formats import program
from convolt.formats.export import export


def picture_model() -> Any:
    model = cv.Sequential([
        layers.Input((8, 8, 3)), layers.Rescaling(1 / 255), layers.Conv2D(4, 3, strides=2, padding="same", activation="relu"),
        layers.BatchNormalization(), layers.MaxPooling2D(2), layers.Flatten(), layers.Dropout(0.5), layers.Dense(3, activation="softmax"),
    ])
    model.class_names = ["ant", "bee", "cat"]
    return model


def branched_model() -> Any:
    a, b = layers.Input((6, 6, 2), name="left"), layers.Input((5,), name="right")
    x = layers.Conv2D(4, 3, padding="same")(a)
    y = layers.Add()([layers.Conv2D(4, 1)(x), x])
    y = layers.GlobalAveragePooling2D()(y)
    both = layers.Concatenate()([y, layers.Dense(3, activation="gelu")(b)])
    return cv.Model([a, b], {"kind": layers.Dense(2, name="kind")(both), "map": layers.UpSampling2D(2, name="map")(x)})


class Doubled(cv.Model):
    """A subclass whose shapes are known from a first call."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(x) * 2


def subclassed() -> Any:
    model = Doubled()
    model.predict(np.zeros((2, 3), "float32"), verbose=0)
    return model


def wrapped() -> Any:
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    model = cv.Model.wrap(module, input_shape=(6, 6, 3))
    model.predict(np.zeros((2, 6, 6, 3), "float32"), verbose=0)
    return model


MODELS = {"pictures": picture_model, "branches": branched_model, "subclass": subclassed, "wrapped": wrapped}


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
@pytest.mark.parametrize("name", MODELS)
def test_an_export_computes_the_same_for_any_batch_size(name: str, suffix: str, tmp_path: Path) -> None:
    model, path = MODELS[name](), tmp_path / f"model.{suffix}"
    result = model.export(path)
    assert result.excess <= 1 and result.samples == 32
    for samples in (1, 7):
        rng = np.random.default_rng(samples)
        inputs = [rng.random((samples, *shape[1:]), "float32") for shape in model.input_shapes]
        expected = model.predict(inputs if len(inputs) > 1 else inputs[0], verbose=0)
        flat = list(expected.values()) if isinstance(expected, dict) else [expected]
        got = (onnx_format if suffix == "onnx" else program).run(path, inputs)
        for a, b in zip(got, flat, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_onnx_has_names_metadata_and_one_axis_of_any_size(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    picture_model().export(path, input_dtype="uint8")
    file = onnx.load(path)
    onnx.checker.check_model(file)
    facts = {entry.key: entry.value for entry in file.metadata_props}
    assert json.loads(facts["class_names"]) == ["ant", "bee", "cat"]
    assert json.loads(facts["preprocessing"])["resize"] == [8, 8] and facts["layout"] == "channels_last"
    (given,) = file.graph.input
    sizes = [axis.dim_value or axis.dim_param for axis in given.type.tensor_type.shape.dim]
    assert isinstance(sizes[0], str) and sizes[1:] == [8, 8, 3]
    assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8


def test_branches_keep_their_names(tmp_path: Path) -> None:
    branched_model().export(tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [i.name for i in graph.input] == ["left", "right"] and [o.name for o in graph.output] == ["kind", "map"]


def test_a_program_carries_its_metadata(tmp_path: Path) -> None:
    picture_model().export(tmp_path / "model.pt2")
    facts = {"class_names": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=facts)
    assert json.loads(facts["class_names"]) == ["ant", "bee", "cat"]


class Two(layers.Layer):
    """A layer that a tracer sees otherwise than a user does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (3.0 if torch.compiler.is_exporting() else 2.0)


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_a_file_that_computes_something_else_is_never_written(suffix: str, tmp_path: Path) -> None:
    model = cv.Sequential([layers.Input((4,)), Two()])
    with pytest.raises(ModelFileError, match=r"outputs that are off by up to .*No file was written"):
        model.export(tmp_path / f"model.{suffix}")
    assert not list(tmp_path.iterdir())


def test_a_metric_that_moves_is_refused(tmp_path: Path) -> None:
    values = iter([0.9, 0.5])
    with pytest.raises(ModelFileError, match=r"a metric of 0\.5000 in .*; expected 0\.9000"):
        export(picture_model(), tmp_path / "model.pt2", metric=lambda outputs: next(values))
    assert not list(tmp_path.iterdir())


class Branching(layers.Layer):
    """Code that depends on values."""

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if float(x.sum()) > 0 else x


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_what_cannot_be_followed_is_told(suffix: str, tmp_path: Path) -> None:
    model = cv.Sequential([layers.Input((4,)), Branching()])
    with pytest.raises(ModelFileError, match="export of 'sequential"):
        model.export(tmp_path / f"model.{suffix}")
    assert not list(tmp_path.iterdir())


def test_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = picture_model()
    with pytest.raises(ArgumentError, match="Did you mean 'onnx'"):
        model.export(tmp_path / "model.onx")
    with pytest.raises(ArgumentError, match="input_dtype"):
        model.export(tmp_path / "model.onnx", input_dtype="int4")
    with pytest.raises(StateError, match="input shapes are not known"):
        Doubled().export(tmp_path / "model.onnx")
    with pytest.raises(ModelFileError, match="does not exist"):
        model.export(tmp_path / "nowhere" / "model.onnx")
    any_size = cv.Sequential([layers.Input((None, None, 3)), layers.Conv2D(2, 3)])
    with pytest.raises(ShapeError, match="known sizes of all axes"):
        any_size.export(tmp_path / "model.onnx")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnxscript" else found(name, *rest))
    with pytest.raises(MissingPackageError, match=r"no package onnxscript.*convolt\[onnx\]"):
        model.export(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = picture_model()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.export(tmp_path / "model.pt2")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
