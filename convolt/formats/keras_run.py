"""Keras files as exports: written by Convolt, and run by Keras itself where it is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convolt.errors import ModelFileError, explain
from convolt.formats.exported import Exported

_PREDICT = """
import sys
import numpy as np
import keras
model = keras.models.load_model(sys.argv[1], compile=False)
with np.load(sys.argv[2]) as file:
    inputs = [file[name] for name in file.files]
outputs = model.predict(inputs if len(inputs) > 1 else inputs[0], batch_size=int(sys.argv[4]), verbose=0)
flat = list(outputs.values()) if isinstance(outputs, dict) else outputs if isinstance(outputs, (list, tuple)) else [outputs]
np.savez(sys.argv[3], *flat)
"""


def write(exported: Exported, path: Path) -> None:
    """Writes the model as Keras's `.h5` or `.keras`, as the suffix says."""
    from convolt.formats import save_model

    save_model(exported.model, path)


def runner() -> str:
    """Returns the name of Keras with its version."""
    return f"Keras {importlib.metadata.version('keras')}"


def run(path: Path, inputs: Sequence[np.ndarray], batch_size: int = 256) -> list[np.ndarray]:
    """Returns the outputs of a Keras file: of Keras in a process of its own, or of Convolt's reader without it."""
    if importlib.util.find_spec("keras") is None:
        return _run_here(path, inputs, batch_size)
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
        np.savez(given, *inputs)
        environment = {**os.environ, "KERAS_BACKEND": os.environ.get("KERAS_BACKEND", "torch"), "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-c", _PREDICT, str(path), str(given), str(result), str(batch_size)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise ModelFileError(explain(f"the file in {runner()}", last, "that Keras loads it and predicts"))
        with np.load(result) as file:
            return [file[name] for name in file.files]


def _run_here(path: Path, inputs: Sequence[np.ndarray], batch_size: int) -> list[np.ndarray]:
    from convolt.formats import load_model

    model = load_model(path, compile=False, device="cpu")
    outputs = model.predict(inputs if len(inputs) > 1 else inputs[0], batch_size=batch_size, verbose=0)
    flat = list(outputs.values()) if isinstance(outputs, dict) else outputs if isinstance(outputs, list) else [outputs]
    return [np.asarray(y) for y in flat]
