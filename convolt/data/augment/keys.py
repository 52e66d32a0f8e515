"""Random numbers keyed by (seed, epoch, sample): the same for a sample whatever the batch, the workers or the device.

A counter-based generator in integer arithmetic of tensors: no state, no host sync, nothing that a CUDA graph could not record.
The mixer is SplitMix64's (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators").
"""

from __future__ import annotations

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_ALL = (1 << 64) - 1


def signed(number: int) -> int:
    """Returns the int64 that has the low 64 bits of `number`."""
    number &= _ALL
    return number - (1 << 64) if number >> 63 else number


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shifts right and fills with zeros; PyTorch's own shift of int64 repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """Returns int64 in which each bit depends on all bits of the int64 `x`; one to one."""
    x = (x ^ _shifted(x, 30)) * signed(_FIRST)
    x = (x ^ _shifted(x, 27)) * signed(_SECOND)
    return x ^ _shifted(x, 31)


def _mix_number(x: int) -> int:
    x &= _ALL
    x = ((x ^ (x >> 30)) * _FIRST) & _ALL
    x = ((x ^ (x >> 27)) * _SECOND) & _ALL
    return x ^ (x >> 31)


def keys(seed: int, epoch: int | Tensor, sample_ids: Tensor) -> Tensor:
    """Returns one key for each sample of an epoch.

    Args:
        seed: of the run.
        epoch: number of the epoch; also an integer tensor of no axes on the device of `sample_ids`, as where a captured step reads it.
        sample_ids: (N,) integers that name the samples: their rows in the data set.

    Returns:
        (N,) int64 on the device of `sample_ids`.
    """
    start = _mix_number(seed + 1)
    if isinstance(epoch, Tensor):
        stream = mix(epoch.to(torch.int64) * signed(GOLDEN) + signed(start))
        return mix(sample_ids.to(torch.int64) * signed(GOLDEN) + stream)
    return mix(sample_ids.to(torch.int64) * signed(GOLDEN) + signed(_mix_number(signed(epoch * GOLDEN + start))))


def alternating(made: Tensor, seed: int, epoch: int | Tensor, sample_ids: Tensor) -> Tensor:
    """Returns keys with another lowest bit: random for a sample in the first epoch, and the other one in each next epoch.

    Args:
        made: (N,) what `keys` returned for the same seed, epoch and samples.
        seed, epoch, sample_ids: as for `keys`.
    """
    first = derived(keys(seed, 0, sample_ids), 0)
    return (made & -2) | ((first + epoch) & 1)


def derived(keys: Tensor, number: int) -> Tensor:
    """Returns other keys, one for each; `number` tells several such families apart."""
    return mix(keys + signed(_mix_number(number + 1)))


def bits_of(keys: Tensor, counters: Tensor) -> Tensor:
    """Returns 64 random bits for each key (N,) and counter (K,): int64 (N, K)."""
    return mix(keys[:, None] + (counters + 1) * signed(GOLDEN))


def uniform(keys: Tensor, counters: Tensor) -> Tensor:
    """Returns float64 numbers from 0 up to but not 1, one for each key (N,) and counter (K,): (N, K), float32 where there is no float64.

    Counters are int64, one for each number that is ever drawn with a key. The numbers are multiples of 2⁻²⁴, which each floating type
    from float32 on has exactly.
    """
    bits = _shifted(bits_of(keys, counters), 40)
    return bits.to(real_type(keys.device)) * 2.0**-24


def real_type(device: torch.device) -> torch.dtype:
    """Returns the type in which parameters are computed: float64, so that devices round alike, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
