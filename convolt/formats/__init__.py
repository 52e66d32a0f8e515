"""Files of models: reading and writing, without pickle. What a file is, its content says; what is written, the suffix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convolt.errors import ArgumentError, ModelFileError, did_you_mean, explain
from convolt.formats import safetensors
from convolt.formats.guard import expect_kind

KERAS_SUFFIXES = (".h5", ".hdf5", ".keras")
SUFFIXES = (".safetensors", *KERAS_SUFFIXES)

__all__ = ["KERAS_SUFFIXES", "SUFFIXES", "load_model", "load_weights", "save_model", "save_weights"]


def save_model(model: Any, filepath: str | Path, *, overwrite: bool = True) -> None:
    """Writes a model: architecture, weights, how it was compiled, class names.

    Args:
        model: any Convolt model; Keras files take `Sequential` and functional ones.
        filepath: `.safetensors` for Convolt's own format, `.keras` for Keras 3, `.h5` for Keras 3 and Keras 2.
        overwrite: whether a file that exists is replaced.

    Raises:
        ModelFileError: the model cannot be written so, the suffix is another, or the file exists and `overwrite` is False.
    """
    from convolt.formats import keras_archive, keras_h5

    _check_suffix("save", filepath, SUFFIXES)
    if str(filepath).endswith(".weights.h5"):
        raise ModelFileError(explain(f"save({str(filepath)!r})", "the suffix '.weights.h5'", "the suffix of a whole model, such as '.h5'",
                                     "model.save_weights writes weights alone."))
    module: Any = {".safetensors": safetensors, ".keras": keras_archive}.get(Path(filepath).suffix, keras_h5)
    module.save_model(model, filepath, overwrite=overwrite)


def save_weights(model: Any, filepath: str | Path, *, overwrite: bool = True) -> None:
    """Writes the weights alone.

    Args:
        model: any Convolt model.
        filepath: `.safetensors` for any tool (PyTorch's names and axes), `.weights.h5` for Keras 3, `.h5` for Keras's older layout.
        overwrite: whether a file that exists is replaced.
    """
    from convolt.formats import keras_h5

    _check_suffix("save_weights", filepath, (".safetensors", ".h5", ".hdf5"))
    module: Any = safetensors if Path(filepath).suffix == ".safetensors" else keras_h5
    module.save_weights(model, filepath, overwrite=overwrite)


def load_model(filepath: str | Path, custom_objects: Mapping[str, Any] | None = None, compile: bool = True, device: Any = "auto",
               **options: Any) -> Any:
    """Reads a model from a file of Convolt (`.safetensors`) or Keras (`.h5`, `.keras`), whatever its name.

    Args:
        filepath: the file.
        custom_objects: your own classes and functions by name: layers, models, losses.
        compile: whether to compile it as it was when saved.
        device: where it goes.
        **options: `limits` of `convolt.formats.guard`, and what the reader of the format takes beside.

    Raises:
        ModelFileError: the file is damaged or foreign, needs an unknown class, or comes from a newer version.
    """
    from convolt.formats import keras_archive, keras_h5

    kind = expect_kind(filepath, "safetensors", "hdf5", "keras").name
    module: Any = {"safetensors": safetensors, "hdf5": keras_h5, "keras": keras_archive}[kind]
    return module.load_model(filepath, custom_objects, compile, device, **options)


def load_weights(model: Any, filepath: str | Path, *, by_name: bool = False, skip_mismatch: bool = False, **options: Any) -> None:
    """Reads weights into a model, from any of these files or from a PyTorch state dict in a `.safetensors` file.

    Args:
        model: with its parameters made.
        filepath: the file.
        by_name: for legacy `.h5` files: take the layers whose names are equal, rather than all in their order.
        skip_mismatch: for Keras's files: leave out, with a warning, what has another shape.
        **options: what the reader of the format takes beside.

    Raises:
        ModelFileError: names or shapes do not fit; the message lists what is missing, unknown or misshaped.
    """
    from convolt.formats import keras_archive, keras_h5, torch_state

    kind = expect_kind(filepath, "safetensors", "hdf5", "keras").name
    if kind == "hdf5":
        keras_h5.load_weights(model, filepath, by_name=by_name, skip_mismatch=skip_mismatch, **options)
        return
    if by_name or (skip_mismatch and kind == "safetensors"):
        option = "by_name" if by_name else "skip_mismatch"
        raise ArgumentError(explain(f"load_weights({option}=True)", f"a {kind} file", "a Keras .h5 file", f"Leave {option} out."))
    if kind == "keras":
        keras_archive.load_weights(model, filepath, skip_mismatch=skip_mismatch, **options)
    else:
        safetensors.load_weights(torch_state.owner_of(model, filepath), filepath, **options)


def _check_suffix(what: str, filepath: str | Path, suffixes: tuple[str, ...]) -> None:
    suffix = Path(filepath).suffix
    if suffix not in suffixes:
        near = did_you_mean(suffix, suffixes)
        raise ModelFileError(explain(f"{what}({str(filepath)!r})", f"the suffix {suffix!r}", f"one of {', '.join(map(repr, suffixes))}",
                                     near if near.startswith("Did") else ""))
