"""No layer reads a value of a tensor on the host, in forward or backward: each read would stall a GPU and break its graphs."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from convolt.layers import registry
from convolt.layout import to_inside
from tests.parity.cases import all_cases

CASES = list(all_cases())
READS = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal", "aten::masked_select", "aten::unique_dim"}


class Watch(TorchDispatchMode):
    """Notes operators that bring a value to the host or make a shape of values."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in READS:
            self.seen.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_the_watch_sees_a_read():
    with Watch() as watch:
        bool(torch.ones(()) > 0)
    assert watch.seen


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layers_read_nothing(case, training):
    layer = registry.find(case.layer)(**case.kwargs)
    layer.ensure_built(*case.arguments([(None, *shape[1:]) for shape in case.shapes]))
    layer.train(training)
    inputs = [to_inside(x.float() if x.is_floating_point() else x) for x in case.inputs()]
    inputs = [x.requires_grad_() if x.is_floating_point() else x for x in inputs]
    with Watch() as watch:
        output = layer(*case.arguments(inputs))
        if output.requires_grad:
            output.sum().backward()
    assert watch.seen == []
