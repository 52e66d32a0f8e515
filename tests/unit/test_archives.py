"""Archives, whole, damaged and hostile; CIFAR-10 in the three forms that are read."""

import gzip
import io
import lzma
import tarfile

import numpy as np
import pytest
from PIL import Image

from convolt.data import cifar, datasets
from convolt.data.archives import read_tar
from convolt.data.download import Remote
from convolt.datasets import cifar10
from convolt.errors import DataError


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Every test has a cache of its own and no data folder."""
    monkeypatch.setenv("CONVOLT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CONVOLT_DATA", raising=False)
    return tmp_path


def make_tar(path, members, kind="gz"):
    """Writes an archive from (name, content) pairs; a TarInfo stands for a member without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    packed = gzip.compress(buffer.getvalue()) if kind == "gz" else lzma.compress(buffer.getvalue())
    path.write_bytes(packed)
    return path


def read_all(path, **limits):
    wanted = {"a.bin", "b.bin"}
    return dict(read_tar(path, wanted.__contains__, **{"member_bytes": 1000, "total_bytes": 100_000, **limits}))


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_archive_gives_the_wanted_members_only(tmp_path, kind):
    path = make_tar(tmp_path / f"set.tar.{kind}", [("./a.bin", b"1"), ("readme.html", b"no"), ("b.bin", b"22")], kind)
    assert read_all(path) == {"a.bin": b"1", "b.bin": b"22"}


