"""Every workload with every peer, each in a process and environment of its own, an epoch of each in turn; medians and ratios.

    python benchmarks/environments.py     once: the peers' environments
    python benchmarks/suite.py            a full round of at most 40 minutes; continues the day's file where there is one
    python benchmarks/suite.py --workloads cnn resnet18 --precisions bfloat16 --peers convolt "pytorch tuned" --rounds 1 --budget 3
    python benchmarks/suite.py --minutes 4 --output FILE      a piece of a round; repeat it until it says that nothing is left
    python benchmarks/report.py           then: tables and plots in docs/benchmarks.md

The first round measures all peers. The later ones repeat Convolt and its contenders: the peers that were within 30% of the best. In
the first round a process finds empty caches (of plans, of compiled kernels), later those of the round before. Each process's
report is written to `benchmarks/results/suite_DEVICE_DATE.json` as it comes; a peer that failed, was too slow or has no environment
has a row that says so.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import in_turn  # noqa: E402
from environments import folder, python_of  # noqa: E402
from workloads import WORKLOADS, Workload, find  # noqa: E402

INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512-bf16", "amx_bf16": "AMX"}
"""Flags of /proc/cpuinfo that say how fast a CPU multiplies."""
CONTENDER = 0.7
"""Share of the best peer's rate from which a peer is measured again."""


@dataclass(frozen=True)
class Peer:
    """One side of the comparison.

    Attributes:
        script: in `peers/`.
        variant: handed to the script.
        environment: by name; "own" is this Python.
        memory: whether glibc is told to keep freed memory, as Convolt does by itself.
        networks: that it has; () for all.
        precisions: that it has.
    """

    script: str
    variant: str
    environment: str
    memory: bool = False
    networks: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("float32", "bfloat16")


KERAS = ("float32", "bfloat16", "default")
SMALL = ("cnn", "resnet18")
PEERS = {
    "convolt": Peer("convolt_peer.py", "", "own", precisions=KERAS),
    "pytorch eager": Peer("torch_peer.py", "eager", "torch"),
    "pytorch tuned": Peer("torch_peer.py", "tuned", "torch"),
    "pytorch tuned, kept memory": Peer("torch_peer.py", "tuned", "torch", memory=True),
    "torch.compile": Peer("torch_peer.py", "compile", "torch", memory=True),
    "torch.compile max-autotune": Peer("torch_peer.py", "autotune", "torch", memory=True),
    "keras tensorflow": Peer("keras_peer.py", "tensorflow", "tensorflow", precisions=KERAS),
    "keras tensorflow, kept memory": Peer("keras_peer.py", "tensorflow", "tensorflow", memory=True),
    "keras tensorflow jit": Peer("keras_peer.py", "tensorflow+jit", "tensorflow"),
    "keras jax": Peer("keras_peer.py", "jax", "jax", precisions=KERAS),
    "keras torch": Peer("keras_peer.py", "torch", "torch", precisions=KERAS),
    "keras torch jit": Peer("keras_peer.py", "torch+jit", "torch"),
    "flax": Peer("flax_peer.py", "", "jax", networks=SMALL),
    "lightning": Peer("lightning_peer.py", "", "lightning", memory=True, networks=SMALL),
    "fastai": Peer("fastai_peer.py", "", "fastai", memory=True, networks=SMALL),
    "tinygrad": Peer("tinygrad_peer.py", "", "tinygrad", networks=("cnn",), precisions=("float32",)),
}
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
"""What tells glibc to keep freed memory."""


@dataclass(frozen=True)
class Cell:
    """One workload, batch size and precision: what is compared."""

    workload: str
    batch: int
    precision: str

    @property
    def work(self) -> Workload:
        """The workload itself."""
        return find(self.workload)

    def holds(self, row: dict[str, Any]) -> bool:
        """Returns whether a report is of this cell."""
        return (row["workload"], row["batch"], row["precision"]) == (self.workload, self.batch, self.precision)

    def peers(self, wanted: list[str] | None) -> list[str]:
        """Returns the names of the peers that run it, of those wanted, or of the usual ones."""
        work = self.work
        return [name for name, peer in PEERS.items()
                if (name in wanted if wanted else not work.peers or name in work.peers or self.batch in work.wide)
                and (not peer.networks or work.network in peer.networks)
                and self.precision in peer.precisions and not (work.task == "predict" and peer.networks)]

    def __str__(self) -> str:
        return f"{self.workload}, batch {self.batch}, {self.precision}"


