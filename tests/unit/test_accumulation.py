"""Gradients added up: over the micro-batches of one step, which is the step of the whole batch, and over several steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import convolt
from convolt import layers, losses
from convolt.data.batches import Batch
from convolt.errors import ArgumentError
from convolt.models import Model, Sequential
from convolt.training.memory import Room

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 5)).astype("float32")
Y = RNG.integers(0, 3, 64)
W = RNG.random(64).astype("float32")


def net(micro_batch: int | None = None, loss: Any = "sparse_categorical_crossentropy", optimizer: Any = "sgd",
        **options: Any) -> Sequential:
    """A model with penalties on weights, activities and from `add_loss`."""
    class Adding(layers.Layer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.add_loss(0.1 * x.square().mean())
            return x

        def compute_output_shape(self, input_shape: Any) -> Any:
            return input_shape

    convolt.utils.set_random_seed(0)
    model = Sequential([layers.Input((5,)), layers.Dense(7, activation="tanh", kernel_regularizer="l2", activity_regularizer="l2"),
                        Adding(), layers.Dense(3, activation="softmax")])
    model.compile(optimizer, loss, ["accuracy"], weighted_metrics=["accuracy"], device="cpu", micro_batch=micro_batch,
                  **{"fusions": "none"} | options)
    return model


def gradients(model: Any, batch: Batch) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Returns the gradients of a step, and its losses."""
    model.trainer.on_batch(*(part[0].numpy() if len(part) == 1 else [p.numpy() for p in part] for part in (batch.x, batch.y)), None, None,
                           train=False, return_dict=True)
    step = model.trainer._ready_step(bind=True)
    model.train()
    found, _ = step._gradients(batch)
    grads = [p.grad.clone() for p in model.parameters()]
    model.optimizer.zero_grad()
    return grads, [loss.detach() for loss in found]


def batch_of(size: int, weights: bool, labels: np.ndarray = Y) -> Batch:
    w = (torch.from_numpy(W[:size]),) if weights else ()
    return Batch((torch.from_numpy(X[:size]),), (torch.from_numpy(labels[:size]),), w, size)


LOSSES = {
    "mean": lambda: losses.SparseCategoricalCrossentropy(),
    "sum": lambda: losses.SparseCategoricalCrossentropy(reduction="sum"),
    "weighted mean": lambda: losses.SparseCategoricalCrossentropy(reduction="mean_with_sample_weight"),
    "ignored class": lambda: losses.SparseCategoricalCrossentropy(ignore_class=1),
    "ignored class, weighted": lambda: losses.SparseCategoricalCrossentropy(ignore_class=0, reduction="mean_with_sample_weight"),
}


@pytest.mark.parametrize("loss", LOSSES)
@settings(max_examples=12, deadline=None)
@given(size=st.integers(2, 40), micro=st.integers(1, 40), weights=st.booleans())
def test_micro_batches_have_the_gradient_and_loss_of_the_whole_batch(loss: str, size: int, micro: int, weights: bool) -> None:
    expected, whole = gradients(net(None, LOSSES[loss]()), batch_of(size, weights))
    got, parts = gradients(net(micro, LOSSES[loss]()), batch_of(size, weights))
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_test_notices_parts_of_equal_weight() -> None:
    model = net(3)
    gradients(model, batch_of(7, False))
    step = model.trainer._step
    step._shares = lambda batch, pieces: [[1 / len(pieces)] * 2 for _ in pieces]
    wrong, _ = gradients(model, batch_of(7, False))
    right, _ = gradients(net(), batch_of(7, False))
    assert not torch.allclose(wrong[0], right[0], rtol=1e-3)


