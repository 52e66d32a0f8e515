"""Numba's kernels on the CPU: the sweep, and what only they have, a cache, threads and bits."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from convolt import kernels
from convolt.errors import ArgumentError, ShapeError
from convolt.kernels import reference, warp_numba
from convolt.kernels.compiled import Compiled
from tests.unit.kernels import sweep
from tests.unit.kernels.cases import CASES, Case

NUMBA = [c for c in CASES if "numba" in kernels.KERNELS[c.kernel].versions]
OF_PIXELS = ("warp", "picture", "resize")


@pytest.mark.parametrize(("case", "dtype"), sweep.pairs("numba"), ids=sweep.label)
def test_errors_against_float64(case: Case, dtype: torch.dtype) -> None:
    if case.name != "frozen":  # which the reference runs
        assert "numba" not in kernels.KERNELS[case.kernel].versions or kernels.why_not(
            case.kernel, torch.empty(0, dtype=torch.uint8 if case.kernel.startswith(OF_PIXELS) else dtype), "numba") == ""
    sweep.check_errors(case, dtype, "numba", "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_filters_that_stay_cut_off_what_is_below_zero_with_pooling_and_without(dtype: torch.dtype) -> None:
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(3, 32, 10, 12, generator=chance).to(dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(64, 32, 3, 3, generator=chance), torch.randn(64, generator=chance)
    if not kernels.winograd_takes(x, weight, (1, 1), pooled=False):
        pytest.skip("this processor has no products of bfloat16 for it")
    x[1, 5, 4, 4] = float("nan")
    plain, cut, pooled = (kernels.winograd_filters(weight, bias, padding=(1, 1), pool=pool, relu=relu, dtype=dtype)(x)
                          for pool, relu in ((False, False), (False, True), (True, True)))
    assert bool((plain < 0).any()) and bool(plain.isnan().any())
    torch.testing.assert_close(cut, plain.relu(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(pooled, torch.max_pool2d(cut, 2), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("channels", [16, 20])
def test_pooling_alone_has_pytorchs_bits_also_of_what_is_not_finite(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr("convolt.kernels.pool_reference.max_pool", lambda *given, **more: called.append("reference"))
    x = torch.randn(2, channels, 9, 8).contiguous(memory_format=torch.channels_last)
    x[0, 1, 2, 2], x[0, 2, 4, 4], x[1, 3], x[1, 4, 5, 5] = float("nan"), float("inf"), -float("inf"), -0.0
    y = kernels.max_pool(x, (3, 2), (2, 1), (1, 1))
    if channels % 16:
        assert y is None and called == ["reference"]
    else:
        assert not called
        torch.testing.assert_close(y, torch.max_pool2d(x, (3, 2), (2, 1), (1, 1)), rtol=0, atol=0, equal_nan=True)


def test_pooling_alone_refuses_what_has_no_windows() -> None:
    for given in (((0, 2),), ((2, 2), None, (2, 0)), ((2, 2), (0, 1))):
        with pytest.raises(ArgumentError, match="expected numbers from 1"):
            kernels.max_pool(torch.zeros(1, 16, 4, 4), *given)
    with pytest.raises(ShapeError, match="room for"):
        kernels.max_pool(torch.zeros(1, 16, 4, 4), (5, 1))


@pytest.mark.parametrize("case", [c for c in NUMBA if c.name in ("threads", "odd", "small", "pad", "one_way")], ids=str)
def test_repeats_and_thread_counts_are_bit_equal(case: Case) -> None:
    before = torch.get_num_threads()
    try:
        for dtype in sweep.SLACK:
            sweep.check_repeats(case, dtype, "numba", "cpu")
            inputs = sweep.inputs_of(case, dtype, "cpu")
            found = []
            for threads in (1, 3):
                torch.set_num_threads(threads)
                found.append(sweep.results(case, sweep.kernel_op(case, "numba"), inputs, dtype))
            assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", sweep.SLACK, ids=sweep.label)
@pytest.mark.parametrize("case", [c for c in NUMBA if c.name in ("odd", "tall_windows", "small", "inference", "features")], ids=str)
def test_nan_comes_out(case: Case, dtype: torch.dtype) -> None:
    sweep.check_nan(case, dtype, "numba", "cpu")


@pytest.mark.parametrize("shape", [(2, 1, 6, 6), (2, 3, 2, 2), (2, 8, 6, 4)])
def test_outputs_and_gradients_have_channels_last_strides(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).requires_grad_()
    for op in (kernels.relu_max_pool, lambda t: kernels.bn_relu(t, None, None, torch.zeros(shape[1]), torch.ones(shape[1]), training=True)):
        out = op(x)
        _, c, h, w = out.shape
        assert out.stride() == (h * w * c, 1, w * c, c)
        grad = torch.autograd.grad(out, x, torch.randn_like(out))[0]
        assert grad.stride() == (shape[2] * shape[3] * c, 1, shape[3] * c, c)


@pytest.mark.parametrize("op", [kernels.winograd_conv, kernels.tiled_conv], ids=lambda op: op.__name__)
@pytest.mark.parametrize("dtype", sweep.SLACK, ids=sweep.label)
def test_weights_of_tiles_may_lie_in_any_order(dtype: torch.dtype, op: Callable[..., torch.Tensor]) -> None:
    """The order changes no bit, and a gradient lies as its weight does, or an optimizer's step would copy it."""
    torch.manual_seed(0)
    x = torch.randn(2, 32, 6, 8).to(dtype)
    if op is kernels.winograd_conv and not kernels.winograd_takes(x, torch.empty(64, 32, 3, 3), (1, 1), pooled=False):
        pytest.skip("this processor has no products of bfloat16 for it")
    plain, grad = torch.randn(64, 32, 3, 3), torch.randn(2, 64, 6, 8).to(dtype)
    found = []
    for weight in (plain, plain.contiguous(memory_format=torch.channels_last), plain.mT.contiguous().mT,
                   plain.transpose(0, 1).contiguous().transpose(0, 1), plain.repeat(1, 1, 1, 2)[..., :3]):
        given = x.clone().requires_grad_(), weight.detach().requires_grad_()
        y = op(*given, padding=(1, 1), backend="numba")
        found.append([y, *torch.autograd.grad(y, given, grad)])
        if weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last):
            assert found[-1][2].stride() == weight.stride()
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_gradients_of_any_layout_are_taken() -> None:
    x = torch.randn(3, 4, 6, 6)
    for op, plain in ((kernels.relu_max_pool, reference.relu_max_pool),):
        for change in (lambda y: y.sum(), lambda y: y.transpose(2, 3).contiguous().pow(2).sum(), lambda y: y[:, ::2, 1:].sum()):
            a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
            change(op(a)).backward()
            change(plain(b)).backward()
            torch.testing.assert_close(a.grad, b.grad)


