"""Optimizers: the learning rate, names, configurations, arguments, and classes of torch.optim."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from torch import nn

from convolt import optimizers, schedules
from convolt.errors import ArgumentError, ArgumentTypeError, StateError
from convolt.optimizers import SGD, Adam, TorchOptimizer
from tests.unit.test_optimizers import NATIVE, SETTINGS, network, train, weights

# -- the learning rate -------------------------------------------------------------------------------------------------


def test_the_rate_can_be_set_and_takes_effect_in_place():
    p, optimizer = nn.Parameter(torch.zeros(2, 2)), SGD(0.1)
    optimizer.bind([("p", p)])
    held = optimizer._numbers["lr"]
    for rate in (0.1, 0.5, 0.0):
        optimizer.learning_rate = rate
        assert optimizer.lr == optimizer.learning_rate == rate
        p.data.zero_()
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert torch.equal(p.detach(), torch.full((2, 2), -rate))
    optimizer.lr = 0.25
    assert optimizer.learning_rate == 0.25 and optimizer._numbers["lr"] is held
    optimizer.set_learning_rate(0.3)
    assert optimizer.get_config()["learning_rate"] == 0.3


def test_a_schedule_decides_by_the_step_and_cannot_be_overruled_by_a_number():
    p, optimizer = nn.Parameter(torch.zeros(2, 2)), SGD(schedules.PiecewiseConstantDecay([0, 1], [1.0, 0.5, 0.25]))
    optimizer.bind([("p", p)])
    for expected in (-1.0, -1.5, -1.75, -2.0):
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert torch.equal(p.detach(), torch.full((2, 2), expected))
    with pytest.raises(ArgumentTypeError, match="PiecewiseConstantDecay sets the rate"):
        optimizer.learning_rate = 0.1
    optimizer.learning_rate = schedules.Constant(0.125)
    assert optimizer.learning_rate == 0.125


def test_a_word_is_a_schedule_with_the_default_rate_over_the_whole_training():
    optimizer = SGD("one_cycle", momentum=0.9)
    with pytest.raises(StateError, match=r"resolve\(total_steps\)"):
        _ = optimizer.learning_rate
    optimizer.resolve(100)
    assert max(optimizer.schedule(step) for step in range(100)) == pytest.approx(0.01)
    assert Adam("cosine").schedule.initial_learning_rate == 0.001
    for word in schedules.by_word:
        optimizer = Adam(word)
        optimizer.resolve(30)
        rates = [optimizer.schedule(step) for step in range(40)]
        assert max(rates) == pytest.approx(0.001, rel=0.05) and min(rates) >= 0.0
        again = optimizers.get(json.loads(json.dumps(optimizers.serialize(optimizer))))
        again.resolve(30)
        assert [again.schedule(step) for step in range(40)] == rates


def test_a_function_is_a_schedule():
    assert SGD(lambda step: 0.5 / (step + 1)).learning_rate == 0.5
    assert SGD(lambda: 0.25).learning_rate == 0.25
    with pytest.raises(ArgumentError, match="at step 0: got nan"):
        _ = SGD(lambda step: float("nan")).learning_rate


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "0.1", "cosin", None, True, [0.1]])
def test_an_invalid_rate_is_an_error(value):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=r"learning.rate"):
        Adam(learning_rate=value)
    optimizer = Adam()
    with pytest.raises(ArgumentError, match="learning_rate"):
        optimizer.learning_rate = value
    assert optimizer.learning_rate == 0.001


def test_a_misspelt_schedule_gets_a_suggestion():
    with pytest.raises(ArgumentError, match="Did you mean 'cosine'"):
        Adam("cosin")


# -- names, configurations, arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NATIVE)
def test_names_classes_configurations_and_objects(name):
    cls = optimizers.registry.find(name)
    made = cls(learning_rate=schedules.CosineDecay(0.1, 50), **SETTINGS.get(name, {}), clipnorm=2.0, use_ema=True)
    for identifier in (name, name.lower(), cls, made, {"class_name": name, "config": {}}):
        assert type(optimizers.get(identifier)) is cls
    assert optimizers.get(made) is made
    again = optimizers.deserialize(json.loads(json.dumps(optimizers.serialize(made))))
    assert again.get_config() == made.get_config() and again.learning_rate == 0.1


def test_misspelt_names_and_arguments_get_a_suggestion():
    with pytest.raises(ArgumentError, match="Did you mean 'adam'"):
        optimizers.get("adm")
    with pytest.raises(ArgumentTypeError, match="Did you mean 'momentum'"):
        SGD(0.1, momentun=0.9)
    with pytest.raises(ArgumentTypeError, match="Did you mean 'clipnorm'"):
        Adam(clip_norm=1.0)
    with pytest.raises(ArgumentTypeError, match="a name, a configuration or a Optimizer object"):
        optimizers.get(3)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: SGD(momentum=1.5), r"SGD\(momentum\): got 1.5"),
    (lambda: Adam(beta_1=1.0), r"Adam\(beta_1\)"),
    (lambda: Adam(epsilon=-1e-7), r"Adam\(epsilon\)"),
    (lambda: Adam(epsilon="small"), r"Adam\(epsilon\): got 'small'"),
    (lambda: Adam(weight_decay=-0.1), r"Adam\(weight_decay\)"),
    (lambda: optimizers.AdamW(weight_decay=None), "Adam is AdamW without"),
    (lambda: Adam(clipnorm=0), r"Adam\(clipnorm\): got 0"),
    (lambda: Adam(clipnorm=1, clipvalue=1), "one of clipnorm, clipvalue and global_clipnorm"),
    (lambda: Adam(use_ema=True, ema_momentum=2), r"ema_momentum"),
    (lambda: Adam(use_ema=True, ema_overwrite_frequency=0), "ema_overwrite_frequency"),
    (lambda: Adam(gradient_accumulation_steps=1), r"Adam\(gradient_accumulation_steps\): got 1; expected a whole number from 2"),
    (lambda: optimizers.Lion(beta_1=0.0), r"Lion\(beta_1\)"),
    (lambda: optimizers.LARS(trust_coefficient=0), r"LARS\(trust_coefficient\)"),
    (lambda: schedules.CosineDecay(0.1, 0), r"CosineDecay\(decay_steps\): got 0"),
    (lambda: schedules.CosineDecay(-0.1, 10), r"CosineDecay\(initial_learning_rate\)"),
    (lambda: schedules.CosineDecayRestarts(0.1, 10, t_mul=0.5), "t_mul"),
    (lambda: schedules.PiecewiseConstantDecay([1, 2], [0.1, 0.2]), "one value more"),
    (lambda: schedules.PiecewiseConstantDecay([2, 1], [0.1, 0.2, 0.3]), "increasing"),
    (lambda: schedules.OneCycle(0.1, anneal_strategy="cosine"), "'cos' or 'linear'"),
    (lambda: schedules.StepDecay(0.1).resolve(0), "total_steps"),
])
def test_invalid_arguments(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


# -- classes of torch.optim --------------------------------------------------------------------------------------------


def test_a_torch_class_is_taken_with_its_arguments_and_written_by_name():
    made = optimizers.get(functools.partial(torch.optim.NAdam, lr=0.02, momentum_decay=0.1))
    assert made.learning_rate == 0.02 and made.name == "nadam"
    again = optimizers.get(json.loads(json.dumps(optimizers.serialize(made))))
    assert again.torch_class is torch.optim.NAdam and again.arguments == {"momentum_decay": 0.1} and again.learning_rate == 0.02
    assert optimizers.get(torch.optim.Adam).learning_rate == 0.001


def test_a_torch_class_steps_as_torch_does_also_under_a_schedule():
    ours, theirs = network(), network()
    optimizer = TorchOptimizer(torch.optim.Adam, learning_rate=schedules.StepDecay(0.1, 2))
    optimizer.bind(ours.named_parameters())
    train(ours, optimizer, range(5))
    reference = torch.optim.Adam(theirs.parameters(), lr=0.1)
    decay = torch.optim.lr_scheduler.StepLR(reference, 2)
    for step in range(5):
        reference.zero_grad()
        theirs(torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        reference.step()
        decay.step()
    for a, b in zip(weights(ours), weights(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("identifier", "error", "message"), [
    (torch.optim.LBFGS, ArgumentError, "evaluates the loss several times"),
    (functools.partial(torch.optim.SGD, momentun=0.9), ArgumentTypeError, "Did you mean 'momentum'"),
    (functools.partial(torch.optim.SGD, [1]), ArgumentTypeError, "positional"),
    (functools.partial(dict, lr=0.1), ArgumentTypeError, "a subclass of torch.optim.Optimizer"),
    ({"class_name": "TorchOptimizer", "config": {"torch_class": "Adm"}}, ArgumentError, "Did you mean 'Adam'"),
    ({"class_name": "TorchOptimizer", "config": {"torch_class": "os.system"}}, ArgumentError, "a class of torch.optim"),
    (torch.optim.SGD([nn.Parameter(torch.ones(1))]), ArgumentTypeError, r"functools.partial\(torch.optim.SGD"),
])
def test_torch_classes_that_do_not_fit(identifier, error, message):
    with pytest.raises(error, match=message):
        optimizers.get(identifier)


@pytest.mark.parametrize("word", schedules.by_word)
def test_a_schedule_without_length_is_written_and_made_again(word):
    made = optimizers.AdamW(word)
    again = optimizers.get(json.loads(json.dumps(optimizers.serialize(made))))
    for optimizer in (made, again):
        optimizer.resolve(total_steps=10)
    assert again.get_config() == made.get_config()
    assert again.learning_rate == made.learning_rate
