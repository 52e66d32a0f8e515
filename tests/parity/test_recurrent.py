"""Recurrent layers against Keras: masks, states, cells, both directions, and masks that travel to losses and metrics."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

import convolt
from convolt import layers as L
from convolt.layout import to_inside, to_outside
from convolt.masks import attach, mask_of
from tests.parity.test_layers import array, assert_close, gradients, random_weight

TOLERANCE = 1e-5
MASK = torch.tensor([[True, True, True, False, False], [True, False, True, True, False], [False, False, True, True, True],
                     [False] * 5, [True] * 5])
X = np.random.default_rng(3).normal(size=(5, 5, 3)).astype("float32")


def pair(ours: Any, theirs: Any, shape: tuple[int, ...] = (5, 5, 3)) -> tuple[Any, Any]:
    """Builds both for inputs of a shape, and gives both the same random weights."""
    ours.ensure_built((None, *shape[1:]))
    theirs.build(shape)
    rng = np.random.default_rng(11)
    theirs.set_weights([random_weight(rng, w) for w in theirs.weights])
    ours.set_weights([array(w) for w in theirs.weights])
    return ours, theirs


def flat(values: Any) -> list[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        return [values]
    return [leaf for value in values for leaf in flat(value)]


def assert_equal_results(ours: Any, theirs: Any, x: np.ndarray = X, mask: torch.Tensor | None = None, states: Any = None) -> None:
    """Compares outputs, states and gradients of the inputs, the first states and the weights."""
    inputs = [torch.from_numpy(x).requires_grad_() for _ in range(2)]
    begin = [None if states is None else [torch.from_numpy(s).requires_grad_() for s in states] for _ in range(2)]
    got = [t if t.ndim < 3 else to_outside(t) for t in flat(ours(to_inside(inputs[0]), mask=mask, initial_state=begin[0]))]
    expected = flat(theirs(inputs[1], mask=mask, initial_state=begin[1]))
    assert len(got) == len(expected)
    rng = np.random.default_rng(5)
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert_close(a.detach(), b.detach(), TOLERANCE, f"result {i}")
    upstream = [torch.from_numpy(rng.uniform(-1, 1, tuple(t.shape)).astype("float32")) for t in got]
    for results in (got, expected):
        sum((t * u).sum() for t, u in zip(results, upstream, strict=True)).backward()
    assert_close(inputs[0].grad, inputs[1].grad, TOLERANCE, "gradient of the inputs")
    for a, b in zip(begin[0] or (), begin[1] or (), strict=True):
        assert_close(a.grad, b.grad, TOLERANCE, "gradient of the first states")
    for a, variable in zip(gradients(ours), theirs.weights, strict=True):
        assert_close(a, variable.value.grad, TOLERANCE, f"gradient of {variable.name}")


OPTIONS = [{}, {"return_sequences": True}, {"return_state": True}, {"return_sequences": True, "return_state": True, "go_backwards": True},
           {"return_sequences": True, "zero_output_for_mask": True}, {"zero_output_for_mask": True}]
LAYERS = [("SimpleRNN", {}), ("LSTM", {}), ("GRU", {}), ("GRU", {"reset_after": False}), ("LSTM", {"recurrent_activation": "tanh"})]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("with_states", [True, False])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("name", "more"), LAYERS, ids=str)
def test_masks_and_states(keras, name, more, options, with_states, masked) -> None:
    arguments = {"units": 4, **more, **options}
    ours, theirs = pair(getattr(L, name)(**arguments), getattr(keras.layers, name)(**arguments))
    states = np.random.default_rng(9).normal(size=(2 if name == "LSTM" else 1, 5, 4)).astype("float32")
    assert_equal_results(ours, theirs, mask=MASK if masked else None, states=list(states) if with_states else None)


@pytest.mark.parametrize("merge_mode", ["concat", "sum", "mul", "ave", None])
@pytest.mark.parametrize("options", [*OPTIONS[:3], {"return_sequences": True, "return_state": True}], ids=str)
@pytest.mark.parametrize("masked", [True, False])
def test_bidirectional(keras, merge_mode, options, masked) -> None:
    ours = L.Bidirectional(L.LSTM(2, **options), merge_mode=merge_mode)
    theirs = keras.layers.Bidirectional(keras.layers.LSTM(2, **options), merge_mode=merge_mode)
    pair(ours, theirs)
    states = np.random.default_rng(9).normal(size=(4, 5, 2)).astype("float32")
    assert_equal_results(ours, theirs, mask=MASK if masked else None, states=list(states))


def test_bidirectional_with_another_layer_for_the_way_back(keras) -> None:
    made = []
    for layers in (L, keras.layers):
        ahead = layers.GRU(2, return_sequences=True)
        back = layers.GRU(2, activation="sigmoid", return_sequences=True, go_backwards=True)
        made.append(layers.Bidirectional(ahead, backward_layer=back))
    assert_equal_results(*pair(*made), mask=MASK)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("cells", [["LSTMCell"], ["GRUCell", "LSTMCell"], ["SimpleRNNCell", "GRUCell", "SimpleRNNCell"]], ids=str)
@pytest.mark.parametrize("return_state", [True, False])
def test_rnn_over_cells(keras, cells, masked, return_state) -> None:
    made = []
    for layers in (L, keras.layers):
        own = [getattr(layers, cell)(2 + i) for i, cell in enumerate(cells)]
        made.append(layers.RNN(own if len(own) > 1 else own[0], return_sequences=True, return_state=return_state))
    assert_equal_results(*pair(*made), mask=MASK if masked else None)


class Leaky(L.Layer):
    """A cell of a user: half of the state stays."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units, self.state_size = units, units

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units), name="kernel")

    def call(self, inputs: torch.Tensor, states: Any) -> Any:
        h = 0.5 * states[0] + torch.tanh(inputs @ self.kernel)
        return 2 * h, [h]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("stacked", [True, False])
