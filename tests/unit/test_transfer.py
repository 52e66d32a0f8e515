"""Freezing, unfreezing, fine-tuning and features: what learns, what stays, and what is told."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import convolt
from convolt import layers, optimizers
from convolt.applications import VGG16, get
from convolt.errors import ArgumentError, ArgumentTypeError, StateError
from convolt.models.parts import head_start, parts_of, rate_groups
from convolt.models.summary import summarize

RNG = np.random.default_rng(0)
X = RNG.random((48, 8, 8, 1)).astype("float32")
Y = (np.arange(48) % 3).astype("int64")


def backbone() -> convolt.Sequential:
    return convolt.Sequential([
        layers.Input((8, 8, 1)), layers.Conv2D(4, 3, padding="same", name="conv_a"), layers.BatchNormalization(name="norm_a"),
        layers.ReLU(), layers.MaxPooling2D(), layers.Conv2D(6, 3, padding="same", name="conv_b"),
        layers.BatchNormalization(name="norm_b"), layers.ReLU(), layers.GlobalAveragePooling2D()], name="base")


def transferred(optimizer: Any = "adam", **options: Any) -> convolt.Sequential:
    convolt.utils.set_random_seed(0)
    model = convolt.Sequential([backbone(), layers.Dense(5, activation="relu", name="hidden"),
                                layers.Dense(3, activation="softmax", name="out")])
    model.compile(optimizer, "sparse_categorical_crossentropy", ["accuracy"], device="cpu", **options)
    return model


def learning(model: nn.Module) -> list[str]:
    return [part.path for part in parts_of(model) if part.stateful and part.module.trainable]


ALL = ["base.conv_a", "base.norm_a", "base.conv_b", "base.norm_b", "hidden", "out"]


@pytest.mark.parametrize(("what", "left"), [
    ({}, ALL[4:]), ({"what": "backbone"}, ALL[4:]), ({"what": "base"}, ALL[4:]), ({"what": 0}, ALL[4:]),
    ({"what": "conv_?"}, ["base.norm_a", "base.norm_b", "hidden", "out"]), ({"what": "base.*_a"}, ALL[2:]),
    ({"what": ["conv_a", -1]}, ["base.norm_a", "base.conv_b", "base.norm_b", "hidden"]),
    ({"until": "conv_b"}, ALL[2:]), ({"until": "out"}, ALL[5:]), ({"until": -1}, ALL[5:]), ({"until": "backbone"}, ALL[4:]),
    ({"until": "conv_b", "what": "out"}, ["base.conv_b", "base.norm_b", "hidden"]),
])  # fmt: skip
def test_what_is_frozen(what: dict[str, Any], left: list[str]) -> None:
    model = transferred()
    assert model.freeze(**what) is model
    assert learning(model) == left
    model.unfreeze()
    assert learning(model) == ALL


def test_a_layer_is_meant_by_itself_and_models_follow_their_parts() -> None:
    model = transferred()
    base = model.layers[0]
    model.freeze(base)
    assert learning(model) == ALL[4:] and not base.trainable and model.trainable
    model.unfreeze(base.get_layer("conv_b"))
    assert learning(model) == ["base.conv_b", *ALL[4:]] and base.trainable
    model.unfreeze(since="conv_b", batch_normalization=False)
    assert learning(model) == ["base.conv_b", *ALL[4:]]
    model.unfreeze(since="conv_b")
    assert learning(model) == ALL[2:]


def test_what_does_not_exist_is_told() -> None:
    model = transferred()
    with pytest.raises(ArgumentError, match=r"freeze\(what\): got 'hiden'; .* Did you mean 'hidden'"):
        model.freeze("hiden")
    with pytest.raises(ArgumentError, match=r"freeze\(until\): got 'con_b'.*conv_b"):
        model.freeze(until="con_b")
    with pytest.raises(ArgumentError, match="less than 3, the number of layers"):
        model.freeze(3)
    with pytest.raises(ArgumentError, match="a layer of 'sequential"):
        model.unfreeze(layers.Dense(1, name="other"))
    with pytest.raises(ArgumentTypeError, match="'backbone', names"):
        model.freeze(1.5)
    with pytest.raises(StateError, match="layers that are not built"):
        convolt.Sequential([layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(2)]).freeze()


def test_frozen_weights_and_statistics_stay_and_the_others_learn() -> None:
    model = transferred().freeze()
    base, before = model.layers[0], [w.copy() for w in model.get_weights()]
    model.fit(X, Y, epochs=2, verbose=0)
    count = len(base.get_weights())
    after = model.get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(before[:count], after[:count], strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(before[count:], after[count:], strict=True))


def test_fit_after_freezing_equals_a_new_compile() -> None:
    """The optimizer begins anew with its settings when other weights are trained than before."""
    trained = []
    for again in (False, True):
        model = transferred(optimizers.Adam(0.01, use_ema=True))
        model.fit(X, Y, epochs=1, seed=1, verbose=0)
        model.freeze(until="conv_b")
        if again:
            model.compile(optimizers.Adam(0.01, use_ema=True), "sparse_categorical_crossentropy", ["accuracy"], device="cpu")
        model.fit(X, Y, epochs=2, seed=2, verbose=0)
        assert model.optimizer.iterations == 4
        trained.append(model.get_weights())
    assert all(np.array_equal(a, b) for a, b in zip(*trained, strict=True))


def test_an_optimizer_of_another_model_is_still_refused() -> None:
    optimizer = optimizers.Adam()
    transferred(optimizer).fit(X, Y, verbose=0)
    with pytest.raises(StateError, match="other parameters than before"):
        transferred(optimizer).fit(X, Y, verbose=0)


def test_the_rate_that_was_set_outlives_the_restart() -> None:
    model = transferred("swa")
    model.fit(X, Y, verbose=0)
    model.optimizer.learning_rate = 0.125
    model.freeze().fit(X, Y, verbose=0)
    assert model.optimizer.lr == 0.125 and model.optimizer.averaged == 1, "counted anew: one update of the last quarter of two"


@pytest.mark.parametrize("suffix", ["safetensors", "keras", "h5"])
def test_files_keep_what_is_frozen(suffix: str, tmp_path: Path) -> None:
    model = transferred().freeze(until="conv_b")
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / f"model.{suffix}")
    again = convolt.load_model(tmp_path / f"model.{suffix}", device="cpu")
    assert learning(again) == learning(model)
    np.testing.assert_array_equal(again.predict(X, verbose=0), model.predict(X, verbose=0))
    again.unfreeze().fit(X, Y, verbose=0)


def test_the_summary_says_what_is_frozen() -> None:
    rows = {row.name: row.frozen for row in summarize(transferred().freeze("conv_a")).rows}
    assert rows == {"base": "partly frozen", "hidden": "", "out": ""}
    text = summarize(transferred().freeze()).as_text()
    assert "base (Sequential, frozen)" in text and "trainable 53, frozen 304" in text


# -- where the head begins -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "shape", "first"), [
    ("vgg16", (32, 32, 3), "fc1"), ("resnet18", (32, 32, 3), "predictions"), ("cnn", (8, 8, 1), "dense"),
])  # fmt: skip
def test_the_head_of_an_architecture(name: str, shape: tuple[int, int, int], first: str) -> None:
    with torch.device("meta"):
        model = get(name).make(shape, 4)
    parts = parts_of(model)
    assert next(part for part in parts[head_start(model, parts) :] if part.weighted).path == first


def test_models_without_a_head_and_heads_of_other_kinds() -> None:
    base = VGG16(include_top=False, input_shape=(32, 32, 3))
    assert head_start(base, parts_of(base)) == len(parts_of(base))
    assert not base.freeze().trainable_weights
    dense = convolt.Sequential([layers.Input((4,)), layers.Dense(3, name="one"), layers.Dense(2, name="two")])
    assert learning(dense.freeze()) == ["two"]
    squeezed = convolt.Sequential([layers.Input((8, 8, 1)), layers.Conv2D(4, 3, name="first"), layers.Conv2D(2, 1, name="last"),
                                   layers.GlobalAveragePooling2D(), layers.Activation("softmax")])
    assert learning(squeezed.freeze()) == ["last"]
    whole = convolt.Sequential([layers.Rescaling(2.0), backbone_with_head()])
    assert learning(whole.freeze()) == ["inner.out"], "a model inside that is everything has its own head"


def backbone_with_head() -> convolt.Sequential:
    return convolt.Sequential([layers.Input((8, 8, 1)), layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(2, name="out")], name="inner")


def test_rate_groups_are_the_stages() -> None:
    model = transferred()
    assert rate_groups(parts_of(model), head_start(model, parts_of(model))) == [ALL[:2], ALL[2:4], ALL[4:]]


# -- modules of PyTorch --------------------------------------------------------------------------------------------------


def test_a_wrapped_module_is_frozen_by_its_own_names() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    model = convolt.Model.wrap(net, (8, 8, 1))
    model.compile("adam", convolt.losses.SparseCategoricalCrossentropy(from_logits=True), device="cpu")
    model.freeze()
    assert [name for name, p in net.named_parameters() if p.requires_grad] == ["4.weight", "4.bias"]
    mean = net[1].running_mean.clone()
    model.fit(X, Y, verbose=0)
    assert torch.equal(net[1].running_mean, mean)
    assert model.features(X, "1").shape == (48, 6, 6, 4) and model.features(X).shape == (48, 144)
    model.unfreeze("1").fit(X, Y, verbose=0)
    assert not torch.equal(net[1].running_mean, mean) and not net[0].weight.requires_grad


# -- fine-tuning ---------------------------------------------------------------------------------------------------------


def test_fine_tune_trains_the_head_and_then_all_with_lower_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    model = transferred()
    seen = []
    fit = convolt.Model.fit

    def watch(self: Any, *args: Any, **arguments: Any) -> Any:
        before = [w.copy() for w in self.get_weights()]
        history = fit(self, *args, **arguments)
        moved = [not np.array_equal(a, b) for a, b in zip(before, self.get_weights(), strict=True)]
        optimizer = self.optimizer
        factors = optimizer.factors(self.named_parameters()) if hasattr(optimizer, "factors") else {}
        seen.append((moved, factors, optimizer.schedule))
        return history

    monkeypatch.setattr(convolt.Sequential, "fit", watch, raising=False)
    compiled = model.optimizer
    history = model.fine_tune(X, Y, epochs=2, freeze_epochs=3, learning_rate=0.02, rate_ratio=64, verbose=0)
    assert history is model.history and history.epoch == [0, 1, 2, 3, 4] and len(history.history["loss"]) == 5
    (head, _, first), (everything, factors, second) = seen
    assert sum(head) == 4 and not any(head[:12]) and all(everything)
    assert (first.max_learning_rate, second.max_learning_rate) == (0.02, 0.01)
    found = {name.rpartition(".")[0]: factor for name, factor in factors.items()}
    assert found == pytest.approx(dict(zip(ALL, [1 / 64, 1 / 64, 1 / 8, 1 / 8, 1, 1], strict=True)))
    assert model.optimizer is compiled and compiled.lr == 0.001 and compiled.steps == 0 and learning(model) == ALL
    model.fit(X, Y, verbose=0)


def test_fine_tune_takes_groups_and_leaves_layers_frozen() -> None:
    model = transferred("layerwise_decay")
    before = model.get_weights()[0].copy()
    model.fine_tune(X, Y, until="conv_b", batch_normalization=False, groups=["conv_*"], verbose=0)
    assert np.array_equal(model.get_weights()[0], before)
    assert learning(model) == ["base.conv_b", "hidden", "out"]
    with pytest.raises(ArgumentError, match=r"fine_tune\(rate_ratio\)"):
        transferred().fine_tune(X, Y, rate_ratio=0.5, verbose=0)
    with pytest.raises(ArgumentError, match=r"fine_tune\(initial_epoch\)"):
        transferred().fine_tune(X, Y, initial_epoch=1)


def test_fine_tune_goes_on_from_its_checkpoints(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"epochs": 2, "checkpoint": tmp_path, "seed": 5, "verbose": 0}
    whole = transferred()
    whole.fine_tune(X, Y, **{**arguments, "checkpoint": None})

    class Stop(convolt.callbacks.Callback):
        is_setting = False

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                raise RuntimeError("killed")

    stopped = transferred()
    with pytest.raises(RuntimeError, match="killed"):
        stopped.fine_tune(X, Y, callbacks=[Stop()], **arguments)
    again = transferred()
    history = again.fine_tune(X, Y, **arguments)
    assert len(history.history["loss"]) == 3
    assert all(np.array_equal(a, b) for a, b in zip(whole.get_weights(), again.get_weights(), strict=True))


# -- features ------------------------------------------------------------------------------------------------------------


def test_features_are_those_of_the_layer() -> None:
    model = transferred()
    base = model.layers[0]
    np.testing.assert_array_equal(model.features(X), base.predict(X, verbose=0))
    np.testing.assert_array_equal(model.features(X, "base"), model.features(X, 0))
    assert model.features(X, "conv_b", batch_size=7).shape == (48, 4, 4, 6)
    np.testing.assert_array_equal(model.features(X, base.get_layer("norm_b")), model.features(X, "base.norm_b"))
    np.testing.assert_array_equal(base.features(X), base.predict(X, verbose=0))
    np.testing.assert_allclose(model.features(X, -1), model.predict(X, verbose=0))


def test_nothing_after_the_tapped_layer_is_computed() -> None:
    model = transferred()
    model.get_layer("hidden").register_forward_hook(lambda *_: pytest.fail("computed"))
    model.features(X, "base")


def test_features_of_layers_that_are_not_there() -> None:
    model = transferred()
    with pytest.raises(ArgumentError, match=r"features\(layer\): got 'conv_c'.*Did you mean 'conv_"):
        model.features(X, "conv_c")
    with pytest.raises(ArgumentError, match="a layer of"):
        model.features(X, layers.ReLU())

    class Lazy(convolt.Model):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = layers.Flatten(), layers.Dense(2)

        def forward(self, x: Any) -> Any:
            return self.used(x)

    with pytest.raises(StateError, match="does not call"):
        Lazy().features(X, "unused")


# -- a network of the zoo under a new head -----------------------------------------------------------------------------------


@pytest.mark.parametrize("functional", [False, True])
def test_vgg16_under_a_new_head(functional: bool, tmp_path: Path) -> None:
    base = VGG16(include_top=False, input_shape=(32, 32, 3))
    if functional:
        picture = layers.Input((32, 32, 3))
        x = layers.Dense(2, activation="softmax")(layers.Flatten()(base(picture)))
        model = convolt.Model(picture, x)
    else:
        model = convolt.Sequential([base, layers.Flatten(), layers.Dense(2, activation="softmax")])
    model.freeze("backbone")
    model.compile("adam", "sparse_categorical_crossentropy", device="cpu")
    x, y = RNG.random((4, 32, 32, 3)).astype("float32"), np.array([0, 1, 0, 1])
    model.fit(x, y, verbose=0)
    assert model.features(x).shape == (4, 512) and model.features(x, "block3_pool").shape == (4, 4, 4, 256)
    summary = summarize(model)
    assert (summary.trainable, summary.frozen) == (1026, 14_714_688)
    model.save(tmp_path / "model.safetensors")
    again = convolt.load_model(tmp_path / "model.safetensors", device="cpu")
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
    assert summarize(again).trainable == 1026
    pytest.importorskip("onnxruntime")
    model.export(tmp_path / "model.onnx")


@pytest.mark.parametrize(("name", "head"), [
    ("resnet18", ["predictions"]), ("mobilenet_v3_small", ["conv_2", "logits"]), ("efficientnetb0", ["predictions"]),
    ("vgg16", ["fc1", "fc2", "predictions"]), ("densenet121", ["predictions"]),
])  # fmt: skip
def test_maps_of_one_pixel_before_the_pooling_are_no_head(name: str, head: list[str]) -> None:
    """Pictures of 32×32 with the stem for large ones end as maps of 1×1, several convolutions before the classifier."""
    entry = get(name)
    with torch.device("meta"):
        model = entry.make((32, 32, 3), 4, **({"stem": "large"} if "stem" in entry.options else {}))
    parts = parts_of(model)
    assert [part.path.rpartition(".")[2] for part in parts[head_start(model, parts):] if part.weighted] == head
