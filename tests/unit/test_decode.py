"""Decoding pictures: formats, colours, rotation, bounds, damage."""

import numpy as np
import pytest
from PIL import Image

from convolt.data.decode import MAX_PIXELS, decode_image
from convolt.errors import ArgumentError, DataError
from tests.unit.pictures import GOOD, encode, gradient, png_that_says


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP", "JPEG"])
def test_formats_are_found_from_the_content(kind):
    flat = Image.new("RGB", (6, 4), (200, 40, 40))
    x = decode_image(encode(flat, kind))
    assert x.shape == (4, 6, 3)
    assert x.dtype == np.uint8
    np.testing.assert_allclose(x, np.broadcast_to([200, 40, 40], (4, 6, 3)), atol=8)


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "PCX"])
def test_other_formats_are_refused(kind):
    with pytest.raises(DataError, match="not a picture of these formats"):
        decode_image(encode(Image.fromarray(gradient(16, 16)), kind))


def test_colour_modes():
    rgb = gradient()
    assert np.array_equal(decode_image(encode(Image.fromarray(rgb))), rgb)
    rgba = decode_image(GOOD, "rgba")
    assert np.array_equal(rgba[..., :3], rgb)
    assert (rgba[..., 3] == 255).all()
    grey = decode_image(GOOD, "grayscale")
    assert grey.shape == (4, 6, 1)
    np.testing.assert_allclose(grey[..., 0], rgb @ [0.299, 0.587, 0.114], atol=1)
    one = Image.fromarray(rgb[..., 0])
    assert np.array_equal(decode_image(encode(one)), np.repeat(rgb[..., :1], 3, axis=2))


def test_transparency_is_dropped_or_kept():
    rgba = np.dstack([gradient(), np.full((4, 6), 9, np.uint8)])
    data = encode(Image.fromarray(rgba))
    assert np.array_equal(decode_image(data, "rgb"), rgba[..., :3])
    assert np.array_equal(decode_image(data, "rgba"), rgba)


@pytest.mark.parametrize("transparency", [None, 1, bytes([0, 128])])
def test_palettes_are_looked_up(transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    options = {} if transparency is None else {"transparency": transparency}
    x = decode_image(encode(image, **options))
    np.testing.assert_array_equal(x, [[[10, 20, 30], [200, 100, 50]]])


def test_cmyk_becomes_rgb():
    x = decode_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    np.testing.assert_allclose(x, np.broadcast_to([255, 0, 0], (8, 8, 3)), atol=4)
    assert decode_image(encode(Image.new("CMYK", (8, 8)), "JPEG"), "grayscale").shape == (8, 8, 1)


def test_sixteen_bit_grey_keeps_its_upper_bits():
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    x = decode_image(encode(Image.fromarray(values)), "grayscale")
    np.testing.assert_array_equal(x[0, :, 0], [0, 0, 1, 128, 255])


def test_black_and_white_is_0_and_255():
    x = decode_image(encode(Image.fromarray(np.array([[True, False]]))))
    np.testing.assert_array_equal(x[0, :, 0], [255, 0])


@pytest.mark.parametrize(("orientation", "expected"), [
    (1, lambda x: x), (2, lambda x: x[:, ::-1]), (3, lambda x: x[::-1, ::-1]), (4, lambda x: x[::-1]),
    (5, lambda x: x.transpose(1, 0, 2)), (6, lambda x: np.rot90(x, -1)), (7, lambda x: x[::-1, ::-1].transpose(1, 0, 2)),
    (8, lambda x: np.rot90(x)), (99, lambda x: x)])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_exif_rotation_is_applied(orientation, expected, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    x = decode_image(encode(Image.fromarray(gradient()), kind, exif=exif.tobytes(), **options))
    np.testing.assert_array_equal(x, expected(gradient()))


def test_broken_exif_is_as_good_as_none():
    data = encode(Image.new("RGB", (8, 8), (9, 9, 9)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert decode_image(data).shape == (8, 8, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_give_their_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    x = decode_image(encode(frames[0], kind, save_all=True, append_images=frames[1:]))
    np.testing.assert_allclose(x, np.broadcast_to([250, 0, 0], (8, 8, 3)), atol=8)


@pytest.mark.parametrize(("width", "height"), [(8200, 8200), (10_000, 10_000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_before_they_are_unpacked(width, height):
    with pytest.raises(DataError, match=r"pixels|DecompressionBomb"):
        decode_image(png_that_says(width, height))
    assert width * height > MAX_PIXELS


def test_own_bound_on_pixels():
    with pytest.raises(DataError, match="6×4 pixels; expected at most 20"):
        decode_image(GOOD, max_pixels=20)


@pytest.mark.parametrize(("data", "message"), [
    (b"", "zero bytes"), (b"<!DOCTYPE html><html>404</html>", "an HTML page"), (b"\0" * 100, "not a picture"),
    (GOOD[: len(GOOD) // 2], "cannot be decoded"), (GOOD[:20], "cannot be decoded|not a picture"),
    (b"RIFF\xff\xff\xff\xffWEBPVP8 ", "cannot"),
])
def test_damaged_pictures_are_refused(data, message):
    with pytest.raises(DataError, match=message):
        decode_image(data)


def test_mutants_of_pictures_raise_our_error_or_decode():
    rng = np.random.RandomState(0)
    outcomes = {"decoded": 0, "refused": 0}
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP"):
        whole = encode(Image.fromarray(gradient(16, 16)), kind)
        for _ in range(60):
            data = bytearray(whole)
            for position in rng.randint(0, len(data), 3):
                data[position] = rng.randint(256)
            try:
                assert decode_image(bytes(data)).ndim == 3
                outcomes["decoded"] += 1
            except DataError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 20


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_resizing(fit):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    x = decode_image(encode(Image.fromarray(wide)), image_size=(12, 12), interpolation="nearest", fit=fit)
    middle = {"stretch": x[:, 4:8], "crop": x, "pad": x[4:8, 4:8]}[fit]
    assert x.shape == (12, 12, 3)
    assert (middle == 255).all()
    assert x.mean() == pytest.approx({"stretch": 85, "crop": 255, "pad": 85 / 3}[fit], rel=0.01)


@pytest.mark.parametrize(("options", "message"), [
    ({"color_mode": "greyscale"}, "color_mode.*Did you mean 'grayscale'"), ({"interpolation": "bilinar"}, "'bilinear'"),
    ({"fit": "croop"}, "'crop'"), ({"image_size": (0, 3)}, "image_size"), ({"image_size": (3,)}, "image_size"),
    ({"image_size": (2.5, 3)}, "image_size"), ({"image_size": (10**5, 10**5)}, "image_size"),
])
def test_arguments_of_decoding(options, message):
    with pytest.raises(ArgumentError, match=message):
        decode_image(GOOD, **options)
