"""A small network for CIFAR-10, for trainings of a few epochs, with its recipe.

In the spirit of the public speed records (Page 2018, Jordan 2024: arXiv 2404.00498), written anew on Convolt's layers: whitened
patches, six convolutions with batch normalization and max pooling between them, a scaled head, a test-time flip; trained with Muon,
label smoothing, alternating flips, shifts by two pixels, and the mean over the weights of the last half epoch.
"""

from __future__ import annotations

from collections.abc import Sequence

from convolt import constraints, layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import preprocessing
from convolt.applications.recipes import TrainingRecipe
from convolt.errors import ArgumentError, explain
from convolt.layers.symbolic import SymbolicTensor

__all__ = ["RECIPE", "SpeedNet", "preprocess_input"]

SOURCE = "after Jordan, https://arxiv.org/abs/2404.00498"
MOMENTUM = 0.6
"""Of batch normalization: a short training needs statistics that forget fast."""

preprocess_input = preprocessing("torch")

RECIPE = TrainingRecipe(
    epochs=10, batch_size=1000, optimizer="muon", learning_rate=0.24, schedule="linear", label_smoothing=0.2,
    augment="alternate_flip,crop=32:2", precision="bfloat16",  # "auto" compares single gradients, which differ where maxima nearly tie
    optimizer_arguments={"exclude_layers": ["predictions"], "adam_lr_ratio": 0.04, "momentum": 0.6, "ns_steps": 3, "rms_rate": None,
                         "weight_decay": None, "adam_weight_decay": None, "adam_beta_1": 0.85, "adam_beta_2": 0.95},
    average_epochs=0.5)


def _convolution(x: SymbolicTensor, filters: int, activation: str, name: str, pool: bool = False) -> SymbolicTensor:
    """Adds a convolution whose filters have length one (only their direction is learned), perhaps pooling, normalization, activation."""
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_constraint=constraints.UnitNorm([0, 1, 2]), name=f"{name}_conv")(x)
    if pool:
        x = layers.MaxPooling2D(2, name=f"{name}_pool")(x)
    x = layers.BatchNormalization(momentum=MOMENTUM, epsilon=1e-5, scale=False, name=f"{name}_bn")(x)
    return layers.Activation(activation, name=f"{name}_{activation}")(x)  # type: ignore[no-any-return]


@architecture("speednet", family="SpeedNet", size=32, smallest=16, classes=10, source=SOURCE, recipe=RECIPE)
def SpeedNet(frame: Frame, *, widths: Sequence[int] = (64, 256, 256), activation: str = "relu", head_scale: float = 1 / 9,  # noqa: N802
             test_time_flip: bool = True) -> SymbolicTensor:
    """A network of eight layers for CIFAR-10. Its run on record took 14 minutes for ten epochs on two cores of a CPU, and ended at 90.5%.

    Args:
        frame: input and end.
        widths: filters of the three blocks; fewer are faster.
        activation: after each normalization; "gelu", as in the speed records, costs more on a CPU.
        head_scale: factor of the logits, which keeps the first ones small.
        test_time_flip: whether `predict` and `evaluate` take the mean over each picture and its mirror image, at twice the cost.

    The whitening learns its kernels when `fit` begins (see `convolt.layers.PatchWhitening`).
    """
    if len(widths) != 3 or not all(isinstance(width, int) and width > 0 for width in widths):
        raise ArgumentError(explain("SpeedNet(widths)", repr(widths), "three whole numbers from 1, as in (64, 256, 256)"))
    flips = test_time_flip and frame.include_top
    x = layers.MirrorBatch(name="mirror_batch")(frame.x) if flips else frame.x
    x = layers.PatchWhitening(2, name="whitening")(x)
    x = layers.Activation(activation, name=f"whitening_{activation}")(x)
    for i, width in enumerate(widths, start=1):
        x = _convolution(x, width, activation, f"block{i}_1", pool=True)
        x = _convolution(x, width, activation, f"block{i}_2")
    if not frame.include_top:
        return frame.pooled(x)
    x = layers.GlobalMaxPooling2D(name="max_pool")(x)
    x = layers.Dense(frame.classes, use_bias=False, name="predictions")(x)
    x = layers.Rescaling(head_scale, name="head_scale")(x)
    if flips:
        x = layers.MirrorMean(name="mirror_mean")(x)
    return layers.Activation(frame.activation, name="probabilities")(x)  # type: ignore[no-any-return]
