"""Operations that write into memory that is given compute what they compute otherwise, to the last bit."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convolt
from convolt import layers
from convolt.compiler.arena import Arena
from convolt.compiler.outputs import CHECKED, writing
from convolt.compiler.program import SMALL, make_program, source_of
from convolt.compiler.record import Recorder, Recording
from convolt.models import Sequential

aten = torch.ops.aten
SHAPE = (4, 32, 24, 24)


def pictures(dtype: torch.dtype = torch.float32) -> Tensor:
    """Channels-last, with what is not finite and zeros of both signs."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)
    x[0, 0, 0, :5] = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0])
    return x.to(dtype)


def normed(x: Tensor, training: bool = True) -> list[Tensor]:
    """What normalization gives, and what it makes of running statistics."""
    weight, bias, mean, var = (torch.full((x.shape[1],), value) for value in (1.5, 0.5, 0.0, 1.0))
    return [*aten.native_batch_norm(x, weight, bias, mean, var, training, 0.1, 1e-5), mean, var]


def flat(x: Tensor) -> Tensor:
    return x.reshape(4 * 32, -1)


def batched(x: Tensor) -> Tensor:
    return x.reshape(4, 32, -1)


Work = Callable[[Tensor], Tensor | list[Tensor]]
WORKS: dict[str, Work] = {
    "add.Tensor": lambda x: aten.add.Tensor(x, x, alpha=0.5),
    "sub.Tensor": lambda x: aten.sub.Tensor(x, x.flip(0)),
    "mul.Tensor": lambda x: aten.mul.Tensor(x, x[:1]),
    "div.Tensor": lambda x: aten.div.Tensor(x, x.flip(0)),
    "threshold_backward": lambda x: aten.threshold_backward(x, x.flip(0), 0),
    "sigmoid": lambda x: aten.sigmoid(x),
    "sigmoid_backward": lambda x: aten.sigmoid_backward(x, x.flip(0)),
    "tanh": lambda x: aten.tanh(x),
    "tanh_backward": lambda x: aten.tanh_backward(x, x.flip(0)),
    "gelu": lambda x: aten.gelu(x, approximate="tanh"),
    "gelu_backward": lambda x: aten.gelu_backward(x, x.flip(0)),
    "silu": lambda x: aten.silu(x),
    "silu_backward": lambda x: aten.silu_backward(x, x.flip(0)),
    "hardtanh": lambda x: aten.hardtanh(x, 0.0, 6.0),
    "hardtanh_backward": lambda x: aten.hardtanh_backward(x, x.flip(0), 0.0, 6.0),
    "mm": lambda x: aten.mm(flat(x).t(), flat(x)),
    "addmm": lambda x: aten.addmm(flat(x)[0], flat(x).t(), flat(x)),
    "bmm": lambda x: aten.bmm(batched(x).transpose(1, 2), batched(x)),
    "baddbmm": lambda x: aten.baddbmm(batched(x)[:, :1], batched(x).transpose(1, 2), batched(x), beta=0.5),
    "cat": lambda x: aten.cat([x, x.flip(0)], 1),
    "mean.dim": lambda x: aten.mean.dim(x, [1], True),
    "_softmax": lambda x: aten._softmax(x, 1, False),
    "_softmax_backward_data": lambda x: aten._softmax_backward_data(x, x.flip(0), 1, x.dtype),
    "max_pool2d_with_indices": lambda x: list(aten.max_pool2d_with_indices(x, [2, 2], [2, 2])),
    "max_pool2d_with_indices_backward": lambda x: aten.max_pool2d_with_indices_backward(
        x[:, :, ::2, ::2], x, [2, 2], [2, 2], [0, 0], [1, 1], False, aten.max_pool2d_with_indices(x, [2, 2], [2, 2])[1]),
    "avg_pool2d": lambda x: aten.avg_pool2d(x, [3, 3], [2, 2], [1, 1]),
    "avg_pool2d_backward": lambda x: aten.avg_pool2d_backward(x[:, :, ::2, ::2], x, [2, 2], [2, 2], [0, 0], False, True, None),
    "native_batch_norm": normed,
}  # fmt: skip
"""Calls whose results are the operation's: those that the table has."""
MORE: dict[str, Work] = {
    "relu": lambda x: aten.relu(x),
    "clone": lambda x: aten.clone(x, memory_format=torch.contiguous_format),
    "clone of a view": lambda x: aten.clone(x[:, :, 1::2]),
    "to another type": lambda x: aten._to_copy(x, dtype=torch.float64),
    "zeros": lambda x: aten.zeros_like(x),
    "normalization, evaluated": lambda x: normed(x, training=False),
    "normalization, axes in their order": lambda x: normed(x.contiguous()),
}


