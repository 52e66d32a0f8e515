"""Losses and metrics on a CUDA device: no step waits for the device, and both can be captured in a CUDA graph."""

from __future__ import annotations

import pytest
import torch

from convolt import losses, metrics
from convolt.activations import softmax
from convolt.layout import to_inside
from tests.parity import loss_cases, metric_cases

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

STRINGS = ["accuracy", "precision", "recall", "f1", "auc", "confusion_matrix", "sparse_categorical_crossentropy"]


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    y = torch.randint(0, 10, (256,), device="cuda", generator=generator)
    return y, torch.randn(256, 10, device="cuda", generator=generator), torch.rand(256, device="cuda", generator=generator)


def test_no_update_and_no_loss_waits_for_the_device(batch):
    y, x, weight = batch
    found = [metrics.get(name).to("cuda") for name in STRINGS]
    loss = losses.get("sparse_categorical_crossentropy")
    losses.class_weights_to_sample_weights(y, {0: 2.0})  # the table of weights is uploaded once
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            weights = weight * losses.class_weights_to_sample_weights(y, {0: 2.0})
            x.requires_grad_()
            loss(y, softmax(x), weights).backward()
            for metric in found:
                metric.update(y, softmax(x.detach()), weights)
                metric.result()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(x.grad).all()


def test_loss_and_metrics_in_a_cuda_graph(batch):
    y, x, _ = batch
    found = [metrics.get(name).to("cuda") for name in STRINGS]
    loss = losses.get("sparse_categorical_crossentropy")

    def step() -> torch.Tensor:
        p = softmax(x)
        for metric in found:
            metric.update(y, p)
        return loss(y, p)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    for metric in found:
        metric.reset()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = step()
    for metric in found:
        metric.reset()
    for _ in range(3):
        graph.replay()
    on_cpu = [metrics.get(name) for name in STRINGS]
    for metric, reference in zip(found, on_cpu, strict=True):
        for _ in range(3):
            reference.update(y.cpu(), softmax(x.cpu()))
        torch.testing.assert_close(metric.result().cpu(), reference.result(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(value.cpu(), loss(y.cpu(), softmax(x.cpu())))


@pytest.mark.parametrize("case", loss_cases.CASES + loss_cases.OWN_CASES, ids=str)
def test_every_loss_is_that_of_the_cpu_and_waits_for_nothing(case):
    y, p = case.arrays(case.shapes[-1])
    y, x = losses.targets_to_inside(torch.tensor(y), p.ndim), to_inside(torch.tensor(p)).requires_grad_()
    on_device, there = y.cuda(), x.detach().cuda().requires_grad_()
    loss = case.make()
    loss(on_device, there)  # numbers of the host are uploaded once
    torch.cuda.set_sync_debug_mode("error")
    try:
        value = loss(on_device, there)
        value.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = loss(y, x)
    expected.backward()
    torch.testing.assert_close(value.cpu(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(there.grad.cpu(), x.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", metric_cases.CASES + metric_cases.OWN_CASES, ids=str)
def test_every_metric_is_that_of_the_cpu_and_waits_for_nothing(case):
    y, p = metric_cases.inside(*case.arrays())
    weight = torch.arange(len(y)) % 3
    on_device = y.cuda(), p.cuda(), weight.cuda()
    metric, reference = case.make().to("cuda"), case.make()
    torch.cuda.set_sync_debug_mode("error")
    try:
        metric.update(*on_device)
        value = metric.result()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    reference.update(y, p, weight)
    torch.testing.assert_close(value.cpu(), reference.result(), rtol=1e-5, atol=1e-5)
