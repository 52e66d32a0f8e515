"""What decides the result of a training, as names and values, and in what two trainings differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convolt.configurable import Configurable, to_json
from convolt.data.batch_spec import BatchSpec, spec_of
from convolt.errors import ArgumentError, CheckpointError, ConvoltError, did_you_mean, explain

DIGEST_BYTES = 64 * 2**20
"""Of an array that are looked at, in 64 pieces spread over it where it is larger."""

_ALWAYS = ("epochs", "callbacks", "length of schedule", "threads")


def model_settings(model: torch.nn.Module) -> dict[str, Any]:
    """Returns the architecture: class and configuration of each layer, and shape and type of each weight, by name."""
    found = {f"model.{name}" if name else "model": _layer(module) for name, module in model.named_modules()}
    for name, parameter in model.named_parameters():
        frozen = "" if parameter.requires_grad else ", frozen"
        found[f"model.{name}"] = f"{tuple(parameter.shape)} {parameter.dtype}{frozen}"
    return found


def _layer(module: torch.nn.Module) -> str:
    kind = type(module).__name__
    if next(module.children(), None) is not None:
        return kind
    try:
        config = module.get_config() if isinstance(module, Configurable) else None
    except ConvoltError:  # an argument that JSON cannot hold
        config = None
    return f"{kind}({module.extra_repr()})" if config is None else f"{kind} {json.dumps(config, sort_keys=True)}"


def data_settings(x: Any, y: Any, sample_weight: Any, validation_data: Any) -> dict[str, Any]:
    """Returns what tells the data of a training from other data."""
    data = {"data": x, "labels": y, "sample_weight": sample_weight, "validation_data": validation_data}
    return {name: fingerprint(value) for name, value in data.items()}


def optimizer_settings(optimizer: Any) -> dict[str, Any]:
    """Returns class and configuration of an optimizer, an entry for each argument."""
    found = {"optimizer": type(optimizer).__name__}
    return found | {f"optimizer.{name}": value for name, value in plain(optimizer.get_config()).items() if name != "name"}


def plain(value: Any) -> Any:
    """Returns a value as JSON; what JSON cannot hold is named by its type."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    try:
        return to_json(value)
    except ConvoltError:
        return type(value).__name__


def fingerprint(data: Any) -> Any:
    """Returns what tells data from other data: shape, type and checksum of arrays, kind and length of what gives batches."""
    if data is None or isinstance(data, (bool, int, float, str)):
        return data
    if isinstance(data, Mapping):
        return {str(key): fingerprint(entry) for key, entry in data.items()}
    if isinstance(data, (list, tuple)):
        return _numbers(data) if len(data) > 8 else [fingerprint(entry) for entry in data]
    if isinstance(data, (np.ndarray, Tensor)) or hasattr(data, "__array__"):
        return _numbers(data)
    if callable(own := getattr(data, "fingerprint", None)):  # pictures, which tell themselves apart without being read
        return own()
    if (spec := spec_of(data)) is not None:
        return _spec(type(data).__name__, spec)
    dataset = getattr(data, "dataset", None)
    found: dict[str, Any] = {"kind": type(data).__name__, "length": len(data) if hasattr(data, "__len__") else None}
    if dataset is not None:
        found |= {"dataset": fingerprint(dataset), "batch_size": getattr(data, "batch_size", None)}
    return found


def _spec(kind: str, spec: BatchSpec) -> dict[str, Any]:
    augment = None if spec.augmentation is None else plain(spec.augmentation.get_config())
    return {"kind": kind, "samples": fingerprint(spec.x), "labels": fingerprint(spec.y), "weights": fingerprint(spec.weights),
            "reconstructs": spec.reconstructs, "batch_size": spec.batch_size, "shuffle": spec.shuffle, "seed": spec.seed,
            "augment": augment}


def _numbers(data: Any) -> str:
    try:
        array = data.detach() if isinstance(data, Tensor) else np.asarray(data)
    except ValueError:  # lists of unequal length
        return f"{type(data).__name__} of {len(data)}"
    if array.dtype == object:
        return f"{type(data).__name__} of {len(data)}"
    return f"{tuple(array.shape)} {str(array.dtype).removeprefix('torch.')} {_digest(array)}"


def _digest(array: Any) -> str:
    """Returns the start of a SHA-256 over an array's values, or over pieces of it where it is large."""
    total = hashlib.sha256()
    size = array.nbytes
    if size <= DIGEST_BYTES or array.ndim == 0:
        pieces = [array]
    else:
        rows = max(1, int(len(array) * DIGEST_BYTES / size) // 64)
        pieces = [array[start : start + rows] for start in np.linspace(0, len(array) - rows, 64).astype(int)]
    for piece in pieces:
        if isinstance(piece, Tensor):
            piece = piece.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        total.update(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
    return total.hexdigest()[:16]


def differences(before: Mapping[str, Any], now: Mapping[str, Any], allowed: Sequence[str]) -> list[str]:
    """Returns a line for each setting that differs and is not allowed to.

    Args:
        before: settings of the checkpoint.
        now: settings of this call.
        allowed: full names ("optimizer.beta_1") or any part of them ("learning_rate", "model").

    Raises:
        ArgumentError: there is no setting of an allowed name.
    """
    before, now = dict(_flat(before)), dict(_flat(now))
    names = list(dict.fromkeys([*before, *now]))
    known = {part for name in (*names, *_ALWAYS) for part in _parts(name)}
    for name in allowed:
        if name not in known:
            usual = {"model", *_ALWAYS, *(part for n in names if not n.startswith("model.") for part in n.split("."))} - {"config"}
            raise ArgumentError(explain("resume_allow", repr(name), "names of settings", did_you_mean(name, usual)))
    free = set(allowed)
    return [f"{name}: {_short(before.get(name))} → {_short(now.get(name))}" for name in names
            if before.get(name) != now.get(name) and not free & _parts(name)]


def _parts(name: str) -> set[str]:
    return {name, *name.split(".")}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields settings with those inside of others as "optimizer.learning_rate.config.alpha"."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def require_same(path: Any, before: Mapping[str, Any], now: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Raises `CheckpointError` with a list of what differs, unless it is allowed to."""
    changed = differences(before, now, allowed)
    if changed:
        listed = "".join(f"\n    {line}" for line in changed[:12]) + (f"\n    and {len(changed) - 12} more" if len(changed) > 12 else "")
        short = changed[0].partition(":")[0].removesuffix(".config.initial_learning_rate").split(".")[-1]
        short = "epochs" if short == "length of schedule" else short
        raise CheckpointError(f"{path}: this training is not the one that was saved. Before → now:{listed}\n"
                              f"Use the settings from before; or allow a change by its name (resume_allow=[{short!r}], --allow-change "
                              f"{short}), and the result is that of neither training; or start anew (resume=False, --resume never).")


def _short(value: Any, most: int = 160) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"
