"""How a model was compiled, as Keras writes it, and back: optimizer, losses and metrics; and the optimizer's state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from convolt import losses, metrics, optimizers
from convolt.configurable import Configurable
from convolt.errors import ConvoltError, ModelFileError, explain
from convolt.formats.guard import shorten
from convolt.formats.keras_objects import Source, class_and_config, is_custom, plain, unknown_function, value_to_keras
from convolt.formats.keras_weights import as_array, leaves_of
from convolt.models import Model

OWN_OPTIMIZERS = frozenset({"LARS", "LayerwiseDecay", "Lookahead", "RAdam", "SAM", "SWA", "TorchOptimizer"})
OWN_LOSSES = frozenset({"FunctionLoss"})
OWN_METRICS = frozenset({"MacroF1", "MacroPrecision", "MacroRecall", "MacroAUC", "ConfusionMatrix", "MeanMetricWrapper", "TorchMetric",
                         "AutoAccuracy"})
"""Classes that Keras does not have."""

OWN_WORDS = frozenset({"precision", "recall", "f1", "f1_score", "auc"})
"""Metrics by word that look at the shapes here and mean one class of labels in Keras."""

SLOTS: Mapping[str, tuple[str, ...]] = {"Adam": ("exp_avg", "exp_avg_sq"), "AdamW": ("exp_avg", "exp_avg_sq"), "SGD": ("momentum",),
                                          "RMSprop": ("velocity",)}
"""Optimizer → its state for each weight, in Keras's order; the states of others are not in Keras files."""

ACCURACIES = frozenset({"MeanMetricWrapper", "Accuracy", "BinaryAccuracy", "CategoricalAccuracy", "SparseCategoricalAccuracy"})
"""What "accuracy" may have become in a file of Keras 2; by that name it is the word again."""

OLD_OPTIMIZER_KEYS = frozenset({"jit_compile", "is_legacy_optimizer", "decay", "loss_scale_factor", "centered_decay", "fused"})


# -- to Keras ----------------------------------------------------------------------------------------------------------


def compile_to_keras(model: Model) -> dict[str, Any] | None:
    """Returns Keras's `compile_config` of a model, None where it is not compiled or where Keras has no such optimizer or loss.

    Metrics that Keras does not have, or means otherwise, are left out. Convolt's own settings travel beside, see `own_settings`.
    """
    trainer = model._trainer
    if trainer is None:
        return None
    try:
        optimizer = _thing_to_keras(trainer.optimizer, OWN_OPTIMIZERS)
        loss = _nested(trainer.spec["loss"], lambda v: _thing_to_keras(v, OWN_LOSSES))
    except ModelFileError:
        return None
    config = {key: _metrics_to_keras(trainer.spec[key]) for key in ("metrics", "weighted_metrics")}
    weights = trainer.spec["loss_weights"]
    together = 1 if trainer.steps_per_execution == "auto" else trainer.steps_per_execution  # Keras knows "auto" on TensorFlow alone
    return {"optimizer": optimizer, "loss": loss, "loss_weights": None if weights is None else value_to_keras(weights, "loss_weights"),
            **config, "run_eagerly": False, "steps_per_execution": together, "jit_compile": False}


def _thing_to_keras(value: Any, own: frozenset[str]) -> Any:
    """Returns a loss, metric or optimizer for Keras: names stay, objects become class and configuration."""
    if value is None or isinstance(value, str):
        return value
    if callable(value) and not isinstance(value, (type, Configurable)) and type(value).__module__ == "builtins":
        return value_to_keras(value, "compile")
    if not isinstance(value, Configurable) or type(value).__name__ in own or not type(value).__module__.startswith("convolt."):
        raise ModelFileError(explain("compile", f"a {type(value).__name__}", "what Keras has too"))
    found = value_to_keras(value, "compile")
    if found["module"] == "keras.optimizers":  # Keras 2 knows fewer arguments
        average = () if value.use_ema else ("ema_momentum",)  # type: ignore[attr-defined]
        found["config"] = {k: v for k, v in found["config"].items() if v is not None and v is not False and k not in average}
    return found


def _metrics_to_keras(spec: Any) -> Any:
    """Returns metrics for Keras, without those that it does not have."""
    if isinstance(spec, Mapping):
        kept = {key: _metrics_to_keras(value) for key, value in spec.items()}
        return {key: value for key, value in kept.items() if value} or None
    if isinstance(spec, (list, tuple)):
        found = [_metrics_to_keras(value) for value in spec]
        nested = any(isinstance(value, (list, tuple)) for value in spec)
        return found if nested else [value for value in found if value is not None] or None
    if isinstance(spec, str) and spec in OWN_WORDS:
        return None
    try:
        return _thing_to_keras(spec, OWN_METRICS)
    except ModelFileError:
        return None


