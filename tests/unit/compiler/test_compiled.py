"""torch.compile as a candidate of long runs: right before fast, never without a reason, and the same result as without it."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import convolt
from convolt import callbacks, layers, optimizers
from convolt.compiler import Plan, make_plan, search
from convolt.compiler.compiled import COMPILED, Compiled, Compiling, seconds_of, why_not_compiled
from convolt.compiler.measure import Probe
from convolt.errors import ArgumentError, CheckpointError

RNG = np.random.default_rng(0)
X, Y, W = RNG.random((70, 16), "float32"), np.arange(70) % 3, RNG.random(70).astype("float32")
CPU = torch.device("cpu")


def layered() -> convolt.Sequential:
    convolt.utils.set_random_seed(0)
    return convolt.Sequential([
        layers.Input((16,)), layers.Dense(32, activation="gelu", activity_regularizer="l2"), layers.Dropout(0.2),
        layers.Dense(3, activation="softmax"),
    ])  # fmt: skip


def net(**options: Any) -> convolt.Sequential:
    model = layered()
    optimizer = optimizers.Adam(0.01, clipnorm=1.0, use_ema=True, gradient_accumulation_steps=2)
    model.compile(optimizer, "sparse_categorical_crossentropy", ["accuracy"], device="cpu", **{"precision": "float32"} | options)
    return model


# -- without compiling anything ------------------------------------------------------------------------------------


class GivenTimes(Probe):
    """Real gradients of the model above; seconds of a step as given; `spoil` makes compiled forms wrong."""

    def __init__(self, model: nn.Module, seconds: float, compiled: float = 0.0, spoil: float = 0.0) -> None:
        super().__init__(model, self.loss_of, CPU, half_loss_of=self.loss_of)
        self.parts_of_forms: list[tuple[bool, int]] = []
        self.given, self.compiled, self.spoil = seconds, compiled, spoil

    def loss_of(self, module: nn.Module, precision: torch.dtype) -> torch.Tensor:
        x, y = torch.from_numpy(X[:16]).to(precision if precision == torch.float64 else torch.float32), torch.from_numpy(Y[:16])
        loss: torch.Tensor = convolt.losses.get("sparse_categorical_crossentropy")(y, module(x))
        return loss * (1 + self.spoil) if isinstance(module, Compiled) else loss

    def seconds(self, module: nn.Module, precision: object, budget: float, **_: object) -> float:
        self.parts_of_forms.append((isinstance(module, Compiled), self.parts))
        return self.compiled if isinstance(module, Compiled) else self.given


def planned(steps: int | None = 10**9, compiling: Compiling | None = None, **times: float) -> tuple[Plan, nn.Module]:
    model = layered()
    model.build_for([torch.from_numpy(X[:2])])
    probe = GivenTimes(model, **{"seconds": 0.02} | times)
    return make_plan(model, [torch.from_numpy(X[:2])], probe, precision=torch.float32, device=CPU, batch_size=16, steps=steps,
                     compiling=compiling or Compiling(((16, 16),), why_not_compiled(CPU)))


def test_code_is_timed_on_whole_batches_which_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    monkeypatch.setattr("convolt.compiler.compiled._keep_kernels_out", lambda module: None)
    model = layered()
    model.build_for([torch.from_numpy(X[:2])])
    probe = GivenTimes(model, seconds=0.6, compiled=0.3)
    plan, module = make_plan(model, [torch.from_numpy(X[:2])], probe, precision=torch.float32, device=CPU, batch_size=16, steps=10**9,
                             compiling=Compiling(((16, 16),)))
    assert isinstance(module, Compiled) and "2.00× without it" in why(plan), plan.describe()
    assert {parts for compiled, parts in probe.parts_of_forms if compiled} == {1}
    assert (False, 2) in probe.parts_of_forms, "what is not compiled was searched on halves"


def why(plan: Plan) -> str:
    return next(row.why for row in plan.rows if row.name == COMPILED)


@pytest.mark.parametrize(("steps", "reason"), [
    (1000, r"the run takes about 20 s, too short to repay about \d\d s of compiling"), (None, "a run of unknown length"),
])  # fmt: skip
def test_a_run_that_cannot_repay_it_is_not_compiled(steps: int | None, reason: str) -> None:
    plan, module = planned(steps, Compiling(((16, 16),)))
    assert plan.execution == "eager" and not isinstance(module, Compiled)
    assert re.search(reason, why(plan)) and f"not compiled: {why(plan)}" in plan.describe()


def test_compiling_takes_a_small_share_of_the_run() -> None:
    model = layered()
    model.build_for([torch.from_numpy(X[:2])])
    least = seconds_of(model) / search.MOST_OF_RUN_COMPILING
    plan, _ = planned(int(0.99 * least / 0.02), Compiling(((16, 16),)))
    assert "too short" in why(plan)


def test_a_machine_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "mps" in why_not_compiled(torch.device("mps"))
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "neither g++ nor clang++" in why_not_compiled(CPU)
    monkeypatch.setenv("CXX", "icpx")
    assert "icpx is on the PATH" in why_not_compiled(CPU)
    model = net(execution="compile")
    model.fit(X, Y, batch_size=16, epochs=1, verbose=0)
    assert model.plan.execution == "replay" and "not compiled: no C++ compiler" in model.plan.describe()


def test_what_is_unknown_is_refused_and_what_is_saved_comes_back() -> None:
    with pytest.raises(ArgumentError, match="Did you mean 'compile'"):
        net(execution="compiled")
    plan, _ = planned(10, Compiling(((16, 16),)))
    plan = dataclasses.replace(plan, execution="compile", compiled_for=((16, 16), (16, 3)))
    assert Plan.from_json(json.loads(json.dumps(dataclasses.asdict(plan)))) == plan
    assert plan.as_execution() == "compile" and ", compiled" in plan.describe()
    graph = plan.with_execution(None)
    assert graph.execution == "graph" and ", compiled, whole step in one graph" in graph.describe()
    assert graph.with_execution("no graph after all").execution == "compile"
    old = {name: value for name, value in plan.to_json().items() if name != "compiled_for"}
    assert Plan.from_json(old).compiled_for == ()


def test_batches_of_another_shape_and_passes_without_gradients_run_in_the_form_as_it_is() -> None:
    form = nn.Linear(4, 2)
    module = Compiled(form, ((3, 4),))
    for x, grad in ((torch.ones(2, 4), True), (torch.ones(3, 4), False)):
        with torch.set_grad_enabled(grad):
            assert torch.equal(module(x), form(x))
    assert module._code is None and list(module.parameters()) == list(form.parameters())


def test_nothing_is_loaded_where_nothing_is_compiled() -> None:
    code = """
