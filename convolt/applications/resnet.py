"""ResNet, ResNeXt and Wide ResNet of the first kind: blocks whose sum is followed by ReLU.

Published in two variants, which differ in where a block halves the map and in what belongs to a convolution. "keras": in the first
convolution 1×1, with biases, as in Keras and in the paper. "torch": in the convolution 3×3, without biases, as in torchvision
("ResNet v1.5"). Weights of one do not fit the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import decode_predictions, preprocessing
from convolt.applications.variants import is_torch
from convolt.applications.weights import TorchNames
from convolt.layers.symbolic import SymbolicTensor

__all__ = ["ResNeXt50", "ResNeXt101", "ResNet18", "ResNet34", "ResNet50", "ResNet101", "ResNet152", "WideResNet50_2", "WideResNet101_2",
           "decode_predictions", "preprocess_input"]

PAPER = "He et al., https://arxiv.org/abs/1512.03385"
WIDE_PAPER = "Zagoruyko & Komodakis, https://arxiv.org/abs/1605.07146"
NEXT_PAPER = "Xie et al., https://arxiv.org/abs/1611.05431"

preprocess_input = preprocessing("caffe")


TORCH_NAMES = TorchNames(rules=[
    (r"conv1_conv\.(.*)", r"conv1.\1"), (r"conv1_bn\.(.*)", r"bn1.\1"), (r"predictions\.(.*)", r"fc.\1"),
    (r"conv(\d)_block(\d+)_0_conv\.(.*)", lambda m: f"layer{int(m[1]) - 1}.{int(m[2]) - 1}.downsample.0.{m[3]}"),
    (r"conv(\d)_block(\d+)_0_bn\.(.*)", lambda m: f"layer{int(m[1]) - 1}.{int(m[2]) - 1}.downsample.1.{m[3]}"),
    (r"conv(\d)_block(\d+)_(\d)_(conv|bn)\.(.*)", lambda m: f"layer{int(m[1]) - 1}.{int(m[2]) - 1}.{m[4]}{m[3]}.{m[5]}"),
], variant="torch")


@dataclass(frozen=True)
class Blocks:
    """How the convolutions of a network are made.

    Attributes:
        torch: whether as in torchvision, rather than in Keras.
        bottleneck: three convolutions in a block, rather than two.
        groups, base_width: of ResNeXt and Wide ResNet, as torchvision counts them.
    """

    torch: bool = True
    bottleneck: bool = True
    groups: int = 1
    base_width: int = 64

    def conv(self, x: SymbolicTensor, filters: int, size: int, stride: int, name: str, groups: int = 1) -> SymbolicTensor:
        """Returns a convolution and its normalization; a stride meets the same pixels as PyTorch's symmetric padding."""
        if size > 1 and stride > 1:
            x = layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
        x = layers.Conv2D(filters, size, stride, "same" if stride == 1 else "valid", groups=groups, use_bias=not self.torch,
                          kernel_initializer="he_normal" if self.torch else "glorot_uniform", name=f"{name}_conv")(x)
        return self.norm(x, f"{name}_bn")

    def norm(self, x: SymbolicTensor, name: str) -> SymbolicTensor:
        """Returns the batch normalization of the variant."""
        momentum, epsilon = (0.9, 1e-5) if self.torch else (0.99, 1.001e-5)
        return layers.BatchNormalization(momentum=momentum, epsilon=epsilon, name=name)(x)  # type: ignore[no-any-return]

    def block(self, x: SymbolicTensor, filters: int, stride: int, name: str) -> SymbolicTensor:
        """Returns relu(shortcut(x) + convolutions(x))."""
        out = 4 * filters if self.bottleneck else filters
        shortcut = self.conv(x, out, 1, stride, f"{name}_0") if stride > 1 or x.shape[-1] != out else x
        if self.bottleneck:
            width = filters * self.base_width // 64 * self.groups
            parts = [(width, 1, 1 if self.torch else stride, 1), (width, 3, stride if self.torch else 1, self.groups), (out, 1, 1, 1)]
        else:
            parts = [(out, 3, stride, 1), (out, 3, 1, 1)]
        for i, (count, size, step, groups) in enumerate(parts, start=1):
            x = self.conv(x, count, size, step, f"{name}_{i}", groups)
            if i < len(parts):
                x = layers.Activation("relu", name=f"{name}_{i}_relu")(x)
        x = layers.Add(name=f"{name}_add")([shortcut, x])
        return layers.Activation("relu", name=f"{name}_out")(x)  # type: ignore[no-any-return]


def _resnet(frame: Frame, blocks: Blocks, counts: Sequence[int], who: str, stem: str) -> SymbolicTensor:
    """Returns the network: stem, four stages whose maps halve, classifier."""
    if frame.is_small(who, stem):
        x = blocks.conv(frame.x, 64, 3, 1, "conv1")
        x = layers.Activation("relu", name="conv1_relu")(x)
    else:
        x = blocks.conv(frame.x, 64, 7, 2, "conv1")
        x = layers.Activation("relu", name="conv1_relu")(x)
        x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
        x = layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)
    for stage, count in enumerate(counts, start=2):
        for i in range(1, count + 1):
            stride = 2 if i == 1 and stage > 2 else 1
            x = blocks.block(x, 64 << (stage - 2), stride, f"conv{stage}_block{i}")
    return frame.top(x)


