"""Keras's files of weights, written by Keras itself, into every architecture that `keras.applications` has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from convolt import Model, applications
from tests.parity.applications import Case, network_of_keras
from tests.parity.test_applications import CASES, CLASSES, assert_close, make, outputs, pictures, settle, stirred

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own, with NumPy 2

KERAS = [case for case in CASES if case.keras]
QUICK = ("ConvNeXtTiny", "EfficientNetB0", "MobileNet", "MobileNetV2", "MobileNetV3Small")
"""Written and read in every run; the others in the slow tests."""


def test_every_architecture_of_keras_is_here(keras: Any) -> None:
    theirs = [name for name in dir(keras.applications) if name[0].isupper()]
    assert sorted(case.keras for case in KERAS) == sorted(theirs)


def published(theirs: Any, path: Path) -> None:
    """Writes weights in the layout of the files that Keras publishes, `*_tf_dim_ordering_tf_kernels.h5`, with its own function for it."""
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, theirs)


def filled(keras: Any, case: Case, **options: Any) -> tuple[Any, Model]:
    """Returns Keras's network with weights that tell layers apart, and ours with equal ones, which were given array by array."""
    theirs = network_of_keras(keras, case, weights=None, input_shape=(case.side, case.side, 3), **case.arguments, **options)
    ours = make(case, **options)
    own = {layer.name: layer for layer in ours.layers if layer.get_weights()}
    others = {layer.name: layer for layer in theirs.layers if layer.weights}
    assert sorted(own) == sorted(others)
    for name, layer in others.items():
        values = [stirred(variable.path, variable.shape, keras=True) for variable in layer.weights]
        own[name].set_weights([(variable.value.detach() if value is None else value).numpy()
                               for value, variable in zip(values, layer.weights, strict=True)])
    settle(ours, pictures(case, 3))
    for name, layer in others.items():
        layer.set_weights(own[name].get_weights())
    return theirs, ours


def shown(quick: Sequence[str]) -> Any:
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.keras, marks=[] if case.keras in quick else [pytest.mark.slow])
                                            for case in KERAS])


@shown(QUICK)
def test_files_of_keras_give_the_network_that_wrote_them(keras: Any, case: Case, tmp_path: Path) -> None:
    options = {"classes": CLASSES, "classifier_activation": None}
    theirs, ours = filled(keras, case, **options)
    theirs.save_weights(tmp_path / "x.weights.h5")
    published(theirs, tmp_path / "x_weights_tf_dim_ordering_tf_kernels.h5")
    x = pictures(case, 3)
    with torch.no_grad():
        expected = theirs(x, training=False).numpy()
    for way in ("x.weights.h5", "x_weights_tf_dim_ordering_tf_kernels.h5", "by name"):
        if way == "by name":
            again = make(case, **options).load_weights(tmp_path / "x_weights_tf_dim_ordering_tf_kernels.h5", by_name=True)
        else:
            again = make(case, **options, weights=str(tmp_path / way))
        for (name, value), other in zip(ours.state_dict().items(), again.state_dict().values(), strict=True):
            assert torch.equal(value, other), f"{way}: {name}"
        assert_close(outputs(again, x), expected, case.tolerance)


@pytest.mark.filterwarnings("ignore:`input_shape` is undefined:UserWarning")
@shown([name for name in QUICK if name.startswith("Mobile")])
def test_imagenet_means_the_files_that_keras_asks_for(keras: Any, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class AskedError(Exception):
        pass

    def get_file(name: str, *args: Any, **kwargs: Any) -> None:
        raise AskedError(name)

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    monkeypatch.setenv("CONVOLT_WEIGHTS", str(tmp_path))
    entry = applications.get(case.name)
    small = {"input_shape": (128, 128, 3)} if case.keras in ("MobileNet", "MobileNetV2") else {}
    others: list[dict[str, Any]] = [{"alpha": 0.75, **small}] if "alpha" in entry.options else []
    others += [{"minimalistic": True}] if "minimalistic" in entry.options else []
    for options in ({}, {"include_top": False}, *others):
        with pytest.raises(AskedError) as asked:
            network_of_keras(keras, case, weights="imagenet", **options)
        (tmp_path / str(asked.value)).touch()
        sides = options.get("input_shape", (entry.size, entry.size, 3))[:2]
        assert entry.find("imagenet", options, sides).name == str(asked.value)
