"""Trained results do not move: bfloat16 with all rewrites ends within the spread of seeds of float32, layer by layer.

`python -m tests.e2e.test_precision_spread` writes `benchmarks/results/precision_spread.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convolt
from convolt import layers
from convolt.models import Sequential

SEEDS = range(5)
FORMS: dict[str, dict[str, Any]] = {
    "float32, layer by layer": {"precision": "float32", "fusions": "none"},
    "bfloat16, fused": {"precision": "bfloat16", "fusions": "all"},
}
RUNS = {"mnist": (6000, 2), "cifar10": (6000, 3)}  # samples and epochs
TARGET = Path(__file__).parents[2] / "benchmarks" / "results" / "precision_spread.json"


def model_for(shape: tuple[int, ...]) -> Sequential:
    return Sequential([
        layers.Input(shape), layers.Rescaling(1 / 255), layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(), layers.Conv2D(64, 3, padding="same", use_bias=False),
        layers.BatchNormalization(momentum=0.9), layers.ReLU(), layers.Flatten(), layers.Dropout(0.25),
        layers.Dense(10, activation="softmax"),
    ])  # fmt: skip


def accuracies(name: str, form: str) -> list[float]:
    """Returns the accuracy on the test pictures for each seed; evaluation is in float32 for both forms."""
    (x, y), (x_test, y_test) = getattr(convolt.datasets, name).load_data()
    count, epochs = RUNS[name]
    x, x_test = (a if a.ndim == 4 else a[..., None] for a in (x, x_test))
    found = []
    for seed in SEEDS:
        convolt.utils.set_random_seed(seed)
        model = model_for(x.shape[1:])
        model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"], device="cpu", **FORMS[form])
        model.fit(x[:count], np.ravel(y)[:count], batch_size=64, epochs=epochs, verbose=0, seed=seed)
        found.append(float(model.evaluate(x_test, np.ravel(y_test), batch_size=500, verbose=0, return_dict=True)["accuracy"]))
    return found


def compare(name: str) -> dict[str, Any]:
    """Returns accuracies, means, and the distance of the means in standard deviations of a seed."""
    runs = {form: accuracies(name, form) for form in FORMS}
    plain, fast = runs.values()
    spread = float(np.std(plain, ddof=1))
    return {"samples": RUNS[name][0], "epochs": RUNS[name][1], "accuracy": runs, "means": [float(np.mean(a)) for a in (plain, fast)],
            "spread_of_seeds": spread, "distance_in_spreads": (float(np.mean(fast)) - float(np.mean(plain))) / spread}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_the_fast_form_ends_within_the_spread_of_seeds(name: str) -> None:
    found = compare(name)
    assert found["means"][0] > {"mnist": 0.9, "cifar10": 0.4}[name]
    # The difference of two means of five has a standard deviation of 0.63 spreads: two of those.
    assert found["distance_in_spreads"] > -1.3, found


if __name__ == "__main__":
    import torch

    results = {name: compare(name) for name in RUNS}
    machine = {"cpu": torch.cpu.get_capabilities()["cpu_name"], "torch": torch.__version__, "threads": torch.get_num_threads()}
    TARGET.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n", encoding="utf-8")
    print(TARGET.read_text(encoding="utf-8"))
