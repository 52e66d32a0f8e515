"""An architecture's recipe on the command line: defaults, what overrides them, and the line that repeats a run."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from convolt import applications, devices, losses, optimizers
from convolt.applications.speednet import RECIPE
from convolt.cli.defaults import recipe_of, with_recipe
from convolt.cli.main import main
from convolt.cli.optimizing import make_optimizer
from convolt.cli.options import Precision
from convolt.cli.recipe import choose
from convolt.cli.train import TrainOptions
from convolt.data.sources import open_source
from convolt.errors import ArgumentError

GIVEN = {"model": "speednet", "data": "cifar10", "device": "cpu", "optimizer": "adam", "learning_rate": None, "augment": None,
         "precision": Precision.AUTO, "epochs": 5, "batch_size": 128, "schedule": "cosine", "label_smoothing": 0.0}


def options(said: dict[str, object]) -> TrainOptions:
    return TrainOptions(**with_recipe({**GIVEN, **said}, set(said)))  # type: ignore[arg-type]


def test_the_recipe_takes_the_place_of_what_is_not_said() -> None:
    found = options({})
    assert (found.epochs, found.batch_size, found.optimizer, found.learning_rate) == (
        RECIPE.epochs, RECIPE.batch_size, RECIPE.optimizer, RECIPE.learning_rate)
    assert (found.schedule, found.label_smoothing, found.augment) == (RECIPE.schedule, RECIPE.label_smoothing, RECIPE.augment)
    mean = make_optimizer(found)
    assert isinstance(mean, optimizers.SWA) and mean.every == 1, "the mean over the weights of the last half epoch"
    assert mean.start == 1 - RECIPE.average_epochs / RECIPE.epochs
    optimizer = mean.innermost
    assert optimizer.exclude_layers == ["predictions"] and optimizer.momentum == RECIPE.optimizer_arguments["momentum"]


def test_what_is_said_holds() -> None:
    found = options({"epochs": 5, "augment": "none", "label_smoothing": 0.0, "optimizer": "adam"})
    assert (found.epochs, found.augment, found.label_smoothing) == (5, None, 0.0), "also where it is the usual default"
    assert found.optimizer == "adam" and found.learning_rate is None, "a rate belongs to its optimizer"
    assert make_optimizer(found).beta_1 == 0.9
    assert make_optimizer(options({"epochs": 1})).start == 0.5


def test_a_precision_without_units_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "why_not_bfloat16", lambda device: None)
    assert options({}).precision is Precision.BFLOAT16
    monkeypatch.setattr(devices, "why_not_bfloat16", lambda device: "no units")
    assert options({}).precision is Precision.AUTO


@pytest.mark.parametrize("said", [{}, {"epochs": 5}, {"augment": "none"}, {"optimizer": "adam"}, {"label_smoothing": 0.0}])
def test_the_line_that_repeats_a_run_says_all_that_the_recipe_said(said: dict[str, object]) -> None:
    found = options(said)
    words = found.as_command()[5:]
    repeated = {name[2:].replace("-", "_"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    for name in RECIPE.options():
        value = getattr(found, name)
        if value is None:
            assert repeated.get(name) in (None, "none")
        else:
            assert repeated[name] == str(value)
    kinds = {"epochs": int, "batch_size": int, "learning_rate": float, "label_smoothing": float, "precision": Precision, "seed": int}
    again = {name: kinds.get(name, str)(value) for name, value in repeated.items()}
    assert options(again) == found


def test_other_models_have_no_recipe() -> None:
    assert recipe_of("cnn") is None and recipe_of("net.py:make") is None and recipe_of("model.safetensors") is None
    assert with_recipe({**GIVEN, "model": "cnn"}, set())["epochs"] == 5
    assert [name for name in applications.names() if applications.get(name).recipe] == ["speednet"]


def test_labels_are_smoothed_where_there_are_classes(tmp_path: Path) -> None:
    x, y = np.zeros((20, 16, 16, 3), "uint8"), np.arange(20) % 4
    np.savez(tmp_path / "classes.npz", x_train=x, y_train=y)
    np.savez(tmp_path / "numbers.npz", x_train=x, y_train=np.linspace(0, 1, 20, dtype="float32"))
    source = open_source(str(tmp_path / "classes.npz"))
    model = applications.get("speednet").make((16, 16, 3), 4, widths=(4, 4, 4))
    found = choose(model, source, "auto", [], 0.2)
    assert isinstance(found.loss, losses.Crossentropy) and found.loss.label_smoothing == 0.2 and not found.loss.from_logits
    assert found.loss_text == "crossentropy, labels smoothed by 0.2"
    with pytest.raises(ArgumentError, match="a crossentropy"):
        choose(model, source, "sparse_categorical_crossentropy", [], 0.2)
    numbers = open_source(str(tmp_path / "numbers.npz"))
    with pytest.raises(ArgumentError, match="classes"):
        choose(applications.get("speednet").make((16, 16, 3), 1, widths=(4, 4, 4)), numbers, "auto", [], 0.2)


def test_the_command_shows_the_recipe_and_repeats_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    np.savez("small.npz", x_train=generator.integers(0, 255, (60, 32, 32, 3), dtype="uint8"), y_train=generator.integers(0, 3, 60))
    assert main(["train", "speednet", "--data", "small.npz", "--epochs", "1", "--batch-size", "30", "--device", "cpu", "--precision",
                 "float32"]) == 0
    shown = capsys.readouterr().out
    assert "that of speednet, but for epochs, batch size, precision" in " ".join(shown.split())
    assert "weights averaged at the end" in shown and "labels smoothed by 0.2" in shown and "alternate_flip,crop=32:2" in shown
    command = shlex.split(Path("runs/speednet-small/command.txt").read_text())
    for word in ("muon", "0.24", "linear", "alternate_flip,crop=32:2", "0.2"):
        assert word in command
