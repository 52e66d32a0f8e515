"""`import convolt` loads nothing heavy besides PyTorch and NumPy; such packages are imported where they are used."""

import subprocess
import sys
from functools import cache

HEAVY = ("torchmetrics", "matplotlib", "h5py", "rich", "typer", "numba", "triton", "PIL", "sklearn", "tensorboard", "keras",
         "torch._dynamo", "torch._inductor", "sympy", "onnx")  # fmt: skip


@cache
def loaded_after(code: str) -> set[str]:
    listing = "import sys; print(' '.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", f"{code}\n{listing}"], capture_output=True, text=True, check=True).stdout
    return set(out.split())


def test_every_public_name_is_light() -> None:
    code = "import convolt\nfor name in convolt.__all__: getattr(convolt, name)"
    extra = loaded_after(code) - loaded_after("import torch")
    assert not [name for name in HEAVY if name in extra]


def test_training_with_the_usual_metrics_is_light() -> None:
    code = """
import numpy as np, convolt
from convolt import layers
model = convolt.Sequential([layers.Input((8, 8, 1)), layers.Conv2D(4, 3, activation="relu"), layers.BatchNormalization(),
                            layers.Flatten(), layers.Dense(3, activation="softmax")])
model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"], device="cpu")
x = np.random.default_rng(0).normal(size=(8, 8, 8, 1)).astype("float32")
model.fit(x, np.arange(8) % 3, verbose=0)
model.evaluate(x, np.arange(8) % 3, verbose=0)
"""
    extra = loaded_after(code) - loaded_after("import torch")
    assert not [name for name in HEAVY if name in extra]


def test_a_summary_imports_no_compiler_to_count_flops() -> None:
    code = """
import convolt
from convolt import layers
model = convolt.Sequential([layers.Input((8, 8, 1)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(3)])
model.summary()
"""
    extra = loaded_after(code) - loaded_after("import torch")
    assert not {"torch._dynamo", "torch._inductor", "sympy"} & extra
