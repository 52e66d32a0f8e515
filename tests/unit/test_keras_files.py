"""Keras's files: what is written, what is read, what is refused and how it is said. Keras itself is in tests/e2e."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import convolt
from convolt import Model, Sequential, errors, layers

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(6, 8, 8, 1)).astype("float32")
SUFFIX = pytest.mark.parametrize("suffix", ["h5", "keras"])


def cnn() -> Sequential:
    return Sequential([layers.Input((8, 8, 1)), layers.Conv2D(4, 3, activation="relu"), layers.BatchNormalization(), layers.Flatten(),
                       layers.Dense(3, activation="softmax", name="kind")])


def small() -> Model:
    inputs = layers.Input((4,), name="numbers")
    return Model(inputs, layers.Dense(3, name="head")(layers.Dense(5, activation="relu", name="body")(inputs)))


def config_of(path: Path) -> dict[str, Any]:
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read("config.json"))
    with h5py.File(path) as file:
        return json.loads(file.attrs["model_config"])


def rewrite(path: Path, change: Any) -> Path:
    """Writes the file again with a changed configuration."""
    config = config_of(path)
    changed = change(config) or config
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            file.attrs["model_config"] = json.dumps(changed)
        return path
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["config.json"] = json.dumps(changed).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


# -- saved as it was ---------------------------------------------------------------------------------------------------


@SUFFIX
def test_training_goes_on_as_if_it_had_not_been_saved(suffix: str, tmp_path: Path) -> None:
    labels = np.arange(6) % 3
    model = cnn()
    model.compile(convolt.optimizers.Adam(0.01), "sparse_categorical_crossentropy", ["accuracy"], device="cpu")
    model.class_names = ["a", "b", "c"]
    model.fit(IMAGES, labels, epochs=2, verbose=0, shuffle=False)
    model.save(tmp_path / f"m.{suffix}")
    again = convolt.load_model(tmp_path / f"m.{suffix}", device="cpu")
    assert again.class_names == ["a", "b", "c"]
    assert again.optimizer.iterations == 2
    assert again.evaluate(IMAGES, labels, verbose=0) == model.evaluate(IMAGES, labels, verbose=0)
    for each in (model, again):
        each.fit(IMAGES, labels, verbose=0, shuffle=False)
    for ours, theirs in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@SUFFIX
def test_equal_models_give_equal_files(suffix: str, tmp_path: Path) -> None:
    model = cnn()
    model.save(tmp_path / f"a.{suffix}")
    model.save(tmp_path / f"b.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_without_compiling_the_model_is_not_compiled(tmp_path: Path) -> None:
    model = small()
    model.compile("sgd", "mse", device="cpu")
    model.save(tmp_path / "m.h5")
    assert convolt.load_model(tmp_path / "m.h5", compile=False).optimizer is None


def test_metrics_that_mean_something_else_in_keras_stay_here(tmp_path: Path) -> None:
    model = cnn()
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy", "f1"], device="cpu")
    model.save(tmp_path / "m.keras")
    assert config_of(tmp_path / "m.keras")["compile_config"]["metrics"] == ["accuracy"]
    assert convolt.load_model(tmp_path / "m.keras", device="cpu").trainer.spec["metrics"] == ["accuracy", "f1"]


def test_the_content_says_what_a_file_is(tmp_path: Path) -> None:
    model = small()
    model.save(tmp_path / "m.h5")
    (tmp_path / "m.h5").rename(tmp_path / "model.bin")
    x = np.ones((2, 4), "float32")
    again = convolt.load_model(tmp_path / "model.bin", device="cpu")
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))


def test_a_layer_may_be_called_as_an_attribute_of_the_model() -> None:
    inputs = layers.Input((4,), name="inputs")
    model = Model(inputs, layers.Dense(2, name="outputs")(inputs))
    assert model.get_layer("outputs").units == 2
    assert len(model.outputs) == 1
    assert set(model.state_dict()) == {"outputs_layer.weight", "outputs_layer.bias"}


# -- files of Keras 2 --------------------------------------------------------------------------------------------------


def old_layer(kind: str, name: str, nodes: Any = None, **config: Any) -> dict[str, Any]:
    entry = {"class_name": kind, "config": {"name": name, "trainable": True, "dtype": "float32", **config}}
    return entry if nodes is None else {**entry, "name": name, "inbound_nodes": nodes}


def old_file(path: Path, config: dict[str, Any], weights: dict[str, dict[str, np.ndarray]], **attributes: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs.update({"keras_version": "2.4.0", "backend": "tensorflow", "model_config": json.dumps(config),
                           **{key: json.dumps(value) for key, value in attributes.items()}})
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [name.encode() for name in weights]
        for name, values in weights.items():
            own = group.create_group(name)
            own.attrs["weight_names"] = [key.encode() for key in values]
            for key, value in values.items():
                own[key] = value
    return path


def arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [RNG.normal(size=shape).astype("float32") for shape in shapes]


def test_a_sequential_model_of_keras_2(tmp_path: Path) -> None:
    kernel, bias = arrays((4, 3), (3,))
    glorot = {"class_name": "GlorotUniform", "config": {"seed": None, "dtype": "float32"}}
    first = old_layer("Dense", "d", units=3, activation="linear", use_bias=True, kernel_initializer=glorot, kernel_constraint=None,
                      batch_input_shape={"class_name": "__tuple__", "items": [None, 4]})
    relu = old_layer("LeakyReLU", "leaky", alpha=0.25)
    config = {"class_name": "Sequential", "config": {"name": "old", "layers": [first, relu]}}
    training = {"loss": {"class_name": "MeanSquaredError", "config": {"reduction": "auto", "name": "mean_squared_error", "fn": "x"}},
                "metrics": [[{"class_name": "MeanMetricWrapper",
                              "config": {"name": "mae", "dtype": "float32", "fn": "mean_absolute_error"}}]],
                "weighted_metrics": None, "loss_weights": None, "sample_weight_mode": None,
                "optimizer_config": {"class_name": "Custom>SGD", "config": {"name": "SGD", "learning_rate": 0.25, "decay": 0.0,
                                                                            "momentum": 0.5, "nesterov": False, "jit_compile": True}}}
    path = old_file(tmp_path / "m.h5", config, {"d": {"d/kernel:0": kernel, "d/bias:0": bias}, "leaky": {}}, training_config=training)
    model = convolt.load_model(path, device="cpu")
    x, = arrays((5, 4))
    expected = x @ kernel + bias
    np.testing.assert_allclose(model.predict(x, verbose=0), np.where(expected > 0, expected, 0.25 * expected), rtol=1e-5, atol=1e-6)
    assert (model.optimizer.learning_rate, model.optimizer.momentum) == (0.25, 0.5)
    assert {"loss", "mean_absolute_error"} <= set(model.fit(x, np.zeros((5, 3), "float32"), verbose=0).history)


def test_a_functional_model_of_keras_2_with_a_model_called_twice(tmp_path: Path) -> None:
    """Calls of nested models count from 1 there, and a single output is a list of one."""
    kernel, = arrays((3, 3))
    inner = {"name": "inner", "layers": [
        old_layer("InputLayer", "in", [], batch_input_shape=[None, 3], sparse=False, ragged=False),
        old_layer("Dense", "d", [[["in", 0, 0, {}]]], units=3, use_bias=False)],
        "input_layers": [["in", 0, 0]], "output_layers": [["d", 0, 0]]}
    outer = {"class_name": "Model", "config": {"name": "outer", "layers": [
        old_layer("InputLayer", "x", [], batch_input_shape=[None, 3]),
        {"class_name": "Model", "config": inner, "name": "inner", "inbound_nodes": [[["x", 0, 0, {}]], [["inner", 1, 0, {}]]]},
        old_layer("Add", "sum", [[["inner", 1, 0, {}], ["inner", 2, 0, {}]]])],
        "input_layers": [["x", 0, 0]], "output_layers": [["sum", 0, 0]]}}
    model = convolt.load_model(old_file(tmp_path / "m.h5", outer, {"x": {}, "inner": {"d/kernel:0": kernel}, "sum": {}}), device="cpu")
    x, = arrays((2, 3))
    np.testing.assert_allclose(model.predict(x, verbose=0), x @ kernel + x @ kernel @ kernel, rtol=1e-5, atol=1e-6)


def test_names_that_keras_had_to_split(tmp_path: Path) -> None:
    """An attribute holds 64 KiB; longer lists of names go into several."""
    model = Sequential([layers.Input((2,)), *(layers.Dense(2, name=f"{i}_" + "n" * 900) for i in range(90))])
    model.save(tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5") as file:
        assert "layer_names1" in file["model_weights"].attrs
    x = np.ones((1, 2), "float32")
    np.testing.assert_array_equal(convolt.load_model(tmp_path / "m.h5", device="cpu").predict(x, verbose=0), model.predict(x, verbose=0))


# -- refused -----------------------------------------------------------------------------------------------------------


def layer(config: dict[str, Any], index: int = 2) -> dict[str, Any]:
    return config["config"]["layers"][index]


@SUFFIX
@pytest.mark.parametrize(("change", "message"), [
    (lambda c: layer(c).update(class_name="Lambda"), r"layer 'head' \(Lambda\): got Python code"),
    (lambda c: layer(c).update(class_name="TFOpLambda"), r"layer 'head' \(TFOpLambda\): got a call of a TensorFlow function"),
    (lambda c: layer(c).update(class_name="Mine"), r"layer 'head' \(Mine\): got the unknown class 'Mine'.*custom_objects=\{'Mine':"),
    (lambda c: layer(c).update(class_name="Dence"), "Did you mean 'Dense'"),
    (lambda c: layer(c).update(registered_name="own>Dense"), "the custom class 'own>Dense'"),
    (lambda c: layer(c).update(module="os", class_name="system"), "layer 'head' \\(system\\): got the custom class"),
    (lambda c: layer(c)["config"].update(data_format="channels_first"), "layer 'head'.*channels_first.*channels_last"),
    (lambda c: layer(c)["config"].update(units=-3), "layer 'head' .*units"),
    (lambda c: layer(c)["config"].update(unitz=3), "layer 'head' .*unitz"),
    (lambda c: layer(c)["config"].update(activation="blow_up"), "unknown 'blow_up'"),
    (lambda c: layer(c)["config"].update(activation={"class_name": "__lambda__", "config": {"value": "x"}}), "code"),
    (lambda c: layer(c)["config"].update(units=2**31), r"shape \(5, 3\); expected \(5, 2147483648\)"),
    (lambda c: layer(c)["config"].update(units=2**70), "sizes up to"),
    (lambda c: layer(c)["config"].update(name="a'b\n"), "not to be trusted"),
    (lambda c: c["config"].update(layers=None), "without layers"),
    (lambda c: c.update(class_name="Dense"), "got a Dense; expected a model|unit|the custom class 'Functional'"),
    (lambda c: c["config"].update(output_layers=["head", 3, 0]), "output 3 of 'head'"),
    (lambda c: c["config"].update(output_layers=["tail", 0, 0]), "'tail'"),
    (lambda c: layer(c).update(inbound_nodes=[[["head", 0, 0, {}]]]), "wait for one another: head"),
    (lambda c: layer(c).update(inbound_nodes=[[["body", 0, 4, {}]]]), "tensor 4 of 'body'"),
    (lambda c: layer(c).update(inbound_nodes=[{"args": [], "kwargs": {"a b": 1}}]), "argument 'a b'"),
    (lambda c: layer(c).update(inbound_nodes=[[["body", 0, 0, {"training": True}]]]), "training=True"),
    (lambda c: layer(c).update(name="body"), "two layers called 'body'"),
    (lambda c: c["config"]["layers"].extend([layer(c)] * 6000), "at most 5,000"),
    (lambda c: [c], "model"),
])
def test_what_a_configuration_must_not_say(change: Any, message: str, suffix: str, tmp_path: Path) -> None:
    small().save(tmp_path / f"m.{suffix}")
    with pytest.raises(errors.ModelFileError, match=message):
        convolt.load_model(rewrite(tmp_path / f"m.{suffix}", change), device="cpu")


class Scaled(convolt.layers.Layer):
    """A layer of the user's own."""

    def __init__(self, factor: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def forward(self, x: Any) -> Any:
        return x * self.factor


@SUFFIX
def test_own_classes_are_given_by_name(suffix: str, tmp_path: Path) -> None:
    model = Sequential([layers.Input((4,)), layers.Dense(3), layers.ReLU(name="own")])
    model.save(tmp_path / f"m.{suffix}")

    def change(config: dict[str, Any]) -> None:
        config["config"]["layers"][2] = {"module": "my_code", "class_name": "Scaled", "registered_name": "mine>Scaled",
                                         "config": {"name": "own", "trainable": True, "dtype": "float32", "factor": 2.0}}

    path = rewrite(tmp_path / f"m.{suffix}", change)
    with pytest.raises(errors.ModelFileError, match="mine>Scaled"):
        convolt.load_model(path)
    x, = arrays((3, 4))
    for name in ("Scaled", "mine>Scaled"):
        own = convolt.load_model(path, custom_objects={name: Scaled}, device="cpu")
        np.testing.assert_allclose(own.predict(x, verbose=0), 2 * (x @ model.get_weights()[0]), rtol=1e-5, atol=1e-6)


def test_what_keras_has_no_place_for_is_refused_when_saving(tmp_path: Path) -> None:
    own = Sequential([layers.Input((4,)), layers.Dense(3), Scaled(2.0, name="twice")])
    with pytest.raises(errors.ModelFileError, match=r"'twice' of class Scaled.*\.safetensors"):
        own.save(tmp_path / "m.h5")
    with pytest.raises(errors.ModelFileError, match=r"a function of your own \(<lambda>\)"):
        Sequential([layers.Input((4,)), layers.Dense(3, activation=lambda x: x)]).save(tmp_path / "m.keras")
    with pytest.raises(errors.StateError, match="not built"):
        Sequential([layers.Dense(3)]).save(tmp_path / "m.keras")
    with pytest.raises(errors.ModelFileError, match="save_weights writes weights alone"):
        small().save(tmp_path / "m.weights.h5")
    with pytest.raises(errors.ModelFileError, match=r"got the suffix '.kears'.*Did you mean '.keras'"):
        small().save(tmp_path / "m.kears")
    assert list(tmp_path.iterdir()) == []


def test_damaged_archives_and_weights(tmp_path: Path) -> None:
    small().save(tmp_path / "m.keras")
    whole = (tmp_path / "m.keras").read_bytes()
    for damaged in (whole[:100], whole[:-30], whole.replace(b"\x89HDF", b"\x89HDX")):
        (tmp_path / "m.keras").write_bytes(damaged)
        with pytest.raises(errors.ModelFileError):
            convolt.load_model(tmp_path / "m.keras")
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        file["x"] = np.ones(3)
    (tmp_path / "m.h5").write_bytes(memory.getvalue())
    with pytest.raises(errors.ModelFileError, match="without a model"):
        convolt.load_model(tmp_path / "m.h5")


@SUFFIX
@pytest.mark.parametrize("policy", ["mixed_float16", {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "mixed_float16"}}])
def test_a_precision_is_named_and_not_kept(policy: Any, suffix: str, tmp_path: Path) -> None:
    small().save(tmp_path / f"m.{suffix}")
    rewrite(tmp_path / f"m.{suffix}", lambda c: layer(c)["config"].update(dtype=policy))
    with pytest.warns(errors.ConvoltWarning, match=r"not kept: the precision 'mixed_float16'; compile\(precision"):
        convolt.load_model(tmp_path / f"m.{suffix}", device="cpu")
    rewrite(tmp_path / f"m.{suffix}", lambda c: layer(c)["config"].update(
        dtype={"module": "keras", "class_name": "QuantizedDTypePolicy", "config": {"mode": "int8", "name": "int8_from_float32"}}))
    with pytest.raises(errors.ModelFileError, match=r"layer 'head'.*quantized type int8_from_float32"):
        convolt.load_model(tmp_path / f"m.{suffix}", device="cpu")