import sys, numpy as np, convolt
from convolt import layers
model = convolt.Sequential([layers.Input((12, 12, 1)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(), layers.Flatten(),
                            layers.Dense(3, activation="softmax")])
model.compile("adam", "sparse_categorical_crossentropy", device="cpu")
model.fit(np.zeros((32, 12, 12, 1), "float32"), np.arange(32) % 3, batch_size=8, epochs=2, verbose=0)
assert any(row.name == "compiled" and "too short" in row.why for row in model.plan.rows), model.plan.describe()
assert "torch._dynamo" not in sys.modules and "torch._inductor" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# -- what is really compiled: one small net, whose code Inductor keeps for the later cases -------------------------------

needs_compiler = pytest.mark.skipif(bool(why_not_compiled(CPU)), reason=f"nothing can be compiled here: {why_not_compiled(CPU)}")


class Killed(callbacks.Callback):
    is_setting = False

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.model.optimizer.steps == 7:
            raise KeyError("killed")


@needs_compiler
def test_a_compiled_training_is_the_same_repeatable_and_goes_on_bit_equally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"sample_weight": W, "batch_size": 16, "epochs": 3, "verbose": 0, "seed": 1}
    results = []
    for execution in ("eager", "compile", "compile"):
        model = net(execution=execution)
        history = model.fit(X, Y, **options).history
        results.append((history["loss"], model.get_weights()))
    plan = model.plan
    assert plan.execution == "compile" and plan.compiled_for == ((16, 16),), "the last batch of six samples is none of them"
    assert "compiled" in plan.describe() and plan.cached
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    for eager, compiled, again in zip(*(weights for _, weights in results), strict=True):
        np.testing.assert_allclose(eager, compiled, rtol=1e-3, atol=1e-5)
        assert np.array_equal(compiled, again)
    assert any(not np.array_equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True)), "other code ran"
    with pytest.raises(KeyError, match="killed"):
        net(execution="compile").fit(X, Y, checkpoint=convolt.Checkpoint(tmp_path, every_steps=1), callbacks=[Killed()], **options)
    more = {"checkpoint": convolt.Checkpoint(tmp_path, every_steps=1), "resume_allow": ["callbacks"]}
    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match=r"no C\+\+ compiler.*expected torch.compile"):
        patch.setenv("PATH", str(tmp_path))
        net(execution="compile").fit(X, Y, **more, **options)
    resumed = net(execution="compile")
    resumed.fit(X, Y, **more, **options)
    assert resumed.plan.compiled_for == ((16, 16),) and resumed.plan.cached
    assert all(np.array_equal(a, b) for a, b in zip(results[1][1], resumed.get_weights(), strict=True))


