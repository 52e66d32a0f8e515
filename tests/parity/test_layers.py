"""Every layer against Keras: outputs, gradients, weights, shapes and configurations."""

from __future__ import annotations

import inspect
import json
import math

import numpy as np
import pytest
import torch

from convolt.formats.keras_objects import NOT_IN_KERAS
from convolt.layers import registry
from convolt.layers.base import Layer
from convolt.layout import to_inside, to_outside
from tests.parity.cases import LayerCase, all_cases

CASES = list(all_cases())
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=str)

LAYERS = {name: cls for name, cls in registry.items() if cls.__module__.startswith("convolt.layers.")}

MISSING_ARGUMENTS = {"dtype", "gptq_unpacked_column_size", "lora_rank", "lora_alpha", "quantization_config", "renorm",
                     "renorm_clipping", "renorm_momentum"}
"""Arguments of Keras's layers that Convolt does not have."""

ADDED_ARGUMENTS = {"BatchNormalization": {"bias_correction"}}
"""Arguments that Convolt's layers have and Keras's have not."""

COMMON_ARGUMENTS = {"name", "trainable", "activity_regularizer", "input_shape"}
"""Arguments that every layer of Convolt takes by keyword, whether Keras's signature names them or not."""

CELLS = {"SimpleRNNCell", "LSTMCell", "GRUCell", "StackedRNNCells"}
"""Layers that take and return states, which this sweep does not know; `tests/parity/test_recurrent.py` has them."""


def some_cases(per_layer: int):
    """Parametrizes a test with at most so many cases of each layer, evenly spread over its list."""
    by_layer: dict[str, list[LayerCase]] = {}
    for case in CASES:
        by_layer.setdefault(case.layer, []).append(case)
    chosen = [{round(i): cases[round(i)] for i in np.linspace(0, len(cases) - 1, per_layer)} for cases in by_layer.values()]
    return pytest.mark.parametrize("case", [case for by_index in chosen for case in by_index.values()], ids=str)


# -- both layers with the same weights -----------------------------------------------------------------------------


def make(case: LayerCase) -> Layer:
    """Returns the built layer of Convolt, in the case's mode."""
    torch.manual_seed(3)
    layer = registry.find(case.layer)(**case.kwargs)
    layer.ensure_built(*case.arguments([(None, *shape[1:]) for shape in case.shapes]))
    return layer.train(case.training)


def new_keras(keras, case: LayerCase):
    """Returns Keras's layer, not built."""
    if case.make_keras is not None:
        return case.make_keras(keras)
    arguments = case.kwargs if case.keras_kwargs is None else case.keras_kwargs
    return getattr(keras.layers, case.keras_layer or case.layer)(**arguments)


def make_keras(keras, case: LayerCase, layer: Layer):
    """Returns Keras's layer, with random weights that `layer` has got too."""
    theirs = new_keras(keras, case)
    if not theirs.built:
        theirs.build(*case.arguments([(None, *shape[1:]) for shape in case.shapes]))
    rng = np.random.default_rng(11)
    theirs.set_weights([random_weight(rng, w) for w in theirs.weights])
    layer.set_weights([array(w) for w in theirs.weights])
    return theirs


def array(variable) -> np.ndarray:
    return variable.value.detach().numpy().copy()  # Keras's own .numpy() and get_weights() warn with NumPy 2


def random_weight(rng, variable) -> np.ndarray:
    value = array(variable)
    if value.dtype.kind != "f":
        return value
    drawn = rng.uniform(-0.7, 0.7, value.shape)
    return (np.abs(drawn) + 0.5 if "variance" in variable.name else drawn).astype("float32")


def float_inputs(case: LayerCase) -> list[torch.Tensor]:
    return [x.float() if x.is_floating_point() else x for x in case.inputs()]


def call(case: LayerCase, layer: Layer, inputs) -> torch.Tensor:
    """Calls Convolt's layer on channels-last tensors and returns its channels-last output."""
    return to_outside(layer(*case.arguments([to_inside(x) for x in inputs])))


def call_reference(case: LayerCase, theirs, inputs) -> torch.Tensor:
    """Calls Keras's layer, or the case's own reference."""
    if case.reference is not None:
        return case.reference(*inputs, *(v.value for v in theirs.weights), **case.kwargs)
    takes_training = "training" in inspect.signature(theirs.call).parameters
    return theirs(*case.arguments(inputs), **({"training": case.training} if takes_training else {}))