# -- one process ---------------------------------------------------------------------------------------------------


def python_for(peer: Peer, zoo: bool) -> str | None:
    """Returns the Python that runs a peer, or None.

    Plain PyTorch runs in Convolt's environment where it has none of its own, and for the zoo.
    """
    if peer.environment == "own" or (zoo and peer.script == "torch_peer.py"):
        return sys.executable
    found = python_of(peer.environment)
    if found is None and peer.script == "torch_peer.py" and importlib.util.find_spec("torch"):
        return sys.executable
    return str(found) if found else None


def environment_of(peer: Peer, python: str, cache: Path) -> dict[str, str]:
    """Returns the environment variables of a peer's process: all cores, caches of its own, freed memory kept where that belongs to it."""
    dropped = ("OMP_NUM_THREADS", "PYTHONDONTWRITEBYTECODE", "KERAS_BACKEND")
    variables = {name: value for name, value in os.environ.items() if name not in dropped and not name.startswith("MALLOC_")}
    variables |= {"PYTHONPATH": str(HERE.parent)} if python == sys.executable else {}
    variables |= {"CONVOLT_CACHE": str(cache), "NUMBA_CACHE_DIR": str(cache / "numba"), "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
                  "TRITON_CACHE_DIR": str(cache / "triton"), "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"), "XDG_CACHE_HOME": str(cache),
                  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return variables | (KEPT if peer.memory else {})


@dataclass(frozen=True)
class Process:
    """How a peer is run once: the beginning of its row, its command, its environment variables, and the seconds that it may take."""

    row: dict[str, Any]
    command: list[str]
    variables: dict[str, str]
    limit: float


def process_of(name: str, cell: Cell, number: int, options: argparse.Namespace) -> Process | str:
    """Returns how to run a peer, or why it cannot be run. In the first round it begins without caches."""
    peer = PEERS[name]
    python = python_for(peer, cell.work.zoo)
    if python is None:
        return f"no environment {peer.environment!r}"
    if cell.work.task == "target" and not os.environ.get("CONVOLT_DATA"):
        return "CONVOLT_DATA is not set"
    cache = folder() / "cache" / re.sub(r"\W+", "_", f"{cell} {name}")
    if number == 1:
        shutil.rmtree(cache, ignore_errors=True)
    limit = options.limit or cell.work.limit
    seconds = limit - 20 if cell.work.task == "target" else options.budget
    command = [python, str(HERE / "peers" / peer.script), "--workload", cell.workload, "--batch", str(cell.batch),
               "--precision", cell.precision, "--seconds", str(seconds), "--device", options.device, "--variant", peer.variant]
    command += ["--images", str(options.images)] if options.images else []
    variables = environment_of(peer, python, cache) | ({"OMP_NUM_THREADS": str(options.threads)} if options.threads else {})
    return Process(row_of(name, cell, number), command, variables, limit)


def row_of(name: str, cell: Cell, number: int) -> dict[str, Any]:
    """Returns the beginning of a row."""
    return {"peer": name, "workload": cell.workload, "batch": cell.batch, "precision": cell.precision, "round": number}


def report_of(row: dict[str, Any], status: int, output: str, errors: str, seconds: float) -> dict[str, Any]:
    """Returns the row of a process that has ended, whose `status` is "ok" or says why there is no report."""
    if status:
        said = errors.strip().splitlines() or [f"exit status {status}"]
        why = next((line for line in reversed(said) if "Error" in line), said[-1]).strip()[:200]
        lacks = f"has no attribute '{find(row['workload']).network}'" in why  # so `keras_like.build` says
        return {**row, "status": "has no such network" if lacks else f"failed: {why}"}
    report = json.loads(output.strip().splitlines()[-1])
    del report["side"]
    return {**row, "status": "ok", **report, "wall_seconds": round(seconds, 1)}


