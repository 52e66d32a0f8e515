"""Augmentation on a CUDA device: the same keys give the pictures of the CPU, without a wait, and in a graph."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from convolt.data import augment as A
from tests.unit.augment.common import EVERY, bytes_of, keys

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICE = "cuda"
COUNT = 48
CHAINS: list[Any] = [
    *[[t] for t in EVERY], [A.RandomFlip(), A.RandomRotation(20), A.RandomZoom(0.2), A.RandomContrast(0.3), A.RandomHue(0.2), A.Cutout(5)],
    [A.RandomResizedCrop(16), A.TrivialAugment(fill_mode="constant"), A.RandomErasing(0.5), A.Normalize(127, 64)],
    [A.RandomCrop(20, padding=2), A.RandAugment(3, 25), A.RandomBlur(1.0), A.RandomNoise(0.05), A.CutMix()]]


def named(chain: Any) -> str:
    return ", ".join(map(repr, chain))


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize("chain", CHAINS, ids=named)
def test_pictures_are_those_of_the_cpu(chain: Any, kind: torch.dtype) -> None:
    x, rows = bytes_of(COUNT), torch.arange(COUNT).flip(0)
    x = x if kind == torch.uint8 else x / 255
    labels, k = torch.arange(COUNT), keys(COUNT)[rows]
    engine = A.Augmentation(chain)
    here = engine.apply(x, rows, k, labels, classes=COUNT)
    there = engine.apply(x.to(DEVICE), rows.to(DEVICE), k.to(DEVICE), labels.to(DEVICE), classes=COUNT)
    assert here.labels is not None and there.labels is not None
    torch.testing.assert_close(there.labels.cpu(), here.labels, atol=1e-5, rtol=0)
    off = (there.images.cpu() - here.images).abs() / (255 if here.images.abs().max() > 2 else 1)
    # A value on the edge of two levels may be rounded to the one here, to the other there: of posterize, equalize, and their like.
    assert float((off > 2e-4).float().mean()) < 2e-3, float(off.max())


@pytest.mark.parametrize("chain", CHAINS, ids=named)
def test_parameters_are_those_of_the_cpu(chain: Any) -> None:
    engine = A.Augmentation(chain)
    here, there = (engine.parameters(keys(500).to(device), 24, 26, 3) for device in ("cpu", DEVICE))
    for field in dataclasses.fields(here):
        ours, theirs = getattr(here, field.name), getattr(there, field.name)
        if isinstance(ours, torch.Tensor):
            torch.testing.assert_close(theirs.cpu(), ours, atol=1e-4, rtol=1e-5, msg=lambda text, name=field.name: f"{name}: {text}")
        else:
            assert ours == theirs


def test_boxes_and_masks_are_those_of_the_cpu() -> None:
    engine = A.Augmentation([A.RandomFlip(), A.RandomRotation(30), A.TrivialAugment()])
    x, k = bytes_of(COUNT), keys(COUNT)
    boxes, masks = torch.tensor([[4.0, 5, 18, 20]]).expand(COUNT, 1, -1).contiguous(), x[..., 0] // 64
    here = engine.apply(x, None, k, boxes=boxes, masks=masks)
    there = engine.apply(x.to(DEVICE), None, k.to(DEVICE), boxes=boxes.to(DEVICE), masks=masks.to(DEVICE))
    torch.testing.assert_close(there.boxes.cpu(), here.boxes, atol=1e-3, rtol=0)  # type: ignore[union-attr]
    assert float((there.masks.cpu() != here.masks).float().mean()) < 2e-3  # type: ignore[union-attr]


@pytest.mark.parametrize("chain", CHAINS[-2:], ids=named)
def test_a_graph_makes_the_pictures_of_new_keys_and_nothing_waits(chain: Any) -> None:
    engine, x, labels = A.Augmentation(chain), bytes_of(COUNT).to(DEVICE), torch.arange(COUNT, device=DEVICE)
    rows, k = torch.arange(COUNT, device=DEVICE), keys(COUNT).to(DEVICE)

    def batch() -> Any:
        return engine.apply(x, rows, k, labels, classes=COUNT)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # constants are sent and kernels compiled before the recording
        batch()
        torch.cuda.set_sync_debug_mode("error")
        try:
            batch()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = batch()
    for epoch in (1, 2):
        k.copy_(keys(COUNT, epoch))
        rows.copy_(torch.randperm(COUNT, generator=torch.Generator().manual_seed(epoch)))
        graph.replay()
        expected = batch()
        assert torch.equal(captured.images, expected.images) and torch.equal(captured.labels, expected.labels)
