"""Attention against Keras where the sweep of layers does not reach: masks, causality, scores, dropout, symbolic calls."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import convolt
from convolt import layers
from convolt.errors import ArgumentError, ShapeError
from convolt.layout import to_inside, to_outside
from convolt.masks import attach, mask_of

T, S, B = 4, 3, 2
RNG = np.random.default_rng(0)
Q, V, K = (RNG.normal(size=shape).astype("float32") for shape in ((B, T, 5), (B, S, 6), (B, S, 2)))
QUERY_MASK = np.array([[True, True, False, True], [True, False, False, True]])
VALUE_MASK = np.array([[True, False, True], [True, True, False]])
KEY_MASK = np.array([[True, True, True], [False, True, True]])
PAIRS = np.array(RNG.random((B, T, S)) > 0.3)
PAIRS[0, 1] = False  # a query that sees nothing

HEADS = {"num_heads": 2, "key_dim": 3}
GROUPS = {"head_dim": 3, "num_query_heads": 4, "num_key_value_heads": 2}
MASKS = [
    {}, {"value_mask": VALUE_MASK}, {"key_mask": KEY_MASK}, {"attention_mask": PAIRS}, {"attention_mask": PAIRS[:, None]},
    {"value_mask": VALUE_MASK, "key_mask": KEY_MASK, "attention_mask": PAIRS}, {"attention_mask": PAIRS[:1].astype("int32")},
]


def pair(keras, name: str, kwargs: dict, shapes) -> tuple:
    """Returns Convolt's and Keras's layer with the same weights."""
    ours, theirs = getattr(layers, name)(**kwargs), getattr(keras.layers, name)(**kwargs)
    ours.ensure_built(*shapes)
    theirs.build(*shapes)
    rng = np.random.default_rng(1)
    ours.set_weights([rng.uniform(-0.7, 0.7, w.shape).astype("float32") for w in ours.get_weights()])
    theirs.set_weights(ours.get_weights())
    return ours, theirs


def check(keras, name: str, kwargs: dict, inputs, call: dict) -> None:
    """Compares outputs, scores and gradients of the inputs."""
    ours, theirs = pair(keras, name, kwargs, [(None, *x.shape[1:]) for x in inputs])
    mine, other = ([torch.from_numpy(x.copy()).requires_grad_() for x in inputs] for _ in range(2))
    tensors = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in call.items()}
    got, expected = ours.eval()(*[to_inside(x) for x in mine], **tensors), theirs(*other, training=False, **tensors)
    got, expected = (v if isinstance(v, tuple) else (v,) for v in (got, expected))
    scores = ours(*[to_inside(x) for x in mine], **{**tensors, "return_attention_scores": True})[1]
    sees = to_outside(scores).detach().flatten(-inputs[0].ndim + 2).sum(-1) > 0.5  # (B, …, heads, queries…)
    sees = sees[:, :1].flatten(0, 1) if inputs[0].ndim == 3 else sees.all()  # (B, queries)
    for a, b, seen in zip(got, expected, (sees, torch.tensor(True)), strict=False):
        torch.testing.assert_close(to_outside(a)[seen], b[seen], rtol=1e-5, atol=1e-5)
    (to_outside(got[0])[sees].square().sum()).backward()
    expected[0][sees].square().sum().backward()
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", MASKS, ids=lambda m: "+".join(m) + str([v.shape for v in m.values()]))
@pytest.mark.parametrize("options", [{}, {"use_gate": True, "value_dim": 2}, {"sliding_window": 2}], ids=str)
def test_heads_with_masks(keras, options, mask, causal, scores):
    check(keras, "MultiHeadAttention", {**HEADS, **options}, (Q, V, K),
          {**mask, "use_causal_mask": causal, "return_attention_scores": scores})


@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [m for m in MASKS if m.get("attention_mask", PAIRS).dtype == bool], ids=lambda m: "+".join(m))
@pytest.mark.parametrize("options", [{}, {"sliding_window": 1}], ids=str)
def test_groups_with_masks(keras, options, mask, causal, scores):
    value = np.random.default_rng(4).normal(size=(B, S, 5)).astype("float32")
    check(keras, "GroupQueryAttention", {**GROUPS, **options}, (Q, value, K),
          {**mask, "use_causal_mask": causal, "return_attention_scores": scores})


def test_masks_of_several_axes(keras):
    images = np.random.default_rng(2).normal(size=(B, 2, 3, 4)).astype("float32")
    everything = np.random.default_rng(3).random((B, 2, 3, 2, 3)) > 0.3
    rows = np.random.default_rng(3).random((B, 3, 2, 2)) > 0.3
    for axes, mask in ((None, everything), (None, everything[:1]), (1, rows), (1, rows[:, :1])):
        for scores in (False, True):
            check(keras, "MultiHeadAttention", {**HEADS, "attention_axes": axes}, (images, images),
                  {"attention_mask": mask, "return_attention_scores": scores})


@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize(("name", "kwargs"), [("MultiHeadAttention", HEADS), ("GroupQueryAttention", GROUPS)])
def test_a_query_that_sees_nothing_gives_zero_and_no_gradient(name, kwargs, scores):
    layer = getattr(layers, name)(**kwargs)
    x = torch.randn(B, 5, T, requires_grad=True)
    mask = torch.ones(B, T, T, dtype=torch.bool)
    mask[0, 1] = False
    result = layer(x, torch.randn(B, 5, T), attention_mask=mask, return_attention_scores=scores)
    y = to_outside(result[0] if scores else result)
    torch.testing.assert_close(y[0, 1], layer.output_dense.bias.expand(5))
    y.square().sum().backward()
    assert torch.isfinite(x.grad).all() and (x.grad[0, :, 1] == 0).all() and (x.grad[0, :, 0] != 0).all()


def test_masks_travel_on_the_inputs(keras):
    """The query's and the value's masks are taken from the tensors, and the query's goes on."""
    ours, theirs = pair(keras, "MultiHeadAttention", HEADS, [(None, *Q.shape[1:]), (None, *V.shape[1:])])
    mine = [attach(to_inside(torch.from_numpy(x)), torch.from_numpy(m)) for x, m in ((Q, QUERY_MASK), (V, VALUE_MASK))]
    other = [torch.from_numpy(x) for x in (Q, V)]
    for tensor, mask in zip(other, (QUERY_MASK, VALUE_MASK), strict=True):
        keras.src.backend.set_keras_mask(tensor, torch.from_numpy(mask))
    got, expected = ours(*mine), theirs(*other)
    counts = torch.from_numpy(QUERY_MASK)
    torch.testing.assert_close(to_outside(got)[counts], expected[counts], rtol=1e-5, atol=1e-5)
    assert torch.equal(mask_of(got), torch.from_numpy(QUERY_MASK)) and torch.equal(expected._keras_mask, torch.from_numpy(QUERY_MASK))
    assert not torch.allclose(to_outside(ours(*(to_inside(torch.from_numpy(x)) for x in (Q, V)))), expected)


