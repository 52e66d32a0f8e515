"""Keras's small helpers, beside Keras's own."""

import os
import random

import numpy as np
import pytest
import torch

from convolt.errors import ArgumentError
from convolt.utils import normalize, set_random_seed, to_categorical

os.environ.setdefault("KERAS_BACKEND", "torch")


@pytest.mark.parametrize(("x", "classes"), [
    ([0, 2, 1], None), ([0, 2, 1], 5), ([[0], [3]], None), ([[0, 1], [2, 3]], 4), (np.array([1.0, 0.0]), None), (2, None),
    (np.zeros((2, 3, 1), np.uint8), 2), (np.array([True, False]), None),
])
def test_to_categorical_is_keras_s(x, classes):
    keras_utils = pytest.importorskip("keras").utils
    expected = keras_utils.to_categorical(x, classes)
    found = to_categorical(x, classes)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_to_categorical_of_a_tensor():
    found = to_categorical(torch.tensor([[1], [0]]), 3)
    assert found.dtype == torch.float32
    assert found.tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize(("x", "classes", "message"), [
    ([0, 3], 3, "labels from 0 to 3; expected labels from 0 to 2"), ([-1, 0], None, "labels from -1"),
    ([0.5], None, "whole numbers"),
    ([float("nan")], None, "whole numbers"), ([], None, "no labels"), (["cat"], None, "whole numbers"),
])
def test_to_categorical_refuses_what_is_no_label(x, classes, message):
    with pytest.raises(ArgumentError, match=message):
        to_categorical(x, classes)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("axis", [-1, 1, 2])
def test_normalize_is_keras_s(axis, order):
    keras_utils = pytest.importorskip("keras").utils
    x = np.random.RandomState(0).randn(4, 3, 5)
    x[0] = 0
    np.testing.assert_allclose(normalize(x, axis, order), keras_utils.normalize(x, axis, order), rtol=1e-12)
    np.testing.assert_allclose(normalize(torch.from_numpy(x), axis, order).numpy(), normalize(x, axis, order), rtol=1e-12)


def test_normalize_of_other_axes_and_kinds():
    x = np.array([[3, 0], [4, 0]])
    np.testing.assert_allclose(normalize(x, axis=0), [[0.6, 0], [0.8, 0]])
    np.testing.assert_allclose(normalize(x, axis=None), [[0.6, 0], [0.8, 0]])
    np.testing.assert_allclose(normalize(torch.from_numpy(x), axis=None), [[0.6, 0], [0.8, 0]])
    np.testing.assert_allclose(normalize([[3.0, 4.0]]), [[0.6, 0.8]])


def test_seed_decides_python_numpy_and_torch():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        set_random_seed(7)
        first = draw()
        second = draw()
        set_random_seed(np.int64(7))
        assert draw() == first
        assert first != second
        set_random_seed(8)
        assert all(a != b for a, b in zip(draw(), first, strict=True))
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "1", None, True])
def test_seed_must_be_a_whole_number(seed):
    with pytest.raises(ArgumentError, match="seed"):
        set_random_seed(seed)
