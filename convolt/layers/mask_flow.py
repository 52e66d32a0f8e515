"""How masks come into a layer's call and out of it (see `convolt.masks`)."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any

from torch import Tensor

from convolt.errors import ConvoltWarning, explain
from convolt.layers.symbolic import leaves
from convolt.masks import attach, mask_of, masks_of

if TYPE_CHECKING:
    from convolt.layers.base import Layer

_named_masks: dict[type, tuple[list[str], list[str]]] = {}


def mask_arguments(cls: type[Layer]) -> tuple[list[str], list[str]]:
    """Returns the names of the arguments of the class's `forward` or `call`, and those among them that are filled with masks."""
    if cls not in _named_masks:
        parameters = inspect.signature(cls.forward).parameters
        hands_on = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters.values())
        if hands_on and hasattr(cls, "call"):
            parameters = inspect.signature(cls.call).parameters
        names = list(parameters)[1:]
        _named_masks[cls] = names, [name for name in names if cls.takes_masks and (
            name == "mask" or (name.endswith("_mask") and name.removesuffix("_mask") in names))]
    return _named_masks[cls]


def fill_masks(cls: type[Layer], given: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Fills the arguments `mask` and `NAME_mask` that were not given from the tensors that they belong to.

    Args:
        cls: of the layer that is called.
        given: its first argument.
        args, kwargs: all of them; `kwargs` is changed.

    Returns:
        The mask that was given, or the first argument's.
    """
    mask = masks_of(given)
    names, wanted = mask_arguments(cls)
    for name in wanted:
        if kwargs.get(name) is not None or name in names[:len(args)]:
            continue
        owner = name.removesuffix("_mask")
        place = names.index(owner) if owner in names else -1
        found = mask if name == "mask" else masks_of(args[place] if 0 <= place < len(args) else kwargs.get(owner))
        if found is not None:
            kwargs[name] = found
    return mask if kwargs.get("mask") is None else kwargs["mask"]


def hand_on(layer: Layer, given: Any, output: Any, mask: Any) -> None:
    """Gives a layer's output its mask, or says once that this layer loses it, as Keras does."""
    if not any(isinstance(tensor, Tensor) for tensor in leaves(output)):
        return  # torch.fx traces, with proxies
    if layer.supports_masking:
        masks = leaves(layer.compute_mask(given, mask))
        for tensor, own in zip(leaves(output), masks, strict=False):
            if isinstance(own, Tensor) and isinstance(tensor, Tensor) and mask_of(tensor) is None:
                attach(tensor, own)
    elif any(isinstance(own, Tensor) for own in leaves(mask)) and not layer.__dict__.get("_told_of_mask"):
        layer.__dict__["_told_of_mask"] = True
        warnings.warn(explain(f"{type(layer).__name__} {layer.name!r}", "an input with a mask, which this layer loses",
                              "a layer that supports masking", "Layers after it see all steps. A layer of your own sets "
                              "self.supports_masking = True if each step of its output is one of its input."),
                      ConvoltWarning, stacklevel=4)
