"""The command line from end to end on scikit-learn's handwritten digits: train, evaluate, predict, summary."""

import csv
import json
import shlex
from pathlib import Path

import pytest

import convolt
from convolt import layers
from convolt.cli.main import main

pytest.importorskip("sklearn")
TABLES = {"config.json", "command.txt", "history.csv", "model.safetensors"}
PICTURES = {"history.png", "confusion.png", "first_batch.png", "predictions.png"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `convolt train cnn --data digits --epochs 8` has run."""
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "cnn", "--data", "digits", "--epochs", "8", "--device", "cpu"]) == 0
    return folder


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run folder, with the folder above as the current one."""
    monkeypatch.chdir(folder)
    return Path("runs/cnn-digits")


def test_the_run_folder_holds_everything(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == TABLES | PICTURES | {"checkpoints"}
    for picture in run.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    with open(run / "history.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == [str(i) for i in range(1, 9)]
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= set(rows[0])
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert config["status"] == "finished"
    assert config["options"]["batch_size"] == 128
    assert config["plan"]["device"] == "cpu"
    assert config["plan"]["precision"] == "float32"
    rate = config["optimizer"]["config"]["learning_rate"]
    assert (rate["class_name"], rate["config"]["initial_learning_rate"]) == ("CosineDecay", 0.003)
    assert config["data"]["class_names"] == list("0123456789")
    assert config["result"]["accuracy"] == pytest.approx(float(rows[-1]["val_accuracy"]), abs=1e-6)


def test_digits_are_recognized_at_97_per_cent(run: Path) -> None:
    assert json.loads((run / "config.json").read_text(encoding="utf-8"))["result"]["accuracy"] >= 0.97


def test_the_written_line_repeats_the_run_bit_by_bit(run: Path) -> None:
    line = shlex.split((run / "command.txt").read_text(encoding="utf-8"))
    assert line[0] == "convolt"
    assert main([*line[1:], "--name", "again"]) == 0
    assert (run.parent / "again" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_saved_model_trains_one_picture_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line as users type it: `convolt train your_model.h5 --gpustat=on --batch_size=1 --num_epochs=10`."""
    monkeypatch.chdir(tmp_path)
    convolt.Sequential([layers.Input((8, 8, 1)), layers.Rescaling(1 / 16), layers.Flatten(),
                        layers.Dense(10, activation="softmax")]).save("your_model.h5")
    assert main(["train", "your_model.h5", "--gpustat=on", "--batch_size=1", "--num_epochs=10"]) == 0
    folder = Path("runs/your_model-digits")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (config["options"]["batch_size"], config["options"]["epochs"], config["options"]["data"]) == (1, 10, "digits")
    with open(folder / "history.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 10
    assert config["result"]["accuracy"] > 0.93
    assert config["gpustat"]["ram_max"] > 0 and (folder / "gpustat.csv").stat().st_size > 0


def test_another_seed_gives_other_weights(run: Path) -> None:
    assert main(["train", "cnn", "--data", "digits", "--epochs", "1", "--device", "cpu", "--seed", "1", "--name", "other"]) == 0
    assert (run.parent / "other" / "model.safetensors").read_bytes() != (run / "model.safetensors").read_bytes()


def test_evaluate_says_what_training_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads((run / "config.json").read_text(encoding="utf-8"))["result"]
    assert main(["evaluate", str(run / "model.safetensors"), "--data", "digits", "--device", "cpu", "--out", "plots"]) == 0
    shown = capsys.readouterr().out
    assert f"accuracy {100 * result['accuracy']:.2f}%, loss {result['loss']:.4f} on the test set (359 samples)" in shown
    assert {path.name for path in Path("plots").iterdir()} == {"confusion.png", "predictions.png"}


def test_predict_recognizes_pictures_of_digits(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    from convolt.datasets import digits

    (_, _), (x_test, y_test) = digits.load_data()
    Path("pictures").mkdir()
    for i in range(20):
        Image.fromarray(x_test[i].reshape(8, 8)).save(f"pictures/{i:02d}-is-{y_test[i]}.png")
    assert main(["predict", str(run / "model.safetensors"), "pictures", "--top", "2", "--out", "table.csv", "--device", "cpu"]) == 0
    assert "table.csv (20 rows)" in capsys.readouterr().out
    with open("table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    right = sum(row["class"] == Path(row["input"]).stem[-1] for row in rows)
    assert right >= 18
    assert all(float(row["probability"]) >= float(row["probability_2"]) for row in rows)


def test_summary_of_the_written_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", str(run / "model.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert "(None, 8, 8, 32)" in shown
    assert "Classes: 10: 0, 1, 2" in shown


def test_training_goes_on_from_the_written_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = json.loads((run / "config.json").read_text(encoding="utf-8"))["result"]["loss"]
    assert main(["train", str(run / "model.safetensors"), "--data", "digits", "--epochs", "2", "--device", "cpu"]) == 0
    more = Path("runs/cnn-digits-digits/config.json")
    assert json.loads(more.read_text(encoding="utf-8"))["result"]["loss"] < first
