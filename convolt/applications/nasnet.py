"""NASNet: cells that a search put together for small pictures, repeated in a large network.

A cell gets what the two cells before it gave. Normal cells keep the size of the map, reduction cells halve it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from convolt import layers
from convolt.applications.family import Frame, architecture
from convolt.applications.imagenet_utils import decode_predictions, preprocessing
from convolt.applications.variants import Variant
from convolt.layers.symbolic import SymbolicTensor
from convolt.models import Model

__all__ = ["NASNetLarge", "NASNetMobile", "decode_predictions", "preprocess_input"]

STYLE = Variant(torch=False, momentum=0.9997)

preprocess_input = preprocessing("tf")


def _files(kind: str, options: Mapping[str, Any], sides: Sequence[int | None], include_top: bool) -> list[str]:
    """Keras's names in its folder and on its server."""
    return [f"nasnet_{kind}{'' if include_top else '_no_top'}.h5", f"NASNet-{kind}{'' if include_top else '-no-top'}.h5"]


def _relu(x: SymbolicTensor, name: str | None = None) -> SymbolicTensor:
    return layers.Activation("relu", name=name)(x)  # type: ignore[no-any-return]


def _convolution(x: SymbolicTensor, filters: int, name: str) -> SymbolicTensor:
    """A convolution 1×1 without a bias."""
    return layers.Conv2D(filters, 1, padding="same", use_bias=False, kernel_initializer="he_normal", name=name)(x)  # type: ignore[no-any-return]


def _mean(x: SymbolicTensor, name: str) -> SymbolicTensor:
    """The mean over 3×3 pixels; the map keeps its size."""
    return layers.AveragePooling2D(3, strides=1, padding="same", name=name)(x)  # type: ignore[no-any-return]


def _sum(x: SymbolicTensor, y: SymbolicTensor, name: str | None = None) -> SymbolicTensor:
    return layers.Add(name=name)([x, y])  # type: ignore[no-any-return]


def _separable(x: SymbolicTensor, filters: int, kernel_size: int, name: str, strides: int = 1) -> SymbolicTensor:
    """Twice ReLU, separable convolution and normalization; the first convolution has the strides."""
    x, padding = _relu(x), "same"
    if strides > 1:
        x, padding = layers.ZeroPadding2D(STYLE.border(x, kernel_size), name=f"separable_conv_1_pad_{name}")(x), "valid"
    for number in (1, 2):
        x = _relu(x) if number == 2 else x
        x = layers.SeparableConv2D(filters, kernel_size, strides=strides if number == 1 else 1, use_bias=False,
                                   padding=padding if number == 1 else "same", name=f"separable_conv_{number}_{name}")(x)
        x = STYLE.norm(x, f"separable_conv_{number}_bn_{name}")
    return x


