"""Every initializer against Keras: statistics and limits for each shape, orthogonality, seeds, configurations."""

from __future__ import annotations

import inspect
import json
import math

import numpy as np
import pytest
import torch

from convolt import initializers
from convolt.configurable import to_json
from convolt.errors import ArgumentError, ShapeError
from convolt.initializers import registry

ARGUMENTS: dict[str, list[dict]] = {  # for each registered initializer, the arguments to try
    "Zeros": [{}],
    "Ones": [{}],
    "Constant": [{}, {"value": -2.5}],
    "Identity": [{}, {"gain": 0.5}],
    "RandomNormal": [{}, {"mean": 1.0, "stddev": 0.3}],
    "RandomUniform": [{}, {"minval": 0.5, "maxval": 2.0}],
    "TruncatedNormal": [{}, {"mean": 1.0, "stddev": 0.3}],
    "VarianceScaling": [{}, {"scale": 3.0, "mode": "fan_out", "distribution": "uniform"}, {"distribution": "normal"},
                        {"mode": "fan_avg", "distribution": "untruncated_normal"}, {"input_axes": [0], "output_axes": [1]}],
    **{name: [{}] for name in ("GlorotUniform", "GlorotNormal", "HeUniform", "HeNormal", "LecunUniform", "LecunNormal")},
    "Orthogonal": [{}, {"gain": 0.5}],
}
CASES = [(name, arguments) for name, each in ARGUMENTS.items() for arguments in each]
EVERY_CASE = pytest.mark.parametrize(("name", "arguments"), CASES, ids=[f"{n}{a}" for n, a in CASES])
CONSTANT = {"Zeros", "Ones", "Constant", "Identity"}
SHAPES = {"Identity": [(5, 5), (3, 6), (6, 3)], "Orthogonal": [(60, 80), (80, 60), (3, 3, 8, 40)]}
ANY_SHAPES = [(8000,), (60, 120), (3, 3, 16, 48), (5, 30, 50), (2, 3, 2, 20, 30)]
NOT_HERE = {"STFT", "STFTInitializer"}  # of spectrograms


def test_every_registered_initializer_has_a_case():
    assert set(ARGUMENTS) == set(registry)


def test_every_initializer_of_keras_is_known(keras):
    theirs = {n for n, c in vars(keras.initializers).items() if inspect.isclass(c)} - {"Initializer", "stft"} - NOT_HERE
    assert len(theirs) > 20
    for name in theirs:
        assert name in registry, name
        assert registry.find(name) is getattr(initializers, name, registry.find(name))
    for name in ("zero", "one", "normal", "uniform", "zeros", "he_normal", "IdentityInitializer", "OrthogonalInitializer"):
        assert type(keras.initializers.get(name)).__name__ == type(initializers.get(name)).__name__


@pytest.mark.parametrize("name", list(ARGUMENTS))
def test_signature_equals_keras(keras, name):
    mine, theirs = ({p.name: p.default for p in inspect.signature(c).parameters.values()}
                    for c in (registry.find(name), getattr(keras.initializers, name)))
    assert mine == theirs and list(mine) == list(theirs)


@EVERY_CASE
def test_statistics_equal_keras(keras, name, arguments):
    for shape in SHAPES.get(name, ANY_SHAPES):
        if "input_axes" in arguments and len(shape) < 2:
            continue
        got = registry.find(name)(**arguments)(shape)
        expected = getattr(keras.initializers, name)(**arguments)(shape)
        assert got.shape == expected.shape == torch.Size(shape) and got.dtype == expected.dtype == torch.float32
        if name in CONSTANT:
            torch.testing.assert_close(got, expected)
            continue
        stddev, error = float(expected.std()), 1 / math.sqrt(got.numel())
        assert float(got.std()) == pytest.approx(stddev, rel=6 * error)
        assert float(got.mean()) == pytest.approx(float(expected.mean()), abs=7 * stddev * error)
        kurtosis = [float(((x - x.mean()) / x.std()).pow(4).mean()) for x in (got, expected)]
        assert kurtosis[0] == pytest.approx(kurtosis[1], abs=40 * error)  # normal 3, cut off at two deviations 2.4, uniform 1.8


BOUNDED = {"GlorotUniform": lambda i, o: math.sqrt(6 / (i + o)), "HeUniform": lambda i, o: math.sqrt(6 / i),
           "LecunUniform": lambda i, o: math.sqrt(3 / i),
           "GlorotNormal": lambda i, o: 2 * math.sqrt(2 / (i + o)) / 0.87962566103423978,
           "HeNormal": lambda i, o: 2 * math.sqrt(2 / i) / 0.87962566103423978,
           "LecunNormal": lambda i, o: 2 * math.sqrt(1 / i) / 0.87962566103423978}
FANS = [((8000,), 8000, 8000), ((60, 120), 60, 120), ((3, 3, 16, 48), 144, 432), ((5, 30, 50), 150, 250)]


