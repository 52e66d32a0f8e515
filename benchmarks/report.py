"""Writes the tables of docs/benchmarks.md, between its markers, and the plots in docs/images, from the newest results of each device.

    python benchmarks/report.py

Every figure is a median over the rounds in one file of `benchmarks/results`; a peer that gave none has its reason.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from suite import PEERS, Cell, best_peer, score  # noqa: E402
from workloads import WORKLOADS  # noqa: E402

PAGE = HERE.parent / "docs" / "benchmarks.md"
IMAGES = HERE.parent / "docs" / "images"
BEGIN, END = "<!-- suite: written by benchmarks/report.py -->", "<!-- suite: end -->"
TITLES = {
    "cnn": "Training: classic CNN, 28×28",
    "defaults": "Training with nothing but defaults: classic CNN, `compile` and `fit` alone",
    "resnet18": "Training: ResNet-18, 32×32",
    "resnet50": "Training: ResNet-50, 224×224",
    "vgg16": "Training: VGG16, 224×224",
    "resnet50_predict": "`predict`: ResNet-50, 224×224",
    "vgg16_predict": "`predict`: VGG16, 224×224",
    "accuracy": "The same work: accuracy after two epochs of 12,800 pictures of MNIST",
    "mnist": "MNIST, from process start to 99% of the test pictures",
}
NAMES = {"convolt": "**Convolt**", "pytorch eager": "PyTorch eager", "pytorch tuned": "PyTorch tuned",
         "pytorch tuned, kept memory": "PyTorch tuned, freed memory kept", "flax": "Flax", "lightning": "Lightning"}
SHORT = {"float32": "fp32", "bfloat16": "bf16", "default": "defaults"}


def name_of(peer: str) -> str:
    """Returns a peer's name for readers."""
    words = {"keras": "Keras on", "tensorflow": "TensorFlow", "tensorflow,": "TensorFlow,", "jax": "JAX", "torch": "PyTorch",
             "kept": "freed", "memory": "memory kept", "jit": "with jit_compile"}
    return NAMES.get(peer) or (" ".join(words.get(word, word) for word in peer.split()) if peer.startswith("keras") else peer)


def newest(folder: Path = HERE / "results") -> list[Path]:
    """Returns the newest files of the suite and of the zoo for each CPU and GPU: CPUs first, the one measured last at the beginning."""
    found: dict[tuple[str, str], Path] = {}
    for path in sorted([*folder.glob("suite_*.json"), *folder.glob("zoo_*.json")], key=lambda path: path.stem.split("_")[-1]):
        found[path.name.split("_")[0], hardware_of(path)] = path
    dates = {hardware: max(p.stem.split("_")[-1] for (_, h), p in found.items() if h == hardware) for _, hardware in found}
    machines = sorted(dates, key=dates.__getitem__, reverse=True)
    ordered = sorted(found, key=lambda key: (is_of_gpu(found[key]), machines.index(key[1]), key[0]))
    return [found[key] for key in ordered]


def hardware_of(path: Path) -> str:
    """Returns the name of the processor or GPU that a file of results is about; of some processors it does not tell what they can do."""
    machine = json.loads(path.read_text())["machine"]
    best = f" with {machine['instructions'][-1]}" if machine.get("instructions") and not machine["gpu"] else ""
    return f"{machine['gpu'] or machine['cpu']}{best}"


def is_of_gpu(path: Path) -> bool:
    """Whether a file of results is about a GPU."""
    return "_cuda_" in path.name


def plot_name(path: Path) -> str:
    """Returns the file name of the plot of a suite's results."""
    return f"benchmarks_{path.stem.removeprefix('suite_')}.svg"


def cells_of(rows: list[dict[str, Any]], workload: str) -> list[Cell]:
    """Returns the cells of a workload that have reports, by precision, then batch."""
    found = {Cell(row["workload"], row["batch"], row["precision"]) for row in rows if row["workload"] == workload}
    return sorted(found, key=lambda cell: (list(SHORT).index(cell.precision), cell.batch))


