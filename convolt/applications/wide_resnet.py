"""Wide ResNet for pictures of 32×32 pixels: few, wide blocks with normalization before the convolutions."""

from __future__ import annotations

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import preprocessing
from convolt.applications.weights import TorchNames
from convolt.layers.symbolic import SymbolicTensor

__all__ = ["WideResNet28_10", "preprocess_input"]

preprocess_input = preprocessing("torch")

TORCH_NAMES = TorchNames(rules=[
    (r"conv1\.(.*)", r"conv1.\1"), (r"post_bn\.(.*)", r"bn1.\1"), (r"predictions\.(.*)", r"fc.\1"),
    (r"group(\d)_block(\d+)_0_conv\.(.*)", lambda m: f"block{m[1]}.layer.{int(m[2]) - 1}.convShortcut.{m[3]}"),
    (r"group(\d)_block(\d+)_(\d)_(conv|bn)\.(.*)", lambda m: f"block{m[1]}.layer.{int(m[2]) - 1}.{m[4]}{m[3]}.{m[5]}"),
], title="WideResNet-pytorch")


def _conv(x: SymbolicTensor, filters: int, size: int, stride: int, name: str) -> SymbolicTensor:
    if stride > 1 and size > 1:
        x = layers.ZeroPadding2D(size // 2, name=f"{name.removesuffix('_conv')}_pad")(x)
    return layers.Conv2D(filters, size, stride, "same" if stride == 1 else "valid", use_bias=False,  # type: ignore[no-any-return]
                         kernel_initializer="he_normal", name=name)(x)


def _norm_relu(x: SymbolicTensor, name: str) -> SymbolicTensor:
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
    return layers.Activation("relu", name=f"{name}_relu")(x)  # type: ignore[no-any-return]


def _block(x: SymbolicTensor, filters: int, stride: int, dropout: float, name: str) -> SymbolicTensor:
    before = _norm_relu(x, f"{name}_1")
    shortcut = x if x.shape[-1] == filters else _conv(before, filters, 1, stride, f"{name}_0_conv")
    x = _norm_relu(_conv(before, filters, 3, stride, f"{name}_1_conv"), f"{name}_2")
    if dropout > 0:
        x = layers.Dropout(dropout, name=f"{name}_dropout")(x)
    return layers.Add(name=f"{name}_add")([shortcut, _conv(x, filters, 3, 1, f"{name}_2_conv")])  # type: ignore[no-any-return]


@architecture("wide_resnet28_10", family="Wide ResNet", size=32, smallest=16, classes=10, torch=TORCH_NAMES,
              source="Zagoruyko & Komodakis, https://arxiv.org/abs/1605.07146")
def WideResNet28_10(frame: Frame, *, dropout: float = 0.0) -> SymbolicTensor:  # noqa: N802 (as Keras writes names)
    """WRN-28-10 for CIFAR: three groups of four blocks, 160, 320 and 640 channels. `dropout` lies between a block's convolutions."""
    x = _conv(frame.x, 16, 3, 1, "conv1")
    for group, filters in enumerate((160, 320, 640), start=1):
        for i in range(1, 5):
            x = _block(x, filters, 2 if group > 1 and i == 1 else 1, dropout, f"group{group}_block{i}")
    return frame.top(_norm_relu(x, "post"))
