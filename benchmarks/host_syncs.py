"""Counts how often the host waits for the device in an epoch of `fit`, and shows where the device's time goes.

    python benchmarks/host_syncs.py [--device cuda] [--batch 512]

One wait at the end of the epoch is right; more than a handful is a fault. On a CPU there is nothing to count.
"""

import argparse

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

import convolt
from convolt import layers

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=512)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (options.batch * 40, 28, 28, 1), dtype="uint8"), rng.integers(0, 10, options.batch * 40)
    model = convolt.Sequential([
        layers.Input((28, 28, 1)), layers.Rescaling(1 / 255), layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten(), layers.Dense(64, activation="relu"),
        layers.Dropout(0.5), layers.Dense(10, activation="softmax"),
    ])  # fmt: skip
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"], device=options.device)
    model.fit(x, y, batch_size=options.batch, epochs=2, verbose=2)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if options.device.startswith("cuda") else [])]
    with profile(activities=activities) as profiler:
        model.fit(x, y, batch_size=options.batch, epochs=1, verbose=0)
    counts = {event.key: event.count for event in profiler.key_averages()}
    print({name: counts.get(name, 0) for name in (*WAITS, "cudaGraphLaunch", "cudaLaunchKernel")})
    key = "self_cuda_time_total" if options.device.startswith("cuda") else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=key, row_limit=20, max_name_column_width=60))
    print("memory allocated at most:", torch.cuda.max_memory_allocated() if torch.cuda.is_available() else "–")


if __name__ == "__main__":
    main()
