"""Masks of sequences: which steps of a sample count. A mask travels on the tensor that it belongs to, as in Keras.

A mask is a bool tensor in the order that the user sees, `(batch, steps)`: False marks a step that is padding.
`convolt.layers.Masking` and `Embedding(mask_zero=True)` make one, layers hand it on (see `Layer.compute_mask`), and the
loss and the metrics of a masked output leave its False steps out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

NAME = "_keras_mask"  # the attribute's name in Keras, which programs read


def mask_of(value: Any) -> Tensor | None:
    """Returns the mask that a tensor carries; None for a tensor without one and for all that is no tensor."""
    return getattr(value, NAME, None) if isinstance(value, Tensor) else None


def masks_of(values: Any) -> Any:
    """Returns the mask of a tensor, or for a list, tuple or mapping of tensors a list of their masks; None if none has one."""
    if isinstance(values, Tensor):
        return getattr(values, NAME, None)
    if isinstance(values, Mapping):
        values = list(values.values())
    if not isinstance(values, (list, tuple)):
        return None
    found = [masks_of(value) for value in values]
    return found if any(mask is not None for mask in found) else None


def attach(value: Tensor, mask: Tensor | None) -> Tensor:
    """Lets a tensor carry a mask (None: takes it away) and returns the tensor."""
    if mask is not None or mask_of(value) is not None:
        setattr(value, NAME, mask)
    return value


def masked_weight(mask: Tensor | None, sample_weight: Tensor | None) -> Tensor | None:
    """Returns weights that are zero for masked steps; without a mask, the weights as they are.

    Args:
        mask: of the predictions, `(batch, steps)`.
        sample_weight: `(batch,)` or one weight per step; None for ones.
    """
    if mask is None:
        return sample_weight
    weight = mask.to(torch.float32)
    if sample_weight is None:
        return weight
    given = sample_weight.to(weight.device)
    if given.ndim == weight.ndim + 1 and given.shape[-1] == 1:
        given = given.squeeze(-1)
    return weight * given.reshape(*given.shape, *(1,) * (weight.ndim - given.ndim))
