"""The first step runs at once, layer by layer; the plan is made on the second batch, and a resumed training does the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import convolt
from convolt import callbacks, layers
from convolt.data.batches import Batch
from convolt.training import planning

RNG = np.random.default_rng(0)
X = RNG.random((48, 12, 12, 1)).astype("float32")
Y = np.arange(48) % 3


def net(**options: Any) -> convolt.Sequential:
    convolt.utils.set_random_seed(0)
    model = convolt.Sequential([
        layers.Input((12, 12, 1)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(), layers.MaxPooling2D(),
        layers.Dropout(0.2, seed=3), layers.Flatten(), layers.Dense(3, activation="softmax"),
    ])  # fmt: skip
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"], device="cpu", **{"fusions": "bn+relu"} | options)
    return model


class Forms(callbacks.Callback):
    """Notes after each step what ran in the model's place; ends the process's training after `kill` of them."""

    def __init__(self, kill: int | None = None) -> None:
        self.kill, self.seen, self.plans = kill, [], []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen.append(self.model.trainer._step.module)
        self.plans.append(self.model.plan.provisional)
        if len(self.seen) == self.kill:
            raise KeyError("killed")


def test_the_plan_is_made_before_the_second_step(capsys: pytest.CaptureFixture[str]) -> None:
    model, forms = net(), Forms()
    model.fit(X, Y, batch_size=16, epochs=2, verbose=2, callbacks=[forms])
    assert forms.seen[0] is model and all(isinstance(form, torch.fx.GraphModule) for form in forms.seen[1:])
    assert forms.plans == [True, *[False] * 5] and model.plan.fusions == {"bn+relu": 1}
    assert capsys.readouterr().out.count("Plan: ") == 1
    more = Forms()
    model.fit(X, Y, batch_size=16, epochs=1, verbose=0, callbacks=[more])
    assert not any(more.plans)  # what is known needs no first step


def test_one_step_alone_needs_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "make_plan", lambda *a, **k: pytest.fail("nothing is left to plan for"))
    model = net()
    model.fit(X, Y, batch_size=48, epochs=1, verbose=0)
    assert model.plan.provisional and "layer by layer" in model.plan.describe()
    assert convolt.compiler.Plan.from_json(model.plan.to_json()).provisional


def test_what_leaves_nothing_to_find_is_planned_at_once() -> None:
    model, forms = net(precision="float32"), Forms()
    model.fit(X, Y, batch_size=16, epochs=1, verbose=0, callbacks=[forms])
    assert not any(forms.plans) and forms.seen[0] is not model


@pytest.mark.parametrize("kill", [1, 2, 4])
def test_a_training_killed_around_its_plan_ends_as_if_it_had_not_been(kill: int, tmp_path: Path) -> None:
    whole = net()
    expected = whole.fit(X, Y, batch_size=16, epochs=2, verbose=0, seed=1).history
    options: dict[str, Any] = {"batch_size": 16, "epochs": 2, "verbose": 0, "seed": 1}
    with pytest.raises(KeyError, match="killed"):
        net().fit(X, Y, callbacks=[Forms(kill)], checkpoint=convolt.Checkpoint(tmp_path, every_steps=1), **options)
    model, forms = net(), Forms()
    history = model.fit(X, Y, callbacks=[forms], checkpoint=convolt.Checkpoint(tmp_path, every_steps=1), **options).history
    assert forms.plans[0] is (kill == 1)  # killed before the first step was saved: it is taken anew
    assert history == expected and not model.plan.provisional
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), whole.get_weights(), strict=True))


class Batches:
    """What gives batches by itself."""

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return iter([(X[i : i + 16], Y[i : i + 16]) for i in range(0, 48, 16)])


def test_streams_are_measured_too() -> None:
    model = net(fusions="auto")
    model.fit(Batches(), epochs=2, verbose=0)
    assert model.plan.residency == "streamed" and {"layers", "bn+relu"} <= {row.name for row in model.plan.rows}


def test_a_candidate_is_checked_on_a_part_of_the_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONVOLT_CACHE", str(tmp_path))
    model = net()
    sizes: dict[torch.dtype, set[int]] = {}

    def look(module: Any, inputs: Any) -> None:
        sizes.setdefault(inputs[0].dtype, set()).add(len(inputs[0]))

    model.layers[0].register_forward_pre_hook(look)
    monkeypatch.setattr(planning, "CHECKED_SAMPLES", 5)
    monkeypatch.setattr("convolt.compiler.search.SEARCH_SECONDS", 0.0)
    monkeypatch.setattr("convolt.compiler.search.MOST_OF_RUN", 1e9)
    model.trainer.fusions = "auto"
    model.fit(X, Y, batch_size=16, epochs=2, verbose=0)
    assert sizes[torch.float64] == {5} and {5, 16} <= sizes[torch.float32]


@pytest.mark.parametrize(("shape", "samples"), [((28, 28, 1), 16), ((64, 64, 3), 16), ((96, 96, 3), 9), ((224, 224, 3), 4), ((0,), 16)])
def test_fewer_large_samples_are_held_against_float64(shape: tuple[int, ...], samples: int) -> None:
    x = torch.empty((32, *shape), dtype=torch.uint8)
    assert planning.checked_samples(Batch((x,), (), (), 32)) == samples
    assert planning.checked_samples(Batch((x, x), (), (), 32)) == max(4, min(16, 2**18 // max(1, 2 * x[0].numel())))
