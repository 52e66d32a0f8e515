"""Every layer's output in float32, and in bfloat16 under autocast as training runs it, against float64."""

from __future__ import annotations

import copy

import pytest
import torch

from convolt.layers import registry
from convolt.layers.base import Layer
from convolt.layout import to_inside
from tests.parity.cases import LayerCase, all_cases

CASES = [case for case in all_cases() if case.integers is None and not case.random]

COARSE_IN_BFLOAT16 = {
    "MultiHeadAttention": "queries, keys, values and what the heads return are rounded",
    "GroupQueryAttention": "queries, keys, values and what the heads return are rounded",
    "SpectralNormalization": "the normalized kernel is rounded",
    "Attention": "scores are rounded before the softmax",
    "AdditiveAttention": "scores are rounded before the softmax",
    "SeparableConv2D": "the result between its two convolutions is rounded",
    "Rescaling": "the product is rounded before the offset is added",
    "AveragePooling3D": "PyTorch has no bfloat16 kernel for it on the CPU",
}


def make(case: LayerCase) -> Layer:
    """Returns the layer with weights that bfloat16 can hold, in float32."""
    layer = registry.find(case.layer)(**case.kwargs)
    layer.ensure_built(*case.arguments([(None, *shape[1:]) for shape in case.shapes]))
    return layer.train(case.training).bfloat16().float()


def in_float64(layer: Layer, case: LayerCase, inputs: list[torch.Tensor]) -> torch.Tensor:
    return copy.deepcopy(layer).double()(*case.arguments([x.double() for x in inputs]))


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32(case):
    layer, inputs = make(case), [to_inside(x).float() for x in case.inputs()]
    expected = in_float64(layer, case, inputs)
    got = layer(*case.arguments(inputs))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1.3e-6, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("case", [case for case in CASES if case.layer not in COARSE_IN_BFLOAT16], ids=str)
def test_bfloat16(case):
    layer, inputs = make(case), [to_inside(x).bfloat16() for x in case.inputs()]
    expected = in_float64(layer, case, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(*case.arguments(inputs))
    recurrent = ".recurrent." in type(layer).__module__  # the state is rounded at every step
    torch.testing.assert_close(got.double(), expected, rtol=1.6e-2, atol=1e-2 if recurrent else 1e-3)


@pytest.mark.parametrize("case", [case for case in CASES if case.layer == "Conv2DTranspose"], ids=str)
def test_bfloat16_where_onednn_has_none(case, monkeypatch):
    monkeypatch.setattr("convolt.devices.onednn_takes_bfloat16", lambda: False)
    test_bfloat16(case)


def test_exceptions_are_of_registered_layers():
    assert set(COARSE_IN_BFLOAT16) <= {case.layer for case in CASES}
