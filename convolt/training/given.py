"""Packs, folders with a pack beside them and Hugging Face sets given to `fit`, `evaluate` or `predict` become `Pictures` or streams."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from convolt.data.batch_spec import spec_of
from convolt.data.folder import ImageFolder, check_same_classes
from convolt.data.huggingface import from_huggingface, is_huggingface
from convolt.data.pack import Pack, PackPart, StalePackWarning
from convolt.data.parts import packed_in_place_of
from convolt.data.pictures import Pictures
from convolt.data.stream import SampleStream
from convolt.errors import ConvoltWarning, explain

VALIDATION = "fit(validation_data)"

PARTS = {"fit": ("train",), VALIDATION: ("validation", "test"), "evaluate": ("test", "validation"),
         "predict": ("test", "validation", "train")}
"""What is asked → the parts of a pack that are meant, the first that there is."""


class ClassNamesWarning(ConvoltWarning):
    """A model has other class names than the data that it is trained on."""


def as_pictures(what: str, x: Any, input_shapes: Sequence[Any]) -> tuple[Any, str]:
    """Returns (`x` as pictures or a stream of such where it stands for these, else as it is; a sentence about it, or "").

    Args:
        what: "fit", "fit(validation_data)", "evaluate" or "predict".
        x: anything.
        input_shapes: of the model; pictures of a Hugging Face set are read in its size and colours.

    Raises:
        ArgumentError, DataError: a set has no pictures, or a pack not the part that is meant.

    Warns:
        StalePackWarning: the folder of a pack has changed since it was packed.
    """
    if isinstance(x, Pack):
        if changed := x.stale():
            warnings.warn(f"{changed}: the pack's pictures are used. Pack the folder anew.", StalePackWarning, stacklevel=5)
        return x.pictures_of(*PARTS[what]), ""
    if isinstance(x, PackPart):
        return x.as_pictures, ""
    if isinstance(x, ImageFolder):
        return packed_in_place_of(x)
    if is_huggingface(x):
        size, colours = read_as(input_shapes)
        found = from_huggingface(x, image_size=size, color_mode=colours)
        of_size = "" if size is None else f" {size[0]}×{size[1]}"
        return found, f"{what}: pictures of the Hugging Face set are read as{of_size} {colours}; from_huggingface reads them otherwise."
    return x, ""


def read_as(input_shapes: Sequence[Any]) -> tuple[tuple[int, int] | None, str]:
    """Returns (size, color_mode) of the pictures that a model takes; None where it takes any size."""
    shape = tuple(input_shapes[0]) if len(input_shapes) == 1 else ()
    if len(shape) != 4:
        return None, "rgb"
    size = None if None in shape[1:3] else (int(shape[1]), int(shape[2]))
    return size, {1: "grayscale", 4: "rgba"}.get(shape[3], "rgb")


def names_of(x: Any) -> list[str]:
    """Returns the names of the classes that data bring along, in the order of the labels; none where the names are the labels' numbers."""
    source = getattr(x, "folder", x)  # batches of a folder have one
    if (spec := spec_of(x)) is not None and spec.reconstructs:
        return []
    if isinstance(source, SampleStream) or (isinstance(source, Pictures) and source.named):
        return list(source.class_names)
    return []


def check_classes(train: Any, validation: Any) -> None:
    """Raises `DataError` where the pictures of training and of validation have names of classes, and other ones."""
    names, others = names_of(train), names_of(validation)
    if names and others:
        check_same_classes(names, others, VALIDATION)


def give_class_names(model: Any, names: Sequence[str]) -> None:
    """Gives a model the names of its classes, which its file keeps, where it has none.

    Warns:
        ClassNamesWarning: it has others.
    """
    if names and not getattr(model, "class_names", None):
        model.class_names = list(names)
    compare_class_names(model, names)


def compare_class_names(model: Any, names: Sequence[str]) -> None:
    """Warns (`ClassNamesWarning`) where a model and data have names of classes, and other ones."""
    own = getattr(model, "class_names", None)
    if names and own and list(own) != list(names):
        warnings.warn(explain("model.class_names", _few(own), f"{_few(names)}, the classes of the data",
                              "model.class_names = None takes those of the data."), ClassNamesWarning, stacklevel=6)


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