def median(rows: list[dict[str, Any]], peer: str, key: str) -> float | None:
    """Returns the median of a field over a peer's good reports."""
    values = [row[key] for row in rows if row["peer"] == peer and row["status"] == "ok" and row.get(key) is not None]
    return statistics.median(values) if values else None


def own(rows: list[dict[str, Any]], cell: Cell) -> list[dict[str, Any]]:
    """Returns the reports of a cell."""
    return [row for row in rows if cell.holds(row)]


def ratio(rows: list[dict[str, Any]]) -> float | None:
    """Returns how many times as fast as the best peer Convolt is, in one cell: its median over the peer's.

    Where they did their epochs in turn, each is held against the peer's of the same turn, which met the same noise; the median counts.
    """
    paired = [paired_ratio(rows, peer) for peer in dict.fromkeys(row["peer"] for row in rows if score(row)) if peer != "convolt"]
    if paired and None not in paired:
        return min(r for r in paired if r is not None)
    scores = [s for row in rows if row["peer"] == "convolt" and (s := score(row))]
    best = best_peer(rows)
    return statistics.median(scores) / best if scores and best else None


def paired_ratio(rows: list[dict[str, Any]], peer: str) -> float | None:
    """Returns the median of Convolt's rate over a peer's in the same turn, over all rounds; None where they took none in turn."""
    in_turn = {(row["peer"], row["round"]): row["rates"] for row in rows if row.get("in_turn") and row["status"] == "ok"}
    ratios = [mine / theirs for (name, number), own_rates in in_turn.items() if name == "convolt"
              for mine, theirs in zip(own_rates, in_turn.get((peer, number), []), strict=False)]
    return statistics.median(ratios) if ratios else None


def check(rows: list[dict[str, Any]]) -> None:
    """Raises ValueError unless all peers of a workload trained as many parameters."""
    for workload in {row["workload"] for row in rows}:
        counts = {row["peer"]: row["parameters"] for row in rows if row["workload"] == workload and row["status"] == "ok"}
        if len(set(counts.values())) > 1:
            raise ValueError(f"{workload}: the peers' networks differ in their number of parameters: {counts}")


# -- tables --------------------------------------------------------------------------------------------------------


def figure(value: float | None, digits: int = 0) -> str:
    """Returns a number for a table; small ones with a digit after the point."""
    if value is None:
        return "–"
    return f"{value:,.{max(digits, 1 if value < 100 else 0)}f}"


def grid(head: list[str], body: list[list[str]]) -> list[str]:
    """Returns a table's lines."""
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]


def rates(rows: list[dict[str, Any]], workload: str) -> list[str]:
    """Returns the table of images per second of one workload: a row for each peer, a column for each cell."""
    cells = cells_of(rows, workload)
    peers = [peer for peer in PEERS if any(median(own(rows, cell), peer, "images_per_second") for cell in cells)]
    order = {peer: [median(own(rows, cell), peer, "images_per_second") for cell in cells] for peer in peers}
    peers.sort(key=lambda peer: (peer != "convolt", -max(value or 0 for value in order[peer])))
    body = [[name_of(peer), *(figure(value) for value in order[peer])] for peer in peers]
    body.append(["Convolt to the best peer", *(f"**{r:.2f}**" if (r := ratio(own(rows, cell))) else "–" for cell in cells)])
    return grid(["images/s", *(f"{SHORT[cell.precision]}, batch {cell.batch}" for cell in cells)], body)


