"""Keeps torch.optim from importing `torch._dynamo`, which alone takes longer than a small training.

Both functions stand in for wrappers that torch.optim puts around its methods for the sake of `torch.compile`. Convolt
compiles no optimizer step: it updates under `no_grad` and captures the step whole.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.optim import Optimizer

_MARK = "__dynamo_disable"  # where torch/_compile.py keeps the form of a method that Dynamo must not enter


@contextmanager
def without_dynamo() -> Iterator[None]:
    """Makes torch optimizers inside of this context without importing Dynamo.

    `Optimizer.add_param_group` is hidden from Dynamo by a wrapper whose first call imports it. Nothing is compiled
    here, so the plain method stands in; a Dynamo that is already imported is left alone.
    """
    plain = getattr(Optimizer.add_param_group, "__wrapped__", None)
    if plain is None or "torch._dynamo" in sys.modules or hasattr(plain, _MARK):
        yield
        return
    setattr(plain, _MARK, plain)
    try:
        yield
    finally:
        delattr(plain, _MARK)


def plain_step(rule: Optimizer) -> Callable[[], Any]:
    """Returns the `step` of one of PyTorch's or Convolt's rules without its wrappers; call it under `no_grad`.

    The wrappers import Dynamo and call hooks, so the optimizers of a user, who may have set hooks, keep theirs.
    """
    ours = type(rule).__module__.startswith(("torch.optim.", "convolt."))
    return partial(inspect.unwrap(type(rule).step), rule) if ours else rule.step
