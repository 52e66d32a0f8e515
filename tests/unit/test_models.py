"""Models: three ways to write one, their configuration, weights, summary and graph."""

import copy
import json
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import fx, nn

from convolt import applications, errors, layers
from convolt.models import Functional, Model, Sequential


def classifier() -> Sequential:
    return Sequential([layers.Input((8, 8, 3)), layers.Conv2D(4, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten(),
                       layers.Dense(5, activation="softmax")])


def two_in_two_out() -> Model:
    left, right = layers.Input((6,), name="left"), layers.Input((6,), name="right")
    shared = layers.Dense(4, activation="tanh", name="shared")
    both = layers.Concatenate()([shared(left), shared(right)])
    return Model([left, right], [layers.Dense(1, name="value")(both), layers.Dense(3, activation="softmax", name="kind")(both)])


class Net(Model):
    def __init__(self) -> None:
        super().__init__()
        self.conv = layers.Conv2D(4, 3, padding="same")
        self.flatten, self.dense = layers.Flatten(), layers.Dense(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(self.flatten(torch.relu(self.conv(x)) + 1))


class KerasNet(Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.drop = layers.Dense(3), layers.Dropout(0.5)

    def call(self, x: torch.Tensor, training: bool = False) -> torch.Tensor:
        return self.drop(self.dense(x), training=training)


def test_sequential_knows_its_shapes_before_any_data() -> None:
    model = classifier()
    assert model.output_shape == (None, 5)
    assert [layer.name for layer in model.layers] == ["conv2d", "max_pooling2d", "flatten", "dense"]
    assert list(model.state_dict()) == ["conv2d.weight", "conv2d.bias", "dense.weight", "dense.bias"]
    assert model(np.ones((2, 8, 8, 3), "float32")).shape == (2, 5)


def test_sequential_without_input_is_built_by_data_or_by_build() -> None:
    lazy, explicit = (Sequential([layers.Dense(3), nn.ReLU(), layers.Dense(2)]) for _ in range(2))
    assert lazy(np.ones((2, 4), "float32")).shape == (2, 2)
    explicit.build((None, 4))
    assert lazy.count_params() == explicit.count_params() == 3 * 5 + 2 * 4


def test_sequential_names_do_not_depend_on_earlier_models() -> None:
    assert list(classifier().state_dict()) == list(classifier().state_dict())


def test_sequential_rejects_what_is_no_layer() -> None:
    with pytest.raises(errors.ArgumentTypeError, match=r"Add an object: Dense\(\.\.\.\)"):
        Sequential([layers.Dense])
    with pytest.raises(errors.ArgumentError, match="an Input in first place only"):
        Sequential([layers.Dense(3), layers.Input((3,))])
    with pytest.raises(errors.ArgumentError, match="'a' twice"):
        Sequential([layers.Dense(3, name="a"), layers.Dense(3, name="a")])


def test_functional_with_shared_layer_and_several_inputs_and_outputs() -> None:
    model = two_in_two_out()
    assert isinstance(model, Functional)
    assert model.input_names == ["left", "right"]
    assert model.output_names == ["value", "kind"]
    left, right = np.random.default_rng(0).normal(size=(2, 5, 6)).astype("float32")
    value, kind = model([left, right])
    assert value.shape == (5, 1)
    np.testing.assert_allclose(kind.sum(1), 1, rtol=1e-6)
    by_name = model({"right": right, "left": left})
    np.testing.assert_array_equal(by_name[0], value)
    assert sum("shared" in name for name in model.state_dict()) == 2


def test_functional_is_an_fx_graph() -> None:
    graph = two_in_two_out().graph
    assert isinstance(graph, fx.Graph)
    targets = [node.target for node in graph.nodes if node.op == "call_module"]
    assert targets.count("shared") == 2
    assert set(targets) == {"shared", "concatenate", "value", "kind"}


def test_functional_needs_all_its_inputs() -> None:
    a, b = layers.Input((3,), name="a"), layers.Input((3,), name="b")
    with pytest.raises(errors.ArgumentError, match="'b'"):
        Model(a, layers.Add()([a, b]))


def test_symbolic_arithmetic() -> None:
    a, b = layers.Input((3,)), layers.Input((3,))
    model = Model([a, b], (a + b) * 2.0 - 1.0)
    x = np.float32([[1, 2, 3]])
    np.testing.assert_allclose(model([x, 2 * x]), 6 * x - 1)


def test_nested_models_share_the_state() -> None:
    inner = classifier()
    image = layers.Input((8, 8, 3))
    outer = Model(image, layers.Dense(2)(inner(image)))
    assert outer(np.zeros((1, 8, 8, 3), "float32")).shape == (1, 2)
    assert {node.target for node in outer.graph.nodes if node.op == "call_module"} == {"sequential", "dense"}
    assert any(name.startswith("sequential.conv2d") for name in outer.state_dict())


@pytest.mark.parametrize("make", [classifier, two_in_two_out, Net])
def test_a_copy_is_a_model_of_its_own(make: object) -> None:
    model = make()
    data = [np.ones((2, *shape[1:]), "float32") for shape in model.input_shapes] or [np.ones((2, 6, 6, 3), "float32")]
    expected = model(*data)
    again = copy.deepcopy(model)
    for weight in model.parameters():
        weight.data.zero_()
    for a, b in zip(expected, again(*data), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make", [classifier, two_in_two_out, lambda: applications.DenseNet121(input_shape=(32, 32, 3), classes=3)],
                         ids=["sequential", "functional", "deep"])
def test_a_pickled_model_is_the_same(make: Callable[[], Model]) -> None:
    model = make().eval()
    data = [np.ones((2, *shape[1:]), "float32") for shape in model.input_shapes]
    again = pickle.loads(pickle.dumps(model))  # noqa: S301 (written here)
    for a, b in zip(model(*data), again(*data), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_thousand_layers_deep() -> None:
    x = start = layers.Input((2,))
    for _ in range(1000):
        x = layers.Dense(2)(x)
    model = Model(start, x)
    assert len(model.layers) == 1000
    again = copy.deepcopy(model)
    ones = np.ones((1, 2), "float32")
    np.testing.assert_array_equal(again(ones), model(ones))
    assert all(layer is not other for layer, other in zip(again.layers, model.layers, strict=True))


@pytest.mark.parametrize("make", [classifier, two_in_two_out])
def test_configuration_survives_json(make: object) -> None:
    model = make()
    config = json.loads(json.dumps(model.get_config()))
    again = type(model).from_config(config)
    assert again.get_config() == config
    again.set_weights(model.get_weights())
    data = [np.random.default_rng(1).normal(size=(2, *shape[1:])).astype("float32") for shape in model.input_shapes]
    for a, b in zip(model.predict(data, verbose=0), again.predict(data, verbose=0), strict=True):
        np.testing.assert_array_equal(a, b)


def test_set_weights_names_what_does_not_fit() -> None:
    model = classifier()
    weights = model.get_weights()
    assert [w.shape for w in weights] == [(3, 3, 3, 4), (4,), (36, 5), (5,)]
    with pytest.raises(errors.ShapeError, match=r"conv2d.bias: got shape \(5,\); expected \(4,\)"):
        model.set_weights([weights[0], weights[3], *weights[2:]])
    with pytest.raises(errors.ShapeError, match="3 arrays"):
        model.set_weights(weights[:3])


def test_subclass_with_forward_is_built_by_data_and_traced() -> None:
    model = Net()
    assert model(np.zeros((2, 6, 6, 3), "float32")).shape == (2, 2)
    assert [n.target for n in model.graph.nodes if n.op == "call_module"] == ["conv", "flatten", "dense"]


def test_subclass_with_keras_call_gets_training() -> None:
    model = KerasNet()
    x = np.ones((64, 4), "float32")
    model.eval()
    still = model(x)
    np.testing.assert_array_equal(still, model(x))
    assert (model(x, training=True) == 0).any()


def test_what_cannot_be_traced_says_so() -> None:
    class Branch(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(errors.StateError, match=r"torch\.fx cannot follow"):
        _ = Branch().graph


def test_wrap_runs_the_module_itself() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
    model = Model.wrap(module, input_shape=(8, 8, 3))
    assert next(iter(model.parameters())) is next(module.parameters())
    assert model(np.zeros((2, 8, 8, 3), "float32")).shape == (2, 2)


def test_trainable_reaches_every_layer() -> None:
    model = classifier()
    model.get_layer("conv2d").trainable = False
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    model.trainable = False
    assert not model.trainable_weights
    model.trainable = True
    assert len(model.trainable_weights) == 4


def test_get_layer_suggests() -> None:
    model = classifier()
    assert model.get_layer(index=0) is model.get_layer("conv2d")
    with pytest.raises(errors.ArgumentError, match="Did you mean 'conv2d'"):
        model.get_layer("conv2")


def test_summary_shows_shapes_parameters_and_flops() -> None:
    lines: list[str] = []
    classifier().summary(print_fn=lines.append)
    text = "\n".join(lines)
    assert "(None, 6, 6, 4)" in text
    assert "112" in text  # 3·3·3·4 + 4
    assert "Parameters: 297" in text
    conv, dense = 2 * 36 * 27 * 4, 2 * 36 * 5
    assert f"FLOPs of one forward pass of one sample: {(conv + dense) / 1000:.3g} k" in text


def test_summary_of_open_sizes_and_of_unbuilt_models() -> None:
    image = layers.Input((None, None, 3))
    lines: list[str] = []
    Model(image, layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image))).summary(print_fn=lines.append)
    assert "(None, None, None, 4)" in lines[0]
    with pytest.raises(errors.StateError, match="Start it with Input"):
        Sequential([layers.Dense(2)]).summary()


def test_a_layer_that_needs_values_is_told_what_to_define() -> None:
    class Peeking(layers.Layer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x.mean().item()

    with pytest.raises(errors.StateError, match="Define compute_output_shape"):
        Sequential([layers.Input((3,)), Peeking(name="peeking")])
