"""Which earlier run `convolt train` goes on with. Nothing here imports PyTorch."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from convolt.cli import say
from convolt.cli.model_options import FLAG, parse
from convolt.errors import ArgumentError, explain

if TYPE_CHECKING:
    from convolt.cli.train import TrainOptions

AUTO, NEVER = "auto", "never"
_MOST = 1 << 24  # bytes of a config.json
_FREE = {"epochs", "name", "runs", "verbose", "checkpoint_every", "gpustat"}
"""Options in which a run may differ from one that it goes on with; `epochs` is looked at by fit."""

_EVERY = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h)|(\d+)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_every(value: str) -> tuple[int | None, float | None]:
    """Returns (steps, seconds), one of them None, from "500" (steps), "30s", "5m" or "1h".

    Raises:
        BadParameter: the text is none of these.
    """
    match = _EVERY.fullmatch(value.strip().lower())
    if match is None or not float(match[1] or match[3]):
        raise typer.BadParameter(f"{value!r} is neither a time nor a number of steps. Write 30s, 5m, or 500 for steps.")
    return (int(match[3]), None) if match[3] else (None, float(match[1]) * _SECONDS[match[2]])


def check_every(value: str) -> str:
    """Returns the text of an interval that `parse_every` understands."""
    parse_every(value)
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the `config.json` of a run folder.

    Raises:
        ArgumentError: there is none, or it is damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ArgumentError(explain("--resume", repr(str(folder)), "a run folder, which has a config.json",
                                    "Run folders lie in runs unless --runs says otherwise."))
    try:
        if path.stat().st_size > _MOST:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config["options"], dict):
            raise TypeError("options that are no mapping")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ArgumentError(explain(str(path), f"{type(error).__name__}: {error}", "what `convolt train` writes")) from error
    return dict(config)


def model_options(config: dict[str, Any], given: Sequence[str]) -> list[str]:
    """Returns the options of the architecture that a run began with, as NAME=VALUE.

    Args:
        config: of the run.
        given: what the command line says now.

    Raises:
        ArgumentError: that is something else.
    """
    model = config.get("model")
    saved = model.get("options") if isinstance(model, dict) else None
    found = {str(name): str(text) for name, text in saved.items()} if isinstance(saved, dict) else {}
    for name, text in parse(given).items():
        if text not in (found.get(name), AUTO):
            raise ArgumentError(explain(FLAG, f"{name}={text}", f"{name}={found[name]}, as the run has it" if name in found else
                                        "the options that the run began with", "--resume never begins anew."))
    return [f"{name}={text}" for name, text in found.items()]


def saved_options(folder: Path, options: type[TrainOptions]) -> dict[str, Any]:
    """Returns the options of a run by name, each with the type of the option's default.

    Raises:
        ArgumentError: the run has none, or one of another type.
    """
    saved = read_config(folder)["options"]
    found: dict[str, Any] = {}
    for field in fields(options):
        if field.name not in saved or field.name in ("resume", "allow_change"):
            continue
        value = saved[field.name]
        try:
            kind: Any = type(field.default)
            if field.name in ("batch_size", "steps_per_execution") and value == AUTO:
                kind = str
            if isinstance(field.default, tuple):
                value = tuple(str(v) for v in value)
            elif isinstance(field.default, (str, int, float)) and value is not None:
                value = kind(value)
        except (TypeError, ValueError) as error:
            raise ArgumentError(explain(f"{folder / 'config.json'}: {field.name}", repr(value), f"a {kind.__name__}")) from error
        found[field.name] = value
    return found


def unfinished(runs: str, stem: str, locked: Any) -> list[Path]:
    """Returns run folders of a name that have checkpoints and are not finished, the latest first.

    Args:
        runs: where run folders lie.
        stem: their name, which may have a number behind it.
        locked: tells of a folder of checkpoints whether a training writes into it now.
    """
    name = re.compile(re.escape(stem) + r"(-\d+)?")
    found = []
    for path in Path(runs).iterdir() if Path(runs).is_dir() else ():
        if not name.fullmatch(path.name) or not any((path / "checkpoints").glob("*.safetensors")):
            continue
        try:
            status = read_config(path).get("status")
        except ArgumentError:
            continue
        if status in ("running", "stopped") and not locked(path / "checkpoints"):
            found.append(path)
    return sorted(found, key=lambda path: (path / "checkpoints").stat().st_mtime, reverse=True)


def choose(options: TrainOptions, stem: str, locked: Any) -> Path | None:
    """Returns the run folder to go on with, or None for a new one; asks on a terminal.

    Raises:
        ArgumentError: `--resume` names no run folder.
    """
    if options.resume not in (None, AUTO, NEVER):
        path = Path(str(options.resume))
        read_config(path)
        return path
    if options.resume == NEVER:
        return None
    for path in unfinished(options.runs, stem, locked):
        saved = read_config(path)["options"]
        changed = [name for name, value in options.as_json().items() if name not in _FREE and saved.get(name) != value]
        if changed:
            say.line(f"{path} is unfinished too, with another {', '.join(changed[:3])}.")
            continue
        about = f"{path} is unfinished ({_epochs_done(path)} of {saved.get('epochs')} epochs done)"
        if options.resume == AUTO or (_on_terminal() and typer.confirm(f"{about}. Go on with it?", default=True)):
            return path
        if not _on_terminal():
            say.line(f"{about}; --resume {path} (or --resume auto) goes on with it. This is a new run.")
        return None
    return None


def _epochs_done(path: Path) -> int:
    """Returns what the name of the newest checkpoint says."""
    newest = max(file.name for file in (path / "checkpoints").glob("*.safetensors"))
    match = re.search(r"-epoch-(\d+)-", newest)
    return int(match[1]) if match else 0


def _on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()
