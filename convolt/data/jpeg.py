"""JPEG bytes → pixels by libjpeg-turbo, with a fifth of Pillow's cost for small pictures.

This is a short cut and no second opinion: it takes a JPEG only if libjpeg-turbo reads it without a single warning, and leaves every
other one (damaged, too large, CMYK, of unusual depth) to Pillow, whose word then holds. Where it takes one, its pixels are
Pillow's own, bit for bit: both run the same library with the same settings, and the tests compare them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

START = b"\xff\xd8\xff"
EXIF = b"Exif\0\0"
SCALES = (8, 4, 2)
"""Fractions of its size in which a JPEG can be decoded at full speed: 1/8, 1/4, 1/2."""

MIN_SIDE = 16
"""Pixels that the shorter side of a picture keeps when it is decoded at a fraction of its size."""

_COLOURS = {"Gray": "GRAY", "YCbCr": "RGB", "RGB": "RGB"}


def scale_for(height: int, width: int, size: tuple[int, int] | None, fit: str) -> int:
    """Returns 1, 2, 4 or 8: by how much a JPEG of this size may shrink in decoding before it is resized to `size`.

    What is decoded has at least as many pixels along each axis as the picture gets in the end, so that resizing never enlarges it.

    Args:
        height, width: of the picture, upright.
        size: (height, width) that is wanted; None: its own.
        fit: "stretch", "crop" or "pad", see `decode_image`.
    """
    if size is None:
        return 1
    ratios = (height / size[0], width / size[1])
    ratio = max(ratios) if fit == "pad" else min(ratios)
    return next((s for s in SCALES if s <= ratio and min(height, width) // s >= MIN_SIDE), 1)


def decode(data: bytes, size: tuple[int, int] | None, fit: str, max_pixels: int, scaled: bool) -> np.ndarray | None:
    """Returns the pixels of a plain JPEG without EXIF data, or None for anything that Pillow is to look at.

    Args:
        data: the file's content.
        size, fit: what becomes of the picture; see `scale_for`.
        max_pixels: a picture with more is left to Pillow, which refuses it.
        scaled: whether it may be decoded at a fraction of its size.

    Returns:
        uint8 (H, W, 3), or (H, W, 1) for a grey JPEG; neither resized nor turned.
    """
    library = _library()
    if library is None or not data.startswith(START):
        return None
    try:
        height, width, colour, _ = library.decode_jpeg_header(data)
        if colour not in _COLOURS or height * width > max_pixels:
            return None
        scale = scale_for(height, width, size, fit) if scaled else 1
        if scale == 1:
            return library.decode_jpeg(data, _COLOURS[colour])  # type: ignore[no-any-return]
        return library.decode_jpeg(data, _COLOURS[colour], min_height=-(-height // scale),  # type: ignore[no-any-return]
                                   min_width=-(-width // scale), min_factor=scale)
    except ValueError:  # an error or a warning of the library: what it means is Pillow's to say
        return None


def has_exif(data: bytes) -> bool:
    """Whether there may be EXIF data, and so a rotation."""
    return EXIF in data


_found: list[Any] = []


def _library() -> Any:
    """Returns simplejpeg, or None where it cannot be imported: Pillow then decodes the same pixels, more slowly."""
    if not _found:
        try:
            import simplejpeg
        except ImportError:
            _found.append(None)
        else:
            _found.append(simplejpeg)
    return _found[0]