@pytest.mark.parametrize("name", list(BOUNDED))
@pytest.mark.parametrize(("shape", "fan_in", "fan_out"), FANS, ids=str)
def test_limits_are_reached_and_kept(name, shape, fan_in, fan_out):
    largest = float(registry.find(name)()(shape).abs().max())
    limit = BOUNDED[name](fan_in, fan_out)
    assert 0.98 * limit < largest <= limit * (1 + 1e-6)


VARIANCES = {"GlorotNormal": lambda i, o: 2 / (i + o), "HeNormal": lambda i, o: 2 / i, "LecunNormal": lambda i, o: 1 / i}


@pytest.mark.parametrize("name", list(VARIANCES))
def test_variance_after_the_cut_is_the_formula(name):
    values = registry.find(name)()((3, 3, 64, 256))
    assert float(values.var()) == pytest.approx(VARIANCES[name](576, 2304), rel=0.02)


@pytest.mark.parametrize("shape", [(6, 6), (3, 7), (7, 3), (2, 3, 4, 5), (1, 1, 2, 9)], ids=str)
def test_orthogonal(shape):
    values = initializers.Orthogonal(gain=2.0)(shape).reshape(-1, shape[-1]).double()
    rows, columns = values.shape
    product = values @ values.T if rows < columns else values.T @ values
    torch.testing.assert_close(product, 4 * torch.eye(min(rows, columns), dtype=torch.float64), rtol=0, atol=1e-5)


def test_orthogonal_matrices_favour_no_sign():
    diagonals = torch.stack([initializers.Orthogonal()((4, 4)).diagonal() for _ in range(300)])
    assert (diagonals > 0).float().mean().item() == pytest.approx(0.5, abs=0.08)


RANDOM = sorted(set(ARGUMENTS) - CONSTANT)


@pytest.mark.parametrize("name", RANDOM)
def test_seeds(name):
    cls = registry.find(name)
    seeded = cls(seed=5)
    first = seeded((6, 4))
    torch.testing.assert_close(first, seeded((6, 4)), rtol=0, atol=0)  # as in Keras: the same at each call
    torch.testing.assert_close(first, cls(seed=5)((6, 4)), rtol=0, atol=0)
    assert not torch.equal(first, cls(seed=6)((6, 4)))
    state = torch.get_rng_state()
    seeded((6, 4))
    assert torch.equal(state, torch.get_rng_state()), "a seed leaves the global generator alone"
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(cls()((6, 4)))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@EVERY_CASE
def test_configuration_round_trip(keras, name, arguments):
    made = registry.find(name)(**arguments)
    config = json.loads(json.dumps(to_json(made)))
    again = initializers.get(config)
    assert type(again) is type(made) and again.get_config() == made.get_config()
    theirs = getattr(keras.initializers, name)(**arguments).get_config()
    assert set(theirs) == set(made.get_config()) - ({"gain"} if name == "Identity" else set())  # Keras forgets it
    assert type(initializers.get({"class_name": name, "config": theirs})) is type(made)


@EVERY_CASE
def test_device_and_dtype_follow_the_defaults(name, arguments):
    shape = (4, 4)
    with torch.device("meta"):
        assert registry.find(name)(**arguments)(shape).device.type == "meta"
    torch.set_default_dtype(torch.float64)
    assert registry.find(name)(**arguments)(shape).dtype == torch.float64


def test_values_and_functions_as_initializers():
    array = np.arange(6, dtype="float32").reshape(2, 3)
    np.testing.assert_array_equal(initializers.get(array)((2, 3)).numpy(), array)
    np.testing.assert_array_equal(initializers.get(to_json(initializers.get(array)))((2, 3)).numpy(), array)
    np.testing.assert_array_equal(initializers.get(lambda shape, dtype=None: np.full(shape, 7.0))((2,)).numpy(), [7, 7])
    assert initializers.he_normal(seed=3).seed == 3
    assert isinstance(initializers.get(initializers.Ones), initializers.Ones)


def test_constant_values_are_not_shared():
    made = initializers.Constant(np.zeros(3, "float32"))
    made((3,)).add_(1)
    assert made((3,)).sum() == 0


@pytest.mark.parametrize(("make", "message"), [
    (lambda: initializers.VarianceScaling(scale=0), "a number above 0"),
    (lambda: initializers.VarianceScaling(mode="fan_im"), "Did you mean 'fan_in'"),
    (lambda: initializers.VarianceScaling(distribution="unifrom"), "Did you mean 'uniform'"),
    (lambda: initializers.HeNormal(seed="1"), "a whole number, or None"),
    (lambda: initializers.RandomUniform(1.0, 0.0), "minval up to maxval"),
    (lambda: initializers.get("he_norml"), "Did you mean 'he_normal'"),
])
def test_argument_errors(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize("made", [initializers.Identity(), initializers.Orthogonal(), initializers.Constant([1.0, 2.0])],
                         ids=["identity", "orthogonal", "constant"])
def test_shape_errors(made):
    with pytest.raises(ShapeError, match="shape"):
        made((3,))
