"""The table of kernels is complete, says who can run what, and falls back loudly."""

from __future__ import annotations

import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch

import convolt.kernels as package
from convolt import kernels
from convolt.errors import ArgumentError, ShapeError
from convolt.kernels import reference, registry
from tests.unit.kernels.cases import CASES

FOLDER = Path(package.__file__).parent
TOOLS = {f"{name}_numba" for name in (
    "bits", "folded", "lanes", "lines", "patches", "pixels", "places", "planes", "sums", "team", "vectors", "winograd_filters",
    "winograd_tiles", "winograd4_filters", "winograd4_tiles")}
"""What the kernels of a backend share."""


@pytest.fixture(autouse=True)
def fresh_table() -> object:
    registry.reset()
    yield
    registry.reset()


def unregistered(folder: Path) -> set[str]:
    """Returns the modules of kernels that no row of the table names."""
    files = {path.stem for pattern in ("*_numba.py", "*_triton.py") for path in folder.glob(pattern)}
    named = {module.rsplit(".", 1)[1] for row in kernels.KERNELS.values() for module in row.versions.values()}
    return files - named - TOOLS


def test_every_kernel_file_is_registered(tmp_path: Path) -> None:
    assert unregistered(FOLDER) == set()
    (tmp_path / "wild_numba.py").write_text("")
    assert unregistered(tmp_path) == {"wild_numba"}


def test_every_file_that_a_row_names_exists() -> None:
    for row in kernels.KERNELS.values():
        for module in row.versions.values():
            assert (FOLDER / f"{module.rsplit('.', 1)[1]}.py").is_file()


@pytest.mark.parametrize("name", kernels.KERNELS)
def test_every_row_has_an_op_a_reference_and_cases(name: str) -> None:
    assert callable(getattr(kernels, name)) and callable(getattr(reference, name)) and name in kernels.__all__
    assert [c for c in CASES if c.kernel == name], f"{name} has no case in tests/unit/kernels/cases.py"
    assert kernels.KERNELS[name].what


def test_cases_name_known_kernels_and_have_names_of_their_own() -> None:
    assert {c.kernel for c in CASES} <= set(kernels.KERNELS)
    assert len({str(c) for c in CASES}) == len(CASES)


def test_importing_loads_neither_numba_nor_triton() -> None:
    code = "import sys, convolt.kernels; print([m for m in ('numba', 'triton') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_reasons() -> None:
    assert kernels.why_not("relu_max_pool", torch.zeros(1), "numba") == ""
    assert "float64" in kernels.why_not("relu_max_pool", torch.zeros(1, dtype=torch.float64), "numba")
    assert "no numba version" in kernels.why_not("softmax_crossentropy", torch.zeros(1), "numba")
    assert kernels.choose("relu_max_pool", torch.zeros(1, dtype=torch.float64)) == "reference"
    assert kernels.choose("relu_max_pool", torch.zeros(1)) == "numba"
    assert kernels.choose("relu_max_pool", torch.zeros(1, device="meta")) == "reference"
    with pytest.raises(ArgumentError, match="Did you mean 'relu_max_pool'"):
        kernels.choose("relu_max_poll", torch.zeros(1))
    with pytest.raises(ArgumentError, match="Did you mean 'numba'"):
        kernels.relu_max_pool(torch.zeros(1, 1, 2, 2), backend="numbaa")
    with pytest.raises(ArgumentError, match="float64"):
        kernels.relu_max_pool(torch.zeros(1, 1, 2, 2, dtype=torch.float64), backend="numba")


