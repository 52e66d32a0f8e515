"""The Triton kernels without a GPU: `interpreted.py` in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from convolt import kernels

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=[pytest.mark.slow])])
def test_the_sweep_through_the_interpreter(which: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", which]
    command = [sys.executable, "-m", "pytest", *options, "tests/unit/kernels/interpreted.py"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]


def test_triton_is_not_chosen_on_a_cpu_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "CUDA" in kernels.why_not("relu_max_pool", torch.zeros(1), "triton")
    assert kernels.choose("softmax_crossentropy", torch.zeros(1, 1)) == "reference"
