"""ResNet, ResNeXt and Wide ResNet."""

from functools import partial

from tests.parity.applications import Case
from tests.parity.applications.torch_resnet import ResNet, WideResNet
from tests.parity.applications.torch_resnet_v2 import ResNetV2

TORCH = {"variant": "torch"}
SHORT, LONG, LONGEST = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)

CASES = [
    Case("resnet18", 11_689_512, {"bn+add+relu": 8, "bn+relu+pool": 1, "bn+relu": 8, "bn": 3},
         torch=partial(ResNet, (2, 2, 2, 2), bottleneck=False)),
    Case("resnet34", 21_797_672, {"bn+add+relu": 16, "bn+relu+pool": 1, "bn+relu": 16, "bn": 3},
         torch=partial(ResNet, SHORT, bottleneck=False), slow=True),
    Case("resnet50", 25_636_712, {"bn+add+relu": 16, "bn+relu+pool": 1, "bn+relu": 32, "bn": 4}, keras="ResNet50",
         torch=partial(ResNet, SHORT), torch_arguments=TORCH,
         torch_parameters=25_557_032),
    Case("resnet101", 44_707_176, {"bn+add+relu": 33, "bn+relu+pool": 1, "bn+relu": 66, "bn": 4}, keras="ResNet101",
         torch=partial(ResNet, LONG),
         torch_arguments=TORCH, torch_parameters=44_549_160, slow=True),
    Case("resnet152", 60_419_944, {"bn+add+relu": 50, "bn+relu+pool": 1, "bn+relu": 100, "bn": 4}, keras="ResNet152",
         torch=partial(ResNet, LONGEST),
         torch_arguments=TORCH, torch_parameters=60_192_808, slow=True),
    Case("resnet50v2", 25_613_800, {"bn+relu": 49}, keras="ResNet50V2", torch=partial(ResNetV2, SHORT),
         torch_arguments=TORCH, torch_parameters=25_549_352),
    Case("resnet101v2", 44_675_560, {"bn+relu": 100}, keras="ResNet101V2", torch=partial(ResNetV2, LONG),
         torch_arguments=TORCH, torch_parameters=44_541_480, slow=True),
    Case("resnet152v2", 60_380_648, {"bn+relu": 151}, keras="ResNet152V2", torch=partial(ResNetV2, LONGEST),
         torch_arguments=TORCH, torch_parameters=60_185_128, slow=True),
    Case("resnext50", 25_028_904, {"bn+add+relu": 16, "bn+relu+pool": 1, "bn+relu": 32, "bn": 4},
         torch=partial(ResNet, SHORT, groups=32, base_width=4), slow=True),
    Case("resnext101", 88_791_336, {"bn+add+relu": 33, "bn+relu+pool": 1, "bn+relu": 66, "bn": 4},
         torch=partial(ResNet, LONG, groups=32, base_width=8), slow=True),
    Case("wide_resnet50_2", 68_883_240, {"bn+add+relu": 16, "bn+relu+pool": 1, "bn+relu": 32, "bn": 4},
         torch=partial(ResNet, SHORT, base_width=128), slow=True),
    Case("wide_resnet101_2", 126_886_696, {"bn+add+relu": 33, "bn+relu+pool": 1, "bn+relu": 66, "bn": 4},
         torch=partial(ResNet, LONG, base_width=128), slow=True),
    Case("wide_resnet28_10", 36_479_194, {"bn+relu": 25}, torch=WideResNet, side=16),
]
