"""The run folder and its pictures: files, names, races, and what can be seen on the pictures."""

from __future__ import annotations

import csv
import json
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convolt.callbacks import CallbackList
from convolt.errors import ArgumentError, DataError
from convolt.training import plots
from convolt.training.run import RunFolder, RunHistory

RNG = np.random.default_rng(0)
RED = np.array([0xC6, 0x28, 0x28])


def pixels(path: Path) -> np.ndarray:
    """Returns a PNG as (H, W, 3) numbers, and fails unless it is one of some size with ink on it."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        array = np.asarray(image.convert("RGB")).astype(int)
    assert array.shape[0] > 100
    assert array.shape[1] > 100
    assert array.std() > 1
    return array


def has_color(image: np.ndarray, color: Any, at_least: int = 20) -> bool:
    return int((np.abs(image - np.asarray(color)).sum(axis=-1) < 12).sum()) >= at_least


# -- the folder ----------------------------------------------------------------------------------------------------


def test_folders_are_numbered(tmp_path: Path) -> None:
    names = [RunFolder.create(tmp_path / "runs").path.name for _ in range(3)]
    assert names == ["train", "train-2", "train-3"]
    assert [RunFolder.create(tmp_path / "runs", "mnist").path.name for _ in range(2)] == ["mnist", "mnist-2"]


def test_runs_that_start_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(lambda _: RunFolder.create(tmp_path / "runs").path, range(32)))
    assert len(set(folders)) == 32
    assert {f.name for f in folders} == {"train", *(f"train-{i}" for i in range(2, 33))}


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "-x", "a\\b", "x" * 101, "a\nb"])
def test_names_that_are_no_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="run name"):
        RunFolder.create(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ArgumentError, match="run folder"):
            RunFolder.create(root)


def test_config_and_command(tmp_path: Path) -> None:
    from convolt.layers import Dense

    run = RunFolder.create(tmp_path)
    config = {"batch_size": 32, "layer": Dense(3), "names": ("猫", "dog"), "mean": np.float32(0.5)}
    written = json.loads(run.write_config(config).read_text(encoding="utf-8"))
    assert written["layer"]["class_name"] == "Dense"
    assert written["layer"]["config"]["units"] == 3
    assert (written["batch_size"], written["names"], written["mean"]) == (32, ["猫", "dog"], 0.5)
    arguments = ["convolt", "train", "my model.py:net", "--data", "it's here", "--epochs", "3"]
    assert shlex.split(run.write_command(arguments).read_text(encoding="utf-8")) == arguments
    assert run.model == run.path / "model.safetensors"
    assert not list(run.path.glob("*.part"))


def fit(callback: RunHistory, epochs: list[dict[str, float]], first: int = 0) -> None:
    members = CallbackList(callback, None, {})
    members.on_train_begin()
    for epoch, logs in enumerate(epochs, first):
        members.on_epoch_end(epoch, logs)
    members.on_train_end()


def test_history_is_written_each_epoch_and_drawn_at_the_end(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    callback = run.history
    assert callback is run.history
    callback.on_train_begin()
    callback.on_epoch_end(0, {"loss": 0.5})
    assert (run.path / "history.csv").read_text() == "epoch,loss\n1,0.5\n"
    assert not (run.path / "history.png").exists()
    callback.on_epoch_end(1, {"loss": 0.25, "val_loss": 0.1})
    callback.on_epoch_end(2, {"loss": float("nan")})
    callback.on_train_end()
    with open(run.path / "history.csv", newline="") as file:
        assert list(csv.reader(file)) == [["epoch", "loss", "val_loss"], ["1", "0.5", ""], ["2", "0.25", "0.1"], ["3", "", ""]]
    pixels(run.path / "history.png")


def test_history_of_a_resumed_run_is_that_of_the_whole(tmp_path: Path) -> None:
    epochs = [{"loss": 1 / (i + 1), "val_loss": 2.0} for i in range(4)]
    whole, cut, resumed = (RunFolder.create(tmp_path) for _ in range(3))
    fit(whole.history, epochs)
    fit(cut.history, epochs[:2])
    again = CallbackList(resumed.history, None, {})
    again.on_train_begin()
    again.load_state_dict(json.loads(json.dumps(CallbackList(cut.history, None, {}).state_dict())))
    for epoch in (2, 3):
        again.on_epoch_end(epoch, epochs[epoch])
    assert (resumed.path / "history.csv").read_text() == (whole.path / "history.csv").read_text()


def test_a_run_that_starts_at_a_later_epoch_counts_from_there(tmp_path: Path) -> None:
    fit(RunHistory(tmp_path), [{"loss": 1.0}], first=6)
    assert (tmp_path / "history.csv").read_text() == "epoch,loss\n7,1.0\n"


def test_training_that_ended_before_its_first_epoch_draws_nothing(tmp_path: Path) -> None:
    fit(RunHistory(tmp_path), [])
    assert list(tmp_path.iterdir()) == []


def test_write_history_and_pictures(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    run.write_history({"loss": [1.0, 0.5], "val_loss": [1.0]})
    x, y = RNG.random((9, 8, 8, 3)), np.arange(9) % 3
    run.write_confusion(np.eye(3, dtype=int), ["a", "b", "c"])
    run.write_first_batch(x, y)
    run.write_predictions(x, y, y, np.full(9, 0.5))
    assert sorted(p.name for p in run.path.iterdir()) == [
        "confusion.png", "first_batch.png", "history.csv", "history.png", "predictions.png"]
    for path in run.path.glob("*.png"):
        pixels(path)


# -- curves --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [1, 15, 200])
def test_history_has_curves_of_training_and_validation(epochs: int, tmp_path: Path) -> None:
    falling = list(1 / np.arange(1, epochs + 1))
    history = {"loss": falling, "val_loss": falling[::-1], "accuracy": falling, "learning_rate": [0.1] * epochs}
    plots.plot_history(history, tmp_path / "h.png")
    image = pixels(tmp_path / "h.png")
    assert has_color(image, [0x1F, 0x5F, 0xA8])
    assert has_color(image, [0xE0, 0x70, 0x1A])
    plots.plot_history({"loss": falling, "accuracy": falling}, tmp_path / "without.png")
    assert not has_color(pixels(tmp_path / "without.png"), [0xE0, 0x70, 0x1A])


def test_panels_are_losses_metrics_and_a_learning_rate_that_changes(tmp_path: Path) -> None:
    def width(history: dict[str, list[float]]) -> int:
        plots.plot_history(history, tmp_path / "h.png")
        return pixels(tmp_path / "h.png").shape[1]

    one = width({"loss": [1.0, 2.0], "val_loss": [1.0, 2.0], "learning_rate": [0.1, 0.1]})
    two = width({"loss": [1.0, 2.0], "val_loss": [1.0, 2.0], "learning_rate": [0.1, 0.2]})
    three = width({"loss": [1.0, 2.0], "accuracy": [1.0, 2.0], "learning_rate": [0.1, 0.2]})
    assert one * 1.8 < two < one * 2.2
    assert one * 2.7 < three < one * 3.3


def test_values_that_are_arrays_are_left_out(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    fit(run.history, [{"loss": 1.0, "confusion_matrix": np.eye(3)}] * 2)  # type: ignore[dict-item]
    assert (run.path / "history.csv").read_text() == "epoch,loss\n1,1.0\n2,1.0\n"
    run.write_history({"loss": [0.5], "confusion_matrix": [np.eye(3)]})  # type: ignore[list-item]
    assert (run.path / "history.csv").read_text() == "epoch,loss\n1,0.5\n"
    assert pixels(run.path / "history.png").shape[1] < 800


def test_values_that_are_not_finite_are_told(tmp_path: Path) -> None:
    plots.plot_history({"loss": [1.0, float("nan"), float("inf"), 2.0]}, tmp_path / "h.png")
    assert has_color(pixels(tmp_path / "h.png"), RED)
    with pytest.raises(DataError, match="without values"):
        plots.plot_history({"loss": []}, tmp_path / "h.png")


# -- confusion -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [1, 2, 25, 100])
def test_confusion_of_any_number_of_classes(classes: int, tmp_path: Path) -> None:
    matrix = RNG.integers(0, 5, (classes, classes)) + np.diag(np.full(classes, 100))
    plots.plot_confusion(matrix, [f"a long class name {i}" for i in range(classes)], tmp_path / "c.png")
    image = pixels(tmp_path / "c.png")
    assert image.shape[0] > 25 * classes
    assert max(image.shape) < 4500


def test_confusion_colour_is_the_share_of_the_true_class(tmp_path: Path) -> None:
    darkest, palest = [8, 48, 107], [247, 251, 255]
    plots.plot_confusion([[1000, 0], [0, 10]], None, tmp_path / "rows.png")  # by count the second row would be pale
    image = pixels(tmp_path / "rows.png")
    side = int(2.6 * 130) // 2  # of a cell
    dark = int((np.abs(image - darkest).sum(axis=-1) < 12).sum())
    assert dark > 1.7 * side * side
    plots.plot_confusion([[5, 5], [0, 0]], None, tmp_path / "empty.png")  # a class without samples: a pale row
    image = pixels(tmp_path / "empty.png")
    assert has_color(image, palest, side * side)
    assert not has_color(image, darkest, side * side // 2)


def test_what_is_no_confusion_matrix(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="square"):
        plots.plot_confusion(np.ones((2, 3)), None, tmp_path / "c.png")
    with pytest.raises(DataError, match="a name for each of the 3"):
        plots.plot_confusion(np.eye(3), ["a"], tmp_path / "c.png")


# -- grids of pictures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8, 1), (3, 28, 28), (2, 32, 32, 3), (2, 60, 20, 3), (2, 20, 60, 4), (2, 128, 128, 2)])
@pytest.mark.parametrize("kind", ["uint8", "0-1", "normal"])
def test_pictures_of_any_shape_and_type(shape: tuple[int, ...], kind: str, tmp_path: Path) -> None:
    x = {"uint8": RNG.integers(0, 256, shape).astype("uint8"), "0-1": RNG.random(shape), "normal": RNG.normal(size=shape)}[kind]
    plots.plot_images(x, RNG.integers(0, 10, shape[0]), None, tmp_path / "i.png")
    colored = np.ptp(pixels(tmp_path / "i.png"), axis=-1).max() > 60
    assert colored == (shape[-1] in (3, 4))


def test_a_grid_shows_36_pictures_at_the_most(tmp_path: Path) -> None:
    shapes = []
    for count in (36, 90):
        plots.plot_images(np.full((count, 4, 4, 1), 7, "uint8"), None, None, tmp_path / "i.png")
        shapes.append(pixels(tmp_path / "i.png").shape)
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("channels", "color"), [(3, [255, 0, 0]), (1, [255, 255, 255])])
def test_pictures_keep_their_colours_and_the_array_is_left_alone(channels: int, color: list[int], tmp_path: Path) -> None:
    x = np.zeros((2, 16, 16, channels), "uint8")
    x[0, ..., 0] = 255
    x.setflags(write=False)
    plots.plot_images(x, None, None, tmp_path / "i.png")
    image = pixels(tmp_path / "i.png")
    assert has_color(image, color, 20_000)
    assert has_color(image, [0, 0, 0], 20_000)


def test_wrong_predictions_are_framed_in_red_and_only_they(tmp_path: Path) -> None:
    x, y = np.full((4, 8, 8, 1), 128, "uint8"), np.array([0, 1, 2, 0])
    plots.plot_images(x, y, ["a", "b", "c"], tmp_path / "right.png", y, np.full(4, 0.9))
    assert not has_color(pixels(tmp_path / "right.png"), RED)
    plots.plot_images(x, y, ["a", "b", "c"], tmp_path / "wrong.png", np.array([0, 1, 2, 1]), np.full(4, 0.9))
    assert has_color(pixels(tmp_path / "wrong.png"), RED, 500)


def test_order_is_confidently_wrong_first_and_confidently_right_last() -> None:
    truth, guess = np.array([0, 1, 2, 3, 4, 5]), np.array([0, 9, 2, 9, 4, 9])
    sure = np.array([0.9, 0.5, 0.6, 0.99, 0.7, 0.8])
    assert plots.most_telling(truth, guess, sure).tolist() == [3, 5, 1, 2, 4, 0]
    assert plots.most_telling(None, guess, sure).tolist() == [1, 2, 4, 5, 0, 3]


def test_labels_and_probabilities_in_every_form_give_the_same_picture(tmp_path: Path) -> None:
    x, y, guess = RNG.random((6, 8, 8, 3)), np.array([0, 1, 2, 0, 1, 2]), np.array([0, 2, 2, 0, 1, 1])
    rows = RNG.dirichlet(np.ones(3), 6)
    rows[np.arange(6), guess] += 1
    rows /= rows.sum(axis=1, keepdims=True)
    sure = rows[np.arange(6), guess]
    seen = []
    forms: list[tuple[Any, Any, Any]] = [(y, guess, sure), (np.eye(3)[y], rows, rows)]
    forms.append((y[:, None], guess.tolist(), sure[:, None]))
    for labels, predictions, probabilities in forms:
        plots.plot_images(x, labels, ["a", "b", "c"], tmp_path / "i.png", predictions, probabilities)
        seen.append(pixels(tmp_path / "i.png"))
    assert (seen[0] == seen[1]).all()
    assert (seen[0] == seen[2]).all()


@pytest.mark.parametrize(("share", "text"), [
    (1.0, "100%"), (0.9999, "99.9%"), (0.996, "99.6%"), (0.994, "99%"), (0.5, "50%"), (0.0, "0%"),
])
def test_only_certainty_is_100_per_cent(share: float, text: str) -> None:
    assert plots._percent(share) == text


def test_pictures_that_do_not_fit_their_labels(tmp_path: Path) -> None:
    x = np.zeros((3, 8, 8, 1))
    for arguments, what in (((np.zeros((0, 8, 8, 1)), None, None), "no images"), ((x, [1, 2], None), "labels"),
                            ((np.zeros((3, 8)), None, None), r"plot_images\(x\)"), ((x, [0, 1, 5], ["a", "b"]), "class_names")):
        with pytest.raises(DataError, match=what):
            plots.plot_images(*arguments, tmp_path / "i.png")
    with pytest.raises(DataError, match="probabilities"):
        plots.plot_images(x, [0, 1, 2], None, tmp_path / "i.png", [0, 1, 2], [0.5])


def test_names_with_signs_and_other_scripts(tmp_path: Path) -> None:
    names = ["$x^{", "猫", "_a_", "Ünïcode", "a\nb"]
    plots.plot_confusion(np.eye(5), names, tmp_path / "c.png")
    plots.plot_images(np.zeros((5, 8, 8, 1)), np.arange(5), names, tmp_path / "i.png", np.arange(5)[::-1])
    assert has_color(pixels(tmp_path / "c.png"), [8, 48, 107])
    assert has_color(pixels(tmp_path / "i.png"), RED)


def test_matplotlib_is_imported_at_the_first_picture_and_pyplot_never(tmp_path: Path) -> None:
    code = ("import sys; import convolt.training.run; early = 'matplotlib' in sys.modules;"
            f"from convolt.training.plots import plot_history; plot_history({{'loss': [1.0]}}, {str(tmp_path / 'h.png')!r});"
            "sys.exit(early or 'matplotlib.pyplot' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
