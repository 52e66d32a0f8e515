"""Ready-made architectures with Keras's names and arguments, without trained weights unless a file is given.

`names()` lists all, `get(name)` returns an entry (`convolt.applications.family.Architecture`).
"""

from convolt.applications import (
    convnext,
    densenet,
    efficientnet,
    efficientnet_v2,
    googlenet,
    imagenet_utils,
    inception_resnet_v2,
    inception_v3,
    mobilenet,
    mobilenet_v2,
    mobilenet_v3,
    nasnet,
    resnet,
    resnet50,
    resnet_v2,
    speednet,
    vgg16,
    vgg19,
    vit,
    xception,
)
from convolt.applications.classic import AlexNet, LeNet5, SqueezeNet1_0, SqueezeNet1_1
from convolt.applications.cnn import cnn
from convolt.applications.convnext import ConvNeXtBase, ConvNeXtLarge, ConvNeXtSmall, ConvNeXtTiny, ConvNeXtXLarge
from convolt.applications.densenet import DenseNet121, DenseNet169, DenseNet201
from convolt.applications.efficientnet import (
    EfficientNetB0,
    EfficientNetB1,
    EfficientNetB2,
    EfficientNetB3,
    EfficientNetB4,
    EfficientNetB5,
    EfficientNetB6,
    EfficientNetB7,
)
from convolt.applications.efficientnet_v2 import (
    EfficientNetV2B0,
    EfficientNetV2B1,
    EfficientNetV2B2,
    EfficientNetV2B3,
    EfficientNetV2L,
    EfficientNetV2M,
    EfficientNetV2S,
)
from convolt.applications.family import get, names
from convolt.applications.googlenet import GoogLeNet
from convolt.applications.inception_resnet_v2 import InceptionResNetV2
from convolt.applications.inception_v3 import InceptionV3
from convolt.applications.mobilenet import MobileNet
from convolt.applications.mobilenet_v2 import MobileNetV2
from convolt.applications.mobilenet_v3 import MobileNetV3Large, MobileNetV3Small
from convolt.applications.nasnet import NASNetLarge, NASNetMobile
from convolt.applications.resnet import (
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
    ResNeXt50,
    ResNeXt101,
    WideResNet50_2,
    WideResNet101_2,
)
from convolt.applications.resnet_v2 import ResNet50V2, ResNet101V2, ResNet152V2
from convolt.applications.speednet import SpeedNet
from convolt.applications.unet import UNet
from convolt.applications.vgg import VGG16, VGG19
from convolt.applications.vit import ViTB16, ViTB32, ViTS16, ViTTi16
from convolt.applications.wide_resnet import WideResNet28_10
from convolt.applications.xception import Xception
from convolt.missing import explain_missing_names

__all__ = [
    "VGG16",
    "VGG19",
    "AlexNet",
    "ConvNeXtBase",
    "ConvNeXtLarge",
    "ConvNeXtSmall",
    "ConvNeXtTiny",
    "ConvNeXtXLarge",
    "DenseNet121",
    "DenseNet169",
    "DenseNet201",
    "EfficientNetB0",
    "EfficientNetB1",
    "EfficientNetB2",
    "EfficientNetB3",
    "EfficientNetB4",
    "EfficientNetB5",
    "EfficientNetB6",
    "EfficientNetB7",
    "EfficientNetV2B0",
    "EfficientNetV2B1",
    "EfficientNetV2B2",
    "EfficientNetV2B3",
    "EfficientNetV2L",
    "EfficientNetV2M",
    "EfficientNetV2S",
    "GoogLeNet",
    "InceptionResNetV2",
    "InceptionV3",
    "LeNet5",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Large",
    "MobileNetV3Small",
    "NASNetLarge",
    "NASNetMobile",
    "ResNeXt50",
    "ResNeXt101",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "ResNet50V2",
    "ResNet101",
    "ResNet101V2",
    "ResNet152",
    "ResNet152V2",
    "SpeedNet",
    "SqueezeNet1_0",
    "SqueezeNet1_1",
    "UNet",
    "ViTB16",
    "ViTB32",
    "ViTS16",
    "ViTTi16",
    "WideResNet28_10",
    "WideResNet50_2",
    "WideResNet101_2",
    "Xception",
    "cnn",
    "convnext",
    "densenet",
    "efficientnet",
    "efficientnet_v2",
    "get",
    "googlenet",
    "imagenet_utils",
    "inception_resnet_v2",
    "inception_v3",
    "mobilenet",
    "mobilenet_v2",
    "mobilenet_v3",
    "names",
    "nasnet",
    "resnet",
    "resnet50",
    "resnet_v2",
    "speednet",
    "vgg16",
    "vgg19",
    "vit",
    "xception",
]

explain_missing_names(__name__)
