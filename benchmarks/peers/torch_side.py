"""PyTorch: eager as most write it, or tuned (`--variant tuned`: channels_last, fused Adam, autocast, freed memory kept;
`compiled`: the same under torch.compile)."""

import ctypes
import time

from common import START, arguments, data, report, timed_rounds

options = arguments()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402


class Block(nn.Module):
    def __init__(self, before: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, filters, 3, stride, 1, bias=False), nn.BatchNorm2d(filters)
        self.conv2, self.bn2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False), nn.BatchNorm2d(filters)
        shrink = nn.Sequential(nn.Conv2d(before, filters, 1, stride, bias=False), nn.BatchNorm2d(filters))
        self.short = shrink if stride != 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        return F.relu(y + self.short(x), inplace=True)


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1600, 64), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(64, 10),
    )  # fmt: skip


def resnet18() -> nn.Module:
    blocks, before = [], 64
    for filters, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        blocks.append(Block(before, filters, stride))
        before = filters
    return nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), *blocks,
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


tuned = options.variant in ("tuned", "compiled")
device = torch.device(options.device)
if tuned and device.type == "cpu":
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(-3, 2**30)
    libc.mallopt(-1, 2**31 - 1)
model = {"cnn": cnn, "resnet18": resnet18}[options.workload]().to(device)
x, y = data(options.workload, options.batch * (8 if options.workload == "cnn" else 2))
x, y = torch.from_numpy(x).permute(0, 3, 1, 2).to(device), torch.from_numpy(y).to(device)
if tuned:
    model = model.to(memory_format=torch.channels_last)
else:
    x = x.contiguous()
optimizer = torch.optim.Adam(model.parameters(), **({"fused": True} if tuned else {}))
forward = torch.compile(model) if options.variant == "compiled" else model
total = torch.zeros((), device=device)


def step(images: torch.Tensor, labels: torch.Tensor) -> None:
    with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bfloat16"):
        loss = F.cross_entropy(forward(images), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    total.add_(loss.detach())


def epoch() -> int:
    order = torch.randperm(len(x), device=device)
    for chosen in order.split(options.batch):
        step(x[chosen], y[chosen])
    total.item()
    return len(x)


model.train()
step(x[: options.batch], y[: options.batch])
first = time.perf_counter() - START
epoch()
report("pytorch " + (options.variant or "eager"), options, timed_rounds(epoch, options.seconds), first)
