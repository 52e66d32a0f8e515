"""Every architecture on the list against `keras.applications` and PyTorch references, and through the parts that all models meet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import convolt
from convolt import applications
from convolt.applications.weights import COUNTER
from convolt.cli.starting import begin, load_start
from convolt.compiler import chains
from convolt.compiler.fuse import fuse
from convolt.compiler.trace import Untraceable, trace
from convolt.layers import Add, BatchNormalization, Dropout
from convolt.layout import to_inside
from convolt.models import Functional, Model
from tests.parity.applications import Case, all_cases, network_of_keras
from tests.parity.frozen_forms import FROZEN

CASES = list(all_cases())
CLASSES = 7
QUICK_ONNX = ("cnn", "lenet5", "speednet", "squeezenet1_1")
"""Exported in every run; the others in the slow tests."""
SMALL_FILE = 12_000_000
"""Models with fewer parameters are written and read in every run."""


DEEP = ("nasnet_mobile", "densenet121")
"""Hundreds of layers: written and read in the slow tests only, as they are made of the same layers as the others."""


def shown(cases: Sequence[Case], slow: Sequence[str] = ()) -> list[Any]:
    return [pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow or case.name in slow else []) for case in cases]


def publishers() -> list[Any]:
    """Each case with each of its modules of PyTorch, and the arguments under which ours is equal."""
    found = [(case, module, case.torch_arguments, f"-{number}" if number else "") for case in CASES
             for number, module in enumerate(case.publishers)]
    found += [(case, module, {"variant": variant}, f"-{variant}") for case in CASES for variant, module in case.others.items()]
    return [pytest.param(case, module, arguments, id=f"{case.name}{end}", marks=[pytest.mark.slow] if case.slow else [])
            for case, module, arguments, end in found]


def pictures(case: Case, channels: int, count: int = 2) -> np.ndarray:
    values = np.random.default_rng(3).uniform(-1, 0.5, (count, case.side, case.side, channels)).astype("float32")
    values[1] += 0.5
    return (values + 1) * 127.5 if case.pixels else values


def make(case: Case, **arguments: Any) -> Model:
    entry = applications.get(case.name)
    if entry.plain:
        return entry.make((case.side, case.side, entry.channels), CLASSES)
    given = {"input_shape": (case.side, case.side, entry.channels), "classes": CLASSES, "classifier_activation": None}
    return entry.function(**{**given, **case.arguments, **arguments})


def outline(case: Case) -> Model:
    """The model with its default arguments, without values."""
    entry = applications.get(case.name)
    with torch.device("meta"):
        return entry.make((entry.size, entry.size, entry.channels), entry.classes) if entry.plain else entry.function()


def stirred(name: str, shape: Sequence[int], keras: bool) -> torch.Tensor | None:
    """Values under which signals keep their size through deep networks and normalizations do something; None: keep the given ones."""
    if name.endswith(("moving_variance", "running_var", "gamma")) or (name.endswith("weight") and len(shape) == 1):
        return torch.empty(*shape).uniform_(0.6, 1.4)
    if name.endswith(("moving_mean", "running_mean", "beta", "bias")):
        return torch.empty(*shape).uniform_(-0.1, 0.1)
    if len(shape) < 2:
        return None
    depthwise = "depthwise" in name or "dw" in name
    inputs = math.prod(shape[:2] if depthwise else shape[:-1]) if keras else math.prod(shape[1:])
    bound = (6 / inputs) ** 0.5
    return torch.empty(*shape).uniform_(-bound, bound)


def settle(model: torch.nn.Module, x: np.ndarray) -> None:
    """Sets variances near to what comes in: else signals grow in deep networks until they saturate gates, and rounding decides the outputs.

    The scale is that of the layer, not of each channel: to enlarge channels of almost nothing would enlarge rounding.
    """
    def measure(layer: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        square = args[0].square().mean()  # of all channels: one that happens to be near 0 is not to be blown up
        layer.running_var.mul_(square)
        layer.running_mean.mul_(square.sqrt())

    handles = [layer.register_forward_pre_hook(measure) for layer in model.modules()
               if isinstance(layer, (BatchNormalization, torch.nn.BatchNorm2d))]
    outputs(model, x)
    for handle in handles:
        handle.remove()


def calm(model: Model) -> None:
    """Makes what residual branches add small, as in trained networks: at full size each enlarges the rounding of those before it."""
    graph = trace(model, [to_inside(torch.zeros([2, *model.input_shapes[0][1:]]))])
    assert not isinstance(graph, Untraceable), graph
    modules = {node: graph.get_submodule(str(node.target)) for node in graph.graph.nodes if node.op == "call_module"}
    for add in (node for node, module in modules.items() if isinstance(module, Add)):
        for end in add.all_input_nodes:
            while isinstance(modules.get(end), Dropout):
                end = end.all_input_nodes[0]
            if isinstance(norm := modules.get(end), BatchNormalization) and norm.weight is not None:
                norm.weight.data.mul_(0.1)


def assert_close(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> None:
    scale = np.abs(theirs).max()
    assert ours.shape == theirs.shape
    assert np.isfinite(theirs).all() and scale > 0 and np.abs(theirs[0] - theirs[1]).max() > 1e-3 * scale, "the reference says nothing"
    assert np.abs(ours - theirs).max() <= tolerance * scale


def outputs(model: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    model.eval()
    with torch.no_grad():
        return convolt.layout.to_outside(model(to_inside(torch.from_numpy(x)))).numpy()


# -- the list ----------------------------------------------------------------------------------------------------------


def test_every_architecture_has_a_case() -> None:
    assert sorted(case.name for case in CASES) == sorted(applications.names())


def test_every_architecture_has_a_reference() -> None:
    # speednet's own is in tests/unit/test_speednet.py
    own = {name for name in applications.names() if applications.get(name).plain} | {"speednet"}
    assert not [case.name for case in CASES if not case.keras and case.torch is None and case.name not in own]


@pytest.mark.parametrize("case", shown(CASES))
def test_parameters_and_fusions_are_those_on_record(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model = outline(case)
    trainable = sum(parameter.numel() for parameter in model.parameters())
    assert (model.count_params() if case.keras else trainable) == case.parameters
    shape = [2, *model.input_shapes[0][1:]]
    graph = trace(model, [to_inside(torch.zeros(shape, device="meta"))])
    assert not isinstance(graph, Untraceable), graph
    assert fuse(graph).count == dict(case.fusions)
    assert frozen(graph, monkeypatch) == FROZEN[case.name], "of predict"


class NoWeights(torch.nn.Module):
    """In the place of a frozen convolution: on the meta device there are no values to lay out."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        return x


