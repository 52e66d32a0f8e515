"""Rewrites: done where they are legal, left alone where they are not, and equal to the model that they came from."""

import copy

import pytest
import torch
from torch import nn

import convolt
from convolt import kernels, layers
from convolt.compiler.fuse import REWRITES, fuse
from convolt.compiler.fused import Separable, WinogradConv
from convolt.compiler.trace import Untraceable, trace
from convolt.models import Model, Sequential


def image_input() -> list:
    return [layers.Input((12, 10, 3))]


def residual(linear: bool = False) -> Model:
    image = layers.Input((12, 10, 3))
    x = layers.Conv2D(4, 3, padding="same")(image)
    y = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(x))
    x = layers.Add()([x, y])
    return Model(image, layers.Dense(3)(layers.Flatten()(x if linear else layers.ReLU()(x))))


def linear_residual() -> Model:
    return residual(linear=True)


class TorchResidual(nn.Module):
    def __init__(self, linear: bool = False) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Identity() if linear else nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(x + self.bn(self.conv(x)))


def after_a_branch() -> Model:
    image = layers.Input((12, 10, 3))
    x = layers.Conv2D(4, 3, activation="relu")(layers.Add()([image, layers.Rescaling(2.0)(image)]))
    return Model(image, layers.MaxPooling2D()(x))


FIRST, SPARSE, WINOGRAD = "first conv+relu+pool", "sparse conv+relu+pool", "winograd conv+pool"

def attention() -> Model:
    image = layers.Input((12, 10, 3))
    x = layers.Reshape((30, 12))(image)
    return Model(image, layers.MultiHeadAttention(8, 128)(x, x))


