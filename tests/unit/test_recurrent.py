"""Recurrent layers: what is fused and why not, states, dropout, models, files and messages. Numbers are in tests/parity."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import convolt
from convolt import layers as L
from convolt.compiler.trace import Untraceable, trace
from convolt.errors import ArgumentError, ArgumentTypeError, DataError, ShapeError, StateError
from convolt.layout import to_inside, to_outside
from convolt.models.summary import summarize

X = np.random.default_rng(0).normal(size=(6, 5, 3)).astype("float32")
Y = np.arange(6) % 2


def inside(x: np.ndarray = X) -> torch.Tensor:
    return to_inside(torch.from_numpy(x))


# -- fused or not --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "reason"), [
    (L.LSTM(2), None),
    (L.GRU(2), None),
    (L.SimpleRNN(2, activation="relu"), None),
    (L.LSTM(2, dropout=0.5), None),
    (L.RNN([L.LSTMCell(2), L.GRUCell(3)]), None),
    (L.LSTM(2, activation="relu"), "not tanh and sigmoid"),
    (L.GRU(2, reset_after=False), "reset_after=False"),
    (L.SimpleRNN(2, activation="sigmoid"), "neither tanh nor relu"),
    (L.LSTM(2, recurrent_dropout=0.1), "recurrent_dropout"),
    (L.LSTM(2, use_cudnn=False), "use_cudnn=False"),
    (L.RNN([L.LSTMCell(2), L.GRUCell(3, reset_after=False)]), "reset_after=False"),
    (L.ConvLSTM2D(2, 3), "no fused ConvLSTM"),
], ids=lambda value: type(value).__name__ if isinstance(value, L.Layer) else str(value))
def test_a_layer_says_why_it_is_not_fused(layer: Any, reason: str | None) -> None:
    if reason is None:
        assert layer.why_not_fused is None
        assert "step by step" not in repr(layer)
    else:
        assert reason in layer.why_not_fused
        assert f"step by step: {layer.why_not_fused}" in repr(layer)


@pytest.mark.parametrize("kind", ["SimpleRNN", "LSTM", "GRU"])
def test_fused_and_step_by_step_are_equal(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = getattr(L, kind)(4, return_sequences=True)
    fused = layer(inside())
    monkeypatch.setattr(type(layer), "_may_fuse", lambda self: False)
    torch.testing.assert_close(layer(inside()), fused, rtol=1e-5, atol=1e-6)


def test_asking_for_what_cannot_be_fused_is_an_error() -> None:
    with pytest.raises(ArgumentError, match=r"use_cudnn\): got True.*Here reset_after=False is not .* Use 'auto'"):
        L.GRU(2, reset_after=False, use_cudnn=True)(X)
    with pytest.raises(ArgumentError, match=r"LSTM\(use_cudnn\)"):
        L.LSTM(2, use_cudnn="yes")
    assert L.GRU(2, use_cudnn=True)(X).shape == (6, 2)


def test_an_inside_tensor_is_not_copied_on_its_way() -> None:
    x = inside()
    assert x.is_contiguous() is False and to_outside(x).data_ptr() == x.data_ptr()
    y = L.LSTM(4, return_sequences=True)(x)
    assert y.shape == (6, 4, 5), "channel axis at index 1"


# -- states --------------------------------------------------------------------------------------------------------


def test_a_stateful_layer_goes_on_where_it_stopped() -> None:
    whole = L.LSTM(4, stateful=True)
    expected = whole(X)
    parts = L.LSTM(4, stateful=True)
    parts(X)
    parts.set_weights(whole.get_weights())
    parts.reset_state()
    parts(X[:, :2])
    np.testing.assert_allclose(parts(X[:, 2:]), expected, rtol=1e-5, atol=1e-6)
    again = parts(X[:, 2:])
    assert np.abs(again - expected).max() > 1e-3
    parts.reset_states()
    parts(X[:, :2])
    np.testing.assert_allclose(parts(X[:, 2:]), expected, rtol=1e-5, atol=1e-6)


def test_states_belong_to_the_size_of_a_batch() -> None:
    layer = L.GRU(3, stateful=True)
    first = layer(X)
    layer(X[:2])  # a smaller batch, such as the last of an epoch, has a state of its own
    expected = L.GRU(3, stateful=True)
    expected(X)
    expected.set_weights(layer.get_weights())
    expected.reset_state()
    np.testing.assert_allclose(expected(X), first, rtol=1e-6)
    np.testing.assert_allclose(expected(X), layer(X), rtol=1e-6)


def test_a_stateful_model_trains_and_its_states_are_not_saved(tmp_path: Path) -> None:
    model = convolt.Sequential([L.Input((5, 3), batch_size=3), L.LSTM(4, stateful=True), L.Dense(2, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(X, Y, batch_size=3, epochs=2, shuffle=False, verbose=0)
    assert model.layers[0].state_3_0.abs().max() > 0
    model.save_weights(tmp_path / "w.safetensors")
    assert not [name for name in model.state_dict() if "state_" in name]
    model.layers[0].reset_state()
    assert not model.layers[0].state_3_0.any()


def test_first_states_come_from_another_layer() -> None:
    sequence, other = L.Input((None, 3)), L.Input((4, 2))
    _, h, c = L.LSTM(5, return_state=True)(other)
    y = L.LSTM(5, return_sequences=True)(sequence, initial_state=[h, c])
    model = convolt.Model([sequence, other], L.Dense(1)(y))
    assert model.predict([X, np.ones((6, 4, 2), "float32")], verbose=0).shape == (6, 5, 1)
    clone = type(model).from_config(model.get_config())
    assert len(clone.get_weights()) == len(model.get_weights())


# -- dropout -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SimpleRNN", "LSTM", "GRU"])
@pytest.mark.parametrize("rates", [{"dropout": 0.5}, {"recurrent_dropout": 0.5}, {"dropout": 0.3, "recurrent_dropout": 0.3}], ids=str)
def test_dropout_is_of_training_alone_and_follows_its_seed(kind: str, rates: dict[str, float]) -> None:
    results = []
    for _ in range(2):
        layer = getattr(L, kind)(8, seed=4, **rates)
        layer.ensure_built((None, 5, 3))
        layer.set_weights([np.full(w.shape, 0.1, "float32") for w in layer.get_weights()])
        layer.train()
        results.append(layer(inside()).detach())
        layer.eval()
        torch.testing.assert_close(layer(inside()), layer(inside()))
        assert (layer(inside()) - results[-1]).abs().max() > 1e-4
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("make", [lambda: L.LSTM(3, dropout=0.5), lambda: L.LSTM(3, recurrent_dropout=0.2, dropout=0.5),
                                  lambda: L.RNN([L.LSTMCell(3, dropout=0.5), Counter()])], ids=["fused", "loop", "own"])
def test_the_same_inputs_are_dropped_at_each_step(make: Any) -> None:
    """Gradients of a linear read-out: a feature that is dropped has none, at any step."""
    torch.manual_seed(0)
    layer = make().train()
    x = torch.randn(4, 6, 5).movedim(-1, 1).requires_grad_()
    layer(x).sum().backward()
    dropped = x.grad == 0
    if getattr(layer, "recurrent_dropout", 0):
        return  # a set for each gate: nothing is dropped from all of them
    assert 0.1 < dropped.float().mean() < 0.9
    torch.testing.assert_close(dropped.all(2), dropped.any(2))


class Counter(L.Layer):
    """A cell that adds its inputs."""

    state_size = 3

    def call(self, inputs: torch.Tensor, states: Any) -> Any:
        return states[0] + inputs, [states[0] + inputs]


def test_dropout_keeps_the_mean() -> None:
    cell = L.SimpleRNNCell(1, activation="linear", dropout=0.4, seed=1).train()
    cell.ensure_built((None, 2000))
    with torch.no_grad():
        cell.weight_ih.fill_(1 / 2000)
    assert abs(float(cell(torch.ones(8, 2000), [torch.zeros(8, 1)])[0].detach().mean()) - 1) < 0.05


# -- models --------------------------------------------------------------------------------------------------------


def models() -> dict[str, Any]:
    text = L.Input((5,), dtype="int64")
    x = L.Embedding(7, 4, mask_zero=True)(text)
    x = L.Bidirectional(L.GRU(3, return_sequences=True))(x)
    x = L.TimeDistributed(L.Dense(3, activation="relu"))(x)
    return {
        "text": convolt.Model(text, L.Dense(2, activation="softmax")(L.LSTM(3)(x))),
        "rows": convolt.Sequential([L.Input((5, 3)), L.Masking(), L.LSTM(4, return_sequences=True), L.SimpleRNN(3), L.Dense(2, "softmax")]),
        "stack": convolt.Sequential([L.Input((5, 3)), L.RNN([L.LSTMCell(3), L.GRUCell(2)]), L.Dense(2, "softmax")]),
        "clip": convolt.Sequential([L.Input((5, 3)), L.Reshape((5, 3, 1, 1)), L.ConvLSTM2D(2, (2, 1)), L.Flatten(), L.Dense(2, "softmax")]),
    }


@pytest.mark.parametrize("name", list(models()))
def test_models_train_trace_save_and_copy(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models()[name]
    x = np.random.default_rng(0).integers(0, 7, (6, 5)) if name == "text" else X
    model.compile(convolt.optimizers.Adam(0.02), "sparse_categorical_crossentropy", ["accuracy"], device="cpu")
    losses = model.fit(x, Y, epochs=30, batch_size=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    graph = trace(model, [to_inside(torch.from_numpy(x[:2]))])
    assert not isinstance(graph, Untraceable), str(graph)
    model.save(tmp_path / "m.safetensors")
    loaded = convolt.models.load_model(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    np.testing.assert_array_equal(copy.deepcopy(model).predict(x, verbose=0), model.predict(x, verbose=0))
    np.testing.assert_allclose(graph(to_inside(torch.from_numpy(x))).detach(), model.predict(x, verbose=0), rtol=1e-4, atol=1e-6)
    assert all(row.output for row in summarize(model).rows)


@pytest.mark.parametrize("layer", [L.LSTM(4), L.GRU(4), L.SimpleRNN(4), L.GRU(4, reset_after=False), L.Bidirectional(L.LSTM(2))],
                         ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("units", ["", "none for bfloat16"])
def test_bfloat16(layer: Any, units: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if units:
        monkeypatch.setattr("convolt.devices.onednn_takes_bfloat16", lambda: False)
    expected = layer(inside())
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(inside())
    got.float().sum().backward()
    torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.02)


def test_a_frozen_layer_trains_nothing() -> None:
    layer = L.LSTM(3, trainable=False)
    layer(X)
    assert layer.trainable_weights == [] and len(layer.get_weights()) == 3


def test_constraints_and_arguments_are_the_cells() -> None:
    layer = L.LSTM(3, kernel_constraint="max_norm", recurrent_regularizer="l2")
    layer(X)
    assert layer.units == 3 and layer.cell.kernel_constraint is layer.kernel_constraint
    assert len(layer.cell.constrained_weights) == 1 and len(layer.penalties()) == 1
    with pytest.raises(AttributeError):
        _ = layer.reset_after


def test_flops_of_a_fused_layer_are_counted() -> None:
    rows = summarize(convolt.Sequential([L.Input((28, 28)), L.LSTM(128)])).rows
    assert rows[0].flops == 2 * 28 * 4 * 128 * (28 + 128)


# -- messages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("work", "error", "message"), [
    (lambda: L.LSTM(0), ArgumentError, r"LSTMCell\(units\): got 0"),
    (lambda: L.LSTM(3, dropout=1.5), ArgumentError, r"dropout\): got 1.5; expected a number from 0 to 1"),
    (lambda: L.LSTM(3, unit=2), ArgumentTypeError, "unknown argument 'unit'.*Did you mean 'units'"),
    (lambda: L.LSTM(3)(np.ones((2, 4), "float32")), ShapeError, r"\(None, 4\); expected \(batch, steps, features\)"),
    (lambda: L.LSTM(3)(np.ones((2, 4, 4, 1), "float32")), ShapeError, "Pictures .* are sequences of rows"),
    (lambda: L.LSTM(3)(np.ones((2, 0, 4), "float32")), ShapeError, "at least one step"),
    (lambda: L.LSTM(3)(inside(), initial_state=[torch.zeros(6, 3)]), ShapeError, r"\(initial_state\): got 1 tensors; expected 2"),
    (lambda: L.RNN(5), ArgumentError, r"RNN\(cell\): got 5; expected a cell"),
    (lambda: L.RNN(L.Dense(3)), ArgumentError, "Dense: got no attribute `state_size`"),
    (lambda: L.StackedRNNCells([]), ArgumentError, "no cells"),
    (lambda: L.LSTMCell(3).get_initial_state(), StateError, "no batch_size"),
    (lambda: L.RNN([L.LSTMCell(3), L.LSTMCell(3)], return_state=True)(L.Input((4, 2))), StateError, "states are nested"),
    (lambda: L.Bidirectional(3), ArgumentTypeError, r"Bidirectional\(layer\): got 3"),
    (lambda: L.Bidirectional(L.LSTM(3), merge_mode="max"), ArgumentError, "merge_mode.*'concat'"),
    (lambda: L.Bidirectional(L.Dense(3)), ArgumentError, r"layer\): got Dense; expected a recurrent layer"),
    (lambda: L.Bidirectional(L.LSTM(3), backward_layer=L.LSTM(3)), ArgumentError, "go_backwards=False and False"),
    (lambda: L.TimeDistributed(L.Dense(3))(np.ones((2, 3), "float32")), ShapeError, r"\(batch, steps, …\), three axes"),
    (lambda: L.TimeDistributed(L.Dense(3))(inside(), mask=torch.ones(6, 4)), ShapeError, r"\(mask\): got shape \(6, 4\)"),
    (lambda: L.ConvLSTM2D(2, 3)(X), ShapeError, "ConvLSTM2D"),
    (lambda: L.ConvLSTM2D(2, 3, strides=2, dilation_rate=2), ArgumentError, r"strides, dilation_rate"),
    (lambda: L.ConvLSTM2D(2, 3).build((None, 4, None, 8, 1)), ShapeError, "known sizes"),
    (lambda: L.Embedding(3, 2)(np.array([[1, 5]])), DataError, "numbers from 1 to 5; expected 0 to 2.*largest number plus one"),
    (lambda: L.Embedding(0, 2), ArgumentError, r"Embedding\(input_dim\)"),
])
def test_messages(work: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        work()


def test_a_clip_of_another_size_is_told() -> None:
    layer = L.ConvLSTM2D(2, 3)
    layer(np.ones((1, 2, 5, 5, 1), "float32"))
    with pytest.raises(ShapeError, match=r"steps of \(5, 5\) in space"):
        layer(np.ones((1, 2, 6, 5, 1), "float32"))


def test_embedding_takes_initial_vectors() -> None:
    vectors = np.arange(6, dtype="float32").reshape(3, 2)
    layer = L.Embedding(3, 2, weights=[vectors])
    np.testing.assert_array_equal(layer(np.array([2, 0])), vectors[[2, 0]])
    assert "weights" not in layer.get_config()
    assert L.Embedding(3, 2, weights=vectors).embeddings.shape == (3, 2)
