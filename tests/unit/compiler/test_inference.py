"""Models with frozen weights give what the models give, and notice when a weight changes."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convolt
from convolt import layers
from convolt.compiler import inference
from convolt.compiler.frozen import MaxPool, Packed, PackedDense, freeze_dense
from convolt.compiler.inference import Frozen, Refused, freeze_model
from convolt.devices import onednn_takes_bfloat16


def shaken(model: Any) -> Any:
    """Returns the model with random statistics and offsets, in inference mode."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, (layers.BatchNormalization, nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.normal_(module.weight, 1.0, 0.2)
            nn.init.normal_(module.bias, 0.0, 0.2)
        if isinstance(module, layers.LayerScale):
            nn.init.normal_(module.weight, 1.0, 0.2)
    return model.eval()


def pictures(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def residual_block() -> Any:
    x = inputs = convolt.Input((12, 12, 64))
    x = layers.Conv2D(64, 3, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU()(x)
    x = layers.Conv2D(64, 3, padding="same")(x)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU()(layers.Add()([x, inputs]))
    side = layers.BatchNormalization()(layers.Conv2D(96, 1, strides=2)(x))
    x = layers.BatchNormalization()(layers.Conv2D(96, 3, strides=2, padding="same")(x))
    return convolt.Model(inputs, layers.Activation("relu")(layers.Add()([side, x])))


def pooled_vgg() -> Any:
    return convolt.Sequential([
        layers.Input((16, 18, 3)), layers.ZeroPadding2D(3), layers.Conv2D(64, 7, activation="relu"),
        layers.Conv2D(64, 3, padding="same", activation="relu"), layers.Conv2D(80, 3, padding="same"), layers.MaxPooling2D(),
        layers.ReLU(), layers.Dropout(0.5), layers.Conv2D(112, 3, padding="same", activation="relu"), layers.MaxPooling2D(),
        layers.Flatten(), layers.Dense(7, activation="softmax")])


def mobile() -> Any:
    x = inputs = convolt.Input((11, 9, 8))
    x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
    x = layers.Activation("silu")(layers.BatchNormalization()(layers.DepthwiseConv2D(3, strides=2, use_bias=False)(x)))
    y = layers.BatchNormalization()(layers.Conv2D(24, 1, use_bias=False)(x))
    x = layers.ReLU(max_value=6)(y)
    x = layers.Conv2D(24, 3, padding="same", groups=2, dilation_rate=2, activation="sigmoid")(x)
    return convolt.Model(inputs, [layers.Add()([x, y]), layers.Activation("hard_silu")(layers.Conv2D(4, 2, activation="tanh")(y))])


def separable() -> Any:
    """Separable convolutions, one layer called twice, in a model within the model."""
    inner = convolt.Input((10, 9, 8))
    shared = layers.SeparableConv2D(8, 3, padding="same", activation="relu")
    block = convolt.Model(inner, shared(shared(inner)))
    x = inputs = convolt.Input((10, 9, 8))
    x = layers.ReLU()(layers.BatchNormalization()(layers.SeparableConv2D(12, 5, 2, "same", depth_multiplier=2)(block(x))))
    return convolt.Model(inputs, layers.SeparableConv2D(6, 3, dilation_rate=2, activation="tanh", use_bias=False)(x))


def dense_blocks() -> Any:
    """Dense layers over maps, with GELU, a scale of each channel and a residual behind them; the last one gives probabilities."""
    inputs = convolt.Input((12, 9, 16))
    x = layers.Conv2D(24, 2, strides=2, activation="gelu")(inputs)
    for bias in (True, False):
        y = layers.LayerNormalization()(layers.DepthwiseConv2D(5, padding="same")(x))
        y = layers.Activation("gelu")(layers.Dense(96)(y))
        x = layers.Add()([x, layers.LayerScale(1.0)(layers.Dense(24, use_bias=bias)(y))])
    return convolt.Model(inputs, layers.Dense(5, activation="softmax")(x))


def of_torch() -> Any:
    return nn.Sequential(nn.Conv2d(3, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU6(), nn.Conv2d(64, 64, 3, padding=1),
                         nn.BatchNorm2d(64), nn.SiLU(), nn.Conv2d(64, 64, 3, padding=2), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(64, 5, 1))


def identity_blocks() -> Any:
    """Two sums that may be written over what the block before has made, on odd sides, behind a padded pooling."""
    inputs = convolt.Input((15, 15, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(64, 3, padding="same")(inputs)))
    x = layers.MaxPooling2D(3, strides=2)(layers.ZeroPadding2D(1)(x))
    x = layers.Conv2D(96, 1)(x)
    for _ in range(2):
        y = layers.BatchNormalization()(layers.Conv2D(64, 1, activation="relu")(x))
        y = layers.Conv2D(64, 3, padding="same", activation="relu")(y)
        x = layers.ReLU()(layers.Add()([x, layers.BatchNormalization()(layers.Conv2D(96, 1)(y))]))
    return convolt.Model(inputs, [layers.Conv2D(80, 3, activation="relu")(x), layers.Conv2D(70, 3)(x)])


MODELS = {  # model, shape of a batch as its forward takes it, what must be found in float32 and in bfloat16
    "residual": (residual_block, (16, 64, 12, 12), {"tiled": 2, "packed": 2, "folded": 4}, {"winograd": 2, "packed": 2, "folded": 4}),
    "identity": (identity_blocks, (16, 3, 15, 15), {"tiled": 3, "packed": 7, "folded": 3}, {"winograd": 2, "packed": 8, "folded": 3}),
    "pooled": (pooled_vgg, (64, 3, 16, 18), {"packed": 1, "tiled": 3}, {"packed": 3, "winograd": 1, "cast": 1}),
    "mobile": (mobile, (5, 8, 11, 9), {"packed": 4, "folded": 2}, {"packed": 4, "folded": 2}),
    "separable": (separable, (5, 8, 10, 9), {"packed": 8, "folded": 1}, {"packed": 8, "folded": 1}),
    "dense": (dense_blocks, (5, 16, 12, 9), {"packed": 7}, {"packed": 7, "cast": 1}),
    "torch": (of_torch, (64, 3, 20, 20), {"packed": 2, "tiled": 2, "folded": 2}, {"packed": 2, "winograd": 2, "folded": 2}),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("units", ["", "AMX", "none for bfloat16"])
def test_frozen_models_compute_the_same(name: str, dtype: torch.dtype, units: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles, takes = units == "AMX", onednn_takes_bfloat16() and not units.startswith("none")
    monkeypatch.setattr("convolt.compiler.frozen.multiplies_in_tiles", lambda: tiles)  # Winograd's products are then oneDNN's
    monkeypatch.setattr("convolt.compiler.frozen.onednn_takes_bfloat16", lambda: takes)
    make, shape, in_float32, in_bfloat16 = MODELS[name]
    model, x = shaken(make()), pictures(*shape)
    frozen = freeze_model(model, [x], dtype)
    assert isinstance(frozen, Frozen), frozen
    count = dict(in_float32 if dtype == torch.float32 else in_bfloat16)
    if (tiles or not takes or not torch.cpu.get_capabilities().get("avx512_bf16", False)) and "winograd" in count:  # which wants such units
        count["packed"] += count.pop("winograd")
    if dtype == torch.bfloat16 and not takes:
        count["plain"] = count.pop("packed")
    assert frozen.count == count
    for batch in (x, x[:3]):
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            mine, theirs = frozen.module(batch), model.double()(batch.double()) if dtype == torch.float32 else model(batch)
        model.float()
        for a, b in zip(mine if isinstance(mine, list) else [mine], theirs if isinstance(theirs, list) else [theirs], strict=True):
            assert a.shape == b.shape
            assert float((a.double() - b.double()).abs().max() / b.double().abs().max()) < (3e-5 if dtype == torch.float32 else 5e-2)
    assert str(frozen).startswith("weights frozen: ")


def test_predict_freezes_when_there_is_enough_to_do_and_sees_new_weights(monkeypatch: pytest.MonkeyPatch,
                                                                         capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(inference, "FREEZING", {"cpu": 0.0})
    model = shaken(residual_block())
    x = np.random.default_rng(0).normal(size=(37, 12, 12, 64)).astype(np.float32)
    frozen = model.predict(x, batch_size=16, verbose=1)
    assert "predict: weights frozen: 2 convolutions by tiles, 2 laid out for oneDNN, 4 normalizations folded" in capsys.readouterr().out
    with torch.no_grad():
        plain = model(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(frozen, plain, atol=3e-5)
    assert model.predict(x, batch_size=16, verbose=0).tobytes() == frozen.tobytes()
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    assert np.abs(model.predict(x, verbose=0) - frozen).max() > 1e-2
    changed = model.predict(x, verbose=0)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.add_(0.5)
    assert np.abs(model.predict(x, verbose=0) - changed).max() > 1e-2


def test_training_between_predictions_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "FREEZING", {"cpu": 0.0})
    model = pooled_vgg()
    model.compile("adam", "sparse_categorical_crossentropy", device="cpu")
    x, y = np.random.default_rng(0).normal(size=(64, 16, 18, 3)).astype(np.float32), np.arange(64) % 7
    before = model.predict(x, verbose=0)
    model.fit(x, y, epochs=1, verbose=0)
    after = model.predict(x, verbose=0)
    assert np.abs(after - before).max() > 1e-3
    assert model.evaluate(x, y, verbose=0) == pytest.approx(-np.log(after[np.arange(64), y]).mean(), rel=1e-4)


def test_fused_optimizers_of_pytorch_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """They change weights without counting."""
    monkeypatch.setattr(inference, "FREEZING", {"cpu": 0.0})
    net = of_torch()
    model, x = convolt.Model.wrap(net), np.ones((8, 20, 20, 3), np.float32)
    before = model.predict(x, verbose=0)
    optimizer = torch.optim.SGD(net[3].parameters(), lr=0.1, fused=True)
    net.eval()(torch.ones(8, 3, 20, 20)).square().sum().backward()
    optimizer.step()
    changed = model.predict(x, verbose=0)
    with torch.no_grad():
        plain = net.eval()(torch.ones(8, 3, 20, 20)).permute(0, 2, 3, 1).numpy()
    assert np.abs(changed - before).max() > 1e-3
    np.testing.assert_allclose(changed, plain, rtol=1e-3, atol=1e-3 * np.abs(plain).max())


def test_weights_that_are_not_finite_are_not_tried_anew_by_each_call(monkeypatch: pytest.MonkeyPatch,
                                                                      capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(inference, "FREEZING", {"cpu": 0.0})
    model = shaken(residual_block())
    with torch.no_grad():
        next(model.parameters())[0, 0, 0, 0] = float("nan")
    for _ in range(2):
        model.predict(np.ones((2, 12, 12, 64), np.float32), verbose=1)
    assert capsys.readouterr().out.count("predict: layer by layer: outputs would be off by inf") == 1


class Steep(nn.Module):
    """Gives the gradient of something, for which it turns gradients on."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(x.pow(3).sum(), x)[0]


def test_code_of_ones_own_may_ask_for_gradients_within_predict() -> None:
    x = np.full((2, 4, 4, 3), 2, np.float32)
    np.testing.assert_allclose(convolt.Model.wrap(Steep()).predict(x, verbose=0), 3 * x**2)


def test_what_gives_and_takes_the_batches_may_ask_for_gradients() -> None:
    """As a stream of adversarial pictures does, or a callback that explains outputs."""
    def slope() -> float:
        with torch.enable_grad():
            x = torch.ones(1, requires_grad=True)
            (2 * x).sum().backward()
        assert x.grad is not None
        return float(x.grad)

    def batches() -> Any:
        yield np.full((2, 8, 8, 3), slope(), np.float32)

    class Explaining(convolt.callbacks.Callback):
        def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
            seen.append(slope())

    seen: list[float] = []
    model = convolt.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(4, 3)])
    model.predict(batches(), callbacks=[Explaining()], verbose=0)
    assert seen == [2.0]


def test_a_hook_before_a_layer_may_ask_for_gradients_within_predict() -> None:
    def look(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        with torch.enable_grad():
            x = given[0].detach().requires_grad_()
            seen.append(float(torch.autograd.grad((3 * x).sum(), x)[0].mean()))

    seen: list[float] = []
    model = convolt.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(4, 3)])
    next(m for m in model.modules() if isinstance(m, layers.Conv2D)).register_forward_pre_hook(look)
    model.predict(np.zeros((2, 8, 8, 3), np.float32), verbose=0)
    assert seen == [3.0]


def test_what_a_layer_made_in_predict_can_be_trained() -> None:
    model = convolt.Sequential([layers.Conv2D(4, 3, activation="relu"), layers.Flatten(), layers.Dense(2, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", device="cpu")
    x = np.random.default_rng(0).random((8, 6, 6, 1), dtype=np.float32)
    before = model.predict(x, verbose=0)
    model.fit(x, np.arange(8) % 2, epochs=2, verbose=0)
    assert np.abs(model.predict(x, verbose=0) - before).max() > 1e-4


def test_little_work_is_left_to_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    model = shaken(residual_block())
    x = np.zeros((2, 12, 12, 64), np.float32)
    for _ in range(2):
        model.predict(x, verbose=1)
    assert "frozen" not in capsys.readouterr().out


def test_work_adds_up_over_calls(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = shaken(residual_block())
    x = np.ones((4, 12, 12, 64), np.float32)
    model.predict(x, verbose=0)
    known = inference._kept[model]
    monkeypatch.setattr(inference, "FREEZING", {"cpu": 1.5 * known.work / (inference.CALL * known.size.layers)})
    model.predict(x, verbose=1)
    assert "weights frozen" in capsys.readouterr().out


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > 0 else self.conv(-x)


def test_what_cannot_be_frozen_says_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(inference, "FREEZING", {"cpu": 0.0})
    model = convolt.Model.wrap(Branching())
    model.predict(np.ones((2, 5, 5, 3), np.float32), verbose=1)
    assert "predict: layer by layer: torch.fx cannot follow the model" in capsys.readouterr().out
    dense = convolt.Sequential([layers.Input((4,)), layers.Dense(3)])
    assert freeze_model(dense.eval(), [torch.ones(2, 4)], torch.float32) == Refused("no convolution that can be frozen")


def test_weights_that_are_not_finite_are_left_to_the_model() -> None:
    model = shaken(of_torch())
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = float("nan")
    result = freeze_model(model, [pictures(64, 3, 20, 20)], torch.float32)
    assert isinstance(result, Refused) and "off by inf" in result.reason


def test_hooks_and_outputs_within_a_chain_are_kept() -> None:
    model = of_torch()
    seen = []
    model[3].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    frozen = freeze_model(shaken(model), [pictures(64, 3, 20, 20)], torch.float32)
    assert isinstance(frozen, Frozen) and frozen.count == {"packed": 2, "tiled": 1, "folded": 1}
    seen.clear()
    frozen.module(pictures(2, 3, 20, 20))
    assert seen == [torch.Size([2, 64, 10, 10])]


def overwriting(model: Any, x: Tensor) -> list[bool]:
    """Returns for each sum whether it is written over its residual, after checking the results."""
    frozen = freeze_model(model, [x], torch.float32)
    assert isinstance(frozen, Frozen), frozen
    before = x.clone()
    with torch.no_grad():
        for _ in range(2):
            mine, theirs = frozen.module(x), model(x)
            for a, b in zip(*(given if isinstance(given, list) else [given] for given in (mine, theirs)), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
    assert torch.equal(x, before)
    return [module.overwrites for module in frozen.module.modules() if isinstance(module, Packed) and module.chain.added]


def test_sums_are_written_over_residuals_that_nobody_needs_any_more() -> None:
    assert overwriting(shaken(identity_blocks()), pictures(4, 3, 15, 15)) == [True, True]


@pytest.mark.parametrize("needed", ["input", "output", "later", "view", "twice", "added to itself"])
def test_residuals_that_somebody_needs_stay(needed: str) -> None:
    inputs = convolt.Input((8, 8, 16))
    first = x = inputs if needed == "input" else layers.Conv2D(16, 1, activation="relu")(inputs)
    if needed == "view":
        x = layers.Reshape((8, 8, 16))(x)
    y = x if needed == "added to itself" else layers.Conv2D(16, 1, activation="relu")(x)
    y = layers.ReLU()(layers.Add()([x, layers.Conv2D(16, 1)(y)]))
    outputs = [y]
    if needed == "output":
        outputs.append(first)
    if needed == "later":
        outputs.append(layers.Conv2D(5, 1)(first))
    if needed == "view":
        outputs.append(layers.GlobalAveragePooling2D()(first))
    if needed == "twice":
        outputs.append(layers.Add()([y, layers.Conv2D(16, 1)(layers.LeakyReLU()(first))]))
    assert not any(overwriting(shaken(convolt.Model(inputs, outputs)), pictures(2, 16, 8, 8)))


@pytest.mark.parametrize(("before", "padding", "inside"), [
    ("relu", 1, True), ("sigmoid", 1, True), ("tanh", 1, False), ("relu", ((0, 1), (0, 1)), False), ("relu", 2, False)])
def test_zeros_are_left_to_pooling_where_nothing_is_below_them(before: str, padding: Any, inside: bool) -> None:
    model = shaken(convolt.Sequential([layers.Input((9, 9, 3)), layers.Conv2D(8, 3, activation=before), layers.ZeroPadding2D(padding),
                                       layers.MaxPooling2D(3, strides=2)]))
    x = pictures(2, 3, 9, 9)
    frozen = freeze_model(model, [x], torch.float32)
    assert isinstance(frozen, Frozen)
    called = [frozen.module.get_submodule(str(node.target)) for node in frozen.module.graph.nodes if node.op == "call_module"]
    assert any(isinstance(module, layers.ZeroPadding2D) for module in called) is not inside
    torch.testing.assert_close(frozen.module(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("pool", "ours"), [
    (lambda: layers.MaxPooling2D(), True), (lambda: layers.MaxPooling2D(3, 2, "same"), True),
    (lambda: layers.MaxPooling2D(2, 1, "same"), False), (lambda: layers.MaxPooling2D(3, 1, "same"), True),
    (lambda: nn.MaxPool2d(3, 2, 1), True), (lambda: nn.MaxPool2d(2, ceil_mode=True), False), (lambda: nn.MaxPool2d(2, dilation=2), False)])
def test_pooling_of_a_frozen_model_gives_the_same_bits(pool: Any, ours: bool, dtype: torch.dtype) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.tanh, self.pool = nn.Conv2d(3, 16, 3), nn.Tanh(), pool()

        def forward(self, x: Tensor) -> Tensor:
            y = self.tanh(self.conv(x))
            return self.pool(y) + y.mean()  # so that pooling is no part of the convolution's chain

    net, x = Net().eval(), pictures(2, 3, 11, 14)
    frozen = freeze_model(net, [x], dtype)
    assert isinstance(frozen, Frozen)
    called = [frozen.module.get_submodule(str(node.target)) for node in frozen.module.graph.nodes if node.op == "call_module"]
    assert any(isinstance(module, MaxPool) for module in called) is ours
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y = called[0](x)
        expected = net.pool(y) + y.mean()
        assert torch.equal(frozen.module(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_small_scales_are_added_as_the_model_adds_them(dtype: torch.dtype) -> None:
    """In bfloat16 the model scales and adds in float32: a branch of a thousandth of the stream would be lost otherwise."""
    torch.manual_seed(0)
    x = inputs = convolt.Input((6, 6, 16))
    for _ in range(12):
        y = layers.Dense(32, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.LayerScale(2e-3)(layers.Dense(16)(y))])
    model, pixels = convolt.Model(inputs, x).eval(), pictures(4, 16, 6, 6)
    frozen = freeze_model(model, [pixels], dtype)
    assert isinstance(frozen, Frozen) and sum(frozen.count.values()) == 24, frozen
    with torch.no_grad():
        exact = model.double()(pixels.double())
        model.float()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            mine, theirs = frozen.module(pixels), model(pixels)
    assert mine.dtype == theirs.dtype == torch.float32
    assert float((mine - exact).norm()) <= 1.5 * float((theirs - exact).norm()) + 1e-6 * float(exact.norm())


@pytest.mark.parametrize("kind", ["scale", "dense"])
def test_layers_of_ones_own_are_not_folded(kind: str) -> None:
    class Gate(layers.LayerScale):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(super().forward(x))

    class Doubled(layers.Dense):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = convolt.Sequential([layers.Input((6, 6, 8)), layers.Conv2D(8, 1), Gate(0.5) if kind == "scale" else Doubled(8)]).eval()
    frozen = freeze_model(model, [pictures(2, 8, 6, 6)], torch.float32)
    assert isinstance(frozen, Frozen) and frozen.count == {"packed": 1}, frozen


@pytest.mark.parametrize("activation", ["linear", "relu", "sigmoid", "gelu", "softmax"])
@pytest.mark.parametrize("shape", [(8,), (5, 6, 8)], ids=str)
def test_dense_layers_laid_out_for_onednn_compute_the_same(activation: str, shape: tuple[int, ...]) -> None:
    if not onednn_takes_bfloat16():
        pytest.skip("oneDNN does not compute in bfloat16 here")
    layer = layers.Dense(7, activation=activation)
    x = torch.randn(3, *shape)
    x = x.movedim(-1, 1) if len(shape) > 1 else x
    layer(x)  # makes the weights
    torch.nn.init.normal_(layer.bias)
    packed = freeze_dense(layer, 3, torch.bfloat16)
    assert isinstance(packed, PackedDense)
    y, expected = packed(x), layer(x)
    assert y.shape == expected.shape and y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=2e-2)
    plain, ones = nn.Linear(8, 7, bias=False), torch.ones(3, 8)
    torch.testing.assert_close(freeze_dense(plain, 3, torch.bfloat16)(ones).float(), plain(ones), rtol=2e-2, atol=2e-2)


def any_size() -> Any:
    """Takes pictures of any size: tiles, a residual, pooling with a border that depends on the size."""
    inputs = convolt.Input((None, None, 3))
    x = layers.Conv2D(32, 3, padding="same", activation="relu")(inputs)
    y = layers.Conv2D(32, 3, padding="same")(layers.Conv2D(32, 3, padding="same", activation="relu")(x))
    x = layers.MaxPooling2D(3, 2, "same")(layers.ReLU()(layers.Add()([x, y])))
    return convolt.Model(inputs, layers.Dense(5)(layers.GlobalMaxPooling2D()(x)))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_pictures_of_another_size_in_the_same_call_are_right(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "FREEZING", {"cpu": 0.0})
    model = shaken(any_size())
    model.compile("sgd", "mse", precision=precision, device="cpu")
    batches = [np.random.default_rng(size).normal(size=(4, size, size, 3)).astype(np.float32) for size in (32, 33, 20, 32)]
    together = model.predict((batch for batch in batches), verbose=0)
    apart = np.concatenate([model.predict(batch, batch_size=4, verbose=0) for batch in batches])
    np.testing.assert_allclose(together, apart, **({"atol": 1e-4} if precision == "float32" else {"rtol": 0.05, "atol": 0.05}))


@pytest.mark.parametrize("change", ["strides", "hook"])
def test_what_a_user_changes_after_freezing_is_seen(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "FREEZING", {"cpu": 0.0})
    pool = nn.MaxPool2d(2)
    model = convolt.Model.wrap(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Tanh(), pool, nn.Conv2d(16, 4, 1)))
    x, seen = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32), []
    before = model.predict(x, verbose=0)
    if change == "hook":
        pool.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
        assert model.predict(x, verbose=0).shape == before.shape and seen
    else:
        pool.stride = 1
        assert model.predict(x, verbose=0).shape == (2, 7, 7, 4)


@pytest.mark.parametrize("make", [
    lambda: (layers.ZeroPadding2D(1), layers.MaxPooling2D(2, padding="same")), lambda: (nn.MaxPool2d([3, 3], 2),),  # type: ignore[arg-type]
    lambda: (layers.MaxPooling2D(7), layers.MaxPooling2D(3, 2, "same"))], ids=["a border before a border", "lists", "a map of one place"])
def test_pooling_that_is_written_otherwise(make: Any) -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), *make()).eval()
    x = pictures(2, 3, 9, 9)
    frozen = freeze_model(net, [x], torch.float32)
    assert isinstance(frozen, Frozen)
    torch.testing.assert_close(frozen.module(x), net(x), rtol=1e-5, atol=1e-5)


def test_dense_layers_hand_their_mask_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "FREEZING", {"cpu": 0.0})
    words, picture = convolt.Input((6,), dtype="int64"), convolt.Input((8, 8, 3))
    x = layers.LSTM(5)(layers.Dense(7)(layers.Embedding(20, 4, mask_zero=True)(words)))
    y = layers.Flatten()(layers.Conv2D(8, 3)(picture))
    model = convolt.Model([words, picture], layers.Dense(3)(layers.Concatenate()([x, y])))
    model.compile("sgd", "mse", precision="bfloat16", device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.7)
    pictures_of = np.zeros((4, 8, 8, 3), np.float32)
    short = np.array([[3, 4, 5, 0, 0, 0]] * 4)
    long = np.array([[3, 4, 5, 6, 7, 8]] * 4)
    long[:2] = 9  # the first two, by which the frozen form is judged, have no padding
    mixed = np.concatenate([long[:2], short[:2]])
    with torch.no_grad():
        expected = [model(torch.from_numpy(given), torch.zeros(4, 3, 8, 8)).numpy() for given in (mixed, long)]
    for given, plain in zip((mixed, long), expected, strict=True):
        np.testing.assert_allclose(model.predict([given, pictures_of], verbose=0), plain, atol=6e-2)
    assert np.abs(expected[0] - expected[1])[2:].max() > 0.3


@pytest.mark.parametrize("frozen", [False, True])
def test_replayed_recurrent_layers_compute_in_bfloat16_too(frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "FREEZING", {"cpu": 0.0})
    inputs = convolt.Input((6, 8, 3))
    x = layers.Conv2D(8, 3, padding="same")(inputs) if frozen else inputs
    model = convolt.Model(inputs, layers.LSTM(5)(layers.Dense(7)(layers.Reshape((6, -1))(x))))
    model.compile("sgd", "mse", precision="bfloat16", device="cpu")
    x = np.random.default_rng(0).normal(size=(4, 6, 8, 3)).astype(np.float32)
    first, *more = (model.predict(x, verbose=0) for _ in range(5))
    assert all(again.tobytes() == first.tobytes() for again in more)


@pytest.mark.parametrize("pool", [False, True])
def test_chunks_of_tiles_give_what_blocks_give(pool: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from convolt.kernels import winograd4_numba

    torch.manual_seed(0)
    x, residual = pictures(19, 64, 15, 17), pictures(19, 48, 15, 17)
    weight, bias = torch.randn(48, 64, 3, 3) / 24, torch.randn(48)
    found = []
    for most in (0, winograd4_numba.MOST_BY_BLOCKS):
        monkeypatch.setattr(winograd4_numba, "MOST_BY_BLOCKS", most)
        filters = winograd4_numba.Filters(weight, tuple(x.shape), (1, 1))
        assert (filters._panels is None) is (most == 0)
        found.append([filters(batch, bias, None if pool else residual[: len(batch)], True, 1 + pool) for batch in (x, x[:3])])
    y = torch.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    expected = torch.max_pool2d(y.relu(), 2) if pool else (y + residual).relu()
    for chunks, blocks in zip(*found, strict=True):
        torch.testing.assert_close(chunks.double(), expected[: len(chunks)], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(blocks.double(), expected[: len(blocks)], rtol=1e-4, atol=1e-4)
