"""The programs in `examples/` on real pictures: few of them in the quick tests, all of them in the slow ones."""

import contextlib
import io
import re
import runpy
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from convolt.data import files

EXAMPLES = Path(__file__).parents[2] / "examples"
PER_CLASS = {"train": 30, "test": 10}


def run(folder: Path, example: str, *arguments: str, data: Path | None = None) -> str:
    """Runs an example in `folder`, in this process, and returns what it printed; `test_readme.py` runs some of them as users do."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        patch.setattr(sys, "argv", [example, *arguments])
        if data:
            patch.setenv("CONVOLT_DATA", str(data))
            patch.setenv("CONVOLT_CACHE", str(folder / "cache"))
        runpy.run_path(str(EXAMPLES / example), run_name="__main__")
    return printed.getvalue()


def accuracies(output: str) -> list[float]:
    """Returns the accuracies that the line "test accuracy …" of an example gives."""
    return [float(number) for number in re.findall(r"test accuracy:? (\d\.\d{4})", output)]


def needs(*names: str) -> Path:
    """Returns the first of these files that is in `CONVOLT_DATA`; skips the test if there is none."""
    folder = files.data_folder()
    found = next((folder / name for name in names if folder is not None and (folder / name).exists()), None)
    if found is None:
        pytest.skip(f"CONVOLT_DATA holds none of {', '.join(names)}")
    return found


@pytest.fixture
def few_pictures(tmp_path: Path) -> Path:
    """A data folder with the first pictures of each class of CIFAR-10."""
    target = tmp_path / "data"
    with tarfile.open(needs("cifar10-jpeg.tar.xz"), "r|xz") as archive:
        for member in archive:
            part, _, name = member.name.partition("/")
            if member.isfile() and int(Path(name).stem) < PER_CLASS[part]:
                path = target / "cifar10" / part / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.extractfile(member).read())
    return target


def test_subclassed_cnn_on_mnist(tmp_path: Path) -> None:
    needs("mnist.npz")
    output = run(tmp_path, "subclassed_cnn.py", "--data", "mnist", "--epochs", "2", "--samples", "1500")
    assert "Epoch 2/2" in output
    assert "(None, 26, 26, 32)" in output and "Parameters: 121,930" in output
    assert "labels: [7 2 1 0 4 1 4 9 5 9]" in output
    assert accuracies(output)[0] >= 0.7


@pytest.mark.slow
def test_subclassed_cnn_on_cifar10(tmp_path: Path, few_pictures: Path) -> None:
    output = run(tmp_path, "subclassed_cnn.py", "--data", "cifar10", "--epochs", "8", data=few_pictures)
    assert "(None, 30, 30, 32)" in output and "Parameters: 167,562" in output
    first, last = (float(x) for x in re.findall(r"Epoch [18]/8 .*?  loss (\S+)", output))
    assert last < first - 0.1, "300 pictures are learned in part"
    assert 0.1 <= accuracies(output)[0] <= 1


def test_save_and_reload(tmp_path: Path) -> None:
    needs("mnist.npz")
    output = run(tmp_path, "save_and_reload.py", "--epochs", "2", "--samples", "800")
    sequential, functional = accuracies(output)
    assert sequential >= 0.5
    assert sequential == functional, "both are the same network with the same seed"
    assert output.count("predictions after reloading equal") == 2


def test_batch_norm_blocks(tmp_path: Path) -> None:
    needs("mnist.npz")
    output = run(tmp_path, "batch_norm_blocks.py", "--epochs", "2", "--samples", "320", "--plot", "curves.png")
    assert re.search(r"Epoch 2/2 .* accuracy \S+  val_loss \S+  val_accuracy ", output)
    assert len(accuracies(output)) == 1
    with Image.open(tmp_path / "curves.png") as picture:
        assert min(picture.size) > 200
        assert len(picture.convert("RGB").getcolors(2**20)) > 10, "something is drawn"


def test_lstm_mnist_rows(tmp_path: Path) -> None:
    needs("mnist.npz")
    output = run(tmp_path, "lstm_mnist_rows.py", "--epochs", "3", "--samples", "1500", "--units", "48")
    assert "lstm (LSTM)" in output and "(None, 48)" in output
    assert accuracies(output)[0] >= 0.4


def test_character_sequences(tmp_path: Path) -> None:
    output = run(tmp_path, "character_sequences.py", "--epochs", "4", "--samples", "3600")
    assert "ooo sssssss ttttttt ssssssss ttttt ooo" in output, "six, sixteen and sixty are told apart by what follows"
    assert accuracies(output)[0] >= 0.97


def test_vision_transformer_learns_few_pictures(tmp_path: Path, few_pictures: Path) -> None:
    options = ("--epochs", "12", "--samples", "300", "--depth", "2", "--width", "32", "--patch", "8")
    output = run(tmp_path, "vit_cifar10.py", *options, data=few_pictures)
    assert "(None, 17, 32)" in output, "16 patches and the class token"
    first, last = (float(x) for x in re.findall(r"Epoch (?:1|12)/12 .*?  accuracy (\S+)", output))
    assert last > first + 0.1 and last > 0.25, "300 pictures are learned in part"
    assert 0.0 <= accuracies(output)[0] <= 1


def test_two_headed_cnn(tmp_path: Path) -> None:
    needs("mnist.npz")
    output = run(tmp_path, "two_headed_cnn.py", "--epochs", "3", "--samples", "1500")
    assert re.search(r"Epoch 3/3 .* digit_loss \S+  thickness_loss \S+  digit_accuracy \S+  thickness_mae ", output)
    assert accuracies(output)[0] >= 0.6
    error, spread = (float(x) for x in re.search(r"thickness: (\S+) pixels, where the pictures differ by (\S+)", output).groups())
    assert error < spread


def test_transfer_learning_on_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    output = run(tmp_path, "transfer_learning.py", "--epochs", "6")
    assert "small (Sequential, frozen)" in output and "trainable 645" in output
    assert len(accuracies(output)) == 3 and min(accuracies(output)) > 0.4


@pytest.mark.slow
def test_transfer_learning_beats_learning_from_scratch(tmp_path: Path) -> None:
    needs("mnist.npz")
    output = run(tmp_path, "transfer_learning.py", "--data", "mnist", "--source-samples", "1500", "--samples", "60", "--epochs", "4")
    scratch, _, tuned = accuracies(output)
    assert tuned > scratch + 0.05


def draw_pictures(folder: Path, part: str, count: int, seed: int) -> None:
    """Draws discs and bars in random colours and places, as JPEGs of random sizes."""
    random = np.random.default_rng(seed)
    for kind in ("bars", "discs"):
        (folder / part / kind).mkdir(parents=True)
        for number in range(count):
            width, height = (int(n) for n in random.integers(60, 120, 2))
            picture = Image.new("RGB", (width, height), tuple(int(n) for n in random.integers(0, 90, 3)))
            x, y, r = int(random.integers(20, width - 20)), int(random.integers(20, height - 20)), int(random.integers(12, 20))
            colour, draw = tuple(int(n) for n in random.integers(140, 256, 3)), ImageDraw.Draw(picture)
            for _ in range(4 if kind == "bars" else 1):
                draw.rectangle([0, y, width, y + 5], colour) if kind == "bars" else draw.ellipse([x - r, y - r, x + r, y + r], colour)
                y = (y + 23) % height
            picture.save(folder / part / kind / f"{number:03}.jpg", quality=90)


def test_image_folders_on_drawn_pictures(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", "train", 48, 0)
    draw_pictures(tmp_path / "pictures", "test", 16, 1)
    options = ("--epochs", "12", "--size", "64", "--batch", "16", "--show", "grid.png")
    output = run(tmp_path, "image_folders.py", "--data", "pictures", *options)
    found = re.search(r"test accuracy (\S+), precision (\S+), recall (\S+)", output)
    assert found is not None and all(float(value) >= 0.8 for value in found.groups())
    with Image.open(tmp_path / "grid.png") as grid:
        assert min(grid.size) > 200


def test_image_folders_by_default_are_224_pixels_wide(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", "train", 8, 0)
    draw_pictures(tmp_path / "pictures", "test", 4, 1)
    output = run(tmp_path, "image_folders.py", "--data", "pictures", "--epochs", "1", "--batch", "8")
    assert "(None, 224, 224, 16)" in output
    assert len(accuracies(output)) == 1


@pytest.mark.slow
def test_image_folders_on_cifar10(tmp_path: Path, few_pictures: Path) -> None:
    output = run(tmp_path, "image_folders.py", "--data", str(few_pictures / "cifar10"), "--epochs", "2", "--size", "32")
    assert "10 classes" in output and len(accuracies(output)) == 1


@pytest.mark.slow
def test_image_folders_on_cifar10_enlarged_to_224_pixels(tmp_path: Path, few_pictures: Path) -> None:
    output = run(tmp_path, "image_folders.py", "--data", str(few_pictures / "cifar10"), "--epochs", "6", "--batch", "16")
    assert "(None, 224, 224, 16)" in output
    assert "data resident" in output and re.search(r"Augmentation: GeneratorGeometry\(.*shear_range=0.2", output)
    losses = [float(x) for x in re.findall(r"Epoch \d/6 .*?  loss (\S+)", output)]
    assert len(losses) == 6 and losses[-1] < losses[0] - 0.05, "300 pictures are learned in part"
    assert accuracies(output)[0] > 0.12, "ten classes alike would be 0.1"


@pytest.mark.slow
def test_subclassed_cnn_on_all_of_mnist(tmp_path: Path) -> None:
    needs("mnist.npz")
    assert accuracies(run(tmp_path, "subclassed_cnn.py", "--data", "mnist", "--epochs", "3"))[0] >= 0.98


@pytest.mark.slow
def test_subclassed_cnn_on_all_of_cifar10(tmp_path: Path) -> None:
    needs("cifar10-jpeg.tar.xz", "cifar-10-binary.tar.gz", "cifar10")
    assert accuracies(run(tmp_path, "subclassed_cnn.py", "--data", "cifar10", "--epochs", "5"))[0] >= 0.60


@pytest.mark.slow
def test_save_and_reload_on_all_of_mnist(tmp_path: Path) -> None:
    needs("mnist.npz")
    assert min(accuracies(run(tmp_path, "save_and_reload.py", "--epochs", "3"))) >= 0.98


@pytest.mark.slow
def test_batch_norm_blocks_on_all_of_mnist(tmp_path: Path) -> None:
    needs("mnist.npz")
    assert accuracies(run(tmp_path, "batch_norm_blocks.py", "--epochs", "3"))[0] >= 0.98


@pytest.mark.slow
def test_lstm_on_rows_of_all_of_mnist(tmp_path: Path) -> None:
    needs("mnist.npz")
    assert accuracies(run(tmp_path, "lstm_mnist_rows.py", "--epochs", "5"))[0] >= 0.975


@pytest.mark.slow
def test_two_headed_cnn_on_all_of_mnist(tmp_path: Path) -> None:
    needs("mnist.npz")
    output = run(tmp_path, "two_headed_cnn.py", "--epochs", "3")
    assert accuracies(output)[0] >= 0.98
    assert float(re.search(r"thickness: (\S+) pixels", output)[1]) < 0.05


@pytest.mark.slow
def test_vision_transformer_by_default_is_clearly_above_chance(tmp_path: Path) -> None:
    needs("cifar10-jpeg.tar.xz", "cifar-10-binary.tar.gz", "cifar10")
    assert accuracies(run(tmp_path, "vit_cifar10.py"))[0] >= 0.35
