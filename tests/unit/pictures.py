"""Pictures that the tests of decoding and of folders draw."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(height=4, width=6):
    """A picture in which every pixel differs: red counts rows, green columns."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = np.arange(height)[:, None] * 20, np.arange(width) * 20, 200
    return pixels


def png_that_says(width, height):
    """A PNG whose header announces any size; its data is that of a tiny picture."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


GOOD = encode(Image.fromarray(gradient()))
"""A sound PNG of 4×6 pixels."""
