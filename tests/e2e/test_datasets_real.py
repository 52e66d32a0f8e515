"""The real MNIST and CIFAR-10, where the environment variable CONVOLT_DATA names a folder that holds them."""


import numpy as np
import pytest

from convolt.data import cifar, files
from convolt.data.sources import open_source
from convolt.datasets import cifar10, mnist


def needs(*names):
    if not any(folder_has(name) for name in names):
        pytest.skip(f"CONVOLT_DATA holds none of {', '.join(names)}")


def folder_has(name):
    folder = files.data_folder()
    return folder is not None and (folder / name).exists()


def test_mnist():
    needs("mnist.npz")
    (x, y), (x_test, y_test) = mnist.load_data()
    assert (x.shape, y.shape, x_test.shape, y_test.shape) == ((60000, 28, 28), (60000,), (10000, 28, 28), (10000,))
    assert {a.dtype for a in (x, y, x_test, y_test)} == {np.dtype(np.uint8)}
    assert list(y[:10]) == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert list(np.bincount(y_test)) == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert x.mean() / 255 == pytest.approx(0.1307, abs=1e-4), "the mean that the literature gives"
    assert x.std() / 255 == pytest.approx(0.3081, abs=1e-4)


def test_mnist_as_a_source():
    needs("mnist.npz")
    source = open_source("mnist")
    assert source.x_train.shape == (60000, 28, 28, 1)
    assert source.class_names == tuple("0123456789")


def test_cifar10():
    needs("cifar-10-binary.tar.gz", "cifar10-jpeg.tar.xz", "cifar10")
    (x, y), (x_test, y_test) = cifar10.load_data()
    assert (x.shape, y.shape, x_test.shape, y_test.shape) == ((50000, 32, 32, 3), (50000, 1), (10000, 32, 32, 3), (10000, 1))
    assert {a.dtype for a in (x, y, x_test, y_test)} == {np.dtype(np.uint8)}
    assert list(np.bincount(y[:, 0])) == [5000] * 10
    assert list(np.bincount(y_test[:, 0])) == [1000] * 10
    np.testing.assert_allclose(x.mean((0, 1, 2)) / 255, [0.4914, 0.4822, 0.4465], atol=2e-3)
    assert len(np.unique(y[-1000:])) == 10, "the end of the training set holds every class"


def test_cifar10_a_second_time_comes_from_the_cache(monkeypatch):
    needs("cifar10-jpeg.tar.xz")
    (first, labels), _ = cifar10.load_data()
    monkeypatch.setattr(cifar, "read_jpeg_archive", lambda path: pytest.fail("decoded again"))
    (second, again), _ = cifar10.load_data()
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(labels, again)
