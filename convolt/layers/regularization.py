"""Layers that disturb their input in training, and return it unchanged in inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from convolt.errors import ArgumentError, ShapeError, explain
from convolt.layers.arguments import check_rank
from convolt.layers.base import Layer, registry
from convolt.layers.normalization import check_number
from convolt.layers.windows import channels_last_only, label
from convolt.layout import Shape, outside_shape, to_inside, to_outside


class _Random(Layer):
    """What layers with random numbers share: PyTorch's global generator, or with a seed one of their own.

    The layer's own generators, one per device, are in `generators`: a checkpoint that promises bit-equal resume keeps
    their states, and a CUDA graph has them registered.
    """

    supports_masking = True

    def _keep_seed(self, seed: int | None) -> None:
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise ArgumentError(explain(f"{type(self).__name__}(seed)", repr(seed),
                                        "a whole number, or None for the global generator"))
        self.seed = seed
        self.generators: dict[torch.device, torch.Generator] = {}

    def _generator(self, device: torch.device) -> torch.Generator | None:
        """Returns the device's generator; None stands for PyTorch's global one."""
        if self.seed is None or device.type == "meta":
            return None
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self.generators[device]

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the generators, which cannot be copied; a copy of the layer starts from its seed again."""
        return {**self.__dict__, "generators": {}}

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)


class _Drop(_Random):
    """Dropout whose mask has a shape of its own."""

    rate: float

    def _drop(self, x: Tensor, mask_shape: Sequence[int]) -> Tensor:
        """Returns `x` with zeros where the mask (of this shape, channels last) says so, and scaled up elsewhere."""
        if not self.training or self.rate == 0:
            return x
        if self.rate == 1:
            return x * 0
        keep = 1.0 - self.rate
        mask = x.new_empty(tuple(mask_shape)).bernoulli_(keep, generator=self._generator(x.device))
        return x * to_inside(mask.div_(keep))


@registry.register()
class Dropout(_Drop):
    """Sets a random share of the values to zero in training, and scales the others by `1 / (1 - rate)`.

    Args:
        rate: share of zeros, 0 to 1.
        noise_shape: shape of the mask, channels last and with the batch, where values share their fate along the axes
            of size 1; None in it stands for the input's size.
        seed: None draws from PyTorch's global generator; a whole number gives the layer its own.

    Shapes: any; the output's is the input's.
    Keras counterpart: `keras.layers.Dropout`; PyTorch's: `torch.nn.Dropout`. Source: Srivastava et al. 2014.
    """

    def __init__(self, rate: float, noise_shape: Sequence[int | None] | None = None, seed: int | None = None,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = check_number("Dropout", "rate", rate, 0.0, 1.0)
        self.noise_shape = None if noise_shape is None else _check_noise_shape(noise_shape)
        self._keep_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        if self.noise_shape is not None:
            return self._drop(x, self._mask_shape(x))
        if self.seed is not None:
            return self._drop(x, outside_shape(x))
        if not self.training:
            return x
        # Numbers are drawn in memory's order; channels last, the result depends on the seed and not on the layout.
        return to_inside(F.dropout(to_outside(x).contiguous(), self.rate))

    def _mask_shape(self, x: Tensor) -> tuple[int, ...]:
        shape = outside_shape(x)
        wanted = self.noise_shape or ()
        if len(wanted) != len(shape) or any(w not in (None, 1, s) for w, s in zip(wanted, shape, strict=True)):
            raise ShapeError(explain(f"{label(self)} (noise_shape)", wanted,
                                     f"for an input of shape {shape}, at each axis its size, 1 or None"))
        sizes = [s if w is None else w for w, s in zip(wanted, shape, strict=True)]
        return tuple(sizes)


def _check_noise_shape(noise_shape: Any) -> tuple[int | None, ...]:
    sizes = None if isinstance(noise_shape, (str, int)) else tuple(noise_shape)
    if sizes is None or any(s is not None and (isinstance(s, bool) or not isinstance(s, int) or s < 1) for s in sizes):
        raise ArgumentError(explain("Dropout(noise_shape)", repr(noise_shape), "a shape of whole numbers from 1 and None"))
    return sizes


class _SpatialDropout(_Drop):
    """Drops whole channels, the same everywhere in space."""

    space_axes: int

    def _keep_rate(self, rate: float, seed: int | None) -> None:
        self.rate = check_number(type(self).__name__, "rate", rate, 0.0, 1.0)
        self._keep_seed(seed)

    def build(self, input_shape: Shape) -> None:
        check_rank(self, input_shape, self.space_axes + 2)

    def forward(self, x: Tensor) -> Tensor:
        return self._drop(x, (x.shape[0], *[1] * (x.ndim - 2), x.shape[1]))


@registry.register()
class SpatialDropout1D(_SpatialDropout):
    """Sets a random share of the channels to zero, over the whole length (Tompson et al. 2014).

    Args:
        rate: share of the channels, 0 to 1.
        seed: None draws from PyTorch's global generator; a whole number gives the layer its own.

    Shapes: (batch, length, channels), unchanged. Keras counterpart: `keras.layers.SpatialDropout1D`; PyTorch's:
    `torch.nn.Dropout1d`.
    """

    space_axes = 1

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._keep_rate(rate, seed)


@registry.register()
class SpatialDropout2D(_SpatialDropout):
    """Sets a random share of the channels to zero, over the whole image (Tompson et al. 2014).

    Args:
        rate: share of the channels, 0 to 1.
        data_format: None or "channels_last".
        seed: None draws from PyTorch's global generator; a whole number gives the layer its own.

    Shapes: (batch, height, width, channels), unchanged. Keras counterpart: `keras.layers.SpatialDropout2D`; PyTorch's:
    `torch.nn.Dropout2d`.
    """

    space_axes = 2

    def __init__(self, rate: float, data_format: str | None = None, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data_format = channels_last_only(type(self).__name__, data_format)
        self._keep_rate(rate, seed)


@registry.register()
class SpatialDropout3D(SpatialDropout2D):
    """Sets a random share of the channels to zero, over the whole volume (Tompson et al. 2014).

    Args:
        rate, data_format, seed: as in `SpatialDropout2D`.

    Shapes: (batch, depth, height, width, channels), unchanged. Keras counterpart: `keras.layers.SpatialDropout3D`;
    PyTorch's: `torch.nn.Dropout3d`.
    """

    space_axes = 3


@registry.register()
class GaussianNoise(_Random):
    """Adds normal noise in training.

    Args:
        stddev: of the noise, 0 to 1.
        seed: None draws from PyTorch's global generator; a whole number gives the layer its own.

    Shapes: any; the output's is the input's. Keras counterpart: `keras.layers.GaussianNoise`.
    """

    def __init__(self, stddev: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stddev = check_number("GaussianNoise", "stddev", stddev, 0.0, 1.0)
        self._keep_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.stddev == 0:
            return x
        noise = x.new_empty(outside_shape(x)).normal_(0.0, self.stddev, generator=self._generator(x.device))
        return x + to_inside(noise)
