"""The first network of each family of `convolt.applications`, at 96×96: training and `predict` in images per second.

    python benchmarks/zoo.py                                  all families, at most 30 minutes; continues the day's file
    python benchmarks/zoo.py --families VGG DenseNet --tasks predict --rounds 1 --budget 1
    python benchmarks/report.py                               then: the table in docs/benchmarks.md

Against `keras.applications` (on TensorFlow, its fastest backend on CPUs) and against PyTorch running Convolt's own model, which
is a PyTorch module: eager, and tuned (channels_last, fused Adam, freed memory kept). `benchmarks/suite.py` tells how a round goes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from suite import PEERS, machine, run_round  # noqa: E402
from workloads import ZOO  # noqa: E402

USUAL = ("convolt", "pytorch eager", "pytorch tuned, kept memory", "keras tensorflow")


def members() -> dict[str, str]:
    """Returns the function of the first network of each family, by the family's name."""
    from convolt import applications

    found: dict[str, str] = {}
    for name in applications.names():
        entry = applications.get(name)
        if not entry.plain and entry.family != "U-Net":  # which has a class for each pixel
            found.setdefault(entry.family, entry.function.__name__)
    return found


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Returns the options that `suite.run_round` takes."""
    families = members()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(families), choices=list(families), metavar="NAME", help=", ".join(families))
    parser.add_argument("--tasks", nargs="+", default=["train", "predict"], choices=["train", "predict"])
    parser.add_argument("--peers", nargs="+", default=list(USUAL), choices=list(PEERS), metavar="NAME", help=", ".join(PEERS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--budget", type=float, default=10.0, help="seconds of steady work of each process: in 2 s noise is 8%%")
    parser.add_argument("--limit", type=float, help="seconds after which a process is ended")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the whole run; what does not fit is left")
    parser.add_argument("--alone", action="store_true", help="one process after the other, not an epoch of each in turn")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", help="results, by default benchmarks/results/zoo_DEVICE_DATE.json; continued if it exists")
    parser.add_argument("--retry", action="store_true", help="try again what failed or was too slow")
    parser.add_argument("--fresh", action="store_true", help="begin the file anew")
    options = parser.parse_args(arguments)
    options.workloads = [f"{ZOO}{families[family]}/{task}" for family in options.families for task in options.tasks]
    options.precisions = options.batches = options.images = options.threads = None
    options.output = options.output or str(HERE / "results" / f"zoo_{options.device}_{machine('cpu')['date']}.json")
    return options


if __name__ == "__main__":
    run_round(parse())
