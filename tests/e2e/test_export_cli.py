"""`convolt export` as a user meets it: a model trained on digits goes to every format, and each file computes the same."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

import convolt
from convolt import layers
from convolt.cli.main import main
from convolt.datasets import digits
from convolt.formats import onnx, program

FORMATS = {"onnx": "onnxruntime", "pt2": "torch.export of PyTorch", "h5": "Keras 3", "keras": "Keras 3"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "digits.safetensors"
    (x, y), _ = digits.load_data()
    convolt.utils.set_random_seed(0)
    model = convolt.Sequential([
        layers.Input((8, 8, 1)), layers.Rescaling(1 / 16), layers.Conv2D(16, 3, padding="same", activation="relu"),
        layers.BatchNormalization(), layers.MaxPooling2D(), layers.Flatten(), layers.Dense(10, activation="softmax"),
    ])
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"], device="cpu", fusions="none")
    model.class_names = [str(n) for n in range(10)]
    model.fit(x[..., None], y, epochs=2, verbose=0)
    model.save(path)
    return path


@pytest.fixture(scope="module")
def written(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("written")


def pictures() -> tuple[np.ndarray, np.ndarray]:
    x, y = digits.load_data()[1]
    return x[..., None], y


@pytest.mark.parametrize("name", FORMATS)
def test_a_trained_model_goes_to_each_format(name: str, trained: Path, written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = written / f"model.{name}"
    assert main(["export", str(trained), "--to", name, "--out", str(target), "--check", "digits"]) == 0
    said = capsys.readouterr().out
    assert f"Wrote {target}" in said.replace("\n", "") and FORMATS[name] in said
    assert re.search(r"(off by [\d.e-]+ at most|equal), on 359 samples of digits", said)
    before, after = re.findall(r"([\d.]+)% (?:before|after)", said)
    assert before == after and float(before) > 80
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask  # whoever may read other files may read this one
    assert not [path for path in written.iterdir() if path.name.startswith(".")]


def test_what_was_written_is_read_by_its_program(trained: Path, written: Path) -> None:
    x, y = pictures()
    expected = convolt.load_model(trained, device="cpu").predict(x, verbose=0)
    got = {name: run.run(written / f"model.{name}", [x.astype("float32")])[0] for name, run in (("onnx", onnx), ("pt2", program))}
    got |= {name: convolt.load_model(written / f"model.{name}", device="cpu").predict(x, verbose=0) for name in ("h5", "keras")}
    for name in FORMATS:
        np.testing.assert_allclose(got[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)
        assert (got[name].argmax(1) == y).mean() > 0.8


def test_a_file_that_takes_bytes_has_its_class_names(trained: Path, written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    target = written / "bytes.onnx"
    assert main(["export", str(trained), "--to", "onnx", "--out", str(target), "--input-type", "uint8", "--check", "digits"]) == 0
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    x, y = pictures()
    scores = session.run(None, {session.get_inputs()[0].name: x})[0]
    names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
    assert np.mean([names[i] == str(label) for i, label in zip(scores.argmax(1), y, strict=True)]) > 0.8


@pytest.mark.parametrize(("extra", "code", "words"), [
    (["--to", "onx"], 2, "Did you mean 'onnx'?"),
    (["--to", "h5", "--input-type", "uint8", "--out", "bytes.h5"], 2, "got 'uint8'; expected 'float32' for a file of Keras (.h5)"),
    (["--to", "onnx", "--out", "nowhere/model.onnx"], 1, "the folder 'nowhere', which does not exist"),
    (["--to", "onnx", "--check", "digts"], 2, "Did you mean 'digits'?"),
])  # fmt: skip
def test_mistakes(extra: list[str], code: int, words: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                  capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(trained), *extra]) == code
    assert words in capsys.readouterr().err.replace("\n", " ")
    assert not list(tmp_path.iterdir())
