"""How the planned step runs on a CUDA device: without waiting, several steps in one graph, seeded layers, float32 without TF32."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import convolt
from convolt import layers
from convolt.data.batches import Batch, Resident
from convolt.models import Sequential
from convolt.training.loop import executions
from tests.gpu.test_training import X, Y, model_on

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CUDA = torch.device("cuda", 0)


def batches(count: int) -> Iterator[Batch]:
    data = Resident((torch.from_numpy(X),), (torch.from_numpy(Y),), (), 64, CUDA, seed=1)
    epochs = (batch for epoch in range(count) for batch in data.epoch(epoch))
    return (next(epochs) for _ in range(count))


@pytest.mark.parametrize("together", [1, 4])
@pytest.mark.parametrize("options", [{}, {"precision": "bfloat16"}, {"precision": "bfloat16", "fusions": "all"}],
                         ids=["as planned", "bfloat16", "bfloat16 fused"])
def test_the_host_waits_for_no_replay(options: dict[str, Any], together: int) -> None:
    model = model_on("cuda", dropout=0.3, steps_per_execution=together, **options)
    model.fit(X, Y, batch_size=64, epochs=3, verbose=0)
    assert model.plan.execution == "graph", model.plan.describe()
    trainer = model.trainer
    runner = trainer._planned(trainer._step)
    model.train()
    for group in executions(batches(16), lambda: together):  # warmed up and captured
        runner.train_together(group)
    ready = list(executions(list(batches(40)), lambda: together))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for group in ready:
            runner.train_together(group)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(runner._replays) == 1 and not runner._failed


def test_several_steps_in_one_graph_give_what_they_give_one_by_one() -> None:
    results = []
    for together in (1, 4):
        model = model_on("cuda", fusions="none", precision="float32", steps_per_execution=together)
        history = model.fit(X, Y, batch_size=60, epochs=4, verbose=0, seed=1).history
        results.append((history["loss"], model.get_weights()))
    assert "4 steps in one graph" in model.plan.describe()
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=2e-3)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(a, b, rtol=0.05, atol=5e-3)


def test_a_seeded_layer_is_captured_and_draws_what_it_draws_in_eager_steps() -> None:
    found = []
    for execution in ("eager", "auto"):
        convolt.utils.set_random_seed(0)
        dropout = layers.Dropout(0.5, seed=7)
        model = Sequential([layers.Input((12, 12, 1)), layers.Rescaling(1 / 255), layers.Flatten(), dropout,
                            layers.Dense(3, activation="softmax")])
        model.compile("sgd", "sparse_categorical_crossentropy", device="cuda", execution=execution, precision="float32", fusions="none")
        losses = model.fit(X, Y, batch_size=64, epochs=3, verbose=0, seed=1).history["loss"]
        (generator,) = dropout.generators.values()
        found.append((model.plan.execution, losses, generator.get_offset()))
    assert [execution for execution, _, _ in found] == ["eager", "graph"]
    assert found[0][2] == found[1][2] > 0, "each replay moves the generator on"
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-4)


def test_the_smaller_last_batch_gets_a_graph_of_its_own() -> None:
    model = model_on("cuda", precision="float32", fusions="none")
    model.fit(X[:500], Y[:500], batch_size=64, verbose=0)
    trainer = model.trainer
    runner = trainer._planned(trainer._step)
    model.train()
    data = Resident((torch.from_numpy(X[:500]),), (torch.from_numpy(Y[:500]),), (), 64, CUDA, seed=1)
    for epoch in range(3):
        for batch in data.epoch(epoch):
            runner.train(batch)
    assert len(runner._replays) == 2


def wide(device: str, precision: str) -> Sequential:
    """A convolution whose sums of 2,304 products tell TF32 from float32."""
    convolt.utils.set_random_seed(0)
    model = Sequential([layers.Input((16, 16, 256)), layers.Conv2D(64, 3), layers.GlobalAveragePooling2D(), layers.Dense(3)])
    model.compile(convolt.optimizers.SGD(1.0), "mse", device=device, precision=precision, fusions="none")
    return model


def test_float32_that_was_asked_for_is_not_computed_in_tf32() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 16, 16, 256)).astype("float32"), rng.normal(size=(32, 3)).astype("float32")
    switch = torch.backends.cudnn.conv.fp32_precision
    updates, outputs = [], []
    for device in ("cpu", "cuda"):
        model = wide(device, "float32")
        outputs.append(model.predict(x, verbose=0))
        before = model.get_weights()[0]
        model.fit(x, y, batch_size=32, verbose=0, shuffle=False)
        updates.append(model.get_weights()[0] - before)
        assert model.plan.tf32 == ""
    assert torch.backends.cudnn.conv.fp32_precision == switch
    for here, there in (outputs, updates):
        assert np.abs(here - there).max() <= 2e-5 * np.abs(here).max(), "TF32 would be off by 3e-4 and more"


def test_the_plan_says_that_auto_may_use_tf32() -> None:
    from convolt.compiler import first_plan

    if torch.cuda.get_device_capability() >= (8, 0) and torch.backends.cudnn.conv.fp32_precision == "tf32":
        assert "convolutions" in first_plan(CUDA, torch.float32).tf32
    else:
        assert "convolutions" not in first_plan(CUDA, torch.float32).tf32
