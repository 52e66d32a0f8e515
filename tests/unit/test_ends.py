"""`layer.input` and `layer.output`, from which programs for Keras make models of features."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import convolt
from convolt import Input, Model, Sequential, applications, layers


def test_features_of_a_network_as_keras_takes_them() -> None:
    base = applications.MobileNetV2(input_shape=(32, 32, 3), weights=None, classes=4)
    x = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    model = Model(inputs=base.input, outputs=[base.get_layer("block_3_expand_relu").output, base.output])
    maps, scores = model.predict(x, verbose=0)
    np.testing.assert_allclose(maps, base.features(x, "block_3_expand_relu"), atol=1e-5)
    np.testing.assert_allclose(scores, base.predict(x, verbose=0), atol=1e-5)
    assert base.output_shape == (None, 4) and model.output_shape == [(None, 8, 8, 144), (None, 4)]
    layer = base.get_layer("block_2_add")
    assert len(layer.input) == 2 and layer.output.shape == (None, 8, 8, 24)


def test_every_layer_of_a_sequential_model_as_in_the_guide_of_keras() -> None:
    first = Sequential([Input((8, 8, 3)), layers.Conv2D(4, 3, activation="relu"), layers.Flatten(), layers.Dense(5)])
    extractor = Model(inputs=first.inputs, outputs=[layer.output for layer in first.layers])
    x = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    found = extractor.predict(x, verbose=0)
    assert [part.shape for part in found] == [(2, 6, 6, 4), (2, 144), (2, 5)]
    np.testing.assert_allclose(found[-1], first.predict(x, verbose=0), atol=1e-6)
    first.add(layers.Dense(2))
    assert first.output.shape == (None, 2) and first.layers[-2].output.shape == (None, 5)


def test_the_first_call_is_meant() -> None:
    dense, start = layers.Dense(3), Input((3,))
    model = Model(start, dense(dense(start)))
    assert dense.input is start and dense.output is not model.output


def test_names_of_the_user_come_first() -> None:
    class Net(Model):
        def __init__(self) -> None:
            super().__init__()
            self.input = layers.Dense(4)
            self.output = torch.nn.Linear(4, 2)

        def call(self, x: torch.Tensor) -> torch.Tensor:
            return self.output(self.input(x))

    net = Net()
    assert net(np.zeros((2, 3), "float32")).shape == (2, 2) and isinstance(net.output, torch.nn.Linear)
    net.note = net.output
    layer = layers.Flatten()
    layer.output = 3
    assert layer.output == 3


def test_layers_without_a_place_say_so() -> None:
    model = Sequential([layers.Dense(2)])
    for layer in (layers.Dense(2), model, copy.deepcopy(Sequential([Input((2,)), layers.Dense(2)]).layers[0])):
        assert not hasattr(layer, "output")
        with pytest.raises(AttributeError, match="has no attribute 'input'"):
            _ = layer.input
    assert convolt.Sequential([Input((2,)), layers.Dense(2)]).input.shape == (None, 2)
