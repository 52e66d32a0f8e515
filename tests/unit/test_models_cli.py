"""`convolt models`, and how `convolt train` begins: weights of a file, and layers that do not learn."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import convolt
from convolt import applications, layers
from convolt.applications import get
from convolt.cli import speeds, starting
from convolt.cli.main import main
from convolt.errors import ArgumentError, ModelFileError

RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVOLT_CACHE", str(tmp_path / "cache"))
    return tmp_path


# -- the list ----------------------------------------------------------------------------------------------------------------


def test_the_figures_are_those_of_the_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "vgg16", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["family"], row["input_shape"], row["classes"]) == ("vgg16", "VGG", [224, 224, 3], 1000)
    assert row["parameters"] == 138_357_544, "as published"
    assert row["flops"] == pytest.approx(30.94e9, rel=0.01), "15.47 G multiplications, as published"
    assert row["images_per_second"] is None, "nothing is invented"


def test_patterns_choose_and_none_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "vgg*", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["vgg16", "vgg19"]
    assert main(["models", "cnn"]) == 0
    printed = capsys.readouterr().out
    assert "parameters" in printed and "not measured here yet: convolt models NAMES --measure" in printed
    assert main(["models", "vgg1x"]) == 2
    assert "Did you mean 'vgg1" in capsys.readouterr().err


def rows_of(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return list(json.loads(capsys.readouterr().out))


def test_speed_is_measured_and_kept_with_its_date(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--device", "cpu", "--batch-size", "2"]
    assert main(["models", "cnn", "lenet5", "--measure", "both", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "cnn: predict" in printed and "lenet5: training" in printed
    assert main(["models", "lenet5", "cnn", "--json", "--device", "cpu"]) == 0
    rows = rows_of(capsys)
    assert [row["name"] for row in rows] == ["cnn", "lenet5"], "in the order of the list"
    for row in rows:
        for speed in (row["images_per_second"], row["training_images_per_second"]):
            assert speed["value"] > 0 and speed["batch_size"] == 2 and speed["date"] == time.strftime("%Y-%m-%d")
    assert main(["models", "cnn", "--device", "cpu"]) == 0
    assert f"{time.strftime('%Y-%m-%d')}, batch 2" in capsys.readouterr().out
    assert main(["models", "cnn", "--measure", *arguments, "--json"]) == 0, "--measure alone is predict"
    (row,) = rows_of(capsys)
    assert row["training_images_per_second"] == rows[0]["training_images_per_second"], "what was measured before stays"
    (folder / "cache" / "speeds.json").write_text("[damaged")
    assert main(["models", "cnn", "--json", "--device", "cpu"]) == 0
    assert rows_of(capsys)[0]["images_per_second"] is None


def test_a_network_of_maps_is_measured_on_masks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = get("unet")
    tiny = replace(entry, size=16, function=lambda **arguments: entry.function(**arguments, filters=2, depth=2))
    monkeypatch.setattr(speeds.applications, "get", lambda name: tiny)
    found = speeds.measure("unet", "training", torch.device("cpu"), 2)
    assert found["value"] > 0 and found["batch_size"] == 2


def test_whole_names_mean_themselves(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "mobilenet", "--json"]) == 0
    assert [row["name"] for row in rows_of(capsys)] == ["mobilenet"]
    assert main(["models", "mobilenet*", "vgg", "--json"]) == 0
    assert len(rows_of(capsys)) == 6
    assert main(["models", "cnn", "--measure=train"]) == 2
    assert "'training'" in capsys.readouterr().err


# -- how a training begins ---------------------------------------------------------------------------------------------------


def small(classes: int) -> convolt.Sequential:
    return convolt.Sequential([
        layers.Input((8, 8, 1)), layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization(name="norm"), layers.Flatten(),
        layers.Dense(classes, activation="softmax", name="out")])


@pytest.mark.parametrize("name", ["w.safetensors", "m.safetensors", "w.weights.h5", "w.h5", "m.h5", "m.keras"])
@pytest.mark.parametrize("classes", [3, 5])
def test_weights_of_any_file_with_and_without_the_head(folder: Path, name: str, classes: int) -> None:
    convolt.utils.set_random_seed(1)
    trained = small(3)
    (trained.save if name.startswith("m") else trained.save_weights)(name)
    convolt.utils.set_random_seed(2)
    model = small(classes)
    head = model.layers[-1].get_weights()
    text = starting.load_start(model, "mine.py:small", name)
    for own, theirs in zip(model.layers[:-1], trained.layers[:-1], strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(own.get_weights(), theirs.get_weights(), strict=True))
    if classes == 3:
        assert text == f"all weights of {name}"
        assert np.array_equal(model.layers[-1].get_weights()[0], trained.layers[-1].get_weights()[0])
    else:
        assert "but for out.weight, out.bias, which begin anew" in text
        assert all(np.array_equal(a, b) for a, b in zip(head, model.layers[-1].get_weights(), strict=True))


def test_files_that_do_not_fit_change_nothing(folder: Path) -> None:
    model = small(3)
    before = model.get_weights()
    save_file({"conv.weight": torch.zeros(4, 1, 3, 3)}, "little.safetensors")
    save_file({"other": torch.zeros(3)}, "other.safetensors")
    for name in ("little.safetensors", "other.safetensors"):
        with pytest.raises(ModelFileError, match="the weights of the backbone"):
            starting.load_start(model, "mine.py:small", name)
        assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    with pytest.raises(ArgumentError, match=r"--weights: got none\.h5, which does not exist"):
        starting.load_start(model, "mine.py:small", "none.h5")


def test_an_architecture_takes_pytorchs_names_for_other_classes(folder: Path) -> None:
    entry = get("resnet18")
    published = entry.make((32, 32, 3), 7)
    own = published.state_dict()
    save_file({str(theirs): own[name].contiguous() for name, theirs in entry.torch.table(published).items() if theirs}, "torch.safetensors")
    model = entry.make((32, 32, 3), 4)
    text = starting.load_start(model, "resnet18", "torch.safetensors")
    assert "but for predictions.weight, predictions.bias" in text
    assert torch.equal(model.state_dict()["conv1_conv.weight"], own["conv1_conv.weight"])


def test_train_with_weights_and_a_frozen_backbone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = RNG.integers(0, 255, (24, 8, 8, 1)).astype(np.uint8)
    np.savez("small.npz", x_train=x, y_train=np.arange(24) % 3, class_names=["a", "b", "c"])
    trained = applications.cnn((8, 8, 1), 5)
    trained.save("start.safetensors")
    arguments = ["train", "cnn", "--data", "small.npz", "--weights", "start.safetensors", "--epochs", "2", "--device", "cpu"]
    assert main([*arguments, "--freeze", "backbone"]) == 0
    printed = capsys.readouterr().out
    assert "weights of start.safetensors, but for dense.weight, dense.bias, which begin anew" in printed
    assert "backbone: 771 of" in printed
    model = convolt.load_model("runs/cnn-small/model.safetensors", device="cpu")
    for own, theirs in zip(model.layers[:-1], trained.layers[:-1], strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(own.get_weights(), theirs.get_weights(), strict=True))
    assert not model.layers[1].trainable
    command = Path("runs/cnn-small/command.txt").read_text()
    assert "--weights start.safetensors" in command and "--freeze backbone" in command
    Path("start.safetensors").unlink()
    assert main(["train", "--resume", "runs/cnn-small"]) == 0, "a resumed run has its own weights"
    capsys.readouterr()
    assert main([*arguments[:4], "--freeze", "dens", "--device", "cpu"]) == 2
    assert "Did you mean 'dense'" in capsys.readouterr().err
    assert main([*arguments[:4], "--freeze", "*", "--device", "cpu"]) == 2
    assert "layers that leave some to learn" in capsys.readouterr().err


def test_pictures_of_different_sizes_get_that_of_the_architecture(folder: Path, capsys: pytest.CaptureFixture[str],
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    from convolt.cli.train import TrainOptions
    from convolt.cli.training import load_source

    for label in ("a", "b"):
        (folder / "pictures" / label).mkdir(parents=True)
        for side in (30, 40):
            Image.fromarray(RNG.integers(0, 255, (side, side, 3)).astype(np.uint8)).save(folder / "pictures" / label / f"{side}.png")
    source = load_source(TrainOptions("resnet18", "pictures"))
    assert source.x_train.shape == (4, 224, 224, 3)
    assert "they get 224×224, that of resnet18" in capsys.readouterr().out
    assert load_source(TrainOptions("resnet18", "pictures", image_size="32")).x_train.shape == (4, 32, 32, 3)
