"""Every layer goes to ONNX and to a torch.export program, and computes the same there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import convolt as cv
from convolt.layers import Input, registry
from tests.parity.cases import LayerCase, all_cases

SKIPPED: dict[str, str] = {}
"""Layers that cannot be exported, with the reason that the user reads."""


BEFORE = {"MirrorMean": "MirrorBatch"}
"""Layers that compute nothing useful alone, with the one that must stand before them, on its own first case."""


def first_cases() -> list[LayerCase]:
    """Returns one case for each layer: the first in inference mode, else the first."""
    chosen: dict[str, LayerCase] = {}
    for case in all_cases():
        if case.layer not in chosen or (chosen[case.layer].training and not case.training):
            chosen[case.layer] = case
    return list(chosen.values())


def model_of(case: LayerCase):
    if case.layer in BEFORE:
        before = next(c for c in all_cases() if c.layer == BEFORE[case.layer])
        x = Input(before.shapes[0][1:], name="x0")
        return cv.Model(x, registry.find(case.layer)(**case.kwargs)(registry.find(before.layer)(**before.kwargs)(x)))
    dtype = "float32" if case.integers is None else "int32"
    inputs = [Input(shape[1:], name=f"x{i}", dtype=dtype) for i, shape in enumerate(case.shapes)]
    layer = registry.find(case.layer)(**case.kwargs)
    return cv.Model(inputs, layer(*case.arguments(inputs)))


@pytest.mark.parametrize("case", first_cases(), ids=lambda case: case.layer)
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_a_layer_computes_the_same_in_other_programs(case: LayerCase, suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    if case.layer in SKIPPED:
        pytest.skip(SKIPPED[case.layer])
    model = model_of(case)
    rng = np.random.default_rng(0)
    inputs = [rng.integers(0, case.integers, (6, *shape[1:]), "int32") if case.integers is not None
              else rng.uniform(-1, 1, (6, *shape[1:])).astype("float32") for shape in model.input_shapes]
    result = model.export(tmp_path / f"layer.{suffix}", check=inputs)
    assert result.excess <= 1 and result.samples == 6
