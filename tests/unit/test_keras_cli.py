"""Keras's files on the command line."""

from pathlib import Path

import numpy as np
import pytest

from convolt.cli.main import main
from tests.unit.test_keras_files import IMAGES, SUFFIX, cnn, rewrite

NAMES = ["cat", "dog", "cow"]


@SUFFIX
def test_summary_and_predict_take_them(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = cnn()
    model.class_names = NAMES
    model.save(tmp_path / f"m.{suffix}")
    np.save(tmp_path / "x.npy", IMAGES[:2])
    assert main(["summary", str(tmp_path / f"m.{suffix}")]) == 0
    shown = capsys.readouterr().out
    assert "kind (Dense)" in shown and "cat, dog, cow" in shown
    assert main(["predict", str(tmp_path / f"m.{suffix}"), str(tmp_path / "x.npy"), "--device", "cpu"]) == 0
    assert NAMES[int(model.predict(IMAGES[:1], verbose=0).argmax())] in capsys.readouterr().out


def test_classes_come_from_a_python_file_that_the_user_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.h5"
    cnn().save(path)
    rewrite(path, lambda config: config["config"]["layers"][1].update(class_name="Mine"))
    assert main(["summary", str(path)]) != 0
    assert "--code FILE.py" in capsys.readouterr().err
