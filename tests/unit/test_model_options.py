"""`--model-option NAME=VALUE`: how values are read, what a file of weights decides, and that a run remembers."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import convolt
from convolt import applications
from convolt.cli import model_options, starting
from convolt.cli.main import main
from convolt.errors import ArgumentError, ModelFileError
from convolt.models import Model

DEFAULTS = {"variant": "keras", "depth": 4, "dropout": 0.1, "preprocess": True, "widths": (64, 256), "anything": None}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVOLT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def typed(line: str) -> int:
    return main(shlex.split(line))


def read(*words: str) -> dict[str, Any]:
    return model_options.typed("net", DEFAULTS, model_options.parse(words))


def test_values_have_the_types_of_the_defaults() -> None:
    found = read("variant=torch", "depth=3", "dropout=0", "preprocess=off", "widths=8, 16", "anything=1e-3")
    assert found == {"variant": "torch", "depth": 3, "dropout": 0.0, "preprocess": False, "widths": (8, 16), "anything": 0.001}
    assert isinstance(found["dropout"], float)
    assert [read(f"anything={text}")["anything"] for text in ("3", "yes", "none", "relu")] == [3, True, None, "relu"]
    assert model_options.parse(["patch-size=4"]) == {"patch_size": "4"}, "written as options of the command line are"
    assert model_options.typed("net", DEFAULTS, model_options.texts(found)) == found, "as a run folder keeps them"


@pytest.mark.parametrize(("words", "message"), [
    (("variant",), r"--model-option: got 'variant'; expected NAME=VALUE"), (("=3",), "NAME=VALUE"), (("depth=",), "NAME=VALUE"),
    (("depth=3", "depth=4"), "got depth=3 and depth=4; expected each name once"),
    (("dept=3",), "got 'dept'; expected an option of net: variant, depth, .*Did you mean 'depth'"),
    (("depth=three",), "--model-option depth: got 'three'; expected a whole number, such as 4"),
    (("dropout=nan",), "expected a finite number, such as 0.1"), (("preprocess=maybe",), "expected true or false"),
    (("widths=8,x",), "expected a whole number, such as 64,256"),
])  # fmt: skip
def test_what_cannot_be_read_is_told(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        read(*words)


def test_options_reach_the_architecture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "summary speednet --input-shape 16,16,3 --model-option widths=4,8,8 --model-option test-time-flip=no"
    assert typed(line) == 0
    printed = capsys.readouterr().out
    assert "widths=4,8,8, test_time_flip=no" in printed and "mirror_batch" not in printed
    assert typed("summary vit_ti16 --input-shape 32,32,3") == 0
    assert "patch_size=4 (the pictures' size)" in capsys.readouterr().out
    assert typed("summary mobilenet --input-shape 32,32,3 --model-option alfa=0.5") == 2
    assert "Did you mean 'alpha'" in capsys.readouterr().err
    assert typed("summary cnn --input-shape 32,32,3 --model-option alpha=0.5") == 2
    assert "nothing: cnn has no options" in capsys.readouterr().err
    assert typed("summary resnet50 --input-shape 32,32,3 --model-option variant=pytorch") == 2
    assert "got 'pytorch'; expected 'keras' or 'torch'" in capsys.readouterr().err


def test_options_of_the_users_own_function(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("net.py").write_text(
        "import convolt\nfrom convolt import layers\n"
        "def make(input_shape, classes, width=4, *, deep=False):\n"
        "    hidden = [layers.Dense(width, name=f'hidden{i}') for i in range(2 if deep else 1)]\n"
        "    return convolt.Sequential([layers.Input(input_shape), layers.Flatten(), *hidden, layers.Dense(classes)])\n")
    assert typed("summary net.py:make --input-shape 8,8,1 --model-option width=7 --model-option deep=true") == 0
    printed = capsys.readouterr().out
    assert "hidden1" in printed and "(None, 7)" in printed
    assert typed("summary net.py:make --input-shape 8,8,1 --model-option wide=7") == 2
    assert "an option of net.py:make: width, deep" in capsys.readouterr().err
    applications.cnn((8, 8, 1), 3).save("whole.safetensors")
    assert typed("plan whole.safetensors --data digits --model-option width=7") == 2
    assert "A saved file has its architecture in it" in capsys.readouterr().err


# -- weights choose ------------------------------------------------------------------------------------------------------------


def published(name: str, path: str, **options: Any) -> Model:
    """Writes random weights under PyTorch's names."""
    convolt.utils.set_random_seed(5)
    model = applications.get(name).make((32, 32, 3), 7, **options)
    own = model.state_dict()
    save_file({str(theirs): own[key].contiguous() for key, theirs in applications.get(name).torch.table(model).items() if theirs}, path)
    return model


def test_a_file_chooses_variant_and_stem(folder: Path) -> None:
    model = published("resnet50", "a.safetensors", variant="torch", stem="large")
    start = starting.begin("resnet50", (32, 32, 3), 4, weights="a.safetensors")
    assert start.options == {"stem": "large", "variant": "torch"}
    assert ("options", "stem=large (the weights need it), variant=torch (the weights need it)") in start.rows
    assert torch.equal(start.model.state_dict()["conv1_conv.weight"], model.state_dict()["conv1_conv.weight"])
    assert start.model.outputs[0].shape == (None, 4)


