"""Wrappers of optimizers: recurrences of the papers, state, configuration, composition, and what `fit` does with them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from convolt import optimizers, schedules
from convolt.errors import ArgumentError, ArgumentTypeError, ModelFileError, StateError
from convolt.optimizers import SAM, SGD, SWA, Adam, AdamW, LayerwiseDecay, Lookahead, Wrapper
from tests.unit.test_optimizers import NoSync, equal, network, through_a_file, weights

WRAPPERS = {name: cls for name, cls in optimizers.registry.items() if issubclass(cls, Wrapper)}
COMPOSED = {
    "lookahead-adam": lambda **k: Lookahead(Adam(0.01, **k), every=3),
    "sam-momentum": lambda **k: SAM(SGD(0.01, momentum=0.9, **k), rho=0.1),
    "asam": lambda **k: SAM(Adam(0.01, **k), rho=0.5, adaptive=True),
    "swa": lambda **k: SWA(SGD(0.05, **k), start=4, every=2),
    "layerwise": lambda **k: LayerwiseDecay(AdamW(0.01, **k), decay=0.5),
    "layerwise-muon": lambda **k: LayerwiseDecay(optimizers.Muon(0.01, **k), decay=0.5),
    "layerwise-torch": lambda **k: LayerwiseDecay(optimizers.TorchOptimizer(torch.optim.AdamW, learning_rate=0.01, **k), decay=0.5),
    "all": lambda **k: SWA(Lookahead(SAM(LayerwiseDecay(Adam(0.01, **k), decay=0.8)), every=4, alpha=0.3), start=3, every=3),
    "all-otherwise": lambda **k: LayerwiseDecay(SAM(SWA(Lookahead(SGD(0.02, momentum=0.9, use_ema=True, **k)), start=0, every=1))),
}


def train(model: nn.Module, optimizer: optimizers.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(step))

        def closure(x: torch.Tensor = x) -> None:
            model(x).square().mean().backward()

        optimizer.zero_grad()
        closure()
        optimizer.step(closure)


def bound(optimizer: optimizers.Optimizer, steps: int = 20) -> tuple[nn.Module, optimizers.Optimizer]:
    model = network()
    optimizer.bind(model.named_parameters())
    optimizer.resolve(steps)
    return model, optimizer


# -- the papers' recurrences, 100 steps in float64 ---------------------------------------------------------------------

rng = np.random.default_rng(3)
A = rng.normal(size=(100, 6, 6)) * 0.3
B = rng.normal(size=(100, 6))


def gradient(p: np.ndarray, step: int) -> np.ndarray:
    """Of ‖A p - b‖² / 2."""
    return A[step].T @ (A[step] @ p - B[step])


def run(optimizer: optimizers.Optimizer) -> tuple[np.ndarray, optimizers.Optimizer]:
    p = nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64))
    optimizer.bind([("p", p)])
    optimizer.resolve(100)
    for step in range(100):
        def closure(step: int = step) -> None:
            (0.5 * (torch.from_numpy(A[step]) @ p - torch.from_numpy(B[step])).square().sum()).backward()

        optimizer.zero_grad()
        closure()
        optimizer.step(closure)
    return p.detach().numpy().copy(), optimizer


@pytest.mark.parametrize(("every", "alpha"), [(6, 0.5), (5, 0.8), (1, 0.1)])
def test_lookahead_follows_its_paper(every: int, alpha: float) -> None:
    p, v = np.linspace(-1, 1, 6), 0.0
    slow = p
    for step in range(100):
        v = 0.9 * v - 0.05 * gradient(p, step)
        p = p + v
        if (step + 1) % every == 0:
            slow = slow + alpha * (p - slow)
            p = slow
    np.testing.assert_allclose(run(Lookahead(SGD(0.05, momentum=0.9), every=every, alpha=alpha))[0], p, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_follows_its_paper(adaptive: bool) -> None:
    p, v = np.linspace(-1, 1, 6), 0.0
    for step in range(100):
        g = gradient(p, step)
        size = np.abs(p) if adaptive else 1.0
        climb = 0.2 * size * size * g / (np.linalg.norm(size * g) + 1e-12)
        v = 0.9 * v - 0.05 * gradient(p + climb, step)
        p = p + v
    np.testing.assert_allclose(run(SAM(SGD(0.05, momentum=0.9), rho=0.2, adaptive=adaptive))[0], p, rtol=1e-12, atol=1e-14)


@settings(max_examples=20, deadline=None)
@given(start=st.one_of(st.integers(0, 90), st.floats(0, 0.95)), every=st.integers(1, 9))
def test_swa_is_the_average_of_its_checkpoints(start: int | float, every: int) -> None:
    p, checkpoints = np.linspace(-1, 1, 6), []
    first = start if isinstance(start, int) else int(start * 100)
    for step in range(100):
        p = p - 0.05 * gradient(p, step)
        if step + 1 >= first and (step + 1 - first) % every == 0:
            checkpoints.append(p)
    got, optimizer = run(SWA(SGD(0.05), start=start, every=every))
    np.testing.assert_allclose(got, p, rtol=1e-12, atol=1e-14)
    assert optimizer.averaged == len(checkpoints)
    with optimizer.averaged_weights():
        parameter = optimizer._parameters["p"].detach().numpy().copy()
    np.testing.assert_allclose(parameter, np.mean(checkpoints, axis=0), rtol=1e-12, atol=1e-14)
    optimizer.finalize_variable_values()
    np.testing.assert_array_equal(optimizer._parameters["p"].detach().numpy(), parameter)


# -- nothing to do changes nothing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [lambda: SGD(0.05, momentum=0.9), lambda: Adam("cosine"), lambda: optimizers.Lion(0.01)])
@pytest.mark.parametrize("wrap", [
    lambda inner: Lookahead(inner, every=3, alpha=1.0), lambda inner: SAM(inner, rho=0.0), lambda inner: SAM(inner, rho=0.0, adaptive=True),
    lambda inner: SWA(inner, start=2, every=2), lambda inner: LayerwiseDecay(inner, decay=1.0),
])
def test_a_wrapper_that_has_nothing_to_do_is_its_inner_optimizer(inner: Any, wrap: Any) -> None:
    (plain, first), (wrapped, second) = bound(inner()), bound(wrap(inner()))
    train(plain, first, range(20))
    if isinstance(second, SAM):  # its second forward is one more for the statistics of this loop's own model
        wrapped[1].momentum = 0.0
        plain[1].momentum = 0.0
    train(wrapped, second, range(20))
    assert equal(weights(plain), weights(wrapped))


def test_the_order_of_independent_wrappers_does_not_matter() -> None:
    (a, first), (b, second) = bound(Lookahead(SAM(SGD(0.05)), every=4)), bound(SAM(Lookahead(SGD(0.05), every=4)))
    train(a, first, range(15))
    train(b, second, range(15))
    assert equal(weights(a), weights(b))


def test_lookahead_counts_updates_where_gradients_are_accumulated() -> None:
    (a, first), (b, second) = bound(Lookahead(SGD(0.1, gradient_accumulation_steps=3), every=2)), bound(Lookahead(SGD(0.1), every=2))
    for update in range(6):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            gradients = torch.randn(3, *p.shape, generator=torch.Generator().manual_seed(update))
            q.grad = gradients.mean(0)
            p.parts = gradients
        for i in range(3):
            for p in a.parameters():
                p.grad = p.parts[i].clone()
            first.step()
        second.step()
    for p, q in zip(weights(a), weights(b), strict=True):
        torch.testing.assert_close(p, q)
    assert first.iterations == 6 and first.steps == 18


# -- layer-wise decay ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [lambda: SGD(0.1), lambda: Adam(0.1), lambda: optimizers.Nadam(0.1), lambda: optimizers.RAdam(0.1),
                                   lambda: optimizers.get(torch.optim.SGD), lambda: SGD(0.1, weight_decay=0.1)])
def test_each_layer_moves_with_its_own_rate(inner: Any) -> None:
    model, optimizer = bound(LayerwiseDecay(inner(), decay=0.5))
    before = dict(zip(dict(model.named_parameters()), weights(model), strict=True))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        alone = nn.Parameter(before[name].clone())
        single = inner()
        single.learning_rate = single.learning_rate * (1.0 if name.startswith("3") else 0.5)  # the normalization goes with the convolution
        single.bind([(name, alone)])
        alone.grad = torch.ones_like(alone)
        single.step()
        torch.testing.assert_close(p, alone, rtol=1e-6, atol=1e-7)


def test_groups_are_patterns_from_the_input_to_the_output() -> None:
    names = ["stem.weight", "stage1.0.weight", "stage1.0.bias", "stage2.0.weight", "head.weight"]
    found = LayerwiseDecay(decay=0.5, groups=["stem", "stage1", "stage2"]).factors([(n, nn.Parameter(torch.ones(2, 2))) for n in names])
    assert found == dict(zip(names, [0.125, 0.25, 0.25, 0.5, 1.0], strict=True))


# -- composition, state, capture -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPOSED)
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2, "weight_decay": 0.01}])
def test_a_saved_and_loaded_state_continues_bit_equal(name: str, options: dict[str, Any]) -> None:
    whole, optimizer = bound(COMPOSED[name](**options))
    train(whole, optimizer, range(9))
    saved = through_a_file(optimizer.state_dict())
    model = network(seed=1)
    model.load_state_dict(whole.state_dict())
    train(whole, optimizer, range(9, 17))

    resumed = optimizers.get(json.loads(json.dumps(optimizers.serialize(COMPOSED[name](**options)))))
    resumed.bind(model.named_parameters())
    resumed.resolve(20)
    resumed.load_state_dict(saved)
    train(model, resumed, range(9, 17))
    assert equal(weights(whole), weights(model))
    ends, resumed_ends = optimizer.state_dict(), resumed.state_dict()
    assert ends.keys() == resumed_ends.keys()
    for key, value in ends.items():
        assert torch.equal(value, resumed_ends[key]) if isinstance(value, torch.Tensor) else value == resumed_ends[key], key
    optimizer.finalize_variable_values()
    resumed.finalize_variable_values()
    assert equal(weights(whole), weights(model))


@pytest.mark.parametrize(("change", "message"), [
    (lambda s: s.pop("lookahead.slow/0.weight"), "no tensor 'lookahead.slow/0.weight'"),
    (lambda s: s.update({"swa.averaged": -1}), "averaged: got -1"),
    (lambda s: s.pop("swa.averaged"), "no number 'averaged'"),
    (lambda s: s.update({"swa.last": 3}), "an unknown number 'last'"),
    (lambda s: s.update({"velocity/0.weight": torch.zeros(1)}), "an unknown tensor 'velocity/0.weight'"),
    (lambda s: s.update(accumulated_steps=2), "accumulated_steps: got 2; expected a whole number from 0 to 1"),
])
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(change: Any, message: str) -> None:
    model, optimizer = bound(SWA(Lookahead(SGD(0.1, momentum=0.9, gradient_accumulation_steps=2), every=2), start=1, every=1))
    train(model, optimizer, range(5))
    before = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in optimizer.state_dict().items()}
    state = {key: value + 1 if isinstance(value, torch.Tensor) else value for key, value in before.items()}
    change(state)
    with pytest.raises(ModelFileError, match=message):
        optimizer.load_state_dict(state)
    for key, value in optimizer.state_dict().items():
        assert torch.equal(value, before[key]) if isinstance(value, torch.Tensor) else value == before[key]


@pytest.mark.parametrize("name", COMPOSED)
def test_a_step_reads_nothing_back(name: str) -> None:
    model, optimizer = bound(COMPOSED[name]())
    if name == "layerwise-torch":
        pytest.skip("a class of torch.optim may read its step count on the CPU")
    train(model, optimizer, range(1))
    with NoSync():
        for _ in range(7):
            for p in model.parameters():
                p.grad = torch.ones_like(p)

            def closure() -> None:
                for p in model.parameters():
                    p.grad = torch.ones_like(p)

            optimizer.step(closure)
    assert optimizer.steps == 8


@pytest.mark.parametrize("name", WRAPPERS)
def test_names_make_the_usual_inner_optimizer(name: str) -> None:
    cls = WRAPPERS[name]
    made = optimizers.get(name.lower())
    assert type(made) is cls and type(made.optimizer).__name__ == cls.usual[0]
    rated = cls(learning_rate=schedules.CosineDecay(0.25, 10), clipnorm=1.0)
    assert rated.lr == rated.optimizer.lr == 0.25 and rated.optimizer.clipnorm == 1.0
    again = optimizers.get(json.loads(json.dumps(optimizers.serialize(rated))))
    assert again.get_config() == rated.get_config() and again.lr == 0.25
    assert "learning_rate" not in rated.get_config()
    for key, value in cls.usual[1].items():
        assert getattr(made.optimizer, key) == value


def test_the_rate_is_that_of_the_optimizer_inside() -> None:
    optimizer = SAM(Lookahead(SGD(0.5)))
    optimizer.learning_rate = 0.125
    assert optimizer.optimizer.optimizer.learning_rate == 0.125 == optimizer.lr
    assert SAM("adam", learning_rate="cosine").schedule is not None
    assert optimizer.innermost is optimizer.optimizer.optimizer


def test_parameters_that_moved_take_the_state_along() -> None:
    model, optimizer = bound(SWA(Lookahead(SGD(0.1)), start=0, every=1))
    train(model, optimizer, range(3))
    before = {key: value.clone() for key, value in optimizer.slots().items()}
    optimizer.bind(model.named_parameters())
    assert all(torch.equal(before[key], value) for key, value in optimizer.slots().items()) and optimizer.averaged == 3


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda: Lookahead(every=0), ArgumentError, r"Lookahead\(every\): got 0; expected a whole number from 1"),
    (lambda: Lookahead(alpha=1.5), ArgumentError, r"Lookahead\(alpha\): got 1.5"),
    (lambda: SAM(rho=-1), ArgumentError, r"SAM\(rho\)"),
    (lambda: SWA(start=1.0), ArgumentError, r"SWA\(start\): got 1.0; expected a number of updates, or a share"),
    (lambda: SWA(start=None), ArgumentError, r"SWA\(start\): got None"),
    (lambda: SWA(start=-1), ArgumentError, r"SWA\(start\)"),
    (lambda: LayerwiseDecay(decay=2), ArgumentError, r"LayerwiseDecay\(decay\)"),
    (lambda: SAM("sgdd"), ArgumentError, "Did you mean 'sgd'"),
    (lambda: SAM("sgd", momentun=0.9), ArgumentTypeError, "Did you mean 'momentum'"),
    (lambda: SAM(SGD(), momentum=0.9), ArgumentTypeError, "the argument 'momentum' beside a made optimizer"),
    (lambda: SAM(Lookahead(SAM())), ArgumentError, "an optimizer with another SAM in it"),
    (lambda: SAM.from_config({"rhoo": 1}), ArgumentTypeError, "Did you mean 'rho'"),
])
def test_invalid_arguments(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_errors_of_use() -> None:
    model, optimizer = bound(SAM())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(StateError, match=r"no closure.*Call optimizer\.step\(closure\)"):
        optimizer.step()
    share = SWA()
    share.bind(network().named_parameters())
    with pytest.raises(StateError, match=r"resolve\(total_steps\)"):
        share.step()
    model, optimizer = bound(SWA(start=0, every=1))
    train(model, optimizer, range(2))
    with optimizer.averaged_weights():
        for call in (optimizer.step, optimizer.apply_ema, optimizer.state_dict):
            with pytest.raises(StateError, match="the mean in the weights' place"):
                call()


def test_weights_come_back_when_sams_closure_fails() -> None:
    model, optimizer = bound(SAM(rho=1.0))
    before = weights(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)

    def closure() -> None:
        assert not equal(before, weights(model))
        raise RuntimeError("in the second pass")

    with pytest.raises(RuntimeError, match="second pass"):
        optimizer.step(closure)
    assert equal(before, weights(model)) and optimizer.iterations == 0


# -- trust ratios --------------------------------------------------------------------------------------------------


def test_trust_ratios_by_hand() -> None:
    p = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))  # of norm 5
    lars = optimizers.LARS(1.0, momentum=0.0, trust_coefficient=0.01, weight_decay=0.1)
    lars.bind([("p", p)])
    p.grad = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    lars.step()  # λ = 0.01 · 5 / (2 + 0.1 · 5) = 0.02; g + decay · p = (0.3, 2.4)
    torch.testing.assert_close(p.detach(), torch.tensor([[3 - 0.006, 4 - 0.048]], dtype=torch.float64), rtol=1e-12, atol=0.0)

    q = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    lamb = optimizers.Lamb(0.1, epsilon=0.0)
    lamb.bind([("q", q)])
    q.grad = torch.tensor([[7.0, -0.1]], dtype=torch.float64)
    lamb.step()  # the first r is (1, -1), of norm √2
    step = 0.1 * 5 / 2**0.5
    torch.testing.assert_close(q.detach(), torch.tensor([[3 - step, 4 + step]], dtype=torch.float64), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_a_tensor_of_zeros_has_ratio_one(name: str) -> None:
    p = nn.Parameter(torch.zeros(2, 2))
    optimizer = optimizers.registry.find(name)(0.5)
    optimizer.bind([("p", p)])
    p.grad = torch.ones(2, 2)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((2, 2), -0.5))
    p.grad = torch.zeros(2, 2)
    optimizer.step()
    assert p.isfinite().all()