LEGAL = {
    "onednn products": [
        lambda: Sequential([*image_input(), layers.Dense(600, activation="gelu"), layers.GlobalAveragePooling2D()]),
        lambda: Sequential([*image_input(), layers.EinsumDense("abcd,def->abcef", (None, None, 20, 30), bias_axes="ef")]),
        lambda: Sequential([*image_input(), layers.Dense(4, use_bias=False)]),  # too small for oneDNN to be worth a call
        lambda: nn.Sequential(nn.Flatten(2), nn.Linear(120, 700)),
        attention,
    ],
    FIRST: [
        lambda: Sequential([*image_input(), layers.Conv2D(4, 3, activation="relu"), layers.MaxPooling2D()]),
        lambda: Sequential([*image_input(), layers.Rescaling(0.5), layers.Conv2D(19, 3, padding="same"), layers.ReLU(),
                            layers.MaxPooling2D()]),
        lambda: Sequential([*image_input(), layers.Normalization(mean=0.1, variance=2.0), layers.Conv2D(4, 3, use_bias=False),
                            layers.MaxPooling2D(), layers.ReLU()]),
        after_a_branch,
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False, padding=(1, 2)), nn.MaxPool2d(2), nn.ReLU()),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.MaxPool2d(2), nn.ReLU()),
    ],
    SPARSE: [
        lambda: Sequential([*image_input(), layers.Conv2D(5, 1), layers.Conv2D(4, 3, activation="relu"), layers.MaxPooling2D()]),
        lambda: Sequential([*image_input(), layers.BatchNormalization(), layers.Conv2D(4, 3, activation="relu"), layers.MaxPooling2D()]),
        lambda: Sequential([*image_input(), layers.Conv2D(4, 5, activation="relu", padding="same"), layers.MaxPooling2D()]),
        lambda: Sequential([*image_input(), layers.Conv2D(4, (2, 4), padding="same"), layers.ReLU(), layers.MaxPooling2D((2, 3))]),
        lambda: Sequential([*image_input(), layers.Conv2D(4, 3, use_bias=False), layers.Activation("relu"), layers.MaxPooling2D(3)]),
        lambda: nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 3, padding="same"), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
    ],
    WINOGRAD: [
        lambda: Sequential([*image_input(), layers.Conv2D(32, 1), layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D()]),
        lambda: Sequential([*image_input(), layers.Conv2D(32, 1), layers.Conv2D(32, 3, use_bias=False, padding="same"),
                            layers.MaxPooling2D(), layers.BatchNormalization()]),
        lambda: nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, padding=1), nn.MaxPool2d(2)),
        lambda: nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, padding="same"), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
    ],
    "winograd conv": [
        lambda: Sequential([*image_input(), layers.Conv2D(32, 1), layers.Conv2D(64, 3, padding="same", activation="relu")]),
        lambda: nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)),
        lambda: nn.Sequential(nn.Conv2d(3, 48, 1), nn.Conv2d(48, 272, 3, padding=1, bias=False), nn.BatchNorm2d(272)),  # tiles of 4 × 4
    ],
    "depthwise conv": [
        lambda: Sequential([*image_input(), layers.Conv2D(16, 1), layers.DepthwiseConv2D(5, padding="same", activation="relu6")]),
        lambda: Sequential([*image_input(), layers.Conv2D(24, 1), layers.DepthwiseConv2D(3, strides=2, use_bias=False)]),
        lambda: Sequential([*image_input(), layers.Conv2D(16, 1), layers.Conv2D(16, 7, padding="same", groups=16)]),
        lambda: nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 5, 2, 2, groups=16)),
    ],
    "separable conv": [
        lambda: separable(padding="same", activation="relu"),
        lambda: separable(3, strides=2, use_bias=False),
        lambda: Sequential([*image_input(), layers.AveragePooling2D(4), layers.Conv2D(16, 1),
                            layers.SeparableConv2D(96, 3, padding="same")]),  # products alone
    ],
    "gemm conv": [
        lambda: Sequential([*image_input(), layers.AveragePooling2D(4), layers.Conv2D(96, 1, activation="gelu")]),
        lambda: nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, 24, 1), nn.Conv2d(24, 800, 3, stride=2, padding=1)),  # all passes
        lambda: nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, 24, 1), nn.Conv2d(24, 800, 3, padding="same", bias=False)),
        lambda: Sequential([*image_input(), layers.AveragePooling2D(4), layers.Conv2D(24, 1),
                            layers.Conv2D(400, 2, strides=2, padding="same")]),
    ],
    "conv+relu+pool": [
        lambda: Sequential([*image_input(), layers.Conv2D(4, 3, dilation_rate=2, activation="relu"), layers.MaxPooling2D()]),
        lambda: Sequential([*image_input(), layers.Conv2D(6, 3, groups=3, activation="relu"), layers.MaxPooling2D()]),
        lambda: Sequential([*image_input(), layers.Conv2D(4, 3, strides=2, padding="same"), layers.MaxPooling2D(), layers.ReLU()]),
        lambda: Sequential([*image_input(), layers.Conv2D(4, 5, activation="relu"), layers.MaxPooling2D((1, 3))]),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False, padding=1, padding_mode="circular"), nn.MaxPool2d(2), nn.ReLU()),
    ],
    "bn+relu": [
        lambda: Sequential([*image_input(), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU()]),
        lambda: Sequential([*image_input(), layers.BatchNormalization(scale=False), layers.Activation("relu")]),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
    ],
    "bn+relu+pool": [
        lambda: Sequential([*image_input(), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(), layers.MaxPooling2D()]),
        lambda: Sequential([*image_input(), layers.BatchNormalization(scale=False), layers.MaxPooling2D((3, 2), strides=(2, 3)),
                            layers.Activation("relu"), layers.Conv2D(2, 1)]),
        lambda: Sequential([*image_input(), layers.BatchNormalization(), layers.ReLU(), layers.ZeroPadding2D((1, 0)),
                            layers.MaxPooling2D(3, strides=2)]),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)),
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.MaxPool2d(2), nn.ReLU()),
    ],
    "conv+relu": [
        lambda: Sequential([*image_input(), layers.Conv2D(4, 3, strides=2, activation="relu")]),
        lambda: Sequential([*image_input(), layers.Conv2D(4, 3, padding="same", use_bias=False), layers.ReLU(), layers.Conv2D(2, 1)]),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU()),
    ],
    "bn+activation": [
        lambda: Sequential([*image_input(), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(max_value=6.0)]),
        lambda: Sequential([*image_input(), layers.BatchNormalization(center=False), layers.Activation("swish")]),
        lambda: Sequential([*image_input(), layers.BatchNormalization(), layers.Activation("hard_swish")]),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU6()),
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.SiLU(inplace=True)),
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Hardswish()),
    ],
    "bn+add": [linear_residual, lambda: Model.wrap(TorchResidual(linear=True))],
    "bn": [
        lambda: Sequential([*image_input(), layers.Conv2D(4, 3), layers.BatchNormalization()]),
        lambda: Sequential([*image_input(), layers.Flatten(), layers.Dense(5), layers.BatchNormalization(), layers.LeakyReLU()]),
        lambda: nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Flatten(), nn.Linear(360, 4)),
    ],
    "bn+add+relu": [residual, lambda: Model.wrap(TorchResidual())],
    "relu+pool": [
        lambda: Sequential([*image_input(), layers.Conv2D(4, 3, dilation_rate=2), layers.BatchNormalization(), layers.Dropout(0.0),
                            layers.ReLU(), layers.MaxPooling2D()]),
    ],
}


