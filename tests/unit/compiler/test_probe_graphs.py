"""Where the step will be a graph, candidates are timed as graphs: eager ones would be timed by what Python takes to launch them."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from convolt.compiler import make_plan
from convolt.compiler.measure import CannotCaptureError, Probe
from tests.unit.compiler.replay import ReplayOnCpu
from tests.unit.compiler.test_plan import LOSS, X, Y, cnn

HOST = 0.02  # seconds that Python takes for a run, in a graph or not at its capture alone
CPU = torch.device("cpu")


class Device(ReplayOnCpu):
    """A device on which a form computes for as long as is said; without a graph the host takes `HOST` beside.

    Args:
        seconds: of a replay, by the name of a class that is in the form; other forms take `layers`.
        refuses: the name of a class that reads a value on the host.
    """

    def __init__(self, layers: float, seconds: dict[str, float], refuses: str = "") -> None:
        super().__init__(lambda: lambda: None)
        self.layers, self.of, self.refuses = layers, seconds, refuses
        self.now, self.form = 0.0, layers

    def loss_of(self, module: Any, precision: torch.dtype) -> torch.Tensor:
        kinds = {type(part).__name__ for part in module.modules()} if isinstance(module, nn.Module) else set()
        self.form = min((seconds for kind, seconds in self.of.items() if kind in kinds), default=self.layers)
        self.now += HOST * (2 if self.form != self.layers else 1)  # forms of ours have more Python in them
        loss: torch.Tensor = LOSS(Y, module(X.to(precision)))
        if self.refuses in kinds:
            float(loss.detach())
        return loss

    def capture(self, work: Callable[[], None], generators: Sequence[torch.Generator] = ()) -> Callable[[], None]:
        replay, seconds = super().capture(work, generators), self.form

        def timed() -> None:
            replay()
            self.now += seconds

        return timed

    def probe(self, model: nn.Module, graphs: bool) -> Probe:
        return Probe(model, self.loss_of, CPU, clock=lambda: self.now, graphs=self if graphs else None)


def chosen(device: Device, graphs: bool) -> tuple[dict[str, int], dict[str, str]]:
    model = cnn()
    plan, _ = make_plan(model, [X[:2]], device.probe(model, graphs), precision=torch.float32, device=CPU, batch_size=8, steps=10**6)
    return plan.fusions, {row.name: row.why for row in plan.rows if row.verdict == "refused"}


def test_a_form_that_is_faster_in_a_graph_is_taken_there_though_its_python_is_slower() -> None:
    times = {"FirstConvReluPool": 0.004}
    assert "first conv+relu+pool" in chosen(Device(0.01, times), graphs=True)[0]
    assert "first conv+relu+pool" not in chosen(Device(0.01, times), graphs=False)[0]


def test_a_candidate_that_no_graph_can_hold_is_refused_with_the_reason() -> None:
    fusions, why = chosen(Device(0.01, {"FirstConvReluPool": 0.004}, refuses="FirstConvReluPool"), graphs=True)
    assert "first conv+relu+pool" not in fusions
    assert why["first conv+relu+pool"].startswith("it cannot be captured in a graph: aten::_local_scalar_dense reads a value")


def test_where_the_model_itself_cannot_be_captured_all_are_timed_as_they_run() -> None:
    device, model = Device(0.01, {}, refuses="Sequential"), cnn()
    probe = device.probe(model, graphs=True)
    assert probe.seconds(model, torch.float32, budget=0.0) == pytest.approx(HOST)
    assert not probe.in_graphs
    fused = nn.Sequential(model)
    assert probe.seconds(fused, torch.float32, budget=0.0) == pytest.approx(HOST)
    with pytest.raises(CannotCaptureError, match="cannot be captured"):
        device.probe(model, graphs=True).seconds(fused, torch.float32, budget=0.0)


def test_timing_in_graphs_leaves_the_model_as_it_was() -> None:
    device, model = Device(0.01, {}), cnn()
    before, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    assert device.probe(model, graphs=True).seconds(model, torch.float32, budget=0.0) == pytest.approx(0.01)
    assert device.captures == 1 and device.replays == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and torch.equal(random, torch.get_rng_state())
