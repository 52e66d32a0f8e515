"""Ready-made architectures with Keras's names and arguments, without trained weights unless a file is given.

`names()` lists all, `get(name)` returns an entry (`convolt.applications.family.Architecture`).
"""

from convolt.applications import imagenet_utils, vgg16, vgg19
from convolt.applications.cnn import cnn
from convolt.applications.family import get, names
from convolt.applications.vgg import VGG16, VGG19
from convolt.missing import explain_missing_names

__all__ = [
    "VGG16",
    "VGG19",
    "cnn",
    "get",
    "imagenet_utils",
    "names",
    "vgg16",
    "vgg19",
]

explain_missing_names(__name__)