def frozen(graph: torch.fx.GraphModule, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, int]:
    """Returns how many convolutions `predict` freezes, how many normalizations it folds, and how many calls are left."""
    monkeypatch.setattr(chains, "freeze", lambda chain, weight, shape, dtype: NoWeights())
    with torch.no_grad():
        module, count = chains.frozen_graph(graph, 2, torch.float32)
    calls = sum(node.op.startswith("call") for node in module.graph.nodes)
    return count.get("noweights", 0), count.get("folded", 0), calls


# -- against others ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", shown([case for case in CASES if case.keras]))
def test_outputs_are_those_of_keras(keras: Any, case: Case) -> None:
    compare_with_keras(keras, case, classes=CLASSES, classifier_activation=None)


@pytest.mark.parametrize("case", [case for case in CASES if case.name in ("mobilenet_v2", "vgg16")], ids=str)
@pytest.mark.parametrize("pooling", [None, "max"])
def test_features_without_a_top_are_those_of_keras(keras: Any, case: Case, pooling: str | None) -> None:
    compare_with_keras(keras, case, include_top=False, pooling=pooling)


def compare_with_keras(keras: Any, case: Case, **options: Any) -> None:
    """In float64, so that the depth of a network does not turn rounding into differences."""
    arguments = {"weights": None, "input_shape": (case.side, case.side, 3), **case.arguments, **options}
    keras.config.set_dtype_policy("float64")
    try:
        theirs = network_of_keras(keras, case, **arguments)
    finally:
        keras.config.set_dtype_policy("float32")
    ours = make(case, **options).double()
    assert ours.name == theirs.name
    assert ours.count_params() == theirs.count_params()
    own = {layer.name: layer for layer in ours.layers if layer.get_weights()}
    others = {layer.name: layer for layer in theirs.layers if layer.weights}
    assert sorted(own) == sorted(others)
    for name, layer in others.items():
        values = [stirred(variable.path, variable.shape, keras=True) for variable in layer.weights]
        own[name].set_weights([(variable.value.detach() if value is None else value).numpy()
                               for value, variable in zip(values, layer.weights, strict=True)])
    settle(ours, pictures(case, 3).astype("float64"))
    for name, layer in others.items():
        layer.set_weights(own[name].get_weights())
    x = pictures(case, 3).astype("float64")
    with torch.no_grad():
        expected = theirs(x, training=False).numpy()
    assert_close(outputs(ours, x), expected, case.tolerance)


