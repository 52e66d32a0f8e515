"""Optimizers: state, exclusion from weight decay, averages, no host sync, the learning rate, errors."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from convolt import optimizers
from convolt.errors import ArgumentError, ArgumentTypeError, DeviceError, ModelFileError, StateError
from convolt.optimizers import SGD, Adam, TorchOptimizer, Wrapper

NATIVE = [name for name, cls in optimizers.registry.items() if cls is not TorchOptimizer and not issubclass(cls, Wrapper)]
SETTINGS = {"SGD": {"momentum": 0.9}, "Adam": {"amsgrad": True}, "RMSprop": {"momentum": 0.9, "centered": True}}
TORCH = [torch.optim.Rprop, torch.optim.ASGD, torch.optim.AdamW, functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9),
         functools.partial(torch.optim.Adam, fused=True)]
EVERY = [
    *(pytest.param(functools.partial(optimizers.registry.find(name), **SETTINGS.get(name, {})), id=name) for name in NATIVE),
    *(pytest.param(functools.partial(TorchOptimizer, getattr(t, "func", t), getattr(t, "keywords", None)), id=f"torch-{i}")
      for i, t in enumerate(TORCH)),
]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4))
    return model.to(memory_format=torch.channels_last)


def train(model: nn.Module, optimizer: optimizers.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# -- state -------------------------------------------------------------------------------------------------------------


def through_a_file(state):
    """Writes a state as safetensors with JSON beside it, and reads it again."""
    tensors = {key: value.contiguous() for key, value in state.items() if isinstance(value, torch.Tensor)}
    numbers = json.dumps({key: value for key, value in state.items() if key not in tensors})
    return {**load_safetensors(save_safetensors(tensors)), **json.loads(numbers)}


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("rate", [0.0123, "cosine"])
def test_a_saved_and_loaded_state_continues_bit_equal(make, rate):
    settings = {"use_ema": True, "ema_overwrite_frequency": 4, "weight_decay": 0.01, "global_clipnorm": 5.0,
                "learning_rate": rate}
    whole, optimizer = network(), make(**settings)
    optimizer.bind(whole.named_parameters())
    optimizer.resolve(12)
    train(whole, optimizer, range(7))
    saved = through_a_file(optimizer.state_dict())
    model = network(seed=1)
    model.load_state_dict(whole.state_dict())
    train(whole, optimizer, range(7, 12))

    resumed = make(**{**settings, "learning_rate": 0.5 if rate == 0.0123 else rate})
    resumed.bind(model.named_parameters())
    resumed.load_state_dict(saved)
    assert resumed.iterations == 7
    train(model, resumed, range(7, 12))
    assert equal(weights(whole), weights(model))
    ends, resumed_ends = optimizer.state_dict(), resumed.state_dict()
    assert ends.keys() == resumed_ends.keys()
    for key, value in ends.items():
        assert torch.equal(value, resumed_ends[key]) if isinstance(value, torch.Tensor) else value == resumed_ends[key], key


def test_state_names_say_what_and_whose():
    model, optimizer = network(), Adam(use_ema=True)
    optimizer.bind(model.named_parameters())
    state = optimizer.state_dict()
    assert {"iterations", "learning_rate", "exp_avg/0.weight", "exp_avg_sq/3.bias", "average/1.weight"} <= state.keys()


@pytest.mark.parametrize(("change", "message"), [
    (lambda s: s.pop("exp_avg/0.weight"), "no tensor 'exp_avg/0.weight'"),
    (lambda s: s.update({"exp_avg/9.weight": torch.zeros(1)}), "an unknown tensor 'exp_avg/9.weight'"),
    (lambda s: s.update({"exp_avg/0.weight": torch.zeros(1)}), r"exp_avg/0.weight: got \(1,\)"),
    (lambda s: s.update({"exp_avg/0.weight": s["exp_avg/0.weight"].double()}), "float64"),
    (lambda s: s.pop("iterations"), "no number 'iterations'"),
    (lambda s: s.update(iterations=-1), "iterations: got -1"),
    (lambda s: s.update(iterations=1.5), "iterations: got 1.5"),
    (lambda s: s.update(learning_rate=float("nan")), "learning_rate: got nan"),
    (lambda s: s.update(learning_rate="0.1"), "learning_rate: got '0.1'"),
    (lambda s: s.update(total_steps=5), "an unknown number 'total_steps'"),
])
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(change, message):
    model, optimizer = network(), Adam()
    optimizer.bind(model.named_parameters())
    train(model, optimizer, range(2))
    state = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in optimizer.state_dict().items()}
    before = dict(state)
    state = {key: value + 1 if isinstance(value, torch.Tensor) else value for key, value in state.items()}
    change(state)
    with pytest.raises(ModelFileError, match=message):
        optimizer.load_state_dict(state)
    for key, value in optimizer.state_dict().items():
        assert torch.equal(value, before[key]) if isinstance(value, torch.Tensor) else value == before[key]


def test_a_torch_class_refuses_state_of_unknown_parameters_and_keeps_its_own():
    model, optimizer = network(), TorchOptimizer(torch.optim.AdamW)
    optimizer.bind(model.named_parameters())
    train(model, optimizer, range(1))
    state = optimizer.state_dict()
    with pytest.raises(ModelFileError, match=r"Did you mean '0.weight'"):
        optimizer.load_state_dict({**state, "exp_avg/0.weigth": torch.zeros(1)})
    with pytest.raises(ModelFileError, match="iterations"):
        optimizer.load_state_dict({k: v for k, v in state.items() if k != "iterations"})
    assert optimizer.state_dict().keys() == state.keys()


# -- weight decay ------------------------------------------------------------------------------------------------------


def decayed(optimizer: optimizers.Optimizer, model: nn.Module, **binding) -> set[str]:
    """Names of the parameters that shrink in a step whose gradients are zero."""
    for p in model.parameters():
        p.data.fill_(1.0)
    optimizer.bind(model.named_parameters(), **binding)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    return {name for name, p in model.named_parameters() if (p < 1.0).all()}


@pytest.mark.parametrize("name", NATIVE)
def test_biases_and_normalizations_do_not_decay(name):
    optimizer = optimizers.registry.find(name)(weight_decay=0.1)
    assert decayed(optimizer, network()) == {"0.weight", "3.weight"}


@pytest.mark.parametrize("kind", [torch.optim.AdamW, functools.partial(torch.optim.SGD, weight_decay=0.1)])
def test_a_torch_class_has_two_groups(kind):
    assert decayed(optimizers.get(kind), network()) == {"0.weight", "3.weight"}


def test_weight_decay_is_decoupled_and_scaled_by_the_rate():
    model, optimizer = network(), SGD(0.5, weight_decay=0.1)
    decayed(optimizer, model)
    assert torch.equal(model[0].weight, torch.full_like(model[0].weight, 1 - 0.1 * 0.5))


def test_parameters_are_left_out_by_name_by_pattern_and_as_objects():
    assert decayed(SGD(weight_decay=0.1), network(), exclude_from_weight_decay=["3.weight"]) == {"0.weight"}
    optimizer = SGD(weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["^0"])
    assert decayed(optimizer, network()) == {"3.weight"}
    optimizer, model = SGD(weight_decay=0.1), network()
    optimizer.exclude_from_weight_decay(var_list=[model[3].weight])
    assert decayed(optimizer, model) == {"0.weight"}
    with pytest.raises(StateError, match="before training"):
        optimizer.exclude_from_weight_decay(var_names=["bias"])


def test_muon_gives_matrices_and_the_rest_their_own_decay_and_rule():
    model, optimizer = network(), optimizers.Muon(weight_decay=None, adam_weight_decay=0.1, exclude_layers=["^3"])
    assert decayed(optimizer, model) == {"3.weight"}
    slots = set(optimizer.state_dict())
    assert {"momentum/0.weight", "exp_avg/3.weight", "exp_avg/1.weight"} <= slots and "momentum/3.weight" not in slots


# -- averages ----------------------------------------------------------------------------------------------------------


def test_averages_are_swapped_in_and_out():
    model, optimizer = network(), SGD(0.01, use_ema=True, ema_momentum=0.5)
    optimizer.bind(model.named_parameters())
    train(model, optimizer, range(1))
    after_one = weights(model)
    train(model, optimizer, range(1, 2))
    own = weights(model)
    expected = [0.5 * a + 0.5 * b for a, b in zip(after_one, own, strict=True)]
    with optimizer.averaged_weights():
        for p, e in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p, nn.Parameter(e))
        for call in (optimizer.step, optimizer.apply_ema, optimizer.state_dict):
            with pytest.raises(StateError, match="Call restore"):
                call()
    assert equal(weights(model), own)
    optimizer.finalize_variable_values()
    for p, e in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p, nn.Parameter(e))


def test_weights_come_back_when_the_evaluation_fails():
    model, optimizer = network(), SGD(0.01, use_ema=True)
    optimizer.bind(model.named_parameters())
    train(model, optimizer, range(2))
    own = weights(model)
    with pytest.raises(RuntimeError, match="evaluation"), optimizer.averaged_weights():
        raise RuntimeError("evaluation")
    assert equal(weights(model), own)


def test_without_averages_nothing_is_swapped():
    model, optimizer = network(), SGD(0.01)
    optimizer.bind(model.named_parameters())
    train(model, optimizer, range(2))
    own = weights(model)
    with optimizer.averaged_weights():
        assert equal(weights(model), own)
    optimizer.finalize_variable_values()
    assert equal(weights(model), own)


# -- no host sync ------------------------------------------------------------------------------------------------------


class NoSync(TorchDispatchMode):
    """Raises where a tensor's value would reach the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("clip", ["clipnorm", "clipvalue", "global_clipnorm"])
