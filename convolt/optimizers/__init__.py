"""Optimizers with Keras's names, arguments and defaults, on `torch.optim`.

>>> from convolt import optimizers
>>> optimizers.get("adam").learning_rate
0.001
>>> optimizers.SGD("one_cycle", momentum=0.9, nesterov=True).schedule.max_learning_rate
0.01

The life of an optimizer outside `fit`: `optimizer.bind(model.named_parameters())` once, then for each batch
`optimizer.zero_grad()`, `loss.backward()`, `optimizer.step()`.
"""

from __future__ import annotations

from convolt.missing import explain_missing_names
from convolt.optimizers import schedules
from convolt.optimizers.base import Optimizer, registry
from convolt.optimizers.find import deserialize, get, serialize
from convolt.optimizers.standard import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, Lion, Muon, Nadam, RAdam, RMSprop
from convolt.optimizers.torch_class import TorchOptimizer
from convolt.optimizers.trust import LARS, Lamb
from convolt.optimizers.wrapper import Wrapper
from convolt.optimizers.wrappers import SAM, SWA, LayerwiseDecay, Lookahead

__all__ = [
    "LARS",
    "SAM",
    "SGD",
    "SWA",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lamb",
    "LayerwiseDecay",
    "Lion",
    "Lookahead",
    "Muon",
    "Nadam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "TorchOptimizer",
    "Wrapper",
    "deserialize",
    "get",
    "registry",
    "schedules",
    "serialize",
]

explain_missing_names(__name__)
