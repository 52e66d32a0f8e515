"""Inception-ResNet v2: blocks of Inception whose result, scaled down, is added to their input."""

from __future__ import annotations

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import decode_predictions, preprocessing
from convolt.applications.inception_v3 import Branch, chain, convolution, mixed, reduced, stem
from convolt.layers.symbolic import SymbolicTensor

__all__ = ["InceptionResNetV2", "decode_predictions", "preprocess_input"]

BLOCKS: dict[str, tuple[Branch, ...]] = {
    "block35": ([(32, 1)], [(32, 1), (32, 3)], [(32, 1), (48, 3), (64, 3)]),
    "block17": ([(192, 1)], [(128, 1), (160, (1, 7)), (192, (7, 1))]),
    "block8": ([(192, 1)], [(192, 1), (224, (1, 3)), (256, (3, 1))]),
}

preprocess_input = preprocessing("tf")


def _residual(x: SymbolicTensor, kind: str, index: int, scale: float, relu: bool = True) -> SymbolicTensor:
    name = f"{kind}_{index}"
    y = layers.Concatenate(name=f"{name}_mixed")([chain(x, branch) for branch in BLOCKS[kind]])
    y = layers.Conv2D(x.shape[-1], 1, padding="same", name=f"{name}_conv")(y)  # type: ignore[arg-type]
    x = x + scale * y
    return layers.Activation("relu", name=f"{name}_ac")(x) if relu else x


@architecture("inception_resnet_v2", family="Inception", size=299, smallest=75, pixels="tf",
              source="Szegedy et al. 2016, https://arxiv.org/abs/1602.07261")
def InceptionResNetV2(frame: Frame) -> SymbolicTensor:  # noqa: N802 (Keras's name)
    """Inception-ResNet v2. Keras counterpart: `keras.applications.InceptionResNetV2`."""
    x = mixed(stem(frame.x), "mixed_5b", [[(96, 1)], [(48, 1), (64, 5)], [(64, 1), (96, 3), (96, 3)]], 64)
    for i in range(1, 11):
        x = _residual(x, "block35", i, 0.17)
    x = reduced(x, "mixed_6a", [[(384, 3)], [(256, 1), (256, 3), (384, 3)]])
    for i in range(1, 21):
        x = _residual(x, "block17", i, 0.1)
    x = reduced(x, "mixed_7a", [[(256, 1), (384, 3)], [(256, 1), (288, 3)], [(256, 1), (288, 3), (320, 3)]])
    for i in range(1, 10):
        x = _residual(x, "block8", i, 0.2)
    x = _residual(x, "block8", 10, 1.0, relu=False)
    return frame.top(convolution(x, 1536, 1, name="conv_7b"))
