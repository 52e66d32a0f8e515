"""Parts of a model have their own modes back after something was computed in inference mode."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import convolt
from convolt import layers
from convolt.modes import evaluating


class Told(nn.Module):
    """Counts how often its mode is set."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bool] = []

    def train(self, mode: bool = True) -> "Told":
        self.calls.append(mode)
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("part", [nn.Identity, Told])
def test_each_part_has_its_own_mode_back(part: Callable[[], nn.Module]) -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(part(), nn.Dropout()))
    net[0].eval()
    before = [module.training for module in net.modules()]
    assert before == [True, False, True, True, True]
    with pytest.raises(KeyError), evaluating(net) as parts:
        assert parts == list(net.modules())
        assert not any(module.training for module in parts)
        raise KeyError
    assert [module.training for module in net.modules()] == before
    if isinstance(net[1][0], Told):
        assert net[1][0].calls == [False]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_scripted_parts_too() -> None:
    net = nn.Sequential(nn.ReLU(), torch.jit.script(nn.Dropout()))
    with evaluating(net):
        assert not net[1].training
        torch.testing.assert_close(net(torch.ones(4)), torch.ones(4))
    assert net.training and net[1].training


@pytest.mark.parametrize("work", ["predict", "evaluate"])
def test_a_part_that_the_user_has_put_to_inference_stays_there(work: str) -> None:
    model = convolt.Sequential([layers.Input((4, 4, 2)), layers.BatchNormalization(), layers.Flatten(), layers.Dropout(0.5),
                                layers.Dense(1)])
    model.compile("sgd", "mse", device="cpu")
    norm, dropout = model.layers[0], next(layer for layer in model.layers if isinstance(layer, layers.Dropout))
    model.train()
    norm.eval()
    given: list[Any] = [np.ones((3, 4, 4, 2), np.float32)]
    getattr(model, work)(*given, *([np.zeros((3, 1), np.float32)] if work == "evaluate" else []), verbose=0)
    assert model.training and dropout.training and not norm.training


@pytest.mark.parametrize("training", [True, False])
def test_parts_made_meanwhile_have_the_models_mode(training: bool) -> None:
    net = nn.Sequential(nn.Flatten()).train(training)
    with evaluating(net):
        net.append(nn.Dropout())
    assert net[1].training is training
