"""JPEG bytes → pixels on a GPU, by NVIDIA's nvJPEG: `decoder="nvjpeg"`, for who asks for it.

nvJPEG's pixels differ from libjpeg-turbo's by a few levels, so a training with it is not the one that other machines have. Hence it is
never chosen by itself. It is given whole JPEGs of YCbCr colours that need no turn. All else, and what it refuses (CMYK, grey, damaged
files, what its version cannot read), goes to the usual decoder, whose word holds.

Threads read the files; the thread that uses the batch calls the library, on its own stream. So nothing here runs beside the capture of a
CUDA graph, and pixels are there when the step that follows on that stream reads them.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
import threading
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from convolt.data import jpeg
from convolt.data.decode import MAX_PIXELS, turn_of
from convolt.errors import ArgumentError, DeviceError, explain

if TYPE_CHECKING:
    from convolt.data.left_out import BadFile
    from convolt.data.pictures import Pictures

DECODERS = ("cpu", "nvjpeg")

INTERLEAVED_RGB = 5  # NVJPEG_OUTPUT_RGBI: R, G, B of each pixel side by side in channel[0]
COMPONENTS = 4  # NVJPEG_MAX_COMPONENT
LEFT_TO_OTHERS = {3: "a damaged JPEG", 4: "a kind of JPEG that it does not read", 9: "nothing that reads this kind",
                  10: "a JPEG that ends too early"}
"""Values of nvjpegStatus_t that speak of the file. All others but 0 speak of the machine."""

END = b"\xff\xd9"
ADOBE = b"\xff\xee\x00\x0eAdobe"
ADOBE_YCBCR = 1


class _Image(ctypes.Structure):
    """nvjpegImage_t: where the planes lie, and the bytes from one line of each to the next."""

    _fields_ = [("channel", ctypes.c_void_p * COMPONENTS), ("pitch", ctypes.c_size_t * COMPONENTS)]


_POINTER, _INTS = ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)
_FUNCTIONS: dict[str, list[Any]] = {
    "nvjpegCreateSimple": [ctypes.POINTER(_POINTER)],
    "nvjpegJpegStateCreate": [_POINTER, ctypes.POINTER(_POINTER)],
    "nvjpegGetImageInfo": [_POINTER, ctypes.c_char_p, ctypes.c_size_t, _INTS, _INTS, _INTS, _INTS],
    "nvjpegDecode": [_POINTER, _POINTER, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int, ctypes.POINTER(_Image), _POINTER],
    "nvjpegJpegStateDestroy": [_POINTER],
    "nvjpegDestroy": [_POINTER],
}


class NvJpeg:
    """The library, opened for one device.

    Args:
        path: of the shared library.
        device: where the pixels are to lie.

    Raises:
        DeviceError: it cannot be loaded, or does not start.
    """

    def __init__(self, path: str, device: torch.device) -> None:
        self.device, self._lock = device, threading.Lock()
        try:
            self._library = ctypes.CDLL(path)
            for name, arguments in _FUNCTIONS.items():
                function = getattr(self._library, name)
                function.argtypes, function.restype = arguments, ctypes.c_int
        except (OSError, AttributeError) as error:
            raise DeviceError(explain('decoder="nvjpeg"', f"{path}, which cannot be used ({error})", "NVIDIA's libnvjpeg",
                                      _HELP)) from error
        self._handle, self._state = _POINTER(), _POINTER()
        with self._here():
            self._check("nvjpegCreateSimple", self._library.nvjpegCreateSimple(ctypes.byref(self._handle)))
            self._check("nvjpegJpegStateCreate", self._library.nvjpegJpegStateCreate(self._handle, ctypes.byref(self._state)))
        weakref.finalize(self, _close, self._library, self._handle, self._state).atexit = False  # the driver may be gone by then

    def decode(self, data: bytes) -> Tensor | None:
        """Decodes one JPEG, without waiting for the device.

        Returns:
            uint8 (H, W, 3) on the device, complete for what follows on its current stream; None for what the library does not read, and for
            a picture of more than `MAX_PIXELS` or of other than three colours.

        Raises:
            DeviceError: the library fails for a reason that is not the file's.
        """
        components, subsampling = ctypes.c_int(), ctypes.c_int()
        widths, heights = (ctypes.c_int * COMPONENTS)(), (ctypes.c_int * COMPONENTS)()
        with self._lock, self._here():
            status = self._library.nvjpegGetImageInfo(self._handle, data, len(data), ctypes.byref(components), ctypes.byref(subsampling),
                                                      widths, heights)
            width, height = int(widths[0]), int(heights[0])
            if not self._check("nvjpegGetImageInfo", status) or components.value != 3 or not 0 < width * height <= MAX_PIXELS:
                return None
            pixels = torch.empty((height, width, 3), dtype=torch.uint8, device=self.device)
            image = _Image()
            image.channel[0], image.pitch[0] = pixels.data_ptr(), 3 * width
            stream = torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else None
            status = self._library.nvjpegDecode(self._handle, self._state, data, len(data), INTERLEAVED_RGB, ctypes.byref(image), stream)
            return pixels if self._check("nvjpegDecode", status) else None

    def _here(self) -> Any:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    @staticmethod
    def _check(call: str, status: int) -> bool:
        """Returns whether a call succeeded; False where it is the file that it does not take."""
        if status and status not in LEFT_TO_OTHERS:
            raise DeviceError(explain(call, f"status {status} of nvJPEG", "0", 'decoder="cpu" decodes without it.'))
        return status == 0


def _close(library: Any, handle: Any, state: Any) -> None:
    library.nvjpegJpegStateDestroy(state)
    library.nvjpegDestroy(handle)


# -- where it is -----------------------------------------------------------------------------------------------------------

_HELP = 'Install it (pip install nvidia-nvjpeg, or nvidia-nvjpeg-cu12 for CUDA 12), set CUDA_HOME, or leave decoder="cpu".'


def library_path() -> str | None:
    """Returns the shared library: of NVIDIA's wheels, below CUDA_HOME or CUDA_PATH, or where the system has it; None without one."""
    spec = importlib.util.find_spec("nvidia")
    folders = [folder for root in (spec.submodule_search_locations or () if spec else ()) for folder in sorted(Path(root).glob("*/lib"))]
    folders += [Path(root) / "lib64" for name in ("CUDA_HOME", "CUDA_PATH") if (root := os.environ.get(name))]
    found = next((path for folder in folders for path in sorted(folder.glob("libnvjpeg.so*"))), None)
    return str(found) if found is not None else ctypes.util.find_library("nvjpeg")


