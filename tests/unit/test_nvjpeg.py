"""The binding of nvJPEG, against a shared library with its C interface that the test compiles: it draws what the pictures' size tells.

The stand-in checks what it is given as the real one would read it (handles, pitch, format, length), so a wrong prototype fails here. That
the pixels of the real library are right is for `tests/gpu/test_nvjpeg.py`.
"""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import convolt
from convolt import layers
from convolt.cli.main import main
from convolt.data import ImageFolder, from_csv, nvjpeg
from convolt.data.decode import decode_image
from convolt.data.pack_write import write_pack
from convolt.errors import ArgumentError, DataError, DeviceError
from tests.unit.pictures import encode

CC = shutil.which("cc")
pytestmark = pytest.mark.skipif(CC is None, reason="needs a C compiler")

SOURCE = r"""
#include <stddef.h>
#include <string.h>
typedef struct { unsigned char *channel[4]; size_t pitch[4]; } nvjpegImage_t;
static int handle_magic = 17, state_magic = 23;
int open_handles = 0, open_states = 0, decoded = 0, fail_with = 0;

int nvjpegCreateSimple(void **handle) { *handle = &handle_magic; open_handles++; return 0; }
int nvjpegDestroy(void *handle) { open_handles--; return handle != &handle_magic; }
int nvjpegJpegStateCreate(void *handle, void **state) { *state = &state_magic; open_states++; return handle != &handle_magic; }
int nvjpegJpegStateDestroy(void *state) { open_states--; return state != &state_magic; }

/* the size and the components that the frame's header says; 3 is NVJPEG_STATUS_BAD_JPEG, 4 is NVJPEG_STATUS_JPEG_NOT_SUPPORTED */
int nvjpegGetImageInfo(void *handle, const unsigned char *data, size_t length, int *components, int *subsampling, int *widths,
                       int *heights) {
  if (handle != &handle_magic) return 2;
  for (size_t at = 2; at + 9 < length && data[at] == 0xFF; at += 2 + 256 * data[at + 2] + data[at + 3]) {
    if (data[at + 1] == 0xC2) return 4;
    if (data[at + 1] != 0xC0) continue;
    heights[0] = 256 * data[at + 5] + data[at + 6];
    widths[0] = 256 * data[at + 7] + data[at + 8];
    *components = data[at + 9];
    *subsampling = 0;
    return 0;
  }
  return 3;
}

/* pixel (y, x) is (y, x, 200) */
int nvjpegDecode(void *handle, void *state, const unsigned char *data, size_t length, int format, nvjpegImage_t *image, void *stream) {
  int components, subsampling, widths[4], heights[4];
  if (handle != &handle_magic || state != &state_magic || format != 5 || stream != NULL) return 2;
  if (fail_with) return fail_with;
  int status = nvjpegGetImageInfo(handle, data, length, &components, &subsampling, widths, heights);
  if (status) return status;
  if (image->pitch[0] != 3 * (size_t)widths[0] || image->channel[1] || image->channel[3] || image->pitch[3]) return 2;
  if (data[length - 2] != 0xFF || data[length - 1] != 0xD9) return 10;
  for (int y = 0; y < heights[0]; y++)
    for (int x = 0; x < widths[0]; x++) {
      unsigned char *pixel = image->channel[0] + y * image->pitch[0] + 3 * x;
      pixel[0] = y; pixel[1] = x; pixel[2] = 200;
    }
  decoded++;
  return 0;
}
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nvjpeg")
    (folder / "stand_in.c").write_text(SOURCE)
    path = folder / "libnvjpeg.so"
    subprocess.run([CC, "-shared", "-fPIC", "-o", path, folder / "stand_in.c"], check=True)
    return str(path)


@pytest.fixture
def stand_in(library, monkeypatch):
    """The stand-in in the place of the library, and the CPU in that of the GPU; returns its counters."""
    monkeypatch.setattr(nvjpeg, "library_path", lambda: library)
    monkeypatch.setattr(nvjpeg, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(nvjpeg, "_open", {})
    counters = nvjpeg.ctypes.CDLL(library)

    def counter(name):
        return nvjpeg.ctypes.c_int.in_dll(counters, name)

    counter("decoded").value = counter("fail_with").value = 0
    return counter


def drawn(height, width):
    """What the stand-in gives for a picture of this size."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, np.full_like(y, 200)], -1).astype(np.uint8)


def jpeg(height=20, width=24, mode="RGB", n=0, **options):
    channels = {"RGB": 3, "L": 1, "CMYK": 4}[mode]
    pixels = np.random.default_rng(n).integers(0, 256, (height, width, channels), np.uint8)
    return encode(Image.fromarray(pixels.squeeze(), mode), "JPEG", **options)


