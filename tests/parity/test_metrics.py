"""Every metric against Keras; exact over all batches, however they are cut; no host sync."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convolt import metrics
from convolt.errors import StateError
from convolt.metrics.base import Metric
from tests.parity.metric_cases import CASES, CLASSES, COUNT, OWN_CASES, Case, in_batches, inside

OF_KERAS = pytest.mark.parametrize("case", CASES, ids=str)
EVERY_CASE = pytest.mark.parametrize("case", CASES + OWN_CASES, ids=str)
OWN = {"AutoAccuracy", "MeanMetricWrapper", "ConfusionMatrix", "MacroPrecision", "MacroRecall", "MacroF1", "MacroAUC",
       "Crossentropy", "Mean", "Sum", "MeanAveragePrecision"}
"""Metrics that Keras does not have, or whose `update` takes values alone; they have tests of their own."""

WEIGHTED_BY_INTEGERS = {"IoU", "MeanIoU", "BinaryIoU", "OneHotIoU", "OneHotMeanIoU"}  # Keras casts their weights to integers


def weights_for(case: Case, count: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.integers(0, 4, count) if case.metric in WEIGHTED_BY_INTEGERS else rng.uniform(0, 2, count).astype("float32")


@OF_KERAS
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_result_is_keras_s(keras, case, weighted):
    y, p = case.arrays()
    weight = weights_for(case, COUNT) if weighted else None
    reference = getattr(keras.metrics, case.metric)(**case.kwargs)
    flat = weight is not None and case.metric == "BinaryIoU"  # Keras wants a weight for each of its outputs
    reference.update_state(torch.tensor(y), torch.tensor(p), sample_weight=np.repeat(weight, CLASSES) if flat else weight)
    np.testing.assert_allclose(in_batches(case.make(), y, p, weight, [10, 50, 96]), reference.result(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case.image], ids=str)
def test_images_are_keras_s(keras, case):
    y, p = case.arrays((5, 3, 2, CLASSES))
    reference = getattr(keras.metrics, case.metric)(**case.kwargs)
    reference.update_state(torch.tensor(y), torch.tensor(p))
    np.testing.assert_allclose(in_batches(case.make(), y, p, None, [2]), reference.result(), rtol=1e-5, atol=1e-5)
    direct = case.make()
    for method in (direct.update, direct.update_state):  # arrays are channels-last for both
        direct.reset()
        method(y, p)
        np.testing.assert_allclose(direct.result(), reference.result(), rtol=1e-5, atol=1e-5)


@EVERY_CASE
@settings(max_examples=5, deadline=None)
@given(cuts=st.lists(st.integers(0, COUNT), max_size=6), weighted=st.booleans())
def test_result_does_not_depend_on_the_batches(case, cuts, weighted):
    y, p = case.arrays(seed=5)
    weight = weights_for(case, COUNT) if weighted else None
    whole = in_batches(case.make(), y, p, weight, [])
    cut = in_batches(case.make(), y, p, weight, sorted(cuts))
    counted = not isinstance(case.make(), metrics.means.MeanOfSamples) or "Accuracy" in case.metric
    # Errors of a sample are float32, and the CPU rounds some functions differently at the end of a batch; sums are float64.
    np.testing.assert_allclose(cut, whole, rtol=1e-12 if counted else 1e-6, atol=1e-12)


@EVERY_CASE
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_no_host_sync(case, weighted):
    """On the meta device nothing can be read, so that a host sync is an error."""
    y, p = (tensor.to("meta") for tensor in inside(*case.arrays()))
    metric = case.make().to("meta")
    metric.update(y, p, torch.ones(COUNT, device="meta") if weighted else None)
    assert metric.result().device.type == "meta"
    metric.reset()


@pytest.mark.parametrize("name", ["accuracy", "precision", "recall", "f1", "auc", "confusion_matrix", "crossentropy"])
@pytest.mark.parametrize("labels", ["sparse", "one_hot", "binary"])
def test_no_host_sync_of_strings(name, labels):
    shape = {"sparse": (8,), "one_hot": (8, 3), "binary": (8, 1)}[labels]
    metric = metrics.get(name).to("meta")
    metric.update(torch.zeros(shape, device="meta"), torch.zeros(8, 1 if labels == "binary" else 3, device="meta"))
    assert metric.result().device.type == "meta"


@EVERY_CASE
def test_state_reset_and_move(case):
    y, p = case.arrays()
    metric = case.make()
    metric.update(*inside(y, p))
    first, state = metric.result().clone(), {k: v.clone() for k, v in metric.state().items()}
    tensors = {k: v.data_ptr() for k, v in metric.state().items()}
    metric.reset()
    assert all((value == 0).all() for value in metric.state().values())
    metric.update(*inside(y, p))
    assert {k: v.data_ptr() for k, v in metric.state().items()} == tensors, "the state is updated in place"
    torch.testing.assert_close(metric.result(), first)
    again = case.make()
    again.load_state(state)
    torch.testing.assert_close(again.result(), first)
    assert all(value.device.type == "meta" for value in case.make().to("meta").state().values())
    with pytest.raises(StateError, match="load_state"):
        again.load_state({})


@OF_KERAS
def test_names_defaults_and_configuration_are_keras_s(keras, case):
    metric = case.make()
    theirs = inspect.signature(getattr(keras.metrics, case.metric))
    own = {n: p.default for n, p in inspect.signature(type(metric)).parameters.items()}
    if case.metric == "MeanIoU":
        assert own.pop("num_classes") is None
    assert {n: d for n, d in own.items() if n != "label_smoothing"} == {
        n: p.default for n, p in theirs.parameters.items() if n in own and n != "label_smoothing"}
    name = getattr(keras.metrics, case.metric)(**case.kwargs).name.rstrip("_0123456789")
    assert metric.name == {"io_u": "io_u", "mean_io_u": "mean_io_u"}.get(name, name)
    again = metrics.get({"class_name": case.metric, "config": metric.get_config()})
    assert again.get_config() == metric.get_config()


def _subclasses(cls: type) -> set[type]:
    return {cls, *(d for c in cls.__subclasses__() for d in _subclasses(c))} - {Metric}


def test_every_metric_has_a_case_and_is_registered():
    bases = {"MeanOfSamples", "Thresholded", "PerClass", "TorchMetric", "AtThresholds"}
    classes = {c.__name__ for c in _subclasses(Metric) if c.__module__.startswith("convolt.metrics.")} - bases
    assert classes == set(metrics.registry)
    assert {case.metric for case in CASES + OWN_CASES} | OWN == classes
    assert classes <= set(metrics.__all__)
    directed = classes - {"ConfusionMatrix", "Mean", "MeanMetricWrapper", "Sum"}
    assert all(isinstance(metrics.registry.find(n).higher_is_better, bool) for n in directed)


def test_every_name_of_keras_is_known(keras):
    from keras.src.metrics import ALL_OBJECTS_DICT

    abstract = {"Metric", "metric", "MeanMetricWrapper", "mean_metric_wrapper"}
    needing_arguments = {"IoU", "OneHotIoU", "OneHotMeanIoU", "SensitivityAtSpecificity", "SpecificityAtSensitivity",
                         "PrecisionAtRecall", "RecallAtPrecision"}
    unnamed = abstract | {n for m in needing_arguments for n in (m, keras.src.utils.naming.to_snake_case(m))}
    for name in set(ALL_OBJECTS_DICT) - unnamed:
        assert isinstance(metrics.get(name), Metric), name
    for name in needing_arguments:
        assert name in metrics.registry and keras.src.utils.naming.to_snake_case(name) in metrics.registry
    assert [name for name in dir(keras.metrics) if not hasattr(metrics, name)] == []
