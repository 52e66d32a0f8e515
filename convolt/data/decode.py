"""Bytes of a picture → uint8 pixels, bounded, by Pillow, and by libjpeg-turbo itself for plain JPEGs (see `jpeg.py`).

How colours become what `color_mode` asks for:

- the format is found from the content, whatever the file is called; JPEG, PNG, GIF, BMP and WebP are read;
- the rotation in the EXIF data is applied; of an animation the first frame is taken;
- palettes are looked up; CMYK and YCbCr are converted to RGB; 16-bit grey keeps its upper eight bits, as 16-bit RGB
  does; grey is repeated to RGB; RGB becomes grey with the weights 0.299, 0.587, 0.114 (ITU-R 601);
- a JPEG that is to be made smaller is decoded at 1/2, 1/4 or 1/8 of its size where that still has the pixels that are wanted, and
  resized from there (not with `interpolation="nearest"`, which picks pixels of the picture as it is);
- bilinear resizing that distorts is `kernels.resize`: what Pillow computes, lines before columns (Pillow 13 takes columns first where only
  they shrink, which rounds otherwise by 1 in places);
- transparency is dropped in `"rgb"` and `"grayscale"` (the colours under it stay, as in Keras) and is the fourth
  channel in `"rgba"` (255 where the picture has none).
"""

from __future__ import annotations

import struct
import threading
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from convolt.data import jpeg
from convolt.errors import ArgumentError, ConvoltError, DataError, did_you_mean, explain

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")
CHANNELS = {"rgb": 3, "rgba": 4, "grayscale": 1}
MODES = {"rgb": "RGB", "rgba": "RGBA", "grayscale": "L"}
FITS = ("stretch", "crop", "pad")
INTERPOLATIONS = ("bilinear", "nearest", "bicubic", "lanczos", "area")
MAX_PIXELS = 64 * 2**20
"""Width times height of the largest picture that is decoded; below the size that Pillow takes for a bomb."""

_open_lock = threading.Lock()