@pytest.mark.parametrize("case", shown([case for case in CASES if case.torch_parameters]))
def test_parameters_are_those_of_the_publisher(case: Case) -> None:
    entry = applications.get(case.name)
    with torch.device("meta"):
        model = entry.function(**case.torch_arguments)
        published = [module(entry.size, entry.classes).state_dict() for module in case.publishers]
    assert sum(parameter.numel() for parameter in model.parameters()) == case.torch_parameters
    assert entry.torch is not None
    own = {entry.torch.name(name): tensor.shape for name, tensor in model.state_dict().items() if not name.endswith(COUNTER)}
    for theirs in published:
        assert {name: tensor.shape for name, tensor in entry.torch.prepared(theirs, model).items()} == own


@pytest.mark.parametrize("case", shown([case for case in CASES if case.others]))
def test_names_of_every_variant_are_those_of_the_publisher(case: Case) -> None:
    entry = applications.get(case.name)
    assert list(entry.others) == list(case.others)
    for variant, module in case.others.items():
        with torch.device("meta"):
            model, theirs = entry.function(variant=variant), module(entry.size, entry.classes)
        names = entry.others[variant]
        own = {names.name(name): tensor.shape for name, tensor in model.state_dict().items() if not name.endswith(COUNTER)}
        assert {name: tensor.shape for name, tensor in names.prepared(theirs.state_dict(), model).items()} == own


