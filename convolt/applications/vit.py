"""Vision transformer: a picture as a sequence of patches, a token that stands for all of them, and blocks of attention."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import decode_predictions, preprocessing
from convolt.applications.weights import Rules, TorchNames
from convolt.errors import ArgumentError, ShapeError, explain
from convolt.initializers import TruncatedNormal
from convolt.layers.arguments import check_positive
from convolt.layers.symbolic import SymbolicTensor
from convolt.models import Model

__all__ = ["ViTB16", "ViTB32", "ViTS16", "ViTTi16", "decode_predictions", "preprocess_input"]

EPSILON = 1e-6

TORCHVISION: Rules = (
    (r"class_token", "cls_token"), (r"conv_proj\.(.*)", r"patch_embed.proj.\1"), (r"encoder\.pos_embedding", "pos_embed"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.(.*)", r"blocks.\1.norm\2.\3"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(.*)", r"blocks.\1.attn.qkv.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(.*)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(.*)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(.*)", r"blocks.\1.mlp.fc2.\2"),
    (r"encoder\.ln\.(.*)", r"norm.\1"), (r"heads\.head\.(.*)", r"head.\1"),
)
"""torchvision's name → timm's."""

preprocess_input = preprocessing("tf")


def _by_heads(tensors: dict[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Takes attention's packed matrices apart by heads."""
    heads = next(layer.num_heads for layer in model.layers if isinstance(layer, layers.MultiHeadAttention))
    return {part: value for name, tensor in tensors.items() for part, value in _unpacked(name, tensor, heads).items()}


def _unpacked(name: str, tensor: Tensor, heads: int) -> dict[str, Tensor]:
    size = tensor.shape[-1]
    if name in ("cls_token", "pos_embed"):
        return {name: tensor.reshape(-1) if name == "cls_token" else tensor.reshape(-1, size)}
    fits = tensor.shape[0] % (3 * heads) == 0 if "attn.qkv" in name else size % heads == 0
    if "attn.qkv" in name and fits:
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {name.replace("qkv", letter): (part.reshape(heads, -1, size).permute(2, 0, 1) if tensor.ndim == 2 else
                                              part.reshape(heads, -1)) for letter, part in parts}
    if name.endswith("attn.proj.weight") and fits:
        return {name: tensor.T.reshape(heads, -1, tensor.shape[0])}
    return {name: tensor}


TORCH = TorchNames([
    (r"patches\.(.*)", r"patch_embed.proj.\1"), (r"class_token\.weight", "cls_token"), (r"positions\.weight", "pos_embed"),
    (r"block(\d+)_norm([12])\.(.*)", r"blocks.\1.norm\2.\3"), (r"block(\d+)_fc([12])\.(.*)", r"blocks.\1.mlp.fc\2.\3"),
    (r"block(\d+)_attention\.([qkv])[a-z]+_dense\.(.*)", r"blocks.\1.attn.\2.\3"),
    (r"block(\d+)_attention\.output_dense\.(.*)", r"blocks.\1.attn.proj.\2"),
    (r"norm\.(.*)", r"norm.\1"), (r"predictions\.(.*)", r"head.\1"),
], prepare=_by_heads, title="timm or torchvision", synonyms=TORCHVISION, pixels_by_name={"pos_embed": "tf"}, head=r"head\..*")


def _block(x: SymbolicTensor, name: str, heads: int, dropout: float) -> SymbolicTensor:
    """Attention, then a network of two layers for each step; both on normalized input, and added to what was there."""
    width = int(x.shape[-1] or 0)
    y = layers.LayerNormalization(epsilon=EPSILON, name=f"{name}_norm1")(x)
    y = layers.MultiHeadAttention(heads, width // heads, name=f"{name}_attention")(y, y)
    x = x + layers.Dropout(dropout, name=f"{name}_drop1")(y)
    y = layers.LayerNormalization(epsilon=EPSILON, name=f"{name}_norm2")(x)
    y = layers.Dense(4 * width, activation="gelu", name=f"{name}_fc1")(y)
    y = layers.Dense(width, name=f"{name}_fc2")(y)
    return x + layers.Dropout(dropout, name=f"{name}_drop2")(y)  # type: ignore[no-any-return]


def _vit(frame: Frame, who: str, patch: int, width: int, depth: int, heads: int, dropout: float) -> SymbolicTensor:
    sides = frame.x.shape[1:3]
    check_positive(who, "patch_size", patch)
    if None in sides:
        raise ShapeError(explain(f"{who}(input_shape)", repr(frame.x.shape[1:]), "a known height and width: each place has its own vector"))
    height, across = (int(side or 0) // patch for side in sides)
    if height * across == 0:
        raise ArgumentError(explain(f"{who}(patch_size)", patch, f"at most the side of the pictures, {sides}"))
    small = TruncatedNormal(stddev=0.02)
    x = layers.Conv2D(width, patch, strides=patch, name="patches")(frame.x)
    x = layers.Reshape((height * across, width), name="sequence")(x)
    x = layers.ClassToken(small, name="class_token")(x)
    x = x + layers.PositionEmbedding(height * across + 1, small, name="positions")(x)
    x = layers.Dropout(dropout, name="drop")(x)
    for i in range(depth):
        x = _block(x, f"block{i}", heads, dropout)
    x = layers.LayerNormalization(epsilon=EPSILON, name="norm")(x)
    if not frame.include_top:
        x = layers.Cropping1D((1, 0), name="without_token")(x)
        return frame.pooled(layers.Reshape((height, across, width), name="map")(x))
    x = layers.Cropping1D((0, height * across), name="token")(x)
    return frame.classify(layers.Flatten(name="flatten")(x))


def _member(letters: str, patch: int, width: int, depth: int, heads: int) -> Callable[..., Model]:
    """Returns the function of one of the networks."""
    who = f"ViT{letters}{patch}"

    def network(frame: Frame, *, patch_size: int = patch, dropout: float = 0.0) -> SymbolicTensor:
        return _vit(frame, who, patch_size, width, depth, heads, dropout)

    network.__name__ = network.__qualname__ = who
    network.__doc__ = f"""Vision transformer of {depth} blocks, {width} wide, with {heads} heads, on patches of {patch}×{patch} pixels.

    `patch_size=4` suits pictures of 32×32. Without a top it gives the features of the patches, (batch, rows, columns, {width}).
    Counterparts: `timm.models.vision_transformer`, `torchvision.models.vit_b_16`; their weights load.
    """
    return architecture(f"vit_{letters.lower()}{patch}", family="Vision transformer", pixels="tf", flattens=True, torch=TORCH,
                        source="Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929")(network)


ViTTi16 = _member("Ti", 16, 192, 12, 3)
ViTS16 = _member("S", 16, 384, 12, 6)
ViTB16 = _member("B", 16, 768, 12, 12)
ViTB32 = _member("B", 32, 768, 12, 12)