def decode_image(data: bytes, color_mode: str = "rgb", image_size: tuple[int, int] | None = None, *,
                 interpolation: str = "bilinear", fit: str = "stretch", max_pixels: int = MAX_PIXELS, scaled: bool = True) -> np.ndarray:
    """Decodes one picture.

    Args:
        data: the file's content.
        color_mode: "rgb", "rgba" or "grayscale"; the module says how colours are converted.
        image_size: (height, width) to resize to; None keeps the size.
        interpolation: "bilinear", "nearest", "bicubic", "lanczos" or "area", antialiased when shrinking.
        fit: what happens to another aspect ratio: "stretch" distorts, "crop" cuts the borders, "pad" adds black ones.
        max_pixels: a picture with more is refused before it is decoded.
        scaled: whether a JPEG may be decoded at a fraction of its size on the way to `image_size`.

    Returns:
        uint8 of shape (H, W, C) with 3, 4 or 1 channels.

    Raises:
        ArgumentError: `color_mode`, `interpolation` or `fit` is unknown, or a size is not positive.
        DataError: the bytes are no picture of these formats, are damaged, or are too large.
    """
    check_decoding(color_mode, image_size, interpolation, fit)
    if not data:
        raise DataError(explain("image", "zero bytes", "a picture"))
    scaled = scaled and interpolation != "nearest"
    try:
        turn = turn_of(data) if jpeg.has_exif(data) else None
        pixels = jpeg.decode(data, _before(turn, image_size), fit, max_pixels, scaled)
        if pixels is None:
            pixels = _by_pillow(data, color_mode, image_size, interpolation, fit, max_pixels, scaled)
        elif turn or color_mode != "rgb" or pixels.shape[2] != 3 or not (image_size is None or pixels.shape[:2] == tuple(image_size)):
            if turn is None and pixels.shape[2] == CHANNELS[color_mode] and _by_kernel(image_size, color_mode, interpolation, fit):
                return _resized(pixels, image_size)
            pixels = _finished(_as_image(pixels), turn, color_mode, image_size, interpolation, fit)
    except (ConvoltError, MemoryError):
        raise
    except Exception as error:  # a decoder meets hostile bytes here, and Pillow raises a dozen kinds of errors for them
        raise DataError(explain("image", f"bytes that cannot be decoded ({_reason(error, data)})",
                                f"a whole picture ({', '.join(FORMATS)})")) from error
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _by_pillow(data: bytes, color_mode: str, size: tuple[int, int] | None, interpolation: str, fit: str, max_pixels: int,
               scaled: bool) -> np.ndarray:
    with _open(data) as image:
        if image.width * image.height > max_pixels:
            raise DataError(explain("image", f"{image.width}×{image.height} pixels", f"at most {max_pixels:,} pixels"))
        turn = _turn(image)
        if scaled and image.format == "JPEG":
            scale = jpeg.scale_for(image.height, image.width, _before(turn, size), fit)
            image.draft(None, (image.width // scale, image.height // scale))
        image.load()
        return _finished(image, turn, color_mode, size, interpolation, fit)


def _finished(image: Image.Image, turn: str | None, color_mode: str, size: tuple[int, int] | None, interpolation: str,
              fit: str) -> np.ndarray:
    """Returns the pixels of a decoded picture: upright, in the colours and of the size that are wanted."""
    from PIL import Image

    upright = image if turn is None else image.transpose(Image.Transpose[turn])
    converted = _convert(upright, MODES[color_mode])
    if _by_kernel(size, color_mode, interpolation, fit):
        pixels = np.array(converted)  # a copy: PyTorch takes no memory that may not be written
        return _resized(pixels[:, :, None] if pixels.ndim == 2 else pixels, size)
    return np.asarray(_resize(converted, size, interpolation, fit))


def _by_kernel(size: tuple[int, int] | None, color_mode: str, interpolation: str, fit: str) -> bool:
    """Whether `kernels.resize` makes the picture's size. Pillow weighs colours by their transparency first, so those are left to it."""
    return size is not None and interpolation == "bilinear" and fit == "stretch" and color_mode != "rgba"


def _resized(pixels: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    if size is None or pixels.shape[:2] == tuple(size):
        return pixels
    import torch

    from convolt import kernels

    resized: np.ndarray = kernels.resize(torch.from_numpy(pixels), size).numpy()
    return resized


def _before(turn: str | None, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Returns the size that a picture has before a turn if it is to have `size` after it."""
    return size[::-1] if size is not None and turn in _SWAPS else size


def turn_of(data: bytes) -> str | None:
    """Returns the turn that the EXIF data of a file ask for, one of `Image.Transpose`; None for none."""
    with _open(data) as image:
        return _turn(image)


def _as_image(pixels: np.ndarray) -> Image.Image:
    from PIL import Image

    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def warn(text: str, category: type[Warning], stacklevel: int = 2) -> None:
    """Warns like `warnings.warn`, but never in the moment in which a thread that decodes has the process's filters ignore everything."""
    with _open_lock:
        warnings.warn(text, category, stacklevel=stacklevel + 1)


def check_decoding(color_mode: str, image_size: tuple[int, int] | None, interpolation: str, fit: str) -> None:
    """Raises `ArgumentError` unless these arguments of `decode_image` can be used."""
    for name, value, known in (("color_mode", color_mode, tuple(CHANNELS)), ("interpolation", interpolation, INTERPOLATIONS),
                               ("fit", fit, FITS)):
        if value not in known:
            raise ArgumentError(explain(name, value, f"one of {list(known)}", did_you_mean(str(value), known)))
    if image_size is None:
        return
    sizes = tuple(image_size)
    if len(sizes) != 2 or any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1 for n in sizes):
        raise ArgumentError(explain("image_size", image_size, "(height, width), two whole numbers from 1"))
    if int(sizes[0]) * int(sizes[1]) > MAX_PIXELS:
        raise ArgumentError(explain("image_size", image_size, f"at most {MAX_PIXELS:,} pixels"))


def _open(data: bytes) -> Image.Image:
    """Reads a picture's header. Pillow's warning of a decompression bomb is an error here.

    Warning filters belong to the whole process, hence the lock; reading a header takes microseconds.
    """
    import io

    from PIL import Image

    with _open_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=FORMATS)


_TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
          8: "ROTATE_90"}
"""EXIF orientation → the turn that undoes it."""


_SWAPS = ("TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
"""Turns after which width is height."""


def _turn(image: Image.Image) -> str | None:
    """Returns the turn that the EXIF orientation asks for; broken EXIF data is as good as none, for the pixels are sound."""
    from PIL import ExifTags

    if "exif" not in image.info and image.format != "PNG":
        return None
    try:
        with _open_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, IndexError, OSError, struct.error):
        return None
    return _TURNS.get(orientation) if isinstance(orientation, int) else None


def _convert(image: Image.Image, mode: str) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey; "I" is how some PNGs hold it
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode in ("P", "PA") and (mode == "RGBA" or "transparency" in image.info):
        image = image.convert("RGBA")
    elif mode == "L" and image.mode in ("CMYK", "YCbCr", "P", "PA"):
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _resize(image: Image.Image, size: tuple[int, int] | None, interpolation: str, fit: str) -> Image.Image:
    from PIL import Image, ImageOps

    if size is None or (image.height, image.width) == tuple(size):
        return image
    filters: dict[str, Any] = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST,
                               "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS,
                               "area": Image.Resampling.BOX}
    width_height = (int(size[1]), int(size[0]))
    if fit == "crop":
        return ImageOps.fit(image, width_height, filters[interpolation])
    if fit == "pad":
        return ImageOps.pad(image, width_height, filters[interpolation])
    return image.resize(width_height, filters[interpolation])


def _reason(error: Exception, data: bytes) -> str:
    """Returns why decoding failed; Pillow's own words name a memory address when it does not know the format."""
    from PIL import UnidentifiedImageError

    if not isinstance(error, UnidentifiedImageError):
        return f"{type(error).__name__}: {error}"
    start = data[:256].lstrip().lower()
    return "an HTML page" if start.startswith((b"<!doctype html", b"<html")) else "not a picture of these formats"
