"""Updates of all parameters of a model in one launch on CUDA devices: SGD with momentum, Adam and AdamW.

The tensors lie anywhere: a table on the device holds their addresses, another one says which block of which tensor
each program takes. The tables are made once for a set of addresses and kept.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: N803 (compile-time constants are upper case, as in Triton's own code)

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from convolt.kernels.memory import current_device

BLOCK = 1024
KEPT = 16
"""Tables that are kept; a training loop needs one or two."""

_TYPES: dict[torch.dtype, Any] = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclass(frozen=True)
class _Tables:
    """`addresses` (kinds, tensors) int64, `blocks` (programs, 2) int64: tensor and first element, `sizes` (tensors,) int64."""

    addresses: Tensor
    blocks: Tensor
    sizes: Tensor
    source: tuple[Tensor, ...]  # the host's copy must outlive a transfer that a CUDA graph repeats


_tables: OrderedDict[tuple[int, ...], _Tables] = OrderedDict()


def _make_tables(groups: Sequence[Sequence[Tensor]], device: torch.device) -> _Tables:
    sizes = [t.numel() for t in groups[0]]
    key = (device.index or 0, *(t.data_ptr() for group in groups for t in group), *sizes)
    if key in _tables:
        _tables.move_to_end(key)
        return _tables[key]
    host = (torch.tensor([[t.data_ptr() for t in group] for group in groups], dtype=torch.int64),
            torch.tensor([[i, start] for i, size in enumerate(sizes) for start in range(0, size, BLOCK)], dtype=torch.int64),
            torch.tensor(sizes, dtype=torch.int64))
    if device.type == "cuda":
        host = (host[0].pin_memory(), host[1].pin_memory(), host[2].pin_memory())
    addresses, blocks, lengths = (t.to(device, non_blocking=True) for t in host)
    _tables[key] = _Tables(addresses, blocks, lengths, host)
    while len(_tables) > KEPT:
        _tables.popitem(last=False)
    return _tables[key]


@triton.jit
def _tensor(addresses, kind, count, which, TYPE: tl.constexpr):
    return tl.load(addresses + kind * count + which).to(tl.pointer_type(TYPE))


@triton.jit
def _adam(addresses, blocks, sizes, lr, decay, count, beta1, beta2, eps, GRAD: tl.constexpr, DECAY: tl.constexpr,
          SHADOW: tl.constexpr, SIZE: tl.constexpr):
    which = tl.load(blocks + 2 * tl.program_id(0))
    e = tl.load(blocks + 2 * tl.program_id(0) + 1) + tl.arange(0, SIZE)
    mask = e < tl.load(sizes + which)
    p_at = _tensor(addresses, 0, count, which, tl.float32) + e
    g = tl.load(_tensor(addresses, 1, count, which, GRAD) + e, mask=mask, other=0.0).to(tl.float32)
    m_at = _tensor(addresses, 2, count, which, tl.float32) + e
    v_at = _tensor(addresses, 3, count, which, tl.float32) + e
    p = tl.load(p_at, mask=mask, other=0.0)
    m = tl.load(m_at, mask=mask, other=0.0)
    v = tl.load(v_at, mask=mask, other=0.0)
    if DECAY:
        p -= p * tl.load(decay)
    m = m * beta1 + g * (1.0 - beta1)
    v = v * beta2 + g * g * (1.0 - beta2)
    p -= tl.load(lr) * m / (tl.sqrt(v) + eps)
    tl.store(p_at, p, mask=mask)
    tl.store(m_at, m, mask=mask)
    tl.store(v_at, v, mask=mask)
    if SHADOW:
        tl.store(_tensor(addresses, 4, count, which, tl.bfloat16) + e, p.to(tl.bfloat16), mask=mask)


@triton.jit
def _sgd(addresses, blocks, sizes, lr, decay, count, momentum, GRAD: tl.constexpr, DECAY: tl.constexpr, MOMENTUM: tl.constexpr,
         NESTEROV: tl.constexpr, SHADOW: tl.constexpr, SIZE: tl.constexpr):
    which = tl.load(blocks + 2 * tl.program_id(0))
    e = tl.load(blocks + 2 * tl.program_id(0) + 1) + tl.arange(0, SIZE)
    mask = e < tl.load(sizes + which)
    p_at = _tensor(addresses, 0, count, which, tl.float32) + e
    g = tl.load(_tensor(addresses, 1, count, which, GRAD) + e, mask=mask, other=0.0).to(tl.float32)
    p = tl.load(p_at, mask=mask, other=0.0)
    if DECAY:
        p -= p * tl.load(decay)
    change = -tl.load(lr) * g
    if MOMENTUM:
        v_at = _tensor(addresses, 2, count, which, tl.float32) + e
        v = momentum * tl.load(v_at, mask=mask, other=0.0) + change
        tl.store(v_at, v, mask=mask)
        change = momentum * v + change if NESTEROV else v
    p += change
    tl.store(p_at, p, mask=mask)
    if SHADOW:
        kind: tl.constexpr = 3 if MOMENTUM else 2
        tl.store(_tensor(addresses, kind, count, which, tl.bfloat16) + e, p.to(tl.bfloat16), mask=mask)


def adam(params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor], lr: Tensor, decay: Tensor | None,
         betas: tuple[float, float], eps: float, shadows: list[Tensor]) -> None:
    """See `reference.update_adam`."""
    groups = [params, grads, exp_avgs, exp_avg_sqs, *([shadows] if shadows else [])]
    tables = _make_tables(groups, params[0].device)
    with current_device(params[0]):
        _adam[(len(tables.blocks),)](tables.addresses, tables.blocks, tables.sizes, lr, lr if decay is None else decay, len(params),
                                     *betas, eps, _TYPES[grads[0].dtype], decay is not None, bool(shadows), BLOCK)


def sgd(params: list[Tensor], grads: list[Tensor], velocities: list[Tensor], lr: Tensor, decay: Tensor | None, momentum: float,
        nesterov: bool, shadows: list[Tensor]) -> None:
    """See `reference.update_sgd`."""
    groups = [params, grads, *([velocities] if velocities else []), *([shadows] if shadows else [])]
    tables = _make_tables(groups, params[0].device)
    with current_device(params[0]):
        _sgd[(len(tables.blocks),)](tables.addresses, tables.blocks, tables.sizes, lr, lr if decay is None else decay, len(params),
                                    momentum, _TYPES[grads[0].dtype], decay is not None, bool(velocities), nesterov, bool(shadows), BLOCK)