@pytest.mark.parametrize(("case", "publisher", "arguments"), publishers())
def test_a_state_dict_of_pytorch_fits(case: Case, publisher: Callable[[int, int], torch.nn.Module], arguments: dict[str, Any],
                                      tmp_path: Path) -> None:
    theirs = publisher(case.side, CLASSES).eval()
    for name, tensor in theirs.state_dict().items():
        if (values := stirred(name, tensor.shape, keras=False)) is not None:
            tensor.copy_(values)
    x = pictures(case, applications.get(case.name).channels)
    settle(theirs, x)
    save_file({name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, tmp_path / "theirs.safetensors")
    ours = make(case, **arguments, weights=str(tmp_path / "theirs.safetensors"))
    x = x.astype("float64")
    assert_close(outputs(ours.double(), x), outputs(theirs.double(), x), case.tolerance)


def test_the_command_line_takes_weights_of_any_publisher_for_other_classes(tmp_path: Path) -> None:
    entry = applications.get("vit_ti16")
    for number, module in enumerate(next(case for case in CASES if case.name == entry.name).publishers):
        theirs = module(96, CLASSES).state_dict()
        save_file({name: tensor.contiguous() for name, tensor in theirs.items()}, tmp_path / f"{number}.safetensors")
        model = entry.make((96, 96, 3), CLASSES - 2)
        assert "but for predictions.weight, predictions.bias" in load_start(model, entry.name, str(tmp_path / f"{number}.safetensors"))
        kernel = next(tensor for name, tensor in theirs.items() if name.endswith("proj.weight"))
        torch.testing.assert_close(model.get_layer("patches").weight, kernel, rtol=0, atol=0)


def test_the_command_line_chooses_timm_and_is_told_tensorflow(tmp_path: Path) -> None:
    """The two publish equal names; which of them a file is of, only the user knows."""
    case = next(case for case in CASES if case.name == "mobilenet_v3_small")
    theirs = case.others["tf"](32, CLASSES).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in theirs.items()}, tmp_path / "w.safetensors")
    for options, variant, told in (([], "timm", "variant=timm (the weights need it)"), (["variant=tf"], "tf", "variant=tf")):
        start = begin(case.name, (32, 32, 3), CLASSES, weights=str(tmp_path / "w.safetensors"), options=options)
        assert start.options == {"stem": "small", "variant": variant}
        assert told in dict(start.rows)["options"] and dict(start.rows)["weights"].startswith("all weights")
        torch.testing.assert_close(start.model.get_layer("conv").weight, theirs["conv_stem.weight"], rtol=0, atol=0)


# -- through what all models meet --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", shown(CASES))
def test_gradients_reach_every_parameter(case: Case) -> None:
    model = make(case)
    model.eval()  # two samples on a map of one pixel leave batch statistics no gradient
    x = to_inside(torch.from_numpy(pictures(case, applications.get(case.name).channels)))
    model(x).square().sum().backward()
    silent = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not silent


@pytest.mark.parametrize("case", shown(CASES, DEEP))
def test_a_configuration_makes_the_same_model(case: Case) -> None:
    model = outline(case)
    with torch.device("meta"):
        again = type(model).from_config(model.get_config())
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == \
        {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert again.compute_output_shape(model.input_shapes[0]) == model.compute_output_shape(model.input_shapes[0])


@pytest.mark.parametrize("case", [case for case in shown(CASES, DEEP) if case.values[0].parameters < SMALL_FILE])
def test_a_saved_model_computes_the_same(case: Case, tmp_path: Path) -> None:
    saved_and_loaded(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case.parameters >= SMALL_FILE], ids=str)
def test_a_large_saved_model_computes_the_same(case: Case, tmp_path: Path) -> None:
    saved_and_loaded(case, tmp_path)


def saved_and_loaded(case: Case, folder: Path) -> None:
    model = make(case)
    model.save(folder / "model.safetensors")
    x = pictures(case, applications.get(case.name).channels)
    again = convolt.load_model(folder / "model.safetensors", device="cpu")
    np.testing.assert_array_equal(outputs(again, x), outputs(model, x))


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name, marks=[] if case.name in QUICK_ONNX else [pytest.mark.slow])
                                  for case in CASES])
def test_exports_to_onnx(case: Case, tmp_path: Path) -> None:
    convolt.utils.set_random_seed(0)
    model, x = make(case), pictures(case, applications.get(case.name).channels, 3)
    settle(model, x)  # unsettled, signals grow through hundreds of layers until rounding decides the outputs
    calm(model)
    result = model.export(tmp_path / "model.onnx", check=[x])
    assert result.excess <= 1


@pytest.mark.parametrize("case", shown([case for case in CASES if not case.no_top]))
def test_without_a_top_there_are_features(case: Case) -> None:
    entry = applications.get(case.name)
    with torch.device("meta"):
        features, means = entry.function(include_top=False), entry.function(include_top=False, pooling="avg")
    assert isinstance(features, Functional)
    shape = features.compute_output_shape((None, 2 * entry.smallest, 2 * entry.smallest, entry.channels))
    assert len(shape) == 4 and means.compute_output_shape((None, entry.size, entry.size, entry.channels)) == (None, shape[-1])
