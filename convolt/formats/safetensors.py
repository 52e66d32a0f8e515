"""Convolt's own format: one `.safetensors` file with the weights, and the architecture as JSON in its header.

The file is a plain safetensors file: any tool reads the weights, under PyTorch's names and axes. The header's entry
`convolt` holds the format's version, the class and configuration of the model, how it was compiled, and class names.
Nothing in a file is executed: layers come from the closed registry of `convolt.layers`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from convolt.configurable import to_json
from convolt.errors import ConvoltError, ModelFileError, did_you_mean, explain

FORMAT_VERSION = 1
MAX_HEADER_BYTES = 100 * 2**20  # safetensors' own limit


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


def load_model(filepath: str | Path, custom_objects: Mapping[str, Any] | None = None, compile: bool = True, device: Any = "auto") -> Any:
    """Reads a model that `save_model` wrote.

    Args:
        filepath: the file.
        custom_objects: your own classes by name: layers, models, losses.
        compile: whether to compile it as it was when saved.
        device: where it goes.

    Raises:
        ModelFileError: the file is damaged or foreign, needs an unknown class, or comes from a newer Convolt.
    """
    from convolt import devices

    path = Path(filepath)
    tensors, metadata = read(path)
    info = _model_info(path, metadata)
    model = _make(path, info["model"], dict(custom_objects or {}))
    _fill(model, tensors, path)
    model.class_names = info.get("class_names")
    model.to(devices.resolve(device))
    model.eval()
    if compile and info.get("compile"):
        try:
            model.compile(**info["compile"], device=device)
        except ConvoltError as error:
            raise ModelFileError(explain(f"{path}: compile", str(error), "known losses, metrics and optimizers",
                                         "Load it with compile=False and compile it yourself.")) from error
    return model


def load_weights(model: Any, filepath: str | Path) -> None:
    """Reads weights into a model.

    Raises:
        ModelFileError: names or shapes do not fit; the message lists what is missing, unknown or misshaped.
    """
    path = Path(filepath)
    _fill(model, read(path)[0], path)


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

    header, values = _in_fixed_order(save(dict(tensors), metadata))
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(header)
            file.write(values)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns (tensors, metadata) of a safetensors file.

    Raises:
        ModelFileError: there is no such file, or it is damaged or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.safetensors")]) if path.parent.is_dir() else ""
        raise ModelFileError(explain(str(path), "no such file", "a .safetensors file", near if near != "Known: ." else ""))
    if path.suffix != ".safetensors":
        raise ModelFileError(explain(str(path), f"the suffix {path.suffix!r}", "'.safetensors'"))
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise ModelFileError(explain(str(path), f"a file that safetensors cannot read ({error})", "a whole .safetensors file")) from error


def _model_info(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Returns the header's entry `convolt` after checking it."""
    if "convolt" not in metadata:
        raise ModelFileError(explain(str(path), "weights without an architecture", "a file that model.save wrote",
                                     "Build the model in code and call model.load_weights(path)."))
    try:
        info = json.loads(metadata["convolt"])
        version = info["format"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        got = f"a damaged header ({type(error).__name__}: {error})"
        raise ModelFileError(explain(str(path), got, "JSON with a format number")) from error
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ModelFileError(explain(str(path), f"format {version!r}", f"at most {FORMAT_VERSION}", "Update convolt to read it."))
    if not isinstance(info.get("model"), dict):
        raise ModelFileError(explain(str(path), "a header without a model", "an entry `model`"))
    return dict(info)


def _make(path: Path, description: Mapping[str, Any], custom: Mapping[str, Any]) -> Any:
    """Makes the model from its description, with the user's own classes beside the registry's."""
    from convolt.layers import registry
    from convolt.models import Model

    name = str(description.get("class_name"))
    try:
        with registry.extended(custom):
            cls = custom[name] if name in custom else registry.find(name)
            model = cls.from_config(description["config"])
            if not isinstance(model, Model):
                raise ModelFileError(explain(str(path), f"a {name}", "a model"))
            if not all_built(model) and description.get("build_shapes"):
                model.build(*[tuple(shape) for shape in description["build_shapes"]])
    except ModelFileError:
        raise
    except (ConvoltError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        fix = "Pass your own classes: load_model(path, custom_objects={'Name': Class})."
        got = f"{type(error).__name__}: {error}"
        raise ModelFileError(explain(f"{path}: architecture", got, "layers that Convolt knows", fix)) from error
    return model


def all_built(model: Any) -> bool:
    """Whether every layer of the model has its parameters."""
    return all(getattr(module, "built", True) for module in model.modules())


def _fill(model: Any, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copies tensors into the model's weights, after checking that all names and shapes fit."""
    if not all_built(model):
        raise ModelFileError(explain(f"{path}: weights", f"the model {model.name!r}, which is not built", "a built model",
                                     "Call model.build((None, height, width, channels)) first."))
    own = model.state_dict()
    shared = set(own) - set(_tensors(model))
    missing = [name for name in own if name not in tensors and name not in shared]
    unknown = [name for name in tensors if name not in own]
    if missing or unknown:
        hint = did_you_mean(missing[0], unknown) if missing and unknown else ""
        raise ModelFileError(explain(f"{path}: weights", f"missing {_few(missing)}, unknown {_few(unknown)}",
                                     f"exactly the {len(own)} weights of {model.name!r}", hint))
    for name, value in tensors.items():
        if value.shape != own[name].shape or value.dtype != own[name].dtype:
            expected = f"{tuple(own[name].shape)} {own[name].dtype}"
            raise ModelFileError(explain(f"{path}: {name}", f"{tuple(value.shape)} {value.dtype}", expected))
        if value.is_floating_point() and not value.isfinite().all():
            raise ModelFileError(explain(f"{path}: {name}", "values that are NaN or infinite", "finite weights"))
    model.load_state_dict(dict(tensors), strict=not shared)


def _few(names: list[str], most: int = 5) -> str:
    return "nothing" if not names else ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
