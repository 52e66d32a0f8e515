"""Layers, initializers, regularizers and activations as Keras writes them in its configurations, and back.

Convolt's arguments have Keras's names, so that most of a configuration passes as it is. The tables here hold what differs:
what Keras 2 called otherwise, what Keras writes and Convolt does not have, and what Convolt has and Keras does not.
Nothing that a file names is imported: a class is one of Convolt's registries, or one that the caller gave by name.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from convolt import activations, constraints, initializers, regularizers
from convolt.configurable import Configurable
from convolt.errors import ConvoltError, ConvoltWarning, ModelFileError, did_you_mean, explain
from convolt.formats.guard import shorten
from convolt.layers import registry
from convolt.layers.base import Layer
from convolt.missing import KERAS_NAMES

AS_ACTIVATION: Mapping[str, str] = {"SELU": "selu", "GELU": "gelu", "SiLU": "silu"}
"""Layers that Keras has as `Activation(name)` alone."""

NOT_IN_KERAS = frozenset({"ClassToken", "DropBlock2D", "LayerScale", "MirrorBatch", "MirrorMean", "PatchWhitening", "PositionEmbedding",
                          "SinePositionEncoding", "StochasticDepth", "TorchLayer", "Wrapped"})
"""Layers that no Keras file can hold; other registered layers have a Keras counterpart of the same name."""

OWN_ARGUMENTS: Mapping[str, frozenset[str]] = {"BatchNormalization": frozenset({"bias_correction"})}
"""Arguments of training alone that Keras's layers do not have, and that its files go without."""

RENAMED: Mapping[tuple[str, str], str] = {("LeakyReLU", "alpha"): "negative_slope"}
"""(class, argument in Keras 2) → argument today."""

IGNORED = frozenset({"dtype", "batch_input_shape", "input_dtype", "implementation", "fused", "input_length", "quantization_config",
                     "virtual_batch_size", "renorm_momentum", "renorm_clipping", "is_quantized"})
"""What Keras writes for layers and what changes no result (`dtype`: Convolt computes in the precision that `compile` is told)."""

NEUTRAL: Mapping[str, Any] = {"groups": 1, "time_major": False, "renorm": False, "ragged": False, "sparse": False, "adjustment": None}
"""Arguments that a class of Convolt need not have as long as they have this value."""

NEVER_DROPPED = frozenset({"use_bias", "center", "scale", "reset_after", "unit_forget_bias"})
"""Arguments whose False means something; elsewhere False and None are what a missing argument is."""

CODE = {"Lambda": "Python code", "TFOpLambda": "a call of a TensorFlow function", "SlicingOpLambda": "a TensorFlow slice",
        "TensorFlowOpLayer": "a TensorFlow graph", "TFSMLayer": "a TensorFlow SavedModel", "TorchModuleWrapper": "a pickled PyTorch module",
        "JaxLayer": "JAX code", "FlaxLayer": "Flax code"}
"""Classes that carry or call code, which is never taken from a file."""


@dataclass
class Source:
    """The file that is read, and what its reader may use.

    Attributes:
        name: of the file, for messages.
        custom: the caller's classes and functions by name.
        version: Keras's, such as "2.13.1" or "3.15.1"; empty where the file has none.
        dropped: what the file says and Convolt does not do, each as text; one warning in the end names all.
    """

    name: str
    custom: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""
    dropped: list[str] = field(default_factory=list)

    def warn(self) -> None:
        """Warns of what was dropped, once."""
        if self.dropped:
            warnings.warn(f"{self.name}: not kept: {'; '.join(dict.fromkeys(self.dropped))}", ConvoltWarning, stacklevel=4)
            self.dropped.clear()


# -- to Keras ----------------------------------------------------------------------------------------------------------


def layer_to_keras(layer: Layer) -> dict[str, Any]:
    """Returns class and configuration of a layer that is no model, for Keras.

    Raises:
        ModelFileError: Keras has no such layer, or an argument cannot be written.
    """
    kind = type(layer).__name__
    known = kind in registry and registry.find(kind) is type(layer)
    if kind in NOT_IN_KERAS or not known:
        what = f"the layer {layer.name!r} of class {kind}"
        raise ModelFileError(explain("a Keras file", what, "layers that Keras has",
                                     "Save it as .safetensors, which holds every layer of Convolt."))
    config = {key: value_to_keras(value, f"{kind} {layer.name!r}: {key}") for key, value in layer._arguments().items()}
    for key in {"input_shape", *OWN_ARGUMENTS.get(kind, ())} & config.keys():
        del config[key]
    if config.get("activity_regularizer") is None:
        config.pop("activity_regularizer", None)
    config["name"] = keras_name(layer.name)
    if layer.trainable or not any(True for _ in layer.parameters()):
        config.pop("trainable", None)  # True is the default, and not every layer of Keras takes it
    if kind in AS_ACTIVATION:
        if config.get("approximate"):
            raise ModelFileError(explain("a Keras file", f"{kind} {layer.name!r} with approximate=True", "approximate=False",
                                         "Keras names no such activation; save it as .safetensors."))
        config.pop("approximate", None)
        kind, config["activation"] = "Activation", AS_ACTIVATION[kind]
    return _serialized(kind, config, "keras.layers")