KWARGS = {"Attention": [{}, {"use_scale": True}, {"score_mode": "concat", "use_scale": True}], "AdditiveAttention": [{}]}


@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [None, (QUERY_MASK, None), (None, VALUE_MASK), (QUERY_MASK, VALUE_MASK & False)], ids=str)
@pytest.mark.parametrize(("name", "kwargs"), [(n, k) for n, each in KWARGS.items() for k in each], ids=str)
def test_attention_without_heads(keras, name, kwargs, mask, causal, scores):
    value = RNG.normal(size=(B, S, 5)).astype("float32")
    ours, theirs = getattr(layers, name)(**kwargs), getattr(keras.layers, name)(**kwargs)
    for each in (ours, theirs):
        each.build([(None, T, 5), (None, S, 5)])
    ours.built = True
    weights = [np.full(w.shape, 0.3, "float32") for w in ours.get_weights()]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    masks = None if mask is None else [None if m is None else torch.from_numpy(m) for m in mask]
    mine, other = ([torch.from_numpy(x.copy()).requires_grad_() for x in (Q, value)] for _ in range(2))
    call = {"mask": masks, "use_causal_mask": causal, "return_attention_scores": scores}
    got, expected = ours.eval()([to_inside(x) for x in mine], **call), theirs(other, training=False, **call)
    got, expected = (v if isinstance(v, tuple) else (v,) for v in (got, expected))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(to_outside(a), b, rtol=1e-5, atol=1e-5)
    to_outside(got[0]).square().sum().backward()
    expected[0].square().sum().backward()
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)


# -- what has no counterpart in Keras ----------------------------------------------------------------------------------


def attention_in_steps(ours, *inputs, **call):
    """The output when scores are asked for, which goes another way than the one kernel."""
    return ours(*inputs, **call, return_attention_scores=True)[0]


