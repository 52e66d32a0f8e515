"""Checks of arrays and labels: each message, and arrays of every kind that give the same tensor."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from convolt import losses
from convolt.errors import ConvoltWarning, DataError, ShapeError
from convolt.training import checks

SPARSE = losses.SparseCategoricalCrossentropy()
CLASSES = (1, 10)
"""Output shape of a model with ten classes."""


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Chunks of a few samples, so that indices must be counted over chunks."""
    monkeypatch.setattr(checks, "CHUNK", 100)


# -- arrays --------------------------------------------------------------------------------------------------------


def _variants(values: np.ndarray) -> dict[str, np.ndarray]:
    read_only = values.copy()
    read_only.flags.writeable = False
    wide = np.repeat(values, 2, axis=0)
    return {"plain": values, "strided": wide[::2], "reversed": values[::-1].copy()[::-1],
            "big-endian": values.astype(values.dtype.newbyteorder(">")), "read-only": read_only,
            "fortran": np.asfortranarray(values), "transposed": values.T.copy().T, "list": values.tolist()}


@pytest.mark.parametrize("kind", list(_variants(np.zeros((2, 2)))))
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8", "int64", "int16", "bool", "uint16", "uint32"])
def test_arrays_of_every_kind_give_the_same_tensor(kind, dtype):
    values = (np.arange(12).reshape(4, 3) % 5).astype(dtype)
    tensor = checks.as_tensor(_variants(values)[kind])
    np.testing.assert_array_equal(tensor.numpy(), values)
    expected = {"float64": torch.float32, "uint16": torch.int64, "uint32": torch.int64}.get(dtype, getattr(torch, dtype))
    if kind == "list":
        expected = {"b": torch.bool, "f": torch.float32}.get(values.dtype.kind, torch.int64)
    assert tensor.dtype == expected


def test_memory_is_shared_where_it_can_be():
    values = np.zeros((2, 3), "float32")
    assert np.shares_memory(checks.as_tensor(values).numpy(), values)
    assert np.shares_memory(checks.as_tensor(np.zeros((4, 3), "uint8")[::2]).numpy(), values) is False
    tensor = torch.zeros(3, dtype=torch.bfloat16)
    assert checks.as_tensor(tensor) is tensor


@pytest.mark.parametrize(("array", "message"), [
    ([[1.0, 2.0], [3.0]], "rows that differ in length"),
    (np.array([np.zeros(2), np.zeros(3)], dtype=object), "rows that differ in length"),
    (np.array([np.zeros(2), np.zeros(2)], dtype=object)[:, :1], "Python objects"),
    (np.array([{"a": 1}], dtype=object), r"Python objects \(dict\).*np.stack"),
    (np.array(["cat", "dog"]), "np.unique"),
    (np.array([1 + 2j]), "values of type complex128"),
])
def test_arrays_that_are_no_numbers(array, message):
    with pytest.raises(DataError, match=message):
        checks.as_tensor(array, "x")


# -- inputs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_nan_and_inf_are_named_by_index(bad, dtype):
    x = np.zeros((50, 4, 4, 1), dtype)
    x[37, 2, 3, 0] = x[41, 0, 0, 0] = bad
    with pytest.raises(DataError, match=rf"fit: x\[37, 2, 3, 0\]: got {bad}; expected finite"):
        checks.check_inputs([x], [])
    with pytest.raises(DataError, match=rf"fit: x\[1\]\[37, 2, 3, 0\]: got {bad}"):
        checks.check_inputs([np.zeros((50, 1)), x], [])
    y = np.zeros(50, dtype)
    y[44] = bad
    with pytest.raises(DataError, match=rf"y\[44\]: got {bad}"):
        checks.check_labels(y, loss=losses.get("mse"), output_shape=(1, 1))
    with pytest.raises(DataError, match=rf"sample_weight\[44\]: got {bad}"):
        checks.check_lengths([torch.zeros(50)], [torch.zeros(50)], [torch.tensor(y)])


