"""A training whose steps are recorded and replayed is the eager one bit for bit, and code that may do more than compute keeps its steps."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import convolt
from convolt import layers, optimizers
from convolt.compiler import inference, repeated, replay
from convolt.compiler.fuse import REWRITES
from convolt.compiler.program import CannotReplayError, make_program, source_of
from convolt.compiler.record import Recorder, Recording
from convolt.data.augment import RandomFlip, RandomRotation
from convolt.kernels import compiled as kernels_compiled
from convolt.models import Sequential

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 3, 52)
X = (RNG.normal(size=(52, 12, 12, 1)) * 20 + 60 * Y[:, None, None, None] + 40).clip(0, 255).astype("uint8")
W = RNG.random(52).astype("float32")

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "adam": lambda: "adam",
    "momentum": lambda: optimizers.SGD(0.05, momentum=0.9, nesterov=True, global_clipnorm=1.0),
    "schedule": lambda: optimizers.AdamW(optimizers.schedules.CosineDecay(0.01, 50), weight_decay=0.01, use_ema=True),
    "overwritten": lambda: optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=3),
    "accumulation": lambda: optimizers.Adam(0.01, gradient_accumulation_steps=3, clipnorm=1.0),
    "lookahead": lambda: optimizers.Lookahead(optimizers.SGD(0.05, momentum=0.9), every=5),
    "sam": lambda: optimizers.SAM(optimizers.SGD(0.05), rho=0.1),
    "swa": lambda: optimizers.SWA(optimizers.Adam(0.01), start=0.5, every=3),
    "layerwise": lambda: optimizers.LayerwiseDecay(optimizers.AdamW(0.01), decay=0.5),
    "lamb": lambda: optimizers.Lamb(0.02), "lion": lambda: optimizers.Lion(0.002), "muon": lambda: optimizers.Muon(0.01),
    "rmsprop": lambda: optimizers.RMSprop(0.001, centered=True, momentum=0.5),
}


def net(execution: str = "replay", optimizer: Any = "adam", parts: tuple[Any, ...] = (), seed: int | None = None,
        **options: Any) -> Sequential:
    convolt.utils.set_random_seed(0)
    model = Sequential([
        layers.Input((12, 12, 1)), layers.Rescaling(1 / 255), layers.Conv2D(8, 3, kernel_regularizer="l2", kernel_constraint="max_norm"),
        layers.BatchNormalization(), layers.ReLU(), layers.MaxPooling2D(), *parts, layers.Dropout(0.3, seed=seed), layers.Flatten(),
        layers.Dense(3, activation="softmax"),
    ])  # fmt: skip
    model.compile(optimizer, "sparse_categorical_crossentropy", options.pop("metrics", ["accuracy", "precision"]),
                  weighted_metrics=["accuracy"], device="cpu", **{"precision": "float32", "fusions": "all"} | options, execution=execution)
    return model


def fitted(model: Sequential, epochs: int = 4, **options: Any) -> list[Any]:
    """Returns all that a training leaves: losses and metrics of each epoch, weights, state of the optimizer, random state."""
    convolt.utils.set_random_seed(1)
    history = model.fit(X, Y, **{"sample_weight": W, "batch_size": 8, "verbose": 0, "seed": 1} | options, epochs=epochs)
    state = [value.numpy() for value in model.optimizer.slots().values()]
    return [*(np.asarray(values) for values in history.history.values()), *model.get_weights(), *state, torch.get_rng_state().numpy()]


def assert_same(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert np.array_equal(a, b, equal_nan=True)


def programs(model: Sequential) -> int:
    return len(model.trainer._replay._programs)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("options", [{}, {"micro_batch": 3, "fusions": "none"}], ids=["whole", "micro"])
def test_replayed_and_eager_trainings_are_one(name: str, options: dict[str, Any]) -> None:
    eager, replayed = (net(execution, OPTIMIZERS[name](), **options) for execution in ("eager", "replay"))
    assert_same(fitted(replayed), fitted(eager))
    assert replayed.plan.execution == "replay" and ", whole step replayed" in replayed.plan.describe()
    assert eager.plan.execution == "eager" and "replay" not in eager.plan.describe()
    assert programs(replayed) >= 2, "for the batches of eight and the last one of four"


@pytest.mark.parametrize("options", [
    {"precision": "bfloat16"}, {"seed": 7}, {"fusions": "none"}, {"precision": "bfloat16", "fusions": "none"},
], ids=str)  # fmt: skip
def test_in_each_precision_and_form(options: dict[str, Any]) -> None:
    assert_same(fitted(replayed := net(**options)), fitted(net("eager", **options)))
    assert programs(replayed) == 2


def test_pictures_are_augmented_in_the_recorded_step() -> None:
    augment = [RandomFlip("horizontal"), RandomRotation(10)]
    assert_same(fitted(replayed := net(), augment=augment), fitted(net("eager"), augment=augment))
    assert programs(replayed) == 2


@pytest.mark.parametrize("streamed", [False, True])
def test_batches_that_lie_elsewhere_in_memory_each_time(streamed: bool) -> None:
    def batches() -> Any:
        for _ in range(4):
            for i in range(0, 52, 8):
                yield X[i : i + 8], Y[i : i + 8]

    options: dict[str, Any] = {"x": batches(), "y": None, "steps_per_epoch": 7, "sample_weight": None} if streamed else {}
    found = []
    for execution in ("eager", "replay"):
        model = net(execution)
        convolt.utils.set_random_seed(1)
        given = options | {"x": batches()} if streamed else {"x": X, "y": Y, "shuffle": False, "batch_size": 8}
        model.fit(**given, epochs=4, verbose=0)
        found.append(model.get_weights())
    assert_same(found[1], found[0])
    assert programs(model) == 2


def test_batches_in_another_order_of_memory_are_of_another_kind() -> None:
    def batches() -> Any:
        for i in range(40):
            x = X[i : i + 8].astype("float32")
            yield (x if i % 2 else np.asfortranarray(x)), Y[i : i + 8]

    found = []
    for execution in ("eager", "replay"):
        model = net(execution)
        convolt.utils.set_random_seed(1)
        model.fit(batches(), steps_per_epoch=40, epochs=1, verbose=0)
        found.append(model.get_weights())
    assert_same(found[1], found[0])
    assert programs(model) == 2


def test_a_copy_of_a_model_records_steps_of_its_own() -> None:
    model = net(fusions="none")
    fitted(model)
    twin = copy.deepcopy(model)
    assert_same(fitted(twin), fitted(model))
    assert programs(twin) == programs(model) == 2


def test_a_training_is_gone_on_with_and_other_steps_come_between() -> None:
    def trained(execution: str) -> list[Any]:
        model = net(execution)
        first = fitted(model)
        model.evaluate(X, Y, verbose=0)
        model.train_on_batch(X[:8], Y[:8])
        model.layers[1].trainable = False
        second = fitted(model, 3)
        model.layers[1].trainable = True
        return [*first, *second, *fitted(model, 3)]

    assert_same(trained("replay"), trained("eager"))


class Changing(convolt.callbacks.Callback):
    """Changes the model after some epochs, as schedules of users do."""

    def __init__(self, change: Callable[[Any], None]) -> None:
        super().__init__()
        self.change = change

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == 2:
            self.change(self.model)


def freeze(model: Any) -> None:
    model.layers[-1].weight.requires_grad_(False)


def drop_more(model: Any) -> None:
    next(layer for layer in model.layers if isinstance(layer, layers.Dropout)).rate = 0.7


def move(model: Any) -> None:
    with torch.no_grad():
        model.layers[-1].weight.data = model.layers[-1].weight.data.clone() * 2


def slow_down(model: Any) -> None:
    model.optimizer.learning_rate = 1e-4


@pytest.mark.parametrize("change", [freeze, drop_more, move, slow_down])
def test_what_a_callback_changes_between_epochs_is_noticed(change: Callable[[Any], None]) -> None:
    eager, replayed = (fitted(net(execution), 7, callbacks=[Changing(change)]) for execution in ("eager", "replay"))
    assert_same(replayed, eager)
    assert not np.array_equal(eager[0][-1], fitted(net("eager"), 7)[0][-1]), "the change is one"


class Mine(layers.Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x * 1.0

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


def my_activation(x: Tensor) -> Tensor:
    return torch.relu(x)


def my_metric(y_true: Tensor, y_pred: Tensor) -> Tensor:
    return y_pred.amax(1)


def hooked() -> layers.Layer:
    layer = layers.ReLU()
    layer.register_forward_hook(lambda module, inputs, output: None)
    return layer


class EachBatch(convolt.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        pass


@pytest.mark.parametrize(("parts", "options", "callbacks", "reason"), [
    ((Mine,), {}, [], "calls Mine, which may do more than compute"),
    ((lambda: layers.Activation(my_activation),), {}, [], "calls my_activation"),
    ((hooked,), {"fusions": "none"}, [], "has hooks"),
    ((), {"metrics": [my_metric]}, [], "my_metric may do more than compute"),
    ((), {}, [EachBatch], "callbacks are called at each batch"),
], ids=["layer", "activation", "hook", "metric", "batch"])  # fmt: skip
def test_code_that_may_do_more_keeps_the_step_as_it_is(parts: Any, options: Any, callbacks: Any, reason: str) -> None:
    model = net(parts=tuple(make() for make in parts), **options)
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=[make() for make in callbacks])
    assert model.plan.execution == "eager"
    assert reason in model.plan.describe() and "not replay of the whole step: " in model.plan.describe()


def test_outside_of_the_main_thread_the_step_is_as_it_is() -> None:
    model = net()
    thread = threading.Thread(target=lambda: model.fit(X, Y, batch_size=8, epochs=2, verbose=0))
    thread.start()
    thread.join()
    assert model.plan.execution == "eager" and "outside of the main thread" in model.plan.describe()


def test_anomalies_are_looked_for_in_the_step_itself() -> None:
    model = net()
    with torch.autograd.set_detect_anomaly(True):
        model.fit(X, Y, batch_size=8, epochs=2, verbose=0)
    assert "autograd looks for anomalies" in model.plan.describe()


def test_more_shapes_than_are_worth_a_program_run_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MOST_PROGRAMS", 1)
    assert_same(fitted(replayed := net()), fitted(net("eager")))
    assert programs(replayed) == 1


# -- recordings --------------------------------------------------------------------------------------------------------


def record(work: Callable[[Tensor], Any], x: Tensor | None = None) -> Any:
    given = torch.rand(4, 6) if x is None else x
    with Recorder([given]) as recorder:
        work(given)
    return recorder.recording


def test_a_value_that_the_host_reads_is_told() -> None:
    assert record(lambda x: x * float(x.sum())).reason == "_local_scalar_dense lets the host look at a value"
    assert record(lambda x: x[x > 0.5]).reason == "index lets the host look at a value"
    assert record(lambda x: torch.empty(2).resize_(3)).reason == "resize_ gives a tensor other memory"


def test_numbers_of_the_host_that_change_are_told() -> None:
    total, factors = torch.zeros(()), iter([0.5, 0.25, float("nan"), float("nan")])
    recordings = [record(lambda x: total.add_(x.sum() * next(factors))) for _ in range(4)]
    assert recordings[0].difference(recordings[1]) == "mul with …, float 0x1.0000000000000p-1, then mul with …, float 0x1.0000000000000p-2"
    assert recordings[2].difference(recordings[3]) == ""
    made = [record(lambda x, value=value: total.add_(x.sum() * torch.tensor(value))) for value in (1.0, 1.0, 2.0)]
    assert made[0].difference(made[1]) == "" and made[0].difference(made[2]) == "a tensor that is made anew before each step"


def test_memory_that_something_else_has_filled_is_no_program() -> None:
    total = torch.zeros(())

    def work(x: Tensor) -> None:
        filled = torch.empty(3)
        filled.numpy()[:] = 1.0
        total.add_(filled.sum())

    recording = record(work)
    assert recording.reason == ""
    with pytest.raises(CannotReplayError, match="written by something that is not recorded"):
        make_program(recording)


def test_results_that_nobody_uses_are_not_computed_but_random_numbers_are_drawn() -> None:
    total = torch.zeros(())

    def work(x: Tensor) -> None:
        x.exp()
        torch.rand_like(x)
        total.add_(x.sum())

    with torch.no_grad():
        program = make_program(record(work))
    torch.manual_seed(3)
    program(torch.ones(4, 6))
    drawn = torch.get_rng_state()
    torch.manual_seed(3)
    torch.rand(4, 6)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert len(source_of(program).splitlines()) == 6, source_of(program)


def test_tensors_live_no_longer_than_in_the_step() -> None:
    alive: list[weakref.ref[Tensor]] = []
    total = torch.zeros(())

    def work(x: Tensor) -> None:
        y = x.exp()
        alive.append(weakref.ref(y))
        total.add_((y * 2).sum())
        del y
        assert alive[-1]() is None, "the recorder does not keep it"

    source = source_of(make_program(record(work)))
    lines = [line.strip() for line in source.splitlines()]
    made = {line.split(" = ")[0] for line in lines if " = " in line}
    assert made and made == {name for line in lines if line.startswith("del ") for name in line.removeprefix("del ").split(", ")}


def test_a_kernel_on_threads_of_python_cannot_be_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    from convolt import kernels

    monkeypatch.setattr(kernels_compiled.threads, "openmp", lambda: 0)
    monkeypatch.setattr(kernels_compiled.threads, "parts_of", lambda rows, size: 2)
    x = torch.rand(4, 8, 12, 12).to(memory_format=torch.channels_last)
    assert "runs on Python's threads" in record(lambda given: kernels.relu_max_pool(given), x).reason


# -- evaluation and prediction -------------------------------------------------------------------------------------------


def test_validation_between_epochs_is_the_same() -> None:
    options = {"validation_data": (X[:30], Y[:30], W[:30]), "validation_batch_size": 8}
    assert_same(fitted(replayed := net(), **options), fitted(net("eager"), **options))
    assert sum("evaluation" in kind for kind in replayed.trainer._replay._programs) == 2, "for the batches of eight and the last one of six"


def repeated_of(model: Sequential) -> Any:
    return inference._kept[model].repeated


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("samples", [40, 2000], ids=["layers", "frozen"])
def test_predictions_from_a_recording_are_those_of_the_layers(precision: str, samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if samples == 2000:
        monkeypatch.setitem(inference.FREEZING, "cpu", 0.0)
    model = net(precision=precision)
    model.fit(X, Y, batch_size=8, epochs=1, verbose=0)
    x = RNG.integers(0, 256, (samples + 3, 12, 12, 1)).astype("uint8")
    found = model.predict(x, batch_size=8, verbose=0)
    assert len(repeated_of(model)._programs) == 1, "the last three samples come once"
    again = model.predict(x, batch_size=8, verbose=0)
    monkeypatch.setattr(repeated.Repeated, "look", lambda repeated, module, beneath: setattr(repeated, "_ready", False))
    expected = model.predict(x, batch_size=8, verbose=0)
    assert np.array_equal(found, expected) and np.array_equal(again, expected)


def test_predictions_follow_weights_and_layers_that_change() -> None:
    model = net(fusions="none")
    model.fit(X, Y, batch_size=8, epochs=1, verbose=0)
    model.predict(X, batch_size=8, verbose=0)
    assert repeated_of(model)._programs
    model.layers[-1].set_weights([weight * 2 for weight in model.layers[-1].get_weights()])
    doubled = model.predict(X, batch_size=8, verbose=0)
    np.testing.assert_allclose(doubled, model(X), rtol=1e-5, atol=1e-6)
    model.predict(X, batch_size=8, verbose=0)
    model.layers[-1].activation = convolt.activations.sigmoid
    np.testing.assert_allclose(model.predict(X, batch_size=8, verbose=0), model(X), rtol=1e-5, atol=1e-6)


def test_several_outputs_come_in_their_order_and_threads_call_the_layers() -> None:
    x = layers.Input((5,))
    hidden = layers.Dense(7, activation="relu")(x)
    model = convolt.Model(x, {"second": layers.Dense(2)(hidden), "first": layers.Dense(3)(hidden), "same": x})
    given = RNG.random((40, 5)).astype("float32")
    expected = model.predict(given[:8], batch_size=8, verbose=0)
    found = model.predict(given, batch_size=8, verbose=0)
    assert list(found) == ["second", "first", "same"] and len(repeated_of(model)._programs) == 1
    for name in found:
        assert np.array_equal(found[name][:8], expected[name])
    programs_before = dict(repeated_of(model)._programs)
    repeated_of(model)._programs = {kind: (lambda *inputs: pytest.fail("a program ran outside of the main thread"), None)
                                    for kind in programs_before}
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(model.predict(given, batch_size=8, verbose=0)))
    thread.start()
    thread.join()
    assert np.array_equal(results[0]["first"], found["first"])


def test_a_model_is_forgotten_with_what_was_recorded_of_it() -> None:
    model = net(fusions="none")
    model.fit(X, Y, batch_size=8, epochs=1, verbose=0)
    model.predict(X, batch_size=8, verbose=0)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# -- fused forms ---------------------------------------------------------------------------------------------------------


def network_of_all(**options: Any) -> Any:
    """Returns a network in which each rewrite has something to do."""
    convolt.utils.set_random_seed(0)
    image = layers.Input((16, 16, 3))
    x = layers.MaxPooling2D()(layers.Conv2D(32, 3, padding="same", activation="relu")(image))
    x = layers.MaxPooling2D()(layers.Conv2D(32, 3, padding="same", activation="relu")(x))
    y = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(64, 3, padding="same", use_bias=False)(x)))
    y = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(64, 3, padding="same")(y)))
    y = layers.MaxPooling2D(3, 1)(layers.ZeroPadding2D(1)(y))
    z = layers.ReLU(6)(layers.BatchNormalization()(layers.DepthwiseConv2D(7, padding="same")(y)))
    z = layers.BatchNormalization()(layers.Conv2D(64, 1)(z))
    y = layers.ReLU()(layers.Add()([z, y]))
    y = layers.Add()([layers.BatchNormalization()(layers.Conv2D(64, 1, activation="relu")(y)), y])
    y = layers.MaxPooling2D()(layers.ReLU()(layers.Add()([y, layers.SeparableConv2D(64, 5, padding="same")(y)])))
    outputs = layers.Dense(3, activation="softmax")(layers.Dense(1024)(layers.GlobalAveragePooling2D()(layers.BatchNormalization()(y))))
    model = convolt.Model(image, outputs)
    model.compile("adam", "sparse_categorical_crossentropy", device="cpu", **options)
    return model


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [rewrite.name for rewrite in REWRITES])
def test_each_rewrite_can_be_replayed(name: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convolt.compiler.fuse.has_slow_mkl", lambda: True)
    x = RNG.random((96, 16, 16, 3)).astype("float32")
    found = []
    for execution in ("eager", "replay"):
        model = network_of_all(fusions=(name,), precision=precision, execution=execution)
        convolt.utils.set_random_seed(1)
        model.fit(x, np.arange(96) % 3, batch_size=16, epochs=2, verbose=0, seed=1)
        found.append(model.get_weights())
    assert model.plan.fusions.get(name), model.plan.describe()
    assert model.plan.execution == "replay" and programs(model) == 1, model.plan.describe()
    assert_same(found[1], found[0])


@pytest.mark.parametrize(("differing", "replayed"), [(1, True), (2, True), (100, False)])
def test_recordings_that_differ_at_first_are_followed_by_others(differing: int, replayed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = Recording.difference, []

    def difference(self: Recording, other: Recording) -> str:
        calls.append(self)
        return "made in the first steps alone" if len(calls) <= differing else real(self, other)

    monkeypatch.setattr(Recording, "difference", difference)
    model = net(fusions="none")
    model.fit(X, Y, batch_size=16, epochs=4, verbose=0)
    assert (model.plan.execution == "replay") is replayed, model.plan.describe()
    assert replayed or "made in the first steps alone" in model.plan.describe()
    assert len(calls) < 12, "it is given up"