def keras_name(name: str) -> str:
    """Returns a layer's name for Keras, which allows no slash."""
    return name.replace("/", "_")


def value_to_keras(value: Any, thing: str) -> Any:
    """Returns an argument as Keras's JSON: objects with class, configuration and module; functions by name."""
    from convolt.formats.keras_graph import to_keras
    from convolt.models import Model

    if isinstance(value, Model):
        return to_keras(value)
    if isinstance(value, Layer):
        return layer_to_keras(value)
    if isinstance(value, Configurable):
        module = _module_of(value)
        if module is None:
            raise ModelFileError(explain(thing, f"an object of {type(value).__name__}", "what Keras has too",
                                         "Save the model as .safetensors."))
        config = {key: value_to_keras(v, thing) for key, v in value._arguments().items() if v is not None}  # Keras 2 knows fewer
        return _serialized(type(value).__name__, config, module)
    if isinstance(value, Mapping):
        return {str(key): value_to_keras(v, thing) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [value_to_keras(v, thing) for v in value]
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    if hasattr(value, "tolist"):
        return value.tolist()
    name = getattr(value, "__name__", "")
    if callable(value) and name in activations.registry and activations.registry.find(name) is value:
        return name
    raise ModelFileError(explain(thing, f"a function of your own ({name or type(value).__name__})", "an activation that Keras has",
                                 "Save the model as .safetensors, or its weights as .weights.h5."))


def _module_of(value: Configurable) -> str | None:
    """Returns Keras's module of an initializer, regularizer, …; None for classes of the user and for those that Keras lacks."""
    part = type(value).__module__.split(".")
    if part[0] != "convolt" or type(value).__name__.startswith("From"):
        return None
    return {"schedules": "keras.optimizers.schedules"}.get(part[1], f"keras.{part[1]}")


def _serialized(kind: str, config: dict[str, Any], module: str) -> dict[str, Any]:
    return {"module": module, "class_name": kind, "config": config, "registered_name": None}


# -- from Keras --------------------------------------------------------------------------------------------------------


def layer_from_keras(spec: Any, source: Source) -> Layer:
    """Returns the layer (or model) that Keras's `spec` describes, without weights.

    Raises:
        ModelFileError: the class is unknown or carries code, or an argument does not fit; the layer is named.
    """
    from convolt.formats import keras_models

    kind, config = class_and_config(spec, f"{source.name}: a layer")
    name = shorten(str(config.get("name", spec.get("name", kind))))
    thing = f"{source.name}: layer {name!r} ({shorten(kind)})"
    cls = layer_class(spec, kind, thing, source)
    if cls is None:
        return keras_models.from_keras(spec, source)
    if config.get("data_format") == "channels_first":
        raise ModelFileError(explain(thing, "data_format='channels_first'", "'channels_last'", "Build the model in Keras once more with "
                                     "channels_last, give it the weights of this one with set_weights, and save that."))
    try:
        arguments = layer_arguments(cls, config, thing, source)
        return cls.from_config(arguments)
    except ModelFileError:
        raise
    except Exception as error:  # constructors of a hundred classes meet values that nobody thought of
        got = str(error) if isinstance(error, ConvoltError) else f"{type(error).__name__}: {error}"
        raise ModelFileError(explain(thing, shorten(got, 300), "a configuration that Convolt can read")) from error


def class_and_config(spec: Any, thing: str) -> tuple[str, dict[str, Any]]:
    """Returns the class name and the configuration of a serialized object."""
    if not isinstance(spec, Mapping) or not isinstance(spec.get("class_name"), str) or not isinstance(spec.get("config"), Mapping):
        raise ModelFileError(explain(thing, shorten(repr(spec)), "a mapping with class_name and config"))
    return spec["class_name"], {str(k): plain(v, thing) for k, v in spec["config"].items()}


def layer_class(spec: Mapping[str, Any], kind: str, thing: str, source: Source) -> type[Layer] | None:
    """Returns the class of a serialized layer, None for a model of layers.

    The caller's own classes come first, by registered or class name. A class counts as Keras's only where the file says so.
    """
    registered, module = spec.get("registered_name"), spec.get("module")
    for key in (registered, kind):
        if isinstance(key, str) and key in source.custom and isinstance(source.custom[key], type):
            return source.custom[key]  # type: ignore[no-any-return]
    own = is_custom(registered, kind, module)
    if not own and kind in ("Functional", "Model", "Sequential"):
        return None
    if not own and kind in registry and kind not in NOT_IN_KERAS:
        return registry.find(kind)
    if kind in CODE:
        raise ModelFileError(explain(thing, CODE[kind], "a layer without code",
                                     "Code in a file is never run. In Keras, replace it by a layer of a class, and give that class here: "
                                     "load_model(path, custom_objects={'Name': Class})."))
    if not own and kind in KERAS_NAMES["layers"]:
        raise ModelFileError(explain(thing, f"Keras's layer {kind}, which Convolt does not have", "a layer that Convolt has",
                                     f"Write it as a class and pass it: load_model(path, custom_objects={{{kind!r}: Class}})."))
    word = shorten(registered if own and isinstance(registered, str) else kind)
    near = did_you_mean(kind, registry)
    got = f"the {'custom' if own else 'unknown'} class {word!r}"
    raise ModelFileError(explain(thing, got, "a layer that Convolt has, or a class of yours", "Pass the class: "
                                 f"load_model(path, custom_objects={{{word!r}: Class}})."
                                 + ("" if own or near.startswith("Known") else f" {near}")))


def is_custom(registered: Any, kind: str, module: Any) -> bool:
    """Whether a serialized object is of a class outside Keras."""
    if isinstance(registered, str) and registered and registered not in (kind, f"keras>{kind}"):
        return True
    package = module.split(".")[0] if isinstance(module, str) else "keras"
    return package not in ("keras", "tf_keras", "tensorflow", "builtins")


def plain(value: Any, thing: str) -> Any:
    """Returns a value with Keras's own JSON wrappings (tuples, arrays, shapes) taken off."""
    if isinstance(value, Mapping):
        kind = value.get("class_name")
        if kind in ("__tuple__", "TensorShape"):
            return plain(value.get("items", []), thing)
        if kind in ("__numpy__", "__tensor__", "__bytes__") and isinstance(value.get("config"), Mapping):
            return plain(value["config"].get("value"), thing)
        if kind == "__lambda__" or value.get("class_name") == "__lambda__":
            raise ModelFileError(explain(thing, "Python code (a lambda)", "names of functions", "Code in a file is never run."))
        return {str(k): plain(v, thing) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v, thing) for v in value]
    return value