LEFTOVERS = {rewrite.name for rewrite in REWRITES if rewrite.leftover}


def run(module: nn.Module, x: torch.Tensor, parameters: list) -> list[torch.Tensor]:
    out = module(x)
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), [*([x] if x.requires_grad else []), *parameters])]


@pytest.mark.parametrize(("name", "make"), [*((name, make) for name, makes in LEGAL.items() for make in makes),
                                            *(("conv+relu+pool", make) for make in LEGAL[SPARSE])])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("input_gradient", [True, False])
def test_a_fused_model_is_the_model(name: str, make: object, training: bool, input_gradient: bool,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convolt.compiler.fuse.has_slow_mkl", lambda: name == "onednn products")
    convolt.utils.set_random_seed(3)
    model = make()
    reference = copy.deepcopy(model)
    x = torch.randn(5, 12, 10, 3).permute(0, 3, 1, 2).requires_grad_(input_gradient)
    traced = trace(model, [x[:2]])
    fused = fuse(traced, None if make in LEGAL[name] else (name,))
    assert {n: count for n, count in fused.count.items() if n == name or n not in LEFTOVERS} == {name: 1}
    assert [id(p) for p in fused.module.parameters()] == [id(p) for p in model.parameters()]
    for module in (model, reference, fused.module):
        module.train(training)
    got = run(fused.module, x, list(model.parameters()))
    expected = run(reference, x, list(reference.parameters()))
    scale = max(float(b.abs().max()) for b in expected)  # a bias before BN has gradient zero, but for rounding of this size
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-5 * scale)
    for a, b in zip(model.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("filters", "side", "slow", "expected"), [
    (96, 8, True, "tiled_conv"), (96, 8, False, "tiled_conv"), (160, 8, True, "winograd_conv"),
    (288, 8, True, "winograd_conv"), (288, 8, False, "tiled_conv"), (192, 3, True, "gemm_conv"), (192, 3, False, "gemm_conv")])
