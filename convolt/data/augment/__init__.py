"""Augmentation on the device: transforms that become one resample, one colour matrix and one pass over memory.

>>> from convolt.data import augment
>>> chain = augment.Augmentation([augment.RandomFlip("horizontal"), augment.RandomRotation(10), augment.RandomBrightness(0.2)])
"""

from convolt.data.augment.base import Transform, registry
from convolt.data.augment.colour import (
    RandomBrightness,
    RandomChannelShift,
    RandomContrast,
    RandomGrayscale,
    RandomHue,
    RandomInvert,
    RandomLightness,
    RandomSaturation,
)
from convolt.data.augment.draft import Parameters
from convolt.data.augment.effects import RandomBlur, RandomNoise
from convolt.data.augment.engine import Augmentation, Augmented
from convolt.data.augment.erasing import Cutout, RandomErasing
from convolt.data.augment.geometry import (
    AlternatingFlip,
    CenterCrop,
    RandomCrop,
    RandomFlip,
    RandomPerspective,
    RandomResizedCrop,
    RandomRotation,
    RandomShear,
    RandomTranslation,
    RandomZoom,
    Resize,
)
from convolt.data.augment.keys import keys
from convolt.data.augment.mixing import CutMix, MixUp
from convolt.data.augment.policies import RandAugment, TrivialAugment
from convolt.data.augment.progressive import ProgressiveResizing
from convolt.data.augment.scaling import Normalize, Rescale

__all__ = [
    "AlternatingFlip",
    "Augmentation",
    "Augmented",
    "CenterCrop",
    "CutMix",
    "Cutout",
    "MixUp",
    "Normalize",
    "Parameters",
    "ProgressiveResizing",
    "RandAugment",
    "RandomBlur",
    "RandomBrightness",
    "RandomChannelShift",
    "RandomContrast",
    "RandomCrop",
    "RandomErasing",
    "RandomFlip",
    "RandomGrayscale",
    "RandomHue",
    "RandomInvert",
    "RandomLightness",
    "RandomNoise",
    "RandomPerspective",
    "RandomResizedCrop",
    "RandomRotation",
    "RandomSaturation",
    "RandomShear",
    "RandomTranslation",
    "RandomZoom",
    "Rescale",
    "Resize",
    "Transform",
    "TrivialAugment",
    "keys",
    "registry",
]
