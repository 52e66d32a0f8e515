"""Out of memory: the step begins anew with half as many samples at once, and nothing else is different."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

import convolt
from convolt import layers, optimizers
from convolt.compiler.execute import CapturedStep
from convolt.data.batches import Batch
from convolt.errors import DoesNotFitError
from convolt.models import Sequential
from convolt.training.memory import OutOfMemoryWarning, is_out_of_memory
from tests.unit.compiler.replay import ReplayOnCpu
from tests.unit.compiler.test_execute import everything, snapshot_of

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)).astype("float32")
Y = (X[:, 0] > 0).astype("int64")


class Hungry(layers.Layer):
    """Has no memory for more than `most` samples; in training after, or only in, its gradient."""

    def __init__(self, most: int = 4, when: str = "forward", raised: type[BaseException] = torch.OutOfMemoryError, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.most, self.when, self.raised = most, when, raised
        self.attempts: list[int] = []
        self.watched = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.watched:
            self.attempts.append(len(x))
        if self.when == "forward":
            self.check(len(x))
        elif x.requires_grad:
            x.register_hook(lambda gradient: self.check(len(gradient)))
        return x * 1.0

    def check(self, size: int) -> None:
        if size > self.most:
            raise self.raised(f"CUDA out of memory. Tried to allocate {size} MiB.\nMore lines.")

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


def hungry(most: int = 4, when: str = "forward", dropout: float = 0.0, optimizer: Any = "adam", norm: bool = False, seed: Any = None,
           micro_batch: int | None = None, raised: type[BaseException] = torch.OutOfMemoryError) -> Sequential:
    convolt.utils.set_random_seed(0)
    model = Sequential([layers.Input((6,)), layers.Dense(8, activation="relu"), *([layers.BatchNormalization()] if norm else []),
                        layers.Dropout(dropout, seed=seed), Hungry(most, when, raised), layers.Dense(2, activation="softmax")])
    model.compile(optimizer, "sparse_categorical_crossentropy", ["accuracy"], device="cpu", fusions="none", micro_batch=micro_batch)
    return model


def same(a: Sequential, b: Sequential) -> bool:
    return all(torch.equal(p, q) for p, q in zip([*a.parameters(), *a.buffers()], [*b.parameters(), *b.buffers()], strict=True))


@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize("seed", [None, 7])
def test_training_goes_on_bit_equal_to_one_that_began_with_small_parts(when: str, seed: int | None) -> None:
    settings: dict[str, Any] = {"when": when, "dropout": 0.4, "norm": True, "seed": seed}
    small = hungry(100, micro_batch=4, **settings)
    expected = small.fit(X, Y, batch_size=16, epochs=3, verbose=0, seed=1, validation_data=(X, Y)).history
    model = hungry(4, **settings)
    with pytest.warns(OutOfMemoryWarning) as caught:
        got = model.fit(X, Y, batch_size=16, epochs=3, verbose=0, seed=1, validation_data=(X, Y)).history
    assert got["loss"] == expected["loss"] and got["accuracy"] == expected["accuracy"] and same(model, small)
    np.testing.assert_allclose(got["val_loss"], expected["val_loss"], rtol=1e-6)  # evaluated in other parts
    assert model.plan.micro_batch == 4
    assert len([w for w in caught if "training" in str(w.message)]) == 1


def test_the_note_has_the_numbers() -> None:
    with pytest.warns(OutOfMemoryWarning) as caught:
        hungry(4).fit(X, Y, batch_size=16, epochs=1, verbose=0)
    text = str(caught[0].message)
    assert text.startswith("training: no memory for 16 samples at once (CUDA out of memory. Tried to allocate 16 MiB.); batches of 16 are "
                           "now computed 4 samples at a time"), text
    assert text.endswith("compile(micro_batch=4) begins like this.") and "More lines" not in text


def test_an_update_in_small_parts_is_that_of_the_whole_batch() -> None:
    whole, model = hungry(100), hungry(3)
    expected = whole.fit(X, Y, batch_size=20, epochs=5, verbose=0, seed=1).history
    with pytest.warns(OutOfMemoryWarning):
        got = model.fit(X, Y, batch_size=20, epochs=5, verbose=0, seed=1).history
    for key, values in expected.items():
        np.testing.assert_allclose(got[key], values, rtol=1e-4)
    for a, b in zip(whole.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore::convolt.training.memory.OutOfMemoryWarning")
def test_a_failed_attempt_leaves_no_trace() -> None:
    model = hungry(100, "backward", dropout=0.5, norm=True, seed=3)
    model.fit(X, Y, batch_size=10, epochs=1, verbose=0)
    model.train()
    step = model.trainer._step
    step.train_totals.reset()
    layer = next(m for m in model.modules() if isinstance(m, Hungry))
    layer.most = 0
    before = [t.clone() for t in (*model.parameters(), *model.buffers(), *model.optimizer.slots().values())]
    states = (torch.get_rng_state(), model.layers[2].generators[torch.device("cpu")].get_state())
    with pytest.raises(DoesNotFitError):
        step.train(Batch((torch.from_numpy(X[:8]),), (torch.from_numpy(Y[:8]),), (), 8))
    after = [*model.parameters(), *model.buffers(), *model.optimizer.slots().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(model.layers[2].generators[torch.device("cpu")].get_state(), states[1])
    assert all(p.grad is None for p in model.parameters()) and not any(t.any() for t in step.train_totals.tensors().values())
    assert model.optimizer.iterations == 4


@pytest.mark.filterwarnings("ignore::convolt.training.memory.OutOfMemoryWarning")  # where a plan of an earlier run needs no memory
def test_not_even_one_sample_fits() -> None:
    told = (r": got too little memory for one sample \(CUDA out of memory\. Tried to allocate 1 MiB\.\); expected memory for one sample\. "
            "Make the pictures or the model smaller")
    with pytest.raises(DoesNotFitError, match="building the model" + told):
        hungry(0).fit(X, Y, batch_size=16, verbose=0)
    with pytest.raises(DoesNotFitError, match="training" + told):
        hungry(0, "backward").fit(X, Y, batch_size=16, verbose=0)


def test_a_layer_that_needs_more_samples_than_fit() -> None:
    with pytest.raises(DoesNotFitError, match=r"got memory for 1 samples at once .*So few cannot be computed: BatchNormalization"):
        hungry(1, norm=True).fit(X, Y, batch_size=16, verbose=0)


def test_another_error_is_not_taken_for_it() -> None:
    with pytest.raises(RuntimeError, match=r"CUDA out of memory\. Tried"):  # the words alone, without the class
        hungry(4, raised=RuntimeError).fit(X, Y, batch_size=16, verbose=0)
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(DoesNotFitError("already told"))


def test_pytorchs_own_errors_are_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you"))


def test_evaluation_and_prediction_halve_too() -> None:
    whole, model = hungry(100), hungry(3)
    for m in (whole, model):
        m.build_for([torch.from_numpy(X[:1])])
    with pytest.warns(OutOfMemoryWarning, match="evaluation: no memory for 20 samples at once.*3 samples at a time, with the same result"):
        got = model.evaluate(X, Y, batch_size=20, verbose=0)
    np.testing.assert_allclose(got, whole.evaluate(X, Y, batch_size=20, verbose=0), rtol=1e-5)
    with pytest.warns(OutOfMemoryWarning, match="prediction: no memory for 20"):
        outputs = model.predict(X, batch_size=20, verbose=0)
    np.testing.assert_allclose(outputs, whole.predict(X, batch_size=20, verbose=0), rtol=1e-5, atol=1e-6)
    with pytest.raises(DoesNotFitError, match="prediction"):
        hungry(0).predict(X, verbose=0)


def test_sam_whose_second_pass_does_not_fit() -> None:
    class Second(Hungry):
        """Refuses every second forward of a step, while too many samples come at once."""

        calls = 0

        def check(self, size: int) -> None:
            if self.training and size > 5:
                self.calls += 1
                if self.calls % 2 == 0:
                    super().check(size)

    def model(most: int, micro: int | None) -> Sequential:
        convolt.utils.set_random_seed(0)
        made = Sequential([layers.Input((6,)), layers.Dense(4), layers.BatchNormalization(), Second(most), layers.Dense(2)])
        made.compile(optimizers.SAM("sgd", rho=0.5, learning_rate=0.1), "mse", device="cpu", fusions="none", micro_batch=micro)
        return made

    expected, got = model(100, 5), model(5, None)
    expected.fit(X, X[:, :2], batch_size=10, epochs=2, verbose=0, seed=1)
    with pytest.warns(OutOfMemoryWarning):
        got.fit(X, X[:, :2], batch_size=10, epochs=2, verbose=0, seed=1)
    assert same(expected, got)


def test_an_update_that_does_not_fit_is_no_reason_to_try_again() -> None:
    class Greedy(optimizers.SGD):
        def update(self, closure: Any = None) -> None:
            raise torch.OutOfMemoryError("no memory for the momentum")

    with pytest.raises(DoesNotFitError, match=r"half done.*Begin anew, or from a checkpoint"):
        hungry(100, optimizer=Greedy()).fit(X, Y, batch_size=8, verbose=0)


def test_a_captured_step_is_captured_anew() -> None:
    def trained(captured: bool) -> Sequential:
        model = hungry(100, dropout=0.2)
        model.fit(X[:8], Y[:8], batch_size=8, verbose=0)
        layer = next(m for m in model.modules() if isinstance(m, Hungry))
        step = model.trainer._step
        backend = ReplayOnCpu(snapshot_of(model))
        runner: Any = CapturedStep(step, model.optimizer, backend, pytest.fail) if captured else step
        model.train()
        convolt.utils.set_random_seed(1)
        step.train_totals.reset()
        whole = Batch((torch.from_numpy(X[:8]),), (torch.from_numpy(Y[:8]),), (), 8)
        larger = Batch((torch.from_numpy(X[:10]),), (torch.from_numpy(Y[:10]),), (), 10)
        for i in range(12):
            if i == 7:
                layer.most = 4
                runner.train(larger)  # of another shape, and so eager: the limit becomes 5
                assert step.room.limit == 3
            runner.train(whole)
        if captured:
            assert backend.replays == 9
        return model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutOfMemoryWarning)
        for a, b in zip(everything(trained(False)), everything(trained(True)), strict=True):
            assert torch.equal(a, b)


def test_a_capture_that_does_not_fit_is_tried_with_smaller_parts() -> None:
    model = hungry(100)
    model.fit(X[:8], Y[:8], batch_size=8, verbose=0)
    layer = next(m for m in model.modules() if isinstance(m, Hungry))
    runner = CapturedStep(model.trainer._step, model.optimizer, ReplayOnCpu(snapshot_of(model)), pytest.fail)
    model.train()
    batch = Batch((torch.from_numpy(X[:8]),), (torch.from_numpy(Y[:8]),), (), 8)
    for _ in range(3):
        runner.train(batch)
    layer.most = 4
    with pytest.warns(OutOfMemoryWarning, match="no memory for 8 samples at once"):
        runner.train(batch)
    runner.train(batch)
    assert model.trainer._step.room.limit == 4 and model.optimizer.iterations == 6
