"""Convolt's own format: one `.safetensors` file with the weights, and the architecture as JSON in its header.

The file is a plain safetensors file: any tool reads the weights, under PyTorch's names and axes. The header's entry
`convolt` holds the format's version, the class and configuration of the model, how it was compiled, and class names.
Nothing in a file is executed: layers come from the closed registry of `convolt.layers`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from convolt.configurable import to_json
from convolt.errors import ModelFileError, did_you_mean, explain
from convolt.formats import architecture
from convolt.formats.architecture import all_built
from convolt.formats.guard import LIMITS, Limits, few, read_json, shorten
from convolt.formats.header import Entry, Header, read_header
from convolt.formats.target import write_whole

FORMAT_VERSION = 1


def save_model(model: Any, filepath: str | Path, *, overwrite: bool = True) -> None:
    """Writes a model: architecture, weights, how it was compiled, class names.

    Raises:
        ModelFileError: the architecture cannot be written, the suffix is another, or the file exists and `overwrite` is False.
    """
    path = _target(filepath, overwrite)
    info = {"format": FORMAT_VERSION, "model": describe(model), "compile": _compile_config(model), "class_names": model.class_names}
    _write(path, _tensors(model), {"convolt": json.dumps(info, allow_nan=False), "format": "pt"})


def save_weights(model: Any, filepath: str | Path, *, overwrite: bool = True) -> None:
    """Writes the weights alone."""
    _write(_target(filepath, overwrite), _tensors(model), {"format": "pt"})


def load_model(filepath: str | Path, custom_objects: Mapping[str, Any] | None = None, compile: bool = True, device: Any = "auto", *,
               allow_nonfinite: Collection[str] = (), limits: Limits = LIMITS) -> Any:
    """Reads a model that `save_model` wrote.

    What the architecture means is compared with what the file holds before a weight exists, so that no description of a few bytes
    makes a model that fills the memory.

    Args:
        filepath: the file.
        custom_objects: your own classes by name: layers, models, losses.
        compile: whether to compile it as it was when saved.
        device: where it goes.
        allow_nonfinite: names of weights that may hold NaN or infinite values.
        limits: the most that the file may hold.

    Raises:
        ModelFileError: the file is damaged or foreign, needs an unknown class, or comes from a newer Convolt.
    """
    from convolt import devices

    path, custom = Path(filepath), dict(custom_objects or {})
    header = read_header(path, limits)
    info = model_info(path, header.metadata, limits)
    architecture.check(str(path), info["model"])
    compare_outline(path, info["model"], custom, header)
    model = architecture.make(str(path), info["model"], custom)
    _fill(model, _read_tensors(path), path, allow_nonfinite)
    model.class_names = info.get("class_names")
    model.to(devices.resolve(device))
    model.eval()
    if compile and info.get("compile"):
        compile_as_saved(path, model, info["compile"], device)
    return model


def compile_as_saved(path: Path, model: Any, config: Any, device: Any) -> None:
    """Compiles a model as its file says.

    Raises:
        ModelFileError: a loss, metric or optimizer is unknown, an argument is impossible, or a metric would fill the memory.
    """
    architecture.check_compile(str(path), config)
    try:
        model.compile(**config, device=device)
    except Exception as error:
        raise ModelFileError(architecture.refusal(f"{path}: compile", error, "losses, metrics and optimizers with their arguments",
                                                  "Load it with compile=False and compile it yourself.")) from error


def load_weights(model: Any, filepath: str | Path, *, allow_nonfinite: Collection[str] = (), limits: Limits = LIMITS) -> None:
    """Reads weights into a model.

    Args:
        model: with its parameters made.
        filepath: of a file that `save_weights` or any other tool wrote.
        allow_nonfinite: names of weights that may hold NaN or infinite values.
        limits: the most that the file may hold.

    Raises:
        ModelFileError: the file is damaged; names, shapes or types do not fit (the message lists what is missing, unknown or
            misshaped); or values are not finite.
    """
    path = Path(filepath)
    if not all_built(model):
        raise ModelFileError(_not_built(model, path))
    _compare(path, model, read_header(path, limits).tensors, views=True)
    _fill(model, _read_tensors(path), path, allow_nonfinite)


def describe(model: Any) -> dict[str, Any]:
    """Returns class and configuration of a model as JSON.

    A subclass that has no configuration of its own but consists of layer calls alone is written as its graph.
    """
    config = model.get_config()
    json.dumps(config, allow_nan=False)
    return {"class_name": type(model).__name__, "config": config, "build_shapes": to_json(list(model.build_shapes))}


def _compile_config(model: Any) -> dict[str, Any] | None:
    trainer = getattr(model, "_trainer", None)
    if trainer is None:
        return None
    config = {"optimizer": trainer.optimizer, **trainer.spec, "precision": trainer.precision}
    return {key: to_json(value) for key, value in config.items()}


def _tensors(model: Any) -> dict[str, Tensor]:
    """Returns the state dict with contiguous tensors on the CPU; a tensor under two names is written under the first."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        found[name] = tensor.detach().cpu().contiguous()
    return found


