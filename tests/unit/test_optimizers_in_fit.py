"""What `fit` does with wrapped optimizers: second passes, averaged weights and their batch statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import convolt
from convolt import callbacks, layers
from convolt.models import Sequential
from convolt.optimizers import SAM, SGD, SWA
from convolt.training import inputs
from convolt.training.statistics import StatisticsWarning, update_statistics
from tests.unit.test_optimizers_wrappers import COMPOSED

X = np.random.default_rng(0).normal(size=(96, 6)).astype("float32") * 2 + 1
Y = (X[:, 0] > 1).astype("int64")


def normalized(optimizer: Any, dropout: float = 0.0, **options: Any) -> Sequential:
    convolt.utils.set_random_seed(0)
    model = Sequential([layers.Input((6,)), layers.Dense(8), layers.BatchNormalization(), layers.ReLU(), layers.Dropout(dropout),
                        layers.Dense(2, activation="softmax")])
    model.compile(optimizer, "sparse_categorical_crossentropy", ["accuracy"], device="cpu", fusions="none", **options)
    return model


@pytest.mark.parametrize("name", COMPOSED)
def test_fit_learns_with_every_composition(name: str) -> None:
    model = normalized(COMPOSED[name]())
    history = model.fit(X, Y, batch_size=16, epochs=12, verbose=0, seed=0).history["loss"]
    assert history[-1] < history[0] and np.isfinite(model.evaluate(X, Y, verbose=0)).all()


class Stop(Exception):
    """Ends a training in the middle of an epoch."""


class StopAt(callbacks.Callback):
    """Raises after a step; None: never."""

    def __init__(self, step: int | None) -> None:
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.model.optimizer.steps == self.step:
            raise Stop


@pytest.mark.parametrize("name", COMPOSED)
@pytest.mark.parametrize("micro_batch", [None, 7])
def test_a_resumed_training_ends_bit_equal(name: str, micro_batch: int | None, tmp_path: Path) -> None:
    def trained(folder: str, stop_at: int | None) -> Sequential:
        model = normalized(COMPOSED[name](gradient_accumulation_steps=2), dropout=0.3, micro_batch=micro_batch)
        model.fit(X, Y, batch_size=16, epochs=4, verbose=0, seed=0, callbacks=[StopAt(stop_at)],
                  checkpoint=convolt.Checkpoint(tmp_path / folder, every_steps=1))
        return model

    whole = trained("whole", None)
    with pytest.raises(Stop):
        trained("killed", 15)
    resumed = trained("killed", None)
    assert resumed.optimizer.steps == 24
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_sam_updates_the_statistics_once_and_by_the_true_weights() -> None:
    plain, sam = normalized(SGD(0.0)), normalized(SAM(SGD(0.0), rho=2.0))
    for model in (plain, sam):
        model.fit(X, Y, batch_size=32, epochs=2, verbose=0, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), sam.buffers(), strict=True))


def test_sam_with_rho_0_is_its_inner_optimizer_in_fit() -> None:
    plain, sam = normalized(SGD(0.1, momentum=0.9)), normalized(SAM(SGD(0.1, momentum=0.9), rho=0.0))
    histories = [model.fit(X, Y, batch_size=32, epochs=3, verbose=0, seed=0).history for model in (plain, sam)]
    assert histories[0] == histories[1]
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), sam.state_dict().values(), strict=True))


def test_swa_ends_with_the_mean_and_its_statistics() -> None:
    model = normalized(SWA(SGD(0.1), start=3, every=3))
    model.fit(X, Y, batch_size=32, epochs=4, verbose=0, shuffle=False)
    kept = normalized(SWA(SGD(0.1), start=3, every=3, update_statistics=False))
    kept.fit(X, Y, batch_size=32, epochs=4, verbose=0, shuffle=False)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), kept.parameters(), strict=True))
    norm = model.layers[1]
    z = X @ model.get_weights()[0] + model.get_weights()[1]
    np.testing.assert_allclose(norm.running_mean, z.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.running_var, z.reshape(3, 32, 8).var(1).mean(0), rtol=1e-4)
    assert not torch.allclose(kept.layers[1].running_mean, norm.running_mean, rtol=1e-3)
    assert not model.training


def test_statistics_are_those_of_pytorchs_update_bn() -> None:
    module = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 2))
    model = convolt.Model.wrap(module)
    model.compile("sgd", convolt.losses.SparseCategoricalCrossentropy(from_logits=True), device="cpu", fusions="none")
    model.fit(X, Y, batch_size=32, epochs=1, verbose=0)
    data = inputs.from_arrays(((torch.from_numpy(X),), (), ()), 32, torch.device("cpu"))
    state = torch.get_rng_state()
    update_statistics(model, model.trainer._step, data)
    assert torch.equal(state, torch.get_rng_state())
    got = [module[1].running_mean.clone(), module[1].running_var.clone()]
    torch.optim.swa_utils.update_bn([torch.from_numpy(X[i : i + 32]) for i in range(0, 96, 32)], module)
    torch.testing.assert_close(got, [module[1].running_mean, module[1].running_var], rtol=1e-5, atol=1e-6)


def test_a_generator_that_has_ended_cannot_give_statistics() -> None:
    model = normalized(SWA(SGD(0.1), start=1, every=1))
    with pytest.warns(StatisticsWarning, match="cannot be read again"):
        model.fit(((X[i : i + 16], Y[i : i + 16]) for i in range(0, 96, 16)), epochs=1, verbose=0)