def _halved(x: SymbolicTensor, filters: int, name: str) -> SymbolicTensor:
    """Each second pixel, and each second one beside it, through convolutions of half the filters."""
    x = _relu(x, f"adjust_relu_1_{name}")
    beside = layers.Cropping2D(((1, 0), (1, 0)))(layers.ZeroPadding2D(((0, 1), (0, 1)))(x))
    halves = []
    for number, part in enumerate((x, beside), start=1):
        part = layers.AveragePooling2D(1, strides=2, name=f"adjust_avg_pool_{number}_{name}")(part)
        halves.append(_convolution(part, filters // 2, f"adjust_conv_{number}_{name}"))
    return STYLE.norm(layers.Concatenate()(halves), f"adjust_bn_{name}")


@dataclass(frozen=True)
class _Ends:
    """What the last cell gave, `x`, and the one before it, `before`; None at first."""

    x: SymbolicTensor
    before: SymbolicTensor | None = None

    def adjusted(self, filters: int, name: str) -> SymbolicTensor:
        """Returns `before` with the size of `x` and this number of filters."""
        before = self.before
        if before is None:
            return self.x
        if before.shape[2] != self.x.shape[2]:
            return _halved(before, filters, name)
        if before.shape[-1] != filters:
            return STYLE.norm(_convolution(_relu(before), filters, f"adjust_conv_projection_{name}"), f"adjust_bn_{name}")
        return before

    def narrowed(self, filters: int, kind: str, name: str) -> SymbolicTensor:
        """Returns `x` with this number of filters."""
        return STYLE.norm(_convolution(_relu(self.x), filters, f"{kind}_conv_1_{name}"), f"{kind}_bn_1_{name}")


def _normal(ends: _Ends, filters: int, name: str) -> _Ends:
    """The cell that keeps the size."""
    p, h = ends.adjusted(filters, name), ends.narrowed(filters, "normal", name)
    sums = [
        (_separable(h, filters, 5, f"normal_left1_{name}"), _separable(p, filters, 3, f"normal_right1_{name}")),
        (_separable(p, filters, 5, f"normal_left2_{name}"), _separable(p, filters, 3, f"normal_right2_{name}")),
        (_mean(h, f"normal_left3_{name}"), p),
        (_mean(p, f"normal_left4_{name}"), _mean(p, f"normal_right4_{name}")),
        (_separable(h, filters, 3, f"normal_left5_{name}"), h),
    ]
    parts = [_sum(*pair, f"normal_add_{number}_{name}") for number, pair in enumerate(sums, start=1)]
    return _Ends(layers.Concatenate(name=f"normal_concat_{name}")([p, *parts]), ends.x)


def _reduction(ends: _Ends, filters: int, name: str) -> _Ends:
    """The cell that halves the size."""
    p, h = ends.adjusted(filters, name), ends.narrowed(filters, "reduction", name)
    padded = layers.ZeroPadding2D(STYLE.border(h, 3), name=f"reduction_pad_1_{name}")(h)
    x1 = _sum(_separable(h, filters, 5, f"reduction_left1_{name}", 2), _separable(p, filters, 7, f"reduction_right1_{name}", 2),
              f"reduction_add_1_{name}")
    x2 = _sum(layers.MaxPooling2D(3, strides=2, name=f"reduction_left2_{name}")(padded),
              _separable(p, filters, 7, f"reduction_right2_{name}", 2), f"reduction_add_2_{name}")
    x3 = _sum(layers.AveragePooling2D(3, strides=2, name=f"reduction_left3_{name}")(padded),
              _separable(p, filters, 5, f"reduction_right3_{name}", 2), f"reduction_add3_{name}")
    x4 = _sum(x2, _mean(x1, f"reduction_left4_{name}"))
    x5 = _sum(_separable(x1, filters, 3, f"reduction_left4_{name}"),
              layers.MaxPooling2D(3, strides=2, name=f"reduction_right5_{name}")(padded), f"reduction_add4_{name}")
    return _Ends(layers.Concatenate(name=f"reduction_concat_{name}")([x2, x3, x4, x5]), ends.x)


def _nasnet(frame: Frame, filters: int, blocks: int, stem: int, skip: bool) -> SymbolicTensor:
    """Stem, and three times so many normal cells, with reductions between.

    With `skip`, the cell after a reduction sees, beside it, what the reduction saw beside its input rather than the input.
    """
    x = layers.Conv2D(stem, 3, strides=2, use_bias=False, kernel_initializer="he_normal", name="stem_conv1")(frame.x)
    ends = _reduction(_Ends(STYLE.norm(x, "stem_bn1")), filters // 4, "stem_1")
    ends = _reduction(ends, filters // 2, "stem_2")
    for stage in range(3):
        if stage:
            reduced = _reduction(ends, filters << stage, f"reduce_{stage * blocks}")
            ends = _Ends(reduced.x, ends.before if skip else reduced.before)
        for i in range(blocks):
            ends = _normal(ends, filters << stage, str(stage * blocks + (stage > 0) + i))
    return frame.top(_relu(ends.x), pool_names=("global_average_pooling2d", "global_max_pooling2d"))


def _member(letters: str, size: int, filters: int, blocks: int, stem: int, skip: bool) -> Callable[..., Model]:
    """Returns the function of one of the networks."""

    def network(frame: Frame) -> SymbolicTensor:
        return _nasnet(frame, filters, blocks, stem, skip)

    network.__name__ = network.__qualname__ = f"NASNet{letters}"
    network.__doc__ = f"""NASNet-A with {3 * blocks} normal cells, for {size}×{size} pixels. The size must be known, also without a top.

    Keras counterpart: `keras.applications.NASNet{letters}`.
    """
    return architecture(f"nasnet_{letters.lower()}", family="NASNet", size=size, pixels="tf", sized=True,
                        files=partial(_files, letters.lower()),
                        source="Zoph et al. 2017, https://arxiv.org/abs/1707.07012",
                        arguments="input_shape include_top weights input_tensor pooling classes classifier_activation name")(network)


NASNetMobile = _member("Mobile", 224, 44, 4, 32, skip=False)
NASNetLarge = _member("Large", 331, 168, 6, 96, skip=True)
