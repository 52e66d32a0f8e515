"""Folders of pictures that the tests draw: every fault, splits, batches."""

import os

import numpy as np
import pytest
from PIL import Image

from convolt.data import folder as folder_module
from convolt.data.folder import ImageFolder
from convolt.data.left_out import SkippedFilesWarning
from convolt.errors import ArgumentError, DataError
from convolt.utils import image_dataset_from_directory
from tests.unit.pictures import GOOD, encode, gradient, png_that_says


@pytest.fixture
def pets(tmp_path):
    """Two classes with 60 pictures each, so that one bad file is below 1%."""
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for n in range(60):
            pixels = gradient()
            pixels[0, 0] = (label, n, 0)
            (tmp_path / "pets" / name / f"{n:02d}.png").write_bytes(encode(Image.fromarray(pixels)))
    return tmp_path / "pets"


# -- folders -----------------------------------------------------------------------------------------------------------


def test_folder_loads_sorted_pictures_and_labels(pets):
    (pets / "cat" / "deep").mkdir()
    (pets / "cat" / "deep" / "er.PNG").write_bytes(GOOD)
    (pets / "cat" / ".hidden.png").write_bytes(b"bad")
    (pets / "cat" / "notes.txt").write_text("not a picture")
    folder = ImageFolder(pets)
    assert folder.class_names == ["cat", "dog"]
    assert folder.files == sorted(folder.files)
    assert folder.others_ignored == 1
    x, y = folder.load()
    assert x.shape == (121, 4, 6, 3)
    assert x.dtype == np.uint8
    assert y.dtype == np.int64
    np.testing.assert_array_equal(y, [0] * 61 + [1] * 60)
    np.testing.assert_array_equal(x[:60, 0, 0, 1], range(60))
    np.testing.assert_array_equal(x[61:, 0, 0, 0], 1)
    one, _ = ImageFolder(pets, workers=1).load()
    np.testing.assert_array_equal(x, one)


def test_order_of_classes_and_own_labels(pets):
    assert ImageFolder(pets, class_names=["dog", "cat"]).labels[0] == 0
    assert ImageFolder(pets, class_names=["dog", "cat"]).files[0] == "dog/00.png"
    with pytest.raises(ArgumentError, match="Did you mean 'cat'"):
        ImageFolder(pets, class_names=["dog", "cats"])
    own = ImageFolder(pets, labels=list(range(120)))
    np.testing.assert_array_equal(own.load()[1], range(120))
    assert ImageFolder(pets, labels=None).load()[1] is None
    for labels in ([1], [-1] * 120, [0.5] * 120):
        with pytest.raises(ArgumentError, match="labels"):
            ImageFolder(pets, labels=labels)


