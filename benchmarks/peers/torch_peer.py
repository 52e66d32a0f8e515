"""PyTorch in a loop of one's own.

`--variant` is

    eager     as most write it
    tuned     channels_last and the fused Adam; for `predict`, batch normalization folded into the convolutions as well
    compile   tuned, under torch.compile (weights frozen for `predict`)
    autotune  the same with mode="max-autotune"

In bfloat16 all train under autocast; for `predict`, all but eager convert the model.
"""

from __future__ import annotations

from typing import Any

from common import Watch, arguments, run

options = arguments()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch_models import accuracy, build, parameters  # noqa: E402

if options.device != "cpu":
    torch.set_float32_matmul_precision("high" if options.variant != "eager" else "highest")


class TorchPeer:
    def __init__(self) -> None:
        self.variant, self.tuned = options.variant, options.variant != "eager"
        self.device, self.bfloat16 = torch.device(options.device), options.precision == "bfloat16"
        self.model = build(options.work).to(self.device)
        self.count = parameters(self.model)
        if self.tuned:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.prepare_predict() if options.work.task == "predict" else self.prepare_training()

    def compiled(self, model: Any) -> Any:
        """Returns the model as the variant calls it."""
        if self.variant not in ("compile", "autotune"):
            return model
        return torch.compile(model, mode="max-autotune" if self.variant == "autotune" else None)

    def prepare_training(self) -> None:
        self.optimizer = torch.optim.Adam(self.model.parameters(), **({"fused": True} if self.tuned else {}))
        self.called = self.compiled(self.model)
        self.total = torch.zeros((), device=self.device)

    def prepare_predict(self) -> None:
        self.model.eval()
        if self.tuned:
            if not options.work.zoo:  # whose layers are not PyTorch's, which alone are folded
                from torch.fx.experimental.optimization import fuse

                self.model = fuse(self.model).to(memory_format=torch.channels_last)
            if self.bfloat16:
                self.model = self.model.to(torch.bfloat16)
        if self.variant in ("compile", "autotune"):
            from torch._inductor import config

            config.freezing = True
        self.called = self.compiled(self.model)

    def pictures(self, x: Any) -> torch.Tensor:
        """Returns pictures on the device: channels last in memory where tuned, else contiguous and channels first."""
        tensor = torch.from_numpy(x).to(self.device)
        return tensor if self.tuned else tensor.permute(0, 3, 1, 2).contiguous()

    def take(self, x: torch.Tensor, chosen: Any) -> torch.Tensor:
        """Returns a batch, whose channel axis is at index 1."""
        return x[chosen].permute(0, 3, 1, 2) if self.tuned else x[chosen]

    def step(self, pictures: torch.Tensor, labels: torch.Tensor) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            loss = F.cross_entropy(self.called(pictures), labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.total.add_(loss.detach())

    def train(self, x: Any, y: Any, test: Any, watch: Watch) -> None:
        pictures, labels = self.pictures(x), torch.from_numpy(y).to(self.device)
        if test:
            test_x, test_y = self.take(self.pictures(test[0]), slice(None)), torch.from_numpy(test[1]).to(self.device)
        self.model.train()
        done = False
        while not done:
            for chosen in torch.randperm(len(x), device=self.device).split(options.batch):
                self.step(self.take(pictures, chosen), labels[chosen])
                if not watch.first_step:
                    self.total.item()  # waits for a GPU
                    watch.step()
            self.total.item()
            done = watch.epoch(accuracy(self.model, test_x, test_y, self.bfloat16) if test else None)

    @torch.inference_mode()
    def predict(self, x: Any) -> Any:
        pictures, scores = self.pictures(x), []
        for part in range(0, len(x), options.batch):
            batch = self.take(pictures, slice(part, part + options.batch))
            if self.tuned and self.bfloat16:
                scores.append(self.called(batch.to(torch.bfloat16)).float().softmax(1))
            else:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                    scores.append(self.called(batch).float().softmax(1))
        return torch.cat(scores).cpu().numpy()

    def parameters(self) -> int:
        return self.count


run(f"pytorch {options.variant}", options, TorchPeer(), ("torch",))
