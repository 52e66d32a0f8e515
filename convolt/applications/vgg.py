"""VGG: five blocks of convolutions 3×3, and three dense layers."""

from __future__ import annotations

from torch import Tensor

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import decode_predictions, preprocessing
from convolt.applications.weights import Rules, TorchNames
from convolt.layers.symbolic import SymbolicTensor
from convolt.models import Model

__all__ = ["VGG16", "VGG19", "decode_predictions", "preprocess_input"]

SOURCE = "Simonyan & Zisserman, https://arxiv.org/abs/1409.1556"
FILTERS = (64, 128, 256, 512, 512)

preprocess_input = preprocessing("caffe")


def _vgg(frame: Frame, convolutions: tuple[int, ...]) -> SymbolicTensor:
    x = frame.x
    for block, (filters, count) in enumerate(zip(FILTERS, convolutions, strict=True), start=1):
        for i in range(1, count + 1):
            x = layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"block{block}_conv{i}")(x)
        x = layers.MaxPooling2D(2, 2, name=f"block{block}_pool")(x)
    if not frame.include_top:
        return frame.pooled(x)
    x = layers.Flatten(name="flatten")(x)
    for name in ("fc1", "fc2"):
        x = layers.Dense(4096, activation="relu", name=name)(x)
    return frame.classify(x)


TIMM: Rules = [(r"pre_logits\.fc1\.(.*)", r"classifier.0.\1"), (r"pre_logits\.fc2\.(.*)", r"classifier.3.\1"),
               (r"head\.fc\.(.*)", r"classifier.6.\1")]
"""timm's name → torchvision's, where they differ; there the dense layers are convolutions of the last map's size."""


def _torch_names(convolutions: tuple[int, ...]) -> TorchNames:
    """In torchvision's names, which count convolutions, ReLUs and poolings in `features`, and dropouts in `classifier`."""
    rules, index = [], 0
    for block, count in enumerate(convolutions, start=1):
        for i in range(1, count + 1):
            rules.append((rf"block{block}_conv{i}\.(.*)", rf"features.{index}.\1"))
            index += 2
        index += 1
    head: Rules = [(r"fc1\.(.*)", r"classifier.0.\1"), (r"fc2\.(.*)", r"classifier.3.\1"), (r"predictions\.(.*)", r"classifier.6.\1")]
    return TorchNames([*rules, *head], prepare=_flattened_here, title="torchvision or timm", synonyms=TIMM)


def _flattened_here(tensors: dict[str, Tensor], model: Model) -> dict[str, Tensor]:
    """PyTorch flattens channels before rows; Convolt, as Keras, after columns."""
    tensors = {name: tensor.flatten(1) if name.startswith("classifier") and tensor.ndim == 4 else tensor
               for name, tensor in tensors.items()}
    first = tensors.get("classifier.0.weight")
    if first is None or first.ndim != 2 or first.shape[1] % 512:
        return tensors
    side = round((first.shape[1] // 512) ** 0.5)
    if first.shape[1] != 512 * side * side:
        return tensors
    moved = first.reshape(-1, 512, side, side).permute(0, 2, 3, 1).reshape(first.shape)
    return {**tensors, "classifier.0.weight": moved}


@architecture("vgg16", family="VGG", source=SOURCE, pixels="caffe", flattens=True, torch=_torch_names((2, 2, 3, 3, 3)))
def VGG16(frame: Frame) -> SymbolicTensor:  # noqa: N802 (Keras's name)
    """VGG with 13 convolutions. Keras counterpart: `keras.applications.VGG16`."""
    return _vgg(frame, (2, 2, 3, 3, 3))


@architecture("vgg19", family="VGG", source=SOURCE, pixels="caffe", flattens=True, torch=_torch_names((2, 2, 4, 4, 4)))
def VGG19(frame: Frame) -> SymbolicTensor:  # noqa: N802
    """VGG with 16 convolutions. Keras counterpart: `keras.applications.VGG19`."""
    return _vgg(frame, (2, 2, 4, 4, 4))
