"""How kernels see a tensor: one flat run of numbers in channels-last order.

A tensor `(N, C, …)` whose memory is channels-last is a table of `rows` (samples and places) by `C` channels. Strides
of outputs are forced, because PyTorch calls a tensor with C = 1 or one place contiguous in every format, and a
convolution that is handed the wrong strides copies.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

_NAMES = {torch.float32: "<f4", torch.float64: "<f8", torch.uint8: "|u1", torch.int32: "<i4", torch.int64: "<i8"}
KINDS = {(dtype, axes): f"{name}/{axes}" for dtype, name in _NAMES.items() for axes in range(1, 6)}
"""(type, number of axes) of a tensor → what kernels take it for."""
_BITS = {torch.bfloat16: "<i2/1", torch.float32: "<i4/1"}


def channels_last(x: Tensor) -> Tensor:
    """Returns `x` (N, C, …) with channels-last memory; copies only if the memory has another order."""
    if x.ndim == 4:  # told from the strides in half of the time
        _, channels, height, width = x.shape
        if x.stride() == (height * width * channels, 1, width * channels, channels):
            return x
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.ndim > 2 else x.contiguous()


def empty_channels_last(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns an empty tensor of `shape` (N, C, …) with the strides of channels-last memory, also where C is 1."""
    if len(shape) < 3:
        return torch.empty(shape, dtype=dtype, device=device)
    if len(shape) == 4:  # in half of the time
        _, channels, height, width = shape
        return torch.empty_strided(shape, (height * width * channels, 1, width * channels, channels), dtype=dtype, device=device)
    outside = (shape[0], *shape[2:], shape[1])
    return torch.empty(outside, dtype=dtype, device=device).movedim(-1, 1)


def empty_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Returns an empty channels-last tensor of x's shape."""
    return empty_channels_last(tuple(x.shape), dtype or x.dtype, x.device)


class Flat(tuple[str, int, int, Tensor | None]):
    """Where the numbers of a tensor lie, as one axis: what kernels take them for ("<i4/1"), address, how many, and the tensor, if any."""

    __slots__ = ()


def bits(x: Tensor) -> Flat:
    """Returns the bits of a channels-last float32 or bfloat16 CPU tensor for kernels: int32 or int16; never copies."""
    return _flat(x, _BITS[x.dtype])


def numbers(x: Tensor) -> Flat:
    """Returns the numbers of a channels-last CPU tensor for kernels, of its own type; never copies."""
    return _flat(x, KINDS[x.dtype, 1])


def in_order(x: Tensor) -> Tensor:
    """Returns the numbers of a dense tensor as they lie in memory, whatever the order of its axes; never copies."""
    return x.as_strided((x.numel(),), (1,))


def bits_to_come(dtype: torch.dtype, count: int) -> Flat:
    """Returns what `bits` will return of a tensor whose address is not known yet (see `compiled.Prepared`)."""
    return Flat((_BITS[dtype], 0, count, None))


def numbers_to_come(count: int) -> Flat:
    """Returns what `numbers` will return of so many float32 whose address is not known yet."""
    return Flat((KINDS[torch.float32, 1], 0, count, None))


def _flat(x: Tensor, kind: str) -> Flat:
    last = x.is_contiguous(memory_format=torch.channels_last) if x.ndim == 4 else (x.movedim(1, -1) if x.ndim > 2 else x).is_contiguous()
    if not last and x.numel():
        raise ValueError(f"a kernel was given a tensor {tuple(x.shape)} with strides {x.stride()}, expected channels-last memory")
    return Flat((kind, x.data_ptr(), x.numel(), x))


def rows_of(x: Tensor) -> int:
    """Returns how many rows of C channels the tensor has."""
    return x.numel() // max(1, x.shape[1])


def current_device(x: Tensor) -> AbstractContextManager[Any]:
    """Makes x's device the current one, which is where Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def power_of_two(n: int, least: int = 1, most: int = 1 << 20) -> int:
    """Returns the least power of two that is at least n, between two bounds: Triton's tiles have such sides."""
    return max(least, min(most, 1 << max(0, n - 1).bit_length()))


def is_dense(x: Tensor) -> bool:
    """Whether the elements fill one run of memory, in any order of axes, each once."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def taps_have_steps(weight: Tensor) -> bool:
    """Whether weights (F, C, 3, 3) fill their memory, and taps lie equally far apart everywhere: channels-last or contiguous."""
    return is_dense(weight) and weight.stride(2) == 3 * weight.stride(3)
