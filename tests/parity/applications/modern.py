"""GoogLeNet and Inception, Xception, DenseNet, MobileNets, EfficientNets, ConvNeXt and vision transformers."""

from functools import partial

from tests.parity.applications import Case
from tests.parity.applications import torch_convnext as convnext
from tests.parity.applications import torch_vit as vit
from tests.parity.applications.torch_densenet import DenseNet
from tests.parity.applications.torch_googlenet import GoogLeNet

NAMED = {"name": "net"}
"""Keras calls these by their width and the size of the pictures."""

CASES = [
    Case("googlenet", 6_624_904, {"bn+relu": 57}, torch=GoogLeNet),
    Case("inception_v3", 23_851_784, {"bn+relu": 94}, keras="InceptionV3", side=75, slow=True),
    Case("inception_resnet_v2", 55_873_736, {"bn+relu": 204}, keras="InceptionResNetV2", side=75, slow=True),
    Case("xception", 22_910_480, {"bn+relu": 24, "bn+add": 12, "bn": 4}, keras="Xception", side=71, slow=True),
    Case("densenet121", 8_062_504, {"bn+relu": 121}, keras="DenseNet121", torch=partial(DenseNet, (6, 12, 24, 16)),
         torch_parameters=7_978_856),
    Case("densenet169", 14_307_880, {"bn+relu": 169}, keras="DenseNet169", torch=partial(DenseNet, (6, 12, 32, 32)),
         torch_parameters=14_149_480, slow=True),
    Case("densenet201", 20_242_984, {"bn+relu": 201}, keras="DenseNet201", torch=partial(DenseNet, (6, 12, 48, 32)),
         torch_parameters=20_013_928, slow=True),
    Case("mobilenet", 4_253_864, {"bn+activation": 27}, keras="MobileNet", arguments=NAMED),
    Case("mobilenet_v2", 3_538_984, {"bn+activation": 35, "bn+add": 10, "bn": 7}, keras="MobileNetV2", arguments=NAMED, side=47),
    Case("mobilenet_v3_small", 2_554_968, {"bn+relu": 5, "bn+activation": 18, "bn+add": 6, "bn": 5}, keras="MobileNetV3Small",
         arguments=NAMED, pixels=True),
    Case("mobilenet_v3_large", 5_507_432, {"bn+relu": 11, "bn+activation": 20, "bn+add": 10, "bn": 5}, keras="MobileNetV3Large",
         arguments=NAMED, pixels=True, slow=True),
    Case("efficientnetb0", 5_330_571, {"bn+activation": 33, "bn": 16}, keras="EfficientNetB0", pixels=True),
    *[Case(f"efficientnetb{i}", parameters, {"bn+activation": active, "bn": linear}, keras=f"EfficientNetB{i}", pixels=True, slow=True)
      for i, (parameters, active, linear) in enumerate((
          (7_856_239, 46, 23), (9_177_569, 46, 23), (12_320_535, 52, 26), (19_466_823, 64, 32), (30_562_527, 77, 39), (43_265_143, 89, 45),
          (66_658_687, 108, 55)), start=1)],
    Case("efficientnetv2-b0", 7_200_312, {"bn+activation": 39, "bn": 20}, keras="EfficientNetV2B0", pixels=True),
    *[Case(f"efficientnetv2-{kind.lower()}", parameters, {"bn+activation": active, "bn": linear}, keras=f"EfficientNetV2{kind}",
           pixels=True, slow=True)
      for kind, parameters, active, linear in (
          ("B1", 8_212_124, 48, 25), ("B2", 10_178_374, 50, 26), ("B3", 14_467_622, 58, 30), ("S", 21_612_360, 72, 38),
          ("M", 54_431_388, 103, 54), ("L", 119_027_848, 142, 75))],
    *[Case(f"convnext_{size.lower()}", parameters, {}, keras=f"ConvNeXt{size}", torch=partial(convnext.Timm, (3, 3, depth, 3), filters),
           also=[partial(convnext.Torchvision, (3, 3, depth, 3), filters)] if size != "XLarge" else [], torch_parameters=parameters,
           pixels=True, slow=size != "Tiny")
      for size, parameters, depth, filters in (
          ("Tiny", 28_589_128, 9, (96, 192, 384, 768)), ("Small", 50_223_688, 27, (96, 192, 384, 768)),
          ("Base", 88_591_464, 27, (128, 256, 512, 1024)), ("Large", 197_767_336, 27, (192, 384, 768, 1536)),
          ("XLarge", 350_196_968, 27, (256, 512, 1024, 2048)))],
    Case("vit_ti16", 5_717_416, {}, torch=partial(vit.Timm, 16, 192, 3), also=[partial(vit.Torchvision, 16, 192, 3)], no_top=True),
    Case("vit_s16", 22_050_664, {}, torch=partial(vit.Timm, 16, 384, 6), slow=True, no_top=True),
    Case("vit_b16", 86_567_656, {}, torch=partial(vit.Torchvision, 16, 768, 12), slow=True, no_top=True),
    Case("vit_b32", 88_224_232, {}, torch=partial(vit.Torchvision, 32, 768, 12), side=64, slow=True, no_top=True),
]
