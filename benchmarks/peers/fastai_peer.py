"""fastai's `Learner` without its vision part (which needs torchvision), on the tuned PyTorch model; batches are cut, not collated."""

from __future__ import annotations

from typing import Any

from common import Watch, arguments, run

options = arguments()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from fastai.basics import Callback, CancelFitException, DataLoaders, Learner, OptimWrapper  # noqa: E402
from torch_models import accuracy, build, parameters  # noqa: E402

BFLOAT16 = options.precision == "bfloat16"


class Batches:
    """An epoch of shuffled batches, as `Learner` reads one."""

    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)
        self.dataset, self.bs, self.device = self.x, options.batch, torch.device(options.device)

    def __len__(self) -> int:
        return -(-len(self.x) // options.batch)

    def __iter__(self) -> Any:
        for chosen in torch.randperm(len(self.x)).split(options.batch):
            yield self.x[chosen].permute(0, 3, 1, 2), self.y[chosen]


class Tell(Callback):
    """Tells the watch, and computes in bfloat16 where asked (fastai's own mixed precision is for GPUs)."""

    def __init__(self, watch: Watch, test: Any) -> None:
        self.watch, self.test = watch, test
        self.autocast = torch.autocast(options.device, torch.bfloat16, enabled=BFLOAT16)

    def before_batch(self) -> None:
        self.autocast.__enter__()

    def after_loss(self) -> None:
        self.autocast.__exit__(None, None, None)

    def after_batch(self) -> None:
        self.watch.step()

    def after_train(self) -> None:
        if self.watch.epoch(accuracy(self.learn.model, *self.test, BFLOAT16) if self.test else None):
            raise CancelFitException


class FastaiPeer:
    def __init__(self) -> None:
        self.model = build(options.work).to(memory_format=torch.channels_last)

    def train(self, x: Any, y: Any, test: Any, watch: Watch) -> None:
        if test:
            test = torch.from_numpy(test[0]).permute(0, 3, 1, 2), torch.from_numpy(test[1])
        batches = Batches(x, y)
        learner = Learner(DataLoaders(batches, []), self.model, loss_func=F.cross_entropy, lr=1e-3,
                          opt_func=lambda groups, **how: OptimWrapper(groups, torch.optim.Adam, fused=True, **how))
        with learner.no_logging():
            learner.fit(100_000, cbs=Tell(watch, test))

    def predict(self, x: Any) -> Any:
        raise SystemExit("fastai's predict is the PyTorch model's own")

    def parameters(self) -> int:
        return parameters(self.model)


run("fastai", options, FastaiPeer(), ("torch", "fastai"))
