"""Packs: what comes out is what went in, and what is damaged or hostile is refused."""

import json
import random
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from convolt.data.folder import ImageFolder
from convolt.data.left_out import SkippedFilesWarning
from convolt.data.pack import folder_state, open_pack
from convolt.data.pack_format import MAGIC, PREFIX, Header
from convolt.data.pack_write import write_pack
from convolt.errors import ArgumentError, DataError
from tests.unit.pictures import GOOD, encode, gradient


@pytest.fixture
def pets(tmp_path):
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for n in range(60):
            pixels = gradient()
            pixels[0, 0] = (label, n, 0)
            (tmp_path / "pets" / name / f"{n:02d}.png").write_bytes(encode(Image.fromarray(pixels)))
    return tmp_path / "pets"


@pytest.mark.parametrize("encoded", [False, True])
def test_what_comes_out_is_what_went_in(pets, tmp_path, encoded):
    folder = ImageFolder(pets)
    train, test = folder.split(0.25)
    write_pack(tmp_path / "a.pack", {"train": train, "test": test}, encoded=encoded)
    pack = open_pack(tmp_path / "a.pack")
    assert pack.class_names == ["cat", "dog"]
    assert list(pack.parts) == ["train", "test"]
    for name, part in (("train", train), ("test", test)):
        x, y = part.load()
        found = pack.parts[name].pictures
        np.testing.assert_array_equal(found.load()[0] if encoded else found, x)
        np.testing.assert_array_equal(pack.parts[name].labels, y)
        assert pack.parts[name].info.files == part.files


def test_bad_files_are_left_out_and_listed(pets, tmp_path):
    (pets / "cat" / "07.png").write_bytes(b"")
    for encoded in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SkippedFilesWarning)
            write_pack(tmp_path / "a.pack", {"train": ImageFolder(pets)}, encoded=encoded)
        part = open_pack(tmp_path / "a.pack").parts["train"]
        assert len(part.pictures) == len(part.labels) == 119
        assert [path for path, _ in part.info.skipped] == ["cat/07.png"]
        assert "cat/07.png" not in part.info.files


def test_more_than_one_percent_of_bad_files_writes_nothing(pets, tmp_path):
    for n in (3, 7):
        (pets / "cat" / f"{n:02d}.png").write_bytes(b"")
    for encoded in (False, True):
        with pytest.raises(DataError, match="more than 1% bad files"):
            write_pack(tmp_path / "a.pack", {"train": ImageFolder(pets)}, encoded=encoded)
    assert [path.name for path in tmp_path.iterdir()] == ["pets"]


def test_labels_of_several_classes_and_none(pets, tmp_path):
    folder = ImageFolder(pets)
    folder.labels = np.eye(2, dtype=np.float32)[folder.labels]
    folder.labels[3] = 1
    write_pack(tmp_path / "a.pack", {"train": folder})
    np.testing.assert_array_equal(open_pack(tmp_path / "a.pack").parts["train"].labels, folder.labels)
    write_pack(tmp_path / "a.pack", {"train": ImageFolder(pets, labels=None)})
    assert open_pack(tmp_path / "a.pack").parts["train"].labels is None


def test_large_encoded_pictures_are_made_smaller(tmp_path):
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    for name, size in (("a.jpg", (100, 300)), ("b.jpg", (50, 60)), ("c.png", (90, 200))):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
        (tmp_path / "pets" / "cat" / name).write_bytes(encode(image, "PNG" if name.endswith("png") else "JPEG"))
    write_pack(tmp_path / "a.pack", {"train": ImageFolder(tmp_path / "pets", labels=None)}, encoded=True, max_side=100)
    pictures = open_pack(tmp_path / "a.pack").parts["train"].pictures
    sizes = [pictures.subset([i]).load()[0].shape[1:3] for i in range(3)]
    assert sizes == [(33, 100), (50, 60), (45, 100)]
    assert pictures.content(1) == (tmp_path / "pets" / "cat" / "b.jpg").read_bytes()


def test_a_stale_pack_is_noticed(pets, tmp_path):
    write_pack(tmp_path / "a.pack", {"train": ImageFolder(pets)})
    pack = open_pack(tmp_path / "a.pack")
    assert pack.stale() == ""
    (pets / "cat" / "60.png").write_bytes(GOOD)
    assert "has changed since" in pack.stale()
    state = folder_state(pets)
    (pets / "cat" / "60.png").unlink()
    assert pack.stale() == ""
    assert state != folder_state(pets)


def test_writing_a_pack_is_all_or_nothing(pets, tmp_path, monkeypatch):
    write_pack(tmp_path / "a.pack", {"train": ImageFolder(pets)})
    before = (tmp_path / "a.pack").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("convolt.data.pack_write.write_header", full)
    with pytest.raises(OSError, match="No space"):
        write_pack(tmp_path / "a.pack", {"train": ImageFolder(pets)})
    assert (tmp_path / "a.pack").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pack", "pets"]


# -- damage and malice -------------------------------------------------------------------------------------------------


@pytest.fixture
def packed(pets, tmp_path):
    write_pack(tmp_path / "a.pack", {"train": ImageFolder(pets)})
    return tmp_path / "a.pack"


