"""Transforms in words, as the command line takes them: "flip,rotate=10,zoom=0.2"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convolt.data.augment.base import Transform, registry
from convolt.errors import ArgumentError, did_you_mean, explain

Make = Callable[..., Transform]

COLOUR_AUTO = "flip,rotate=10,translate=0.1,zoom=0.1,brightness=0.1,contrast=0.1"
GRAY_AUTO = "rotate=10,translate=0.1,zoom=0.1"
"""Without flips: grey pictures are often digits and letters, which are others when they are mirrored."""

_FLIPS = {"horizontal": "horizontal", "vertical": "vertical", "both": "horizontal_and_vertical"}


def _flip(mode: str = "horizontal") -> Transform:
    if mode not in _FLIPS:
        raise ArgumentError(explain("augment: flip", repr(mode), f"one of {', '.join(_FLIPS)}"))
    return _named("RandomFlip")(_FLIPS[mode])


def _named(name: str) -> Make:
    """Returns what makes a transform; the class is looked up when it is used, since all of them are registered by then."""

    def make(*args: Any, **kwargs: Any) -> Transform:
        made: Transform = registry.find(name)(*args, **kwargs)
        return made

    return make


WORDS: dict[str, tuple[Make, tuple[Any, ...]]] = {
    "flip": (_flip, ()),
    "alternate_flip": (_named("AlternatingFlip"), ()),
    "rotate": (_named("RandomRotation"), (10.0,)),
    "shear": (_named("RandomShear"), (0.2,)),
    "zoom": (_named("RandomZoom"), (0.2,)),
    "translate": (lambda f: _named("RandomTranslation")(f, f), (0.1,)),
    "crop": (lambda size, padding=0: _named("RandomCrop")(int(size), padding=int(padding)), ()),
    "center_crop": (lambda size: _named("CenterCrop")(int(size)), ()),
    "resized_crop": (lambda size: _named("RandomResizedCrop")(int(size)), ()),
    "resize": (lambda size: _named("Resize")(int(size)), ()),
    "perspective": (_named("RandomPerspective"), (0.2,)),
    "progressive": (lambda start, end, epochs: _named("ProgressiveResizing")(int(start), int(end), int(epochs)), ()),
    "brightness": (_named("RandomBrightness"), (0.2,)),
    "contrast": (_named("RandomContrast"), (0.2,)),
    "saturation": (_named("RandomSaturation"), (0.2,)),
    "hue": (_named("RandomHue"), (0.05,)),
    "channel_shift": (_named("RandomChannelShift"), (0.1,)),
    "grayscale": (_named("RandomGrayscale"), (0.1,)),
    "invert": (_named("RandomInvert"), (0.1,)),
    "cutout": (_named("Cutout"), (0.5,)),
    "erase": (_named("RandomErasing"), (0.5,)),
    "noise": (_named("RandomNoise"), (0.05,)),
    "blur": (_named("RandomBlur"), (1.0,)),
    "mixup": (_named("MixUp"), (0.2,)),
    "cutmix": (_named("CutMix"), (1.0,)),
    "trivial": (lambda: _named("TrivialAugment")(), ()),
    "randaugment": (lambda count=2, magnitude=9: _named("RandAugment")(int(count), magnitude), ()),
}
"""What each word makes, and its numbers where none are given."""


def parse(text: str, channels: int = 3) -> list[Transform]:
    """Returns the transforms that a text names.

    Args:
        text: words with commas between, each alone or with numbers: `rotate=10`, `rotate=-5:20` (a range), `crop=32:4` (size and
            padding), `flip=both`; `auto` is a moderate mixture.
        channels: of the pictures, for `auto`.

    Raises:
        ArgumentError: an unknown word (the nearest is named) or values that do not fit.
    """
    found: list[Transform] = []
    for part in text.split(","):
        word, sign, values = (p.strip() for p in part.partition("="))
        if word == "auto" and not sign:
            found += parse(COLOUR_AUTO if channels >= 3 else GRAY_AUTO)
            continue
        if word not in WORDS:
            known = ["auto", *WORDS]
            raise ArgumentError(explain("augment", repr(word), f"transforms, such as flip,rotate=10,zoom=0.2, of {', '.join(known)}",
                                        did_you_mean(word, known)))
        make, usual = WORDS[word]
        given = _values(word, values) if sign else usual
        if word in _RANGED and len(given) == 2:
            given = ((given[0], given[1]),)
        try:
            found.append(make(*given))
        except TypeError as error:
            got = f"{len(given)} values" if given else "no value"
            raise ArgumentError(explain(f"augment: {word}", got, _FORMS.get(word, f"one number: {word}=0.2"))) from error
    return found


_RANGED = {"rotate", "shear", "zoom", "translate", "brightness", "contrast", "saturation", "hue", "channel_shift"}
_FORMS = {"crop": "a size, and perhaps padding: crop=32:4", "progressive": "first size, last size and epochs: progressive=16:32:5",
          "resize": "a size: resize=64", "center_crop": "a size: center_crop=224", "resized_crop": "a size: resized_crop=224",
          "trivial": "the word alone", "randaugment": "how many operations and their strength from 0 to 30: randaugment=2:9"}


def _values(word: str, text: str) -> tuple[Any, ...]:
    """Returns the numbers (or for flips the word) behind the equals sign."""
    if word == "flip":
        return (text,)
    try:
        return tuple(float(number) for number in text.split(":"))
    except ValueError as error:
        raise ArgumentError(explain(f"augment: {word}", repr(text), "numbers with colons between", f"For example {word}=0.2.")) from error