@pytest.mark.parametrize(("shape", "expected", "message"), [
    ((2, 1, 28, 28), (None, 28, 28, 1), r"samples of shape \(1, 28, 28\); expected \(28, 28, 1\).*x.transpose\(0, 2, 3, 1\)"),
    ((2, 3, 32, 16), (None, None, None, 3), r"x.transpose\(0, 2, 3, 1\)"),
    ((2, 3, 8), (None, 8, 3), r"x.transpose\(0, 2, 1\)"),
    ((2, 28, 28), (None, 28, 28, 1), r"x\[..., None\]"),
    ((28, 28, 1), (None, 28, 28, 1), r"x\[None\]"),
    ((2, 28, 28, 1), (None, 784), r"x.reshape\(len\(x\), 784\)"),
    ((2, 32, 32, 3), (None, 28, 28, 1), r" \(28, 28, 1\)\. Read the pictures with color_mode='grayscale', image_size=\(28, 28\)\.$"),
    ((2, 32, 32, 3), (None, 28, 28, 3), r"Resize the pictures, or begin the model with Input\(\(32, 32, 3\)\)\.$"),
    ((2, 32, 32, 5), (None, 28, 28, 1), r"got samples of shape \(32, 32, 5\); expected \(28, 28, 1\)\.$"),
])
def test_shapes_that_do_not_fit(shape, expected, message):
    with pytest.raises(ShapeError, match=message):
        checks.check_inputs([np.zeros(shape, "float32")], [expected])


def test_the_advice_for_channels_first_helps():
    x = np.zeros((2, 3, 5, 7), "float32")
    with pytest.raises(ShapeError) as error:
        checks.check_inputs([x], [(None, 5, 7, 3)])
    code = str(error.value).split("x = ")[1].split(" puts")[0]
    assert code == "x.transpose(0, 2, 3, 1)"
    assert checks.check_inputs([x.transpose(0, 2, 3, 1)], [(None, 5, 7, 3)])[0].shape == (2, 5, 7, 3)


def test_channels_first_is_suspected_where_the_input_is_unknown():
    with pytest.warns(ConvoltWarning, match="channels last"):
        checks.check_inputs([np.zeros((2, 3, 32, 32), "float32")], [])
    checks.check_inputs([np.zeros((2, 32, 32, 3), "float32")], [])


@pytest.mark.parametrize(("x", "message"), [
    (np.zeros((0, 28, 28, 1)), r"no values \(shape \(0, 28, 28, 1\)\)"), (np.zeros((3, 0)), "no values"), ([], "no values"),
    (3.0, "a single number"),
])
def test_empty(x, message):
    with pytest.raises(DataError, match=message):
        checks.check_inputs([x], [])
    with pytest.raises(DataError, match=message):
        checks.check_labels(x, loss=SPARSE, output_shape=CLASSES)


def test_number_of_inputs():
    with pytest.raises(DataError, match=r"1 array\(s\); expected 2"):
        checks.check_inputs([np.zeros((2, 3))], [(None, 3), (None, 4)])


def test_lengths_that_differ():
    with pytest.raises(DataError, match="x 5, y 4"):
        checks.check_lengths([torch.zeros(5, 2)], [torch.zeros(4)])
    with pytest.raises(DataError, match=r"x\[0\] 5, x\[1\] 5, y 5, sample_weight 3"):
        checks.check_lengths([torch.zeros(5, 2), torch.zeros(5)], [torch.zeros(5)], [torch.zeros(3)])
    with pytest.raises(DataError, match="y: got a single number"):
        checks.check_lengths([torch.zeros(5)], [torch.tensor(1.0)])
    checks.check_lengths([torch.zeros(5, 2)], [torch.zeros(5)], [torch.ones(5)])


def test_pixels_from_0_to_255():
    x = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype("float32")
    with pytest.warns(checks.PixelRangeWarning, match=r"Rescaling\(1 / 255\)"):
        checks.check_pixels([x])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checks.check_pixels([x / 255, x.astype("uint8"), x - 128, x.reshape(4, -1), x[:0]])
    assert issubclass(checks.PixelRangeWarning, UserWarning)


# -- labels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "float64", ">i4"])
def test_labels_out_of_range_are_named(dtype):
    y = np.zeros(300, dtype)
    y[217] = 10
    message = r"fit: y\[217\]: got the label 10; expected 0 to 9, since the model has 10 classes"
    with pytest.raises(DataError, match=message + ".*11 units"):
        checks.check_labels(y, loss=SPARSE, output_shape=CLASSES)
    with pytest.raises(DataError, match=message):
        checks.check_labels(y, loss=losses.get("ce"), output_shape=CLASSES)
    y[217] = 9
    assert checks.check_labels(y, loss=SPARSE, output_shape=CLASSES).shape == (300,)


