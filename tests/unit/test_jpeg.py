"""The short cut for JPEGs gives Pillow's pixels, bit for bit, and leaves to Pillow what it has doubts about."""

import random

import numpy as np
import pytest
from PIL import Image

from convolt.data import jpeg
from convolt.data.decode import decode_image
from convolt.errors import DataError
from tests.unit.pictures import encode


def noisy(height=120, width=90, channels=3, seed=0):
    """A picture with something at all frequencies."""
    generator = np.random.default_rng(seed)
    smooth = Image.fromarray(generator.integers(0, 256, (6, 5, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.clip(np.asarray(smooth).astype(int) + generator.integers(-30, 30, (height, width, 3)), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels if channels == 3 else pixels[..., 0])


@pytest.fixture
def by_pillow_alone(monkeypatch):
    """Decodes as on a machine without simplejpeg."""
    def decode(*arguments, **options):
        with monkeypatch.context() as context:
            context.setattr(jpeg, "_found", [None])
            return decode_image(*arguments, **options)

    return decode


KINDS = {
    "4:4:4": {"subsampling": 0}, "4:2:2": {"subsampling": 1}, "4:2:0": {"subsampling": 2}, "progressive": {"progressive": True},
    "optimized": {"optimize": True}, "quality 30": {"quality": 30}, "quality 100": {"quality": 100},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [None, (120, 90), (60, 45), (50, 40), (30, 30), (17, 80)])
def test_the_pixels_are_those_of_pillow(kind, size, by_pillow_alone):
    data = encode(noisy(), "JPEG", **KINDS[kind])
    assert jpeg.decode(data, size, "stretch", 10**9, True) is not None
    for mode in ("rgb", "grayscale", "rgba"):
        for fit in ("stretch", "crop", "pad"):
            ours = decode_image(data, mode, size, fit=fit)
            np.testing.assert_array_equal(ours, by_pillow_alone(data, mode, size, fit=fit))


def test_sizes_that_are_no_multiple_of_anything(by_pillow_alone):
    for height in (33, 47, 64, 131):
        for width in (35, 79, 128):
            data = encode(noisy(height, width), "JPEG")
            for target in ((height // 2, width // 2), (16, 16), (height // 3, width // 5)):
                np.testing.assert_array_equal(decode_image(data, "rgb", target), by_pillow_alone(data, "rgb", target))


def test_grey_jpegs(by_pillow_alone):
    data = encode(noisy(channels=1), "JPEG")
    for mode, channels in (("rgb", 3), ("grayscale", 1), ("rgba", 4)):
        assert decode_image(data, mode, (40, 40)).shape == (40, 40, channels)
        np.testing.assert_array_equal(decode_image(data, mode, (40, 40)), by_pillow_alone(data, mode, (40, 40)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_jpegs(orientation, by_pillow_alone):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(noisy(), "JPEG", exif=exif)
    for size in (None, (60, 30), (30, 60)):
        ours = decode_image(data, "rgb", size)
        np.testing.assert_array_equal(ours, by_pillow_alone(data, "rgb", size))
    assert decode_image(data).shape == ((120, 90, 3) if orientation < 5 else (90, 120, 3))


def test_what_is_left_to_pillow(by_pillow_alone):
    good = encode(noisy(), "JPEG")
    cmyk = encode(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG")
    for data in (cmyk, good[: len(good) // 2], b"", encode(noisy(), "PNG")):
        assert jpeg.decode(data, None, "stretch", 10**9, True) is None
    assert jpeg.decode(good, None, "stretch", 120 * 90 - 1, True) is None
    with pytest.raises(DataError, match="90×120 pixels"):
        decode_image(good, max_pixels=120 * 90 - 1)
    with pytest.raises(DataError, match="truncated"):
        decode_image(good[: len(good) // 2])


def test_mutants_never_differ_from_pillow(by_pillow_alone):
    """A byte changed anywhere: the short cut gives what Pillow gives, or leaves it to Pillow."""
    chance = random.Random(1)
    good = encode(noisy(48, 40), "JPEG", quality=60)
    taken = 0
    for _ in range(400):
        data = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        fast = jpeg.decode(bytes(data), None, "stretch", 10**6, True)
        if fast is None or fast.shape[2] != 3:
            continue
        taken += 1
        try:
            slow = by_pillow_alone(bytes(data))
        except DataError:
            continue  # headers that Pillow is stricter about
        np.testing.assert_array_equal(decode_image(bytes(data)), slow)
    assert taken > 50


def test_scaled_decoding_stays_near_the_full_one():
    picture = noisy(400, 500)
    data = encode(picture, "JPEG", quality=90)
    scaled, full = (decode_image(data, "rgb", (128, 128), scaled=flag).astype(float) for flag in (True, False))
    assert not np.array_equal(scaled, full)
    assert np.abs(scaled - full).mean() < 3
    np.testing.assert_array_equal(decode_image(data, "rgb", (128, 128), interpolation="nearest"),
                                  decode_image(data, "rgb", (128, 128), interpolation="nearest", scaled=False))


@pytest.mark.parametrize(("size", "fit", "scale"), [
    (None, "stretch", 1), ((400, 500), "stretch", 1), ((224, 224), "stretch", 1), ((200, 250), "stretch", 2), ((100, 100), "stretch", 4),
    ((32, 32), "stretch", 8), ((200, 100), "crop", 2), ((200, 100), "pad", 4), ((1, 1), "stretch", 8)])
def test_scales(size, fit, scale):
    assert jpeg.scale_for(400, 500, size, fit) == scale


def test_small_pictures_are_decoded_whole():
    assert jpeg.scale_for(20, 20, (2, 2), "stretch") == 1
