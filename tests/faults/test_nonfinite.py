"""A loss that becomes NaN: training stops, the last finite checkpoint stays, and the first layer is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import convolt
from convolt import callbacks, layers
from convolt.errors import NonFiniteError
from convolt.training.checkpoint import format
from convolt.training.checkpoint.store import Store

X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
Y = (X[:, 0] > 0).astype("int64")


class Bad(layers.Layer):
    """Divides by zero from a step on."""

    def __init__(self, at: int = 13, name: str = "bad") -> None:
        super().__init__(name=name)
        self.at = at

    def build(self, shape: Any) -> None:
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.steps += 1
        return x / torch.where(self.steps >= self.at, 0.0, 1.0)


def net(bad: layers.Layer | None, rate: float = 0.01) -> convolt.Sequential:
    convolt.utils.set_random_seed(0)
    own = [] if bad is None else [bad]
    model = convolt.Sequential([layers.Input((6,)), layers.Dense(8, activation="relu", name="first"), *own, layers.Dense(2, name="last")])
    model.compile(convolt.optimizers.SGD(rate), convolt.losses.SparseCategoricalCrossentropy(from_logits=True), device="cpu")
    return model


def fit(model: Any, **options: Any) -> Any:
    return model.fit(X, Y, **{"batch_size": 8, "epochs": 4, "verbose": 0, "seed": 1} | options)


@pytest.mark.parametrize("every", [1, 5, None])
def test_a_layer_is_named_by_a_replay(tmp_path: Path, every: int | None) -> None:
    model = net(Bad())
    with pytest.raises(NonFiniteError) as raised:
        fit(model, checkpoint=convolt.Checkpoint(tmp_path, every_steps=every))
    text = str(raised.value)
    assert "In epoch 2, step 5, the output of layer 'bad' (Bad; its inputs are finite, up to" in text
    assert "is the first that is not finite" in text and "lower learning rate" in text
    newest = Store(tmp_path / "checkpoints").files()[-1]
    assert "The model has the weights of the last finite checkpoint again, from " in text and newest.name in text
    tensors, state = format.decode(newest)
    assert 8 <= state["optimizer"]["iterations"] <= 12
    assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_a_rate_that_is_too_high_is_found_too(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"In epoch \d, step \d+, .*(layer|loss|gradient|weight).* is the first that is not finite"):
        fit(net(None, rate=1e18), checkpoint=convolt.Checkpoint(tmp_path, every_steps=1), epochs=20)


def test_a_loss_and_a_gradient_are_named(tmp_path: Path) -> None:
    def loss(y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
        return (y_pred.sum(1) * 0 - 1).log()

    def steep(y_true: torch.Tensor, y_pred: torch.Tensor) -> torch.Tensor:
        return (y_pred.sum(1) * 0).sqrt()

    for function, words in ((loss, "the loss (the model's outputs are finite"), (steep, "the gradient of 'last")):
        model = net(None)
        model.compile("sgd", function, device="cpu")
        with pytest.raises(NonFiniteError) as raised:
            fit(model, checkpoint=convolt.Checkpoint(tmp_path / function.__name__, every_steps=1))
        assert words in str(raised.value)


def test_without_checkpoints_what_can_be_said_is_said() -> None:
    with pytest.raises(NonFiniteError, match=r"Epoch 2, loss: got nan; expected a finite number\. \d of 4 weights are not finite by now.*"
                                             r"fit\(checkpoint=folder\) would replay"):  # fmt: skip
        fit(net(Bad()), callbacks=callbacks.TerminateOnNaN(raise_error=True))


def test_with_checkpoints_a_callback_that_looks_is_explained(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"Batch 4, loss: got nan.*In epoch 2, step 5, the output of layer 'bad'"):
        fit(net(Bad()), callbacks=callbacks.TerminateOnNaN(raise_error=True, check_every=1),
            checkpoint=convolt.Checkpoint(tmp_path, every_seconds=None))  # fmt: skip


def test_a_mask_that_is_infinite_from_the_start_is_no_fault(tmp_path: Path) -> None:
    model = net(None)
    model.get_layer("first").register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    fit(model, checkpoint=tmp_path)
    assert format.decode(Store(tmp_path / "checkpoints").files()[-1])[0]["model/first.mask"].isinf().any()