def test_a_file_chooses_the_variant_and_the_pictures_the_stem(folder: Path) -> None:
    """The weights of both stems of MobileNet v2 have the same shapes."""
    model = published("mobilenet_v2", "a.safetensors", variant="torch")
    start = starting.begin("mobilenet_v2", (32, 32, 3), 4, weights="a.safetensors")
    assert start.options == {"stem": "small", "variant": "torch"}
    assert ("options", "stem=small (the pictures' size), variant=torch (the weights need it)") in start.rows
    assert torch.equal(start.model.state_dict()["Conv1.weight"], model.state_dict()["Conv1.weight"])
    with pytest.raises(ModelFileError, match=r"The file fits --model-option variant=torch\."):
        starting.begin("mobilenet_v2", (32, 32, 3), 4, options=["variant=keras"], weights="a.safetensors")


def test_from_python_the_stem_is_named(folder: Path) -> None:
    published("resnet18", "a.safetensors", stem="large")
    with pytest.raises(ModelFileError, match=r'Published weights are of the large stem: stem="large"\.'):
        applications.ResNet18(input_shape=(32, 32, 3), classes=7, stem="small", weights="a.safetensors")


def test_what_was_said_is_kept_and_the_remedy_is_named(folder: Path) -> None:
    published("resnet18", "a.safetensors", stem="large")
    with pytest.raises(ModelFileError, match=r"conv1_conv\.weight.* The file fits --model-option stem=large\."):
        starting.begin("resnet18", (32, 32, 3), 4, options=["stem=small"], weights="a.safetensors")
    start = starting.begin("resnet18", (32, 32, 3), 4, options=["stem=auto"], weights="a.safetensors")
    assert start.options == {"stem": "large"}, "auto leaves it open"
    save_file({"other": torch.zeros(3)}, "other.safetensors")
    with pytest.raises(ModelFileError, match="the weights of the backbone") as error:
        starting.begin("resnet18", (32, 32, 3), 4, weights="other.safetensors")
    assert "The file fits" not in str(error.value)


def test_a_transfer_from_published_weights_as_users_type_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`convolt train resnet18 --data DIR --weights FILE --freeze backbone`, with torchvision's stem and names."""
    rng = np.random.default_rng(0)
    for label, colour in (("red", 0), ("blue", 2)):
        (folder / "DIR" / label).mkdir(parents=True)
        for i in range(6):
            picture = rng.integers(0, 60, (32, 32, 3))
            picture[8:24, 8:24, colour] += 150
            Image.fromarray(picture.astype(np.uint8)).save(folder / "DIR" / label / f"{i}.png")
    trained = published("resnet18", "FILE.safetensors", stem="large")
    arguments = ["train", "resnet18", "--data", "DIR", "--weights", "FILE.safetensors", "--freeze", "backbone"]
    rest = ["--epochs", "1", "--batch-size", "4", "--device", "cpu", "--precision", "float32"]
    assert main([*arguments, *rest]) == 0
    printed = capsys.readouterr().out
    assert "stem=large (the weights need it)" in printed and "but for predictions.weight, predictions.bias" in printed
    assert "backbone: 1,026 of" in printed
    model = convolt.load_model("runs/resnet18-DIR/model.safetensors", device="cpu")
    own = trained.state_dict()
    different = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, own[name])]
    assert different == ["predictions.weight", "predictions.bias"], "statistics of the frozen stay, too"
    config = json.loads(Path("runs/resnet18-DIR/config.json").read_text())
    assert config["model"]["options"] == {"stem": "large"} and config["options"]["model_option"] == []
    command = Path("runs/resnet18-DIR/command.txt").read_text()
    assert "--model-option stem=large" in command
    Path("FILE.safetensors").unlink()
    assert main(["train", "--resume", "runs/resnet18-DIR"]) == 0, "the run knows its stem"
    capsys.readouterr()
    assert main(["train", "--resume", "runs/resnet18-DIR", "--model-option", "stem=small"]) == 2
    assert "got stem=small; expected stem=large, as the run has it" in capsys.readouterr().err


def test_the_line_that_repeats_a_run_has_the_options(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    np.savez("small.npz", x_train=rng.integers(0, 255, (40, 16, 16, 3)).astype(np.uint8), y_train=np.arange(40) % 4)
    line = "train speednet --data small.npz --epochs 1 --batch-size 20 --augment none --device cpu --precision float32"
    assert main([*line.split(), "--model-option", "widths=4,4,4", "--model-option", "activation=gelu"]) == 0
    assert "widths=4,4,4, activation=gelu" in capsys.readouterr().out
    command = shlex.split(Path("runs/speednet-small/command.txt").read_text())
    assert command.count("--model-option") == 2
    assert main([*command[1:], "--name", "again"]) == 0
    first, second = (convolt.load_model(f"runs/{name}/model.safetensors", device="cpu") for name in ("speednet-small", "again"))
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_rate_is_found_and_a_plan_is_made_with_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    np.savez("small.npz", x_train=rng.integers(0, 255, (40, 16, 16, 3)).astype(np.uint8), y_train=np.arange(40) % 4)
    same = ["speednet", "--data", "small.npz", "--batch-size", "8", "--device", "cpu", "--precision", "float32",
            "--model-option", "widths=4,4,4"]
    assert main(["lr-find", *same, "--steps", "10"]) == 0
    assert "options  " in capsys.readouterr().out
    assert main(["plan", *same, "--fusions", "none"]) == 0
    assert "widths=4,4,4" in capsys.readouterr().out


def test_a_network_of_maps_needs_masks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("small.npz", x_train=np.zeros((20, 32, 32, 3), np.uint8), y_train=np.arange(20) % 2)
    line = "train unet --data small.npz --device cpu --model-option filters=2 --model-option depth=2"
    assert typed(line) == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "got maps of classes, outputs of shape (None, 32, 32, 2); expected one row for each picture, (None, 2)" in message
    assert "learns from masks" in message and "model.fit(pictures, masks)" in message
