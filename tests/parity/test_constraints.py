"""Every constraint against Keras: as a function, and in training, where weights are kept in another order of axes."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
import torch

import convolt
from convolt import constraints, layers
from convolt.configurable import to_json
from convolt.constraints import registry
from convolt.errors import ArgumentError, ShapeError
from convolt.training.step import Step

ARGUMENTS: dict[str, list[dict]] = {  # for each registered constraint, the arguments to try
    "MaxNorm": [{}, {"max_value": 0.5}, {"max_value": 1, "axis": -1}, {"max_value": 0.7, "axis": [0, 1]}],
    "UnitNorm": [{}, {"axis": 1}, {"axis": [0, 1]}],
    "NonNeg": [{}],
    "MinMaxNorm": [{}, {"min_value": 0.6, "max_value": 0.8}, {"min_value": 0.6, "max_value": 0.8, "rate": 0.3, "axis": [0, 1]}],
}
CASES = [(name, arguments) for name, each in ARGUMENTS.items() for arguments in each]
EVERY_CASE = pytest.mark.parametrize(("name", "arguments"), CASES, ids=[f"{n}{a}" for n, a in CASES])


def weight(shape) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).uniform(-1, 1, shape).astype("float32"))


def test_every_registered_constraint_has_a_case():
    assert set(ARGUMENTS) == set(registry)


def test_every_constraint_of_keras_is_known(keras):
    theirs = {n for n, c in vars(keras.constraints).items() if inspect.isclass(c)} - {"Constraint"}
    assert {"MaxNorm", "max_norm"} <= theirs
    assert all(inspect.isclass(getattr(constraints, name)) for name in theirs)


@EVERY_CASE
def test_result_equals_keras(keras, name, arguments):
    for shape in ((3, 4), (2, 3, 4, 5)):
        w = weight(shape)
        w[0, 0] = 0
        got = registry.find(name)(**arguments)(w)
        torch.testing.assert_close(got, getattr(keras.constraints, name)(**arguments)(w), rtol=1e-6, atol=1e-7)
        assert not torch.equal(got, w) or name == "MinMaxNorm"


@EVERY_CASE
def test_signature_and_configuration(keras, name, arguments):
    ours, theirs = registry.find(name), getattr(keras.constraints, name)
    if name != "NonNeg":
        mine, other = inspect.signature(ours).parameters, inspect.signature(theirs).parameters
        assert {n: p.default for n, p in mine.items()} == {n: p.default for n, p in other.items()}
    config = json.loads(json.dumps(to_json(ours(**arguments))))
    assert config["config"] == theirs(**arguments).get_config()
    assert json.loads(json.dumps(constraints.serialize(constraints.deserialize(config)))) == config


def test_names():
    assert isinstance(constraints.get("max_norm"), constraints.MaxNorm)
    assert isinstance(constraints.get(constraints.NonNeg), constraints.NonNeg)
    assert constraints.get(None) is None and constraints.max_norm is constraints.MaxNorm
    assert constraints.get(lambda w: w * 2)(torch.ones(2)).tolist() == [2, 2]
    assert convolt.constraints.unit_norm(axis=1).axis == 1


@pytest.mark.parametrize(("make", "message"), [
    (lambda: constraints.MaxNorm(-1), r"MaxNorm\(max_value\): got -1; expected a finite number from 0"),
    (lambda: constraints.MaxNorm(axis="0"), r"MaxNorm\(axis\).*axis=0 for Dense"),
    (lambda: constraints.UnitNorm(axis=[]), r"UnitNorm\(axis\)"),
    (lambda: constraints.MinMaxNorm(2.0, 1.0), "min_value up to max_value"),
    (lambda: constraints.MinMaxNorm(rate=2), "a finite number from 0 to 1"),
    (lambda: constraints.get("max_nrom"), "Did you mean 'max_norm'"),
])
def test_argument_errors(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_an_axis_that_a_weight_lacks():
    with pytest.raises(ShapeError, match=r"MaxNorm\(axis\): got 3; expected axes of the weight, whose shape is \(2, 3\)"):
        constraints.MaxNorm(axis=3)(torch.ones(2, 3))


# -- in training -------------------------------------------------------------------------------------------------------


def network(library):
    """Every argument with a constraint, on weights that PyTorch keeps in another order of axes."""
    c, parts = library.constraints, library.layers
    return library.Sequential([
        library.Input((8, 8, 2)),
        parts.Conv2D(4, 3, kernel_constraint=c.MaxNorm(0.6, axis=[0, 1, 2]), bias_constraint="non_neg"),
        parts.BatchNormalization(gamma_constraint=c.MinMaxNorm(0.4, 0.5, axis=0), beta_constraint=c.NonNeg()),
        parts.DepthwiseConv2D(3, depth_multiplier=2, depthwise_constraint=c.UnitNorm(axis=[0, 1])),
        parts.PReLU(shared_axes=[1, 2], alpha_constraint="non_neg"),
        parts.SeparableConv2D(3, 2, depthwise_constraint=c.MaxNorm(0.3, axis=[0, 1]), pointwise_constraint=c.UnitNorm(axis=2),
                          bias_constraint=c.NonNeg()),
        parts.Conv2DTranspose(2, 2, kernel_constraint=c.MaxNorm(0.4, axis=[0, 1, 3])),
        parts.LayerNormalization(gamma_constraint=c.MaxNorm(0.9)),
        parts.Flatten(),
        parts.Dense(3, kernel_constraint=c.MinMaxNorm(0.5, 0.8, rate=0.5, axis=0), bias_constraint=c.MaxNorm(0.01)),
    ])


def test_training_equals_keras_step_for_step(keras):
    ours, theirs = network(convolt), network(keras)
    rng = np.random.default_rng(0)
    start = [np.abs(w) + 0.5 if "var" in name else w for name, w in
             ((name, rng.uniform(-0.6, 0.6, view.shape).astype("float32")) for name, view in ours.keras_weights())]
    ours.set_weights(start)
    theirs.set_weights(start)
    ours.compile(convolt.optimizers.SGD(0.05), "mean_squared_error")
    theirs.compile(keras.optimizers.SGD(0.05), "mean_squared_error")
    for step in range(4):
        x, y = rng.normal(size=(6, 8, 8, 2)).astype("float32"), rng.normal(size=(6, 3)).astype("float32")
        ours.train_on_batch(x, y)
        theirs.train_on_batch(x, y)
        for (name, mine), other in zip(ours.keras_weights(), theirs.weights, strict=True):
            np.testing.assert_allclose(mine.numpy(), other.value.detach().numpy(), rtol=2e-4, atol=2e-5, err_msg=f"{name}, step {step}")
    kernel = ours.get_weights()[0]
    assert np.sqrt((kernel**2).sum((0, 1, 2))).max() <= 0.6 + 1e-5
    assert len(constraints.gather(ours)) == 13


def test_an_unconstrained_model_has_nothing_to_do():
    model = convolt.Sequential([layers.Input((4,)), layers.Dense(3)])
    assert constraints.gather(model) == []


def test_frozen_weights_are_left_alone():
    layer = layers.Dense(3, kernel_constraint="unit_norm")
    layer.ensure_built((None, 4))
    before = layer.get_weights()[0]
    layer.trainable = False
    constraints.apply(constraints.gather(layer))
    np.testing.assert_array_equal(layer.get_weights()[0], before)
    layer.trainable = True
    constraints.apply(constraints.gather(layer))
    np.testing.assert_allclose(np.sqrt((layer.get_weights()[0] ** 2).sum(0)), 1, rtol=1e-5)


def test_a_constraint_is_part_of_the_step_that_is_captured():
    """`device_part`, which a graph captures, leaves the weights projected, in the memory where they were."""
    model = convolt.Sequential([layers.Input((4,)), layers.Dense(3, kernel_constraint=constraints.UnitNorm(axis=0))])
    model.compile("sgd", "mean_squared_error")
    x, y = np.ones((8, 4), "float32"), np.ones((8, 3), "float32")
    model.train_on_batch(x, y)
    step: Step = model._trainer._step
    address = model.layers[0].weight.data_ptr()
    from convolt.data.batches import Batch

    step._optimizer.prepare_step()
    step.device_part(Batch((torch.from_numpy(x),), (torch.from_numpy(y),), (), 8))
    assert model.layers[0].weight.data_ptr() == address
    torch.testing.assert_close(model.layers[0].weight.norm(dim=1), torch.ones(3), rtol=1e-5, atol=1e-5)


def test_a_model_keeps_its_constraints_in_a_file(tmp_path):
    model = convolt.Sequential([layers.Input((4,)), layers.Dense(3, kernel_constraint=constraints.MaxNorm(0.5))])
    model.save(tmp_path / "m.safetensors")
    again = convolt.load_model(tmp_path / "m.safetensors")
    assert again.layers[0].kernel_constraint.get_config() == {"max_value": 0.5, "axis": 0}
    assert len(constraints.gather(again)) == 1