def targets(rows: list[dict[str, Any]], workload: str) -> list[str]:
    """Returns the table of accuracies after each epoch and of the time to the target."""
    lines: list[str] = []
    for cell in cells_of(rows, workload):
        good = [row for row in own(rows, cell) if row["status"] == "ok"]
        if not good:
            continue
        body = []
        for peer in sorted({row["peer"] for row in good}, key=lambda p: (p != "convolt", median(good, p, "seconds_to_target") or 1e9, p)):
            first = next(row for row in good if row["peer"] == peer)
            seconds = median(good, peer, "seconds_to_target")
            epochs = [f"{100 * accuracy:.2f}" for _, accuracy in first["accuracies"]]
            reached = [] if cell.work.epochs else [f"{seconds:.1f}" if seconds else "not reached"]
            body.append([name_of(peer), *reached, ", ".join(epochs), f"{first['accuracies'][-1][0]:.0f}"])
        head = [f"{SHORT[cell.precision]}, batch {cell.batch}", *(() if cell.work.epochs else ("seconds to 99%",))]
        lines += [""] if lines else []
        lines += grid([*head, "% of the test pictures right after each epoch", "seconds of the run"], body)
    return lines


def starts(rows: list[dict[str, Any]]) -> list[str]:
    """Returns the table of first steps and memory: Convolt, the first of all peers, and tuned PyTorch."""
    body = []
    for workload in WORKLOADS:
        for cell in cells_of(rows, workload):
            here = own(rows, cell)
            cold = {row["peer"]: row["first_step_seconds"] for row in here if row["status"] == "ok" and row["round"] == 1}
            warm = {peer: median([row for row in here if row["round"] > 1], peer, "first_step_seconds") for peer in cold}
            others = [peer for peer in cold if peer != "convolt"]
            if "convolt" not in cold or not others:
                continue
            first = min(others, key=cold.__getitem__)
            tuned = median(here, "pytorch tuned, kept memory", "peak_mib") or median(here, "pytorch tuned", "peak_mib")
            body.append([str(cell), f"{cold['convolt']:.1f} / {figure(warm['convolt'])}", f"{cold[first]:.1f} / {figure(warm[first])}",
                         name_of(first), figure(median(here, "convolt", "peak_mib")), figure(tuned)])
    return grid(["", "Convolt, cold / warm, s", "first peer, cold / warm, s", "which", "Convolt, MiB", "tuned PyTorch, MiB"], body)


