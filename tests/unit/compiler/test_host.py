"""What holds while a model computes, and only then: the number of threads, and that float32 is float32."""

import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

import convolt
from convolt import devices, layers
from convolt.compiler import host
from convolt.models import Sequential

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
X, Y = np.random.default_rng(0).random((16, 6, 6, 1)).astype("float32"), np.arange(16) % 3
MATMUL: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process with three threads, which are PyTorch's default, on a machine with two cores that may be used."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(devices, "usable_cores", lambda: 2)
    monkeypatch.setattr(devices, "default_threads", lambda: {3})
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@contextmanager
def said(switch: Any, value: str) -> Iterator[None]:
    """What the user said of a switch of PyTorch; its attributes are such that `monkeypatch` cannot put them back."""
    before, switch.fp32_precision = switch.fp32_precision, value
    try:
        yield
    finally:
        switch.fp32_precision = before


def net(**options: Any) -> Sequential:
    convolt.utils.set_random_seed(0)
    model = Sequential([layers.Input((6, 6, 1)), layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(3, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy", device="cpu", **options)
    return model


class Looks(convolt.callbacks.Callback):
    """Notes in each hook of a batch what holds then."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.float32: set[str] = set()

    def _look(self, *_: Any) -> None:
        self.threads.add(torch.get_num_threads())
        self.float32.add(MATMUL.fp32_precision)

    on_train_batch_end = on_test_batch_end = on_predict_batch_end = _look


def through_the_doors(model: Sequential) -> list[Looks]:
    looks = [Looks() for _ in range(3)]
    model.fit(X, Y, batch_size=4, verbose=0, callbacks=looks[0])
    model.evaluate(X, Y, batch_size=4, verbose=0, callbacks=looks[1])
    model.predict(X, batch_size=4, verbose=0, callbacks=looks[2])
    return looks


# -- threads -----------------------------------------------------------------------------------------------------------


def test_a_thread_for_each_usable_core_while_something_computes() -> None:
    model = net()
    assert [look.threads for look in through_the_doors(model)] == [{2}] * 3
    assert torch.get_num_threads() == 3
    assert model.plan.threads == 2 and "2 threads" in model.plan.describe()


@pytest.mark.parametrize("word", ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "set_num_threads"])
def test_a_number_that_the_user_said_holds(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if word == "set_num_threads":
        torch.set_num_threads(1)
    else:
        monkeypatch.setenv(word, "3")
    expected = torch.get_num_threads()
    assert host.threads() == expected
    assert through_the_doors(net())[0].threads == {expected} and torch.get_num_threads() == expected


def test_threads_and_float32_are_put_back_after_an_error() -> None:
    kept = MATMUL.fp32_precision
    with pytest.raises(ZeroDivisionError), host.computing(CPU, exact=True):
        assert torch.get_num_threads() == 2 and MATMUL.fp32_precision == "ieee"
        raise ZeroDivisionError
    assert torch.get_num_threads() == 3 and MATMUL.fp32_precision == kept


# -- float32 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "inside"), [("float32", "ieee"), ("auto", "bf16")])
def test_float32_that_was_said_is_computed_in_nothing_shorter(precision: str, inside: str) -> None:
    model = net(precision=precision)
    with said(MATMUL, "bf16"):  # as torch.set_float32_matmul_precision("medium") says it
        assert [look.float32 for look in through_the_doors(model)] == [{inside}] * 3
        assert MATMUL.fp32_precision == "bf16"


def switches() -> list[str]:
    return [switch.fp32_precision for switch in devices._float32_operations("cuda").values()]


@pytest.mark.parametrize("convolutions", ["tf32", "ieee"])
def test_no_tf32_on_cuda_inside_and_the_switches_as_they_were_afterwards(convolutions: str) -> None:
    with said(torch.backends.cudnn.conv, convolutions):
        before = switches()
        with host.computing(CUDA, exact=True):
            assert switches() == ["ieee"] * 3
            with host.computing(CUDA, exact=False):
                assert switches() == ["ieee"] * 3, "predict in a callback of a training that was said to be float32"
        assert switches() == before and before[0] == convolutions
        with host.computing(CUDA, exact=False):
            assert switches() == before


def test_the_older_switch_of_pytorch_can_be_read_again_afterwards() -> None:
    allowed = torch.backends.cudnn.allow_tf32
    with devices.float32_as_said(CUDA):
        pass
    assert torch.backends.cudnn.allow_tf32 == allowed
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_plan_says_what_is_in_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    from convolt.compiler import first_plan

    capability = [(8, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    with said(torch.backends.cudnn.conv, "tf32"), said(torch.backends.cudnn.rnn, "ieee"):
        plan = first_plan(CUDA, torch.float32)
        assert plan.tf32 == "convolutions" and "cuda, float32 (convolutions in TF32), layer by layer" in plan.describe()
        assert "TF32" not in first_plan(CUDA, torch.bfloat16).describe()
        with devices.float32_as_said(CUDA):
            assert "cuda, float32, layer by layer" in first_plan(CUDA, torch.float32).describe()
        capability[0] = (7, 5)
        assert first_plan(CUDA, torch.float32).tf32 == "", "Turing has none"
        assert first_plan(CPU, torch.float32).tf32 == ""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is told what to keep")
def test_freed_memory_is_kept_but_for_a_pass_that_is_done_once() -> None:
    code = """if True:
        import torch
        from convolt.compiler import host

        def left():
            'MiB that stay when 64 MiB are freed.'
            resident = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096 / 2**20
            before, block = resident(), torch.ones(16 * 2**20)
            del block
            return resident() - before

        torch.ones(1)
        host.keep_freed_memory()
        with host.returning_freed_memory():
            inside = left()
        kept = left()
        host.release_freed_memory()
        with host.returning_freed_memory():
            print(inside, kept, left())
        print(left())"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    inside, kept, again, after = map(float, run.stdout.split())
    assert inside < 8 and again < 8 and kept > 56 and after > 56


def denormal_on_each_thread() -> set[bool]:
    """Whether PyTorch's threads keep what is below the normal numbers."""
    x = torch.full((2**20,), 1e-38)
    return {bool(part.any()) for part in (x * 0.1).split(2**10)}


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="the processor cannot be told")
def test_tiny_numbers_are_zero_on_all_threads_while_a_model_is_trained_and_only_then() -> None:
    assert denormal_on_each_thread() == {True}
    with host.flushing_denormals(CPU):
        assert denormal_on_each_thread() == {False}
        assert sys.float_info.min / len("ab") == 0.0
    assert denormal_on_each_thread() == {True}
    with pytest.raises(ZeroDivisionError), host.flushing_denormals(CPU):
        raise ZeroDivisionError
    assert denormal_on_each_thread() == {True}
    torch.set_flush_denormal(True)
    try:
        with host.flushing_denormals(CPU):
            pass
        assert sys.float_info.min / len("ab") == 0.0, "what the user has said stays"
    finally:
        torch.set_flush_denormal(False)
    with host.flushing_denormals(CUDA):
        assert denormal_on_each_thread() == {True}


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="the processor cannot be told")
def test_fit_flushes_and_predict_does_not() -> None:
    seen = []

    class Look(layers.Layer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(denormal_on_each_thread())
            return x

    model = Sequential([layers.Input((6, 6, 1)), Look(), layers.Flatten(), layers.Dense(3)])
    model.compile("sgd", "mse", device="cpu", precision="float32")
    seen.clear()
    model.fit(X, np.zeros((16, 3), "float32"), batch_size=16, epochs=2, verbose=0)
    trained = list(seen)
    seen.clear()
    model.predict(X, verbose=0)
    model.evaluate(X, np.zeros((16, 3), "float32"), verbose=0)
    assert trained and set(map(frozenset, trained)) == {frozenset({False})}
    assert seen and set(map(frozenset, seen)) == {frozenset({True})}
