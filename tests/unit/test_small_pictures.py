"""Stems and patches for pictures of 32×32: what they change, what they leave, and when they are chosen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from convolt import applications
from convolt.errors import ArgumentError
from convolt.layout import to_inside
from convolt.models import Model

WITH_STEM = [name for name in applications.names() if "stem" in applications.get(name).options]
SMALL_ENDS = {"convnext": 2}
"""Part of a name → side of the last map of a 32×32 picture, where it is not 4."""
OTHER_WEIGHTS = ("resn", "wide_resnet", "densenet", "convnext", "googlenet")
"""Where the first convolution has another size; elsewhere only strides change."""
QUICK = ("resnet18", "resnet50", "resnet50v2", "resnext50", "wide_resnet50_2", "densenet121", "mobilenet", "mobilenet_v2",
         "mobilenet_v3_small", "efficientnetb0", "efficientnetv2-b0", "convnext_tiny", "googlenet")
"""One or two of each family and each kind of block; the others, which have more of the same blocks, in the slow tests."""


def features(name: str, **arguments: object) -> Model:
    with torch.device("meta"):
        return applications.get(name).function(include_top=False, input_shape=(32, 32, 3), **arguments)


def shapes(model: Model) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def test_the_families_that_have_one() -> None:
    """Others are for small pictures anyway, have no such picture (Inception, Xception: 71 and more), or let a map of one pixel be (VGG)."""
    families = {applications.get(name).family for name in WITH_STEM}
    assert families == {"ResNet", "ResNet V2", "ResNeXt", "Wide ResNet", "DenseNet", "MobileNet", "EfficientNet", "EfficientNet v2",
                        "ConvNeXt", "Inception"}
    assert [n for n in WITH_STEM if applications.get(n).family == "Inception"] == ["googlenet"]
    assert {applications.get(name).family for name in QUICK} == families
    assert all(applications.get(name).options["stem"] == "large" for name in WITH_STEM), "as in Keras, unless another is asked for"


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in WITH_STEM])
def test_a_small_stem_leaves_more_of_the_picture_and_the_same_weights_but_for_the_first(name: str) -> None:
    large, small = features(name), features(name, stem="small")
    side = next((side for part, side in SMALL_ENDS.items() if part in name), 4)
    assert large.outputs[0].shape[1:3] == (1, 1) and small.outputs[0].shape[1:3] == (side, side)
    first, other = shapes(large), shapes(small)
    assert first.keys() == other.keys()
    different = [key for key in first if first[key] != other[key]]
    assert len(different) == (1 if name.startswith(OTHER_WEIGHTS) else 0), different
    assert shapes(features(name, stem="auto")) == other


@pytest.mark.parametrize("name", ["densenet121", "mobilenet", "mobilenet_v3_small", "efficientnetb0", "googlenet"])
def test_a_small_stem_learns(name: str) -> None:
    model = applications.get(name).make((32, 32, 3), 5)
    assert model.layers[-1].name in ("predictions", "probabilities")
    x = to_inside(torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")))
    y = model.eval()(x)
    assert y.shape == (2, 5) and y.isfinite().all()
    (y[:, 0] - y[:, 1]).sum().backward()
    silent = [key for key, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not silent


@pytest.mark.parametrize(("name", "shape", "expected"), [
    ("resnet18", (32, 32, 3), {"stem": "small"}), ("mobilenet_v2", (63, 200, 3), {"stem": "small"}), ("mobilenet_v2", (64, 64, 3), {}),
    ("vit_ti16", (32, 32, 3), {"patch_size": 4}), ("vit_b32", (64, 64, 3), {"patch_size": 8}), ("vit_ti16", (65, 65, 3), {}),
    ("vgg16", (32, 32, 3), {}), ("cnn", (8, 8, 1), {}),
])  # fmt: skip
def test_the_size_of_the_pictures_decides(name: str, shape: tuple[int, ...], expected: dict[str, object]) -> None:
    assert applications.get(name).fitted(shape) == expected


def test_what_is_said_takes_the_place_of_the_rule() -> None:
    entry = applications.get("vit_ti16")
    with torch.device("meta"):
        assert entry.make((32, 32, 3), 4).get_layer("sequence").compute_output_shape((None, 8, 8, 192)) == (None, 64, 192)
        assert entry.make((32, 32, 3), 4, patch_size=16).get_layer("positions").weight.shape == (5, 192)
        large = applications.get("mobilenet").make((32, 32, 3), 4, stem="large")
    assert large.get_layer("conv1").strides == (2, 2)
    with pytest.raises(ArgumentError, match=r"MobileNetV2\(stem\): got 'tiny'; expected 'large', 'small' or 'auto'"):
        applications.MobileNetV2(stem="tiny")