def test_the_shape_says_by_which_tiles_or_products_windows_of_3_are_convolved(filters: int, side: int, slow: bool, expected: str,
                                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles whose products are PyTorch's are smaller where these are slow; too few tiles are left to products of patches."""
    seen = []
    for name in ("tiled_conv", "winograd_conv", "gemm_conv"):
        def watched(*given: object, op: object = getattr(kernels, name), name: str = name, **options: object) -> torch.Tensor:
            seen.append(name)
            return op(*given, **options)

        monkeypatch.setattr(kernels, name, watched)
    monkeypatch.setattr("convolt.kernels.tiles.multiplies_at_half_rate", lambda: slow)
    conv = nn.Conv2d(filters, filters, 3, padding=1)
    x = torch.randn(8, filters, side, side)
    got = WinogradConv(conv, relu=False)(x)
    assert seen == [expected]
    torch.testing.assert_close(got, conv(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("frozen", ["depthwise_weight", "pointwise_weight", "bias", ""])
@pytest.mark.parametrize(("window", "strides", "precision"), [(5, 1, torch.float32), (3, 2, torch.float32), (3, 2, torch.bfloat16),
                                                              (5, 2, torch.bfloat16)], ids=str)
def test_gradients_of_a_separable_convolution(window: int, strides: int, precision: torch.dtype, frozen: str) -> None:
    torch.manual_seed(0)
    layer = layers.SeparableConv2D(96, window, strides=strides, padding="same")
    x = torch.randn(4, 32, 7, 6)
    layer(x)
    exact = copy.deepcopy(layer).double()
    for each in (layer, exact):
        for name, p in each.named_parameters():
            p.requires_grad_(name != frozen)
    results = []
    for form, given in ((Separable(layer), x), (exact, x.double())):
        given = given.detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16 and given.dtype == torch.float32):
            y = form(given)
        wanted = [given, *(p for p in form.parameters() if p.requires_grad)]
        results.append([y, *torch.autograd.grad(y.float().square().mean() if y.dtype == torch.bfloat16 else y.square().mean(), wanted)])
    assert len(results[0]) == 5 - bool(frozen) and results[0][0].dtype == precision
    for got, expected in zip(*results, strict=True):
        bound = 2e-2 if precision == torch.bfloat16 else 1e-5
        assert float((got - expected).detach().norm()) <= bound * float(expected.detach().norm())


@pytest.mark.parametrize("case", ["float32", "bfloat16", "input gradient", "float64"])
def test_the_first_convolution_is_one_kernel_where_it_can_be(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    convolt.utils.set_random_seed(3)
    model = LEGAL[FIRST][0]()
    x = torch.randn(5, 3, 12, 10).to(torch.float64 if case == "float64" else torch.float32).requires_grad_(case == "input gradient")
    if case == "float64":
        model.double()
    fused = fuse(trace(model, [x[:2].detach()])).module
    seen = []
    op = kernels.conv_relu_max_pool

    def watched(given: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        seen.append(given.dtype)
        return op(given, *arguments, **options)

    monkeypatch.setattr(kernels, "conv_relu_max_pool", watched)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "bfloat16"):
        got, expected = fused(x), model(x)
    assert seen == {"float32": [torch.float32], "bfloat16": [torch.bfloat16]}.get(case, [])
    assert got.dtype == expected.dtype
    tolerance = 3e-2 if case == "bfloat16" else 1e-5
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def with_activity_penalty() -> Sequential:
    return Sequential([*image_input(), layers.Conv2D(4, 3, activation="relu", activity_regularizer="l2"), layers.MaxPooling2D()])


def with_hook() -> Sequential:
    model = Sequential([*image_input(), layers.Conv2D(4, 3, activation="relu"), layers.MaxPooling2D()])
    model.layers[0].register_forward_hook(lambda *_: None)
    return model


def depthwise(**settings: object) -> Sequential:
    return Sequential([*image_input(), layers.Conv2D(16, 1), layers.DepthwiseConv2D(5, **settings)])


def separable(window: int = 5, **settings: object) -> Sequential:
    return Sequential([*image_input(), layers.Conv2D(16, 1), layers.SeparableConv2D(20, window, **settings)])


def pre_activation_used_twice() -> Model:
    image = layers.Input((12, 10, 3))
    x = layers.Conv2D(4, 3)(image)
    return Model(image, [layers.ReLU()(x), layers.GlobalAveragePooling2D()(x)])


def used_twice() -> Model:
    image = layers.Input((12, 10, 3))
    x = layers.Conv2D(4, 3, activation="relu")(image)
    return Model(image, [layers.MaxPooling2D()(x), layers.GlobalAveragePooling2D()(x)])


@pytest.mark.parametrize("make", [
    lambda: depthwise(depth_multiplier=2), lambda: depthwise(dilation_rate=2), lambda: depthwise(activity_regularizer="l2"),
    lambda: Sequential([*image_input(), layers.Conv2D(16, 1), layers.DepthwiseConv2D(3)]),  # PyTorch's own is fast
    lambda: separable(3), lambda: separable(depth_multiplier=2), lambda: separable(dilation_rate=2),
    lambda: separable(activity_regularizer="l2"), lambda: Sequential([*image_input(), layers.SeparableConv2D(20, 5)]),
    lambda: nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 5, padding=2, padding_mode="reflect", groups=16)),
    lambda: nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, 24, 1), nn.Conv2d(24, 800, 1, groups=2)),
    lambda: nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, 24, 1), nn.Conv2d(24, 800, 2, dilation=(2, 1))),
    lambda: nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, 24, 1), nn.Conv2d(24, 800, 3, padding=1, padding_mode="reflect")),
    with_activity_penalty, with_hook, pre_activation_used_twice,
    lambda: Sequential([*image_input(), layers.Conv2D(4, 3, activation="tanh"), layers.MaxPooling2D()]),
    lambda: Sequential([*image_input(), layers.Conv2D(4, 3), layers.MaxPooling2D()]),
    lambda: Sequential([*image_input(), layers.BatchNormalization(axis=1), layers.ReLU()]),
    lambda: nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU()),
])
def test_what_is_not_legal_stays(make: object) -> None:
    assert fuse(trace(make(), [torch.zeros(2, 3, 12, 10)])).count == {}


