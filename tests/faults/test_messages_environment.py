"""Devices, memory, numbers, workers and signals: `messages/environment.md` has what is said, word for word.

A machine without CUDA is played by hiding the devices from PyTorch, so that the page is the same everywhere; memory that runs out is
played by a layer that raises what PyTorch raises.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import convolt
from convolt import callbacks, devices, layers
from convolt.errors import DataError
from tests.faults import test_nonfinite as nonfinite
from tests.faults import tiny
from tests.faults.conftest import Zygote
from tests.faults.spoken import Page
from tests.unit.test_out_of_memory import X, Y, hungry

PAGE = Page("environment", "What a user reads about the machine", __file__)


def without_devices(patch: pytest.MonkeyPatch, build: str | None, visible: str | None = None) -> None:
    for kind in ("cuda", "xpu"):
        patch.setattr(getattr(torch, kind), "is_available", lambda: False)
    patch.setattr(torch.backends.mps, "is_available", lambda: False)
    patch.setattr(torch.version, "cuda", build)
    patch.setattr(torch.version, "hip", None)
    patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        patch.setenv("CUDA_VISIBLE_DEVICES", visible)


def compiled(**options: Any) -> Any:
    model = convolt.Sequential([layers.Input((6,)), layers.Dense(2, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy", **{"device": "cpu"} | options)
    return model


@PAGE.row("CUDA is asked for; PyTorch is built for the CPU")
def cpu_build(folder: Path, patch: pytest.MonkeyPatch) -> None:
    without_devices(patch, None)
    compiled(device="cuda")


@PAGE.row("CUDA is asked for; there is no GPU or no driver")
def no_gpu(folder: Path, patch: pytest.MonkeyPatch) -> None:
    without_devices(patch, "12.8")
    compiled(device="cuda")


@PAGE.row("CUDA is asked for; the GPUs are hidden")
def hidden_gpu(folder: Path, patch: pytest.MonkeyPatch) -> None:
    without_devices(patch, "12.8", "")
    compiled(device="cuda:1")


@PAGE.row("Any GPU is asked for, and there is none")
def any_gpu(folder: Path, patch: pytest.MonkeyPatch) -> None:
    without_devices(patch, "12.8")
    compiled(device="gpu")


@PAGE.row("A device that is unknown")
def unknown_device(folder: Path, patch: pytest.MonkeyPatch) -> None:
    compiled(device="cud")


@PAGE.row("No GPU under auto: the CPU, without a word")
def auto(folder: Path, patch: pytest.MonkeyPatch) -> str:
    without_devices(patch, "12.8")
    return f"device='auto' takes {devices.resolve('auto')}"


@PAGE.row("bfloat16 on a device that cannot compute it")
def no_bfloat16(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(devices, "resolve", lambda device: torch.device("cuda", 0))
    patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    patch.setattr(devices, "describe", lambda device: devices.DeviceInfo("cuda:0", "GeForce GTX 1080", 8 * 2**30, "compute capability 6.1"))
    compiled(device="cuda", precision="bfloat16")


@PAGE.row("Memory runs out in training: the batch is computed in parts")
def out_of_memory(folder: Path, patch: pytest.MonkeyPatch) -> None:
    hungry(4).fit(X, Y, batch_size=16, epochs=1, verbose=0)


@PAGE.row("Memory for not even one sample")
def no_memory(folder: Path, patch: pytest.MonkeyPatch) -> None:
    hungry(0).fit(X, Y, batch_size=16, verbose=0)


@PAGE.row("Memory for one sample in a model that needs two")
def little_memory(folder: Path, patch: pytest.MonkeyPatch) -> None:
    hungry(1, norm=True).fit(X, Y, batch_size=16, verbose=0)


@PAGE.row("A loss that becomes NaN, with checkpoints")
def nan_with_checkpoints(folder: Path, patch: pytest.MonkeyPatch) -> None:
    nonfinite.fit(nonfinite.net(nonfinite.Bad()), checkpoint=convolt.Checkpoint(folder, every_steps=None))


@PAGE.row("A loss that becomes NaN, without checkpoints")
def nan_without(folder: Path, patch: pytest.MonkeyPatch) -> None:
    nonfinite.fit(nonfinite.net(nonfinite.Bad()), callbacks=callbacks.TerminateOnNaN(raise_error=True))


class Samples(Dataset[Any]):
    """Samples of which one ends the worker that reads it, as a system without memory does."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Any:
        if index == 40:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.zeros(6, "float32"), 0


@PAGE.row("A worker of a loader is killed")
def killed_worker(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """In a process of its own: PyTorch tells of a dead worker again, anywhere, whenever another child of its process ends."""
    code = "from tests.faults import test_messages_environment as page; page.fit_with_a_killed_worker()"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout, done.stderr
    raise DataError(done.stdout.rstrip("\n"))


def fit_with_a_killed_worker() -> None:
    try:
        compiled().fit(DataLoader(Samples(), batch_size=8, num_workers=1), epochs=1, verbose=0)
    except DataError as error:
        print(error, flush=True)
        os._exit(0)


@pytest.fixture(autouse=True)
def _in_another_process(zygote: Zygote) -> None:
    def ended_by(*numbers: int) -> Any:
        def run(folder: Path, patch: pytest.MonkeyPatch) -> str:
            answer = zygote.run(folder, options={"epochs": 4000, "every_steps": None}, signals=[[number, 0.1] for number in numbers])
            return f"status of the process {answer['status']}"

        return run

    PAGE.rows["SIGTERM: a checkpoint, and the end"] = ended_by(signal.SIGTERM)


@PAGE.row("Ctrl-C: fit returns the history so far, and what to do to go on")
def ctrl_c(folder: Path, patch: pytest.MonkeyPatch) -> str:
    class Press(callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 3:
                signal.raise_signal(signal.SIGINT)

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        tiny.fit(tiny.net(), folder, more=[Press()], verbose=2)
    return said.getvalue().strip().splitlines()[-1]


def test_every_message_is_the_one_that_was_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PAGE.check(tmp_path, monkeypatch)