def link(name, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(("members", "message"), [
    ([("../../evil.bin", b"1")], "names inside the archive"),
    ([("/etc/evil.bin", b"1")], "names inside the archive"),
    ([("a/..\\..\\evil.bin", b"1")], "names inside the archive"),
    ([("C:\\evil.bin", b"1")], "names inside the archive"),
    ([("a.bin", b"1"), ("a.bin", b"2")], "two members called 'a.bin'"),
    ([("a.bin", b"1"), ("./a.bin", b"2")], "two members called 'a.bin'"),
    ([(link("a.bin", tarfile.SYMTYPE), b"")], "a link, device or sparse file"),
    ([(link("a.bin", tarfile.LNKTYPE), b"")], "a link, device or sparse file"),
    ([(link("a.bin", tarfile.FIFOTYPE), b"")], "a link, device or sparse file"),
    ([("a.bin", b"1" * 1001)], "1,001 bytes; expected at most 1,000"),
    ([("other.bin", b"0" * 200_000)], "more than 100,000 bytes when unpacked"),
])
@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_hostile_archives_are_refused(tmp_path, members, message, kind):
    path = make_tar(tmp_path / f"set.tar.{kind}", members, kind)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=message):
        read_all(path)
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_truncated_or_changed_archives_are_refused(tmp_path, kind):
    content = np.random.RandomState(0).bytes(900)
    path = make_tar(tmp_path / f"set.tar.{kind}", [("a.bin", content)], kind)
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match="cannot be read"):
            read_all(path)
    for position in (len(whole) // 3, len(whole) // 2, len(whole) - 6):
        changed = bytearray(whole)
        changed[position] ^= 0x10
        path.write_bytes(bytes(changed))
        with pytest.raises(DataError, match=r"cannot be read|expected"):
            read_all(path)


def test_xz_may_not_take_all_memory(tmp_path, monkeypatch):
    path = make_tar(tmp_path / "set.tar.xz", [("a.bin", b"1")], "xz")
    monkeypatch.setattr("convolt.data.archives.XZ_MEMORY", 2**20)
    with pytest.raises(DataError, match="Memory usage limit"):
        read_all(path)


def test_other_archives_are_refused(tmp_path):
    (tmp_path / "set.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"expected \.tar\.gz or \.tar\.xz"):
        read_all(tmp_path / "set.zip")


# -- CIFAR-10 ----------------------------------------------------------------------------------------------------------


FEW = {"train": 2, "test": 1}


def jpeg(label, number):
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (label * 20, number * 40, 90)).save(buffer, "JPEG")
    return buffer.getvalue()


def jpeg_members(per_class=FEW):
    return [(f"{part}/{name}/{n:04d}.jpg", jpeg(label, n)) for part, count in per_class.items()
            for label, name in enumerate(cifar.CLASSES) for n in range(count)]


def test_binary_batches_become_keras_arrays(tmp_path):
    rng = np.random.RandomState(0)
    x = rng.randint(0, 256, (18, 32, 32, 3), np.uint8)
    y = rng.randint(0, 10, (18, 1)).astype(np.uint8)
    records = np.concatenate([y, x.transpose(0, 3, 1, 2).reshape(18, -1)], axis=1)
    names = [f"data_batch_{i}.bin" for i in (1, 2, 3, 4, 5)] + ["test_batch.bin"]
    members = [(f"cifar-10-batches-bin/{name}", records[3 * i : 3 * i + 3].tobytes()) for i, name in enumerate(names)]
    found = cifar.read_binary(make_tar(tmp_path / "c.tar.gz", [("cifar-10-batches-bin/readme.html", b"hi"), *members[::-1]]), 3)
    np.testing.assert_array_equal(found["x_train"], x[:15])
    np.testing.assert_array_equal(found["y_train"], y[:15])
    np.testing.assert_array_equal(found["x_test"], x[15:])
    np.testing.assert_array_equal(found["y_test"], y[15:])
    with pytest.raises(DataError, match=r"data_batch_3\.bin: got 0 bytes; expected 9,219"):
        cifar.read_binary(make_tar(tmp_path / "c.tar.gz", members[:2] + members[3:]), 3)
    members[0] = (members[0][0], b"\x0b" + members[0][1][1:])
    with pytest.raises(DataError, match="the label 11"):
        cifar.read_binary(make_tar(tmp_path / "c.tar.gz", members), 3)


def test_jpeg_archive_has_every_picture_with_its_label(tmp_path):
    found = cifar.read_jpeg_archive(make_tar(tmp_path / "c.tar.xz", jpeg_members(), "xz"), FEW)
    assert found["x_train"].shape == (20, 32, 32, 3)
    assert found["y_train"].shape == (20, 1)
    for part in FEW:
        for x, y in zip(found[f"x_{part}"], found[f"y_{part}"], strict=True):
            assert abs(int(x[0, 0, 0]) - int(y[0]) * 20) <= 4
    assert not (np.diff(found["y_train"][:, 0].astype(int)) >= 0).all(), "classes are mixed"


@pytest.mark.parametrize(("change", "message"), [
    (lambda members: members[:-1], r"9 of 10 pictures of test.*test/truck/0000\.jpg"),
    (lambda members: [*members, ("train/cat/0007.jpg", jpeg(3, 0))], "the number 7; expected numbers below 2"),
    (lambda members: [*members, ("train/cat/0001.jpeg", jpeg(3, 0)), ("train/cat/0001.jpeg", b"")], "two members"),
    (lambda members: [("train/airplane/0000.jpg", b"no picture"), *members[1:]], r"train/airplane/0000\.jpg: image: got"),
])
def test_bad_jpeg_archives_are_refused(tmp_path, change, message):
    path = make_tar(tmp_path / "c.tar.xz", change(jpeg_members()), "xz")
    with pytest.raises(DataError, match=message):
        cifar.read_jpeg_archive(path, FEW)


def test_jpegs_are_decoded_once_and_again_when_they_change(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVOLT_DATA", str(tmp_path))
    monkeypatch.setattr(cifar, "PER_CLASS", FEW)
    monkeypatch.setattr(datasets, "_CIFAR_SHAPES", {})
    path = make_tar(tmp_path / datasets.CIFAR10_JPEG, jpeg_members(), "xz")
    (first, _), _ = cifar10.load_data()
    monkeypatch.setattr(cifar, "_decode", lambda *args: pytest.fail("decoded again"))
    (second, _), _ = cifar10.load_data()
    np.testing.assert_array_equal(first, second)
    monkeypatch.undo()
    monkeypatch.setenv("CONVOLT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CONVOLT_DATA", str(tmp_path))
    monkeypatch.setattr(cifar, "PER_CLASS", FEW)
    monkeypatch.setattr(datasets, "_CIFAR_SHAPES", {})
    members = jpeg_members()
    make_tar(path, [(members[0][0], jpeg(12, 0)), *members[1:]], "xz")
    (third, _), _ = cifar10.load_data()
    assert not np.array_equal(first, third), "another archive is decoded anew"


def test_cifar10_from_folders_of_jpegs(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVOLT_DATA", str(tmp_path))
    for name, content in jpeg_members():
        path = tmp_path / "cifar10" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (x, y), (x_test, y_test) = cifar10.load_data()
    assert x.shape == (20, 32, 32, 3)
    assert y.shape == (20, 1)
    assert y.dtype == np.uint8
    assert sorted(y_test[:, 0]) == list(range(10))
    assert all(abs(int(p[0, 0, 0]) - int(c[0]) * 20) <= 4 for p, c in zip(x_test, y_test, strict=True))
    (tmp_path / "cifar10" / "test" / "truck").rename(tmp_path / "cifar10" / "test" / "lorry")
    with pytest.raises(DataError, match=r"missing: \['truck'\], extra: \['lorry'\]"):
        cifar10.load_data()


def test_the_python_version_is_named_but_never_read(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVOLT_DATA", str(tmp_path))
    (tmp_path / datasets.CIFAR10_PYTHON).write_bytes(b"pickles")
    monkeypatch.setattr(datasets, "CIFAR10", Remote("cifar-10-binary.tar.gz", "http://127.0.0.1:9/", "0" * 64, 1))
    monkeypatch.setattr("convolt.data.download.time.sleep", lambda seconds: None)
    with pytest.raises(DataError, match="holds Python pickles, which can run any code and are not read"):
        cifar10.load_data()
