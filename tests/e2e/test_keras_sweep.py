"""Every layer that Keras has too, in every configuration of the parity cases: its files go both ways, and predictions stay."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import convolt
from convolt.formats import hdf5, hdf5_worker
from convolt.formats.keras_objects import NOT_IN_KERAS
from convolt.layers import registry
from tests.parity.cases import LayerCase, all_cases
from tests.parity.conftest import keras  # noqa: F401 (a fixture)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own, with NumPy 2

BY_LAYER: dict[str, list[LayerCase]] = {}
for _case in all_cases():
    if not (_case.reference_reason.startswith("Keras 3.15 fails") or _case.layer in NOT_IN_KERAS):  # there is nothing to compare with
        BY_LAYER.setdefault(_case.layer, []).append(_case)
CELLS = {"SimpleRNNCell", "LSTMCell", "GRUCell", "StackedRNNCells"}
"""Layers that live in others alone, whose files hold them."""

BATCH = 2
FORMATS = ("h5", "keras")
SUFFIX = pytest.mark.parametrize("suffix", FORMATS)
LAYER = pytest.mark.parametrize("name", sorted(BY_LAYER))


@pytest.fixture(autouse=True)
def _read_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that reads HDF5 costs a third of a second; what it runs is run here. The zoo goes through the process."""

    def run(source, out, errors, limits, values):
        hdf5_worker.read(source, out, asdict(limits), values)
        out.flush()
        return 0

    monkeypatch.setattr(hdf5, "run_worker", run)


def test_every_layer_of_keras_is_covered(keras) -> None:  # noqa: F811
    layers = {name for name, cls in registry.items() if cls.__module__.startswith("convolt.layers.")}
    assert layers - NOT_IN_KERAS - CELLS == set(BY_LAYER), "a layer without a case is not swept"
    assert not any(hasattr(keras.layers, name) for name in NOT_IN_KERAS)
    for name, cases in BY_LAYER.items():
        theirs = hasattr(keras.layers, name) or all(case.keras_layer or case.make_keras for case in cases)
        assert theirs, f"say in NOT_IN_KERAS that Keras has no {name}"


def shapes(case: LayerCase) -> list[tuple[int, ...]]:
    return [tuple(shape[1:]) for shape in case.shapes]


def arrays(cases: list[LayerCase]) -> list[np.ndarray]:
    """Returns one batch for each input of each case, all of the same size."""
    found = []
    for case in cases:
        for x in case.inputs():
            x = x.numpy()
            found.append(np.concatenate([x] * BATCH)[:BATCH].astype("float32" if x.dtype.kind == "f" else "int32"))
    return found


def dtype(case: LayerCase) -> str:
    return "float32" if case.integers is None else "int32"


def build(cases: list[LayerCase], new_input, new_layer, new_model):
    """Returns a model with one branch for each case, and its layers."""
    inputs, outputs, layers = [], [], []
    for i, case in enumerate(cases):
        own = [new_input(shape, dtype=dtype(case), name=f"x{i}_{j}") for j, shape in enumerate(shapes(case))]
        layers.append(new_layer(case, f"case_{i}"))
        outputs.append(layers[-1](*case.arguments(own)))
        inputs += own
    return new_model(inputs, outputs), layers


def close(got, expected, cases: list[LayerCase]) -> None:
    got = [got] if isinstance(got, np.ndarray) else got
    expected = [expected] if isinstance(expected, np.ndarray) else expected
    assert len(got) == len(expected)
    wrong = []
    for case, ours, theirs in zip(cases, got, expected, strict=True):
        if case.reference is not None:  # Keras's PyTorch backend computes something else there; see reference_reason
            assert ours.shape == theirs.shape
            continue
        limit = case.tolerance * max(1.0, float(np.abs(theirs).max(initial=0.0)))
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=case.tolerance, atol=limit):
            wrong.append(f"{case}: {ours.shape} {theirs.shape} {np.abs(ours - theirs).max() if ours.shape == theirs.shape else ''}")
    assert not wrong, wrong


def drawn(value: np.ndarray, name: str, rng) -> np.ndarray:
    if value.dtype.kind != "f":
        return value
    values = rng.uniform(-0.7, 0.7, value.shape)
    return (np.abs(values) + 0.5 if "var" in name else values).astype("float32")


def run_keras(model, inputs: list[np.ndarray]):
    made = model(inputs, training=False)
    return [y.detach().numpy() for y in (made if isinstance(made, (list, tuple)) else [made])]


@SUFFIX
@LAYER
def test_files_of_keras_load_here(keras, name: str, suffix: str, tmp_path: Path) -> None:  # noqa: F811
    cases = BY_LAYER[name]

    def new_layer(case: LayerCase, own_name: str):
        if case.make_keras is not None:
            return case.make_keras(keras)
        kwargs = case.kwargs if case.keras_kwargs is None else case.keras_kwargs
        return getattr(keras.layers, case.keras_layer or case.layer)(**kwargs, name=own_name)

    model, _ = build(cases, keras.Input, new_layer, keras.Model)
    rng = np.random.default_rng(3)
    for variable in model.weights:
        variable.assign(drawn(variable.value.detach().numpy(), variable.name, rng))
    model.save(tmp_path / f"m.{suffix}")
    ours = convolt.load_model(tmp_path / f"m.{suffix}", device="cpu")
    x = arrays(cases)
    close(ours.predict(x, verbose=0), run_keras(model, x), cases)


@SUFFIX
@LAYER
def test_files_from_here_load_in_keras(keras, name: str, suffix: str, tmp_path: Path) -> None:  # noqa: F811
    cases = BY_LAYER[name]
    model, _ = build(cases, convolt.Input, lambda case, own_name: registry.find(case.layer)(**case.kwargs, name=own_name),
                     lambda inputs, outputs: convolt.Model(inputs, outputs))
    rng = np.random.default_rng(3)
    model.set_weights([drawn(value.numpy(), key, rng) for key, value in model.keras_weights()])
    model.save(tmp_path / f"m.{suffix}")
    theirs = keras.models.load_model(tmp_path / f"m.{suffix}")
    x = arrays(cases)
    close(model.predict(x, verbose=0), run_keras(theirs, x), cases)
