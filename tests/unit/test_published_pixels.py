"""The command line's models take RGB pixels 0 … 255, whoever published their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import convolt
from convolt import applications
from convolt.applications import imagenet_utils
from convolt.cli import starting
from convolt.layout import to_inside
from convolt.models import Model

SHAPE = (32, 32, 3)
PICTURES = np.random.default_rng(0).integers(0, 256, (2, *SHAPE)).astype("uint8")


def computed(model: Model, x: np.ndarray) -> np.ndarray:
    model.eval()
    with torch.no_grad():
        return model(to_inside(torch.from_numpy(np.ascontiguousarray(x)))).numpy()


def by_weights(name: str, path: Path, **options: Any) -> Model:
    return applications.get(name).make(SHAPE, 3, weights=str(path), **options)


def by_start(name: str, path: Path, **options: Any) -> Model:
    model = applications.get(name).make(SHAPE, 3, **options)
    starting.load_start(model, name, str(path))
    return model


SLOW = pytest.mark.slow


@pytest.mark.parametrize(("publisher", "load"), [
    ("keras", by_start), ("torchvision", by_weights), ("convolt", by_start), pytest.param("keras", by_weights, marks=SLOW),
    pytest.param("torchvision", by_start, marks=SLOW), pytest.param("convolt", by_weights, marks=SLOW),
])
def test_pixels_are_those_of_the_publisher(load: Any, publisher: str, tmp_path: Path) -> None:
    convolt.utils.set_random_seed(0)
    options: dict[str, Any] = {"stem": "small", "variant": "torch"} if publisher == "torchvision" else {"stem": "small"}
    network = applications.ResNet50(input_shape=SHAPE, classes=3, **options)
    path = tmp_path / {"keras": "resnet50.h5", "torchvision": "a.safetensors", "convolt": "b.safetensors"}[publisher]
    if publisher == "torchvision":
        table, own = applications.get("resnet50").torch.table(network), network.state_dict()
        save_file({str(theirs): own[name].contiguous() for name, theirs in table.items() if theirs}, path)
        seen = imagenet_utils.preprocess_input(PICTURES, mode="torch")
    else:
        network.save_weights(path)
        seen = imagenet_utils.preprocess_input(PICTURES, mode="caffe")
        seen = seen[..., ::-1] if publisher == "convolt" else seen
    model = load("resnet50", path, **options)
    np.testing.assert_allclose(computed(model, PICTURES), computed(network, seen), atol=1e-5)
    model.save(tmp_path / "whole.safetensors")
    again = convolt.load_model(tmp_path / "whole.safetensors", device="cpu")
    np.testing.assert_array_equal(computed(again, PICTURES), computed(model, PICTURES))


def test_two_publishers_of_one_network_have_two_ranges(tmp_path: Path) -> None:
    names = applications.get("vit_ti16").torch
    save_file({"pos_embed": torch.zeros(1)}, tmp_path / "timm.safetensors")
    save_file({"encoder.pos_embedding": torch.zeros(1)}, tmp_path / "torchvision.safetensors")
    assert names.pixels_of(tmp_path / "timm.safetensors") == "tf"
    assert names.pixels_of(tmp_path / "torchvision.safetensors") == "torch"
