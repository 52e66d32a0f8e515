"""The real nvJPEG on a real GPU: its pixels are close to libjpeg-turbo's, and a training runs on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import convolt
from convolt import layers
from convolt.data import ImageFolder, nvjpeg
from convolt.data.decode import decode_image
from tests.unit.pictures import encode

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
              pytest.mark.skipif(nvjpeg.library_path() is None, reason="needs libnvjpeg (pip install nvidia-nvjpeg)")]
LEVELS = 8
"""By which a pixel may differ, beside the edges of colours whose planes are smaller (4:2:0)."""


def smooth(n: int, height: int = 48, width: int = 64) -> Image.Image:
    few = np.random.default_rng(n).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"subsampling": 2, "progressive": True}], ids=str)
def test_pixels_are_those_of_the_usual_decoder_within_a_few_levels(options: Any) -> None:
    data = encode(smooth(0, 61, 83), "JPEG", quality=95, **options)
    pixels = nvjpeg.on(nvjpeg.device()).decode(data)
    if pixels is None:
        assert "progressive" in options, "baseline JPEGs are what it reads"
        return
    off = abs(pixels.cpu().numpy().astype(int) - decode_image(data))
    assert pixels.is_cuda and pixels.shape == (61, 83, 3)
    assert off.mean() < 2 and np.quantile(off, 0.99) <= LEVELS


@pytest.mark.parametrize("memory", ["1GB", "1"])
def test_a_training_takes_them(memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVOLT_DATA_MEMORY", memory)
    for n in range(64):
        (tmp_path / "ab"[n % 2]).mkdir(exist_ok=True)
        (tmp_path / "ab"[n % 2] / f"{n}.jpg").write_bytes(encode(smooth(n), "JPEG", quality=95))
    (tmp_path / "a" / "grey.jpg").write_bytes(encode(smooth(99).convert("L"), "JPEG"))
    folder = ImageFolder(tmp_path, (32, 32), decoder="nvjpeg")
    x, _ = folder.load()
    off = abs(x.astype(int) - ImageFolder(tmp_path, (32, 32)).load()[0])
    assert off.mean() < 2 and np.quantile(off, 0.99) <= LEVELS
    model = convolt.Sequential([layers.Input((32, 32, 3)), layers.Rescaling(1 / 255), layers.Conv2D(8, 3, activation="relu"),
                                layers.GlobalAveragePooling2D(), layers.Dense(2, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"], device="cuda")
    history = model.fit(folder, epochs=3, batch_size=16, augment="flip", verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert model.trainer.plan.residency == ("resident" if memory == "1GB" else "streamed")