def test_constraints_and_initializers_of_others_do_not_stop_a_model(tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        layer(config)["config"]["kernel_initializer"] = {"class_name": "MyInit", "config": {"x": 1}}

    small().save(tmp_path / "m.h5")
    with pytest.warns(errors.ConvoltWarning, match="not kept: the initializer 'MyInit'"):
        convolt.load_model(rewrite(tmp_path / "m.h5", change), device="cpu")


def test_losses_of_the_user(tmp_path: Path) -> None:
    model = small()
    model.compile("sgd", "mse", ["mae"], device="cpu")
    model.save(tmp_path / "m.keras")

    def change(config: dict[str, Any]) -> None:
        config["compile_config"]["loss"] = {"module": "my_code", "class_name": "function", "config": "cubic",
                                            "registered_name": "mine>cubic"}

    path = rewrite(tmp_path / "m.keras", change)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:  # as Keras writes it, without Convolt's own settings
        for name, content in members.items():
            archive.writestr(name, b'{"keras_version": "3.10.0"}' if name == "metadata.json" else content)
    with pytest.raises(errors.ModelFileError, match=r"compile: got .*'cubic'.*compile=False"):
        convolt.load_model(path, device="cpu")
    assert convolt.load_model(path, compile=False, device="cpu").optimizer is None
    again = convolt.load_model(path, custom_objects={"cubic": lambda y, p: ((y - p).abs() ** 3).mean(-1)}, device="cpu")
    x, y = arrays((4, 4), (4, 3))
    result = again.evaluate(x, y, verbose=0, return_dict=True)
    assert result["loss"] == pytest.approx(float((np.abs(y - model.predict(x, verbose=0)) ** 3).mean()), rel=1e-4)