def run_peer(name: str, cell: Cell, number: int, options: argparse.Namespace) -> dict[str, Any]:
    """Runs a peer once, by itself; returns its row."""
    start, process = time.time(), process_of(name, cell, number, options)
    if isinstance(process, str):
        return {**row_of(name, cell, number), "status": process}
    try:
        done = subprocess.run(process.command, capture_output=True, text=True, timeout=process.limit, check=False,
                              env=process.variables | {"CONVOLT_BENCH_START": repr(start)})
    except subprocess.TimeoutExpired:
        return {**process.row, "status": f"not done within {process.limit:.0f} s"}
    return report_of(process.row, done.returncode, done.stdout, done.stderr, time.time() - start)


def machine(device: str) -> dict[str, Any]:
    """Returns hardware, versions and commit."""
    proc = Path("/proc/cpuinfo")
    lines = proc.read_text().splitlines() if proc.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    flags = set(next((line.split(":")[1].split() for line in lines if line.startswith("flags")), []))
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
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE, check=False).stdout.strip()
    instructions = [name for flag, name in INSTRUCTIONS.items() if flag in flags]
    return {"cpu": cpu, "instructions": instructions, "cores": os.cpu_count(), "gpu": gpu,
            "python": platform.python_version(), "versions": versions, "commit": commit,
            "load_at_start": os.getloadavg()[0], "date": datetime.date.today().isoformat()}


# -- medians -------------------------------------------------------------------------------------------------------


def score(row: dict[str, Any]) -> float | None:
    """Returns what a report is ranked by, more is better: images per second, or, of a target, its inverse time."""
    if "accuracies" in row:
        seconds = row["seconds_to_target"]
        return 1 / seconds if seconds and find(row["workload"]).epochs is None else None
    rate = row.get("images_per_second")
    return float(rate) if rate else None


def best_peer(rows: list[dict[str, Any]]) -> float | None:
    """Returns the best peer's median score among a cell's reports, Convolt's own aside."""
    medians = [statistics.median(scores) for peer in dict.fromkeys(row["peer"] for row in rows) if peer != "convolt"
               and (scores := [s for row in rows if row["peer"] == peer and (s := score(row))])]
    return max(medians, default=None)


