"""Every optimizer: 100 steps against the written recurrence in float64, against Keras and against `torch.optim` in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from convolt import layers, optimizers, schedules
from convolt.formats.keras_training import OWN_OPTIMIZERS
from convolt.models import Sequential
from convolt.optimizers import Optimizer, TorchOptimizer, Wrapper
from tests.parity.optimizer_recurrences import RECURRENCES, train

# Keras's variables lack NumPy 2's `copy` argument in `__array__`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

STEPS = 100
SHAPES = {"tall": (6, 4), "wide": (4, 6), "square": (4, 4), "bias": (4,), "conv": (4, 3, 2, 2)}
KERAS_SHAPES = {name: shape for name, shape in SHAPES.items() if name != "conv"}  # Muon's other way with these: see NumPy
FALLING = schedules.PolynomialDecay(0.05, STEPS, 0.001)

CASES: dict[str, list[dict[str, Any]]] = {
    "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"learning_rate": FALLING, "momentum": 0.9},
            {"learning_rate": FALLING, "momentum": 0.8, "nesterov": True}, {"nesterov": True}],
    "Adam": [{}, {"amsgrad": True}, {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3}, {"learning_rate": FALLING}],
    "AdamW": [{}, {"weight_decay": 0.1, "learning_rate": FALLING}, {"weight_decay": 0.01, "amsgrad": True}],
    "RMSprop": [{}, {"centered": True}, {"momentum": 0.9}, {"momentum": 0.5, "centered": True, "epsilon": 1e-2, "rho": 0.8}],
    "Adagrad": [{}, {"initial_accumulator_value": 0.0, "epsilon": 1e-2}, {"learning_rate": FALLING}],
    "Adadelta": [{}, {"learning_rate": 1.0, "rho": 0.9, "epsilon": 1e-5}, {"learning_rate": FALLING}],
    "Adamax": [{}, {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-2}, {"learning_rate": FALLING}],
    "Nadam": [{}, {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-2}, {"learning_rate": FALLING}],
    "RAdam": [{}, {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-2}, {"learning_rate": FALLING}],
    "Muon": [{}, {"nesterov": False, "weight_decay": 0.1, "adam_weight_decay": 0.1}, {"rms_rate": None, "ns_steps": 3},
             {"learning_rate": FALLING, "momentum": 0.8, "adam_lr_ratio": 0.1}],
    "Lion": [{}, {"beta_1": 0.8, "beta_2": 0.9}, {"learning_rate": FALLING}],
    "Lamb": [{}, {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-2}, {"learning_rate": FALLING}],
    "LARS": [{}, {"nesterov": True, "momentum": 0.8}, {"weight_decay": 0.1, "trust_coefficient": 0.02, "epsilon": 1e-3},
             {"learning_rate": FALLING, "momentum": 0.0}],
}
NOT_IN_KERAS = {"RAdam", "LARS"}
SHARED: list[dict[str, Any]] = [
    {"weight_decay": 0.05}, {"clipnorm": 1.0}, {"clipvalue": 0.3}, {"global_clipnorm": 2.0},
    {"use_ema": True, "ema_momentum": 0.9},
    {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 7, "clipnorm": 0.5},
    {"gradient_accumulation_steps": 3, "learning_rate": FALLING, "weight_decay": 0.05, "global_clipnorm": 1.0},
    {"gradient_accumulation_steps": 4, "use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 5},
]


def shared(name: str) -> list[dict[str, Any]]:
    """The settings that all optimizers take; Muon has a weight decay for each of its two halves."""
    more = {"adam_weight_decay": 0.05} if name == "Muon" else {}
    return [case | more if "weight_decay" in case else case for case in SHARED]


ALL = [pytest.param(name, case, id=f"{name}-{'-'.join(case) or 'default'}-{i}")
       for name, own in CASES.items() for i, case in enumerate([*own, *shared(name)])]
IN_KERAS = [p for p in ALL if p.values[0] not in NOT_IN_KERAS]


def untested() -> set[str]:
    """Names of registered optimizers without cases or recurrence, and of optimizers that are not registered."""
    registered = {name for name, cls in optimizers.registry.items() if cls is not TorchOptimizer and not issubclass(cls, Wrapper)}
    defined = {cls.__name__ for cls in subclasses(Optimizer)
               if cls.__module__.startswith("convolt.") and not cls.__name__.startswith("_") and not issubclass(cls, Wrapper)}
    defined -= {"TorchOptimizer"}
    return (registered ^ CASES.keys()) | (registered ^ RECURRENCES.keys()) | (defined - registered)


def subclasses(cls: type) -> set[type]:
    return {cls}.union(*(subclasses(c) for c in cls.__subclasses__())) - {Optimizer}


def arrays(shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    """Weights near one, and gradients of very different sizes, from the same numbers for all tests."""
    rng = np.random.default_rng(5)
    weights = {name: rng.uniform(0.5, 1.5, shape) for name, shape in shapes.items()}
    gradients = [{name: rng.normal(size=shape) * 10.0 ** rng.uniform(-2, 0.5) for name, shape in shapes.items()}
                 for _ in range(STEPS)]
    return weights, gradients


def run(optimizer: Optimizer, weights: dict[str, np.ndarray], gradients: list[dict[str, np.ndarray]],
        dtype: torch.dtype) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the weights and their averages after all steps; convolution weights lie in channels-last memory."""
    def tensor(array: np.ndarray) -> torch.Tensor:
        t = torch.tensor(array, dtype=dtype)
        return t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t

    parameters = {name: nn.Parameter(tensor(array)) for name, array in weights.items()}
    optimizer.bind(parameters.items())
    for step in gradients:
        optimizer.zero_grad()
        for name, g in step.items():
            parameters[name].grad = torch.tensor(g, dtype=dtype)
        optimizer.step()
    ends = {name: p.detach().numpy().copy() for name, p in parameters.items()}
    optimizer.finalize_variable_values()
    return ends, {name: p.detach().numpy() for name, p in parameters.items()}


