"""Files of arrays (.npz), whole, damaged and hostile; DATA of the command line; splits."""

import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from convolt.data.npz import load_npz, read_npz
from convolt.data.sources import open_source
from convolt.data.split import stratified_split
from convolt.errors import ArgumentError, DataError

# -- .npz --------------------------------------------------------------------------------------------------------------


def header(shape, dtype="|u1", version=(1, 0)):
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (64 - (len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes(version) + len(text).to_bytes(2, "little") + text


def write_zip(path, members):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of duplicate names
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members:
                archive.writestr(name, content)
    return path


def test_npz_keeps_values_of_every_order_and_byte_order(tmp_path):
    x = np.arange(24, dtype=">f4").reshape(4, 3, 2)
    np.savez_compressed(tmp_path / "a.npz", x=np.asfortranarray(x), y=np.arange(4), class_names=np.array(["a", "b", "c", "d"]))
    arrays = load_npz(tmp_path / "a.npz")
    assert sorted(arrays) == ["class_names", "x_train", "y_train"]
    assert arrays["x_train"].dtype == np.float32
    assert arrays["x_train"].flags.c_contiguous
    np.testing.assert_array_equal(arrays["x_train"], x)


def test_npz_with_objects_is_refused(tmp_path):
    objects = np.array([{"a": 1}, None], dtype=object)
    np.savez(tmp_path / "a.npz", x=objects, y=np.arange(2))
    with pytest.raises(DataError, match="Python objects are not read"):
        load_npz(tmp_path / "a.npz")


@pytest.mark.parametrize(("members", "message"), [
    ([("x.npy", header((10**12,)))], "expected 1,000,000,000,"),
    ([("x.npy", header((10**9, 10**9, 10**9)))], "bytes; expected"),
    ([("x.npy", header((-1,)))], "expected numbers"),
    ([("x.npy", header((2,) * 20))], "at most 8 axes"),
    ([("x.npy", header((4,)) + b"1234567")], "bytes; expected"),
    ([("x.npy", header((4,), "|V0"))], "expected numbers"),
    ([("x.npy", header((1,), version=(9, 9)) + b"1")], "array format"),
    ([("x.npy", header("__import__('os').system('true')") + b"1")], "cannot be read"),
    ([("x.npy", b"no array")], "cannot be read"),
    ([("x.npy", header((1,)) + b"1"), ("x.npy", header((1,)) + b"2")], "two members called 'x'"),
    ([("../x.npy", header((1,)) + b"1")], "members called NAME.npy"),
    ([("x.txt", b"1")], "members called NAME.npy"),
    ([("x_trian.npy", header((1,)) + b"1")], "unknown key 'x_trian'.*Did you mean 'x_train'"),
    ([(f"x{i}.npy", b"") for i in range(65)], "65 members; expected at most 64"),
])
def test_hostile_npz_is_refused(tmp_path, members, message):
    path = write_zip(tmp_path / "a.npz", members)
    with pytest.raises(DataError, match=message):
        load_npz(path)


def test_npz_that_would_fill_memory_is_refused_before_it_is_unpacked(tmp_path):
    path = write_zip(tmp_path / "a.npz", [("x.npy", header((10**6,)) + bytes(10**6))])
    assert path.stat().st_size < 5000
    with pytest.raises(DataError, match=r"1,000,128 bytes of arrays; expected at most 500,000"):
        read_npz(path, max_bytes=500_000)


def test_truncated_and_changed_npz_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(1000).reshape(100, 10), y=np.arange(100))
    whole = path.read_bytes()
    for cut in (0, 10, 1000, len(whole) - 5):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match="cannot be read"):
            load_npz(path)
    changed = bytearray(whole)
    changed[2000] ^= 4
    path.write_bytes(bytes(changed))
    with pytest.raises(DataError, match="Bad CRC-32"):
        load_npz(path)


X, Y = np.zeros((4, 2, 2, 1), np.uint8), np.arange(4)