def test_inference_keeps_nothing_and_is_the_same() -> None:
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    trained = kernels.relu_max_pool(x)
    with torch.no_grad():
        plain = kernels.relu_max_pool(x)
    assert plain.grad_fn is None and trained.grad_fn is not None and torch.equal(plain, trained)


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_only_wanted_gradients(needs: tuple[bool, bool]) -> None:
    x, bias = torch.randn(2, 8, 6, 6, requires_grad=needs[0]), torch.randn(8, requires_grad=needs[1])
    kernels.bias_relu_max_pool(x, bias).sum().backward()
    assert (x.grad is not None, bias.grad is not None) == needs


@pytest.mark.parametrize("needs", [(True, True, True), (False, True, False), (False, False, True), (False, False, False)])
def test_only_wanted_gradients_of_a_first_convolution(needs: tuple[bool, ...]) -> None:
    torch.manual_seed(2)
    given = [torch.randn(shape, requires_grad=need) for shape, need in zip(((2, 3, 9, 8), (5, 3, 3, 3), (5,)), needs, strict=True)]
    out = kernels.conv_relu_max_pool(*given, padding=(1, 1))
    expected = reference.conv_relu_max_pool(*given, padding=(1, 1))
    torch.testing.assert_close(out, expected)
    wanted = [t for t in given if t.requires_grad]
    assert out.requires_grad == bool(wanted)
    if wanted:
        grads = torch.autograd.grad(out.square().sum(), wanted)
        torch.testing.assert_close(grads, torch.autograd.grad(expected.square().sum(), wanted), rtol=1e-4, atol=1e-4)


def test_a_first_convolution_of_many_channels_or_wide_floats_is_left_to_pytorch() -> None:
    x, weight = torch.randn(2, 5, 6, 6), torch.randn(4, 5, 3, 3)
    assert torch.equal(kernels.conv_relu_max_pool(x, weight), reference.conv_relu_max_pool(x, weight))
    assert kernels.conv_relu_max_pool(x.double(), weight.double()).dtype == torch.float64


def test_a_first_convolution_where_nothing_is_above_zero_has_no_gradient() -> None:
    x, weight, bias = torch.randn(2, 1, 6, 6), torch.randn(4, 1, 3, 3), torch.full((4,), -1e6)
    out = kernels.conv_relu_max_pool(x, weight.requires_grad_(), bias.requires_grad_())
    out.sum().backward()
    assert not out.any() and not weight.grad.any() and not bias.grad.any()


def test_a_first_convolution_takes_the_first_of_equal_values() -> None:
    x, weights = torch.ones(1, 1, 4, 4), [torch.ones(1, 1, 3, 3, requires_grad=True) for _ in range(2)]
    x[0, 0, 3] = torch.tensor([1.0, 1.0, 2.0, 0.0])  # both values in the lower row: 10 and 10
    for op, weight in zip((kernels.conv_relu_max_pool, reference.conv_relu_max_pool), weights, strict=True):
        op(x, weight).sum().backward()
    assert torch.equal(weights[0].grad, weights[1].grad)


