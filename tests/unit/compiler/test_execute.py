"""A captured step is the eager step: bit for bit over 50 steps, and whatever a graph cannot hold is noticed."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

import convolt
from convolt import layers
from convolt.compiler.execute import CapturedStep, CaptureWarning, why_not_captured
from convolt.data.batches import Batch
from convolt.models import Sequential
from tests.unit.compiler.replay import ReplayOnCpu

RNG = np.random.default_rng(0)
X = torch.from_numpy(RNG.integers(0, 256, size=(400, 8, 8, 2), dtype="uint8"))
Y = torch.from_numpy(RNG.integers(0, 3, size=400))
W = torch.from_numpy(RNG.random(400).astype("float32"))


def compiled(optimizer: object, seed: int | None = None, **options: object) -> Sequential:
    convolt.utils.set_random_seed(0)
    model = Sequential([
        layers.Input((8, 8, 2)), layers.Rescaling(1 / 255), layers.Conv2D(4, 3, kernel_regularizer="l2", padding="same", strides=2),
        layers.BatchNormalization(), layers.ReLU(), layers.Dropout(0.3, seed=seed), layers.Flatten(), layers.Dense(3, activation="softmax"),
    ])  # fmt: skip
    model.compile(optimizer, "sparse_categorical_crossentropy", ["accuracy", "precision"], weighted_metrics=["accuracy"], device="cpu",
                  **{"fusions": "none", "precision": "float32", **options})
    model.fit(X[:8].numpy(), Y[:8].numpy(), sample_weight=W[:8].numpy(), verbose=0)
    convolt.utils.set_random_seed(1)
    model.train()
    return model


def batches(count: int = 50, size: int = 8) -> list[Batch]:
    return [Batch((X[i : i + size],), (Y[i : i + size],), (W[i : i + size],), size) for i in range(0, count * size, size)]


def snapshot_of(model: Sequential) -> Callable[[], Callable[[], None]]:
    """Keeps all that a step changes: parameters, statistics, optimizer, sums, random state."""

    def snapshot() -> Callable[[], None]:
        step, optimizer = model.trainer._step, model.optimizer
        totals = step.train_totals
        metric_states = [state for metric in model.metrics for state in metric.state().values()]
        live = [*model.parameters(), *model.buffers(), *optimizer.slots().values(), totals._sums, totals._count, *metric_states]
        kept = [(tensor, tensor.detach().clone()) for tensor in live]
        generator = torch.get_rng_state()
        seeded = [(own, own.get_state()) for own in step.kept.generators()]

        def undo() -> None:
            with torch.no_grad():
                for tensor, value in kept:
                    tensor.copy_(value)
            torch.set_rng_state(generator)
            for own, state in seeded:
                own.set_state(state)

        return undo

    return snapshot


def everything(model: Sequential) -> list[torch.Tensor]:
    results = [torch.as_tensor(value) for value in model.trainer._step.train_totals.read().values()]
    return [*(p.detach().clone() for p in model.parameters()), *(b.clone() for b in model.buffers()), *results]


@pytest.mark.parametrize("make_optimizer", [
    lambda: "adam",
    lambda: convolt.optimizers.SGD(0.05, momentum=0.9, nesterov=True, global_clipnorm=1.0),
    lambda: convolt.optimizers.AdamW(convolt.optimizers.schedules.CosineDecay(0.01, 50), weight_decay=0.01, use_ema=True),
], ids=["adam", "sgd-clipped", "adamw-schedule-ema"])
def test_fifty_replayed_steps_equal_eager_ones_bit_for_bit(make_optimizer: object) -> None:
    eager, captured = compiled(make_optimizer()), compiled(make_optimizer())
    backend = ReplayOnCpu(snapshot_of(captured))
    runner = CapturedStep(captured.trainer._step, captured.optimizer, backend, pytest.fail)
    for model in (eager, captured):
        model.trainer._step.train_totals.reset()
    convolt.utils.set_random_seed(1)
    for batch in batches():
        eager.trainer._step.train(batch)
    expected = everything(eager)
    convolt.utils.set_random_seed(1)
    for batch in batches():
        runner.train(batch)
    assert backend.replays == 47
    for a, b in zip(expected, everything(captured), strict=True):
        assert torch.equal(a, b)


def test_a_batch_of_another_shape_gets_a_graph_of_its_own() -> None:
    eager, captured = compiled("adam"), compiled("adam")
    backend = ReplayOnCpu(snapshot_of(captured))
    runner = CapturedStep(captured.trainer._step, captured.optimizer, backend, pytest.fail)
    series = [*batches(6), *batches(1, size=5), *batches(4), *batches(1, size=5), *batches(2), *batches(1, size=5)]
    for train, model in ((eager.trainer._step.train, eager), (runner.train, captured)):
        convolt.utils.set_random_seed(1)
        model.trainer._step.train_totals.reset()
        for batch in series:
            train(batch)
    assert (backend.replays, backend.captures) == (3 + 4 + 1 + 2 + 1, 2), "eager are three steps, and the first of the other shape"
    for a, b in zip(everything(eager), everything(captured), strict=True):
        assert torch.equal(a, b)


def test_a_host_read_fails_the_capture_and_training_goes_on() -> None:
    class Peeking(layers.Layer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float(x.mean() > -100)

        def compute_output_shape(self, input_shape: tuple) -> tuple:
            return input_shape

    convolt.utils.set_random_seed(0)
    model = Sequential([layers.Input((8, 8, 2)), Peeking(), layers.Flatten(), layers.Dense(3)])
    model.compile("sgd", convolt.losses.SparseCategoricalCrossentropy(from_logits=True), device="cpu", fusions="none")
    model.fit(X[:8].numpy() / 255, Y[:8].numpy(), verbose=0)
    reasons: list[str] = []
    runner = CapturedStep(model.trainer._step, model.optimizer, ReplayOnCpu(lambda: lambda: None), reasons.append)
    before = model.get_weights()
    with pytest.warns(CaptureWarning, match="reads a value on the host"):
        for batch in batches(6):
            runner.train(Batch((batch.x[0] / 255,), batch.y, (), batch.size))
    assert len(reasons) == 1 and not np.array_equal(before[0], model.get_weights()[0])
    assert model.optimizer.iterations == 7


def test_a_tensor_that_moved_is_noticed() -> None:
    model = compiled("adam")
    runner = CapturedStep(model.trainer._step, model.optimizer, ReplayOnCpu(snapshot_of(model)), pytest.fail)
    for batch in batches(5):
        runner.train(batch)
    weight = next(model.parameters())
    weight.data = weight.data.clone()
    with pytest.raises(RuntimeError, match="moved"):
        runner.train(batches(1)[0])


def test_a_tensor_that_changed_its_shape_in_its_place_is_noticed() -> None:
    model = compiled("adam")
    runner = CapturedStep(model.trainer._step, model.optimizer, ReplayOnCpu(snapshot_of(model)), pytest.fail)
    for batch in batches(5):
        runner.train(batch)
    bias = list(model.parameters())[-1]
    address = bias.data_ptr()
    bias.data = bias.data[:2]
    assert bias.data_ptr() == address
    with pytest.raises(RuntimeError, match="changed its shape"):
        runner.train(batches(1)[0])


def trained(model: Sequential, train: Callable[[Batch], None], count: int = 50) -> list[torch.Tensor]:
    """Trains on the batches from one random state on and returns all that came of it."""
    model.trainer._step.train_totals.reset()
    convolt.utils.set_random_seed(1)
    model.train()
    for batch in batches(count):
        train(batch)
    return everything(model)


@pytest.mark.parametrize("options", [{"fusions": "all"}, {"fusions": "all", "precision": "bfloat16"}], ids=["float32", "bfloat16"])
def test_fifty_replayed_steps_with_kernels_of_numba_equal_eager_ones(options: dict[str, str]) -> None:
    eager, captured = compiled("adam", **options), compiled("adam", **options)
    assert captured.plan.form == "fused"
    backend = ReplayOnCpu(snapshot_of(captured))
    runner = CapturedStep(captured.trainer._step, captured.optimizer, backend, pytest.fail)
    expected = trained(eager, eager.trainer._step.train)
    assert all(torch.equal(a, b) for a, b in zip(expected, trained(captured, runner.train), strict=True))
    assert backend.replays == 47 and backend.kernels >= 2, "forward and backward of at least one fused op"


def test_fifty_replayed_steps_with_a_seeded_dropout_equal_eager_ones() -> None:
    eager, captured, unseeded = compiled("adam", seed=5), compiled("adam", seed=5), compiled("adam")
    backend = ReplayOnCpu(snapshot_of(captured))
    runner = CapturedStep(captured.trainer._step, captured.optimizer, backend, pytest.fail)
    expected = trained(eager, eager.trainer._step.train)
    assert all(torch.equal(a, b) for a, b in zip(expected, trained(captured, runner.train), strict=True))
    assert backend.replays == 47
    states = [[own.get_state() for own in model.trainer._step.kept.generators()] for model in (eager, captured)]
    assert len(states[0]) == 1 and torch.equal(states[0][0], states[1][0])
    assert not torch.equal(expected[0], trained(unseeded, unseeded.trainer._step.train)[0])


def test_a_generator_that_the_graph_is_not_told_of_is_noticed() -> None:
    model = compiled("adam", seed=5)
    model.trainer._step.kept.generators = list
    reasons: list[str] = []
    runner = CapturedStep(model.trainer._step, model.optimizer, ReplayOnCpu(lambda: lambda: None), reasons.append)
    with pytest.warns(CaptureWarning, match="not registered"):
        trained(model, runner.train, 5)
    assert len(reasons) == 1


def test_what_cannot_be_captured_has_its_reason() -> None:
    model = compiled("adam")
    cuda = torch.device("cuda")
    assert "need CUDA" in str(why_not_captured(model.optimizer, torch.device("cpu")))
    assert why_not_captured(model.optimizer, cuda) is None
    on_host = compiled(convolt.optimizers.TorchOptimizer(torch.optim.SGD, learning_rate=0.1))
    assert "on the host" in str(why_not_captured(on_host.optimizer, cuda))


# -- optimizers with two device parts, second passes, averages; micro-batches --------------------------------------


VARIANTS = {
    "accumulation": (lambda: convolt.optimizers.Adam(0.01, gradient_accumulation_steps=3, use_ema=True), 2),
    "lookahead": (lambda: convolt.optimizers.Lookahead(convolt.optimizers.SGD(0.05, momentum=0.9), every=5), 1),
    "sam": (lambda: convolt.optimizers.SAM(convolt.optimizers.SGD(0.05), rho=0.1), 1),
    "asam": (lambda: convolt.optimizers.SAM("adam", rho=0.5, adaptive=True), 1),
    "swa": (lambda: convolt.optimizers.SWA(convolt.optimizers.Adam(0.01), start=10, every=4), 1),
    "layerwise": (lambda: convolt.optimizers.LayerwiseDecay("adamw", decay=0.5, learning_rate=0.01), 1),
    "lion": (lambda: convolt.optimizers.Lion(0.001, clipnorm=1.0), 1),
    "lamb": (lambda: convolt.optimizers.Lamb(0.01, weight_decay=0.01), 1),
    "lars": (lambda: convolt.optimizers.LARS(1.0, weight_decay=0.01, nesterov=True), 1),
    "all": (lambda: convolt.optimizers.SWA(convolt.optimizers.Lookahead(convolt.optimizers.SAM(convolt.optimizers.LayerwiseDecay(
        convolt.optimizers.AdamW(0.01, gradient_accumulation_steps=2)))), start=10, every=3), 2),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_fifty_replayed_steps_of_each_variant_equal_eager_ones(name: str, micro_batch: int | None) -> None:
    make, variants = VARIANTS[name]
    eager, captured = (compiled(make(), micro_batch=micro_batch) for _ in range(2))
    backend = ReplayOnCpu(snapshot_of(captured))
    runner = CapturedStep(captured.trainer._step, captured.optimizer, backend, pytest.fail)
    for model, train in ((eager, eager.trainer._step.train), (captured, runner.train)):
        model.trainer._step.train_totals.reset()
        convolt.utils.set_random_seed(1)
        for batch in batches():
            train(batch)
    assert backend.replays == 47 and len(runner._replays) == variants
    for a, b in zip(everything(eager), everything(captured), strict=True):
        assert torch.equal(a, b)
    for key, value in eager.optimizer.state_dict().items():
        other = captured.optimizer.state_dict()[key]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, key
    eager.optimizer.finalize_variable_values()
    assert not all(p.isnan().any() for p in eager.parameters())


def variants(runner: CapturedStep) -> set[str]:
    return {variant for kinds in runner._replays for _, variant in kinds}


def test_a_variant_runs_eagerly_once_before_its_capture() -> None:
    model = compiled(convolt.optimizers.SGD(0.1, gradient_accumulation_steps=6))
    backend = ReplayOnCpu(snapshot_of(model))
    runner = CapturedStep(model.trainer._step, model.optimizer, backend, pytest.fail)
    for batch in batches(5):  # step 1 was in fit: these are 2 to 6, and the 6th updates
        runner.train(batch)
    assert backend.replays == 1 and variants(runner) == {"accumulate"} and model.optimizer.iterations == 1
    for batch in batches(6):
        runner.train(batch)
    assert backend.replays == 7 and variants(runner) == {"accumulate", "update"} and model.optimizer.iterations == 2
