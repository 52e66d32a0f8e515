"""precision="auto": bfloat16 where it is measured to be faster and right, float32 elsewhere, with the reason."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import convolt
from convolt import devices, layers
from convolt.compiler import Plan, make_plan
from convolt.compiler.fused import Norm
from convolt.models import Sequential
from tests.unit.compiler.test_plan import NORM, TimedProbe, X, cnn, plan_with, verdicts


class TwoPrecisions(TimedProbe):
    """The same, with a factor for bfloat16."""

    def __init__(self, model: nn.Module, layers: float, factors: dict[str, float], bfloat16: float, spoil_bfloat16: float = 0.0) -> None:
        super().__init__(model, layers, factors)
        self.bfloat16, self.spoil_bfloat16 = bfloat16, spoil_bfloat16

    def seconds(self, module: nn.Module, precision: object, budget: float, **options: object) -> float:
        return super().seconds(module, precision, budget, **options) * (self.bfloat16 if precision == torch.bfloat16 else 1.0)

    def loss_of(self, module: nn.Module, precision: torch.dtype) -> torch.Tensor:
        if precision != torch.bfloat16:
            return super().loss_of(module, precision)
        with torch.autocast("cpu", torch.bfloat16):
            return super().loss_of(module, torch.float32) * (1 + self.spoil_bfloat16)


def test_bfloat16_is_taken_where_it_is_faster_and_rewrites_are_tried_in_it() -> None:
    model = cnn()
    plan, module = plan_with(TwoPrecisions(model, 0.02, {NORM: 0.8}, 0.5), model, lower=None)
    assert plan.precision == "bfloat16" and plan.fusions == {"bn+relu": 1} and module is not model
    assert verdicts(plan)["bfloat16"] == "chosen" and "cpu, bfloat16, fused" in plan.describe()
    row = next(row for row in plan.rows if row.name == "bfloat16")
    assert row.seconds == 0.01 and row.gradient_error > 1e-4


@pytest.mark.parametrize(("factor", "spoil", "why"), [(1.1, 0.0, "0.91× as fast"), (0.1, 0.5, "loss off by")])
def test_bfloat16_that_is_slower_or_wrong_is_refused_with_its_reason(factor: float, spoil: float, why: str) -> None:
    model = cnn()
    plan, _ = plan_with(TwoPrecisions(model, 0.02, {NORM: 0.8}, factor, spoil), model, lower=None)
    assert plan.precision == "float32" and plan.fusions == {"bn+relu": 1}
    assert f"not bfloat16: {why}" in plan.describe()


def test_float32_means_float32_and_hardware_without_bfloat16_says_so() -> None:
    model = cnn()
    probe = TwoPrecisions(model, 0.02, {}, 0.1)
    assert "bfloat16" not in plan_with(probe, model)[0].describe()
    plan, _ = plan_with(probe, model, lower="this processor has neither")
    assert plan.precision == "float32" and "not bfloat16: this processor has neither" in plan.describe()
    assert "not bfloat16: a loss of your own" in plan_with(None, model, lower=None)[0].describe()


def test_a_form_that_is_asked_for_is_measured_in_both_precisions(tmp_path: Path) -> None:
    model = cnn()
    for fusions, form in (("none", "layers"), ("all", "fused"), ("bn+relu", "fused")):
        for cached in (False, True):
            plan, _ = plan_with(TwoPrecisions(model, 0.02, {}, 0.5), model, lower=None, fusions=fusions, cache=tmp_path)
            assert (plan.precision, plan.form, plan.cached) == ("bfloat16", form, cached)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(432, 3))
    assert plan_with(TwoPrecisions(dense, 0.02, {}, 0.5), dense, lower=None)[0].precision == "bfloat16"  # no rewrite fits


def test_a_plan_of_an_unknown_precision_is_no_plan() -> None:
    plan, _ = make_plan(cnn(), [X[:2]], None, precision=torch.float32, device=torch.device("cpu"), batch_size=8, steps=1)
    values = json.loads(json.dumps(dataclasses.asdict(plan)))
    with pytest.raises(ValueError, match="float64"):
        Plan.from_json(values | {"precision": "float64"})


def test_devices_say_why_not() -> None:
    assert devices.why_not_bfloat16(torch.device("mps")) == "not known to be faster on mps"
    assert devices.why_not_bfloat16(torch.device("cpu")) in (None, "this processor has neither AVX-512-bf16 nor AMX")


@pytest.fixture
def bfloat16_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has every fit under "auto" find that bfloat16 is faster."""
    from convolt.compiler.rows import plain_row
    from convolt.compiler.search import Search

    def run(self: Search) -> tuple[object, ...]:
        return plain_row("layers", "refused", "slower"), plain_row("bfloat16", "chosen" if self._lower else "refused", "faster")

    monkeypatch.setattr(Search, "run", run)
    monkeypatch.setattr(devices, "why_not_bfloat16", lambda device: None)


def dense() -> Sequential:
    convolt.utils.set_random_seed(1)
    return Sequential([layers.Input((6,)), layers.Dense(8, activation="relu"), layers.Dense(3, activation="softmax")])


DATA = np.random.default_rng(0).random((16, 6), "float32"), np.arange(16) % 3