def test_bfloat16_is_rounded_to_nearest_even() -> None:
    x = torch.randn(4, 16, 8, 8).to(torch.bfloat16)
    scale, shift = torch.rand(16), torch.randn(16)
    from convolt.kernels import norm_numba

    got = norm_numba.inference(x.contiguous(memory_format=torch.channels_last), None, scale, shift, "linear")
    exact = (x.float() * scale[:, None, None] + shift[:, None, None]).to(torch.bfloat16)
    # Numba's compiler may fuse the product and the sum, which moves a result across a tie once in a while.
    assert float((got != exact).float().mean()) < 0.01


def test_many_python_threads_may_call() -> None:
    x = torch.randn(4, 32, 40, 40)
    expected = reference.relu_max_pool(x)
    wrong: list[int] = []

    def work(number: int) -> None:
        if not all(torch.equal(kernels.relu_max_pool(x), expected) for _ in range(5)):
            wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@Compiled
def copied(images: Any, sizes: Any, flip: Any, far: Any, wide: Any, line: Any, bounds: Any) -> None:
    bounds[0], bounds[1] = warp_numba._copied(images, 0, sizes, flip, far, 1, 8, wide, line)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("flip", [1.0, -1.0])
@pytest.mark.parametrize("far", [-50.0, -9.0, 9.0, 50.0])
def test_a_picture_that_is_moved_out_of_sight_leaves_its_lines_alone(channels: int, flip: float, far: float) -> None:
    images = torch.randint(0, 256, (1, 4, 8, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    matrix = torch.tensor([[[flip, 0.0, far], [0.0, 1.0, 0.0]]])
    for mode in ("constant", "nearest", "reflect", "wrap", "outside"):
        found, expected = (kernels.warp(images, matrix, fill_mode=mode, backend=backend) for backend in ("numba", "reference"))
        assert torch.equal(found, expected), mode
    line = np.zeros(400, np.float32)  # longer than that of the kernel, which ends at 8 pixels
    sizes = (4, 8, channels, channels, 0, 0)
    bounds = np.zeros(2, np.int64)
    copied(images.view(-1).numpy(), sizes, np.float32(flip), int(far), 4 if channels == 3 else 1, line, bounds)
    assert 0 <= bounds[0] <= bounds[1] <= 8 and not line[32:].any()


@pytest.mark.parametrize("fill", ["reflect", "nearest"])
@pytest.mark.parametrize("zoom", [0.4, 1.0, 5.0])
def test_folded_places_are_no_less_exact_than_eager_pytorch(fill: str, zoom: float) -> None:
    """Matrices of all bits, pictures that are looked at far beyond their borders, lines that are no multiple of a vector."""
    chance = torch.Generator().manual_seed(int(10 * zoom))
    for (height, width), size in (((40, 50), (33, 51)), ((2, 3), (20, 16)), ((90, 70), (9, 130)), ((300, 200), (60, 40))):
        images = torch.randint(0, 256, (3, height, width, 3), dtype=torch.uint8, generator=chance)
        matrix = torch.randn(4, 2, 3, generator=chance) * zoom
        matrix[:, :, 2] = torch.rand(4, 2, generator=chance) * torch.tensor([width, height])
        mixed, apart = torch.randn(4, 3, 4, generator=chance), torch.eye(3, 4).expand(4, -1, -1) * 0.7
        for colour in (None, mixed, apart):
            settings = {"index": torch.tensor([2, 0, 1, 2]), "size": size, "fill_mode": fill, "colour": colour, "limits": (-20.0, 270.0),
                        "samples": torch.tensor([[1, 1], [2, 1], [1, 3], [1, 1]]), "most_samples": 3}
            found, eager = (kernels.warp(images, matrix, backend=backend, **settings) for backend in ("numba", "reference"))
            true = reference.warp(images, matrix.double(), **settings, dtype=torch.float64)
            mine, theirs = (float((result.double() - true).abs().max()) for result in (found, eager))
            assert mine <= 1.5 * theirs + 1e-4, f"{height}×{width}: error {mine:.2e}, eager PyTorch has {theirs:.2e}"


def test_a_picture_does_not_depend_on_what_lies_behind_it() -> None:
    """The last one of a tensor is read from a copy, since more bytes are read than a pixel has."""
    images = torch.randint(0, 256, (3, 70, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    matrix = torch.tensor([[[0.8, 0.3, -9.7], [-0.4, 1.1, 3.3]]])
    for size in ((64, 64), (8, 8)):
        last, inner = (kernels.warp(given, matrix, index=torch.tensor([1]), size=size, backend="numba") for given in (images[:2], images))
        assert torch.equal(last, inner)
