"""U-Net: a network of pictures to maps of classes, one value per pixel and class."""

from __future__ import annotations

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import preprocessing
from convolt.applications.weights import TorchNames
from convolt.errors import ShapeError, explain
from convolt.layers.arguments import check_positive
from convolt.layers.symbolic import SymbolicTensor

__all__ = ["UNet", "preprocess_input"]

preprocess_input = preprocessing("tf")

PARTS = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4}
"""Where the parts of two convolutions stand in Pytorch-UNet's `double_conv`."""

TORCH_NAMES = TorchNames(rules=[
    (r"down0_(conv\d|bn\d)\.(.*)", lambda m: f"inc.double_conv.{PARTS[m[1]]}.{m[2]}"),
    (r"down(\d)_(conv\d|bn\d)\.(.*)", lambda m: f"down{m[1]}.maxpool_conv.1.double_conv.{PARTS[m[2]]}.{m[3]}"),
    (r"up(\d)_(conv\d|bn\d)\.(.*)", lambda m: f"up{4 - int(m[1])}.conv.double_conv.{PARTS[m[2]]}.{m[3]}"),
    (r"up(\d)_up\.(.*)", lambda m: f"up{4 - int(m[1])}.up.{m[2]}"), (r"predictions\.(.*)", r"outc.conv.\1"),
], title="Pytorch-UNet", pixels="unit", head=r"outc\..*")


def _double(x: SymbolicTensor, filters: int, name: str) -> SymbolicTensor:
    for i in (1, 2):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"{name}_conv{i}")(x)
        x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn{i}")(x)
        x = layers.Activation("relu", name=f"{name}_relu{i}")(x)
    return x


@architecture("unet", family="U-Net", size=256, smallest=16, classes=2, pixels="tf", torch=TORCH_NAMES,
              source="Ronneberger et al., https://arxiv.org/abs/1505.04597; Pytorch-UNet")
def UNet(frame: Frame, *, filters: int = 64, depth: int = 4) -> SymbolicTensor:  # noqa: N802 (as Keras writes names)
    """U-Net with padded convolutions and batch normalization, so that the map of classes has the picture's size.

    Args:
        frame: input and end. Without a top the output are the features of each pixel.
        filters: of the first level; each next has twice as many.
        depth: how often maps halve; height and width are multiples of 2 to this power.

    Raises:
        ShapeError: the picture's sides are no such multiples.

    The output is (batch, height, width, classes), with the activation over the classes.
    """
    check_positive("UNet", "filters", filters)
    multiple = 2 ** check_positive("UNet", "depth", depth)
    if any(side is not None and side % multiple for side in frame.x.shape[1:3]):
        raise ShapeError(explain("UNet(input_shape)", str(frame.x.shape[1:]), f"height and width that {multiple} divides",
                                 "Pad or crop the pictures."))
    x, skips = frame.x, []
    for level in range(depth):
        x = _double(x, filters << level, f"down{level}")
        skips.append(x)
        x = layers.MaxPooling2D(2, name=f"down{level}_pool")(x)
    x = _double(x, filters << depth, f"down{depth}")
    for level in reversed(range(depth)):
        x = layers.Conv2DTranspose(filters << level, 2, 2, name=f"up{level}_up")(x)
        x = layers.Concatenate(name=f"up{level}_concat")([skips[level], x])
        x = _double(x, filters << level, f"up{level}")
    if not frame.include_top:
        return frame.pooled(x)
    return layers.Conv2D(frame.classes, 1, activation=frame.activation, name="predictions")(x)  # type: ignore[no-any-return]