@needs_compiler
def test_the_search_takes_it_only_where_it_is_right_and_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, module = planned(seconds=0.02, compiled=0.01)
    assert isinstance(module, Compiled) and plan.execution == "compile" and plan.form == "layers"
    assert "2.00× without it, compiled in" in why(plan) and "1,600 images/s" in plan.describe()
    plan, module = planned(seconds=0.02, compiled=0.0199)
    assert not isinstance(module, Compiled) and why(plan).startswith("1.01× as fast as without it, not worth a change")
    plan, module = planned(seconds=0.02, compiled=0.001, spoil=0.01)
    assert not isinstance(module, Compiled) and why(plan).startswith("loss off by 1.0e-02")
    asked = Compiling(((16, 16),), asked=True)
    assert planned(10, asked, seconds=0.02, compiled=0.1)[0].execution == "compile", "its gain is not asked"
    assert "loss off by" in why(planned(10, asked, seconds=0.02, compiled=0.1, spoil=0.01)[0]), "being right is"
    import torch._inductor.config as inductor

    monkeypatch.setattr(search, "MOST_OF_RUN_COMPILING", 1e-9)
    monkeypatch.setattr(search, "seconds_of", lambda form: 0.0)
    with inductor.patch({"force_disable_caches": True}):
        assert why(planned(compiled=0.01)[0]) == "compiling took more than its share of the run"


@needs_compiler
def test_a_compiler_that_fails_is_a_reason() -> None:
    import torch._inductor.config as inductor

    model = net(execution="compile")
    with inductor.patch({"force_disable_caches": True, "cpp.cxx": ("false",)}):
        model.fit(X, Y, batch_size=16, epochs=1, verbose=0)
    print(model.plan.describe())
    assert model.plan.execution == "replay" and "not compiled: " in model.plan.describe()


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("fusions", "precision"), [("all", "float32"), ("none", "float32"), ("all", "bfloat16")])
def test_fused_layers_are_called_from_compiled_code(fusions: str, precision: str) -> None:
    """A long training of a CNN: kernels of Numba between pieces of compiled code, statistics of normalization, seeded dropout."""
    x = RNG.random((40, 16, 16, 3), "float32")
    results = []
    for execution in ("eager", "compile", "compile"):
        convolt.utils.set_random_seed(0)
        model = convolt.Sequential([
            layers.Input((16, 16, 3)), layers.Conv2D(16, 3, padding="same"), layers.BatchNormalization(), layers.ReLU(),
            layers.MaxPooling2D(), layers.Conv2D(16, 3, activation="relu"), layers.MaxPooling2D(), layers.Dropout(0.2, seed=3),
            layers.Flatten(), layers.Dense(3),
        ])  # fmt: skip
        model.compile(optimizers.SGD(0.01), convolt.losses.SparseCategoricalCrossentropy(from_logits=True), device="cpu", fusions=fusions,
                      precision=precision, execution=execution)
        model.fit(x, Y[:40], batch_size=16, epochs=3, verbose=0, seed=1)
        results.append(model.get_weights())
    assert model.plan.execution == "compile" and (model.plan.form == "fused") == (fusions == "all")
    rtol, atol = (1e-3, 1e-5) if precision == "float32" else (0.05, 5e-3)
    for eager, compiled, again in zip(*results, strict=True):
        np.testing.assert_allclose(eager, compiled, rtol=rtol, atol=atol)
        assert np.array_equal(compiled, again)


class Chain(layers.Layer):
    """Twenty passes over memory, which a compiler makes one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(4):
            x = torch.relu(x * 0.9) + torch.abs(x) * 0.1
        return x

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


@needs_compiler
@pytest.mark.slow
def test_a_long_run_takes_what_a_compiler_makes_faster() -> None:
    model = convolt.Sequential([layers.Input((64, 64, 8)), Chain(), layers.GlobalAveragePooling2D(), layers.Dense(3)])
    model.compile("sgd", convolt.losses.SparseCategoricalCrossentropy(from_logits=True), device="cpu", precision="float32")
    plan = model.trainer.find_plan(RNG.random((64, 64, 64, 8), "float32"), Y[:64], 32)
    row = next(row for row in plan.rows if row.name == COMPILED)
    assert row.seconds and row.loss_error is not None and "compiled in" in row.why
    assert (row.verdict == "chosen") == (plan.execution == "compile") and row.verdict == "chosen", plan.describe()
