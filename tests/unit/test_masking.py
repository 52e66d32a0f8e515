"""Masks on their way: what fills them in, what keeps them, what loses them, and that models without masks pay nothing."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

import convolt
from convolt import layers as L
from convolt.errors import ConvoltWarning, ShapeError
from convolt.layout import to_inside
from convolt.losses import MeanSquaredError, SparseCategoricalCrossentropy
from convolt.masks import attach, mask_of, masked_weight, masks_of

MASK = torch.tensor([[True, True, False], [True, False, False]])


def sequence(mask: torch.Tensor | None = MASK) -> torch.Tensor:
    return attach(to_inside(torch.arange(24.0).reshape(2, 3, 4)), mask)


class Seen(L.Layer):
    """Notes the mask that it was given."""

    mask: Any = None

    def call(self, x: torch.Tensor, mask: Any = None) -> torch.Tensor:
        self.mask = mask
        return x + 1


class Pair(L.Layer):
    """Takes two tensors, with a mask for each."""

    def forward(self, query: torch.Tensor, value: torch.Tensor, query_mask: Any = None, value_mask: Any = None,
                attention_mask: Any = None) -> torch.Tensor:
        self.given = (query_mask, value_mask, attention_mask)
        return query


def test_attach_and_mask_of() -> None:
    x = torch.zeros(2, 3)
    assert mask_of(x) is None and mask_of("text") is None and masks_of([x, x]) is None
    assert attach(x, MASK) is x and mask_of(x) is MASK
    assert masks_of([x, torch.zeros(1)]) == [MASK, None] and masks_of({"a": x})[0] is MASK
    assert mask_of(attach(x, None)) is None


def test_an_argument_mask_is_filled_from_the_input() -> None:
    layer = Seen()
    with pytest.warns(ConvoltWarning, match="which this layer loses"):
        layer(sequence())
    assert layer.mask is MASK
    layer(sequence(None))
    assert layer.mask is None
    own = ~MASK
    layer(sequence(), mask=own)
    assert layer.mask is own, "an explicit mask comes first"


def test_arguments_with_the_name_of_another_are_filled_from_it() -> None:
    layer = Pair()
    layer.supports_masking = True
    layer(sequence(), sequence(None))
    assert layer.given == (MASK, None, None)
    layer(sequence(None), value=sequence())
    assert layer.given == (None, MASK, None)
    y = layer(sequence(), sequence(), query_mask=~MASK)
    assert torch.equal(layer.given[0], ~MASK) and layer.given[1] is MASK
    assert mask_of(y) is MASK


def test_who_loses_a_mask_says_so_once() -> None:
    layer = L.Flatten()
    with pytest.warns(ConvoltWarning, match=r"Flatten 'flatten.*mask, which this layer loses.*supports_masking = True"):
        assert mask_of(layer(sequence())) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(sequence())


def test_a_layer_that_defines_compute_mask_supports_masks() -> None:
    class Every(L.Layer):
        def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
            return torch.ones(2, 3, dtype=torch.bool)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    assert Every.supports_masking and not L.Flatten.supports_masking
    assert mask_of(Every()(sequence(None))).all()


def test_embedding_masks_zeros_of_any_shape() -> None:
    numbers = torch.tensor([[[1, 0], [2, 3]]])
    y = L.Embedding(4, 5, mask_zero=True)(to_inside(numbers))
    assert mask_of(y).tolist() == [[[True, False], [True, True]]]
    assert mask_of(L.Embedding(4, 5)(numbers)) is None
    assert L.Embedding(4, 5, mask_zero=True).compute_mask(np.array([[0, 1]])).tolist() == [[False, True]]


def test_softmax_is_not_given_a_mask_of_steps() -> None:
    y = L.Softmax()(sequence())
    torch.testing.assert_close(y.sum(1), torch.ones(2, 3))
    assert mask_of(y) is MASK


def test_masks_as_arrays_keep_their_axes() -> None:
    layer = Seen()
    layer.supports_masking = True
    layer(np.ones((2, 3, 4), "float32"), mask=np.ones((2, 3, 3), bool)[:, :, ::-1])
    assert layer.mask.shape == (2, 3, 3)
    np.testing.assert_array_equal(L.LSTM(2)(np.ones((2, 3, 4), "float32"), mask=np.zeros((2, 3), bool)), np.zeros((2, 2)))


def test_a_loss_is_the_mean_over_steps_that_count() -> None:
    prediction = attach(torch.tensor([[[1.0, 2.0, 9.0]], [[3.0, 9.0, 9.0]]]), MASK)
    label = torch.zeros(2, 1, 3)
    assert float(MeanSquaredError()(label, prediction)) == pytest.approx((1 + 4 + 9) / 3)
    assert float(MeanSquaredError(reduction="sum")(label, prediction)) == pytest.approx(14)
    weighted = MeanSquaredError()(label, prediction, torch.tensor([1.0, 2.0]))
    assert float(weighted) == pytest.approx((1 + 4 + 18) / 3)
    nothing = attach(prediction.clone(), torch.zeros_like(MASK))
    assert float(MeanSquaredError()(label, nothing)) == 0


def test_masks_and_ignored_classes_count_together() -> None:
    logits = attach(torch.zeros(2, 4, 3), MASK)
    labels = torch.tensor([[1, -1, -1], [2, 0, 0]])
    loss = SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    assert float(loss(labels, logits)) == pytest.approx(np.log(4), rel=1e-6)


def test_a_mask_that_fits_no_loss_is_told() -> None:
    with pytest.raises(ShapeError, match=r"losses of shape \(2,\); expected one for each step of the mask, \(2, 3\)"):
        MeanSquaredError()(torch.zeros(2, 5), attach(torch.zeros(2, 5), MASK))


def test_weights_of_metrics() -> None:
    assert masked_weight(None, None) is None
    assert masked_weight(MASK, torch.tensor([2.0, 3.0])).tolist() == [[2, 2, 0], [3, 0, 0]]
    assert masked_weight(MASK, torch.full((2, 3, 1), 0.5)).tolist() == [[0.5, 0.5, 0], [0.5, 0, 0]]


def test_padding_changes_nothing() -> None:
    """A model gives the same outputs, loss and gradients for longer padding."""
    torch.manual_seed(1)
    model = convolt.Sequential([L.Input((None,), dtype="int64"), L.Embedding(6, 4, mask_zero=True), L.GRU(5, return_sequences=True),
                                L.LSTM(3), L.Dense(2, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    x, y = np.random.default_rng(0).integers(1, 6, (4, 3)), np.array([0, 1, 0, 1])
    padded = np.pad(x, ((0, 0), (0, 4)))
    np.testing.assert_allclose(model.predict(padded, verbose=0), model.predict(x, verbose=0), rtol=1e-5)
    before = model.get_weights()
    model.train_on_batch(x, y)
    short = model.get_weights()
    model.set_weights(before)
    model.train_on_batch(padded, y)
    for a, b in zip(short, model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_traced_model_hands_masks_on() -> None:
    from convolt.compiler.trace import trace

    model = convolt.Sequential([L.Input((3, 4)), L.Masking(), L.Dense(2), L.LSTM(3)])
    x = torch.randn(2, 3, 4)
    x[:, 2] = 0
    graph = trace(model, [to_inside(x)])
    torch.testing.assert_close(graph(to_inside(x)), model(to_inside(x)))
    torch.testing.assert_close(graph(to_inside(x)), model(to_inside(x[:, :2])))


def test_without_masks_no_attribute_is_set_and_none_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("called without a mask")

    monkeypatch.setattr("convolt.layers.base.hand_on", never)
    y = L.Dense(2)(L.Dropout(0.5)(sequence(None)))
    assert not hasattr(y, "_keras_mask")
