"""LeNet-5, AlexNet, VGG, SqueezeNet, U-Net and the small network of the first steps."""

from functools import partial

from tests.parity.applications import Case
from tests.parity.applications.torch_vgg import VGG

CASES = [
    Case("cnn", 399_146, {"bn+relu": 4}, no_top=True),
    Case("vgg16", 138_357_544, {"conv+relu+pool": 5}, keras="VGG16", torch=partial(VGG, (2, 2, 3, 3, 3)), side=64),
    Case("vgg19", 143_667_240, {"conv+relu+pool": 5}, keras="VGG19", torch=partial(VGG, (2, 2, 4, 4, 4)), side=64, slow=True),
]
