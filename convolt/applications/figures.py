"""Parameters and FLOPs of the architectures with their default arguments, so that a list of all need not build each.

Parameters are all weights with the statistics of normalizations, as Keras counts them; FLOPs are those of one picture of the
architecture's size, a multiply and an add are two. `computed(name)` says them of any architecture; the tests compare all.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from convolt import initializers
from convolt.applications.family import get
from convolt.models.summary import summarize

FIGURES: Mapping[str, tuple[int, int]] = {
    "alexnet": (61_100_840, 1_428_376_960),
    "convnext_tiny": (28_589_128, 8_911_062_528),
    "convnext_small": (50_223_688, 17_367_424_512),
    "convnext_base": (88_591_464, 30_709_458_944),
    "convnext_large": (197_767_336, 68_722_867_200),
    "convnext_xlarge": (350_196_968, 121_842_061_312),
    "cnn": (400_106, 30_101_504),
    "densenet121": (8_062_504, 5_668_323_328),
    "densenet169": (14_307_880, 6_719_686_656),
    "densenet201": (20_242_984, 8_582_731_776),
    "efficientnetb0": (5_330_571, 771_629_504),
    "efficientnetb1": (7_856_239, 1_373_605_664),
    "efficientnetb2": (9_177_569, 1_987_123_744),
    "efficientnetb3": (12_320_535, 3_654_282_784),
    "efficientnetb4": (19_466_823, 8_787_542_048),
    "efficientnetb5": (30_562_527, 20_532_769_504),
    "efficientnetb6": (43_265_143, 38_135_187_072),
    "efficientnetb7": (66_658_687, 75_491_768_384),
    "efficientnetv2-b0": (7_200_312, 1_436_172_352),
    "efficientnetv2-b1": (8_212_124, 2_393_638_720),
    "efficientnetv2-b2": (10_178_374, 3_395_085_664),
    "efficientnetv2-b3": (14_467_622, 6_022_917_632),
    "efficientnetv2-s": (21_612_360, 16_731_234_304),
    "efficientnetv2-m": (54_431_388, 49_164_920_768),
    "efficientnetv2-l": (119_027_848, 112_159_398_016),
    "googlenet": (6_639_464, 2_996_752_384),
    "inception_v3": (23_851_784, 11_426_432_192),
    "inception_resnet_v2": (55_873_736, 26_311_588_032),
    "lenet5": (61_706, 833_040),
    "mobilenet_v2": (3_538_984, 601_548_544),
    "mobilenet": (4_253_864, 1_137_480_704),
    "mobilenet_v3_small": (2_554_968, 113_020_800),
    "mobilenet_v3_large": (5_507_432, 433_179_520),
    "nasnet_mobile": (5_326_716, 1_127_277_632),
    "nasnet_large": (88_949_818, 47_566_829_316),
    "resnext50": (25_097_128, 8_460_959_744),
    "resnext101": (88_994_216, 32_828_030_976),
    "resnet18": (11_699_112, 3_628_146_688),
    "resnet34": (21_814_696, 7_327_522_816),
    "resnet50": (25_636_712, 7_715_946_496),
    "resnet101": (44_707_176, 15_140_388_864),
    "resnet152": (60_419_944, 22_564_831_232),
    "resnet50v2": (25_613_800, 6_964_510_720),
    "resnet101v2": (44_675_560, 14_388_953_088),
    "resnet152v2": (60_380_648, 21_813_395_456),
    "speednet": (1_973_945, 472_589_440),
    "squeezenet1_0": (1_248_424, 1_637_849_152),
    "squeezenet1_1": (1_235_496, 698_303_872),
    "unet": (31_049_474, 96_343_162_880),
    "vgg16": (138_357_544, 30_940_528_640),
    "vgg19": (143_667_240, 39_264_124_928),
    "vit_ti16": (5_717_416, 2_507_366_400),
    "vit_s16": (22_050_664, 9_197_764_608),
    "vit_b16": (86_567_656, 35_127_656_448),
    "vit_b32": (88_224_232, 8_818_372_608),
    "wide_resnet50_2": (68_951_464, 22_796_042_240),
    "wide_resnet101_2": (127_024_552, 45_506_101_248),
    "wide_resnet28_10": (36_497_146, 10_486_657_536),
    "xception": (22_910_480, 16_714_806_992),
}
"""Name → (parameters, FLOPs)."""


def figures(name: str) -> tuple[int, int]:
    """Returns (parameters, FLOPs) of an architecture; those that are not in the table are computed."""
    return FIGURES[name] if name in FIGURES else computed(name)


def computed(name: str) -> tuple[int, int]:
    """Returns (parameters, FLOPs) of an architecture by building it, without the values of its weights."""
    entry = get(name)
    with initializers.later(), torch.device("meta"):
        model = entry.make((entry.size, entry.size, entry.channels), entry.classes)
        return model.count_params(), summarize(model).flops
