"""fit, evaluate, predict: every kind of data, exact results whatever the batch size, no host sync in a step."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset, TensorDataset

import convolt
from convolt import callbacks, errors, layers
from convolt.models import Model, Sequential

RNG = np.random.default_rng(0)
X = RNG.normal(size=(70, 6)).astype("float32")
Y = (X[:, 0] > 0).astype("int64") + (X[:, 1] > 0)


def net(seed: int = 0, **compile_options: object) -> Sequential:
    convolt.utils.set_random_seed(seed)
    model = Sequential([layers.Input((6,)), layers.Dense(16, activation="relu"), layers.Dense(3, activation="softmax")])
    usual = {"optimizer": "adam", "loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], "device": "cpu"}
    model.compile(**usual | compile_options)
    return model


class Pairs(Dataset):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return X[index], int(Y[index])


class BatchesByIndex:
    """Keras's `Sequence`: whole batches by index."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return X[10 * index : 10 * index + 10], Y[10 * index : 10 * index + 10]


def endless():
    while True:
        for start in range(0, 70, 10):
            yield X[start : start + 10], Y[start : start + 10]


def test_fit_learns_and_returns_history() -> None:
    model = net(optimizer=convolt.optimizers.Adam(0.03))
    history = model.fit(X, Y, batch_size=16, epochs=12, verbose=0, validation_split=0.2)
    assert set(history.history) == {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"}
    assert history.epoch == list(range(12))
    assert history.history["loss"][-1] < 0.5 * history.history["loss"][0]
    assert model.history is history


@pytest.mark.parametrize("data", [
    lambda: (torch.from_numpy(X), torch.from_numpy(Y)),
    lambda: (X[::-1][::-1], Y.astype(">i8")),
    lambda: ([X], [Y]),
    lambda: ({"input": X}, Y),
    lambda: (Pairs(), None),
    lambda: (TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), None),
    lambda: (DataLoader(Pairs(), batch_size=10), None),
    lambda: (BatchesByIndex(), None),
    lambda: (endless(), None),
    lambda: ([(X[i : i + 10], Y[i : i + 10]) for i in range(0, 70, 10)].__iter__(), None),
], ids=["tensors", "strided-big-endian", "lists", "mapping", "dataset", "tensor-dataset", "loader", "sequence", "generator", "iterator"])
def test_every_kind_of_data_gives_the_same_training(data: object) -> None:
    x, y = data()
    expected, model = net(), net()
    expected.fit(X, Y, batch_size=10, verbose=0, shuffle=False)
    model.fit(x, y, batch_size=10, verbose=0, shuffle=False, steps_per_epoch=7)
    for a, b in zip(expected.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_generator_goes_on_from_epoch_to_epoch() -> None:
    taken = []

    def counted():
        for i, batch in enumerate(endless()):
            taken.append(i)
            yield batch

    net().fit(counted(), epochs=3, steps_per_epoch=4, verbose=0)
    assert taken == list(range(len(taken))) and 12 <= len(taken) <= 13


def test_same_seed_same_weights_bit_for_bit() -> None:
    runs = []
    for seed in (1, 1, 2):
        model = net(seed)
        model.fit(X, Y, epochs=2, verbose=0)
        runs.append(np.concatenate([w.ravel() for w in model.get_weights()]))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()


@pytest.mark.parametrize("batch_size", [1, 7, 32, 70, 200])
def test_evaluation_is_exact_whatever_the_batch_size(batch_size: int) -> None:
    model = net(metrics=["accuracy", "precision", "recall"])
    whole = model.evaluate(X, Y, batch_size=70, verbose=0)
    np.testing.assert_allclose(model.evaluate(X, Y, batch_size=batch_size, verbose=0), whole, rtol=1e-5)
    assert model.metrics_names == ["loss", "accuracy", "precision", "recall"]
    assert list(model.evaluate(X, Y, verbose=0, return_dict=True)) == model.metrics_names


def test_predict_returns_numpy_channels_last() -> None:
    model = Sequential([layers.Input((5, 4, 2)), layers.Conv2D(3, 1)])
    x = RNG.normal(size=(9, 5, 4, 2)).astype("float32")
    out = model.predict(x, batch_size=4, verbose=0)
    assert isinstance(out, np.ndarray) and out.shape == (9, 5, 4, 3)
    kernel, bias = model.get_weights()
    np.testing.assert_allclose(out, x @ kernel[0, 0] + bias, rtol=1e-5, atol=1e-6)


def test_uint8_images_enter_as_they_are() -> None:
    model = Sequential([layers.Input((4, 4, 1)), layers.Rescaling(1 / 255), layers.Flatten()])
    x = RNG.integers(0, 256, size=(3, 4, 4, 1), dtype="uint8")
    np.testing.assert_allclose(model.predict(x, verbose=0), x.reshape(3, -1) / 255, rtol=1e-6)


def test_class_weight_is_sample_weight_by_class() -> None:
    by_class, by_sample = net(), net()
    by_class.fit(X, Y, verbose=0, shuffle=False, class_weight={0: 0.5, 1: 1.0, 2: 3.0})
    by_sample.fit(X, Y, verbose=0, shuffle=False, sample_weight=np.array([0.5, 1.0, 3.0], "float32")[Y])
    for a, b in zip(by_class.get_weights(), by_sample.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_several_inputs_and_outputs() -> None:
    left, right = layers.Input((6,), name="left"), layers.Input((6,), name="right")
    both = layers.Dense(8, activation="relu")(layers.Concatenate()([left, right]))
    model = Model([left, right], {"kind": layers.Dense(3, activation="softmax")(both), "size": layers.Dense(1)(both)})
    model.compile("adam", loss={"kind": "sparse_categorical_crossentropy", "size": "mse"}, loss_weights={"kind": 1.0, "size": 0.5},
                  metrics={"kind": ["accuracy"]}, device="cpu")
    data, labels = {"left": X, "right": X}, {"kind": Y, "size": X[:, :1]}
    history = model.fit(data, labels, epochs=2, verbose=0).history
    assert set(history) >= {"loss", "kind_loss", "size_loss", "kind_accuracy"}
    np.testing.assert_allclose(history["loss"], np.array(history["kind_loss"]) + 0.5 * np.array(history["size_loss"]), rtol=1e-5)
    assert set(model.predict(data, verbose=0)) == {"kind", "size"}


def test_softmax_model_trains_on_its_logits() -> None:
    model = net()
    model.layers[-1].set_weights([np.full((16, 3), 50, "float32") * [[1, -1, 0]], np.zeros(3, "float32")])
    loss = model.train_on_batch(X[:8], Y[:8])[0]
    assert np.isfinite(loss) and loss > 20  # probabilities clipped at 1e-7 would end at 16.1
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_regularizers_enter_the_loss() -> None:
    plain, penalized = (Sequential([layers.Input((6,)), layers.Dense(1, kernel_initializer="ones", kernel_regularizer=regularizer)])
                        for regularizer in (None, "l2"))
    results = []
    for model in (plain, penalized):
        model.compile("sgd", "mse", device="cpu")
        results.append(model.train_on_batch(X, X[:, :1]))
    np.testing.assert_allclose(results[1] - results[0], 0.01 * 6, rtol=1e-5)


def test_frozen_layers_stay_as_they_are() -> None:
    model = net()
    model.layers[0].trainable = False
    before = model.get_weights()
    model.fit(X, Y, verbose=0)
    changed = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]
    assert changed == [False, False, True, True]


def test_a_callback_can_stop_in_the_middle_of_an_epoch() -> None:
    class StopAtThree(callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            self.model.stop_training = batch == 2

    history = net().fit(X, Y, batch_size=10, epochs=5, verbose=0, callbacks=[StopAtThree()])
    assert history.epoch == [0]


def test_ctrl_c_returns_the_history_so_far() -> None:
    class Interrupt(callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
            if epoch == 2:
                raise KeyboardInterrupt

    model = net()
    history = model.fit(X, Y, epochs=9, verbose=0, callbacks=Interrupt())
    assert history.epoch == [0, 1] and model.stop_training


class NoSync(TorchDispatchMode):
    """Raises where a step would make the host wait for a device, or where a shape would depend on data."""

    FORBIDDEN = frozenset({"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::masked_select",
                           "aten::equal", "aten::is_nonzero"})

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func._schema.name not in self.FORBIDDEN, f"{func._schema.name} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", [name for name, _ in convolt.optimizers.registry.items()])
def test_a_training_step_has_no_host_sync(optimizer: str) -> None:
    image = layers.Input((8, 8, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same", strides=2, kernel_regularizer="l2")(image)))
    x = layers.Flatten()(layers.Dropout(0.5)(layers.MaxPooling2D()(x)))
    model = Model(image, layers.Dense(3, activation="softmax")(x))
    options = {"clipnorm": 1.0} if optimizer != "TorchOptimizer" else {}
    model.compile(convolt.optimizers.registry.find(optimizer)(**options) if options else "adam", "sparse_categorical_crossentropy",
                  ["accuracy", "precision", "recall", "f1_score"], device="cpu")
    pictures, labels = RNG.normal(size=(12, 8, 8, 3)).astype("float32"), np.arange(12) % 3
    model.fit(pictures, labels, batch_size=4, verbose=0)  # the first step makes states
    from convolt.data.batches import Batch

    step = model.trainer._step
    model.train()
    batch = Batch((torch.from_numpy(pictures),), (torch.from_numpy(labels),), (torch.ones(12),), 12)
    with NoSync():
        step.train(batch)


def test_bfloat16_trains_with_float32_weights() -> None:
    model = net(precision="bfloat16", optimizer=convolt.optimizers.Adam(0.03))
    history = model.fit(X, Y, batch_size=16, epochs=12, verbose=0)
    assert history.history["loss"][-1] < 0.6 * history.history["loss"][0]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.predict(X, verbose=0).dtype == np.float32


def test_ema_weights_are_the_models_at_the_end() -> None:
    model = net(optimizer=convolt.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9))
    before = model.get_weights()[0]
    seen = []
    watch = callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(model.get_weights()[0]))
    model.fit(X, Y, batch_size=35, verbose=0, callbacks=[watch])
    average = 0.9 * (0.9 * before + 0.1 * seen[0]) + 0.1 * seen[1]
    first = 0.9 * seen[0] + 0.1 * seen[1]  # Keras starts the average at the first value that it sees
    got = model.get_weights()[0]
    assert min(abs(got - average).max(), abs(got - first).max()) < 1e-6


def test_one_cycle_by_name_knows_the_number_of_steps() -> None:
    model = net(optimizer=convolt.optimizers.SGD("one_cycle"))
    rates = []
    watch = callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: rates.append(model.optimizer.lr))
    model.fit(X, Y, batch_size=10, epochs=3, verbose=0, callbacks=[watch])
    assert len(rates) == 21 and max(rates) > 5 * rates[0] and rates[-1] < rates[0]


@pytest.mark.parametrize(("call", "message"), [
    (lambda m: Sequential([layers.Dense(3)]).fit(X, Y), "no compile"),
    (lambda m: m.fit(X, Y, epochs=0), "fit\\(epochs\\): got 0"),
    (lambda m: m.fit(X, Y, batch_size=-1), "batch_size"),
    (lambda m: m.fit(X, Y, validation_split=1.5), "validation_split"),
    (lambda m: m.fit(X, Y[:-1]), "69"),
    (lambda m: m.fit(X[:, :5], Y), "\\(None, 6\\)|6"),
    (lambda m: m.fit(X, Y + 7), "label"),
    (lambda m: m.fit(X[:0], Y[:0]), "no values"),
    (lambda m: m.fit(endless(), Y), "None: x brings the labels"),
    (lambda m: m.fit(endless(), validation_split=0.1, steps_per_epoch=2), "validation_data"),
    (lambda m: m.compile("adm"), "Did you mean 'adam'"),
    (lambda m: m.compile("adam", "sparse_categorical_crossentropi"), "Did you mean 'sparse_categorical_crossentropy'"),
    (lambda m: m.compile("adam", "mse", ["acuracy"]), "Did you mean 'accuracy'"),
    (lambda m: m.compile("adam", "mse", precision="float23"), "Did you mean 'float32'"),
    (lambda m: m.compile("adam", {"dens": "mse"}), "output"),
])
def test_errors_say_what_to_do(call: object, message: str) -> None:
    with pytest.raises(errors.ConvoltError, match=message):
        call(net())


def test_compile_without_loss_cannot_train() -> None:
    model = net(loss=None)
    with pytest.raises(errors.StateError, match="a loss"):
        model.fit(X, Y, verbose=0)


def test_functional_names_are_checked_at_compile() -> None:
    x = layers.Input((6,))
    model = Model(x, layers.Dense(3, name="kind")(x))
    with pytest.raises(errors.ArgumentError, match="Did you mean 'kind'"):
        model.compile("adam", {"kinds": "mse"})


def test_wrapped_module_trains() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    model = Model.wrap(module)
    model.compile(convolt.optimizers.Adam(0.03), convolt.losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"], device="cpu")
    history = model.fit(X, Y, epochs=12, batch_size=16, verbose=0).history
    assert history["loss"][-1] < 0.5 * history["loss"][0]
