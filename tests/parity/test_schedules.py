"""Every schedule against its counterpart in Keras or PyTorch, at many steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from convolt import optimizers, schedules

STEPS = [*range(25), 49, 50, 51, 99, 100, 101, 150, 299, 301, 650, 1000]

IN_KERAS: list[tuple[str, dict[str, Any]]] = [
    ("ExponentialDecay", {"initial_learning_rate": 0.1, "decay_steps": 30, "decay_rate": 0.9}),
    ("ExponentialDecay", {"initial_learning_rate": 0.1, "decay_steps": 7, "decay_rate": 0.9, "staircase": True}),
    ("InverseTimeDecay", {"initial_learning_rate": 0.1, "decay_steps": 30, "decay_rate": 0.5}),
    ("InverseTimeDecay", {"initial_learning_rate": 0.1, "decay_steps": 7, "decay_rate": 0.5, "staircase": True}),
    ("PolynomialDecay", {"initial_learning_rate": 0.1, "decay_steps": 100}),
    ("PolynomialDecay", {"initial_learning_rate": 0.1, "decay_steps": 100, "end_learning_rate": 0.01, "power": 0.5}),
    ("PolynomialDecay", {"initial_learning_rate": 0.1, "decay_steps": 40, "power": 2.0, "cycle": True}),
    ("PiecewiseConstantDecay", {"boundaries": [3, 20, 100], "values": [0.1, 0.05, 0.01, 0.001]}),
    ("PiecewiseConstantDecay", {"boundaries": [5], "values": [1.0, 0.5]}),
    ("CosineDecay", {"initial_learning_rate": 0.1, "decay_steps": 100}),
    ("CosineDecay", {"initial_learning_rate": 0.1, "decay_steps": 100, "alpha": 0.2}),
    ("CosineDecay", {"initial_learning_rate": 0.01, "decay_steps": 100, "alpha": 0.1, "warmup_target": 0.2, "warmup_steps": 20}),
    ("CosineDecay", {"initial_learning_rate": 0.0, "decay_steps": 90, "warmup_target": 0.2, "warmup_steps": 10}),
    ("CosineDecayRestarts", {"initial_learning_rate": 0.1, "first_decay_steps": 100}),
    ("CosineDecayRestarts", {"initial_learning_rate": 0.1, "first_decay_steps": 40, "t_mul": 1.0, "m_mul": 0.9, "alpha": 0.1}),
    ("CosineDecayRestarts", {"initial_learning_rate": 0.1, "first_decay_steps": 37, "t_mul": 1.5, "m_mul": 0.8}),
]
IN_TORCH: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("Constant", {"learning_rate": 0.1}, "ConstantLR", {"factor": 1.0}),
    ("StepDecay", {"initial_learning_rate": 0.1, "step_size": 7, "gamma": 0.5}, "StepLR", {"step_size": 7, "gamma": 0.5}),
    ("OneCycle", {"max_learning_rate": 0.1, "total_steps": 50}, "OneCycleLR", {"max_lr": 0.1, "total_steps": 50}),
    ("OneCycle", {"max_learning_rate": 0.1, "total_steps": 50, "pct_start": 0.2, "three_phase": True, "div_factor": 10.0},
     "OneCycleLR", {"max_lr": 0.1, "total_steps": 50, "pct_start": 0.2, "three_phase": True, "div_factor": 10.0}),
    ("OneCycle", {"max_learning_rate": 0.1, "total_steps": 37, "anneal_strategy": "linear", "final_div_factor": 100.0},
     "OneCycleLR", {"max_lr": 0.1, "total_steps": 37, "anneal_strategy": "linear", "final_div_factor": 100.0}),
]
ELSEWHERE = {"WarmupCosine"}  # test_warmup_cosine_is_keras_cosine_with_warmup


def test_every_schedule_is_compared():
    assert set(schedules.registry) == {c[0] for c in IN_KERAS} | {c[0] for c in IN_TORCH} | ELSEWHERE


@pytest.mark.parametrize(("name", "config"), IN_KERAS)
def test_keras(keras, name, config):
    theirs = getattr(keras.optimizers.schedules, name)(**config)
    ours = getattr(optimizers.schedules, name)(**config)
    for step in STEPS:
        assert ours(step) == pytest.approx(float(theirs(step)), rel=1e-4, abs=1e-8), step  # Keras computes in float32
    assert {**theirs.get_config()} == ours.get_config()


@pytest.mark.parametrize(("name", "config", "counterpart", "arguments"), IN_TORCH)
def test_torch(name, config, counterpart, arguments):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    extra = {"cycle_momentum": False} if counterpart == "OneCycleLR" else {}
    theirs = getattr(torch.optim.lr_scheduler, counterpart)(optimizer, **arguments, **extra)
    ours = getattr(schedules, name)(**config)
    for step in range(config.get("total_steps", 50)):
        assert ours(step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12, abs=1e-15), step
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("warmup", [0.1, 10])
def test_warmup_cosine_is_keras_cosine_with_warmup(keras, warmup):
    theirs = keras.optimizers.schedules.CosineDecay(0.0, 90, alpha=0.1, warmup_target=0.2, warmup_steps=10)
    ours = schedules.WarmupCosine(0.2, 100, warmup=warmup, alpha=0.1)
    for step in STEPS:
        assert ours(step) == pytest.approx(float(theirs(step)), rel=1e-4, abs=1e-8), step