@architecture("resnet18", family="ResNet", source=f"{PAPER}; torchvision", torch=TORCH_NAMES)
def ResNet18(frame: Frame, *, stem: str = "large") -> SymbolicTensor:  # noqa: N802 (as Keras writes names)
    """ResNet with 8 blocks of two convolutions, as in torchvision. `stem` is "large", "small" (for 32×32) or "auto"."""
    return _resnet(frame, Blocks(bottleneck=False), (2, 2, 2, 2), "ResNet18", stem)


@architecture("resnet34", family="ResNet", source=f"{PAPER}; torchvision", torch=TORCH_NAMES)
def ResNet34(frame: Frame, *, stem: str = "large") -> SymbolicTensor:  # noqa: N802
    """ResNet with 16 blocks of two convolutions, as in torchvision. `stem` is "large", "small" (for 32×32) or "auto"."""
    return _resnet(frame, Blocks(bottleneck=False), (3, 4, 6, 3), "ResNet34", stem)


@architecture("resnet50", family="ResNet", source=f"{PAPER}; Keras, torchvision", pixels="caffe", torch=TORCH_NAMES)
def ResNet50(frame: Frame, *, variant: str = "keras", stem: str = "large") -> SymbolicTensor:  # noqa: N802
    """ResNet with 16 blocks of three convolutions. Keras counterpart: `keras.applications.ResNet50`.

    `variant` is "keras" or "torch", `stem` "large", "small" (for 32×32) or "auto".
    """
    return _resnet(frame, Blocks(is_torch("ResNet50", variant)), (3, 4, 6, 3), "ResNet50", stem)


@architecture("resnet101", family="ResNet", source=f"{PAPER}; Keras, torchvision", pixels="caffe", torch=TORCH_NAMES)
def ResNet101(frame: Frame, *, variant: str = "keras", stem: str = "large") -> SymbolicTensor:  # noqa: N802
    """ResNet with 33 blocks. Keras counterpart: `keras.applications.ResNet101`; arguments as in `ResNet50`."""
    return _resnet(frame, Blocks(is_torch("ResNet101", variant)), (3, 4, 23, 3), "ResNet101", stem)


@architecture("resnet152", family="ResNet", source=f"{PAPER}; Keras, torchvision", pixels="caffe", torch=TORCH_NAMES)
def ResNet152(frame: Frame, *, variant: str = "keras", stem: str = "large") -> SymbolicTensor:  # noqa: N802
    """ResNet with 50 blocks. Keras counterpart: `keras.applications.ResNet152`; arguments as in `ResNet50`."""
    return _resnet(frame, Blocks(is_torch("ResNet152", variant)), (3, 8, 36, 3), "ResNet152", stem)


@architecture("resnext50", family="ResNeXt", source=f"{NEXT_PAPER}; torchvision (32x4d)", torch=TORCH_NAMES)
def ResNeXt50(frame: Frame, *, stem: str = "large") -> SymbolicTensor:  # noqa: N802
    """ResNet-50 with convolutions in 32 groups of 4 channels; `resnext50_32x4d` in torchvision."""
    return _resnet(frame, Blocks(groups=32, base_width=4), (3, 4, 6, 3), "ResNeXt50", stem)


@architecture("resnext101", family="ResNeXt", source=f"{NEXT_PAPER}; torchvision (32x8d)", torch=TORCH_NAMES)
def ResNeXt101(frame: Frame, *, stem: str = "large") -> SymbolicTensor:  # noqa: N802
    """ResNet-101 with convolutions in 32 groups of 8 channels; `resnext101_32x8d` in torchvision."""
    return _resnet(frame, Blocks(groups=32, base_width=8), (3, 4, 23, 3), "ResNeXt101", stem)


@architecture("wide_resnet50_2", family="Wide ResNet", source=f"{WIDE_PAPER}; torchvision", torch=TORCH_NAMES)
def WideResNet50_2(frame: Frame, *, stem: str = "large") -> SymbolicTensor:  # noqa: N802
    """ResNet-50 with convolutions 3×3 of twice as many channels; `wide_resnet50_2` in torchvision."""
    return _resnet(frame, Blocks(base_width=128), (3, 4, 6, 3), "WideResNet50_2", stem)


@architecture("wide_resnet101_2", family="Wide ResNet", source=f"{WIDE_PAPER}; torchvision", torch=TORCH_NAMES)
def WideResNet101_2(frame: Frame, *, stem: str = "large") -> SymbolicTensor:  # noqa: N802
    """ResNet-101 with convolutions 3×3 of twice as many channels; `wide_resnet101_2` in torchvision."""
    return _resnet(frame, Blocks(base_width=128), (3, 4, 23, 3), "WideResNet101_2", stem)