def assert_close(got, expected, tolerance: float, what: str) -> None:
    got, expected = np.asarray(got, "float64"), np.asarray(expected, "float64")
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * scale, err_msg=what)


# -- the sweep -----------------------------------------------------------------------------------------------------


def test_every_registered_layer_has_a_case():
    missing = sorted(set(LAYERS) - {case.layer for case in CASES} - CELLS)
    assert not missing, f"layers without a case in tests/parity/cases: {missing}"


def test_every_case_is_of_a_registered_layer():
    assert {case.layer for case in CASES} <= set(LAYERS)


def test_cases_are_distinct():
    names = [str(case) for case in CASES]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})


@EVERY_CASE
def test_output_and_gradients_equal_keras(keras, case):
    layer = make(case)
    theirs = make_keras(keras, case, layer)
    ours_in, theirs_in = float_inputs(case), float_inputs(case)
    differentiable = [i for i, x in enumerate(ours_in) if x.is_floating_point()]
    for i in differentiable:
        ours_in[i].requires_grad_()
        theirs_in[i].requires_grad_()
    got, expected = call(case, layer, ours_in), call_reference(case, theirs, theirs_in)
    assert got.shape == expected.shape
    if case.random:
        return
    assert got.dtype == expected.dtype
    assert_close(got.detach(), expected.detach(), case.tolerance, "output")
    for ours, variable in zip(layer.get_weights(), theirs.weights, strict=True):
        if case.reference is None and not variable.trainable:
            assert_close(ours, array(variable), case.tolerance, f"{variable.name} after the call")
    if not got.requires_grad:
        assert not expected.requires_grad, "Keras's output has gradients, Convolt's has none"
        return
    upstream = torch.from_numpy(np.random.default_rng(5).uniform(-1, 1, tuple(got.shape))).to(got.dtype)
    (got * upstream).sum().backward()
    (expected * upstream).sum().backward()
    for i in differentiable:
        assert_close(ours_in[i].grad, theirs_in[i].grad, case.tolerance, f"gradient of input {i}")
    for ours, variable in zip(gradients(layer), theirs.weights, strict=True):
        if variable.trainable:
            assert_close(ours, variable.value.grad, case.tolerance, f"gradient of {variable.name}")


def gradients(layer: Layer) -> list[np.ndarray]:
    """Returns the gradients in the order and axes of `get_weights` (by putting them in the weights' places)."""
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                parameter.copy_(parameter.grad)
    return layer.get_weights()


@some_cases(per_layer=6)
def test_weights_travel_both_ways(keras, case):
    layer = make(case)
    theirs = make_keras(keras, case, layer)
    rng = np.random.default_rng(13)
    layer.set_weights([w + rng.uniform(size=w.shape).astype(w.dtype) if w.dtype.kind == "f" else w for w in layer.get_weights()])
    theirs.set_weights(layer.get_weights())
    for ours, variable in zip(layer.get_weights(), theirs.weights, strict=True):
        np.testing.assert_array_equal(ours, array(variable))
    assert layer.count_params() == theirs.count_params()
    assert len(layer.trainable_weights) == len(theirs.trainable_weights)


@pytest.mark.parametrize("case", [c for c in CASES if any(key.endswith("regularizer") for key in c.kwargs)], ids=str)
def test_penalties_equal_keras(keras, case):
    layer = make(case).train()
    theirs = make_keras(keras, case, layer)
    call(case, layer, float_inputs(case))
    call_reference(case, theirs, float_inputs(case))
    assert len(theirs.losses) > 0
    ours = sum(float(p.detach()) for p in layer.penalties())
    assert_close(ours, sum(float(p.detach()) for p in theirs.losses), case.tolerance, "penalties")


@EVERY_CASE
def test_output_shape(keras, case):
    layer = make(case)
    real = tuple(call(case, layer, float_inputs(case)).shape)
    assert tuple(layer.compute_output_shape(*case.arguments(list(case.shapes)))) == real
    open_batch = case.arguments([(None, *shape[1:]) for shape in case.shapes])
    assert tuple(layer.compute_output_shape(*open_batch)) == (None, *real[1:])
    theirs = new_keras(keras, case)
    assert tuple(theirs.compute_output_shape(*case.arguments(list(case.shapes)))) == real