def test_a_step_reads_nothing_back(name, clip):
    optimizer = optimizers.registry.find(name)("cosine", weight_decay=0.1, use_ema=True, ema_overwrite_frequency=2, **{clip: 1.0},
                                               **SETTINGS.get(name, {}))
    model = network()
    optimizer.bind(model.named_parameters())
    optimizer.resolve(10)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with NoSync():
        for _ in range(8):  # RAdam changes its form on the way
            optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    assert optimizer.iterations == 8


def test_the_guard_against_syncs_catches_one():
    with pytest.raises(AssertionError, match="waits for the device"), NoSync():
        torch.ones(()).item()


@pytest.mark.parametrize("name", NATIVE)
def test_update_alone_can_be_replayed(name):
    """A CUDA graph replays `update` with the same Python numbers, so that all that changes must be in tensors."""
    whole, replayed = network(), network()
    make = functools.partial(optimizers.registry.find(name), "linear", weight_decay=0.01, use_ema=True, **SETTINGS.get(name, {}))
    first, second = make(), make()
    for model, optimizer in ((whole, first), (replayed, second)):
        optimizer.bind(model.named_parameters())
        optimizer.resolve(20)
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.1)
    pointers = [t.data_ptr() for t in (*second._numbers.values(), *second.slots().values())]
    second.numbers, compute = None, second.numbers
    for _ in range(10):
        first.step()
        second.numbers = compute
        second.prepare_step()
        second.numbers, iterations = None, second.iterations
        second.iterations = -1  # neither is there in a replay
        second.update()
        second.iterations = iterations
        second.finish_step()
    assert equal(weights(whole), weights(replayed))
    assert pointers == [t.data_ptr() for t in (*second._numbers.values(), *second.slots().values())]


