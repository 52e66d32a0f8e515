"""Layers that drop more than single values in training: whole branches of samples, and blocks of feature maps."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from convolt.layers.arguments import check_positive, check_rank
from convolt.layers.base import registry
from convolt.layers.normalization import check_number
from convolt.layers.regularization import _Drop, _Random
from convolt.layout import Shape, to_inside


@registry.register()
class StochasticDepth(_Drop):
    """Drops its whole input for a random share of the samples in training: `x + StochasticDepth(0.1)(branch(x))`.

    What is kept is scaled by `1 / (1 - rate)`, so that inference needs no change; the paper scales in inference instead.

    Args:
        rate: share of the samples, 0 to 1; in a deep network it grows from 0 at the first block.
        seed: None draws from PyTorch's global generator; a whole number gives the layer its own.

    Shapes: any; the output's is the input's.
    Counterparts: `keras_cv.layers.DropPath`, `torchvision.ops.StochasticDepth(mode="row")`. Source: Huang et al. 2016.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = check_number("StochasticDepth", "rate", rate, 0.0, 1.0)
        self._keep_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        return self._drop(x, (x.shape[0], *[1] * (x.ndim - 1)))


@registry.register()
class DropBlock2D(_Random):
    """Sets square blocks of each channel to zero in training, and scales the rest so that the mean stays.

    A block starts at each place where it fits whole, with the probability
    `γ = rate / block_size² · (H · W) / ((H - block_size + 1) · (W - block_size + 1))`; blocks may overlap. The rest is scaled by
    the number of all values over that of those that are left, as in the paper.

    Args:
        rate: about the share of zeros, 0 to 1.
        block_size: side of a block; a smaller picture is one block.
        seed: None draws from PyTorch's global generator; a whole number gives the layer its own.

    Shapes: (batch, height, width, channels), unchanged.
    Counterparts: `keras_cv.layers.DropBlock2D`, `torchvision.ops.DropBlock2d`. Source: Ghiasi et al. 2018.
    """

    def __init__(self, rate: float, block_size: int = 7, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = check_number("DropBlock2D", "rate", rate, 0.0, 1.0)
        self.block_size = check_positive("DropBlock2D", "block_size", block_size)
        self._keep_seed(seed)

    def build(self, input_shape: Shape) -> None:
        check_rank(self, input_shape, 4)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        batch, channels, height, width = x.shape
        tall, wide = min(self.block_size, height), min(self.block_size, width)
        places = (height - tall + 1) * (width - wide + 1)
        gamma = min(1.0, self.rate / (tall * wide) * (height * width) / places)
        starts = x.new_empty((batch, height - tall + 1, width - wide + 1, channels))  # drawn channels last, whatever x's memory
        starts = to_inside(starts.bernoulli_(gamma, generator=self._generator(x.device)))
        dropped = F.max_pool2d(F.pad(starts, (wide - 1, wide - 1, tall - 1, tall - 1)), (tall, wide), 1)
        kept = 1.0 - dropped
        return x * kept * (kept.numel() / kept.sum(dtype=kept.dtype).clamp(min=1.0))