@pytest.mark.parametrize(("name", "kwargs"), [("MultiHeadAttention", HEADS), ("GroupQueryAttention", GROUPS)])
def test_both_ways_are_equal_in_float64(name, kwargs):
    layer = getattr(layers, name)(**kwargs)
    layer.ensure_built((None, T, 5), (None, S, 5))
    layer.double()
    q, v = torch.randn(B, 5, T).double(), torch.randn(B, 5, S).double()
    for mask, causal in itertools.product((None, torch.from_numpy(PAIRS)), (False, True)):
        call = {"attention_mask": mask, "use_causal_mask": causal}
        torch.testing.assert_close(layer(q, v, **call), attention_in_steps(layer, q, v, **call), rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("seed", [None, 3])
def test_dropout_drops_scores_and_keeps_the_mean(seed):
    layer = layers.MultiHeadAttention(1, 2, dropout=0.5, use_bias=False, seed=seed)
    layer.ensure_built((None, 1, 1), (None, 200, 1))
    layer.set_weights([np.zeros_like(w) if w.shape[-1] == 2 and i < 2 else np.ones_like(w) for i, w in enumerate(layer.get_weights())])
    x = torch.ones(500, 1, 200)
    expected = float(layer.eval()(x[..., :1], x).mean())
    got = layer.train()(x[..., :1], x).flatten()
    assert float(got.mean()) == pytest.approx(expected, rel=0.02)
    # each of 200 scores 1 / 200 counts twice or not at all: a binomial's deviation
    assert float(got.std() / expected) == pytest.approx(1 / math.sqrt(200), rel=0.15)
    assert float(layer(x[..., :1], x, training=False).std()) < 1e-6


def test_scores_are_those_before_dropout():
    layer = layers.MultiHeadAttention(2, 3, dropout=0.9).train()
    x = to_inside(torch.from_numpy(Q))
    _, scores = layer(x, x, return_attention_scores=True)
    torch.testing.assert_close(to_outside(scores).sum(-1), torch.ones(B, 2, T))


def test_arrays_keep_keras_order_of_axes(keras):
    ours, theirs = pair(keras, "MultiHeadAttention", HEADS, [(None, *Q.shape[1:]), (None, *V.shape[1:])])
    got = ours(Q, V, attention_mask=PAIRS, return_attention_scores=True)
    expected = theirs(torch.from_numpy(Q), torch.from_numpy(V), attention_mask=torch.from_numpy(PAIRS), return_attention_scores=True)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scores", [False, True])
def test_symbolic_calls_by_name_with_a_mask_as_input(keras, scores, tmp_path):
    """A model with a mask among its inputs, its file, and the same in Keras."""
    models = []
    for library in (convolt, keras):
        query, value = library.Input((T, 5), name="query"), library.Input((S, 6), name="value")
        mask = library.Input((T, S), name="mask")
        outputs = library.layers.MultiHeadAttention(2, 3)(query=query, value=value, attention_mask=mask, return_attention_scores=scores)
        models.append(library.Model([query, value, mask], outputs))
    ours, theirs = models
    theirs.set_weights(ours.get_weights())
    inputs = [Q, V, (PAIRS | (np.arange(S) == 0)).astype("float32")]  # each query sees something
    expected = theirs(inputs)
    ours.save(tmp_path / "attention.safetensors")
    for model in (ours, convolt.load_model(tmp_path / "attention.safetensors", device="cpu")):
        got = model.predict(inputs, verbose=0)
        for a, b in zip(got if scores else [got], expected if scores else [expected], strict=True):
            np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-5, atol=1e-5)
    if scores:
        assert [tuple(o.shape) for o in ours.outputs] == [(None, T, 5), (None, 2, T, S)]


def test_symbolic_scores_of_attention():
    query, value = convolt.Input((T, 5)), convolt.Input((S, 5))
    output, scores = layers.Attention()([query, value], return_attention_scores=True)
    model = convolt.Model([query, value], [output, scores])
    got = model.predict([Q, V[..., :5]], verbose=0)
    assert output.shape == (None, T, 5) and scores.shape == (None, T, S) and got[1].shape == (B, T, S)
    np.testing.assert_allclose(got[1].sum(-1), 1, rtol=1e-5)


def test_a_model_with_scores_inside_another_knows_its_shapes():
    x = convolt.Input((T, 5))
    inner = convolt.Model(x, layers.MultiHeadAttention(2, 3)(x, x, return_attention_scores=True))
    assert inner.compute_output_shape((None, 7, 5)) == [(None, 7, 5), (None, 2, 7, 7)]
    outer_input = convolt.Input((T, 5))
    output, scores = inner(outer_input)
    outer = convolt.Model(outer_input, [output, scores])
    assert [y.shape for y in outer.predict(Q, verbose=0)] == [(B, T, 5), (B, 2, T, T)]


