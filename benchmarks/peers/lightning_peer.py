"""Lightning: `Trainer(barebones=True)`, which leaves out all that costs time, on the tuned PyTorch model; batches are cut, not collated."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from common import Watch, arguments, run

options = arguments()

import lightning  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler  # noqa: E402
from torch_models import accuracy, build, parameters  # noqa: E402

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
BFLOAT16 = options.precision == "bfloat16"


class Cut(Dataset[Any]):
    """Gives whole batches for lists of numbers."""

    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, chosen: Any) -> Any:
        return self.x[chosen].permute(0, 3, 1, 2), self.y[chosen]


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = build(options.work).to(memory_format=torch.channels_last)
        self.watch: Any = None
        self.test: Any = None

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), fused=True)

    def training_step(self, batch: Any, number: int) -> Any:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def on_train_batch_end(self, *_: Any) -> None:
        self.watch.step()

    def on_train_epoch_end(self) -> None:
        reached = accuracy(self.model, *self.test, BFLOAT16) if self.test else None
        self.trainer.should_stop = self.watch.epoch(reached)


class LightningPeer:
    def __init__(self) -> None:
        self.module = Module()

    def train(self, x: Any, y: Any, test: Any, watch: Watch) -> None:
        self.module.watch = watch
        self.module.test = test and Cut(*test)[:]
        cut = Cut(x, y)
        loader = DataLoader(cut, batch_size=None, sampler=BatchSampler(RandomSampler(cut), options.batch, drop_last=False))
        trainer = lightning.Trainer(accelerator="cpu" if options.device == "cpu" else "auto", devices=1, max_epochs=100_000, barebones=True,
                                    precision="bf16-mixed" if BFLOAT16 else "32-true")
        trainer.fit(self.module, loader)

    def predict(self, x: Any) -> Any:
        raise SystemExit("Lightning's predict is the PyTorch model's own")

    def parameters(self) -> int:
        return parameters(self.module.model)


run("lightning", options, LightningPeer(), ("torch", "lightning"))
