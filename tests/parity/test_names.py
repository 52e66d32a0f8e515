"""Every public name of Keras is there, or says by its name that it is missing."""

import importlib
import types

import pytest

import convolt
from convolt import missing
from convolt.errors import ConvoltError, MissingFeatureError, MissingImportError

MODULES = list(missing.KERAS_NAMES)


def public_names(module: types.ModuleType) -> set[str]:
    return {name for name in dir(module) if not name.startswith("_")}


def pair(keras: types.ModuleType, module: str) -> tuple[types.ModuleType, types.ModuleType]:
    """Returns the module at this path of Keras and of Convolt."""
    suffix = f".{module}" if module else ""
    return importlib.import_module(f"keras{suffix}"), importlib.import_module(f"convolt{suffix}")


@pytest.mark.parametrize("module", MODULES)
def test_a_name_of_keras_is_there_or_says_that_it_is_missing(keras, module: str) -> None:
    theirs, ours = pair(keras, module)
    for name in public_names(theirs):
        if hasattr(ours, name):
            continue
        with pytest.raises(MissingFeatureError) as access:
            getattr(ours, name)
        with pytest.raises(MissingImportError) as on_import:
            exec(f"from {ours.__name__} import {name}")
        assert str(access.value) == str(on_import.value)
        assert f"{ours.__name__}: got the" in str(access.value) and f"name {name!r}" in str(access.value)


@pytest.mark.parametrize("module", MODULES)
def test_the_list_is_that_of_keras(keras, module: str) -> None:
    if not keras.__version__.startswith(f"{missing.KERAS_VERSION}."):
        pytest.skip(f"the list is that of Keras {missing.KERAS_VERSION}, installed is {keras.__version__}")
    assert public_names(pair(keras, module)[0]) == missing.KERAS_NAMES[module]


@pytest.mark.parametrize("module", MODULES)
def test_what_is_exported_exists(module: str) -> None:
    ours = importlib.import_module(f"convolt.{module}" if module else "convolt")
    for name in getattr(ours, "__all__", []):
        assert hasattr(ours, name), f"{ours.__name__}.__all__ has {name!r}"


def test_the_message_says_what_to_do() -> None:
    with pytest.raises(MissingFeatureError, match=r"'StringLookup', which Keras has and Convolt does not .* subclass of convolt\.Layer"):
        _ = convolt.layers.StringLookup
    with pytest.raises(MissingFeatureError, match=r"'ops', which Keras has .* use torch"):
        _ = convolt.ops
    with pytest.raises(MissingImportError, match=r"'StringLookup', which Keras has .* subclass of convolt\.Layer"):
        from convolt.layers import StringLookup  # noqa: F401


def test_layers_that_augment_say_which_transform_does() -> None:
    from convolt.data.augment import registry

    for name in sorted(set(registry) & missing.KERAS_NAMES["layers"]):
        with pytest.raises(MissingFeatureError, match=rf"fit\(augment=\[…\]\), with convolt\.data\.augment\.{name}\."):
            getattr(convolt.layers, name)


def test_a_misspelt_name_gets_the_nearest() -> None:
    with pytest.raises(MissingImportError, match=r"unknown name 'Conv2d'.*Did you mean 'Conv2D'"):
        from convolt.layers import Conv2d  # noqa: F401
    with pytest.raises(MissingFeatureError, match="Did you mean 'glorot_uniform'"):
        _ = convolt.initializers.glorot_unifrom
    with pytest.raises(MissingFeatureError, match="Did you mean 'Sequential'"):
        _ = convolt.Sequental


def test_hasattr_and_getattr_see_a_missing_attribute() -> None:
    assert not hasattr(convolt.layers, "StringLookup") and not hasattr(convolt, "ops")
    assert getattr(convolt.utils, "plot_model", None) is None
    with pytest.raises(AttributeError, match="__wrapped__"):
        _ = convolt.layers.__wrapped__


def test_an_import_that_is_tried_falls_back() -> None:
    try:
        from convolt.layers import StringLookup
    except ImportError as error:
        StringLookup = None
        assert isinstance(error, ConvoltError)
    assert StringLookup is None


def test_an_import_far_down_a_long_file_is_told_from_an_access() -> None:
    """More than 256 names need an instruction with an extended argument."""
    many = "\n".join(f"name_{i} = {i}" for i in range(300))
    with pytest.raises(MissingImportError, match="'StringLookup'"):
        exec(f"{many}\nfrom convolt.layers import StringLookup")
    with pytest.raises(MissingFeatureError, match="'StringLookup'"):
        exec(f"{many}\nfrom convolt import layers\nlayers.StringLookup")


def test_parts_of_the_package_are_still_imported() -> None:
    from convolt import configurable
    from convolt.losses import shapes

    assert isinstance(configurable, types.ModuleType) and isinstance(shapes, types.ModuleType)
