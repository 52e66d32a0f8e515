"""Pictures whose labels stand in a table."""

import numpy as np
import pytest
from PIL import Image

from convolt.data import from_csv
from convolt.errors import ArgumentError, DataError
from tests.unit.pictures import encode, gradient


@pytest.fixture
def place(tmp_path):
    (tmp_path / "pictures").mkdir()
    for n in range(4):
        pixels = gradient()
        pixels[0, 0] = n
        (tmp_path / "pictures" / f"{n}.png").write_bytes(encode(Image.fromarray(pixels)))
    return tmp_path


def table(place, text):
    (place / "labels.csv").write_text(text, encoding="utf-8")
    return place / "labels.csv"


def test_one_label_each(place):
    path = table(place, "path,label\npictures/2.png,dog\npictures/0.png,cat\npictures/1.png,dog\n")
    pictures = from_csv(path)
    assert pictures.class_names == ["cat", "dog"]
    x, y = pictures.load()
    np.testing.assert_array_equal(x[:, 0, 0, 0], [2, 0, 1])
    np.testing.assert_array_equal(y, [1, 0, 1])
    assert y.dtype == np.int64


def test_numbers_are_sorted_by_value_and_names_can_be_given(place):
    path = table(place, "\ufeffpath,label\npictures/2.png,10\npictures/0.png,9\n\npictures/1.png,2\n")
    assert from_csv(path).class_names == ["2", "9", "10"]
    path = table(place, "path,label\npictures/2.png,dog\n")
    pictures = from_csv(path, class_names=["cat", "dog", "bird"])
    assert pictures.class_names == ["cat", "dog", "bird"]
    assert pictures.labels.tolist() == [1]


def test_several_labels_in_one_cell(place):
    path = table(place, "file,tags\npictures/2.png,dog|cat\npictures/0.png,\npictures/1.png,dog\n")
    pictures = from_csv(path, separator="|")
    np.testing.assert_array_equal(pictures.labels, [[1, 1], [0, 0], [0, 1]])
    assert pictures.labels.dtype == np.float32
    assert pictures.class_names == ["cat", "dog"]
    assert pictures.load()[1].shape == (3, 2)


def test_several_labels_in_columns(place):
    path = table(place, "path,cat,dog\npictures/2.png,1,0\npictures/0.png,1,1\n")
    pictures = from_csv(path)
    np.testing.assert_array_equal(pictures.labels, [[1, 0], [1, 1]])
    assert pictures.class_names == ["cat", "dog"]
    assert from_csv(path, label_column=["dog"], separator=None).labels.tolist() == [0, 1]
    np.testing.assert_array_equal(from_csv(path, label_column=["dog", "cat"]).labels, [[0, 1], [1, 1]])


def test_split_keeps_combinations(place):
    rows = "".join(f"pictures/{n}.png,{label}\n" for n, label in enumerate(("cat|dog", "cat", "cat|dog", "cat")))
    pictures = from_csv(table(place, "path,label\n" + rows), separator="|")
    first, second = pictures.split(0.5)
    np.testing.assert_array_equal(np.sort(first.labels.sum(1)), [1, 2])
    np.testing.assert_array_equal(np.sort(second.labels.sum(1)), [1, 2])


@pytest.mark.parametrize(("text", "options", "message"), [
    ("path,label\n../secret.png,cat\n", {}, r"line 2: got the path '\.\./secret\.png'"),
    ("path,label\n/etc/passwd,cat\n", {}, "line 2: got the path"),
    ("path,label\nC:\\x.png,cat\n", {}, "line 2: got the path"),
    ("path,label\n,cat\n", {}, "line 2: got the path ''"),
    ("path,label\npictures/0.png,cat\npictures/0.png,dog\n", {}, "line 3.*second time"),
    ("path,label\npictures/0.png\n", {}, "line 2: got 1 cells"),
    ("path,label\npictures/0.png,\n", {}, "line 2: got no label"),
    ("path,label\npictures/0.png,dgo\n", {"class_names": ["cat", "dog"]}, "line 2.*Did you mean 'dog'"),
    ("path,cat,dog\npictures/0.png,1,yes\n", {}, "line 2: got 'yes' in the column 'dog'"),
    ("path,label\n", {}, "no lines below the headings"),
    ("", {}, "no lines below the headings"),
    ('path,label\n"pictures/0.png,cat\n', {}, "cannot be read"),
    ("path\npictures/0.png\n", {}, "a column of labels"),
    ("path,label\npictures/0.png,cat\n", {"root": "nowhere"}, "no folder"),
])
def test_tables_that_cannot_be_used(place, text, options, message):
    with pytest.raises(DataError, match=message):
        from_csv(table(place, text), **options)


def test_arguments(place):
    path = table(place, "path,label\npictures/0.png,cat\n")
    for options, message in (({"path_column": "pth"}, "Did you mean 'path'"), ({"label_column": "lable"}, "Did you mean 'label'"),
                             ({"separator": "/"}, "separator")):
        with pytest.raises(ArgumentError, match=message):
            from_csv(path, **options)
    with pytest.raises(ArgumentError, match="path_column"):
        from_csv(table(place, "a,label\npictures/0.png,cat\n"))
    with pytest.raises(DataError, match="no such file"):
        from_csv(place / "other.csv")
    (place / "labels.csv").write_bytes(b"path,label\n\xff\xfe,cat\n")
    with pytest.raises(DataError, match="UTF-8"):
        from_csv(path)


def test_links_out_of_the_root(place, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    outside.write_bytes(b"secret")
    (place / "pictures" / "link.png").symlink_to(outside)
    path = table(place, "path,label\npictures/link.png,cat\n")
    with pytest.raises(DataError, match="a link out of"):
        from_csv(path)
    assert len(from_csv(path, follow_links=True)) == 1


def test_a_file_that_is_not_there_is_left_out_like_any_bad_file(place):
    rows = "".join(f"pictures/{n}.png,cat\n" for n in range(5))
    with pytest.raises(DataError, match=r"1 of 5 files left out: pictures/4\.png: .*No such file"):
        from_csv(table(place, "path,label\n" + rows)).load()