def test_a_cell_of_ones_own(keras, masked, stacked) -> None:
    class KerasLeaky(keras.layers.Layer):
        def __init__(self, units, **kwargs):
            super().__init__(**kwargs)
            self.units, self.state_size = units, units

        def build(self, input_shape):
            self.kernel = self.add_weight(shape=(input_shape[-1], self.units), name="kernel")

        def call(self, inputs, states):
            h = 0.5 * states[0] + keras.ops.tanh(keras.ops.matmul(inputs, self.kernel))
            return 2 * h, [h]

    ours: Any = [L.LSTMCell(3), Leaky(2)] if stacked else Leaky(2)
    theirs: Any = [keras.layers.LSTMCell(3), KerasLeaky(2)] if stacked else KerasLeaky(2)
    made = pair(L.RNN(ours, return_sequences=True), keras.layers.RNN(theirs, return_sequences=True))
    assert made[0].why_not_fused == "the cell is one of your own"
    assert_equal_results(*made, mask=MASK if masked else None)


def test_conv_lstm_with_mask_and_states(keras) -> None:
    arguments: dict[str, Any] = {"filters": 2, "kernel_size": 2, "padding": "same", "return_sequences": True, "return_state": True}
    ours, theirs = pair(L.ConvLSTM2D(**arguments), keras.layers.ConvLSTM2D(**arguments), (5, 5, 3, 4, 2))
    x = np.random.default_rng(1).normal(size=(5, 5, 3, 4, 2)).astype("float32")
    inputs = torch.from_numpy(x)
    got = [to_outside(t) for t in ours(to_inside(inputs))]
    for a, b in zip(got, theirs(inputs), strict=True):
        assert_close(a.detach(), b.detach(), TOLERANCE, "result")
    masked = ours(to_inside(inputs), mask=MASK)
    for i, row in enumerate(MASK.tolist()):  # Keras's own masks do not fit pictures; a masked sample is a shorter one
        steps = [t for t, counts in enumerate(row) if counts]
        if steps:
            h, c = ours(to_inside(inputs[i:i + 1, steps]))[1:]
            assert_close(masked[1][i].detach(), h[0].detach(), TOLERANCE, "h")
            assert_close(masked[2][i].detach(), c[0].detach(), TOLERANCE, "c")
        else:
            assert not masked[1][i].any() and not masked[0][i].any()


@pytest.mark.parametrize("name", ["SimpleRNNCell", "LSTMCell", "GRUCell"])
@pytest.mark.parametrize("more", [{}, {"use_bias": False}, {"activation": "relu"}], ids=str)
def test_cells(keras, name, more) -> None:
    ours, theirs = getattr(L, name)(4, **more), getattr(keras.layers, name)(4, **more)
    pair(ours, theirs, (5, 3))
    x = torch.from_numpy(X[:, 0])
    states = [torch.from_numpy(s) for s in np.random.default_rng(9).normal(size=(len(ours.get_initial_state(5)), 5, 4)).astype("float32")]
    for a, b in zip(flat(ours(x, states)), flat(theirs(x, states)), strict=True):
        assert_close(a.detach(), b.detach(), TOLERANCE, "result")
    clone = type(ours).from_config(ours.get_config())
    assert clone.get_config() == ours.get_config()
    assert [tuple(s.shape) for s in ours.get_initial_state(5)] == [tuple(s.shape) for s in theirs.get_initial_state(5)]


