"""GoogLeNet and Inception, Xception, DenseNet, MobileNets, NASNets, EfficientNets, ConvNeXt and vision transformers."""

from functools import partial

from tests.parity.applications import Case
from tests.parity.applications import torch_convnext as convnext
from tests.parity.applications import torch_inception as inception
from tests.parity.applications import torch_mobile as mobile
from tests.parity.applications import torch_timm as timm
from tests.parity.applications import torch_timm_tf as tf
from tests.parity.applications import torch_vit as vit
from tests.parity.applications.torch_densenet import DenseNet
from tests.parity.applications.torch_googlenet import GoogLeNet
from tests.parity.applications.torch_xception import Xception

TORCH = {"variant": "torch"}
NAMED = {"name": "net"}
"""Keras calls these by their width and the size of the pictures."""

CASES = [
    Case("googlenet", 6_624_904, {"bn+relu": 57}, torch=GoogLeNet),
    Case("inception_v3", 23_851_784, {"bn+relu+pool": 2, "bn+relu": 92}, keras="InceptionV3", side=75, slow=True,
         torch=inception.InceptionV3, torch_arguments=TORCH, torch_parameters=23_834_568),
    Case("inception_resnet_v2", 55_873_736, {"bn+relu+pool": 2, "bn+relu": 202}, keras="InceptionResNetV2", side=75, slow=True,
         torch=inception.InceptionResNetV2, torch_arguments=TORCH, torch_parameters=55_843_464),
    Case("xception", 22_910_480, {"bn+relu": 24, "bn+add": 12, "bn": 4}, keras="Xception", side=75, slow=True,
         torch=Xception, torch_arguments=TORCH, torch_parameters=22_855_952),
    Case("densenet121", 8_062_504, {"bn+relu+pool": 1, "bn+relu": 120}, keras="DenseNet121", torch=partial(DenseNet, (6, 12, 24, 16)),
         torch_parameters=7_978_856),
    Case("densenet169", 14_307_880, {"bn+relu+pool": 1, "bn+relu": 168}, keras="DenseNet169", torch=partial(DenseNet, (6, 12, 32, 32)),
         torch_parameters=14_149_480, slow=True),
    Case("densenet201", 20_242_984, {"bn+relu+pool": 1, "bn+relu": 200}, keras="DenseNet201", torch=partial(DenseNet, (6, 12, 48, 32)),
         torch_parameters=20_013_928, slow=True),
    Case("mobilenet", 4_253_864, {"bn+activation": 27}, keras="MobileNet", arguments=NAMED, torch=timm.mobilenet,
         torch_arguments=TORCH, torch_parameters=4_231_976),
    Case("mobilenet_v2", 3_538_984, {"bn+activation": 35, "bn+add": 10, "bn": 7}, keras="MobileNetV2", arguments=NAMED, side=48,
         torch=mobile.MobileNetV2, also=[timm.mobilenet_v2], torch_arguments=TORCH, torch_parameters=3_504_872),
    Case("mobilenet_v3_small", 2_554_968, {"bn+relu": 5, "bn+activation": 18, "bn+add": 6, "bn": 5, "conv+relu": 9},
         keras="MobileNetV3Small",
         arguments=NAMED, pixels=True, torch=partial(mobile.MobileNetV3, mobile.SMALL, 1024), torch_arguments=TORCH,
         torch_parameters=2_542_856,
         others={"timm": partial(tf.mobilenet_v3, "small", False), "tf": partial(tf.mobilenet_v3, "small", True)}),
    Case("mobilenet_v3_large", 5_507_432, {"bn+relu": 11, "bn+activation": 20, "bn+add": 10, "bn": 5, "conv+relu": 8},
         keras="MobileNetV3Large",
         arguments=NAMED, pixels=True, slow=True, torch=partial(mobile.MobileNetV3, mobile.LARGE, 1280), torch_arguments=TORCH,
         torch_parameters=5_483_032,
         others={"timm": partial(tf.mobilenet_v3, "large", False), "tf": partial(tf.mobilenet_v3, "large", True)}),
    Case("nasnet_mobile", 5_326_716, {"bn+relu": 80, "bn+add": 52, "bn": 60}, keras="NASNetMobile", no_top=True),
    Case("nasnet_large", 88_949_818, {"bn+relu": 110, "bn+add": 70, "bn": 84}, keras="NASNetLarge", slow=True, no_top=True),
    *[Case(f"efficientnetb{i}", parameters, {"bn+activation": active, "bn": linear}, keras=f"EfficientNetB{i}", pixels=True, slow=i > 0,
           torch=partial(mobile.efficientnet, width, depth, dropout, 1e-5 if i < 5 else 1e-3), torch_arguments=TORCH,
           also=[partial(timm.efficientnet, width, depth)] if i < 5 else [], torch_parameters=published,
           others={"tf": partial(tf.efficientnet, width, depth)})
      for i, (parameters, active, linear, published, width, depth, dropout) in enumerate((
          (5_330_571, 33, 16, 5_288_548, 1.0, 1.0, 0.2), (7_856_239, 46, 23, 7_794_184, 1.0, 1.1, 0.2),
          (9_177_569, 46, 23, 9_109_994, 1.1, 1.2, 0.3), (12_320_535, 52, 26, 12_233_232, 1.2, 1.4, 0.3),
          (19_466_823, 64, 32, 19_341_616, 1.4, 1.8, 0.4), (30_562_527, 77, 39, 30_389_784, 1.6, 2.2, 0.4),
          (43_265_143, 89, 45, 43_040_704, 1.8, 2.6, 0.5), (66_658_687, 108, 55, 66_347_960, 2.0, 3.1, 0.5)))],
    *[Case(f"efficientnetv2-{kind.lower()}", parameters, {"bn+activation": active, "bn": linear}, keras=f"EfficientNetV2{kind}",
           pixels=True, slow=kind != "B0", others={"tf": partial(tf.efficientnet_v2, "b", width, depth)})
      for kind, parameters, active, linear, width, depth in (
          ("B0", 7_200_312, 39, 20, 1.0, 1.0), ("B1", 8_212_124, 48, 25, 1.0, 1.1), ("B2", 10_178_374, 50, 26, 1.1, 1.2),
          ("B3", 14_467_622, 58, 30, 1.2, 1.4))],
    *[Case(f"efficientnetv2-{kind.lower()}", parameters, {"bn+activation": active, "bn": linear}, keras=f"EfficientNetV2{kind}",
           pixels=True, slow=True, torch=partial(mobile.efficientnet_v2, kind), torch_arguments=TORCH, torch_parameters=published,
           others={"tf": partial(tf.efficientnet_v2, kind.lower(), 1.0, 1.0)})
      for kind, parameters, active, linear, published in (
          ("S", 21_612_360, 72, 38, 21_458_488), ("M", 54_431_388, 103, 54, 54_139_356), ("L", 119_027_848, 142, 75, 118_515_272))],
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