def table(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row for each side of other benchmarks: medians over the rounds, and the ratio of its rate to the best peer's."""
    rows = []
    for side in dict.fromkeys(r["side"] for r in reports):
        own = [r for r in reports if r["side"] == side]
        rows.append({"side": side, **{key: statistics.median(r[key] for r in own)
                                      for key in ("images_per_second", "first_step_seconds", "peak_mib")}})
    best = max((row["images_per_second"] for row in rows if not row["side"].startswith("convolt")), default=None)
    for row in rows:
        row["to_best_peer"] = round(row["images_per_second"] / best, 2) if best else None
    return sorted(rows, key=lambda row: -row["images_per_second"])


# -- the round -----------------------------------------------------------------------------------------------------


def cells(options: argparse.Namespace) -> list[Cell]:
    """Returns what is compared, in the order of the round."""
    return [Cell(name, batch, precision) for name in options.workloads for precision in find(name).precisions
            if not options.precisions or precision in options.precisions for batch in options.batches or find(name).batches]


def turns(options: argparse.Namespace, rows: list[dict[str, Any]]) -> Iterator[tuple[str, Cell, int]]:
    """Yields peer, cell and round in the order in which they run; `rows`, which grow meanwhile, tell what is done and who contends."""
    for number in range(1, options.rounds + 1):
        for cell in cells(options):
            if number > 1 and cell.work.epochs:  # accuracy after so many epochs shows that the work is the same: once is enough
                continue
            own = [row for row in rows if cell.holds(row)]
            best = best_peer(own)
            for name in cell.peers(options.peers):
                scores = [s for row in own if row["peer"] == name and (s := score(row))]
                contends = number == 1 or name == "convolt" or (best and scores and statistics.median(scores) >= CONTENDER * best)
                if contends and not any(row["peer"] == name and row["round"] == number for row in own):
                    yield name, cell, number


def goes_in_turn(cell: Cell, options: argparse.Namespace) -> bool:
    """Whether a cell's peers run at once, an epoch of each in turn: not those of a target, nor where they would share a GPU's memory."""
    return not options.alone and cell.work.task != "target" and options.device == "cpu"


def hopeless(name: str, cell: Cell, rows: list[dict[str, Any]]) -> str | None:
    """Returns why a peer need not be tried: it was too slow for the same work in the other precision, or a round before."""
    slow = next((row for row in rows if row["peer"] == name and (row["workload"], row["batch"]) == (cell.workload, cell.batch)
                 and row["status"].startswith("not done")), None)
    return f"not tried: {slow['precision']} was {slow['status']}" if slow else None


def line(row: dict[str, Any]) -> str:
    """Returns one line about a report."""
    if row["status"] != "ok":
        return f"  {row['peer']:<32}{row['status']}"
    if "accuracies" in row:
        reached = f"; 99% after {row['seconds_to_target']:.1f} s" if row["seconds_to_target"] else ""
        return f"  {row['peer']:<32}{', '.join(f'{100 * a:.2f}% at {s:.0f} s' for s, a in row['accuracies'])}{reached}"
    return (f"  {row['peer']:<32}{row['images_per_second']:>10,.1f} images/s  first step {row['first_step_seconds']:>5.1f} s"
            f"  {row['peak_mib']:>6,} MiB")


def save(target: Path, info: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Writes the results beside their file, then renames: an interrupted round keeps what it has."""
    beside = target.with_suffix(".tmp")
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    beside.write_text(f'{{"machine": {json.dumps(info)},\n "reports": [\n{lines}\n]}}\n')
    beside.replace(target)


def _rows(names: list[str], cell: Cell, number: int, rows: list[dict[str, Any]], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields the row of each peer: of all of them in turn, where that is asked for, or of one after the other."""
    tried = []
    for name in names:
        if reason := hopeless(name, cell, rows):
            yield {**row_of(name, cell, number), "status": reason}
        else:
            tried.append(name)
    if goes_in_turn(cell, options):
        processes = [process_of(name, cell, number, options) for name in tried]
        yield from ({**row_of(name, cell, number), "status": p} for name, p in zip(tried, processes, strict=True) if isinstance(p, str))
        yield from in_turn.run([p for p in processes if not isinstance(p, str)], report_of, options.budget)
    else:
        yield from (run_peer(name, cell, number, options) for name in tried)


def run_round(options: argparse.Namespace) -> None:
    """Runs what is left of the round within its time."""
    info = machine(options.device)
    target = Path(options.output or HERE / "results" / f"suite_{options.device}_{info['date']}.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(target.read_text())["reports"] if target.exists() and not options.fresh else []
    rows = [row for row in rows if row["status"] == "ok" or not options.retry]
    if rows:
        print(f"continuing {target}, which has {len(rows)} rows")
    end, left = time.time() + 60 * options.minutes, 0
    for (cell, number), group in itertools.groupby(turns(options, rows), lambda turn: turn[1:]):
        names = [name for name, _, _ in group]
        row_limit = (options.limit or cell.work.limit) * (len(names) if goes_in_turn(cell, options) else 1)
        if left or time.time() + min(row_limit, 30 * options.minutes) > end:  # what may not end in time is not begun
            left += len(names)
            continue
        print(f"\n{cell}, {options.device}, round {number}", flush=True)
        for row in _rows(names, cell, number, rows, options):
            rows.append({**row, "commit": info["commit"]})
            save(target, info, rows)
            print(line(row), flush=True)
    print(f"\n{f'{left} or more rows are left: repeat the command' if left else 'nothing is left'}; written to {target}")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(WORKLOADS)
    parser.add_argument("--workloads", nargs="+", default=names, choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), metavar="NAME", help=f"in place of the usual ones: {', '.join(PEERS)}")
    parser.add_argument("--precisions", nargs="+", choices=KERAS)
    parser.add_argument("--batches", nargs="+", type=int, help="in place of the workloads' own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=3.0, help="seconds of steady work of each process")
    parser.add_argument("--limit", type=float, help="seconds after which a process is ended; by default the workload's own")
    parser.add_argument("--minutes", type=float, default=40.0, help="of the whole run; what does not fit is left")
    parser.add_argument("--alone", action="store_true", help="one process after the other, not an epoch of each in turn")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, help="of an epoch, in place of the workloads' own")
    parser.add_argument("--threads", type=int, help="OMP_NUM_THREADS of the processes; by default each takes what it wants")
    parser.add_argument("--output", help="results, by default benchmarks/results/suite_DEVICE_DATE.json; continued if it exists")
    parser.add_argument("--retry", action="store_true", help="try again what failed or was too slow")
    parser.add_argument("--fresh", action="store_true", help="begin the file anew")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_round(parse())
