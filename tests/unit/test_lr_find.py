"""`lr_find`: it leaves no trace, sees what there is to see, and says so."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import convolt
from convolt import layers, optimizers
from convolt.cli.main import main
from convolt.errors import ArgumentError
from convolt.training.lr_find import judge

RNG = np.random.default_rng(0)
X = RNG.random((96, 6, 6, 1)).astype("float32")
Y = (X.mean((1, 2, 3)) > 0.5).astype("int64")


def net(optimizer: Any = "adam", **options: Any) -> convolt.Sequential:
    convolt.utils.set_random_seed(0)
    model = convolt.Sequential([layers.Input((6, 6, 1)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(), layers.Flatten(),
                                layers.Dropout(0.2), layers.Dense(2, activation="softmax")])
    model.compile(optimizer, "sparse_categorical_crossentropy", ["accuracy"], device="cpu", **options)
    return model


MAKERS = {
    "adam": lambda: "adam", "sgd": lambda: optimizers.SGD(0.1, momentum=0.9), "schedule": lambda: optimizers.Adam("cosine"),
    "averages": lambda: optimizers.AdamW(0.01, use_ema=True, gradient_accumulation_steps=2), "swa": lambda: "swa", "sam": lambda: "sam",
    "lookahead": lambda: optimizers.Lookahead("muon"), "torch": lambda: torch.optim.NAdam,
}  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_a_search_leaves_no_trace(name: str) -> None:
    """Trained before, searched, trained after: the same bits, history, random numbers and plan as without the search."""
    results = []
    for search in (False, True):
        model = net(MAKERS[name]())
        convolt.utils.set_random_seed(1)
        model.fit(X, Y, epochs=1, verbose=0)
        before = model.plan
        if search:
            model.lr_find(X, Y, steps=20, batch_size=16)
        assert model.plan is before and not model.training and all(p.grad is None for p in model.parameters())
        assert model.optimizer.steps == 3
        drawn = torch.rand(3).tolist(), np.random.rand(3).tolist()
        history = model.fit(X, Y, epochs=2, verbose=0).history
        results.append((drawn, history, model.get_weights(), model.optimizer.state_dict()))
    (drawn, history, weights, state), (drawn_2, history_2, weights_2, state_2) = results
    assert drawn == drawn_2 and history == history_2 and state.keys() == state_2.keys()
    assert all(np.array_equal(a, b) for a, b in zip(weights, weights_2, strict=True))
    assert all(torch.equal(torch.as_tensor(state[key]), torch.as_tensor(state_2[key])) for key in state)


def test_a_search_before_the_first_fit_leaves_no_trace() -> None:
    plain, searched = net(), net()
    convolt.utils.set_random_seed(2)
    plain.fit(X, Y, verbose=0)
    convolt.utils.set_random_seed(2)
    searched.lr_find(X, Y, steps=12)
    searched.fit(X, Y, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(plain.get_weights(), searched.get_weights(), strict=True))


def test_an_error_in_the_search_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    model.fit(X, Y, verbose=0)
    before, schedule, rng = model.get_weights(), model.optimizer.schedule, torch.get_rng_state()
    from convolt.training import lr_find

    monkeypatch.setattr(lr_find.math, "isfinite", lambda value: (_ for _ in ()).throw(RuntimeError("now")) if value != 10.0 else True)
    with pytest.raises(RuntimeError, match="now"):
        model.lr_find(X, Y, steps=12)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert model.optimizer.schedule is schedule and torch.equal(rng, torch.get_rng_state())


def test_rates_grow_by_equal_factors_and_losses_are_those_of_the_batches() -> None:
    model = net("sgd")
    found = model.lr_find(X, Y, batch_size=96, start=1e-6, end=1e-5, steps=11)
    np.testing.assert_allclose(found.rates, np.geomspace(1e-6, 1e-5, 11))
    assert not found.exploded and found.losses.shape == found.smoothed.shape == (11,)
    model.train()
    expected = net("sgd").train_on_batch(X, Y)[0]
    assert found.losses[0] == pytest.approx(expected, rel=0.3), "but for the mask of dropout"


def test_it_ends_when_the_loss_explodes() -> None:
    found = net("sgd").lr_find(X, Y, batch_size=32, end=1e6)
    assert found.exploded and len(found.rates) < 100 and found.rates[-1] > 1
    assert "beyond, the loss explodes" in str(found)


def test_the_suggestion_lies_between_the_begin_of_the_fall_and_the_lowest() -> None:
    rates = np.geomspace(1e-6, 1.0, 61)
    losses = np.interp(np.log10(rates), [-6, -4, -2, -1, 0], [2.0, 2.0, 1.0, 3.0, 9.0]) + 0.005 * RNG.standard_normal(61)
    found = judge(rates.tolist(), losses.tolist(), True)
    assert found.suggestion is not None and 5e-4 < found.suggestion < 2e-3
    assert found.lowest == pytest.approx(1e-2, rel=0.5) and 1e-4 < (found.steepest or 0) < 1e-2


def test_a_loss_that_never_falls_gives_no_suggestion(tmp_path: Path) -> None:
    rates = np.geomspace(1e-6, 1.0, 30)
    found = judge(rates.tolist(), (1 + 0.01 * np.arange(30)).tolist(), False)
    assert found.suggestion is found.steepest is found.lowest is None
    assert "No suggestion" in found.describe()
    found.plot(tmp_path / "flat.png")
    losses = [1.0, 0.9, float("nan")]
    assert np.isfinite(judge([1e-3, 1e-2, 1e-1], losses, True).smoothed).all()


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    net().lr_find(X, Y, batch_size=16, steps=40).plot(tmp_path / "rates.png")
    with Image.open(tmp_path / "rates.png") as picture:
        assert min(picture.size) > 300 and len(picture.convert("RGB").getcolors(2**20)) > 10


def test_what_cannot_be_searched_is_told() -> None:
    for arguments, message in (({"start": 1.0, "end": 0.1}, "0 < start < end"), ({"steps": 3}, "a whole number from 10"),
                               ({"end": float("inf")}, "0 < start < end")):
        with pytest.raises(ArgumentError, match=message):
            net().lr_find(X, Y, **arguments)
    with pytest.raises(ArgumentError, match="would be used up"):
        net().lr_find((X[:4], Y[:4]) for _ in range(5))


def test_a_loader_is_searched_too() -> None:
    data = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    found = net().lr_find(torch.utils.data.DataLoader(data, batch_size=16, shuffle=True), steps=15)
    assert len(found.rates) == 15


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVOLT_CACHE", str(tmp_path / "cache"))
    np.savez("small.npz", x_train=(X * 255).astype("uint8"), y_train=Y, class_names=["dark", "bright"])
    arguments = ["lr-find", "cnn", "--data", "small.npz", "--batch-size", "16", "--steps", "40", "--device", "cpu"]
    assert main([*arguments, "--plot", "rates.png"]) == 0
    printed = capsys.readouterr().out
    assert "learning rate" in printed and (tmp_path / "rates.png").is_file()
    assert main([*arguments, "--json", "--freeze", "backbone"]) == 0
    assert '"suggestion"' in capsys.readouterr().out
