"""Antialiased resizing beside Pillow's, with the same integers."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from convolt import kernels
from convolt.data.decode import decode_image
from convolt.errors import ArgumentError, ArgumentTypeError, ShapeError
from convolt.kernels import reference
from tests.unit.pictures import encode


def pictures(count):
    chance = np.random.default_rng(5)
    for _ in range(count):
        height, width, rows, columns = (int(n) for n in chance.integers(1, 120, 4))
        yield chance.integers(0, 256, (height, width, int(chance.choice([1, 3]))), np.uint8), (rows, columns)


def by_pillow(x, size):
    image = Image.fromarray(x[..., 0] if x.shape[2] == 1 else x)
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR)).reshape(*size, x.shape[2])


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_within_one_of_pillow(backend):
    for x, size in pictures(60):
        got = kernels.resize(torch.from_numpy(x), size, backend=backend).numpy()
        assert np.abs(got.astype(int) - by_pillow(x, size)).max() <= 1, (x.shape, size)


@pytest.mark.parametrize("axis", [0, 1])
def test_along_one_axis_pillow_bit_for_bit(axis):
    for x, size in pictures(60):
        one = (size[0], x.shape[1]) if axis == 0 else (x.shape[0], size[1])
        np.testing.assert_array_equal(kernels.resize(torch.from_numpy(x), one).numpy(), by_pillow(x, one))


def test_lines_before_columns_bit_for_bit():
    for x, size in pictures(60):
        lines = by_pillow(x, (x.shape[0], size[1]))
        np.testing.assert_array_equal(kernels.resize(torch.from_numpy(x), size).numpy(), by_pillow(lines, size))


def test_the_kernel_is_its_reference_bit_for_bit():
    for x, size in pictures(60):
        assert torch.equal(kernels.resize(torch.from_numpy(x), size), reference.resize(torch.from_numpy(x), size))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("color_mode", ["rgb", "grayscale"])
def test_decoding_resizes_alike_without_numba(monkeypatch, kind, color_mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8))
    data = encode(image, kind)
    found = decode_image(data, color_mode, (24, 40))
    monkeypatch.setattr(sys.modules["convolt.kernels.resize"], "choose", lambda *_: "reference")
    np.testing.assert_array_equal(decode_image(data, color_mode, (24, 40)), found)
    assert found.shape == (24, 40, 3 if color_mode == "rgb" else 1)


def test_wrong_arguments():
    with pytest.raises(ArgumentTypeError, match="uint8"):
        kernels.resize(torch.zeros(4, 4, 3), (2, 2))
    with pytest.raises(ShapeError, match="height, width, channels"):
        kernels.resize(torch.zeros(4, 4, dtype=torch.uint8), (2, 2))
    with pytest.raises(ArgumentError, match="whole numbers"):
        kernels.resize(torch.zeros(4, 4, 3, dtype=torch.uint8), (0, 2))