# -- gradients ---------------------------------------------------------------------------------------------------------


def test_a_gradient_in_another_memory_order_gives_the_same_step():
    results = []
    for order in (torch.channels_last, torch.contiguous_format):
        p = nn.Parameter(torch.zeros(4, 3, 2, 2).contiguous(memory_format=torch.channels_last))
        optimizer = SGD(0.1)
        optimizer.bind([("p", p)])
        p.grad = torch.arange(48.0).reshape(4, 3, 2, 2).contiguous(memory_format=order)
        optimizer.step()
        results.append(p.detach().clone())
    assert torch.equal(*results)


def test_parameters_without_gradient_stay_and_no_gradient_at_all_is_an_error():
    model, optimizer = network(), Adam(weight_decay=0.1, clipnorm=1.0)
    optimizer.bind(model.named_parameters())
    before = weights(model)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    optimizer.step()
    changed = [not torch.equal(a, b) for a, b in zip(before, weights(model), strict=True)]
    assert changed == [True, False, False, False, False, False]
    optimizer.zero_grad()
    with pytest.raises(StateError, match=r"Call loss\.backward"):
        optimizer.step()


def test_global_clipping_of_a_gradient_that_is_not_finite_shows_it_everywhere():
    model, optimizer = network(), SGD(global_clipnorm=1.0)
    optimizer.bind(model.named_parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model[0].weight.grad[0, 0, 0, 0] = float("inf")
    optimizer.step()
    assert all(p.isnan().all() for p in model.parameters())


def test_zero_grad_keeps_the_memory_if_asked():
    model, optimizer = network(), SGD()
    optimizer.bind(model.named_parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    gradient = model[0].weight.grad
    optimizer.zero_grad(set_to_none=False)
    assert model[0].weight.grad is gradient and not gradient.any()
    optimizer.zero_grad()
    assert model[0].weight.grad is None


def test_apply_steps_with_given_gradients_and_leaves_them_alone():
    p, gradient = nn.Parameter(torch.ones(2, 2)), torch.full((2, 2), 4.0)
    optimizer = SGD(0.5, clipvalue=1.0)
    optimizer.apply_gradients([(gradient, p)])
    assert torch.equal(p.detach(), torch.full((2, 2), 0.5)) and p.grad is None
    optimizer.apply([gradient])
    assert torch.equal(p.detach(), torch.zeros(2, 2)) and optimizer.iterations == 2
    assert torch.equal(gradient, torch.full((2, 2), 4.0))
    with pytest.raises(ArgumentError, match="2 gradients"):
        optimizer.apply([gradient, gradient])
    with pytest.raises(ArgumentError, match="unknown parameter"):
        optimizer.apply([gradient], [nn.Parameter(torch.ones(2, 2))])


# -- binding -----------------------------------------------------------------------------------------------------------


def test_binding_again_keeps_the_state_and_another_model_is_refused():
    model, optimizer = network(), Adam()
    optimizer.bind(model.named_parameters())
    train(model, optimizer, range(2))
    before = optimizer.state_dict()["exp_avg/0.weight"]
    optimizer.bind(model.named_parameters())
    assert optimizer.state_dict()["exp_avg/0.weight"] is before and optimizer.iterations == 2
    with pytest.raises(StateError, match="Make a new optimizer"):
        optimizer.bind(network().named_parameters())


def test_frozen_parameters_are_left_out():
    model, optimizer = network(), Adam()
    model[0].requires_grad_(False)
    optimizer.bind(model.named_parameters())
    assert "exp_avg/0.weight" not in optimizer.state_dict() and "exp_avg/3.weight" in optimizer.state_dict()
    with pytest.raises(ArgumentError, match="no trainable parameters"):
        Adam().bind(model[0].named_parameters())


def test_binding_errors():
    model = network()
    with pytest.raises(ArgumentTypeError, match="named_parameters"):
        Adam().bind(model.parameters())
    with pytest.raises(ArgumentError, match=r"Did you mean '0\.weight'"):
        Adam().bind(model.named_parameters(), exclude_from_weight_decay=["0.weigth"])
    with pytest.raises(DeviceError, match="cpu, meta"):
        Adam().bind([("a", nn.Parameter(torch.ones(1))), ("b", nn.Parameter(torch.ones(1, device="meta")))])
    for call in (lambda: Adam().step(), lambda: Adam().load_state_dict({})):
        with pytest.raises(StateError, match=r"optimizer\.bind"):
            call()


def test_gradients_of_windows_of_one_pixel_are_not_copied() -> None:
    """Convolutions give them strides of their own, which say the same of the memory."""
    weight = torch.nn.Parameter(torch.randn(6, 4, 1, 1).to(memory_format=torch.channels_last))
    gradient = torch.randn(6 * 4).as_strided((6, 4, 1, 1), (4, 1, 4, 4))
    weight.grad = gradient
    other = torch.nn.Parameter(torch.randn(6, 4, 3, 3).to(memory_format=torch.channels_last))
    other.grad = torch.randn(6, 4, 3, 3)
    before = [p.detach().clone() for p in (weight, other)]
    optimizer = optimizers.SGD(0.5)
    optimizer.bind([("weight", weight), ("other", other)])
    optimizer.step()
    assert weight.grad.data_ptr() == gradient.data_ptr() and weight.grad.stride() == weight.stride()
    assert other.grad.stride() == other.stride()
    for p, start in zip((weight, other), before, strict=True):
        torch.testing.assert_close(p.detach(), start - 0.5 * p.grad)
