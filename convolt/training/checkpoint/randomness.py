"""The state of every generator of random numbers that a training may draw from, as tensors."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convolt.errors import CheckpointError, explain


def random_state(model: nn.Module, generators: Sequence[torch.Generator] = ()) -> dict[str, Tensor]:
    """Returns the states of Python's, NumPy's and PyTorch's generators (on each CUDA device), of seeded layers, and of a loader.

    Args:
        model: whose layers with a seed have generators of their own.
        generators: those of the training data's source.
    """
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    found = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(np.array([*keys, position, has_gauss], dtype=np.int64)),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    found |= {f"layer/{name}/{device}": generator.get_state() for name, device, generator in _layer_generators(model)}
    return found | {f"loader/{i}": generator.get_state() for i, generator in enumerate(generators)}


def set_random_state(states: Mapping[str, Tensor], model: nn.Module, generators: Sequence[torch.Generator] = ()) -> None:
    """Sets all generators to what `random_state` returned.

    Raises:
        CheckpointError: the states are no states of these generators.
    """
    try:
        words = tuple(int(word) for word in states["python"].tolist())
        gauss = states["python_gauss"].tolist()
        random.setstate((3, words, gauss[0] if gauss else None))
        numbers = states["numpy"].numpy()
        cached = float(states["numpy_gauss"][0])
        np.random.set_state(("MT19937", numbers[:-2].astype(np.uint32), int(numbers[-2]), int(numbers[-1]), cached))
        torch.set_rng_state(states["torch"])
        for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            if f"cuda:{i}" in states:
                torch.cuda.set_rng_state(states[f"cuda:{i}"], i)
        _set_layers(states, model)
        for i, generator in enumerate(generators):
            generator.set_state(states[f"loader/{i}"])
    except (KeyError, ValueError, TypeError, IndexError, RuntimeError, OverflowError) as error:
        raise CheckpointError(explain("checkpoint: random state", f"{type(error).__name__}: {error}", "the state of these generators",
                                      "Resume with the same model and the same kind of data.")) from error


def _layer_generators(model: nn.Module) -> Iterator[tuple[str, torch.device, torch.Generator]]:
    for name, module in model.named_modules():
        own: Any = getattr(module, "generators", None)
        if isinstance(own, dict):
            yield from ((name, device, generator) for device, generator in own.items())


def _set_layers(states: Mapping[str, Tensor], model: nn.Module) -> None:
    """Makes the generators of seeded layers anew, on the devices that the state names."""
    for name, module in model.named_modules():
        own: Any = getattr(module, "generators", None)
        if not isinstance(own, dict):
            continue
        own.clear()
        prefix = f"layer/{name}/"
        for key in [key for key in states if key.startswith(prefix)]:
            device = torch.device(key.removeprefix(prefix))
            own[device] = torch.Generator(device)
            own[device].set_state(states[key])
