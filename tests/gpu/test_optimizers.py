"""Optimizers in captured steps on a CUDA device, and memory that really runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

import convolt
from convolt import layers, optimizers
from convolt.models import Sequential
from convolt.training.memory import OutOfMemoryWarning

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 3, 256)
X = (RNG.normal(size=(256, 12, 12, 1)) * 20 + 60 * Y[:, None, None, None] + 40).clip(0, 255).astype("uint8")
MAKERS: dict[str, Callable[[], optimizers.Optimizer]] = {
    "accumulation": lambda: optimizers.Adam(0.01, gradient_accumulation_steps=3, use_ema=True),
    "lookahead": lambda: optimizers.Lookahead(optimizers.SGD(0.05, momentum=0.9), every=5),
    "sam": lambda: optimizers.SAM(optimizers.SGD(0.05), rho=0.1),
    "swa": lambda: optimizers.SWA(optimizers.Adam(0.01), start=0.5, every=3),
    "layerwise": lambda: optimizers.LayerwiseDecay(optimizers.AdamW(0.01), decay=0.5),
    "lamb": lambda: optimizers.Lamb(0.02), "lion": lambda: optimizers.Lion(0.002), "lars": lambda: optimizers.LARS(2.0),
    "all": lambda: optimizers.SWA(optimizers.Lookahead(optimizers.SAM(optimizers.LayerwiseDecay(
        optimizers.AdamW(0.01, gradient_accumulation_steps=2)))), start=0.5, every=2),
}


def model_on(optimizer: optimizers.Optimizer, **options: object) -> Sequential:
    convolt.utils.set_random_seed(0)
    model = Sequential([
        layers.Input((12, 12, 1)), layers.Rescaling(1 / 255), layers.Conv2D(8, 3), layers.BatchNormalization(), layers.ReLU(),
        layers.Flatten(), layers.Dense(3, activation="softmax"),
    ])  # fmt: skip
    model.compile(optimizer, "sparse_categorical_crossentropy", ["accuracy"], device="cuda", fusions="none", **options)
    return model


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("micro_batch", [None, 24])
def test_captured_and_eager_steps_agree(name: str, micro_batch: int | None) -> None:
    losses = []
    for execution in ("auto", "eager"):
        model = model_on(MAKERS[name](), execution=execution, micro_batch=micro_batch)
        losses.append(model.fit(X, Y, batch_size=64, epochs=5, verbose=0, seed=1).history["loss"])
        assert model.plan.execution == ("graph" if execution == "auto" else "eager"), model.plan.describe()
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-2)
    assert losses[0][-1] < losses[0][0]


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Half a GiB for this process."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2**29 / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("execution", ["auto", "eager"])
def test_memory_that_runs_out_halves_the_micro_batch(execution: str) -> None:
    x = RNG.integers(0, 256, (256, 64, 64, 3), dtype="uint8")
    y = RNG.integers(0, 2, 256)
    convolt.utils.set_random_seed(0)
    model = Sequential([layers.Input((64, 64, 3)), layers.Rescaling(1 / 255),
                        *(layers.Conv2D(32, 3, padding="same", activation="relu") for _ in range(6)),
                        layers.GlobalAveragePooling2D(), layers.Dense(2, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", device="cuda", fusions="none", execution=execution)
    with pytest.warns(OutOfMemoryWarning, match="training: no memory for 256 samples at once"):
        model.fit(x, y, batch_size=256, epochs=8, verbose=0)
    assert model.plan.micro_batch < 256 and model.optimizer.iterations == 8
