"""The learned factors of channels and cropped sequences, where the sweep of layers does not reach."""

from __future__ import annotations

import pytest
import torch

from convolt import layers
from convolt.errors import ArgumentError, ShapeError


def test_a_branch_that_is_scaled_begins_as_nothing_and_learns():
    x, branch = torch.randn(2, 3, 4, 4), layers.Conv2D(3, 1)
    scale = layers.LayerScale(0.0)
    y = x + scale(branch(x))
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert scale.weight.grad.abs().min() > 0


@pytest.mark.parametrize(("work", "kind", "message"), [
    (lambda: layers.LayerScale("1"), ArgumentError, r"LayerScale\(init_values\): got '1'; expected a number"),
    (lambda: layers.LayerScale()(layers.Input((4, None))), ShapeError, "known channels"),
    (lambda: layers.Cropping1D(-1), ArgumentError, r"Cropping1D\(cropping\)"),
    (lambda: layers.Cropping1D(2)(torch.ones(1, 3, 4)), ShapeError, r"a sequence longer than cropping=\(2, 2\) takes away"),
    (lambda: layers.Cropping1D(2)(torch.ones(1, 3)), ShapeError, r"expected 3 axes \(batch, length, channels\)"),
])
def test_errors(work, kind, message):
    with pytest.raises(kind, match=message):
        work()