def test_two_outputs_of_which_one_ignores_a_class() -> None:
    def two(micro: int | None) -> Model:
        convolt.utils.set_random_seed(0)
        x = layers.Input((5,))
        h = layers.Dense(6, activation="tanh")(x)
        model = Model(x, [layers.Dense(3, activation="softmax", name="kind")(h), layers.Dense(1, name="size")(h)])
        model.compile("sgd", [losses.SparseCategoricalCrossentropy(ignore_class=2), "mse"], loss_weights=[1.0, 0.3], device="cpu",
                      fusions="none", micro_batch=micro)
        return model

    sizes = torch.from_numpy(X[:20, :1] * 2)
    batch = Batch((torch.from_numpy(X[:20]),), (torch.from_numpy(Y[:20]), sizes), (), 20)
    expected, whole = gradients(two(None), batch)
    got, parts = gradients(two(6), batch)
    torch.testing.assert_close(parts, whole)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_masked_steps_count_nowhere() -> None:
    class Masked(layers.Layer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            from convolt.masks import attach

            return attach(x + 0.0, (x[:, 0] != 0).detach())

        def compute_output_shape(self, input_shape: Any) -> Any:
            return input_shape

    def masked(micro: int | None) -> Sequential:
        convolt.utils.set_random_seed(0)
        model = Sequential([layers.Input((4, 2)), layers.Dense(2), Masked()])
        model.compile("sgd", "mse", device="cpu", fusions="none", micro_batch=micro)
        return model

    x = RNG.normal(size=(9, 4, 2)).astype("float32")
    batch = Batch((torch.from_numpy(x),), (torch.from_numpy(x * 2),), (), 9)
    expected, _ = gradients(masked(None), batch)
    got, _ = gradients(masked(2), batch)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weights", [None, {0: 0.5, 1: 2.0, 2: 1.0}])
def test_a_training_in_micro_batches_is_the_training(weights: dict[int, float] | None) -> None:
    results = []
    for micro in (None, 5):
        model = net(micro, optimizer=convolt.optimizers.SGD(0.1, momentum=0.9))
        history = model.fit(X, Y, batch_size=24, epochs=4, verbose=0, seed=3, class_weight=weights, validation_data=(X, Y)).history
        results.append((history, model.get_weights()))
    assert results[0][0].keys() == results[1][0].keys()
    for key, values in results[0][0].items():
        np.testing.assert_allclose(results[1][0][key], values, rtol=1e-4, err_msg=key)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert model.plan.micro_batch == 5 and "at most 5 samples at once" in model.plan.describe()


@given(size=st.integers(1, 200), limit=st.integers(1, 200))
def test_parts_are_few_and_of_even_size(size: int, limit: int) -> None:
    pieces = Room("training", limit).pieces(Batch((torch.arange(size),), (), (), size))
    sizes = [piece.size for piece in pieces]
    assert torch.equal(torch.cat([piece.x[0] for piece in pieces]), torch.arange(size))
    assert len(pieces) == -(-size // limit) and max(sizes) <= limit and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_an_invalid_micro_batch_is_an_error(value: Any) -> None:
    with pytest.raises(ArgumentError, match=r"compile\(micro_batch\): got .*; expected a whole number from 1"):
        net(value)


# -- over steps --------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(k=st.integers(2, 6), updates=st.integers(1, 4), optimizer=st.sampled_from(["sgd", "adam", "lion", "lamb"]))
def test_k_steps_are_one_with_the_mean_of_their_gradients(k: int, updates: int, optimizer: str) -> None:
    def parameter() -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4))

    each, whole = parameter(), parameter()
    first = convolt.optimizers.registry.find(optimizer)(0.1, gradient_accumulation_steps=k)
    second = convolt.optimizers.registry.find(optimizer)(0.1)
    first.bind([("p", each)])
    second.bind([("p", whole)])
    generator = torch.Generator().manual_seed(k)
    for _ in range(updates):
        parts = torch.randn(k, 3, 4, dtype=torch.float64, generator=generator)
        for part in parts:
            first.apply([part])
        second.apply([parts.mean(0)])
    assert first.iterations == second.iterations == updates and first.steps == k * updates
    torch.testing.assert_close(each, whole, rtol=1e-12, atol=1e-12)


def test_an_open_group_goes_on_in_the_next_epoch_and_is_not_used_at_the_end() -> None:
    model = net(optimizer=convolt.optimizers.SGD(0.1, gradient_accumulation_steps=4))
    model.fit(X[:48], Y[:48], batch_size=16, epochs=1, verbose=0, shuffle=False)  # three steps
    before = net().get_weights()
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.optimizer.state_dict()["accumulated_steps"] == 3 and model.optimizer.iterations == 0
    model.fit(X[:48], Y[:48], batch_size=16, epochs=1, verbose=0, shuffle=False)
    assert model.optimizer.iterations == 1 and not np.array_equal(model.get_weights()[0], before[0])