def test_training_learns_to_look_at_the_marked_step():
    """Each sequence marks one step; its other feature is the answer. Attention from a constant query can find it."""
    rng = np.random.default_rng(0)
    marked, answers = rng.integers(0, 6, 512), rng.integers(0, 2, (512, 6))
    x = np.stack([answers * 2.0 - 1, np.eye(6)[marked]], -1).astype("float32")
    y = answers[np.arange(512), marked]
    inputs = convolt.Input((6, 2))
    z = layers.MultiHeadAttention(2, 4)(layers.Reshape((1, 12))(inputs), inputs)
    model = convolt.Model(inputs, layers.Dense(2, activation="softmax")(layers.Flatten()(z)))
    model.compile(convolt.optimizers.Adam(0.02), "sparse_categorical_crossentropy", ["accuracy"], device="cpu")
    model.fit(x, y, epochs=12, batch_size=64, verbose=0, seed=0)
    assert model.evaluate(x, y, verbose=0)[1] > 0.95


@pytest.mark.parametrize(("make", "message"), [
    (lambda: layers.MultiHeadAttention(0, 3), r"MultiHeadAttention\(num_heads\): got 0"),
    (lambda: layers.MultiHeadAttention(2, 3, dropout=0.1, flash_attention=True), r"flash_attention\): got True with dropout"),
    (lambda: layers.MultiHeadAttention(2, 3, sliding_window=0), "sliding_window"),
    (lambda: layers.GroupQueryAttention(3, 4, 3), "a number of query heads that the other divides"),
    (lambda: layers.Attention(score_mode="dott"), "Did you mean 'dot'"),
    (lambda: layers.EinsumDense("ab,bc", 3), r"EinsumDense\(equation\): got 'ab,bc'; expected 'ab,bc->ac'"),
    (lambda: layers.EinsumDense("ab,bd->ac", 3), "'c' is once alone"),
    (lambda: layers.EinsumDense("ab,bc->ac", (3, 4)), r"EinsumDense\(output_shape\): got \(3, 4\)"),
    (lambda: layers.EinsumDense("ab,bc->ac", 3, bias_axes="b"), r"letters of the output 'ac'"),
])
def test_argument_errors(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize(("work", "message"), [
    (lambda: layers.MultiHeadAttention(2, 3)(torch.ones(2, 5), torch.ones(2, 5)), r"expected \(batch, steps…, features\)"),
    (lambda: layers.MultiHeadAttention(2, 3, attention_axes=2)(torch.ones(2, 5, 3), torch.ones(2, 5, 3)), "axes of attention between"),
    (lambda: layers.MultiHeadAttention(2, 3)(torch.ones(2, 5, 3), torch.ones(2, 5, 3), torch.ones(2, 5, 4)), "the same axes but the last"),
    (lambda: layers.MultiHeadAttention(2, 3)(torch.ones(2, 5, 3), torch.ones(2, 5, 3), attention_mask=torch.ones(3)), "2 to 4 axes"),
    (lambda: layers.GroupQueryAttention(3, 4, 2)(torch.ones(2, 5, 3, 3), torch.ones(2, 5, 3, 3)), r"\(batch, steps, features\) for both"),
    (lambda: layers.Attention()(torch.ones(2, 5, 3)), r"got a single input; expected \[query, value\]"),
    (lambda: layers.EinsumDense("ab,bc->ac", 3)(torch.ones(2, 5, 3)), "axes as in 'ab,bc->ac'"),
    (lambda: layers.EinsumDense("abc,cd->abd", (7, 3))(torch.ones(2, 5, 3)), "axis 'b': got 3 from the input; expected 7"),
])
def test_shape_errors(work, message):
    with pytest.raises(ShapeError, match=message):
        work()


def test_scores_and_the_flash_kernel_exclude_each_other():
    layer = layers.MultiHeadAttention(2, 8, flash_attention=True)
    x = torch.randn(2, 5, 4)
    torch.testing.assert_close(layer(x, x), attention_without_flash(layer, x), rtol=1e-5, atol=1e-5)
    with pytest.raises(ArgumentError, match="the flash kernel never has the scores"):
        layer(x, x, return_attention_scores=True)


def attention_without_flash(layer, x):
    layer.flash_attention = None
    result = layer(x, x)
    layer.flash_attention = True
    return result