def made(value: Tensor | list[Tensor]) -> list[Tensor]:
    return value if isinstance(value, list) else [value]


def recorded(work: Work, x: Tensor) -> Recording:
    with Recorder([x]) as recorder:
        between = made(work(x))
        recorder.give([each * 1 for each in between])  # what is asked for has memory of its own in each step
    assert not recorder.recording.reason
    return recorder.recording


def assert_same_bits(work: Work, x: Tensor, arena: Arena) -> str:
    """Runs a program twice, since what a step has left there must not matter to the next one; returns its text."""
    program = make_program(recorded(work, x), arena)
    for _ in range(2):
        found = program(x)
        expected = [each * 1 for each in made(work(x))]
        for one, other in zip(found, expected, strict=True):
            assert (one.dtype, one.stride()) == (other.dtype, other.stride())
            assert torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
    return source_of(program)


def test_the_table_is_tested() -> None:
    assert WORKS.keys() == CHECKED


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*WORKS, *MORE])
def test_the_same_bits_in_memory_that_is_given(name: str, dtype: torch.dtype) -> None:
    text = assert_same_bits((WORKS | MORE)[name], pictures(dtype), Arena())
    assert re.search(r"^ +o\d+\(.*(out|grad_input|save_invstd|indices)=c\d+\)|^ +o\d+\(c\d+(, [cxw]\d+)?\)", text, re.MULTILINE), text


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
    assert SMALL < arena.memory.nbytes() <= 2 * x.nbytes + 4096, "one is read while the next one is written"
    assert torch.equal(program(x)[0].nan_to_num(), chain(x).nan_to_num())


@pytest.mark.parametrize("order", [(0, 2, 3, 1), (2, 0, 1, 3)])
def test_normalization_of_what_is_not_dense_stays_as_it_is(order: tuple[int, ...]) -> None:
    x = pictures().nan_to_num(posinf=1.0, neginf=1.0).permute(order).contiguous().permute([order.index(i) for i in range(4)])[:, :, ::2]
    recording = recorded(lambda x: normed(x), x)
    assert writing(next(call for call in recording.calls if call.name == "native_batch_norm")) is None, "its variant would read the means"
    assert_same_bits(lambda x: normed(x), x, Arena())


def test_a_result_that_is_smaller_than_its_memory_stays_as_it_is() -> None:
    def shortened(x: Tensor) -> Tensor:
        return aten.binary_cross_entropy(x.sigmoid().nan_to_num(), torch.ones_like(x))

    assert_same_bits(shortened, pictures(), Arena())


def sequences() -> Sequential:
    convolt.utils.set_random_seed(0)
    return Sequential([layers.Input((40, 64)), layers.Dense(48), layers.BatchNormalization(), layers.ReLU(), layers.Flatten(),
                       layers.Dense(3), layers.Activation("sigmoid")])


LOSSES = {"BCE": nn.BCELoss, "weighted BCE": lambda: nn.BCELoss(torch.tensor([1.0, 2.0, 3.0])), "MSE": nn.MSELoss, "Huber": nn.HuberLoss,
          "smooth L1": nn.SmoothL1Loss}


@pytest.mark.parametrize("loss", LOSSES)
def test_normalization_of_sequences_and_losses_of_pytorch_train_as_without_replay(loss: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((64, 40, 64)).astype("float32"), rng.random((64, 3)).astype("float32")
    found = []
    for execution in ("eager", "replay"):
        model = sequences()
        model.compile("adam", LOSSES[loss](), device="cpu", precision="float32", fusions="none", execution=execution)
        history = model.fit(x, y, batch_size=16, epochs=4, verbose=0, shuffle=False).history["loss"]
        found.append([history, *model.get_weights()])
        assert ("whole step replayed" in model.plan.describe()) == (execution == "replay")
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one, other)
