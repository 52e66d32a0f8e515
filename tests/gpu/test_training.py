"""The main job on a CUDA device: the same code, the captured step, and results like the CPU's."""

from pathlib import Path

import numpy as np
import pytest
import torch

import convolt
from convolt import layers
from convolt.models import Sequential

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 3, 512)
X = (RNG.normal(size=(512, 12, 12, 1)) * 20 + 60 * Y[:, None, None, None] + 40).clip(0, 255).astype("uint8")


def model_on(device: str, dropout: float = 0.0, **options: object) -> Sequential:
    convolt.utils.set_random_seed(0)
    model = Sequential([
        layers.Input((12, 12, 1)), layers.Rescaling(1 / 255), layers.Conv2D(8, 3, activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(8, 3), layers.BatchNormalization(), layers.ReLU(), layers.Dropout(dropout), layers.Flatten(),
        layers.Dense(3, activation="softmax"),
    ])  # fmt: skip
    model.compile(convolt.optimizers.Adam(0.01), "sparse_categorical_crossentropy", ["accuracy"], device=device, **options)
    return model


def test_the_step_is_captured_by_default() -> None:
    model = model_on("cuda", dropout=0.3)
    history = model.fit(X, Y, batch_size=64, epochs=5, verbose=0).history
    assert model.plan.execution == "graph", model.plan.describe()
    assert history["accuracy"][-1] > 0.9


@pytest.mark.parametrize("fusions", ["none", "all"])
def test_captured_and_eager_steps_agree(fusions: str) -> None:
    results = []
    for execution in ("auto", "eager"):
        model = model_on("cuda", execution=execution, fusions=fusions)
        history = model.fit(X, Y, batch_size=64, epochs=3, verbose=0, seed=1).history
        results.append((history["loss"], model.get_weights()))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=2e-3)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(a, b, rtol=0.05, atol=5e-3)


def test_the_last_smaller_batch_and_validation() -> None:
    model = model_on("cuda")
    history = model.fit(X[:500], Y[:500], batch_size=64, epochs=3, validation_data=(X, Y), verbose=0).history
    assert set(history) >= {"val_loss", "val_accuracy"} and np.isfinite(history["loss"]).all()


def test_cpu_and_gpu_train_alike() -> None:
    losses = [model_on(device, fusions="none").fit(X, Y, batch_size=64, epochs=3, verbose=0, seed=1).history["loss"]
              for device in ("cpu", "cuda")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-2)


def test_bfloat16_learns_too() -> None:
    history = model_on("cuda", precision="bfloat16").fit(X, Y, batch_size=64, epochs=5, verbose=0).history
    assert history["accuracy"][-1] > 0.9


def test_predict_evaluate_and_files_cross_devices(tmp_path: Path) -> None:
    model = model_on("cuda")
    model.fit(X, Y, batch_size=64, verbose=0)
    model.save(tmp_path / "m.safetensors")
    on_cpu = convolt.load_model(tmp_path / "m.safetensors", device="cpu")
    np.testing.assert_allclose(model.predict(X, verbose=0), on_cpu.predict(X, verbose=0), rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(model.evaluate(X, Y, verbose=0), on_cpu.evaluate(X, Y, verbose=0), rtol=1e-2)


def test_a_training_step_never_waits() -> None:
    model = model_on("cuda", execution="eager", fusions="none")
    model.fit(X, Y, batch_size=64, verbose=0)
    step = model.trainer._step
    from convolt.data.batches import Batch

    batch = Batch((torch.from_numpy(X[:64]).cuda(),), (torch.from_numpy(Y[:64]).cuda(),), (), 64)
    model.train()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.device_part(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
