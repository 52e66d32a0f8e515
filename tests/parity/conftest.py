"""Keras for the parity tests: its PyTorch backend, on the CPU, in float32. Set before anything imports Keras."""

import os

os.environ["KERAS_BACKEND"] = "torch"
os.environ["KERAS_TORCH_DEVICE"] = "cpu"

import pytest
import torch


@pytest.fixture(scope="session")
def keras():
    """The `keras` module; imported on first use, since it costs seconds."""
    import keras

    assert keras.backend.backend() == "torch", "another module imported Keras before tests/parity/conftest.py chose its backend"
    keras.config.set_floatx("float32")
    return keras


@pytest.fixture(autouse=True)
def _seeded():
    """Each test starts from the same random state and leaves the default type as it was."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
