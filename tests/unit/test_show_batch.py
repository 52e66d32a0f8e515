"""What `show_batch` draws is what the model gets, with its labels; `convolt data show` draws the same from the command line."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import convolt
from convolt import layers
from convolt.cli.main import main
from convolt.data.augment import Augmentation, keys
from convolt.data.augment.words import parse
from convolt.data.batches import epoch_order
from convolt.errors import ArgumentError, DataError
from convolt.training.show import show_batch

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, size=(30, 12, 10, 3), dtype="uint8")
Y = np.arange(30) % 3
NAMES = ["ant", "bee", "cow"]


def test_the_grid_shows_what_the_model_gets() -> None:
    grid = show_batch(X, Y, augment="flip,rotate=20", class_names=NAMES, count=9, epoch=2, seed=5)
    rows = epoch_order(30, 5, 2)[:9]
    wanted = Augmentation(parse("flip,rotate=20")).apply(torch.from_numpy(X), rows, keys(5, 2, rows)).images
    assert np.array_equal(grid.pictures, wanted.numpy())
    assert grid.captions == [NAMES[label] for label in Y[rows]]


def test_it_is_a_picture_that_notebooks_show(tmp_path: Path) -> None:
    grid = show_batch(X, Y, class_names=NAMES, count=4, path=tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes() == grid._repr_png_() == grid.png
    with Image.open(io.BytesIO(grid.png)) as picture:
        assert min(picture.size) > 200 and len(picture.convert("RGB").getcolors(2**20)) > 50
    assert grid.save(tmp_path / "again.png").read_bytes() == grid.png
    assert repr(grid) == "Grid(4 pictures of 12×10×3; save(path) writes the PNG)"


def test_a_long_title_does_not_widen_the_grid() -> None:
    widths = []
    for title in ("short", "flip,rotate=20,shear=0.2,zoom=0.2, translate=0.1,brightness=0.3, contrast=0.3,cutout=0.3: epoch 1 " * 2):
        with Image.open(io.BytesIO(show_batch(X, Y, class_names=NAMES, count=9, title=title).png)) as picture:
            widths.append(picture.width)
    assert widths[1] < 1.1 * widths[0]


@pytest.mark.parametrize("labels", [Y, np.eye(3, dtype="float32")[Y]], ids=["numbers", "one-hot"])
def test_mixed_pictures_have_both_names(labels: Any) -> None:
    grid = show_batch(X, labels, augment="cutmix=1", class_names=NAMES, count=12, seed=1)
    assert any("%" in caption for caption in grid.captions)
    for caption in grid.captions:
        words = caption.split()
        assert {word for word in words if "%" not in word} <= set(NAMES) and len(words) in (1, 4)


def test_a_model_shows_batches_of_datasets_too() -> None:
    model = convolt.Sequential([layers.Input((12, 10, 3)), layers.Flatten(), layers.Dense(3)])
    model.class_names = NAMES
    pairs = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    grid = model.show_batch(pairs, count=6, shuffle=False)
    assert grid.captions == [NAMES[label] for label in Y[:6]]
    loader = torch.utils.data.DataLoader(pairs, 16)
    assert len(model.show_batch(loader, count=6).pictures) == 6, "a loader's batch is larger than the grid"
    assert model.show_batch(X, count=3).captions == []
    several = np.array([[1, 0, 1], [0, 0, 0]], "float32")
    assert model.show_batch(X[:2], several, shuffle=False).captions == ["ant, cow", ""]


def test_what_cannot_be_shown_is_told() -> None:
    with pytest.raises(ArgumentError, match=r"show_batch\(count\): got 50; expected a whole number from 1 to 36"):
        show_batch(X, Y, count=50)
    with pytest.raises(DataError, match=r"show_batch: got samples of shape \(12, 10\); expected pictures"):
        show_batch(X[..., 0], Y)


def test_the_command_draws_the_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("pets.npz", x_train=X, y_train=Y, class_names=np.array(NAMES))
    assert main(["data", "show", "pets.npz", "--augment", "flip,zoom=0.2", "-o", "grid.png", "-n", "9"]) == 0
    assert re.search(r"grid\.png: 9 pictures of 12×10×3, values \S+ to 25\d, of 30 in pets", capsys.readouterr().out)
    with Image.open("grid.png") as picture:
        assert min(picture.size) > 200
    assert main(["data", "show", "pets.npz", "-o", "grid.jpg"]) == 2
    assert "'grid.jpg' is no name of a PNG" in capsys.readouterr().err
    assert main(["data", "show", "pets.npz", "--augment", "flp"]) == 2
    assert "Did you mean 'flip'?" in capsys.readouterr().err


def test_train_takes_words_keeps_them_and_repeats_them(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("pets.npz", x_train=X, y_train=Y, x_test=X, y_test=Y, class_names=np.array(NAMES))
    wanted = ["--augment", "flip,rotate=10", "--sampler", "balanced", "--name", "a"]
    assert main(["train", "cnn", "--data", "pets.npz", "--epochs", "1", "--device", "cpu", *wanted]) == 0
    said = capsys.readouterr().out
    assert "augment     flip,rotate=10" in said and "Augmentation: RandomFlip" in said
    command = (tmp_path / "runs/a/command.txt").read_text()
    assert "--augment flip,rotate=10" in command and "--sampler balanced" in command
    assert '"augment": "flip,rotate=10"' in (tmp_path / "runs/a/config.json").read_text()
    assert main(["train", "cnn", "--data", "pets.npz", "--augment", "flp"]) == 2
    assert main(["train", "cnn", "--data", "pets.npz", "--sampler", "equal"]) == 2
    weights = (tmp_path / "runs/a/model.safetensors").read_bytes()
    assert main(command.replace("--name a", "--name b").split()[1:]) == 0
    assert (tmp_path / "runs/b/model.safetensors").read_bytes() == weights, "the line repeats the run"
