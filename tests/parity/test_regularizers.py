"""Every regularizer against Keras, forward and gradients; on weights of layers too, which PyTorch keeps in another order."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
import torch

from convolt import regularizers
from convolt.configurable import to_json
from convolt.errors import ArgumentError, ShapeError
from convolt.layers import Conv2D, Dense
from convolt.regularizers import registry

ARGUMENTS: dict[str, list[dict]] = {  # for each registered regularizer, the arguments to try
    "L1": [{}, {"l1": 0.3}, {"l1": 0}, {"l1": None}],
    "L2": [{}, {"l2": 0.3}, {"l2": 0}, {"l2": None}],
    "L1L2": [{}, {"l1": 0.3}, {"l2": 0.2}, {"l1": 0.3, "l2": 0.2}, {"l1": None, "l2": None}],
    "OrthogonalRegularizer": [{}, {"factor": 0.5}, {"mode": "columns"}, {"factor": 0.2, "mode": "rows"}],
}
CASES = [(name, arguments) for name, each in ARGUMENTS.items() for arguments in each]
EVERY_CASE = pytest.mark.parametrize(("name", "arguments"), CASES, ids=[f"{n}{a}" for n, a in CASES])
SHAPES = {"OrthogonalRegularizer": [(3, 4), (5, 2), (2, 2)]}
ANY_SHAPES = [(3,), (3, 4), (2, 3, 1, 4)]


def weight(shape) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).uniform(0.1, 1, shape) * np.random.default_rng(4).choice([-1, 1], shape))


def test_every_registered_regularizer_has_a_case():
    assert set(ARGUMENTS) == set(registry)


def test_every_regularizer_of_keras_is_known(keras):
    theirs = {n for n, c in vars(keras.regularizers).items() if inspect.isclass(c)} - {"Regularizer"}
    assert theirs
    assert all(name in registry and inspect.isclass(getattr(regularizers, name)) for name in theirs)


@EVERY_CASE
def test_penalty_and_gradient_equal_keras(keras, name, arguments):
    for shape in SHAPES.get(name, ANY_SHAPES):
        mine, theirs = weight(shape).float().requires_grad_(), weight(shape).float().requires_grad_()
        got = registry.find(name)(**arguments)(mine)
        expected = getattr(keras.regularizers, name)(**arguments)(theirs)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        assert got.shape == ()
        if expected.requires_grad:
            got.backward()
            expected.backward()
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-6)


@EVERY_CASE
def test_gradcheck(name, arguments):
    for shape in SHAPES.get(name, ANY_SHAPES):
        x = weight(shape).requires_grad_()
        penalty = registry.find(name)(**arguments)
        if penalty(x).requires_grad:
            assert torch.autograd.gradcheck(penalty, x, atol=1e-7, rtol=1e-5)


@EVERY_CASE
def test_configuration_round_trip(keras, name, arguments):
    made = registry.find(name)(**arguments)
    config = json.loads(json.dumps(to_json(made)))
    again = regularizers.get(config)
    assert type(again) is type(made) and again.get_config() == made.get_config()
    theirs = getattr(keras.regularizers, name)(**arguments).get_config()
    assert theirs == pytest.approx(made.get_config()) if "mode" not in theirs else theirs.keys() == made.get_config().keys()


def test_names_as_in_keras():
    assert isinstance(regularizers.get("l2"), regularizers.L2)
    assert isinstance(regularizers.get("l1_l2"), regularizers.L1L2)
    assert isinstance(regularizers.get("orthogonal_regularizer"), regularizers.OrthogonalRegularizer)
    assert regularizers.l2(1e-4).l2 == 1e-4
    assert regularizers.get(None) is None
    assert regularizers.get(lambda x: x.sum())(torch.ones(3)) == 3


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "0.1", True])
def test_factors_that_cannot_be(value):
    for make in (regularizers.L1, regularizers.L2, regularizers.OrthogonalRegularizer):
        with pytest.raises(ArgumentError, match="a finite number from 0"):
            make(value)


def test_other_errors():
    with pytest.raises(ArgumentError, match="'rows' or 'columns'"):
        regularizers.OrthogonalRegularizer(mode="both")
    with pytest.raises(ShapeError, match="a matrix"):
        regularizers.OrthogonalRegularizer()(torch.ones(2, 3, 4))
    with pytest.raises(ArgumentError, match="Did you mean 'l1l2'"):
        regularizers.get("l1-l2")


def test_zero_rows_have_finite_gradients():
    x = torch.zeros(3, 4, requires_grad=True)
    regularizers.OrthogonalRegularizer()(x).backward()
    assert x.grad.isfinite().all()


def test_penalties_see_kernels_in_keras_order(keras):
    for mode in ("rows", "columns"):
        layer, theirs = Dense(4, kernel_regularizer=regularizers.OrthogonalRegularizer(0.7, mode)), \
            keras.layers.Dense(4, kernel_regularizer=keras.regularizers.OrthogonalRegularizer(0.7, mode))
        layer.ensure_built((None, 3))
        theirs.build((None, 3))
        layer.set_weights([v.value.detach().numpy() for v in theirs.weights])
        torch.testing.assert_close(layer.penalties()[0], theirs.losses[0])


def test_penalties_see_convolution_kernels_in_keras_order():
    seen = []
    layer = Conv2D(5, (3, 2), kernel_regularizer=lambda w: seen.append(tuple(w.shape)) or w.sum())
    layer.ensure_built((None, 8, 8, 4))
    layer.penalties()
    assert seen == [(3, 2, 4, 5)]
