"""The speed net on CIFAR-10: trains it with its recipe, and writes accuracy per epoch, time, hardware and versions.

    python benchmarks/speednet.py --output benchmarks/results/speednet_cuda_2026-11-24.json
    python benchmarks/speednet.py --output FILE -- --epochs 6          # what stands behind -- goes to convolt train
    python benchmarks/speednet.py --output FILE --run runs/speednet    # figures of a run that there is

The clock is that of `convolt train`, from the start of training to its end, with choosing the plan (unless an earlier run has left one in
the cache), validation after each epoch, and compilation; without imports and reading the data. `clock_from_process_start` has these, too.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> int:
    """Runs the benchmark; returns 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--run", type=Path, help="figures of this run folder; nothing is trained")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--target", type=float, default=0.0, help="least accuracy")
    parser.add_argument("--suspended", type=float, help="with --run: seconds in which the process was stopped")
    parser.add_argument("--commit", default="", help="with --run: of the code that ran")
    parser.add_argument("rest", nargs="*", help="more options of convolt train")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run, clock = given.run, None
        if run is None:
            began = time.perf_counter()
            subprocess.run([sys.executable, "-m", "convolt", "train", "speednet", "--data", "cifar10", "--device", given.device,
                            "--runs", folder, "--name", "speednet", *given.rest], check=True)
            clock, run = time.perf_counter() - began, Path(folder, "speednet")
        found = figures(run) | {"commit": given.commit or commit(), "clock_from_process_start": clock}
    if given.suspended is not None:
        found |= {"suspended_seconds": given.suspended, "seconds_without_suspension": found["seconds"] - given.suspended}
    given.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: found[name] for name in ("val_accuracy", "result", "seconds", "clock_from_process_start")}))
    reached = found["result"]["accuracy"] >= given.target
    print(f"target {given.target:.2%} {'reached' if reached else 'missed'}")
    return 0 if reached else 1


def figures(run: Path) -> dict[str, Any]:
    """Returns what a finished run folder says."""
    config = json.loads((run / "config.json").read_text())
    rows = list(csv.DictReader((run / "history.csv").open()))
    return {
        "command": config["command"],
        "epochs": len(rows),
        **{name: [round(float(row[name]), 5) for row in rows] for name in ("loss", "accuracy", "val_loss", "val_accuracy")},
        "result": config["result"],
        "seconds": config["seconds"],
        "plan": config["plan"],
        "versions": config["versions"],
        "started": config["started"],
    }


def commit() -> str:
    """Returns the commit of the working tree, "" outside of one."""
    answer = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False,
                            cwd=Path(__file__).parent)
    return answer.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
