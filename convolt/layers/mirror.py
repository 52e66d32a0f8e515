"""Test-time flip: in inference a model sees each picture and its mirror image, and its answer is the mean of both.

>>> from convolt import layers
>>> x = layers.Input((32, 32, 3))
>>> y = layers.Conv2D(8, 3)(layers.MirrorBatch()(x))
>>> y = layers.MirrorMean()(layers.Dense(10)(layers.GlobalMaxPooling2D()(y)))
>>> y.shape
(None, 10)
"""

from __future__ import annotations

import torch
from torch import Tensor

from convolt.errors import ShapeError, explain
from convolt.layers.base import Layer, registry
from convolt.layers.windows import label
from convolt.layout import Shape


@registry.register()
class MirrorBatch(Layer):
    """Appends the mirror image of each picture to the batch, in inference alone; `MirrorMean` takes the mean later.

    All layers between the two see a batch of twice the size, so they cost twice as much in `predict` and `evaluate`; training is as
    without. Put `MirrorMean` before the softmax: then the mean is that of the logits.

    Shapes: (batch, height, width, channels), unchanged in training; in inference the batch has twice the size.
    """

    def build(self, input_shape: Shape) -> None:
        if len(input_shape) != 4:
            raise ShapeError(explain(label(self), f"input of shape {tuple(input_shape)}", "(batch, height, width, channels)"))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else torch.cat([x, x.flip(-1)])


@registry.register()
class MirrorMean(Layer):
    """Takes the mean of the answers for pictures and mirror images that `MirrorBatch` made, in inference alone.

    Shapes: (batch, …), unchanged in training; in inference the batch has half the size.

    Raises:
        ShapeError: in inference, the batch has an odd size: there is no `MirrorBatch` before.
    """

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x
        if x.shape[0] % 2:
            raise ShapeError(explain(label(self), f"a batch of {x.shape[0]}", "pictures and as many mirror images",
                                     "Put MirrorBatch where the pictures enter."))
        return torch.unflatten(x, 0, (2, -1)).mean(0)