def test_labels_that_start_at_1_and_negative_labels():
    with pytest.raises(DataError, match="y - 1"):
        checks.check_labels(np.arange(10) + 1, loss=SPARSE, output_shape=CLASSES)
    with pytest.raises(DataError, match=r"y\[1\]: got the label -1.*ignore_class"):
        checks.check_labels(np.array([0, -1]), loss=SPARSE, output_shape=CLASSES)
    ignoring = losses.SparseCategoricalCrossentropy(ignore_class=-1)
    checks.check_labels(np.array([0, -1]), loss=ignoring, output_shape=CLASSES)
    with pytest.raises(DataError, match="label 10"):
        checks.check_labels(np.array([0, -1, 10]), loss=ignoring, output_shape=CLASSES)


def test_labels_of_pixels():
    y = np.zeros((2, 4, 5), "uint8")
    checks.check_labels(y, loss=SPARSE, output_shape=(1, 3, 4, 5))
    checks.check_labels(y[..., None], loss=SPARSE, output_shape=(1, 3, 4, 5))
    y[1, 2, 3] = 7
    with pytest.raises(DataError, match=r"y\[1, 2, 3\]: got the label 7"):
        checks.check_labels(y, loss=SPARSE, output_shape=(1, 3, 4, 5))
    with pytest.raises(ShapeError, match=r"labels of shape \(2, 4, 5\)"):
        checks.check_labels(y, loss=SPARSE, output_shape=(1, 3, 4, 6))


def test_float_labels_must_be_whole():
    checks.check_labels(np.array([0.0, 9.0]), loss=SPARSE, output_shape=CLASSES)
    with pytest.raises(DataError, match=r"y\[150\]: got 2.5; expected whole numbers"):
        checks.check_labels(np.where(np.arange(200) == 150, 2.5, 1.0), loss=SPARSE, output_shape=CLASSES)


def test_one_hot_against_sparse():
    with pytest.raises(ShapeError, match=r"one-hot with shape \(7, 10\): use categorical_crossentropy"):
        checks.check_labels(np.eye(10)[:7], loss=SPARSE, output_shape=CLASSES)
    for y in (np.arange(7), np.arange(7)[:, None]):
        with pytest.raises(ShapeError, match="use sparse_categorical_crossentropy"):
            checks.check_labels(y, loss=losses.get("categorical_crossentropy"), output_shape=CLASSES)
    checks.check_labels(np.eye(10)[:7], loss=losses.get("categorical_crossentropy"), output_shape=CLASSES)
    checks.check_labels(np.eye(10)[:7], loss=losses.get("ce"), output_shape=CLASSES)


def test_binary_labels():
    bce = losses.get("bce")
    for y in (np.array([0, 1, 1]), np.array([[True], [False]]), np.array([0.0, 0.3])):
        checks.check_labels(y, loss=bce, output_shape=(1, 1))
    with pytest.raises(DataError, match=r"y\[2\]: got 2.*sparse_categorical"):
        checks.check_labels(np.array([0, 1, 2]), loss=bce, output_shape=(1, 1))
    with pytest.raises(DataError, match=r"y\[0\]: got -1.*\(y \+ 1\) / 2"):
        checks.check_labels(np.array([-1, 1]), loss=bce, output_shape=(1, 1))
    with pytest.raises(ShapeError, match="sparse_categorical_crossentropy"):
        checks.check_labels(np.array([0, 1, 2]), loss=bce, output_shape=CLASSES)


def test_targets_of_a_regression_and_losses_of_the_user():
    with pytest.raises(ShapeError, match=r"y_true of shape \(4, 3\) and y_pred of shape \(4, 2\)"):
        checks.check_labels(np.zeros((4, 3)), loss=losses.get("mse"), output_shape=(1, 2))
    checks.check_labels(np.zeros(4), loss=losses.get("mse"), output_shape=(1, 1))
    checks.check_labels(np.zeros((4, 3)), loss=losses.get(lambda y_true, y_pred: y_pred.sum(-1)), output_shape=(1, 2))
    checks.check_labels(np.zeros((4, 3)), loss=None, output_shape=(1, 2))


def test_classes_on_another_axis():
    loss = losses.SparseCategoricalCrossentropy(axis=1)  # of user's shape (N, 3, 4, 5), inside (N, 5, 3, 4)
    y = np.full((2, 4, 5), 2)
    checks.check_labels(y, loss=loss, output_shape=(1, 5, 3, 4))
    with pytest.raises(DataError, match="label 3"):
        checks.check_labels(y + 1, loss=loss, output_shape=(1, 5, 3, 4))
