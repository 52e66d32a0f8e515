"""The plan: chosen by measurement, right before fast, repeatable, and never without a reason."""

import dataclasses
import gc
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import fx, nn

import convolt
from convolt import errors, layers
from convolt.compiler import Plan, make_plan, numerics
from convolt.compiler.measure import Probe
from convolt.models import Model, Sequential


def cnn() -> Sequential:
    convolt.utils.set_random_seed(0)
    return Sequential([
        layers.Input((12, 12, 3)), layers.Conv2D(4, 3, activation="relu"), layers.MaxPooling2D(), layers.BatchNormalization(),
        layers.ReLU(), layers.Dropout(0.5), layers.Flatten(), layers.Dense(3, activation="softmax"),
    ])  # fmt: skip


X = torch.randn(8, 12, 12, 3, generator=torch.Generator().manual_seed(0)).permute(0, 3, 1, 2)
Y = torch.arange(8) % 3
LOSS = convolt.losses.get("sparse_categorical_crossentropy")


class TimedProbe(Probe):
    """A probe with given times: seconds layer by layer, times a factor for each fused class in a form; gradients are real.

    `noise` is the standard deviation of a measurement, relative; `spoil` makes the loss of fused forms wrong by that much.
    """

    def __init__(self, model: nn.Module, layers: float, factors: dict[str, float], spoil: float = 0.0, noise: float = 0.0) -> None:
        super().__init__(model, self.loss_of, torch.device("cpu"), clock=lambda: self.spent)  # compiling a kernel takes no time of it
        self.layers, self.factors, self.spoil, self.calls, self.plain = layers, factors, spoil, [], model
        self.noise, self.rng, self.spent = noise, np.random.default_rng(0), 0.0

    def loss_of(self, module: nn.Module, precision: torch.dtype) -> torch.Tensor:
        loss = LOSS(Y, module(X.to(precision)))
        return loss * (1 + self.spoil) if isinstance(module, fx.GraphModule) else loss

    def true_seconds(self, module: nn.Module) -> float:
        kinds = [type(part).__name__ for part in module.modules()] if isinstance(module, fx.GraphModule) else []
        return self.layers * float(np.prod([self.factors.get(kind, 1.0) for kind in kinds]))

    def seconds(self, module: nn.Module, precision: object, budget: float, **_: object) -> float:
        self.calls.append("layers" if module is self.plain else "fused")
        self.spent += budget
        return self.true_seconds(module) * (1 + self.noise * float(self.rng.standard_normal()))


FIRST, NORM = "FirstConvReluPool", "Norm"


def plan_with(probe: TimedProbe | None, model: nn.Module, **options: object) -> tuple[Plan, nn.Module]:
    usual = {"precision": torch.float32, "device": torch.device("cpu"), "batch_size": 8, "steps": 10**6}
    return make_plan(model, [X[:2]], probe, **usual | options)


def verdicts(plan: Plan) -> dict[str, str]:
    return {row.name: row.verdict for row in plan.rows}


def test_rewrites_that_pay_are_kept_with_their_figures() -> None:
    model = cnn()
    plan, module = plan_with(TimedProbe(model, 0.02, {FIRST: 0.5, NORM: 0.8, "ConvReluPool": 0.9, "SparseConvReluPool": 0.7}), model)
    assert module is not model and plan.form == "fused" and plan.fusions == {"first conv+relu+pool": 1, "bn+relu": 1}
    assert verdicts(plan) == {"layers": "refused", "bn+relu": "chosen", "conv+relu+pool": "chosen", "sparse conv+relu+pool": "chosen",
                              "first conv+relu+pool": "chosen"}
    assert "2.50× layer by layer" in plan.describe() and "1,000 images/s" in plan.describe()
    assert all(row.gradient_error < 1e-4 and row.memory > 0 for row in plan.rows[1:])
    assert plan.rows[-1].memory < plan.rows[1].memory  # the activation between is never kept


def test_each_rewrite_is_judged_by_itself() -> None:
    model = cnn()
    plan, _ = plan_with(TimedProbe(model, 0.02, {FIRST: 0.5, NORM: 1.3}), model)
    assert plan.fusions == {"first conv+relu+pool": 1} and "not bn+relu: 0.77× as fast as without it" in plan.describe()
    plan, _ = plan_with(TimedProbe(model, 0.02, {FIRST: 1.2, NORM: 0.8, "ConvReluPool": 1.1, "SparseConvReluPool": 1.1}), model)
    assert plan.fusions == {"bn+relu": 1}