def test_every_optimizer_is_registered_and_tested():
    assert untested() == set()


def test_the_sweep_notices_an_optimizer_without_cases(monkeypatch):
    class Newcomer(Optimizer):
        pass

    Newcomer.__module__ = "convolt.optimizers.newcomer"
    assert untested() == {"Newcomer"}
    monkeypatch.setattr(optimizers.registry, "_entries", {**optimizers.registry._entries, "Registered": Newcomer})
    assert untested() == {"Newcomer", "Registered"}
    Newcomer.__module__ = __name__  # classes stay in __subclasses__ until they are collected


@pytest.mark.parametrize(("name", "settings"), ALL)
def test_float64_follows_the_written_recurrence(name, settings):
    weights, gradients = arrays(SHAPES)
    optimizer = optimizers.get({"class_name": name, "config": settings})
    constant = optimizer.lr
    rate = optimizer.schedule or (lambda step: constant)
    expected, averages = train(name, settings, rate, weights, gradients)
    got, got_averages = run(optimizer, weights, gradients, torch.float64)
    for key in weights:
        np.testing.assert_allclose(got[key], expected[key], rtol=1e-12, atol=1e-13, err_msg=key)
        if settings.get("use_ema"):
            np.testing.assert_allclose(got_averages[key], averages[key], rtol=1e-12, atol=1e-13, err_msg=f"average of {key}")


@pytest.mark.parametrize(("name", "settings"), IN_KERAS)
def test_float32_follows_keras(keras, name, settings):
    weights, gradients = arrays(KERAS_SHAPES)
    theirs = dict(settings)
    if theirs.get("learning_rate") is FALLING:
        theirs["learning_rate"] = keras.optimizers.schedules.PolynomialDecay(0.05, STEPS, 0.001)
    reference = getattr(keras.optimizers, name)(**theirs)
    variables = {key: keras.Variable(w.astype("float32"), name=key) for key, w in weights.items()}
    reference.exclude_from_weight_decay(var_list=[variables["bias"]])  # Convolt's default
    reference.build(list(variables.values()))
    for step in gradients:
        reference.apply([torch.tensor(g, dtype=torch.float32) for g in step.values()])
    expected = {key: v.numpy().copy() for key, v in variables.items()}
    reference.finalize_variable_values(list(variables.values()))

    got, averages = run(getattr(optimizers, name)(**settings), weights, gradients, torch.float32)
    for key, variable in variables.items():
        np.testing.assert_allclose(got[key], expected[key], rtol=1e-5, atol=1e-5, err_msg=key)
        np.testing.assert_allclose(averages[key], variable.numpy(), rtol=1e-5, atol=1e-5, err_msg=f"average of {key}")


def test_files_for_keras_leave_out_the_optimizers_that_it_lacks(keras):
    assert {name for name in optimizers.registry if not hasattr(keras.optimizers, name)} == OWN_OPTIMIZERS


@pytest.mark.parametrize("name", sorted(set(CASES) - NOT_IN_KERAS))
def test_defaults_are_those_of_keras(keras, name):
    theirs = getattr(keras.optimizers, name)().get_config()
    ours = getattr(optimizers, name)().get_config()
    for key, value in theirs.items():
        if key not in ("name", "loss_scale_factor"):
            close = pytest.approx(value, rel=1e-7) if isinstance(value, float) else value  # Keras holds the rate in float32
            assert ours[key] == close, key


