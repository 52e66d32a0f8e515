"""The promise of the README: MNIST at 99.0% of the 10,000 test images after five epochs."""

import json
import os
from pathlib import Path

import pytest

from convolt.cli.main import main

pytestmark = [pytest.mark.slow, pytest.mark.skipif("CONVOLT_DATA" not in os.environ, reason="CONVOLT_DATA names no folder with mnist.npz")]


def test_mnist_reaches_99_per_cent_in_five_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "cnn", "--data", "mnist", "--epochs", "5"]) == 0
    config = json.loads(Path("runs/cnn-mnist/config.json").read_text(encoding="utf-8"))
    assert config["data"]["test"] == 10_000
    assert config["result"]["accuracy"] >= 0.99