def layer_arguments(cls: type[Layer], config: dict[str, Any], thing: str, source: Source) -> dict[str, Any]:
    """Returns Keras's configuration of a layer as arguments of `cls`."""
    known, kind = cls._argument_names(), cls.__name__
    found: dict[str, Any] = {}
    _check_policy(config.get("dtype"), thing, source)
    for key, value in config.items():
        key = RENAMED.get((kind, key), key)
        if key in known:
            found[key] = _argument(key, value, thing, source)
        elif _is_harmless(key, value):
            continue
        elif key.endswith("_constraint"):
            source.dropped.append(f"{key} of {config.get('name', kind)!r}, which would matter in training")
        else:
            found[key] = value  # the class's own error names it
    if kind == "BatchNormalization" and isinstance(found.get("axis"), list) and len(found["axis"]) == 1:
        found["axis"] = found["axis"][0]
    return found


def _check_policy(policy: Any, thing: str, source: Source) -> None:
    """Refuses quantized layers, whose weights are other than they look, and notes a precision that `compile` chooses here."""
    kind = policy.get("class_name") if isinstance(policy, Mapping) else None
    name = policy.get("config", {}).get("name") if isinstance(policy, Mapping) else policy
    if (isinstance(kind, str) and "Quantized" in kind) or (isinstance(name, str) and name.startswith(("int8", "int4", "float8"))):
        raise ModelFileError(explain(thing, f"the quantized type {shorten(str(name))}", "weights that are floats",
                                     "Save the model in Keras before it is quantized."))
    if isinstance(name, str) and name not in ("float32", "float") and "float" in name:
        source.dropped.append(f"the precision {shorten(name)!r}; compile(precision=…) chooses it here")