@pytest.mark.parametrize("after", [layers.LeakyReLU, lambda: layers.ReLU(max_value=5.0), lambda: layers.Activation("tanh")])
def test_batch_normalization_before_other_activations_is_fused_alone(after: object) -> None:
    model = Sequential([*image_input(), layers.BatchNormalization(), after()])
    assert fuse(trace(model, [torch.zeros(2, 3, 12, 10)])).count == {"bn": 1}


@pytest.mark.parametrize("make", [
    lambda: Sequential([*image_input(), layers.BatchNormalization(), layers.ReLU(), layers.MaxPooling2D(3, strides=2, padding="same")]),
    lambda: Sequential([*image_input(), layers.BatchNormalization(), layers.ReLU(), layers.ZeroPadding2D(((0, 1), (1, 1))),
                        layers.MaxPooling2D(3)]),
    lambda: Sequential([*image_input(), layers.BatchNormalization(), layers.ReLU(), layers.ZeroPadding2D(2), layers.MaxPooling2D(3)]),
    lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2, dilation=2)),
])
def test_other_pooling_leaves_batch_normalization_and_relu(make: object) -> None:
    assert fuse(trace(make(), [torch.zeros(2, 3, 12, 10)])).count == {"bn+relu": 1}


def test_pooling_of_values_that_others_need_is_not_fused() -> None:
    image = layers.Input((12, 10, 3))
    x = layers.ReLU()(layers.BatchNormalization()(image))
    model = Model(image, [layers.MaxPooling2D()(x), layers.GlobalAveragePooling2D()(x)])
    assert fuse(trace(model, [torch.zeros(2, 3, 12, 10)])).count == {"bn+relu": 1}
    x = layers.ZeroPadding2D()(layers.BatchNormalization()(image))  # zeros below which ReLU has not cut
    model = Model(image, layers.ReLU()(layers.MaxPooling2D()(x)))
    assert fuse(trace(model, [torch.zeros(2, 3, 12, 10)])).count == {"bn": 1}