@pytest.mark.parametrize(("arrays", "message"), [
    ({"x": X}, "x_train without y_train"),
    ({"y_train": Y}, "expected x_train and y_train, or x and y"),
    ({"x": X, "y": Y[:3]}, "4 samples and 3 labels"),
    ({"x": X[:0], "y": Y[:0]}, "no samples"),
    ({"x": X, "y": Y, "x_train": X, "y_train": Y}, "both x, y and x_train, y_train"),
    ({"x": Y, "y": Y}, r"shapes \(4,\) and \(4,\)"),
    ({"x": X, "y": Y, "x_test": X}, "x_test without y_test"),
])
def test_npz_of_another_form_is_explained(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_npz(tmp_path / "a.npz")


# -- DATA of the command line ------------------------------------------------------------------------------------------


def test_source_of_a_name_has_pictures_with_channels():
    pytest.importorskip("sklearn")
    source = open_source("digits")
    assert source.x_train.shape[1:] == (8, 8, 1)
    assert source.y_train.ndim == 1
    assert source.class_names == tuple("0123456789")
    assert source.name == "digits"


@pytest.mark.parametrize(("word", "near"), [("minst", "mnist"), ("cifar-10", "cifar10"), ("digit", "digits")])
def test_misspelt_names_are_corrected(word, near):
    with pytest.raises(ArgumentError, match=f"Did you mean '{near}'"):
        open_source(word)


def test_paths_that_do_not_exist_are_said_to(tmp_path):
    with pytest.raises(DataError, match="which does not exist"):
        open_source(str(tmp_path / "nothing"))
    (tmp_path / "a.xyz").write_text("1")
    with pytest.raises(ArgumentError, match=r"folder of class folders, or a \.csv, \.tar, \.pack or \.npz file"):
        open_source(str(tmp_path / "a.xyz"))


def test_source_of_an_npz(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, x_train=X, y_train=Y[:, None] % 2, x_val=X[:2], y_val=Y[:2] % 2, class_names=np.array(["no", "yes"]))
    source = open_source(str(path))
    assert source.name == "mine"
    assert source.class_names == ("no", "yes")
    assert source.y_train.shape == (4,)
    assert source.x_test is not None
    assert source.x_test.shape == (2, 2, 2, 1)
    assert source.x_val is None
    np.savez(path, x_train=X, y_train=Y % 2, x_test=X, y_test=Y)
    with pytest.raises(DataError, match=r"y_test\[2\]: got the label 2; expected labels from 0 to 1, as in training"):
        open_source(str(path))


def picture_folder(root, classes=("cat", "dog"), count=3, size=(6, 5)):
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for n in range(count):
            Image.new("RGB", size[::-1], (label * 100, n, 0)).save(root / name / f"{n}.png")
    return root


def test_source_of_a_folder_mixes_the_classes(tmp_path):
    source = open_source(str(picture_folder(tmp_path / "pets", count=20)))
    assert source.x_train.shape == (40, 6, 5, 3)
    assert source.class_names == ("cat", "dog")
    assert source.x_test is None
    assert source.name == "pets"
    np.testing.assert_array_equal(source.x_train[:, 0, 0, 0] // 100, source.y_train)
    assert 0 < source.y_train[-8:].mean() < 1, "a validation split from the end holds both classes"


@pytest.mark.parametrize("held_out", ["test", "val", "valid", "validation"])
def test_source_of_a_folder_with_parts(tmp_path, held_out):
    picture_folder(tmp_path / "train")
    picture_folder(tmp_path / held_out, count=2)
    source = open_source(str(tmp_path))
    assert len(source.x_train) == 6
    assert source.x_test is not None
    assert len(source.x_test) == 4
    np.testing.assert_array_equal(source.y_test, [0, 0, 1, 1])


def test_source_with_test_and_validation_parts(tmp_path):
    for part, count in (("train", 3), ("test", 2), ("val", 1)):
        picture_folder(tmp_path / part, count=count)
    source = open_source(str(tmp_path))
    assert [len(x) for x in (source.x_train, source.x_test, source.x_val)] == [6, 4, 2]


def test_parts_with_other_classes_or_sizes_are_refused(tmp_path):
    picture_folder(tmp_path / "train")
    picture_folder(tmp_path / "val", classes=("cat", "bird"))
    with pytest.raises(DataError, match=r"missing: \['dog'\], extra: \['bird'\]"):
        open_source(str(tmp_path))
    (tmp_path / "val" / "bird").rename(tmp_path / "val" / "dog")
    picture_folder(tmp_path / "val", size=(7, 7))
    with pytest.raises(DataError, match="image_size="):
        open_source(str(tmp_path))
    assert open_source(str(tmp_path), image_size=(4, 4)).x_train.shape == (6, 4, 4, 3)


def test_held_out_part_without_training_part_is_refused(tmp_path):
    picture_folder(tmp_path / "test")
    with pytest.raises(DataError, match="without train"):
        open_source(str(tmp_path))


# -- splits ------------------------------------------------------------------------------------------------------------


def test_stratified_split_parts_every_class():
    labels = np.repeat([0, 1, 2], [100, 10, 2])
    first, second = stratified_split(labels, 0.1, seed=3)
    assert sorted([*first, *second]) == list(range(112))
    np.testing.assert_array_equal(np.bincount(labels[second]), [10, 1, 1])
    np.testing.assert_array_equal(second, stratified_split(labels, 0.1, seed=3)[1])
    assert not np.array_equal(second, stratified_split(labels, 0.1, seed=4)[1])


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, "half", True])
def test_fraction_must_be_a_share(fraction):
    with pytest.raises(ArgumentError, match="a number between 0 and 1"):
        stratified_split(np.zeros(10), fraction)


def test_split_of_a_single_sample_is_refused():
    with pytest.raises(DataError, match="samples in both parts"):
        stratified_split(np.zeros(1), 0.5)
