"""Convolt: deep learning for computer vision, with Keras's ease and PyTorch's ecosystem.

>>> import convolt
>>> from convolt import layers
>>> model = convolt.Sequential([layers.Input((28, 28, 1)), layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(),
...                             layers.Flatten(), layers.Dense(10, activation="softmax")])
>>> model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])

Each name is imported when it is first used, so that the command line can answer without waiting for PyTorch.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# PyTorch's threads wait for the next operation in a loop that keeps its core busy for milliseconds, which takes it from the
# threads of Convolt's kernels. OpenMP reads this once, when PyTorch is imported; what the user has set stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

if TYPE_CHECKING:
    from convolt import (
        activations,
        applications,
        callbacks,
        constraints,
        datasets,
        errors,
        initializers,
        layers,
        losses,
        metrics,
        models,
        optimizers,
        preprocessing,
        regularizers,
        schedules,
        utils,
    )
    from convolt.initializers import Initializer
    from convolt.layers import Input, Layer
    from convolt.losses import Loss
    from convolt.metrics import Metric
    from convolt.models import Functional, Model, Sequential, load_model
    from convolt.optimizers import Optimizer
    from convolt.regularizers import Regularizer
    from convolt.training.checkpoint import Checkpoint

__version__ = "0.1.0.dev0"

__all__ = [
    "Checkpoint",
    "Functional",
    "Initializer",
    "Input",
    "Layer",
    "Loss",
    "Metric",
    "Model",
    "Optimizer",
    "Regularizer",
    "Sequential",
    "activations",
    "applications",
    "callbacks",
    "constraints",
    "datasets",
    "errors",
    "initializers",
    "layers",
    "load_model",
    "losses",
    "metrics",
    "models",
    "optimizers",
    "preprocessing",
    "regularizers",
    "schedules",
    "utils",
]

_HOMES = {"Checkpoint": "training.checkpoint", "Functional": "models", "Initializer": "initializers", "Input": "layers",
          "Layer": "layers", "Loss": "losses",
          "Metric": "metrics", "Model": "models", "Optimizer": "optimizers", "Regularizer": "regularizers",
          "Sequential": "models", "load_model": "models"}
"""Where the names live that are no modules."""


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use (PEP 562)."""
    import importlib

    if name not in __all__:
        from convolt.missing import missing_name

        raise missing_name("convolt", name, __all__)
    home = importlib.import_module(f"convolt.{_HOMES.get(name, name)}")
    value = getattr(home, name) if name in _HOMES else home
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