# (ours, arguments, torch's, arguments): pairs whose recurrences are equal. Epsilon is 0 where the two put it in different places.
EQUAL: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("SGD", {"learning_rate": 0.01}, "SGD", {"lr": 0.01}),
    ("SGD", {"learning_rate": 0.01, "momentum": 0.9}, "SGD", {"lr": 0.01, "momentum": 0.9}),
    ("SGD", {"learning_rate": 0.01, "momentum": 0.9, "nesterov": True}, "SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    ("Adam", {"epsilon": 0.0}, "Adam", {"eps": 0.0}),
    ("Adam", {"epsilon": 0.0, "amsgrad": True}, "Adam", {"eps": 0.0, "amsgrad": True}),
    ("AdamW", {"epsilon": 0.0, "weight_decay": 0.1}, "AdamW", {"eps": 0.0, "weight_decay": 0.1}),
    ("RMSprop", {"epsilon": 0.0, "momentum": 0.9}, "RMSprop", {"lr": 0.001, "alpha": 0.9, "eps": 0.0, "momentum": 0.9}),
    ("Adagrad", {"epsilon": 0.0}, "Adagrad", {"lr": 0.001, "initial_accumulator_value": 0.1, "eps": 0.0}),
    ("Adadelta", {"learning_rate": 1.0}, "Adadelta", {"lr": 1.0, "rho": 0.95, "eps": 1e-7}),
    ("Adamax", {"epsilon": 0.0}, "Adamax", {"lr": 0.001, "eps": 0.0}),
    ("Nadam", {}, "NAdam", {"lr": 0.001, "eps": 1e-7, "momentum_decay": 1.0}),
    ("RAdam", {}, "RAdam", {"lr": 0.001}),
    ("RAdam", {"beta_2": 0.9, "epsilon": 1e-3}, "RAdam", {"lr": 0.001, "betas": (0.9, 0.9), "eps": 1e-3}),
]


@pytest.mark.parametrize(("name", "ours", "theirs", "arguments"), EQUAL)
def test_float32_follows_torch_where_the_recurrences_are_equal(name, ours, theirs, arguments):
    weights, gradients = arrays({"dense": (6, 4), "conv": (4, 3, 2, 2)})
    parameters = {key: nn.Parameter(torch.tensor(w, dtype=torch.float32)) for key, w in weights.items()}
    reference = getattr(torch.optim, theirs)(parameters.values(), **arguments)
    for step in gradients:
        for key, g in step.items():
            parameters[key].grad = torch.tensor(g, dtype=torch.float32)
        reference.step()
    got, _ = run(getattr(optimizers, name)(**ours), weights, gradients, torch.float32)
    for key, p in parameters.items():
        np.testing.assert_allclose(got[key], p.detach().numpy(), rtol=1e-6, atol=1e-6, err_msg=key)


@pytest.mark.parametrize(("name", "settings"), [("SGD", {}), ("Adam", {}), ("Adam", {"amsgrad": True}), ("Muon", {})])
def test_without_fused_kernels_the_recurrence_is_the_same(monkeypatch, name, settings):
    monkeypatch.setattr(optimizers.standard, "FUSED_DEVICES", frozenset())
    weights, gradients = arrays(SHAPES)
    optimizer = getattr(optimizers, name)(**settings)
    expected, _ = train(name, settings, lambda step: optimizer.learning_rate, weights, gradients)
    got, _ = run(optimizer, weights, gradients, torch.float64)
    for key in weights:
        np.testing.assert_allclose(got[key], expected[key], rtol=1e-12, atol=1e-13, err_msg=key)


def test_accumulation_in_fit_follows_keras(keras):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 5)).astype("float32"), rng.integers(0, 3, 64)
    reference = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, activation="softmax")])
    ours = Sequential([layers.Input((5,)), layers.Dense(3, activation="softmax")])
    ours.compile(optimizers.Adam(0.05, gradient_accumulation_steps=3), "sparse_categorical_crossentropy", device="cpu")
    ours.set_weights([v.numpy() for v in reference.variables])
    reference.compile(keras.optimizers.Adam(0.05, gradient_accumulation_steps=3), "sparse_categorical_crossentropy")
    theirs = reference.fit(x, y, batch_size=8, epochs=4, shuffle=False, verbose=0).history["loss"]
    got = ours.fit(x, y, batch_size=8, epochs=4, shuffle=False, verbose=0).history["loss"]
    np.testing.assert_allclose(got, theirs, rtol=1e-5)
    assert ours.optimizer.iterations == int(reference.optimizer.iterations) == 10
    for a, b in zip(ours.get_weights(), reference.variables, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-5)