@pytest.mark.parametrize("name", ["SimpleRNN", "LSTM", "GRU"])
@pytest.mark.parametrize("masked", [True, False])
def test_stateful(keras, name, masked) -> None:
    ours, theirs = pair(getattr(L, name)(4, stateful=True, return_sequences=True), getattr(keras.layers, name)(4, stateful=True,
                                                                                                              return_sequences=True))
    x, mask = torch.from_numpy(X), MASK if masked else None
    for step in range(4):
        got, expected = to_outside(ours(to_inside(x), mask=mask)), theirs(x, mask=mask)
        assert_close(got.detach(), expected.detach(), TOLERANCE, f"batch {step}")
        if step == 2:
            ours.reset_state()
            theirs.reset_state()
    assert len(ours.get_weights()) == 3, "states are no weights"


# -- masks that travel ---------------------------------------------------------------------------------------------

TOKENS = np.array([[1, 2, 3, 0, 0], [4, 1, 0, 0, 0], [2, 2, 2, 2, 1], [3, 0, 0, 0, 0]])


def both_models(keras: Any, make: Any, x: np.ndarray) -> tuple[Any, Any]:
    """Returns the model under Convolt and under Keras, with the same weights."""
    ours, theirs = make(convolt), make(keras)
    ours.predict(x, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs(torch.from_numpy(x))
    rng = np.random.default_rng(2)
    theirs.set_weights([random_weight(rng, w) for w in theirs.weights])
    ours.set_weights([array(w) for w in theirs.weights])
    return ours, theirs


def tagger(k: Any) -> Any:
    return k.Sequential([k.layers.Embedding(5, 3, mask_zero=True), k.layers.LSTM(4, return_sequences=True), k.layers.Dropout(0.0),
                         k.layers.Dense(3, activation="softmax")])


def functional(k: Any) -> Any:
    tokens = k.Input((5,), dtype="int64")
    x = k.layers.Embedding(5, 3, mask_zero=True)(tokens)
    y = k.layers.Bidirectional(k.layers.GRU(2, return_sequences=True))(x)
    x = k.layers.Concatenate()([x, y])
    x = k.layers.TimeDistributed(k.layers.Dense(4, activation="relu"))(x)
    return k.Model(tokens, k.layers.Dense(3, activation="softmax")(k.layers.LayerNormalization()(x)))


def classifier(k: Any) -> Any:
    return k.Sequential([k.layers.Embedding(5, 3, mask_zero=True), k.layers.SimpleRNN(4, return_sequences=True),
                         k.layers.GlobalAveragePooling1D(), k.layers.Dense(3, activation="softmax")])


@pytest.mark.parametrize("make", [tagger, functional, classifier])
@pytest.mark.parametrize("weighted", [None, "sample", "step"])
def test_a_mask_reaches_loss_and_metrics(keras, make, weighted) -> None:
    ours, theirs = both_models(keras, make, TOKENS)
    one_label = make is classifier
    if one_label and weighted == "step":
        pytest.skip("one label for each sample")
    y = np.array([0, 2, 1, 1]) if one_label else np.arange(20).reshape(4, 5) % 3
    weight = {None: None, "sample": np.array([1.0, 2.0, 0.5, 3.0], "float32"),
              "step": np.linspace(0.5, 2, 20, dtype="float32").reshape(4, 5)}[weighted]
    results = []
    for k, model in ((convolt, ours), (keras, theirs)):
        model.compile(k.optimizers.SGD(0.5), "sparse_categorical_crossentropy", metrics=["accuracy"],
                      weighted_metrics=["sparse_categorical_crossentropy"])
        if k is keras and weighted == "sample" and not one_label:
            weight = np.repeat(weight[:, None], 5, axis=1)  # Keras's PyTorch backend fails with one weight per sample
        first = model.evaluate(TOKENS, y, sample_weight=weight, verbose=0)
        model.fit(TOKENS, y, sample_weight=weight, epochs=2, verbose=0, batch_size=4)
        results.append([*first, *model.evaluate(TOKENS, y, sample_weight=weight, verbose=0)])
    np.testing.assert_allclose(results[0], results[1], rtol=2e-5)
    for a, b in zip(ours.get_weights(), theirs.weights, strict=True):
        assert_close(a, array(b), 1e-4, b.name)


class Subclass(convolt.Model):
    """A model whose code hands the mask on explicitly."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = L.Embedding(5, 3)
        self.lstm = L.LSTM(4)
        self.seen: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(self.embed(x), mask=x != 0)


def test_an_explicit_mask_in_a_subclass_equals_one_that_travels(keras) -> None:
    explicit = Subclass()
    result = explicit.predict(TOKENS, verbose=0)
    travelling = convolt.Sequential([L.Embedding(5, 3, mask_zero=True), L.LSTM(4)])
    travelling.predict(TOKENS, verbose=0)
    travelling.set_weights(explicit.get_weights())
    np.testing.assert_allclose(travelling.predict(TOKENS, verbose=0), result, rtol=1e-6)


def test_masking_layer_equals_keras(keras) -> None:
    x = torch.from_numpy(np.where(MASK.numpy()[..., None], X, np.float32(0.5)))
    ours, theirs = L.Masking(0.5)(to_inside(x)), keras.layers.Masking(0.5)(x)
    torch.testing.assert_close(to_outside(ours), theirs)
    torch.testing.assert_close(mask_of(ours), theirs._keras_mask)
    torch.testing.assert_close(L.Masking(0.5).compute_mask(x.numpy()), MASK)


@pytest.mark.parametrize("name", ["Add", "Average", "Maximum", "Multiply", "Concatenate"])
@pytest.mark.parametrize("which", ["both", "first", "none"])
def test_merged_masks_equal_keras(keras, name, which) -> None:
    made = []
    for layers, place, attached in ((L, to_inside, attach), (keras.layers, lambda t: t, lambda t, m: setattr(t, "_keras_mask", m))):
        a, b = place(torch.from_numpy(X).clone()), place(torch.from_numpy(X + 1))
        if which != "none":
            attached(a, MASK)
        if which == "both":
            attached(b, MASK.flip(1))
        made.append(getattr(getattr(layers, name)()([a, b]), "_keras_mask", None))
    assert (made[0] is None) == (made[1] is None)
    if made[0] is not None:
        torch.testing.assert_close(*made)


KEEP = {"Dense": {"units": 2}, "Activation": {"activation": "relu"}, "ReLU": {}, "LeakyReLU": {}, "ELU": {}, "PReLU": {},
        "Dropout": {"rate": 0.1},
        "SpatialDropout1D": {"rate": 0.1}, "GaussianNoise": {"stddev": 0.1}, "LayerNormalization": {}, "GroupNormalization": {"groups": 3},
        "BatchNormalization": {}, "Rescaling": {"scale": 2.0}, "GlobalAveragePooling1D": {}, "GlobalMaxPooling1D": {}, "Flatten": {},
        "Reshape": {"target_shape": (3, 5)}, "Permute": {"dims": (2, 1)}, "Conv1D": {"filters": 2, "kernel_size": 1},
        "MaxPooling1D": {}, "GRU": {"units": 2}, "TimeDistributed": None}


@pytest.mark.parametrize("name", list(KEEP))
def test_who_keeps_a_mask_and_who_warns_is_as_in_keras(keras, name) -> None:
    found = []
    for layers, place in ((L, to_inside), (keras.layers, lambda t: t)):
        x = place(torch.from_numpy(X).clone())
        x._keras_mask = MASK
        given = KEEP[name]
        layer = layers.TimeDistributed(layers.Dense(2)) if given is None else getattr(layers, name)(**given)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            y = layer(x)
        told = [w for w in caught if "mask" in str(w.message)]
        found.append((getattr(y, "_keras_mask", None) is not None, len(told)))
    assert found[0] == found[1]


@pytest.mark.parametrize("training", [True, False])
def test_batch_normalization_counts_what_the_mask_does(keras, training) -> None:
    ours, theirs = L.BatchNormalization(momentum=0.6, bias_correction=False), keras.layers.BatchNormalization(momentum=0.6)
    pair(ours, theirs)
    inputs = [torch.from_numpy(X).clone().requires_grad_() for _ in range(2)]
    got = to_outside(ours.train(training)(to_inside(inputs[0]), mask=MASK))
    expected = theirs(inputs[1], mask=MASK, training=training)
    assert_close(got.detach(), expected.detach(), TOLERANCE, "output")
    upstream = torch.randn(5, 5, 3)
    (got * upstream).sum().backward()
    (expected * upstream).sum().backward()
    assert_close(inputs[0].grad, inputs[1].grad, TOLERANCE, "gradient")
    for a, variable in zip(ours.get_weights(), theirs.weights, strict=True):
        assert_close(a, array(variable), TOLERANCE, variable.name)


def test_a_masked_batch_normalization_is_not_fused() -> None:
    from convolt.compiler.fuse import fuse
    from convolt.compiler.trace import trace

    counts = []
    for first in (L.Masking(), L.Rescaling(1.0)):
        model = convolt.Sequential([L.Input((5, 3)), first, L.BatchNormalization(), L.ReLU(), L.Dense(2)])
        counts.append(fuse(trace(model, [to_inside(torch.from_numpy(X[:2]))])).count)
    assert counts == [{}, {"bn+relu": 1}]