def norms() -> Sequential:
    """Two forms of batch normalization with what follows, each of its own kind, and one alone."""
    convolt.utils.set_random_seed(0)
    return Sequential([
        layers.Input((12, 12, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(), layers.Conv2D(4, 3),
        layers.BatchNormalization(), layers.ReLU(6.0), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Flatten(),
        layers.Dense(3, activation="softmax"),
    ])  # fmt: skip


def test_batch_normalization_with_what_follows_is_tried_at_once() -> None:
    model = norms()
    plan, _ = plan_with(TimedProbe(model, 0.02, {NORM: 0.9}), model)
    assert verdicts(plan) == {"layers": "refused", "bn+activation": "chosen", "bn+relu": "chosen", "bn": "chosen"}
    assert plan.fusions == {"bn+activation": 1, "bn+relu": 1, "bn": 1}
    assert "1.23× without it (all of bn+activation, bn+relu)" in {row.name: row.why for row in plan.rows}["bn+relu"]


def test_where_not_all_of_them_pay_each_is_tried_by_itself() -> None:
    model = norms()
    plan, module = plan_with(TimedProbe(model, 0.02, {NORM: 1.2}), model)
    assert module is model
    assert verdicts(plan) == {"layers": "chosen", "bn+activation, bn+relu": "refused", "bn+activation": "refused", "bn+relu": "refused",
                              "bn": "refused"}


def test_the_choice_is_near_the_best_under_noise_and_within_the_budget() -> None:
    from itertools import combinations

    from convolt.compiler.fuse import fuse
    from convolt.compiler.trace import trace

    model = cnn()
    names = ("bn+relu", "conv+relu+pool", "sparse conv+relu+pool", "first conv+relu+pool", "bn", "conv+relu")
    traced = trace(model, [X[:2]])
    rng = np.random.default_rng(1)
    for seed in range(10):
        factors = dict(zip((FIRST, NORM, "ConvReluPool", "SparseConvReluPool"), rng.uniform(0.6, 1.3, 4), strict=True))
        probe = TimedProbe(model, 0.02, factors, noise=0.02)
        probe.rng = np.random.default_rng(seed)
        _, module = plan_with(probe, model)
        best = min(probe.true_seconds(fuse(traced, kept).module) for n in range(7) for kept in combinations(names, n))
        assert probe.true_seconds(module) <= best * 1.12 and probe.spent <= 0.3 + 2 * len(names)


def test_a_form_that_is_not_faster_is_refused() -> None:
    model = cnn()
    plan, module = plan_with(TimedProbe(model, 0.01, {FIRST: 0.99, NORM: 1.01}), model)
    assert module is model and "not worth a change" in plan.describe()


def test_normalization_in_one_pass_is_taken_where_it_is_as_fast() -> None:
    model = cnn()
    plan, _ = plan_with(TimedProbe(model, 0.01, {FIRST: 0.99, NORM: 0.99}), model)
    assert plan.fusions == {"bn+relu": 1}, "it makes fewer tensors; of the others as fast is not worth a change"
    assert verdicts(plan)["first conv+relu+pool"] == "refused"


def test_a_form_that_is_wrong_is_refused_however_fast() -> None:
    model = cnn()
    probe = TimedProbe(model, 0.02, {FIRST: 0.01, NORM: 0.01}, spoil=0.01)
    plan, module = plan_with(probe, model)
    assert module is model and set(verdicts(plan).values()) == {"chosen", "refused"} and verdicts(plan)["layers"] == "chosen"
    assert "gradients by" in plan.describe() and "fused" not in probe.calls


def test_a_short_run_is_not_searched() -> None:
    model = cnn()
    probe = TimedProbe(model, 0.01, {FIRST: 0.1})
    plan, module = plan_with(probe, model, steps=100)
    assert module is model and probe.calls == ["layers"] and "too short to repay the search" in plan.describe()


def test_what_the_user_asks_for_is_not_measured() -> None:
    model = cnn()
    for fusions, count in (("all", 2), (["bn+relu"], 1), ("conv+relu+pool", 1)):
        plan, module = plan_with(None, model, fusions=fusions)
        assert module is not model and sum(plan.fusions.values()) == count
    assert plan_with(None, model, fusions="none")[1] is model
    with pytest.raises(errors.ArgumentError, match="Did you mean 'bn\\+relu'"):
        plan_with(None, model, fusions="bn+rel")


def test_reasons_without_a_search() -> None:
    class Branch(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    assert "torch.fx cannot follow" in plan_with(None, Branch())[0].describe()
    assert "no rewrite of the table" in plan_with(None, nn.Sequential(nn.Flatten(), nn.Linear(432, 3)))[0].describe()
    assert "a loss of your own" in plan_with(None, cnn())[0].describe()


def test_the_choice_is_kept_for_the_next_run(tmp_path: Path) -> None:
    model = cnn()
    first, _ = plan_with(TimedProbe(model, 0.02, {NORM: 0.5}), model, cache=tmp_path)
    probe = TimedProbe(model, 0.01, {NORM: 2.0})
    again, module = plan_with(probe, model, cache=tmp_path)
    assert not probe.calls and module is not model and again.cached and again.rows == first.rows
    plan_with(probe, model, cache=tmp_path, batch_size=9)
    assert probe.calls  # another batch is another question
    for file in tmp_path.iterdir():
        file.write_text("{")
    assert plan_with(probe, model, cache=tmp_path)[0].rows != first.rows


def test_json_both_ways_and_the_graph() -> None:
    plan, _ = plan_with(None, cnn(), fusions="all")
    assert Plan.from_json(json.loads(json.dumps(dataclasses.asdict(plan)))) == plan
    before, after = plan.graph().split("after:")
    assert "MaxPooling2D" in before and "ConvReluPool" in after and "Norm(relu)" in after


def test_a_probe_leaves_the_model_as_it_was() -> None:
    model = cnn()
    model.eval()
    state, generator = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    probe = Probe(model, lambda module, precision: LOSS(Y, module(X.to(precision))), torch.device("cpu"))
    a, b = (probe.gradients(model, torch.float32) for _ in range(2))
    assert probe.seconds(model, torch.float32, budget=0.0) > 0
    assert all(torch.equal(x, y) for x, y in zip(a.parts, b.parts, strict=True)) and a.errors(b) == (0.0, 0.0, 0.0)
    exact = probe.reference()
    assert exact.loss.dtype == torch.float64 and max(a.errors(exact)) < 1e-5
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state()) and not model.training
    assert all(p.grad is None for p in model.parameters())


class KeepsItsOutput(torch.autograd.Function):
    """Saves what it returns, as many ops do; notes when its node is gone."""

    gone = 0

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        y = x.relu()
        ctx.save_for_backward(y)
        ctx.marker = object.__new__(type("Marker", (), {}))
        weakref.finalize(ctx.marker, KeepsItsOutput.note)
        return y

    @staticmethod
    def note() -> None:
        KeepsItsOutput.gone += 1

    @staticmethod
    def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
        (y,) = ctx.saved_tensors
        return grad * (y > 0)


def test_counting_what_is_kept_keeps_nothing() -> None:
    model = cnn()
    probe = Probe(model, lambda module, precision: LOSS(Y, module(KeepsItsOutput.apply(X.clone().requires_grad_()))), torch.device("cpu"))
    assert probe.kept_bytes(model, torch.float32) > X.nbytes
    gc.collect()
    assert KeepsItsOutput.gone == 1


def test_a_probe_leaves_seeded_layers_as_they_were() -> None:
    """How often a candidate is timed is chance: a dropout with its own seed must not go on from there."""
    masks = []
    for runs in (0, 1, 3):
        dropout = layers.Dropout(0.5, seed=5)
        model = Sequential([layers.Input((12, 12, 3)), layers.Flatten(), dropout, layers.Dense(3)])
        probe = Probe(model, lambda module, precision, model=model: LOSS(Y, model(X)), torch.device("cpu"))
        for _ in range(runs):
            probe.gradients(model, torch.float32)
        model.train()
        masks.append(dropout(torch.ones(4, 100)))
        if runs:
            probe.gradients(model, torch.float32)
        masks.append(dropout(torch.ones(4, 100)))
    assert all(torch.equal(first, masks[0]) for first in masks[::2]) and all(torch.equal(second, masks[1]) for second in masks[1::2])


def test_fit_with_fusions_trains_like_fit_without(capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = X.permute(0, 2, 3, 1).numpy(), Y.numpy()
    weights = []
    for fusions in ("none", "all"):
        model = cnn()
        model.compile("sgd", "sparse_categorical_crossentropy", ["accuracy"], device="cpu", fusions=fusions)
        model.fit(images, labels, batch_size=4, epochs=3, shuffle=False, verbose=2)
        weights.append(model.get_weights())
    assert model.plan.fusions == {"first conv+relu+pool": 1, "bn+relu": 1}
    assert "fused (first conv+relu+pool ×1, bn+relu ×1)" in capsys.readouterr().out
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_tolerances_are_stated_for_each_precision() -> None:
    assert set(numerics.TOLERANCE) == {torch.float32, torch.bfloat16}