def test_any_cut_is_refused(packed):
    whole = packed.read_bytes()
    for length in (0, 7, 63, 64, 4096, len(whole) // 2, len(whole) - 1):
        packed.write_bytes(whole[:length])
        with pytest.raises(DataError, match="pack"):
            open_pack(packed)
    packed.write_bytes(whole + b"x")
    with pytest.raises(DataError, match="pack"):
        open_pack(packed)


def test_changed_pixels_are_named(packed):
    content = bytearray(packed.read_bytes())
    content[4096 + 3 * 72] ^= 1
    packed.write_bytes(content)
    with pytest.raises(DataError, match=r"train: cat/03\.png: got pixels with another checksum"):
        open_pack(packed)


def test_changed_encoded_pictures_are_left_out(pets, packed):
    write_pack(packed, {"train": ImageFolder(pets)}, encoded=True)
    content = bytearray(packed.read_bytes())
    content[4096 + 40] ^= 1
    packed.write_bytes(content)
    pictures = open_pack(packed).parts["train"].pictures
    with pytest.warns(SkippedFilesWarning, match=r"cat/00\.png: .*another checksum"):
        assert len(pictures.load()[0]) == 119


def test_every_flipped_byte_is_harmless(packed):
    """Each mutant is refused with our error, or (a byte of padding) reads as the original."""
    whole = packed.read_bytes()
    expected = np.array(open_pack(packed).parts["train"].pictures)
    chance, refused = random.Random(0), 0
    for _ in range(300):
        content = bytearray(whole)
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        packed.write_bytes(content)
        try:
            found = open_pack(packed).parts["train"].pictures
        except DataError:
            refused += 1
        else:
            np.testing.assert_array_equal(found, expected)
    assert refused > 150


def with_header(path, change):
    """Writes the pack with another header and a right checksum: what an attacker would make."""
    import hashlib

    whole = path.read_bytes()
    length = PREFIX.unpack(whole[: PREFIX.size])[3]
    values = json.loads(whole[-length:])
    change(values)
    body = json.dumps(values).encode()
    path.write_bytes(PREFIX.pack(MAGIC, 1, 0, len(body), hashlib.sha256(body).digest()) + whole[PREFIX.size : -length] + body)


HOSTILE = {
    "more pictures than there are": lambda v: v["parts"][0].update(count=10**9),
    "a shape bomb": lambda v: v["parts"][0].update(shape=[2**31, 2**31, 3], bytes=120 * 2**62 * 3),
    "negative numbers": lambda v: v["parts"][0].update(count=-120, bytes=-8640),
    "numbers that are texts": lambda v: v["parts"][0].update(count="120"),
    "a truth value as a number": lambda v: v["parts"][0].update(count=True),
    "an unknown kind": lambda v: v["parts"][0].update(kind="pickle"),
    "pixels called encoded": lambda v: v["parts"][0].update(kind="encoded"),
    "fewer classes than labels": lambda v: v.update(class_names=["cat"]),
    "colours that there are not": lambda v: v["decoding"].update(color_mode="infrared"),
    "other colours than those of the pixels": lambda v: v["decoding"].update(color_mode="grayscale"),
    "another size than that of the pixels": lambda v: v["decoding"].update(image_size=[9, 9]),
    "a size that is none": lambda v: v["decoding"].update(image_size=7),
    "no classes": lambda v: v.update(class_names=[]),
    "files that are numbers": lambda v: v["parts"][0].update(files=[1] * 120),
    "too few files": lambda v: v["parts"][0].update(files=["a"]),
    "unknown fields": lambda v: v["parts"][0].update(extra=1),
    "missing fields": lambda v: v.pop("decoding"),
    "no parts": lambda v: v.update(parts=[]),
    "parts of one name": lambda v: v.update(parts=v["parts"] * 2),
    "skipped files that are no pairs": lambda v: v["parts"][0].update(skipped=[["a"]]),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_headers_are_refused(packed, kind):
    with_header(packed, HOSTILE[kind])
    with pytest.raises(DataError):
        open_pack(packed)


def test_deep_json_is_refused(packed):
    import hashlib

    body = b"[" * 100_000
    packed.write_bytes(PREFIX.pack(MAGIC, 1, 0, len(body), hashlib.sha256(body).digest()) + body)
    with pytest.raises(DataError, match="cannot be used"):
        open_pack(packed)


def test_hostile_offsets_are_refused(pets, packed):
    write_pack(packed, {"train": ImageFolder(pets)}, encoded=True)
    with open(packed, "rb") as file:
        from convolt.data.pack_format import read_header

        header: Header = read_header(packed, file)
    content = bytearray(packed.read_bytes())
    place = header.places()[0][0]["offsets"]
    content[place + 8 : place + 16] = struct.pack("<q", 2**40)
    packed.write_bytes(content)
    with pytest.raises(DataError, match="offsets"):
        open_pack(packed)


def test_newer_packs_and_other_files(packed, tmp_path):
    content = bytearray(packed.read_bytes())
    content[8:12] = struct.pack("<I", 2)
    packed.write_bytes(content)
    with pytest.raises(DataError, match="version 2"):
        open_pack(packed)
    (tmp_path / "b.pack").write_bytes(GOOD * 10)
    with pytest.raises(DataError, match="no pack"):
        open_pack(tmp_path / "b.pack")
    with pytest.raises(DataError, match="no such file"):
        open_pack(tmp_path / "c.pack")


def test_arguments(pets, tmp_path):
    folder = ImageFolder(pets)
    with pytest.raises(ArgumentError, match="max_side"):
        write_pack(tmp_path / "a.pack", {"train": folder}, max_side=100)
    for parts in ({}, {"trian": folder}):
        with pytest.raises(ArgumentError, match="parts"):
            write_pack(tmp_path / "a.pack", parts)