def _is_harmless(key: str, value: Any) -> bool:
    if key in IGNORED or key.endswith("_initializer"):
        return True
    if key in NEUTRAL and value == NEUTRAL[key]:
        return True
    return (value is None or value is False) and key not in NEVER_DROPPED


def _argument(key: str, value: Any, thing: str, source: Source) -> Any:
    """Returns one argument: nested objects are made by the role that their key says."""
    if key.endswith("_initializer"):
        return _initializer(value, thing, source)
    if key.endswith(("_regularizer", "_constraint")):
        module = regularizers if key.endswith("_regularizer") else constraints
        return None if value is None else _part(module, value, f"{thing}: {key}", source)
    if key.endswith("activation"):
        return activation_from_keras(value, f"{thing}: {key}", source)
    if key in ("layer", "backward_layer", "cell") and isinstance(value, Mapping):
        return layer_from_keras(value, source)
    if key == "cells" and isinstance(value, list):
        return [layer_from_keras(v, source) for v in value]
    if key == "seed" and isinstance(value, Mapping):
        return value.get("config", {}).get("seed")
    return value


def _initializer(value: Any, thing: str, source: Source) -> Any:
    """Returns an initializer; the weights come from the file, so that an unknown one costs a warning alone."""
    if value is None or (isinstance(value, str) and value in initializers.registry):
        return value
    kind, config = class_and_config(value if isinstance(value, Mapping) else {"class_name": str(value), "config": {}}, thing)
    if kind in source.custom:
        return _of_custom(source.custom[kind], config)
    if kind not in initializers.registry or is_custom(value.get("registered_name") if isinstance(value, Mapping) else None, kind, None):
        source.dropped.append(f"the initializer {shorten(kind)!r}")
        return "zeros"
    cls = initializers.registry.find(kind)
    if isinstance(config.get("seed"), Mapping):
        config["seed"] = config["seed"].get("config", {}).get("seed")
    return cls.from_config({key: v for key, v in config.items() if key in cls._argument_names()})


def _part(module: Any, value: Any, thing: str, source: Source) -> Any:
    """Returns a regularizer or constraint (an object of `module`) from a name or a configuration."""
    if isinstance(value, str):
        return source.custom.get(value) or module.get(value)
    kind, config = class_and_config(value, thing)
    if kind in source.custom:
        return _of_custom(source.custom[kind], config)
    if is_custom(value.get("registered_name"), kind, value.get("module")):
        raise unknown_function(shorten(kind), thing)
    return module.get({"class_name": kind, "config": config})


def _of_custom(entry: Any, config: Mapping[str, Any]) -> Any:
    if not isinstance(entry, type):
        return entry
    make: Callable[..., Any] | None = getattr(entry, "from_config", None)
    return make(dict(config)) if make is not None else entry(**config)


def activation_from_keras(value: Any, thing: str, source: Source) -> Any:
    """Returns an activation's name or function: a name, Keras's mapping of a function, or one of the caller's."""
    name = value
    if isinstance(value, Mapping):
        name = value.get("config") if value.get("class_name") == "function" else value.get("class_name")
        registered = value.get("registered_name")
        if isinstance(registered, str) and registered in source.custom:
            return source.custom[registered]
        if isinstance(value.get("config"), Mapping) and name not in source.custom:
            return _activation_layer(value, thing, source)
        if is_custom(None if registered == "function" else registered, str(name), value.get("module")) and name not in source.custom:
            raise unknown_function(shorten(str(name)), thing)
    if name is None:
        return None
    if isinstance(name, str) and name in source.custom:
        return source.custom[name]
    if isinstance(name, str) and name in activations.registry:
        return name
    raise unknown_function(shorten(str(name)), thing)


def _activation_layer(value: Mapping[str, Any], thing: str, source: Source) -> Any:
    """Returns an activation that was given as a layer, such as `activation=keras.layers.LeakyReLU()`; it must have no weights."""
    layer = layer_from_keras(value, source)
    if len(inspect.signature(type(layer).build).parameters) > 1 and type(layer).build is not Layer.build:
        raise ModelFileError(explain(thing, f"the layer {type(layer).__name__} as activation", "a function or a layer without weights"))
    return layer


def unknown_function(name: str, thing: str) -> ModelFileError:
    """Returns the error for a function or object that only the caller can have."""
    return ModelFileError(explain(thing, f"the unknown {name!r}", "what Convolt has, or yours",
                                  f"Pass it: load_model(path, custom_objects={{{name!r}: it}})."))