@some_cases(per_layer=10)
def test_configuration_round_trip(case):
    layer = make(case)
    config = json.loads(json.dumps(layer.get_config()))
    clone = registry.find(case.layer).from_config(config)
    assert json.loads(json.dumps(clone.get_config())) == config
    clone.ensure_built(*layer.build_shapes)
    clone.set_weights(layer.get_weights())
    clone.train(case.training)
    results = []
    for each in (layer, clone):
        torch.manual_seed(17)
        results.append(call(case, each, float_inputs(case)))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@some_cases(per_layer=20)
def test_gradcheck(case):
    if case.no_gradcheck or case.integers is not None or case.random:
        pytest.skip(case.no_gradcheck or case.random or "whole numbers have no gradient")
    layer = make(case).double()
    inputs = [to_inside(x).requires_grad_() for x in case.inputs()]
    names = [name for name, p in layer.named_parameters() if p.requires_grad]
    weights = [p for p in layer.parameters() if p.requires_grad]

    def function(*values):
        state = dict(zip(names, values[len(inputs):], strict=True))
        return torch.func.functional_call(layer, state, case.arguments(values[:len(inputs)]))

    values = (*inputs, *weights)
    large = sum(v.numel() for v in values) > 60  # the full Jacobian of a large case takes long; project it
    assert torch.autograd.gradcheck(function, values, eps=1e-6, atol=1e-6, rtol=1e-5, fast_mode=large,
                                    check_undefined_grad=False)


def strided(x: torch.Tensor) -> torch.Tensor:
    """Returns `x` as a view with gaps: every second element, of every axis, of a larger tensor of NaN."""
    large = torch.full([2 * s for s in x.shape], math.nan, dtype=x.dtype) if x.is_floating_point() else \
        torch.zeros([2 * s for s in x.shape], dtype=x.dtype)
    view = large[tuple(slice(None, None, 2) for _ in x.shape)]
    view.copy_(x)
    return view


@some_cases(per_layer=10)
def test_memory_layout_does_not_matter(case):
    results = []
    for arrange in (lambda x: x, strided, lambda x: to_outside(to_inside(x).contiguous())):
        layer = make(case)
        torch.manual_seed(17)
        results.append(call(case, layer, [arrange(x) for x in float_inputs(case)]).detach())
    for other in results[1:]:
        assert other.shape == results[0].shape
        if not case.random:  # random values are drawn in the order of memory
            assert_close(other, results[0], case.tolerance, "output for another order of memory")


@some_cases(per_layer=3)
def test_arrays_of_any_kind_give_the_same_result(case):
    def read_only(x: np.ndarray) -> np.ndarray:
        x = x.copy()
        x.flags.writeable = False
        return x

    def call_on_arrays(arrange) -> np.ndarray:
        layer = make(case)
        return layer(*case.arguments([arrange(x.numpy()) for x in float_inputs(case)]))

    expected = call(case, make(case), float_inputs(case))
    kinds = (np.ascontiguousarray, np.asfortranarray, read_only, lambda x: x.astype(x.dtype.newbyteorder(">")),
             lambda x: x[::-1].copy()[::-1])
    for arrange in kinds:
        got = call_on_arrays(arrange)
        assert got.shape == tuple(expected.shape)
        if not case.random:  # random values are drawn in the order of memory
            assert_close(got, expected.detach(), 1e-5, "output for an array")


# -- signatures ----------------------------------------------------------------------------------------------------


def named_arguments(cls) -> dict[str, inspect.Parameter]:
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return {p.name: p for p in parameters if p.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)}


def plain(value):
    """Returns a tuple of one value repeated as that value: Keras writes `(1, 1)` where `1` means the same."""
    while isinstance(value, tuple) and value and all(v == value[0] for v in value):
        value = value[0]
    return value


@pytest.mark.parametrize("name", sorted(set(LAYERS) - NOT_IN_KERAS - {case.layer for case in CASES if case.keras_layer}))
def test_signature_equals_keras(keras, name):
    ours, theirs = named_arguments(LAYERS[name]), named_arguments(getattr(keras.layers, name))
    own = [a for a in ours if a not in COMMON_ARGUMENTS | ADDED_ARGUMENTS.get(name, set())]
    expected = [a for a in theirs if a not in MISSING_ARGUMENTS | COMMON_ARGUMENTS]
    assert own == expected, "names and order of arguments"
    assert set(theirs) & COMMON_ARGUMENTS <= set(LAYERS[name]._argument_names())
    for argument in own:
        assert plain(ours[argument].default) == plain(theirs[argument].default), f"default of {argument}"