def test_batch_normalization_added_to_itself_is_fused_alone() -> None:
    image = layers.Input((12, 10, 3))
    x = layers.BatchNormalization()(image)
    model = Model(image, layers.ReLU()(layers.Add()([x, x])))
    assert fuse(trace(model, [torch.zeros(2, 3, 12, 10)])).count == {"bn": 1}


@pytest.mark.parametrize("make", [used_twice,
    lambda: Sequential([*image_input(), layers.Conv2D(4, 3, activation="relu"), layers.MaxPooling2D(3, strides=2)]),
    lambda: Sequential([*image_input(), layers.Conv2D(4, 3, activation="relu"), layers.MaxPooling2D(padding="same")]),
    lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)),
])
def test_other_pooling_leaves_convolution_and_relu(make: object) -> None:
    assert fuse(trace(make(), [torch.zeros(2, 3, 12, 10)])).count == {"conv+relu": 1}


def test_names_choose_among_the_rewrites() -> None:
    model = Sequential([*image_input(), layers.Conv2D(4, 3, activation="relu"), layers.MaxPooling2D(), layers.BatchNormalization(),
                        layers.ReLU()])
    traced = trace(model, [torch.zeros(2, 3, 12, 10)])
    assert set(fuse(traced).count) == {FIRST, "bn+relu"}
    assert set(fuse(traced, ("conv+relu+pool", "bn+relu")).count) == {"conv+relu+pool", "bn+relu"}
    assert fuse(traced, ("bn+relu",)).count == {"bn+relu": 1}


@pytest.mark.parametrize("make", [
    lambda: Sequential([*image_input(), layers.Dense(600, activity_regularizer="l2")]),
    lambda: Model.wrap(nn.Sequential(nn.Linear(10, 700)).double()),
    lambda: Sequential([*image_input(), layers.Conv2D(4, 3)]),
])
def test_other_products_are_not_onednns(make: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convolt.compiler.fuse.has_slow_mkl", lambda: True)
    model = make()
    x = torch.zeros(2, 3, 12, 10, dtype=next(iter(model.parameters()), torch.zeros(0)).dtype)
    assert fuse(trace(model, [x]), ("onednn products",)).count == {}


def test_products_are_onednns_where_pytorchs_are_slow_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = trace(nn.Sequential(nn.Flatten(2), nn.Linear(120, 700)), [torch.zeros(2, 3, 12, 10)])
    for slow in (False, True):
        monkeypatch.setattr("convolt.compiler.fuse.has_slow_mkl", lambda slow=slow: slow)
        assert fuse(traced).count == ({"onednn products": 1} if slow else {})
        assert fuse(traced, ("onednn products",)).count == {"onednn products": 1}, "a plan that names it may come from another machine"


def test_every_rewrite_of_the_table_is_tested() -> None:
    assert {rewrite.name for rewrite in REWRITES} == set(LEGAL)


def test_nested_models_are_dissolved() -> None:
    inner = Sequential([*image_input(), layers.Conv2D(4, 3)])
    image = layers.Input((12, 10, 3))
    model = Model(image, layers.MaxPooling2D()(layers.ReLU()(inner(image))))
    assert fuse(trace(model, [torch.zeros(2, 3, 12, 10)])).count == {FIRST: 1}


def test_code_that_branches_on_values_is_named() -> None:
    class Branch(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.sum() > 0:
                return x
            return -x

    found = trace(Branch(), [torch.zeros(2, 3)])
    assert isinstance(found, Untraceable)
    assert "test_fuse.py" in str(found.line) and "if x.sum() > 0" in str(found.line)


def test_shapes_are_on_every_node() -> None:
    model = Sequential([*image_input(), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(2)])
    traced = trace(model, [torch.zeros(2, 3, 12, 10)])
    assert [node.meta["shape"] for node in traced.graph.nodes if node.op == "call_module"] == [(2, 4, 10, 8), (2, 320), (2, 2)]
