"""A recorded step is the step itself, bit for bit, whatever layers, losses and metrics are in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from convolt.compiler.program import make_program
from convolt.compiler.record import Recorder, Recording
from convolt.compiler.repeated import Repeated
from convolt.layers import registry
from convolt.layers.base import Layer
from convolt.layout import to_inside
from convolt.losses import targets_to_inside
from tests.parity import loss_cases, metric_cases
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


FIRST_CASES = list({case.layer: case for case in reversed(CASES)}.values())


@pytest.mark.parametrize(("case", "differentiated"), [*((case, True) for case in CASES), *((case, False) for case in FIRST_CASES)], ids=str)
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


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layers_predict_the_same_from_a_recording(case: LayerCase) -> None:
    stepping = Stepping(case, differentiated=False)
    layer = stepping.layer.eval()
    repeated = Repeated(layer)
    repeated.look(layer)
    with torch.no_grad():
        for _ in range(5):
            inputs = stepping.inputs()
            expected = layer(*case.arguments(inputs))
            assert torch.equal(repeated(lambda *given: layer(*case.arguments(list(given))), *inputs), expected)
    assert len(repeated._programs) == 1


def same_sums(make_step: Callable[[], tuple[Callable[[Tensor, Tensor], None], Callable[[], list[Tensor]]]], y: Tensor, p: Tensor) -> None:
    """Compares what six batches leave, eagerly and from a recording: samples in another order in each, predictions slightly moved."""
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(5)
        for _ in range(6):
            order = torch.randperm(len(y), generator=generator)
            yield y[order], p[order] * (1 - 0.01 * torch.rand((), generator=generator))

    step, state = make_step()
    for batch in batches():
        step(*batch)
    expected = state()
    step, state = make_step()
    found = list(batches())
    step(*found[0])
    recordings = []
    for batch in found[1:3]:
        with Recorder(batch) as recorder:
            step(*batch)
        recordings.append(recorder.recording)
    assert recordings[0].reason == "" and recordings[0].difference(recordings[1]) == ""
    program = make_program(recordings[1])
    for batch in found[3:]:
        program(*batch)
    for a, b in zip(expected, state(), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


LOSSES = [case for case in loss_cases.CASES + loss_cases.OWN_CASES if case.loss != "CTC"]


def test_the_one_loss_that_looks_at_values_is_told() -> None:
    case = next(case for case in loss_cases.CASES + loss_cases.OWN_CASES if case.loss == "CTC")
    y, p = case.arrays(case.shapes[-1])
    with Recorder([]) as recorder:
        case.make()(targets_to_inside(torch.tensor(y), p.ndim), to_inside(torch.tensor(p)))
    assert recorder.recording.reason == "_ctc_loss lets the host look at a value"


@pytest.mark.parametrize("case", LOSSES, ids=str)
def test_losses_give_the_same_gradients_from_a_recording(case: loss_cases.Case) -> None:
    y, p = case.arrays(case.shapes[-1])

    def make() -> tuple[Callable[[Tensor, Tensor], None], Callable[[], list[Tensor]]]:
        loss, total, gradients = case.make(), torch.zeros((), dtype=torch.float64), torch.zeros_like(to_inside(torch.tensor(p)))

        def step(y: Tensor, p: Tensor) -> None:
            x = p.detach().requires_grad_()
            value = loss(y, x)
            value.backward()
            with torch.no_grad():
                total.add_(value)
                gradients.add_(x.grad)

        return step, lambda: [total, gradients]

    same_sums(make, targets_to_inside(torch.tensor(y), p.ndim), to_inside(torch.tensor(p)))


@pytest.mark.parametrize("case", metric_cases.CASES + metric_cases.OWN_CASES, ids=str)
def test_metrics_have_the_same_state_from_a_recording(case: metric_cases.Case) -> None:
    y, p = case.arrays()[:2]

    def make() -> tuple[Callable[[Tensor, Tensor], None], Callable[[], list[Tensor]]]:
        metric = case.make()
        return lambda y, p: metric.update(y, p), lambda: list(metric.state().values())

    same_sums(make, *metric_cases.inside(y, p))
