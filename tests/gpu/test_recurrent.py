"""Recurrent layers on CUDA: cuDNN's results are those of the CPU, in silence, and a whole step can be captured."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch

import convolt
from convolt import layers as L
from convolt.layout import to_inside

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

X = np.random.default_rng(0).normal(size=(6, 7, 5)).astype("float32")
MASK = torch.arange(7) < torch.tensor([[7], [3], [1], [5], [0], [6]])


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("layer", [L.LSTM(8), L.GRU(8, return_sequences=True), L.SimpleRNN(8), L.GRU(8, reset_after=False)],
                         ids=lambda layer: type(layer).__name__)
def test_cuda_equals_cpu(layer: Any, masked: bool) -> None:
    x = to_inside(torch.from_numpy(X))
    layer(x)
    results = []
    for device, own in (("cpu", copy.deepcopy(layer)), ("cuda", copy.deepcopy(layer).to("cuda"))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            y = own(x.to(device), mask=MASK.to(device) if masked else None)
        y.square().sum().backward()
        results.append([y.detach().cpu(), *(p.grad.cpu() for p in own.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_training_with_masks_is_captured() -> None:
    torch.manual_seed(0)
    model = convolt.Sequential([L.Input((7,), dtype="int64"), L.Embedding(9, 8, mask_zero=True), L.GRU(16), L.Dense(2, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", device="cuda")
    x = np.random.default_rng(0).integers(0, 9, (256, 7))
    history = model.fit(x, (x[:, 0] > 4).astype("int64"), epochs=10, verbose=0).history["loss"]
    assert history[-1] < history[0] / 2
    assert model.plan.execution == "graph", model.plan