def test_a_jpeg(library):
    opened = nvjpeg.NvJpeg(library, torch.device("cpu"))
    pixels = opened.decode(jpeg(20, 24))
    assert pixels.dtype == torch.uint8
    np.testing.assert_array_equal(pixels.numpy(), drawn(20, 24))


def test_handles_are_given_back(library, stand_in):
    before = stand_in("open_handles").value, stand_in("open_states").value
    opened = nvjpeg.NvJpeg(library, torch.device("cpu"))
    assert (stand_in("open_handles").value, stand_in("open_states").value) == (before[0] + 1, before[1] + 1)
    del opened
    assert (stand_in("open_handles").value, stand_in("open_states").value) == before


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(20, 24, exif=exif)


OTHERS = {"grey": jpeg(mode="L"), "CMYK": jpeg(mode="CMYK"), "progressive": jpeg(progressive=True), "turned": turned(),
          "RGB": jpeg(keep_rgb=True), "PNG": encode(Image.fromarray(drawn(20, 24)))}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_it_does_not_take_is_decoded_as_usual(kind, stand_in, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.jpg").write_bytes(OTHERS[kind])
    x, _ = ImageFolder(tmp_path, decoder="nvjpeg").load()
    np.testing.assert_array_equal(x[0], decode_image(OTHERS[kind]))
    assert stand_in("decoded").value == 0


def test_damaged_files_are_left_out_as_usual(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr("convolt.data.pictures.MAX_BAD_SHARE", 0.8)
    whole = jpeg()
    files = {"cut": whole[: len(whole) // 2], "empty": b"", "page": b"<html>no</html>", "whole": whole, "other": jpeg(n=1), "gone": whole}
    (tmp_path / "a").mkdir()
    for name, content in files.items():
        (tmp_path / "a" / f"{name}.jpg").write_bytes(content)
    found = []
    for decoder in ("cpu", "nvjpeg"):
        pictures = ImageFolder(tmp_path, decoder=decoder)
        if decoder == "nvjpeg":
            (tmp_path / "a" / "gone.jpg").unlink()
        with pytest.warns(convolt.data.SkippedFilesWarning, match="files left out"):
            x, _ = pictures.load()
        found.append([(bad.path, bad.reason) for bad in pictures.bad])
    np.testing.assert_array_equal(x, [drawn(20, 24)] * 2)
    assert found[0] == [entry for entry in found[1] if entry[0] != "a/gone.jpg"] and len(found[0]) == 3 and len(found[1]) == 4


def test_sizes(stand_in, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.jpg").write_bytes(jpeg(40, 60))
    (tmp_path / "a" / "1.jpg").write_bytes(jpeg(10, 15))
    x, _ = ImageFolder(tmp_path, (20, 30), decoder="nvjpeg").load()
    for picture, size in zip(x, ((40, 60), (10, 15)), strict=True):
        wanted = np.asarray(Image.fromarray(drawn(*size)).resize((30, 20), Image.Resampling.BILINEAR), np.int16)
        assert abs(picture - wanted).max() <= 1
    with pytest.raises(DataError, match=r"40×60 pixels and a/1\.jpg with 10×15"):
        ImageFolder(tmp_path, decoder="nvjpeg").load()


def test_failures_of_the_machine_are_told(library, stand_in):
    opened = nvjpeg.NvJpeg(library, torch.device("cpu"))
    stand_in("fail_with").value = 6
    with pytest.raises(DeviceError, match="nvjpegDecode: got status 6 of nvJPEG"):
        opened.decode(jpeg())


def test_what_is_missing_is_told(library, stand_in, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.jpg").write_bytes(jpeg())
    for options, message in (({"decoder": "gpu"}, r"decoder: got 'gpu'; expected one of \['cpu', 'nvjpeg'\]"),
                             ({"decoder": "nvjpeg", "color_mode": "grayscale"}, "color_mode='grayscale'; expected color_mode='rgb'"),
                             ({"decoder": "nvjpeg", "image_size": (8, 8), "fit": "crop"}, "fit='crop'")):
        with pytest.raises(ArgumentError, match=message):
            ImageFolder(tmp_path, **options)
    with pytest.raises(ArgumentError, match="pixels that every machine decodes"):
        write_pack(tmp_path / "a.pack", {"train": ImageFolder(tmp_path, decoder="nvjpeg")})
    monkeypatch.setattr(nvjpeg, "_open", {})
    monkeypatch.setattr(nvjpeg, "library_path", lambda: str(Path(library).with_name("stand_in.c")))
    with pytest.raises(DeviceError, match="which cannot be used"):
        ImageFolder(tmp_path, decoder="nvjpeg")
    monkeypatch.setattr(nvjpeg, "library_path", lambda: None)
    with pytest.raises(DeviceError, match=r"got no libnvjpeg in NVIDIA's wheels.*pip install nvidia-nvjpeg"):
        ImageFolder(tmp_path, decoder="nvjpeg")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_told(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.jpg").write_bytes(jpeg())
    with pytest.raises(DeviceError, match='decoder="nvjpeg": got no CUDA device; expected an NVIDIA GPU'):
        ImageFolder(tmp_path, decoder="nvjpeg")
    assert main(["train", "cnn", "--data", str(tmp_path), "--decoder", "nvjpeg"]) == 1
    assert "no CUDA device" in capsys.readouterr().err


def test_where_the_library_is_looked_for(library, tmp_path, monkeypatch):
    monkeypatch.setattr(nvjpeg.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(nvjpeg.ctypes.util, "find_library", lambda name: f"lib{name}.so.12")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    assert nvjpeg.library_path() == "libnvjpeg.so.12"
    (tmp_path / "cuda" / "lib64").mkdir(parents=True)
    shutil.copy(library, tmp_path / "cuda" / "lib64" / "libnvjpeg.so.13")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    assert nvjpeg.library_path() == str(tmp_path / "cuda" / "lib64" / "libnvjpeg.so.13")
    wheel = tmp_path / "site" / "nvidia" / "nvjpeg" / "lib"
    wheel.mkdir(parents=True)
    shutil.copy(library, wheel / "libnvjpeg.so.12")
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path / "site" / "nvidia")]})
    monkeypatch.setattr(nvjpeg.importlib.util, "find_spec", lambda name: spec)
    assert nvjpeg.library_path() == str(wheel / "libnvjpeg.so.12")
    assert nvjpeg.NvJpeg(nvjpeg.library_path(), torch.device("cpu")).decode(jpeg()) is not None


@pytest.fixture
def pets(tmp_path):
    for label in (0, 1):
        (tmp_path / "pets" / "ab"[label]).mkdir(parents=True)
        for n in range(20):
            (tmp_path / "pets" / "ab"[label] / f"{n}.jpg").write_bytes(jpeg(20, 24, n=n))
    return tmp_path / "pets"


@pytest.mark.parametrize("memory", ["1GB", "1"])
def test_a_training_sees_what_the_library_gives(memory, pets, stand_in, monkeypatch):
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
    results = []
    for data in ((np.stack([drawn(20, 24)] * 40), np.repeat([0, 1], 20)), (ImageFolder(pets, decoder="nvjpeg"), None)):
        convolt.utils.set_random_seed(0)
        model = convolt.Sequential([layers.Input((20, 24, 3)), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(2, "softmax")])
        model.compile("sgd", "sparse_categorical_crossentropy", device="cpu", precision="float32")
        model.fit(*data, epochs=2, batch_size=16, augment="flip", seed=1, verbose=0)
        results.append([w.tobytes() for w in model.get_weights()])
    assert results[0] == results[1]
    assert stand_in("decoded").value >= 40
    if memory == "1":
        assert model.trainer.plan.residency == "streamed" and "JPEGs decoded by nvJPEG" in model.trainer.plan.describe()


def test_the_command_line(pets, stand_in, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(f"train cnn --data {pets} --decoder nvjpeg --epochs 1 --device cpu --name n --verbose 0".split()) == 0
    assert stand_in("decoded").value >= 40
    assert "--decoder nvjpeg" in Path("runs/n/command.txt").read_text() and '"decoder": "nvjpeg"' in Path("runs/n/config.json").read_text()
    assert main(f"evaluate runs/n/model.safetensors --data {pets} --decoder nvjpeg --device cpu --verbose 0".split()) == 0
    assert stand_in("decoded").value >= 80
    assert main(["train", "--resume", "runs/n", "--verbose", "0"]) == 0
    assert ImageFolder(pets).fingerprint() != ImageFolder(pets, decoder="nvjpeg").fingerprint()


def test_a_table(pets, stand_in):
    rows = "".join(f"a/{n}.jpg,a\n" for n in range(3)) + "b/1.jpg,b\n"
    (pets / "table.csv").write_text("path,label\n" + rows)
    x, _ = from_csv(pets / "table.csv", decoder="nvjpeg").load()
    np.testing.assert_array_equal(x, [drawn(20, 24)] * 4)
