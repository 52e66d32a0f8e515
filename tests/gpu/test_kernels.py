"""The sweep of the Triton kernels on a CUDA device, and what only a device has: graphs, large tensors, another device."""

from __future__ import annotations

import pytest
import torch

from convolt import kernels
from convolt.kernels import reference
from tests.unit.kernels import sweep
from tests.unit.kernels.cases import CASES, Case

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
TRITON = [c for c in CASES if "triton" in kernels.KERNELS[c.kernel].versions]


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.parametrize(("case", "dtype"), sweep.pairs("triton"), ids=sweep.label)
def test_errors_against_float64(case: Case, dtype: torch.dtype) -> None:
    sweep.check_errors(case, dtype, "triton", "cuda")


@pytest.mark.parametrize("dtype", sweep.SLACK, ids=sweep.label)
@pytest.mark.parametrize("case", TRITON, ids=str)
def test_ten_repeats_are_bit_equal(case: Case, dtype: torch.dtype) -> None:
    if case.name == "frozen":
        pytest.skip("the reference runs")
    sweep.check_repeats(case, dtype, "triton", "cuda")


@pytest.mark.parametrize("dtype", sweep.SLACK, ids=sweep.label)
@pytest.mark.parametrize("case", [c for c in TRITON if c.name in ("odd", "tall_windows", "small", "inference", "features", "ten")], ids=str)
def test_nan_comes_out(case: Case, dtype: torch.dtype) -> None:
    sweep.check_nan(case, dtype, "triton", "cuda")


def test_auto_takes_triton() -> None:
    assert kernels.choose("bn_relu", torch.zeros(1, device="cuda")) == "triton"


@pytest.mark.parametrize("shape", [(128, 64, 112, 112), (64, 2048, 7, 7)])
def test_large_tensors(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    mean, var = torch.zeros(shape[1], device="cuda"), torch.ones(shape[1], device="cuda")
    other = mean.clone(), var.clone()
    got = kernels.bn_relu(x, None, None, mean, var, training=True)
    torch.testing.assert_close(got, reference.bn_relu(x, None, None, *other, training=True), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close((mean, var), other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kernels.relu_max_pool(x), reference.relu_max_pool(x), rtol=0, atol=0)


def test_more_than_two_to_the_31_elements() -> None:
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free memory")
    x = torch.ones(2200, 1000, 32, 32, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    x[-1] = 2.0
    out = kernels.relu_max_pool(x)
    assert float(out[-1].float().mean()) == 2.0 and float(out[-2].float().mean()) == 1.0


def test_a_step_of_every_kernel_is_captured_in_a_graph() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (50, 8, 8, 3), dtype=torch.uint8, device="cuda")
    index = torch.arange(16, device="cuda")
    labels = torch.randint(0, 4, (50,), device="cuda")
    shapes = [(4, 3, 3, 3), (4,), (4,)]
    params = [torch.randn(s, device="cuda").requires_grad_() for s in shapes]
    twins = [p.detach().clone().requires_grad_() for p in params]
    scale, shift = torch.full((3,), 1 / 255, device="cuda"), torch.zeros(3, device="cuda")
    straight = torch.eye(2, 3, device="cuda").expand(16, -1, -1).contiguous()

    def step(ps: list[torch.Tensor], mean: torch.Tensor, var: torch.Tensor, backend: str) -> None:
        x = kernels.warp(images, straight, index=index, scale=scale, shift=shift, backend=backend).permute(0, 3, 1, 2)
        y = kernels.bn_relu(torch.nn.functional.conv2d(x, ps[0], padding=1), ps[1], ps[2], mean, var, training=True, backend=backend)
        logits = kernels.relu_max_pool(y, (8, 8), backend=backend).flatten(1)
        loss = kernels.softmax_crossentropy(logits, labels.index_select(0, index), backend=backend).mean()
        grads = torch.autograd.grad(loss, ps)
        torch._foreach_add_([p.detach() for p in ps], grads, alpha=-0.1)

    state, twin_state = ((torch.zeros(4, device="cuda"), torch.ones(4, device="cuda")) for _ in range(2))
    start = [t.detach().clone() for t in (*params, *state)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(params, *state, "triton")
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step(params, *state, "triton")
    with torch.no_grad():
        for t, s in zip((*params, *state), start, strict=True):
            t.copy_(s)
    for k in range(5):
        index.copy_(torch.arange(16, device="cuda") + k)
        graph.replay()
        step(twins, *twin_state, "reference")
    for a, b in zip((*params, *state), (*twins, *twin_state), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_tensor_on_another_than_the_current_device() -> None:
    x = torch.randn(2, 8, 6, 6, device="cuda:1")
    torch.testing.assert_close(kernels.relu_max_pool(x), reference.relu_max_pool(x))
