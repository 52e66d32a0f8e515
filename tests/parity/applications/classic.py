"""LeNet-5, AlexNet, VGG, SqueezeNet, U-Net and the small network of the first steps."""

from functools import partial

from tests.parity.applications import Case
from tests.parity.applications.torch_classic import AlexNet, LeNet5, SqueezeNet, UNet
from tests.parity.applications.torch_vgg import VGG, Timm

CASES = [
    Case("cnn", 399_146, {"bn+relu": 4}, no_top=True),
    Case("vgg16", 138_357_544, {"conv+relu+pool": 5, "conv+relu": 8}, keras="VGG16", torch=partial(VGG, (2, 2, 3, 3, 3)),
         also=[partial(Timm, (2, 2, 3, 3, 3))], torch_parameters=138_357_544, side=64),
    Case("vgg19", 143_667_240, {"conv+relu+pool": 5, "conv+relu": 11}, keras="VGG19", torch=partial(VGG, (2, 2, 4, 4, 4)),
         also=[partial(Timm, (2, 2, 4, 4, 4))], torch_parameters=143_667_240, side=64, slow=True),
    Case("lenet5", 61_706, {}, torch=LeNet5),
    Case("alexnet", 61_100_840, {"conv+relu": 5}, torch=AlexNet, side=95, slow=True),
    Case("squeezenet1_0", 1_248_424, {"conv+relu": 26}, torch=partial(SqueezeNet, "1_0"), side=64),
    Case("squeezenet1_1", 1_235_496, {"conv+relu": 26}, torch=partial(SqueezeNet, "1_1"), side=50),
    Case("speednet", 1_971_352, {"bn+relu": 6}),
    Case("unet", 31_037_698, {"bn+relu": 18}, torch=UNet, slow=True),
]