def _nested(values: Any, function: Callable[[Any], Any]) -> Any:
    """Applies `function` to losses or metrics in lists and in mappings by output."""
    if isinstance(values, Mapping) and "class_name" not in values:
        return {key: _nested(value, function) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_nested(value, function) for value in values]
    return function(values)


# -- from Keras --------------------------------------------------------------------------------------------------------


def compile_from_keras(config: Any, source: Source) -> dict[str, Any] | None:
    """Returns arguments of `Model.compile` from Keras's `compile_config`, or from `training_config` of a legacy file.

    Raises:
        ModelFileError: an optimizer, loss or metric is not Convolt's; the message says to load without compiling.
    """
    if not isinstance(config, Mapping) or not config:
        return None
    config = {str(key): plain(value, f"{source.name}: compile") for key, value in config.items()}
    optimizer = config.get("optimizer_config", config.get("optimizer"))
    if optimizer is None:
        return None
    try:
        return {
            "optimizer": _optimizer(optimizer, source),
            "loss": _nested(config.get("loss"), lambda v: _loss(v, source)),
            "loss_weights": config.get("loss_weights") or None,
            "metrics": _metric_list(config.get("metrics"), source),
            "weighted_metrics": _metric_list(config.get("weighted_metrics"), source),
        }
    except Exception as error:  # in a damaged file any value may stand in any place
        raise compile_error(source, error) from error


def compile_error(source: Source, error: Exception) -> ModelFileError:
    """Returns the error for a model that cannot be compiled as the file says."""
    got = str(error) if isinstance(error, ConvoltError) else f"{type(error).__name__}: {error}"
    return ModelFileError(explain(f"{source.name}: compile", shorten(got, 300), "known losses, metrics and optimizers",
                                  "Load it with compile=False and compile it yourself."))


def _optimizer(spec: Any, source: Source) -> Any:
    if isinstance(spec, str):
        return optimizers.get(spec)
    kind, config = class_and_config(spec, "optimizer")
    kind = kind.removeprefix("Custom>")  # how TensorFlow 2.11 and later wrote its own
    if kind in source.custom:
        return source.custom[kind].from_config(config)
    if kind.startswith("LossScaleOptimizer"):
        return _optimizer(config["inner_optimizer"], source)
    if config.get("decay"):
        source.dropped.append(f"the optimizer's decay={config['decay']}")
    cls = optimizers.registry.find(kind)
    known = cls._argument_names()
    arguments = {key: value for key, value in config.items() if key in known or not (key in OLD_OPTIMIZER_KEYS or value in (None, False))}
    rate = arguments.get("learning_rate")
    if isinstance(rate, Mapping):
        rate_kind, rate_config = class_and_config(rate, "learning rate")
        arguments["learning_rate"] = {"class_name": rate_kind, "config": rate_config}
    return cls.from_config(arguments)


def _loss(spec: Any, source: Source) -> Any:
    if spec is None:
        return None
    name = _name_in(spec, source)
    if not isinstance(name, str):
        return name
    if name in source.custom:
        return source.custom[name]
    if isinstance(spec, str) or name != spec.get("class_name"):
        return losses.get(name) and name
    return losses.get({"class_name": name, "config": _loss_config(losses.registry.find(name), spec["config"])})


def _loss_config(cls: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in config.items() if key in cls._argument_names()}
    if found.get("reduction") == "auto":  # Keras 2
        found["reduction"] = "sum_over_batch_size"
    if isinstance(found.get("dtype"), Mapping):
        found.pop("dtype")
    return found


def _name_in(spec: Any, source: Source) -> Any:
    """Returns the name of a serialized function, loss or metric; wrappers of functions give the function's."""
    if isinstance(spec, str):
        return spec
    if spec.get("class_name") == "function":
        name = spec.get("config")
        if is_custom(spec.get("registered_name") if spec.get("registered_name") != "function" else None, str(name), spec.get("module")) \
                and name not in source.custom:
            raise unknown_function(shorten(str(name)), "compile")
        return name
    kind, config = class_and_config(spec, "compile")
    if kind in ("LossFunctionWrapper", "MeanMetricWrapper"):
        fn = config.get("fn")
        return _name_in(fn, source) if fn is not None else config.get("name")
    if kind in source.custom:
        made = source.custom[kind]
        return made.from_config(config) if hasattr(made, "from_config") else made
    if is_custom(spec.get("registered_name"), kind, spec.get("module")):
        raise unknown_function(shorten(kind), "compile")
    return kind


