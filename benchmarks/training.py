"""Training speed of Convolt and its peers, each in a process of its own, in turn; medians and ratios.

    python benchmarks/training.py [--workload cnn --batch 32 128 512] [--rounds 3] [--device cpu|cuda] [--precision float32 bfloat16]
        [--peers-python PATH]  (an environment with keras, tensorflow and jax; without it only Keras on PyTorch is a peer)

Writes `benchmarks/results/training_DEVICE_DATE.json` as it goes, and prints a table: images per second (median of the
rounds' medians), ratio to the best peer, seconds from process start to the first step done, and peak memory.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

SIDES = {  # name: (script, variant, environment)
    "convolt": ("convolt_side.py", "", "own"),
    "pytorch eager": ("torch_side.py", "", "own"),
    "pytorch tuned": ("torch_side.py", "tuned", "own"),
    "pytorch compiled": ("torch_side.py", "compiled", "own"),
    "keras torch": ("keras_side.py", "torch", "own"),
    "keras tensorflow": ("keras_side.py", "tensorflow", "peers"),
    "keras tensorflow+jit": ("keras_side.py", "tensorflow+jit", "peers"),
    "keras jax": ("keras_side.py", "jax", "peers"),
}


def run_side(name: str, options: argparse.Namespace, batch: int, precision: str) -> dict[str, Any] | None:
    """Runs one side once; returns its report, or None if it failed, which is printed."""
    script, variant, environment = SIDES[name]
    python = options.peers_python if environment == "peers" else sys.executable
    command = [python, str(HERE / "peers" / script), "--workload", options.workload, "--batch", str(batch), "--precision", precision,
               "--seconds", str(options.seconds), "--device", options.device, "--variant", variant]
    paths = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, timeout=600)
    if done.returncode:
        print(f"  {name} failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}", flush=True)
        return None
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def machine(device: str) -> dict[str, Any]:
    """Returns hardware, versions and commit."""
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
               platform.processor()) if Path("/proc/cpuinfo").exists() else platform.processor()
    versions = {}
    for package in ("torch", "keras", "numba", "triton"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    gpu = ""
    if device.startswith("cuda"):
        import torch

        gpu = torch.cuda.get_device_name()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    return {"cpu": cpu, "cores": os.cpu_count(), "gpu": gpu, "python": platform.python_version(), "versions": versions, "commit": commit,
            "load_at_start": os.getloadavg()[0], "date": datetime.date.today().isoformat()}


def table(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row for each side: medians over the rounds, and the ratio of Convolt's rate to it."""
    rows = []
    for side in dict.fromkeys(r["side"] for r in reports):
        own = [r for r in reports if r["side"] == side]
        rows.append({"side": side, **{key: statistics.median(r[key] for r in own)
                                      for key in ("images_per_second", "first_step_seconds", "peak_mib")}})
    best = max((row["images_per_second"] for row in rows if not row["side"].startswith("convolt")), default=None)
    for row in rows:
        row["to_best_peer"] = round(row["images_per_second"] / best, 2) if best else None
    return sorted(rows, key=lambda row: -row["images_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=["cnn", "resnet18"], default="cnn")
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--precision", nargs="+", default=["float32"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sides", nargs="+", default=list(SIDES))
    parser.add_argument("--peers-python", default=None)
    options = parser.parse_args()
    sides = [s for s in options.sides if SIDES[s][2] == "own" or options.peers_python]
    info, results = machine(options.device), []
    target = HERE / "results" / f"training_{options.workload}_{options.device}_{info['date']}.json"
    target.parent.mkdir(exist_ok=True)
    for precision in options.precision:
        for batch in options.batch:
            reports: list[dict[str, Any]] = []
            for _ in range(options.rounds):
                found = [run_side(side, options, batch, precision) for side in sides]
                reports += [r for r in found if r]
            rows = table(reports)
            results.append({"workload": options.workload, "batch": batch, "precision": precision, "rows": rows, "reports": reports})
            target.write_text(json.dumps({"machine": info, "results": results}, indent=1) + "\n")
            print(f"\n{options.workload}, batch {batch}, {precision}, {options.device}: median of {options.rounds} rounds")
            for row in rows:
                print(f"  {row['side']:<24}{row['images_per_second']:>12,.0f} images/s  {row['to_best_peer'] or 0:>5.2f}× the best peer"
                      f"  first step {row['first_step_seconds']:>5.1f} s  {row['peak_mib']:>6,.0f} MiB", flush=True)
    print(f"\nwritten to {target}")


if __name__ == "__main__":
    main()