def test_bfloat16_that_was_asked_for_is_taken_and_a_processor_that_is_slow_at_it_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "not float32: bfloat16 was asked for, which as far as is known is not faster here: this processor has neither"
    for why in ("this processor has neither", None):
        monkeypatch.setattr("convolt.compiler.plan.why_not_bfloat16", lambda device, why=why: why)
        model = dense()
        model.compile("sgd", "sparse_categorical_crossentropy", device="cpu", precision="bfloat16")
        model.fit(*DATA, batch_size=8, epochs=1, verbose=0)
        assert model.plan.precision == "bfloat16" and (said in model.plan.describe()) == (why is not None)
        model.compile("sgd", "sparse_categorical_crossentropy", device="cpu", precision="float32")
        model.fit(*DATA, batch_size=8, epochs=1, verbose=0)
        assert "not float32" not in model.plan.describe()


def test_training_is_in_bfloat16_and_evaluation_in_float32(bfloat16_plans: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = dense()
    model.compile("sgd", "sparse_categorical_crossentropy", device="cpu")
    seen = []
    model.layers[0].register_forward_hook(lambda module, inputs, output: seen.append((model.training, output.dtype)))
    history = model.fit(*DATA, batch_size=8, epochs=1, verbose=0, validation_data=DATA)
    assert set(seen) >= {(True, torch.bfloat16), (False, torch.float32)} and (False, torch.bfloat16) not in seen
    assert model.plan.precision == "bfloat16" and all(w.dtype == np.float32 for w in model.get_weights())
    result = model.evaluate(*DATA, verbose=0, return_dict=True)
    assert result["loss"] == pytest.approx(history.history["val_loss"][-1], rel=1e-6)
    exact = -np.log(model.predict(DATA[0], verbose=0)[np.arange(16), DATA[1]]).mean()
    assert result["loss"] == pytest.approx(exact, rel=1e-5)  # what is evaluated is what predict gives
    model.layers[0].trainable = False
    seen.clear()
    model.compile("sgd", "sparse_categorical_crossentropy", device="cpu", precision="float32")
    model.fit(*DATA, batch_size=8, epochs=1, verbose=0)
    assert {dtype for _, dtype in seen} == {torch.float32}


def test_a_resumed_training_keeps_the_precision(bfloat16_plans: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def train(folder: Path, epochs: int) -> Sequential:
        model = dense()
        model.compile("adam", "sparse_categorical_crossentropy", device="cpu")
        model.fit(*DATA, batch_size=8, epochs=epochs, verbose=0, checkpoint=folder, resume_allow=["epochs"], seed=5)
        return model

    whole = train(tmp_path / "whole", 3)
    train(tmp_path / "parts", 1)
    monkeypatch.setattr(devices, "why_not_bfloat16", lambda device: "asked anew, it would be refused")
    resumed = train(tmp_path / "parts", 3)
    assert resumed.plan.precision == "bfloat16"
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norms[0](self.convs[0](x)))
        return torch.relu(self.norms[1](self.convs[1](y)) + x)


def deep() -> nn.Module:
    """A residual network at its start: rounding to bfloat16 switches its ReLUs."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), *(Block(32) for _ in range(8)), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(32, 3), nn.Softmax(1))


class HalvedScale(torch.autograd.Function):
    """A kernel with a mistake: the gradient that reaches one parameter of 32 numbers is `factor` of what it should be."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad * ctx.factor, None


@pytest.mark.parametrize(("factor", "chosen"), [(1.0, True), (0.5, False), (1.5, False), (0.0, False), (float("nan"), False)])
def test_rounding_in_a_deep_network_is_no_mistake_and_a_wrong_kernel_is_one(factor: float, chosen: bool,
                                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    model = deep()
    probe = TwoPrecisions(model, 0.02, {"Norm": 0.9}, 0.5)
    plain = probe.gradients(model, torch.bfloat16).errors(probe.reference())
    assert plain[1] > 0.1 and plain[2] < 0.25  # PyTorch's own autocast: off in all directions, shorter or longer in none
    whole = Norm.forward

    def wrong(self: Norm, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        if self.norm is not model[4].norms[0]:
            return whole(self, x, residual)
        weight = HalvedScale.apply(self.norm.weight, factor)
        return torch.relu(nn.functional.batch_norm(x, None, None, weight, self.norm.bias, True))

    monkeypatch.setattr(Norm, "forward", wrong)
    plan, _ = plan_with(probe, model, lower=None)
    assert verdicts(plan)["bfloat16"] == "chosen"
    assert verdicts(plan)["bn+relu"] == ("chosen" if chosen else "refused")
    if not chosen:
        row = next(row for row in plan.rows if row.name == "bn+relu")
        assert "one parameter's length by" in row.why


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_autocast_with_a_wrong_gradient_is_refused(factor: float) -> None:
    model = deep()
    probe = TwoPrecisions(model, 0.02, {}, 0.5)
    right = probe.loss_of

    def wrong(module: nn.Module, precision: torch.dtype) -> torch.Tensor:
        loss = right(module, precision)
        return loss if precision != torch.bfloat16 else HalvedScale.apply(loss, factor)

    probe._loss_of = probe._checked_loss_of = wrong
    plan, _ = plan_with(probe, model, lower=None)
    assert verdicts(plan)["bfloat16"] == "refused" and plan.precision == "float32"
