"""`from_huggingface` on a `datasets.Dataset` that is made in memory; runs where the package is."""

import numpy as np
import pytest
from PIL import Image

from convolt.data import from_huggingface
from convolt.errors import ArgumentError, DataError
from tests.unit.pictures import encode

datasets = pytest.importorskip("datasets")


def pixels(n):
    return np.random.default_rng(n).integers(0, 256, (10, 12, 3), np.uint8)


def dataset(labels, feature, count=6):
    rows = {"image": [{"bytes": encode(Image.fromarray(pixels(n))), "path": None} for n in range(count)], "label": labels}
    return datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image(), "label": feature}))


def test_pictures_and_class_names():
    found = from_huggingface(dataset([0, 1, 1, 0, 1, 0], datasets.ClassLabel(names=["cat", "dog"])))
    x, y = found.load()
    np.testing.assert_array_equal(x, np.stack([pixels(n) for n in range(6)]))
    assert y.tolist() == [0, 1, 1, 0, 1, 0] and found.class_names == ["cat", "dog"]
    part = found.subset([4, 2])
    np.testing.assert_array_equal(part.load()[0], np.stack([pixels(4), pixels(2)]))
    assert found.fingerprint() != from_huggingface(dataset([1] * 6, datasets.ClassLabel(names=["cat", "dog"]))).fingerprint()


def test_several_labels():
    entries = datasets.Sequence(datasets.ClassLabel(names=["a", "b", "c"]))
    found = from_huggingface(dataset([[0], [1, 2], [], [2], [0, 1], [1]], entries))
    assert found.labels.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0], [0, 0, 1], [1, 1, 0], [0, 1, 0]]


def test_what_cannot_be_used():
    whole = dataset([0] * 6, datasets.ClassLabel(names=["cat"]))
    with pytest.raises(ArgumentError, match="one split"):
        from_huggingface(datasets.DatasetDict({"train": whole}))
    with pytest.raises(ArgumentError, match=r"datasets\.Dataset"):
        from_huggingface(whole.to_iterable_dataset())
    with pytest.raises(ArgumentError, match="one of the columns"):
        from_huggingface(whole, label_column="labl")
    with pytest.raises(ArgumentError, match="of the type Image"):
        from_huggingface(whole, image_column="label")
    with pytest.raises(DataError, match="class_encode_column"):
        from_huggingface(dataset(list("abcabc"), datasets.Value("string")))


def test_a_bad_picture_is_named():
    rows = {"image": [{"bytes": b"no picture", "path": None}], "label": [0]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat"])})
    with pytest.raises(DataError, match="row 0"):
        from_huggingface(datasets.Dataset.from_dict(rows, features=features)).load()
