"""Times each kernel against eager PyTorch's composition of the same op, both sides in turn.

    python benchmarks/kernels.py [--device cpu|cuda] [--rounds 15] [--only NAME] [--quick]

Random data, forward and backward together. Prints medians and their ratio and writes
`benchmarks/results/kernels_DEVICE_DATE.json`. On a CPU glibc is told to keep freed memory on both sides, as training does.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from convolt import kernels
from convolt.kernels import reference

RESULTS = Path(__file__).parent / "results"
Job = Callable[[Any, dict[str, Any]], Callable[[], object]]


def keep_freed_memory() -> None:
    """Glibc gives large blocks back at once by default, and each new one costs page faults."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def images(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
    return torch.randn(shape, device=device).to(dtype).to(memory_format=torch.channels_last).requires_grad_()


def pool_job(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Job:
    x, bias = images(shape, dtype, device), torch.randn(shape[1], device=device, requires_grad=True)
    inputs = [x] if name == "relu_max_pool" else [x, bias]
    grad = torch.randn(shape[0], shape[1], shape[2] // 2, shape[3] // 2, device=device).to(dtype).to(memory_format=torch.channels_last)
    return lambda op, extra: lambda: torch.autograd.grad(op(*inputs, **extra), inputs, grad)


def norm_job(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Job:
    x, residual = images(shape, dtype, device), images(shape, dtype, device)
    weight, bias = (torch.randn(shape[1], device=device, requires_grad=True) for _ in range(2))
    mean, var = torch.zeros(shape[1], device=device), torch.ones(shape[1], device=device)
    inputs = [x, residual] if "add" in name else [x]
    settings: dict[str, Any] = {"training": True, "unbiased": True} | ({"activation": "silu"} if name == "bn_activation" else {})
    grad = torch.randn_like(getattr(reference, name)(*inputs, weight, bias, mean, var, **settings)).detach()
    return lambda op, extra: lambda: torch.autograd.grad(
        op(*inputs, weight, bias, mean, var, **settings, **extra), [*inputs, weight, bias], grad)


def crossentropy_job(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Job:
    logits = torch.randn(shape, device=device).to(dtype).requires_grad_()
    labels = torch.randint(0, shape[1], shape[:1], device=device)
    return lambda op, extra: lambda: torch.autograd.grad(op(logits, labels, **extra).mean(), logits)


def jobs(device: str, quick: bool) -> list[tuple[str, str, Job]]:
    """Returns (kernel, what, job) for the layers of the classic network and of ResNet-18."""
    found: list[tuple[str, str, Job]] = []
    batch = 32 if quick else 512 if device == "cuda" else 128
    for dtype in (torch.float32, torch.bfloat16):
        short = str(dtype).removeprefix("torch.")
        for shape in ((batch, 32, 26, 26), (batch, 64, 11, 11)):
            for name in ("relu_max_pool", "bias_relu_max_pool"):
                found.append((name, f"{short} {shape}", pool_job(name, shape, dtype, device)))
        for shape in ((batch, 64, 32, 32), (batch, 512, 4, 4)):
            for name in ("bn", "bn_relu", "bn_activation", "bn_add", "bn_add_relu", "bn_relu_max_pool"):
                found.append((name, f"{short} {shape}", norm_job(name, shape, dtype, device)))
        for shape in ((batch, 10), (batch, 1000)):
            found.append(("softmax_crossentropy", f"{short} {shape}", crossentropy_job(shape, dtype, device)))
    return found


def seconds(run: Callable[[], object], device: str, repeats: int) -> float:
    """Returns the time of one call, the mean of a short series: events on a GPU, the clock on a CPU."""
    if device == "cuda":
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repeats):
            run()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1000 / repeats
    begin = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - begin) / repeats


def compare(name: str, job: Job, device: str, rounds: int) -> dict[str, Any]:
    """Times both sides in turn; the ratio is eager's median over the kernel's."""
    backend = "numba" if device == "cpu" else "triton"
    backend = backend if backend in kernels.KERNELS[name].versions else "reference"
    sides = {"kernel": job(getattr(kernels, name), {"backend": backend}), "eager": job(getattr(reference, name), {})}
    for run in sides.values():
        for _ in range(3):
            run()
    repeats = max(1, min(50, int(0.02 / max(1e-6, seconds(sides["eager"], device, 1)))))
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, run in sides.items():
            times[side].append(seconds(run, device, repeats))
    medians = {side: statistics.median(values) for side, values in times.items()}
    return {"backend": backend, "rounds": rounds, "repeats": repeats, "median_s": medians, "least_s": {k: min(v) for k, v in times.items()},
            "ratio": medians["eager"] / medians["kernel"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", help="the name of one kernel")
    parser.add_argument("--quick", action="store_true", help="small batches: whether it runs, not how fast; writes nothing")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    rows = []
    for name, what, job in jobs(arguments.device, arguments.quick):
        if arguments.only in (None, name):
            row = {"kernel": name, "case": what} | compare(name, job, arguments.device, arguments.rounds)
            rows.append(row)
            medians = row["median_s"]
            print(f"{name:22} {what:32} {row['backend']:10} kernel {medians['kernel'] * 1e6:10.1f} µs   eager "
                  f"{medians['eager'] * 1e6:10.1f} µs   ratio {row['ratio']:.2f}", flush=True)
    if arguments.quick:
        return
    hardware = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or platform.machine()
    now = datetime.datetime.now(datetime.UTC)
    report = {"hardware": hardware, "threads": torch.get_num_threads(), "torch": torch.__version__, "time": now.isoformat(), "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"kernels_{arguments.device}_{now:%Y-%m-%d_%H%M}.json"
    path.write_text(json.dumps(report, indent=1))
    print(path)


if __name__ == "__main__":
    main()