def _metric_list(spec: Any, source: Source) -> Any:
    """Returns metrics; one output's list in a list, as Keras 2 wrote it, loses the outer one."""
    if isinstance(spec, list) and len(spec) == 1 and isinstance(spec[0], list):
        spec = spec[0]
    return None if not spec else _nested(spec, lambda v: _metric(v, source))


def _metric(spec: Any, source: Source) -> Any:
    if spec is None:
        return None
    if isinstance(spec, Mapping) and str(spec.get("class_name")) in ACCURACIES and isinstance(spec.get("config"), Mapping) \
            and spec["config"].get("name") in ("accuracy", "acc"):
        return spec["config"]["name"]
    name = _name_in(spec, source)
    if not isinstance(name, str) or name in source.custom:
        return source.custom.get(name, name) if isinstance(name, str) else name
    if isinstance(spec, str) or name != spec.get("class_name"):
        return metrics.get(name) and name
    cls = metrics.registry.find(name)
    config = {key: value for key, value in spec["config"].items() if key in cls._argument_names() and not (key == "dtype" and value)}
    return metrics.get({"class_name": name, "config": config})


# -- the optimizer's state ---------------------------------------------------------------------------------------------


def state_to_keras(model: Model) -> list[np.ndarray] | None:
    """Returns the optimizer's state as Keras orders it: steps, rate, and slots weight by weight; None where Keras's is another."""
    optimizer = model.optimizer
    names = slots_of(optimizer)
    if names is None:
        return None
    head: list[np.ndarray] = [np.array(optimizer.iterations, "int32")]
    if isinstance(optimizer.get_config()["learning_rate"], (int, float)):
        head.append(np.array(optimizer.get_config()["learning_rate"], "float32"))
    slots = optimizer.slots()
    by_slot = []
    for name in names:
        if slots:
            with _in_place_of_weights(model, slots, name):
                by_slot.append([as_array(leaf).copy() for leaf in leaves_of(model) if leaf.trainable])
        else:
            by_slot.append([np.zeros_like(as_array(leaf)) for leaf in leaves_of(model) if leaf.trainable])
    return [*head, *(slot for slots_of_weight in zip(*by_slot, strict=True) for slot in slots_of_weight)]


def slots_of(optimizer: Any) -> tuple[str, ...] | None:
    """Returns the names of an optimizer's slots in Keras's order, None where Keras's state is another."""
    names = SLOTS.get(type(optimizer).__name__)
    settings = ("amsgrad", "use_ema", "gradient_accumulation_steps")
    if names is None or any(getattr(optimizer, key, None) for key in settings):
        return None
    if type(optimizer).__name__ == "RMSprop":
        return None if optimizer.momentum or optimizer.centered else names
    return () if type(optimizer).__name__ == "SGD" and not optimizer.momentum else names


@contextmanager
def _in_place_of_weights(model: Model, slots: Mapping[str, torch.Tensor], slot: str) -> Iterator[None]:
    """Puts a slot's tensors in the weights' places, so that each is seen in Keras's order of axes."""
    own = {name: p for name, p in model.named_parameters() if f"{slot}/{name}" in slots}
    data = {name: p.data for name, p in own.items()}
    try:
        for name, p in own.items():
            p.data = slots[f"{slot}/{name}"]
        yield
    finally:
        for name, p in own.items():
            p.data = data[name]


def state_from_keras(model: Model, state: Sequence[np.ndarray]) -> bool:
    """Sets the state of the model's optimizer from Keras's; False where it does not fit, so that training starts afresh."""
    optimizer = model.optimizer
    names = slots_of(optimizer)
    leaves = [leaf for leaf in leaves_of(model) if leaf.trainable]
    if names is None or not leaves:
        return False
    constant = isinstance(optimizer.get_config()["learning_rate"], (int, float))
    values = list(state[1 + constant:])
    shapes = [tuple(leaf.view.shape) for leaf in leaves for _ in names]
    if len(state) < 1 + constant or state[0].size != 1 or [value.shape for value in values] != shapes:
        return False
    if not all(np.isfinite(value).all() for value in values):
        raise ModelFileError(explain("optimizer state", "values that are NaN or infinite", "finite values",
                                     "Load it with compile=False and compile it yourself."))
    optimizer.bind([(name, p) for name, p in model.named_parameters() if isinstance(p, nn.Parameter) and p.requires_grad])
    slots = optimizer.slots()
    for position, name in enumerate(names):
        with torch.no_grad(), _in_place_of_weights(model, slots, name):
            for leaf, value in zip([leaf for leaf in leaves_of(model) if leaf.trainable], values[position::len(names)], strict=True):
                leaf.view.copy_(torch.from_numpy(np.array(value, order="C")))
    optimizer.iterations = int(state[0].reshape(()))
    return True