def reasons(rows: list[dict[str, Any]]) -> list[str]:
    """Returns a list of what gave no figure, each reason with its cells."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["status"] != "ok":
            cell = f"{row['workload']} {row['batch']} {SHORT[row['precision']]}"
            cells = found.setdefault((row["peer"], row["status"]), [])
            cells += [] if cell in cells else [cell]
    return [f"- {name_of(peer)}: {status.replace('|', '/')} ({', '.join(cells)})" for (peer, status), cells in sorted(found.items())]


def zoo(path: Path) -> list[str]:
    """Returns the lines about one file of `benchmarks/zoo.py`."""
    results = json.loads(path.read_text())
    rows = results["reports"]
    check(rows)
    lines = [f"## {hardware_of(path)}: the architectures, at 96×96", "",
             "The first network of each family, float32, batch 16; PyTorch runs Convolt's own model. Figures in "
             f"`benchmarks/results/{path.name}`, made by `benchmarks/zoo.py`.", ""]
    peers = [peer for peer in PEERS if any(row["peer"] == peer and row["status"] == "ok" for row in rows)]
    for task, title in (("train", "training"), ("predict", "`predict`")):
        body = []
        for workload in dict.fromkeys(row["workload"] for row in rows if row["workload"].endswith("/" + task)):
            here = [row for row in rows if row["workload"] == workload]
            body.append([workload.split("/")[1], *(figure(median(here, peer, "images_per_second")) for peer in peers),
                         f"**{r:.2f}**" if (r := ratio(here)) else "–"])
        if body:
            lines += [*grid([f"images/s of {title}", *(name_of(peer) for peer in peers), "to the best peer"], body), ""]
    return lines + ([*missing, ""] if (missing := reasons(rows)) else [])


def section(path: Path) -> list[str]:
    """Returns the lines about one file of results."""
    results = json.loads(path.read_text())
    machine, rows = results["machine"], results["reports"]
    check(rows)
    versions: dict[str, str] = {}
    for row in rows:
        versions |= row.get("versions", {})
    commits = sorted({row["commit"] for row in rows})
    rounds = max(row["round"] for row in rows)
    with_instructions = " with " + ", ".join(machine["instructions"]) if machine.get("instructions") and not is_of_gpu(path) else ""
    lines = [f"## {hardware_of(path)}", "",
             f"{'GPU' if is_of_gpu(path) else 'CPU'}{with_instructions}, {machine['cores']} cores, {machine['date']}; "
             f"{rounds} round{'s' * (rounds > 1)}; "
             + ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
             + f"; Convolt at {', '.join(commits)}. Every figure is in `benchmarks/results/{path.name}`.", "",
             f"![Images per second of each peer, as a share of the best peer's](images/{plot_name(path)})", ""]
    for workload in WORKLOADS:
        if cells_of(rows, workload):
            shown = targets(rows, workload) if WORKLOADS[workload].task == "target" else rates(rows, workload)
            lines += [f"### {TITLES[workload]}", "", *shown, ""]
    lines += ["### Seconds from process start to the first step done, and peak memory", "", *starts(rows), ""]
    if missing := reasons(rows):
        lines += ["### What gave no figure", "", *missing, ""]
    return lines


def text(files: list[Path]) -> str:
    """Returns what stands between the markers."""
    lines = [line for path in files for line in (zoo if path.name.startswith("zoo") else section)(path)]
    return "\n".join([BEGIN, "", *lines, END])


# -- plots ---------------------------------------------------------------------------------------------------------


def plot(path: Path, target: Path) -> None:
    """Draws the rates of all peers in each cell, as shares of the best peer's."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams |= {"svg.hashsalt": "convolt", "svg.fonttype": "none", "font.size": 8}
    import matplotlib.pyplot as plt

    rows = json.loads(path.read_text())["reports"]
    panels = [(cell, best) for workload in WORKLOADS for cell in cells_of(rows, workload) if (best := best_peer(own(rows, cell)))]
    across = 3
    figure_, axes = plt.subplots(-(-len(panels) // across), across, figsize=(12, 2.3 * -(-len(panels) // across)), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (cell, best) in zip(axes.flat, panels, strict=False):
        here = own(rows, cell)
        scores = {peer: [s for row in here if row["peer"] == peer and (s := score(row))] for peer in PEERS}
        shares = {peer: statistics.median(found) / best for peer, found in scores.items() if found}
        shown = sorted(shares, key=shares.__getitem__)[-8:]
        shown = shown if "convolt" in shown or "convolt" not in shares else ["convolt", *shown[1:]]
        axis.axis("on")
        colors = ["#d1495b" if peer == "convolt" else "#8d99ae" for peer in shown]
        axis.barh([name_of(peer).strip("*") for peer in shown], [shares[peer] for peer in shown], color=colors)
        axis.axvline(1, color="black", linewidth=0.6)
        axis.set_title(str(cell), fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure_.supxlabel("share of the best peer's rate (of MNIST: of its inverse time)")
    figure_.tight_layout()
    target.parent.mkdir(exist_ok=True)
    figure_.savefig(target, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure_)


def main() -> None:
    files = newest()
    page = PAGE.read_text()
    if BEGIN not in page or END not in page:
        raise SystemExit(f"{PAGE}: got no markers; expected a line {BEGIN!r} and a line {END!r}")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(before + text(files) + after)
    for old in IMAGES.glob("benchmarks_*.svg"):
        old.unlink()
    for path in [path for path in files if path.name.startswith("suite")]:
        plot(path, IMAGES / plot_name(path))
    print(f"{PAGE}: {', '.join(path.name for path in files) or 'no results yet'}")


if __name__ == "__main__":
    main()
