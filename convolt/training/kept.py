"""What forward and backward change beside gradients, kept so that it can be put back: buffers and random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class KeptState:
    """Buffers (running statistics, recurrent states) and random state of a model as they were at one moment.

    The random state is that of PyTorch's generators and of seeded layers: others have no part in a step on the device.

    Args:
        model: whose state is meant.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._copies: list[Tensor] = []
        self._modules = list(model.modules())
        self._seeded: list[Any] = [module for module in self._modules if isinstance(getattr(module, "generators", None), dict)]
        self._random: tuple[Any, ...] = ()

    @torch.no_grad()
    def keep(self) -> None:
        """Takes note of the present state, without waiting for the device; copies of earlier calls are written over."""
        buffers = self._buffers()
        if [(c.shape, c.dtype, c.device) for c in self._copies] != [(b.shape, b.dtype, b.device) for b in buffers]:
            self._copies = [torch.empty_like(b) for b in buffers]
        _copy(self._copies, buffers)
        cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        generators = [{device: g.get_state() for device, g in module.generators.items()} for module in self._seeded]
        self._random = (torch.get_rng_state(), torch.cuda.get_rng_state_all() if cuda else [], generators)

    def _buffers(self) -> list[Tensor]:
        """Returns the model's buffers; a tenth of the time of `Module.buffers`, which also makes names, in each step."""
        return list({id(b): b for module in self._modules for b in module._buffers.values() if b is not None}.values())

    def generators(self) -> list[torch.Generator]:
        """Returns the random generators of seeded layers, as far as a forward pass has made them."""
        return [generator for module in self._seeded for generator in module.generators.values()]

    @torch.no_grad()
    def put_back(self) -> None:
        """Makes the state what it was at the last `keep`, and forgets penalties of an unfinished forward."""
        _copy(self._buffers(), self._copies)
        host, cuda, generators = self._random
        torch.set_rng_state(host)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        for module, states in zip(self._seeded, generators, strict=True):
            for device in [device for device in module.generators if device not in states]:
                del module.generators[device]  # made by the attempt, from the layer's seed, as the next one will
            for device, state in states.items():
                module.generators[device].set_state(state)
        penalties: Any = getattr(self._model, "penalties", None)
        if penalties is not None:
            penalties()

    @contextmanager
    def buffers(self) -> Iterator[None]:
        """What happens inside leaves the buffers as they were; on the device alone, fit for capture."""
        buffers = self._buffers()
        with torch.no_grad():
            copies = [b.clone() for b in buffers]
        try:
            yield
        finally:
            with torch.no_grad():
                _copy(buffers, copies)


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)