def _target(filepath: str | Path, overwrite: bool) -> Path:
    path = Path(filepath)
    if path.suffix != ".safetensors":
        raise ModelFileError(explain(f"save({str(filepath)!r})", f"the suffix {path.suffix!r}", "'.safetensors'",
                                     f"Try {path.with_suffix('.safetensors').name!r}."))
    if path.exists() and not overwrite:
        raise ModelFileError(explain(str(path), "a file that exists", "a new name", "Pass overwrite=True to replace it."))
    if not path.parent.is_dir():
        raise ModelFileError(explain(str(path), f"the folder {str(path.parent)!r}, which does not exist", "a folder that exists"))
    return path


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes beside the target, flushes to the disk and renames, so that the target is always whole."""
    from safetensors.torch import save

    write_whole(path, *_in_fixed_order(save(dict(tensors), metadata)))


def _in_fixed_order(data: bytes) -> tuple[bytes, memoryview]:
    """Returns (header, values) of a safetensors file with its metadata sorted, so that equal models give equal files.

    The library keeps metadata in a hash map, whose order changes from one run to the next.
    """
    size = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + size])
    entries["__metadata__"] = dict(sorted(entries["__metadata__"].items()))
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, memoryview(data)[8 + size :]


def read(path: Path, limits: Limits = LIMITS) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns (tensors, metadata) of a safetensors file, after checking its header.

    Raises:
        ModelFileError: there is no such file, or it is damaged or of another kind.
    """
    metadata = read_header(path, limits).metadata
    return _read_tensors(path), metadata


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: a name that the library cannot hand to Python
        raise ModelFileError(explain(str(path), f"a file that safetensors cannot read ({shorten(str(error), 200)})",
                                     "a whole .safetensors file")) from error


def model_info(path: Path, metadata: Mapping[str, str], limits: Limits = LIMITS) -> dict[str, Any]:
    """Returns the header's entry `convolt` after checking it.

    Raises:
        ModelFileError: there is none, it is damaged, or of a newer format.
    """
    if "convolt" not in metadata:
        raise ModelFileError(explain(str(path), "weights without an architecture", "a file that model.save wrote",
                                     "Build the model in code and call model.load_weights(path)."))
    info = read_json(f"{path}: header: convolt", metadata["convolt"], limits)
    version = info.get("format") if isinstance(info, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ModelFileError(explain(f"{path}: header: convolt", f"format {shorten(repr(version))}", "a whole number from 1"))
    if version > FORMAT_VERSION:
        raise ModelFileError(explain(str(path), f"format {version}", f"at most {FORMAT_VERSION}", "Update convolt to read it."))
    if not isinstance(info.get("model"), dict):
        raise ModelFileError(explain(str(path), "a header without a model", "an entry `model`"))
    names = info.get("class_names")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ModelFileError(explain(f"{path}: class_names", f"a {type(names).__name__}", "a list of names"))
    return dict(info)


# -- what fits ---------------------------------------------------------------------------------------------------------


def compare_outline(path: Path, description: Mapping[str, Any], custom: Mapping[str, Any], header: Header) -> Any:
    """Makes the model without memory, compares its weights with those of the file, and returns it.

    None is returned where the user's own classes cannot be made without memory.
    """
    try:
        outline = architecture.make(str(path), description, custom, values=False)
    except ModelFileError:
        if custom:  # the user's own code may need values; it is trusted
            return None
        raise
    if not all_built(outline):
        raise ModelFileError(_not_built(outline, path))
    _compare(path, outline, header.tensors, views=bool(custom))
    return outline


def _not_built(model: Any, path: Path) -> str:
    return explain(f"{path}: weights", f"the model {model.name!r}, which is not built", "a built model",
                   "Call model.build((None, height, width, channels)) first.")


def _compare(path: Path, model: Any, entries: Mapping[str, Entry], views: bool = False) -> None:
    """Refuses a file whose tensors are not the model's, by name, shape and type; a tensor under two names may be there once.

    Args:
        path: the file.
        model: may be on the meta device.
        entries: what the file holds.
        views: whether weights may be views of one another, which only real tensors can tell; then none is missed here.
    """
    own = model.state_dict(keep_vars=True)
    there = {id(own[name]) for name in entries if name in own}
    missing = [] if views else [name for name, tensor in own.items() if id(tensor) not in there]
    _check_names(path, model, own, missing, entries)
    for name, entry in entries.items():
        shape, dtype = tuple(own[name].shape), str(own[name].dtype).removeprefix("torch.")
        if entry.shape != shape or entry.dtype != dtype:
            raise ModelFileError(explain(f"{path}: {name}", f"{entry.shape} {entry.dtype}", f"{shape} {dtype}"))


def _check_names(path: Path, model: Any, own: Collection[str], missing: list[str], there: Collection[str]) -> None:
    unknown = [name for name in there if name not in own]
    if missing or unknown:
        hint = did_you_mean(missing[0], unknown) if missing and unknown else did_you_mean(unknown[0], own) if unknown and own else ""
        raise ModelFileError(explain(f"{path}: weights", f"missing {few(missing)}, unknown {few(unknown)}",
                                     f"exactly the {len(own)} weights of {model.name!r}", "" if hint.startswith("Known") else hint))


def _fill(model: Any, tensors: Mapping[str, Tensor], path: Path, allow_nonfinite: Collection[str] = ()) -> None:
    """Copies tensors into the model's weights, after checking that all fit and are finite."""
    if not all_built(model):
        raise ModelFileError(_not_built(model, path))
    own = model.state_dict()
    shared = set(own) - set(_tensors(model))
    _check_names(path, model, own, [name for name in own if name not in tensors and name not in shared], tensors)
    for name, value in tensors.items():
        if value.shape != own[name].shape or value.dtype != own[name].dtype:
            expected = f"{tuple(own[name].shape)} {own[name].dtype}"
            raise ModelFileError(explain(f"{path}: {name}", f"{tuple(value.shape)} {value.dtype}", expected))
        if name not in allow_nonfinite and value.is_floating_point() and not value.isfinite().all():
            raise ModelFileError(explain(f"{path}: {name}", "values that are NaN or infinite", "finite weights",
                                         f"If they are meant so: convolt.formats.load_model(path, allow_nonfinite=[{name!r}])."))
    model.load_state_dict(dict(tensors), strict=not shared)
