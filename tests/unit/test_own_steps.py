"""`train_step` and `test_step` of the user: as in Keras, in the compiled step, with right logs."""

from typing import Any

import numpy as np
import pytest
import torch

import convolt as cv
from convolt import layers, metrics, optimizers
from convolt.compiler.execute import CapturedStep
from convolt.errors import ArgumentTypeError, StateError
from convolt.training.sampling import Drawing
from tests.unit.compiler.replay import ReplayOnCpu
from tests.unit.compiler.test_execute import snapshot_of

RNG = np.random.default_rng(0)
X = RNG.random((70, 12, 12, 1)).astype("float32")
Y = (np.arange(70) % 3).astype("int64")


def net(kind: type = cv.Sequential) -> Any:
    cv.utils.set_random_seed(3)
    return kind([
        layers.Input((12, 12, 1)), layers.Conv2D(4, 3, activation="relu", kernel_regularizer="l2"), layers.MaxPooling2D(2),
        layers.BatchNormalization(), layers.Flatten(), layers.Dropout(0.3), layers.Dense(3, kernel_constraint="max_norm"),
    ])


LOSS = "sparse_categorical_crossentropy"


def compiled(model: Any, **options: Any) -> Any:
    model.compile(optimizers.Adam(0.01), cv.losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"], **options)
    return model


class Same(cv.Sequential):
    """The standard step, written out."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        y_pred = self(x, training=True)
        loss = self.compute_loss(x, y, y_pred)
        self.zero_grad()
        loss.backward()
        trained = [p for p in self.parameters() if p.requires_grad]
        self.optimizer.apply([p.grad for p in trained], trained)
        return {**self.compute_metrics(x, y, y_pred), "loss": loss}


class Inherited(cv.Sequential):
    """More values beside the standard ones."""

    def train_step(self, data: Any) -> dict[str, Any]:
        return {**super().train_step(data), "half": torch.tensor(0.5), "plain": 2.0}


@pytest.mark.parametrize("kind", [Same, Inherited])
@pytest.mark.parametrize("fusions", ["none", "all"])
def test_an_own_step_that_does_the_same_trains_bit_equally(kind: type, fusions: str) -> None:
    standard, own = (compiled(net(k), fusions=fusions) for k in (cv.Sequential, kind))
    fit = {"epochs": 3, "batch_size": 16, "verbose": 0, "seed": 5, "validation_data": (X[:20], Y[:20])}
    cv.utils.set_random_seed(1)
    first = standard.fit(X, Y, **fit).history
    cv.utils.set_random_seed(1)
    second = own.fit(X, Y, **fit).history
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)
    assert all(torch.equal(a, b) for a, b in zip(standard.state_dict().values(), own.state_dict().values(), strict=True))
    assert own.plan.form == ("fused" if fusions == "all" else "layers")
    assert own.optimizer.iterations == 15
    if kind is Inherited:
        assert second["half"] == [0.5] * 3 and second["plain"] == [2.0] * 3


def test_self_is_what_the_plan_chose() -> None:
    seen = []

    class Looks(Same):
        def train_step(self, data: Any) -> dict[str, Any]:
            seen.append(self.own_step.module)
            return super().train_step(data)

    model = compiled(net(Looks), fusions="all")
    model.fit(X, Y, batch_size=35, verbose=0)
    assert seen[0] is model  # the first step, before the plan
    assert seen[1:] and all(isinstance(module, torch.fx.GraphModule) for module in seen[1:])
    assert model.own_step is None


def test_an_own_step_is_captured_and_replayed_bit_equally() -> None:
    runs = []
    for captured in (False, True):
        model = compiled(net(Same))
        model.fit(X[:64], Y[:64], batch_size=16, verbose=0, seed=1)  # builds
        trainer = model.trainer
        step = trainer._step
        runner = CapturedStep(step, model.optimizer, ReplayOnCpu(snapshot_of(model)), pytest.fail) if captured else step
        data, _ = trainer._data("fit", X[:64], Y[:64], None, 16, None, Drawing(9, shuffle=True))
        torch.manual_seed(4)
        model.train()
        step.train_totals.reset()
        for epoch in range(6):
            for batch in data.epoch(epoch):
                runner.train(batch)
        runs.append((step.train_totals.read(), [v.clone() for v in model.state_dict().values()], model.optimizer.iterations))
    assert runs[0][0] == runs[1][0] and runs[0][2] == runs[1][2] == 28
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))


class Autoencoder(cv.Model):
    """No labels, a loss of its own, a metric of its own, and its own evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.out = layers.Dense(4, activation="relu"), layers.Dense(8)
        self.tracker = metrics.Mean(name="mse")

    @property
    def metrics(self) -> list[Any]:
        return [self.tracker]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.code(x))

    def train_step(self, data: Any) -> dict[str, Any]:
        loss = (self(data) - data).square().mean()
        loss.backward()
        self.optimizer.step()
        self.tracker.update_state(loss.detach())
        return {"mse": self.tracker.result(), "twice": 2 * loss}

    def test_step(self, data: Any) -> dict[str, Any]:
        return {"error": (self(data) - data).square().mean()}


def test_a_model_without_labels_and_with_its_own_metric(tmp_path: Any) -> None:
    cv.utils.set_random_seed(0)
    model = Autoencoder()
    model.compile(optimizers.SGD(0.5))
    x = RNG.random((64, 8)).astype("float32")
    history = model.fit(x, epochs=4, batch_size=16, verbose=0, checkpoint=str(tmp_path / "run")).history
    assert set(history) == {"mse", "twice", "learning_rate"}
    np.testing.assert_allclose(history["twice"], 2 * np.array(history["mse"]), rtol=1e-5)
    assert history["mse"][-1] < history["mse"][0]
    error = model.evaluate(x, verbose=0, return_dict=True)
    expected = np.square(model.predict(x, verbose=0) - x).mean()
    np.testing.assert_allclose(error["error"], expected, rtol=1e-5)


def test_sample_weights_arrive() -> None:
    shapes = []

    class Weighted(cv.Sequential):
        def train_step(self, data: Any) -> dict[str, Any]:
            shapes.append([tuple(part.shape) for part in data])
            return super().train_step(data)

    weights = np.linspace(0, 1, 70).astype("float32")
    runs = []
    for kind in (cv.Sequential, Weighted):
        model = compiled(net(kind))
        cv.utils.set_random_seed(2)
        runs.append(model.fit(X, Y, batch_size=35, sample_weight=weights, verbose=0, seed=1).history["loss"])
    assert shapes[0] == [(35, 1, 12, 12), (35,), (35,)] and runs[0] == runs[1]


def test_mistakes_are_named() -> None:
    model = compiled(net(Same))
    with pytest.raises(StateError, match=r"Same\.compute_loss: got a call outside of fit"):
        model.compute_loss(y=torch.zeros(2), y_pred=torch.zeros(2, 3))
    with pytest.raises(StateError, match="train_step of your own"):
        compiled(net(Same), micro_batch=4).fit(X, Y, verbose=0)

    class Forgets(cv.Sequential):
        def train_step(self, data: Any) -> Any:
            super().train_step(data)

    with pytest.raises(ArgumentTypeError, match="a result of type NoneType"):
        compiled(net(Forgets)).fit(X, Y, verbose=0)

    class Twice(cv.Sequential):
        def train_step(self, data: Any) -> Any:
            super().train_step(data)
            return super().train_step(data)

    with pytest.raises(StateError, match="a second call in one train_step"):
        compiled(net(Twice)).fit(X, Y, verbose=0)
