"""Every layer goes to ONNX and to a torch.export program, and computes the same there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def part_of(case: LayerCase) -> tuple[list[Any], Any]:
    """Returns the inputs of a layer and what it makes of them."""
    layer = registry.find(case.layer)(**case.kwargs)
    before = next((c for c in all_cases() if c.layer == BEFORE.get(case.layer)), None)
    dtype = "float32" if case.integers is None else "int32"
    inputs = [Input(shape[1:], name=f"{case.layer}_x{i}", dtype=dtype) for i, shape in enumerate((before or case).shapes)]
    if before is not None:
        return inputs, layer(registry.find(before.layer)(**before.kwargs)(*inputs))
    return inputs, layer(*case.arguments(inputs))


TOGETHER = 8
"""Layers in one model, each with inputs and outputs of its own: an export takes a second whatever is in it."""

GROUPS = [[case for case in first_cases() if case.layer not in SKIPPED][start::-(-len(first_cases()) // TOGETHER)]
          for start in range(-(-len(first_cases()) // TOGETHER))]


@pytest.mark.parametrize("cases", GROUPS, ids=lambda cases: "-".join(case.layer for case in cases))
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_layers_compute_the_same_in_other_programs(cases: list[LayerCase], suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    parts = [part_of(case) for case in cases]
    model = cv.Model([x for inputs, _ in parts for x in inputs], [output for _, output in parts])
    rng = np.random.default_rng(0)
    inputs = [rng.integers(0, case.integers, (6, *x.shape[1:]), "int32") if case.integers is not None
              else rng.uniform(-1, 1, (6, *x.shape[1:])).astype("float32") for case, (xs, _) in zip(cases, parts, strict=True) for x in xs]
    result = model.export(tmp_path / f"layers.{suffix}", check=inputs)
    assert result.excess <= 1 and result.samples == 6


def test_each_layer_is_in_a_group() -> None:
    assert {case.layer for cases in GROUPS for case in cases} | set(SKIPPED) == {case.layer for case in all_cases()}
