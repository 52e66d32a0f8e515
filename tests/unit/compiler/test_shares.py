"""Shares of a step's time: each layer's own forward and backward pass, whatever it does to its input."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convolt.compiler.measure import Probe
from convolt.compiler.replay import Recordings
from convolt.compiler.shares import Shares
from convolt.compiler.trace import trace
from convolt.layers import Activation, Layer


class Slow(torch.autograd.Function):
    """Takes its time with gradients alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        time.sleep(0.05)
        return grads[0] * 2


def careful(x: Tensor) -> Tensor:
    return Slow.apply(x)  # type: ignore[no-untyped-call, no-any-return]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.more, self.careful = nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1), Activation(careful)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.relu(self.conv(x)))
        return (self.more(x) + self.careful(x) + torch.relu(x)).mean((2, 3))


def shares_of(model: nn.Module, x: Tensor) -> tuple[Shares, Any]:
    traced: Any = trace(model, [x])
    probe = Probe(model, lambda module, precision: module(x).square().mean(), torch.device("cpu"))
    return Shares(traced, probe, torch.float32), traced


def test_a_layer_that_is_slow_in_its_backward_pass_has_the_share_of_both() -> None:
    model, x = Network().train(), torch.randn(4, 3, 8, 8)
    shares, traced = shares_of(model, x)
    names = {str(node.target): node.name for node in traced.graph.nodes if node.op == "call_module"}
    assert shares.of(frozenset([names["model.careful"]])) > 0.5, "its forward pass takes microseconds"
    assert shares.of(frozenset(node.name for node in traced.graph.nodes)) == pytest.approx(1)
    assert all(p.grad is None for p in model.parameters()), "the model is left as it was"


def test_a_layer_may_write_over_its_input() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True), nn.Conv2d(8, 2, 1))
    x = torch.randn(4, 3, 8, 8)
    kept = x.clone()
    shares, _ = shares_of(model, x)
    assert shares.of(frozenset()) == 0 and torch.equal(x, kept)


class Pair(Layer):
    """Keeps what it computes for a layer that comes later, and returns two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.kept = x.exp()
        return Slow.apply(x), self.kept  # type: ignore[no-untyped-call]


class Later(Layer):
    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.before = [pair]

    def forward(self, x: Tensor) -> Tensor:
        kept = self.before[0].kept
        assert kept is not None
        return x * kept


class Keeping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.pair = nn.Linear(5, 5), Pair()
        self.later = Later(self.pair)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.pair(self.dense(x))
        return self.later(one) + other  # type: ignore[no-any-return]


def test_a_layer_may_use_what_another_has_kept_and_return_several_tensors() -> None:
    shares, traced = shares_of(Keeping().train(), torch.randn(4, 5))
    names = {str(node.target): node.name for node in traced.graph.nodes if node.op == "call_module"}
    assert shares.of(frozenset([names["model.pair"]])) > 0.5


def test_shares_are_measured_outside_of_recordings() -> None:
    model, x = Network().train(), torch.randn(4, 3, 8, 8)
    traced: Any = trace(model, [x])
    probe = Probe(model, lambda module, precision: module(x).square().mean(), torch.device("cpu"), graphs=Recordings())
    assert Shares(traced, probe, torch.float32).of(frozenset()) == 0
    assert not probe._kept_runs
