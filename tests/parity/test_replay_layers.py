"""A recorded step is the step itself, bit for bit, whatever layer is in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from convolt.compiler.program import make_program
from convolt.compiler.record import Recorder, Recording
from convolt.layers import registry
from convolt.layers.base import Layer
from convolt.layout import to_inside
from tests.parity.cases import LayerCase, all_cases

CASES = list(all_cases())


class Stepping:
    """A layer that is trained by plain gradient descent on the sum of its squared outputs.

    Args:
        case: of the layer.
        differentiated: whether its inputs have gradients, too.

    Attributes:
        total: of the losses so far.
    """

    def __init__(self, case: LayerCase, differentiated: bool) -> None:
        torch.manual_seed(3)
        self.differentiated = differentiated
        self.case, self.layer = case, self._built(case)
        self.total = torch.zeros((), dtype=torch.float64)
        torch.manual_seed(7)

    @staticmethod
    def _built(case: LayerCase) -> Layer:
        layer = registry.find(case.layer)(**case.kwargs)
        layer.ensure_built(*case.arguments([(None, *shape[1:]) for shape in case.shapes]))
        return layer.train()

    def inputs(self) -> list[Tensor]:
        """Returns other inputs at each call."""
        given = [to_inside(x.float() if x.is_floating_point() else x) for x in self.case.inputs()]
        return [x * torch.empty(()).uniform_(0.9, 1.1) if x.is_floating_point() else x.clone() for x in given]

    def step(self, inputs: list[Tensor]) -> None:
        inputs = [x.detach().requires_grad_(self.differentiated and x.is_floating_point()) for x in inputs]
        output = self.layer(*self.case.arguments(inputs))
        loss = output.float().square().mean()
        if loss.requires_grad:
            loss.backward()
        with torch.no_grad():
            for p in self.layer.parameters():
                if p.grad is not None:
                    p.sub_(p.grad, alpha=0.01)
                    p.grad = None
            self.total.add_(loss)

    def state(self) -> list[Tensor]:
        return [t.detach().clone() for t in (*self.layer.parameters(), *self.layer.buffers(), self.total)]


def recorded(stepping: Stepping) -> Recording:
    """Takes a step and returns what it did."""
    inputs = stepping.inputs()
    with Recorder(inputs) as recorder:
        stepping.step(inputs)
    assert recorder.recording.reason == ""
    return recorder.recording


def after(steps: int, stepping: Stepping, step: Callable[[list[Tensor]], None]) -> list[Tensor]:
    """Returns the state after some more steps."""
    for _ in range(steps):
        step(stepping.inputs())
    return stepping.state()


@pytest.mark.parametrize("differentiated", [True, False], ids=["inner", "first"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layers_train_the_same_from_a_recording(case: LayerCase, differentiated: bool) -> None:
    eager, replayed = Stepping(case, differentiated), Stepping(case, differentiated)
    torch.manual_seed(7)
    expected = after(6, eager, eager.step)
    torch.manual_seed(7)
    after(1, replayed, replayed.step)
    first, second = recorded(replayed), recorded(replayed)
    assert first.difference(second) == ""
    program = make_program(second)
    found = after(3, replayed, lambda inputs: program(*inputs))
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b) or torch.equal(a.nan_to_num(), b.nan_to_num())
