"""Operations that write into memory that is given compute what they compute otherwise, to the last bit."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from convolt.compiler.arena import Arena
from convolt.compiler.outputs import writing
from convolt.compiler.program import SMALL, make_program, source_of
from convolt.compiler.record import Recorder, Recording

aten = torch.ops.aten
SHAPE = (4, 32, 24, 24)


def pictures(dtype: torch.dtype = torch.float32) -> Tensor:
    """Channels-last, with what is not finite and zeros of both signs."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)
    x[0, 0, 0, :5] = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0])
    return x.to(dtype)


def normed(x: Tensor) -> tuple[Tensor, ...]:
    weight, bias, mean, var = (torch.full((32,), value) for value in (1.5, 0.5, 0.0, 1.0))
    result: tuple[Tensor, ...] = aten.native_batch_norm(x, weight, bias, mean, var, True, 0.1, 1e-5)
    return result


WORKS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "add": (lambda x: aten.add.Tensor(x, x, alpha=0.5), "out="),
    "relu": (lambda x: aten.relu(x), "out="),
    "threshold_backward": (lambda x: aten.threshold_backward(x, x.flip(0), 0), "grad_input="),
    "native_batch_norm": (lambda x: normed(x)[0], "save_invstd="),
    "max_pool": (lambda x: aten.max_pool2d_with_indices(x, [2, 2], [2, 2])[0], "indices="),
    "gelu": (lambda x: aten.gelu(x, approximate="tanh"), "out="),
    "softmax": (lambda x: aten._softmax(x, 1, False), "out="),
    "mm": (lambda x: aten.mm(x.reshape(4 * 32, -1), x.reshape(4 * 32, -1).t()), "out="),
    "cat": (lambda x: aten.cat([x, x.flip(0)], 1), "out="),
    "clone": (lambda x: aten.clone(x, memory_format=torch.contiguous_format), ""),
    "clone of a view": (lambda x: aten.clone(x[:, :, 1::2]), ""),
    "to another type": (lambda x: aten._to_copy(x, dtype=torch.float64), ""),
    "zeros": (lambda x: aten.zeros_like(x), ""),
}


def recorded(work: Callable[[Tensor], Tensor], x: Tensor) -> Recording:
    with Recorder([x]) as recorder:
        between = work(x)
        recorder.give([between * 1])  # what is asked for has memory of its own in each step
    assert not recorder.recording.reason
    return recorder.recording


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", WORKS)
def test_the_same_bits_in_memory_that_is_given(name: str, dtype: torch.dtype) -> None:
    work, keyword = WORKS[name]
    x = pictures(dtype)
    arena = Arena()
    program = make_program(recorded(work, x), arena)
    assert keyword in source_of(program) if keyword else re.search(r"^ +o\d+\(c\d+", source_of(program), re.MULTILINE)
    assert arena.memory.nbytes() > SMALL or name == "mm"
    for _ in range(2):  # what the step before has left there does not matter
        found, expected = program(x)[0], work(x) * 1
        assert (found.dtype, found.stride()) == (expected.dtype, expected.stride())
        assert torch.equal(found.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))


def test_what_would_copy_stays_as_it_is() -> None:
    weight = torch.randn(8, 32, 3, 3)
    recording = recorded(lambda x: aten.convolution(x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1), pictures())
    assert [call.name for call in recording.calls] == ["convolution", "mul"]
    assert writing(recording.calls[0]) is None, "its variant with `out` computes as ever, and copies"
    assert writing(recording.calls[1]) is not None


def test_what_changes_its_input_or_draws_numbers_stays_as_it_is() -> None:
    recording = recorded(lambda x: aten.bernoulli(x.abs().clamp(max=1.0).nan_to_num()).add_(1), pictures())
    drawn, added = (next(call for call in recording.calls if call.name == name) for name in ("bernoulli", "add_"))
    assert writing(drawn) is None and writing(added) is None


def test_memory_is_shared_by_what_is_not_needed_at_once() -> None:
    def chain(x: Tensor) -> Tensor:
        for _ in range(10):
            x = aten.add.Tensor(x, 1.0)
        return x

    arena, x = Arena(), pictures()
    program = make_program(recorded(chain, x), arena)
    assert arena.memory.nbytes() <= 2 * x.nbytes + 4096, "one is read while the next one is written"
    assert torch.equal(program(x)[0].nan_to_num(), chain(x).nan_to_num())
