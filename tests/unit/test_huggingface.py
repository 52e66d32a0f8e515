"""`from_huggingface` on a `datasets.Dataset` that is made in memory; runs where the package is."""

import numpy as np
import pytest
from PIL import Image

import convolt
from convolt import layers
from convolt.data import SkippedFilesWarning, from_huggingface
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
        from_huggingface([1, 2])
    with pytest.raises(ArgumentError, match="None with a stream"):
        from_huggingface(whole.to_iterable_dataset())
    with pytest.raises(ArgumentError, match="transform of its own"):
        from_huggingface(whole.with_transform(lambda rows: rows))
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


def whole_set(count=64, names=("cat", "dog")):
    labels = [n % len(names) for n in range(count)]
    return dataset(labels, datasets.ClassLabel(names=list(names)), count)


def small_model(shape=(10, 12, 3), outputs=2):
    convolt.utils.set_random_seed(0)
    model = convolt.Sequential([layers.Input(shape), layers.Rescaling(1 / 255), layers.Flatten(),
                                layers.Dense(outputs, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"], device="cpu", fusions="none", precision="float32")
    return model


def fitted(data, **options):
    model = small_model()
    history = model.fit(data, epochs=2, batch_size=16, seed=3, verbose=0, **options)
    return history.history, model


def test_fit_takes_a_set_as_it_is():
    expected, first = fitted(from_huggingface(whole_set()), validation_split=0.25)
    found, model = fitted(whole_set(), validation_split=0.25)
    assert found == expected and len(found["val_loss"]) == 2
    for one, other in zip(model.get_weights(), first.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert model.class_names == ["cat", "dog"]
    assert model.evaluate(whole_set(), verbose=0) == pytest.approx(model.evaluate(from_huggingface(whole_set()), verbose=0))
    history, _ = fitted(whole_set(), validation_data=whole_set(16))
    assert len(history["val_loss"]) == 2
    with pytest.raises(ArgumentError, match=r"Pass dataset\['train'\]"):
        fitted(datasets.DatasetDict({"train": whole_set()}))
    with pytest.raises(DataError, match="classes that differ from those of training"):
        fitted(whole_set(), validation_data=whole_set(16, ("dog", "cat")))


def test_pictures_are_read_in_the_size_and_colours_of_the_model(capsys):
    model = small_model((6, 6, 1))
    model.fit(whole_set(), epochs=1, verbose=2)
    assert "read as 6×6 grayscale" in capsys.readouterr().out
    formatted = whole_set().with_format("numpy")
    assert len(model.fit(formatted, epochs=1, verbose=0).history["loss"]) == 1


def test_a_set_without_pictures_names_the_function():
    numbers = datasets.Dataset.from_dict({"x": [1, 2], "label": [0, 1]})
    with pytest.raises(ArgumentError, match=r"from_huggingface\(image_column\)"):
        fitted(numbers)


def test_fit_takes_a_stream_as_it_is():
    stream = whole_set().to_iterable_dataset(num_shards=4)
    history, model = fitted(stream)
    assert len(history["loss"]) == 2 and history["loss"][1] < history["loss"][0]
    assert model.class_names == ["cat", "dog"] and model.trainer.plan.residency == "streamed"
    assert fitted(stream)[0] == history
    one = from_huggingface(stream, image_size=(10, 12))
    x, y = (np.concatenate(parts) for parts in zip(*one.open_epoch(0, 0, 16, None), strict=True))
    np.testing.assert_array_equal(x, np.stack([pixels(n) for n in range(64)]))
    np.testing.assert_array_equal(y, np.arange(64) % 2)
    epochs = [np.concatenate([y for _, y in one.open_epoch(epoch, 0, 16, 7)]).tolist() for epoch in (0, 1, 1)]
    assert epochs[1] == epochs[2] != epochs[0]
    later = [y for _, y in one.open_epoch(1, 2, 16, 7)]
    assert np.concatenate(later).tolist() == epochs[1][32:]


def test_bad_pictures_and_labels_of_a_stream():
    rows = {"image": [{"bytes": encode(Image.fromarray(pixels(n))) if n else b"", "path": None} for n in range(8)], "label": [0, 1] * 4}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    stream = from_huggingface(datasets.Dataset.from_dict(rows, features=features).to_iterable_dataset(), image_size=(10, 12))
    with pytest.warns(SkippedFilesWarning, match="row 0 of epoch 1: image: got zero bytes"):
        assert sum(len(y) for _, y in stream) == 7
    texts = dataset(list("abcabc"), datasets.Value("string")).to_iterable_dataset()
    with pytest.raises(DataError, match="the label 'a'"):
        list(from_huggingface(texts, image_size=(10, 12)))
    lists = dataset([[0]] * 6, datasets.Sequence(datasets.Value("int64"))).to_iterable_dataset()
    with pytest.raises(ArgumentError, match="lists of the type ClassLabel"):
        from_huggingface(lists, image_size=(10, 12))
    several = dataset([[0, 1], [], [1], [0], [0], [1]], datasets.Sequence(datasets.ClassLabel(names=["a", "b"]))).to_iterable_dataset()
    assert np.concatenate([y for _, y in from_huggingface(several, image_size=(10, 12))]).tolist()[:3] == [[1, 1], [0, 0], [0, 1]]