BAD = {
    "zero bytes": b"", "truncated": GOOD[: len(GOOD) // 2], "HTML": b"<html><body>Not found</body></html>",
    "bomb": png_that_says(50_000, 50_000), "random": bytes(range(256)),
}


@pytest.mark.parametrize("kind", BAD)
def test_one_bad_file_is_skipped_counted_and_listed(pets, kind):
    (pets / "cat" / "07.png").write_bytes(BAD[kind])
    folder = ImageFolder(pets)
    with pytest.warns(SkippedFilesWarning, match=r"1 of 120 files left out: cat/07\.png: image: got"):
        x, y = folder.load()
    assert len(x) == len(y) == 119
    assert 7 not in x[y == 0][:, 0, 0, 1]
    assert [bad.path for bad in folder.bad] == ["cat/07.png"]


def test_wrong_extension_is_decoded_by_content(pets):
    (pets / "cat" / "07.png").rename(pets / "cat" / "07.jpg")
    folder = ImageFolder(pets)
    assert folder.load()[0][7, 0, 0, 1] == 7
    assert folder.bad == []


def test_more_than_one_percent_of_bad_files_is_an_error(pets):
    for n in (3, 7):
        (pets / "cat" / f"{n:02d}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"more than 1% bad files.*2 of 120 files left out: cat/03\.png.*cat/07\.png"):
        ImageFolder(pets).load()


@pytest.mark.parametrize("bad", [1, 2])
def test_the_share_of_bad_files_is_that_of_the_whole_set(pets, bad):
    for n in range(bad):
        (pets / "cat" / f"{n:02d}.png").write_bytes(b"")
    folder = ImageFolder(pets)  # 120 pictures: one bad file is less than 1%, of a fifth of them it is more
    part = folder.subset([0, 1, *range(60, 82)])
    if bad == 1:
        with pytest.warns(SkippedFilesWarning, match="1 of 24 files left out"):
            assert len(part.load()[0]) == 23
        return
    with pytest.raises(DataError, match=r"more than 1% bad files.*2 of 120 files left out"):
        part.load()


def test_file_that_vanishes_and_file_without_permission(pets, monkeypatch):
    folder = ImageFolder(pets)
    (pets / "cat" / "07.png").unlink()
    with pytest.warns(SkippedFilesWarning, match="No such file"):
        assert len(folder.load()[0]) == 119

    def refuse(path, *args):
        if str(path).endswith(os.path.join("dog", "11.png")):
            raise PermissionError(13, "Permission denied")
        return real(path, *args)

    real = os.open
    folder = ImageFolder(pets)
    monkeypatch.setattr(folder_module.os, "open", refuse)
    with pytest.warns(SkippedFilesWarning, match=r"dog/11\.png: .*Permission denied"):
        assert len(folder.load()[0]) == 118


def test_pipe_called_like_a_picture_does_not_hang(pets):
    os.mkfifo(pets / "cat" / "pipe.png")
    folder = ImageFolder(pets)
    assert folder.others_ignored == 1
    folder.files[0] = "cat/pipe.png"
    with pytest.warns(SkippedFilesWarning, match="a pipe, device or folder"):
        folder.load()


def test_links_outside_the_root_are_ignored_and_counted(pets, tmp_path):
    (tmp_path / "secret.png").write_bytes(GOOD)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(GOOD)
    (pets / "cat" / "out.png").symlink_to(tmp_path / "secret.png")
    (pets / "cat" / "inside.png").symlink_to(pets / "dog" / "00.png")
    (pets / "cat" / "folder").symlink_to(tmp_path / "elsewhere")
    (pets / "cat" / "dangling.png").symlink_to(tmp_path / "nothing.png")
    (pets / "cat" / "self.png").symlink_to(pets / "cat" / "self.png")
    (pets / "cat" / "up").symlink_to(pets)
    (pets / "bird").symlink_to(tmp_path / "elsewhere")
    folder = ImageFolder(pets)
    out, nowhere = "a link out of the folder", "a link that leads nowhere or in a circle"
    assert {link.path: link.reason for link in folder.ignored} == {
        "bird": out, "cat/dangling.png": nowhere, "cat/folder": out, "cat/out.png": out, "cat/self.png": nowhere,
        "cat/up": "a link to a folder"}
    assert folder.bad == [] and folder.left_out == list(folder.ignored)
    assert folder.class_names == ["cat", "dog"]
    assert len(folder) == 121
    assert "cat/inside.png" in folder.files


def test_links_are_followed_on_request_but_not_in_circles(pets, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(GOOD)
    (pets / "bird").symlink_to(tmp_path / "elsewhere")
    (pets / "cat" / "loop").symlink_to(pets / "cat")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    folder = ImageFolder(pets, follow_links=True)
    assert folder.class_names == ["bird", "cat", "dog"]
    assert len(folder) == 121
    assert [link.path for link in folder.ignored] == ["bird/back", "cat/loop"]
    assert {link.reason for link in folder.ignored} == {"a link to a folder that it lies in"}


def test_empty_class_is_an_error(pets):
    (pets / "bird").mkdir()
    with pytest.raises(DataError, match="no pictures in the class 'bird'"):
        ImageFolder(pets)


def test_class_of_bad_files_only_is_an_error(pets):
    (pets / "bird").mkdir()
    (pets / "bird" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="only bad files in the class 'bird'"), pytest.warns(SkippedFilesWarning):
        ImageFolder(pets).load()


def test_folder_without_pictures_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no pictures \(0 other files.*FOLDER/CLASS/PICTURE"):
        ImageFolder(tmp_path)
    (tmp_path / "a.png").write_bytes(GOOD)
    with pytest.raises(DataError, match=r"no pictures \(1 other files"):
        ImageFolder(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="a file; expected a folder"):
        ImageFolder(tmp_path / "a.png")


def test_folder_that_cannot_be_read_is_an_error(pets, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("convolt.data.index.os.scandir", refuse)
    with pytest.raises(DataError, match="Permission denied"):
        ImageFolder(pets)


def test_other_sizes_are_an_error_unless_resized(pets):
    (pets / "dog" / "05.png").write_bytes(encode(Image.fromarray(gradient(9, 9))))
    with pytest.raises(DataError, match=r"cat/00\.png with 4×6 pixels and dog/05\.png with 9×9.*image_size"):
        ImageFolder(pets).load()
    assert ImageFolder(pets, image_size=(8, 10), color_mode="grayscale").load()[0].shape == (120, 8, 10, 1)


def test_split_keeps_the_classes_and_loses_nothing(pets):
    train, validation = ImageFolder(pets).split(0.25, seed=1)
    assert len(train) == 90
    assert not set(train.files) & set(validation.files)
    np.testing.assert_array_equal(np.bincount(validation.load()[1]), [15, 15])
    assert validation.files == ImageFolder(pets).split(0.25, seed=1)[1].files
    assert validation.files != ImageFolder(pets).split(0.25, seed=2)[1].files


# -- batches -----------------------------------------------------------------------------------------------------------


def test_batches_cover_every_picture_in_each_pass(pets, capsys):
    data = image_dataset_from_directory(pets, image_size=(4, 6), batch_size=32, seed=5)
    assert "Found 120 pictures of 2 classes" in capsys.readouterr().out
    assert len(data) == 4
    assert data.class_names == ["cat", "dog"]
    assert len(data.file_paths) == 120
    passes = []
    for _ in range(2):
        batches = list(data)
        assert [len(x) for x, _ in batches] == [32, 32, 32, 24]
        x, y = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        assert x.dtype == np.uint8
        assert y.dtype == np.int64
        np.testing.assert_array_equal(x[:, 0, 0, 0], y)
        passes.append([(a, b) for a, b in zip(x[:, 0, 0, 1], y, strict=True)])
    assert passes[0] != passes[1], "each pass has another order"
    assert sorted(passes[0]) == sorted(passes[1]) == [(n, label) for n in range(60) for label in range(2)]
    again = image_dataset_from_directory(pets, image_size=(4, 6), batch_size=32, seed=5, verbose=False)
    np.testing.assert_array_equal(next(iter(again))[0][:, 0, 0, 1], [n for n, _ in passes[0][:32]])


def test_unshuffled_batches_are_sorted(pets):
    data = image_dataset_from_directory(pets, image_size=(4, 6), shuffle=False, verbose=False)
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate([y for _, y in data]), [0] * 60 + [1] * 60)


def test_label_modes(pets):
    def first(**options):
        return next(iter(image_dataset_from_directory(pets, image_size=4, shuffle=False, verbose=False, batch_size=2, **options)))

    np.testing.assert_array_equal(first(label_mode="categorical")[1], np.array([[1, 0], [1, 0]], np.float32))
    assert first(label_mode="binary")[1].shape == (2, 1)
    assert first(label_mode=None).shape == (2, 4, 4, 3)
    assert first(labels=None).shape == (2, 4, 4, 3)
    single = next(iter(image_dataset_from_directory(pets, image_size=4, shuffle=False, verbose=False, batch_size=None)))
    assert single[0].shape == (4, 4, 3)
    assert single[1] == 0


def test_subsets_are_disjoint_and_agree(pets):
    options = {"image_size": (4, 6), "validation_split": 0.2, "seed": 3, "verbose": False}
    train, validation = image_dataset_from_directory(pets, subset="both", **options)
    assert len(train.file_paths) == 96
    assert not set(train.file_paths) & set(validation.file_paths)
    assert image_dataset_from_directory(pets, subset="training", **options).file_paths == train.file_paths
    assert image_dataset_from_directory(pets, subset="validation", **options).file_paths == validation.file_paths


def test_bad_file_makes_its_batch_smaller(pets):
    (pets / "cat" / "07.png").write_bytes(b"")
    data = image_dataset_from_directory(pets, image_size=(4, 6), batch_size=10, shuffle=False, verbose=False)
    with pytest.warns(SkippedFilesWarning, match=r"cat/07\.png"):
        sizes = [len(x) for x, _ in data]
    assert sizes == [9] + [10] * 11
    assert len(list(data)) == 12, "the second pass does not warn again"


@pytest.mark.parametrize(("options", "message"), [
    ({"label_mode": "integer"}, "label_mode"), ({"subset": "train", "validation_split": 0.1}, "Did you mean 'training'"),
    ({"validation_split": 0.1}, "both or neither"), ({"subset": "both"}, "both or neither"), ({"batch_size": 0}, "batch_size"),
    ({"crop_to_aspect_ratio": True, "pad_to_aspect_ratio": True}, "at most one"), ({"image_size": None}, "image_size"),
    ({"color_mode": "bgr"}, "color_mode"), ({"labels": "infered"}, "labels"),
    ({"validation_split": 2, "subset": "both"}, "between 0 and 1"),
    ({"label_mode": "binary", "labels": list(range(120))}, "exactly two classes"),
])
def test_arguments_of_batches(pets, options, message):
    with pytest.raises(ArgumentError, match=message):
        image_dataset_from_directory(pets, verbose=False, **options)