def device() -> torch.device:
    """Returns the device that decodes.

    Raises:
        DeviceError: there is none.
    """
    if not torch.cuda.is_available():
        raise DeviceError(explain('decoder="nvjpeg"', "no CUDA device", "an NVIDIA GPU", 'Leave decoder="cpu".'))
    return torch.device("cuda", torch.cuda.current_device())


_open: dict[tuple[int, torch.device], NvJpeg] = {}


def on(place: torch.device) -> NvJpeg:
    """Returns the library for a device, opened once in each process.

    Raises:
        DeviceError: it is nowhere, or cannot be used.
    """
    key = (os.getpid(), place)
    if key not in _open:
        if (path := library_path()) is None:
            raise DeviceError(explain('decoder="nvjpeg"', "no libnvjpeg in NVIDIA's wheels, CUDA_HOME/lib64 or the system's libraries",
                                      "NVIDIA's library", _HELP))
        _open[key] = NvJpeg(path, place)
    return _open[key]


# -- what it does for pictures ---------------------------------------------------------------------------------------------


def check_decoder(decoder: str, pictures: Pictures) -> None:
    """Raises an error unless pictures can be decoded in this way here.

    Raises:
        ArgumentError: there is no such decoder, or it cannot give these colours or sizes.
        DeviceError: the GPU or the library is missing.
    """
    if decoder not in DECODERS:
        raise ArgumentError(explain("decoder", repr(decoder), f"one of {list(DECODERS)}"))
    if decoder == "cpu":
        return
    wanted = {"color_mode": "rgb"} | ({"interpolation": "bilinear", "fit": "stretch"} if pictures.image_size is not None else {})
    for name, value in wanted.items():
        if getattr(pictures, name) != value:
            raise ArgumentError(explain('decoder="nvjpeg"', f"{name}={getattr(pictures, name)!r}", f"{name}={value!r}",
                                        'decoder="cpu" takes any.'))
    on(device())


def takes(data: bytes) -> bool:
    """Whether a file is given to nvJPEG: a JPEG that ends as one, in YCbCr as far as it says so, without an EXIF rotation."""
    if not data.startswith(jpeg.START) or not data.rstrip(b"\0").endswith(END):
        return False
    adobe = data.find(ADOBE, 0, 2**16)
    if adobe >= 0 and data[adobe + len(ADOBE) + 6 : adobe + len(ADOBE) + 7] != bytes([ADOBE_YCBCR]):
        return False
    try:
        return not jpeg.has_exif(data) or turn_of(data) is None
    except Exception:  # Pillow raises a dozen kinds of errors for hostile bytes; the usual decoder tells which
        return False


def put(pictures: Pictures, index: int, given: bytes | np.ndarray, x: np.ndarray | Tensor, place: int) -> tuple[int, ...] | BadFile:
    """Writes a picture to x[place], if it has the right shape; returns its shape, or what is wrong with it.

    Args:
        pictures: whose picture it is.
        index: its number.
        given: its file, to be decoded on the GPU, or its pixels.
        x: uint8 (N, H, W, 3), on the host or on a device.
        place: in the batch.
    """
    target = torch.from_numpy(x) if isinstance(x, np.ndarray) else x
    pixels = None
    if isinstance(given, bytes):
        pixels = on(device() if target.device.type == "cpu" else target.device).decode(given)
        if pixels is not None and pictures.image_size is not None and tuple(pixels.shape[:2]) != tuple(pictures.image_size):
            pixels = _resized(pixels, pictures.image_size)
    if pixels is None:
        decoded = pictures._decode(index) if isinstance(given, bytes) else given
        if not isinstance(decoded, np.ndarray):
            return decoded
        pixels = torch.from_numpy(np.require(decoded, requirements="W"))
    if pixels.shape == target.shape[1:]:
        target[place].copy_(pixels)
    return tuple(pixels.shape)


def _resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns uint8 (H, W, 3) in another size by the filter of `kernels.resize`, in a few launches; within 1 of it."""
    planes = pixels.permute(2, 0, 1)[None].float()
    resized = functional.interpolate(planes, size, mode="bilinear", antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)[0].permute(1, 2, 0)


def empty(place: torch.device) -> Any:
    """Returns what makes uninitialised uint8 batches on a device."""
    return lambda shape: torch.empty(shape, dtype=torch.uint8, device=place)