def test_a_version_that_cannot_be_imported_is_given_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> types.ModuleType:
        raise ImportError("no llvm here")

    monkeypatch.setattr(registry.importlib, "import_module", fail)
    x = torch.randn(2, 3, 4, 4)
    with pytest.warns(kernels.KernelWarning, match=r"relu_max_pool.*numba.*no llvm here"):
        got = kernels.relu_max_pool(x)
    assert torch.equal(got, reference.relu_max_pool(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(kernels.relu_max_pool(x), got)
        assert torch.equal(kernels.relu_max_pool(x, backend="numba"), got)
    assert "no llvm here" in kernels.why_not("relu_max_pool", x, "numba")


@pytest.mark.parametrize("failing", ["forward", "backward"])
@pytest.mark.parametrize("name", ["bias_relu_max_pool", "conv_relu_max_pool", "bn_relu", "bn_add", "bn_add_relu", "bn_relu_max_pool"])
def test_a_pass_that_fails_is_done_by_the_reference(name: str, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> object:
        raise RuntimeError("the compiler gave up")

    monkeypatch.setattr(registry.load(name, "numba"), failing, fail)
    torch.manual_seed(0)
    x, r, c = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.randn(3)

    def gradients(module: object) -> list[torch.Tensor]:
        a, b, w = (t.clone().requires_grad_() for t in (x, r, c))
        op = getattr(module, name)
        if name == "bias_relu_max_pool":
            out = op(a, w)
        elif name == "conv_relu_max_pool":
            out = op(x, b[0, 0, 0].view(4, 1, 1, 1) * torch.ones(4, 3, 3, 3), None)
        else:
            out = op(a, *([b] if "add" in name else []), w, w, torch.zeros(3), torch.ones(3), training=True)
        out.pow(2).sum().backward()
        return [out.detach(), *(t.grad for t in (a, b, w) if t.grad is not None)]

    with pytest.warns(kernels.KernelWarning, match="the compiler gave up") as caught:
        got = gradients(kernels)
    assert len(caught) == 1
    for a, b in zip(got, gradients(reference), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["winograd_conv", "winograd_max_pool", "tiled_conv", "pooled_conv"])
def test_a_failing_backward_pass_of_a_convolution_is_done_by_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> object:
        raise RuntimeError("the compiler gave up")

    monkeypatch.setattr(registry.load(name, "numba"), "backward", fail)
    torch.manual_seed(0)
    given = torch.randn(8, 32, 8, 8), torch.randn(32, 32, 3, 3)

    def gradients(module: object, **options: object) -> list[torch.Tensor]:
        x, weight = (t.clone().contiguous(memory_format=torch.channels_last).requires_grad_() for t in given)
        out = getattr(module, name)(x, weight, None, *([(2, 2)] if name == "pooled_conv" else []), padding=(1, 1), **options)
        out.pow(2).sum().backward()
        return [x.grad, weight.grad]

    with pytest.warns(kernels.KernelWarning, match="the compiler gave up"):
        got = gradients(kernels, backend="numba")
    for a, b in zip(got, gradients(reference), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-2)


def test_a_failing_warp_still_fills_the_given_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> object:
        raise RuntimeError("broken")

    monkeypatch.setattr(registry.load("warp", "numba"), "fill", fail)
    images = torch.randint(0, 256, (6, 5, 4, 3), dtype=torch.uint8)
    out, straight = torch.empty(2, 5, 4, 3), torch.eye(2, 3).expand(2, -1, -1)
    with pytest.warns(kernels.KernelWarning, match="broken"):
        kernels.warp(images, straight, index=torch.tensor([5, 1]), out=out)
    torch.testing.assert_close(out, images[[5, 1]].float())


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_out_of_memory_is_no_failure_of_the_kernel(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> object:
        raise error

    monkeypatch.setattr(registry.load("relu_max_pool", "numba"), "forward", fail)
    with pytest.raises(type(error)):
        kernels.relu_max_pool(torch.zeros(1, 1, 2, 2))
    assert kernels.why_not("relu_max_pool", torch.zeros(1), "numba") == ""


def test_what_cannot_fit_is_said() -> None:
    one = torch.ones(3)
    for call in (
            lambda: kernels.relu_max_pool(torch.zeros(3, 4, 4)), lambda: kernels.relu_max_pool(torch.zeros(1, 3, 1, 4)),
            lambda: kernels.bias_relu_max_pool(torch.zeros(1, 3, 4, 4), torch.zeros(4)),
            lambda: kernels.bias_relu(torch.zeros(1, 3, 4, 4), torch.zeros(4)),
            lambda: kernels.conv_relu_max_pool(torch.zeros(1, 1, 3, 4), torch.zeros(2, 1, 3, 3)),
            lambda: kernels.conv_relu_max_pool(torch.zeros(1, 1, 4, 4), torch.zeros(2, 3, 3, 3)),
            lambda: kernels.conv_relu_max_pool(torch.zeros(1, 1, 4, 4), torch.zeros(2, 1, 5, 5)),
            lambda: kernels.conv_relu_max_pool(torch.zeros(1, 1, 4, 4), torch.zeros(2, 1, 3, 3), torch.zeros(3)),
            lambda: kernels.bn_relu(torch.zeros(1, 3), one, one, one, one, training=True),
            lambda: kernels.bn_add_relu(torch.zeros(2, 3), torch.zeros(2, 4), one, one, one, one, training=True),
            lambda: kernels.softmax_crossentropy(torch.zeros(4, 3), torch.zeros(5, dtype=torch.int64))):
        with pytest.raises(ShapeError):
            call()
    for shape, window in (((2, 3, 4, 4), {"padding": (2, 0)}), ((2, 3, 4, 4), {"strides": (0, 1)}), ((2, 3, 4), {}), ((1, 3, 1, 4), {})):
        with pytest.raises((ArgumentError, ShapeError), match="bn_relu_max_pool"):
            kernels.bn_relu_max_pool(torch.zeros(shape), one, one, one, one, training=True, **window)
    with pytest.raises(ArgumentError, match="pool_size"):
        kernels.relu_max_pool(torch.zeros(1, 1, 64, 64), (16, 16))


def test_an_empty_batch_passes() -> None:
    assert kernels.relu_max_pool(torch.zeros(0, 3, 4, 4)).shape == (0, 3, 2, 2)
    assert kernels.conv_relu_max_pool(torch.zeros(0, 1, 6, 6), torch.zeros(5, 1, 3, 3)).shape == (0, 5, 2, 2)
    assert kernels.softmax_crossentropy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).shape == (0,)
