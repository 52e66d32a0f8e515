"""What a test measures stays in the suite's folder, and ends with the test."""

from pathlib import Path

import numpy as np
import pytest

import convolt
from convolt import layers
from convolt.data import files


@pytest.mark.parametrize("_", ["first", "second"])
def test_a_test_finds_no_plan_of_another(_: str, cache_of_the_run: Path) -> None:
    assert files.cache_folder() == cache_of_the_run
    model = convolt.Sequential([layers.Input((12, 12, 1)), layers.Conv2D(4, 3), layers.ReLU(), layers.Flatten(), layers.Dense(2)])
    model.compile("sgd", convolt.losses.SparseCategoricalCrossentropy(from_logits=True), device="cpu")
    model.fit(np.zeros((16, 12, 12, 1), "float32"), np.arange(16) % 2, batch_size=8, verbose=0)
    assert not model.plan.cached and list((cache_of_the_run / "plans").iterdir())
