"""ConvNeXt: a convolutional network with the parts of a transformer: large depthwise kernels, layer normalization, GELU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import decode_predictions, preprocessing
from convolt.applications.weights import Rules, TorchNames
from convolt.layers.symbolic import SymbolicTensor
from convolt.models import Model, Sequential

__all__ = ["ConvNeXtBase", "ConvNeXtLarge", "ConvNeXtSmall", "ConvNeXtTiny", "ConvNeXtXLarge", "decode_predictions", "preprocess_input"]

EPSILON = 1e-6
MEAN = [0.485 * 255, 0.456 * 255, 0.406 * 255]
VARIANCE = [(0.229 * 255) ** 2, (0.224 * 255) ** 2, (0.225 * 255) ** 2]

IN_BLOCK = {"0": "conv_dw", "2": "norm", "3": "mlp.fc1", "5": "mlp.fc2"}
PARTS = {"depthwise_conv": "conv_dw", "layernorm": "norm", "pointwise_conv_1": "mlp.fc1", "pointwise_conv_2": "mlp.fc2"}


def _flat_scales(tensors: dict[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Takes from torchvision's scales of layers their two axes more, of one."""
    return {name: tensor.flatten() if name.endswith(".gamma") else tensor for name, tensor in tensors.items()}


TORCHVISION: Rules = [
    (r"features\.0\.([01])\.(.*)", r"stem.\1.\2"),
    (r"features\.([246])\.([01])\.(.*)", lambda m: f"stages.{int(m[1]) // 2}.downsample.{m[2]}.{m[3]}"),
    (r"features\.([1357])\.(\d+)\.layer_scale", lambda m: f"stages.{int(m[1]) // 2}.blocks.{m[2]}.gamma"),
    (r"features\.([1357])\.(\d+)\.block\.([0235])\.(.*)",
     lambda m: f"stages.{int(m[1]) // 2}.blocks.{m[2]}.{IN_BLOCK[m[3]]}.{m[4]}"),
    (r"classifier\.0\.(.*)", r"head.norm.\1"), (r"classifier\.2\.(.*)", r"head.fc.\1"),
]
"""torchvision's name → timm's."""

TORCH = TorchNames([
    (r".*_stem\.[^.]*_stem_conv\.(.*)", r"stem.0.\1"),
    (r".*_stem\.[^.]*_stem_layernorm\.(.*)", r"stem.1.\1"),
    (r".*_downsampling_layernorm_(\d)\.(.*)", lambda m: f"stages.{int(m[1]) + 1}.downsample.0.{m[2]}"),
    (r".*_downsampling_conv_(\d)\.(.*)", lambda m: f"stages.{int(m[1]) + 1}.downsample.1.{m[2]}"),
    (r".*_stage_(\d)_block_(\d+)_layer_scale\.weight", r"stages.\1.blocks.\2.gamma"),
    (r".*_stage_(\d)_block_(\d+)_([a-z_]+(?:_[12])?)\.(.*)", lambda m: f"stages.{m[1]}.blocks.{m[2]}.{PARTS[m[3]]}.{m[4]}"),
    (r".*_head_layernorm\.(.*)", r"head.norm.\1"),
    (r".*_head_dense\.(.*)", r"head.fc.\1"),
    (r"layer_normalization\.(.*)", r"head.norm.\1"),
], prepare=_flat_scales, title="timm or torchvision", synonyms=TORCHVISION, head=r"head\.fc\..*")

preprocess_input = preprocessing("none")


def _block(x: SymbolicTensor, filters: int, name: str) -> SymbolicTensor:
    y = layers.Conv2D(filters, 7, padding="same", groups=filters, name=f"{name}_depthwise_conv")(x)
    y = layers.LayerNormalization(epsilon=EPSILON, name=f"{name}_layernorm")(y)
    y = layers.Dense(4 * filters, name=f"{name}_pointwise_conv_1")(y)
    y = layers.Activation("gelu", name=f"{name}_gelu")(y)
    y = layers.Dense(filters, name=f"{name}_pointwise_conv_2")(y)
    return x + layers.LayerScale(1e-6, name=f"{name}_layer_scale")(y)  # type: ignore[no-any-return]


def _halving(filters: int, name: str, i: int) -> Sequential:
    return Sequential([layers.LayerNormalization(epsilon=EPSILON, name=f"{name}_downsampling_layernorm_{i}"),
                       layers.Conv2D(filters, 2, strides=2, name=f"{name}_downsampling_conv_{i}")], name=f"{name}_downsampling_block_{i}")


def _convnext(frame: Frame, name: str, depths: Sequence[int], filters: Sequence[int], include_preprocessing: bool,
              patch: int) -> SymbolicTensor:
    x = frame.x
    if include_preprocessing and x.shape[-1] == 3:
        x = layers.Normalization(mean=MEAN, variance=VARIANCE, name=f"{name}_prestem_normalization")(x)
    x = Sequential([layers.Conv2D(filters[0], patch, strides=patch, name=f"{name}_stem_conv"),
                    layers.LayerNormalization(epsilon=EPSILON, name=f"{name}_stem_layernorm")], name=f"{name}_stem")(x)
    for stage, (depth, n) in enumerate(zip(depths, filters, strict=True)):
        if stage:
            x = _halving(n, name, stage - 1)(x)
        for i in range(depth):
            x = _block(x, n, f"{name}_stage_{stage}_block_{i}")
    if not frame.include_top:
        return layers.LayerNormalization(epsilon=EPSILON)(frame.pooled(x))  # type: ignore[no-any-return]
    x = layers.GlobalAveragePooling2D(name=f"{name}_head_gap")(x)
    x = layers.LayerNormalization(epsilon=EPSILON, name=f"{name}_head_layernorm")(x)
    return frame.classify(x, f"{name}_head_dense")


def _member(size: str, depths: Sequence[int], filters: Sequence[int]) -> Callable[..., Model]:
    """Returns the function of one of the networks."""
    name = f"convnext_{size.lower()}"

    def network(frame: Frame, *, include_preprocessing: bool = True, stem: str = "large") -> SymbolicTensor:
        patch = 2 if frame.is_small(f"ConvNeXt{size}", stem) else 4
        return _convnext(frame, name, depths, filters, include_preprocessing, patch)

    network.__name__ = network.__qualname__ = f"ConvNeXt{size}"
    network.__doc__ = f"""ConvNeXt with {list(depths)} blocks of {list(filters)} filters, for pixels 0 … 255.

    Without `include_preprocessing`, for pixels of mean 0 and deviation 1 over ImageNet.
    `stem` is "large" (patches of 4×4), "small" (of 2×2, for pictures of 32×32) or "auto".
    Keras counterpart: `keras.applications.ConvNeXt{size}`.
    """
    return architecture(name, family="ConvNeXt", pixels="none", source="Liu et al. 2022, https://arxiv.org/abs/2201.03545", torch=TORCH,
                        arguments="include_top include_preprocessing weights input_tensor input_shape pooling classes "
                                  "classifier_activation name stem")(network)


ConvNeXtTiny = _member("Tiny", (3, 3, 9, 3), (96, 192, 384, 768))
ConvNeXtSmall = _member("Small", (3, 3, 27, 3), (96, 192, 384, 768))
ConvNeXtBase = _member("Base", (3, 3, 27, 3), (128, 256, 512, 1024))
ConvNeXtLarge = _member("Large", (3, 3, 27, 3), (192, 384, 768, 1536))
ConvNeXtXLarge = _member("XLarge", (3, 3, 27, 3), (256, 512, 1024, 2048))
