"""The benchmark suite: what it would run, how it counts, and that the documentation quotes the files of results."""

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
RESULTS = sorted([*BENCHMARKS.glob("results/suite_*.json"), *BENCHMARKS.glob("results/zoo_*.json")])


@pytest.fixture
def suite(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import suite

    return suite


@pytest.fixture
def report(suite):
    import report

    return report


def row(peer, rate, number=1, **more):
    return {"peer": peer, "workload": "cnn", "batch": 128, "precision": "float32", "round": number, "status": "ok",
            "images_per_second": rate, **more}


def test_every_program_says_how_it_is_used():
    for program in ("suite.py", "zoo.py"):
        done = subprocess.run([sys.executable, str(BENCHMARKS / program), "--help"], capture_output=True, text=True, check=True)
        assert "--budget" in done.stdout and "--minutes" in done.stdout


def test_every_peer_has_its_script_and_its_requirements(suite):
    for name, peer in suite.PEERS.items():
        assert (BENCHMARKS / "peers" / peer.script).exists(), name
        assert peer.environment == "own" or (BENCHMARKS / "requirements" / f"{peer.environment}.txt").exists(), name


def test_every_cell_compares_convolt_with_others(suite):
    for cell in suite.cells(suite.parse([])):
        peers = cell.peers(None)
        assert peers[0] == "convolt" and len(peers) > 1, cell
    with pytest.raises(SystemExit):
        suite.parse(["--workloads", "cn"])


def test_options_choose_parts_of_the_round(suite):
    options = suite.parse(["--workloads", "cnn", "--precisions", "bfloat16", "--batches", "64", "--peers", "flax", "convolt", "tinygrad"])
    (cell,) = suite.cells(options)
    assert str(cell) == "cnn, batch 64, bfloat16"
    assert cell.peers(options.peers) == ["convolt", "flax"]  # tinygrad has no bfloat16


def test_later_rounds_repeat_only_convolt_and_its_contenders(suite):
    options = suite.parse(["--workloads", "cnn", "--precisions", "float32", "--batches", "128", "--rounds", "2"])
    (cell,) = suite.cells(options)
    rates = dict.fromkeys(cell.peers(None), 10.0) | {"convolt": 50.0, "flax": 100.0, "pytorch tuned": 75.0}
    rows = [row(name, rate) for name, rate in rates.items()]
    assert [(name, number) for name, _, number in suite.turns(options, rows)] == [("convolt", 2), ("pytorch tuned", 2), ("flax", 2)]


def test_a_missing_environment_is_a_row_that_says_so(suite, monkeypatch, tmp_path):
    monkeypatch.setenv("CONVOLT_BENCH_ENVS", str(tmp_path))
    found = suite.run_peer("tinygrad", suite.Cell("cnn", 128, "float32"), 1, suite.parse([]))
    assert found["status"] == "no environment 'tinygrad'"


def test_a_failing_and_a_slow_peer_are_rows_that_say_so(suite, monkeypatch, tmp_path):
    monkeypatch.setenv("CONVOLT_BENCH_ENVS", str(tmp_path))
    monkeypatch.setitem(suite.PEERS, "failing", suite.Peer("no_such_script.py", "", "own"))
    cell = suite.Cell("cnn", 128, "float32")
    assert "no_such_script.py" in suite.run_peer("failing", cell, 1, suite.parse([]))["status"]
    slow = suite.run_peer("convolt", cell, 1, suite.parse(["--limit", "0.01"]))
    assert slow["status"] == "not done within 0 s"
    assert suite.hopeless("convolt", suite.Cell("cnn", 128, "bfloat16"), [slow]) == "not tried: float32 was not done within 0 s"


@pytest.mark.parametrize("how", [[], ["--alone"]], ids=["in turn", "alone"])
def test_a_round_measures_writes_and_continues(suite, monkeypatch, tmp_path, capsys, how):
    monkeypatch.setenv("CONVOLT_BENCH_ENVS", str(tmp_path))
    target = tmp_path / "results.json"
    options = suite.parse(["--workloads", "cnn", "--precisions", "float32", "--batches", "32", "--peers", "pytorch eager", "--rounds", "1",
                           "--budget", "0", "--images", "64", "--threads", "1", "--limit", "600", "--output", str(target), *how])
    suite.run_round(options)
    (only,) = json.loads(target.read_text())["reports"]
    assert only["status"] == "ok" and only["images_per_second"] > 0 and only["first_step_seconds"] > 0 and only["parameters"] == 121_930
    assert how or len(only["rates"]) == 5
    suite.run_round(options)
    assert len(json.loads(target.read_text())["reports"]) == 1
    assert "nothing is left" in capsys.readouterr().out


def test_peers_take_turns_and_one_that_fails_leaves_the_others(suite, tmp_path):
    script = tmp_path / "peer.py"
    script.write_text("""if True:
        import json, sys
        name, log = sys.argv[1:]
        for n in range(3 if name == "failing" else 10**6):
            print("turn", flush=True)
            if sys.stdin.readline() != "go\\n":
                break
            open(log, "a").write(name[0])
        if name == "failing":
            raise KeyError("gone")
        print(json.dumps({"side": name, "rates": n}))""")
    processes = [suite.Process({"peer": name, "workload": "cnn"}, [sys.executable, str(script), name, str(tmp_path / "log")], {}, 60.0)
                 for name in ("one", "failing", "two")]
    one, failing, two = suite.in_turn.run(processes, suite.report_of, 0.0)
    assert (one["status"], two["status"], one["rates"], two["rates"]) == ("ok", "ok", 5, 5)
    assert failing["status"] == "failed: KeyError: 'gone'"
    assert (tmp_path / "log").read_text() == "tfo" "oft" "tfo" "ot" "to"


def test_ratios_are_of_medians_and_networks_are_compared(report):
    rows = [row("convolt", 30.0), row("convolt", 50.0, 2), row("convolt", 10.0, 3), row("flax", 15.0), row("pytorch tuned", 20.0)]
    assert report.ratio(rows) == 1.5
    in_turn = [row(peer, statistics.median(rates), rates=rates, in_turn=True)
               for peer, rates in (("convolt", [10.0, 5.0, 9.0]), ("flax", [5.0, 2.5, 8.0]), ("keras jax", [1.0, 1.0, 1.0, 1.0]))]
    assert report.ratio(in_turn) == 2.0, "of the turns, though 9 / 5 is less"
    report.check([row("convolt", 1.0, parameters=7), row("flax", 1.0, parameters=7)])
    with pytest.raises(ValueError, match="number of parameters"):
        report.check([row("convolt", 1.0, parameters=7), row("flax", 1.0, parameters=8)])


def test_the_page_quotes_the_newest_results(report):
    page = report.PAGE.read_text()
    assert report.text(report.newest()) in page, "run python benchmarks/report.py"


def test_the_page_names_files_that_exist():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    named = re.findall(r"`(benchmarks/[\w./-]+\.(?:json|py))`", page)
    named += [f"docs/{image}" for image in re.findall(r"\((images/[\w.]+)\)", page)]
    assert named and all((ROOT / name).exists() for name in named), [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_every_file_of_results_can_be_told(report, path, tmp_path):
    lines = (report.zoo if path.name.startswith("zoo") else report.section)(path)
    assert any("to the best peer" in line for line in lines)
    if path.name.startswith("suite"):
        report.plot(path, tmp_path / "plot.svg")
        assert "Convolt" in (tmp_path / "plot.svg").read_text()
