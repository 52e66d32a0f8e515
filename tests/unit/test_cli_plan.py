"""`convolt plan`: the table of candidates, on real digits."""

import json
from pathlib import Path

import pytest

from convolt.cli.main import main

pytest.importorskip("sklearn")


def test_each_candidate_has_its_figures_and_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "cnn", "--data", "digits", "--batch-size", "16", "--execution", "eager"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("cnn on digits, batch 16: ")
    assert lines[1].split()[:2] == ["candidate", "images/s"]
    names = [line.split("  ")[1] for line in lines[2:] if line]
    assert names[0] == "layers" and "bn+relu" in names and names[-2:] == ["graph of the whole step", "replay of the whole step"]
    assert all("chosen" in line or "refused" in line for line in lines[2:] if line)
    assert "MiB" in lines[3]


def test_what_is_asked_for_as_json_and_as_a_graph(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "cnn", "--data", "digits", "--fusions", "bn+relu", "--execution", "eager", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["form"] == "fused" and set(plan["fusions"]) == {"bn+relu"}
    assert {row["name"]: row["why"] for row in plan["rows"]}["fused"] == "asked for"
    assert main(["plan", "cnn", "--data", "digits", "--fusions", "all", "--execution", "eager", "--graph"]) == 0
    text = capsys.readouterr().out
    assert text.index("before:") < text.index("after:") and "Norm(relu)" in text
    assert main(["plan", "cnn", "--data", "digits", "--fusions", "bn+rel"]) == 2
    assert "Did you mean 'bn+relu'?" in capsys.readouterr().err


@pytest.mark.slow
def test_a_compiled_form_is_in_the_table_and_can_be_pinned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "cnn", "--data", "digits", "--batch-size", "16"]) == 0
    rows = {line[2:].split("  ")[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert ("compiled in" in rows["compiled"] and "images/s" in rows["compiled"]) or "as fast as" in rows["compiled"]
    assert main(["plan", "cnn", "--data", "digits", "--batch-size", "16", "--fusions", "none", "--execution", "compile", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["execution"] == "compile" and plan["compiled_for"] == [[16, 1, 8, 8]]


def test_what_is_pinned_is_in_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "cnn", "--data", "digits", "--fusions", "none", "--execution", "eager", "--micro-batch", "48", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["form"], plan["execution"], plan["micro_batch"]) == ("layers", "eager", 48)
    assert {row["name"]: row["why"] for row in plan["rows"]}["graph of the whole step"] == "asked for eager"


def test_a_pinned_training_keeps_it_in_its_folder_and_in_the_line_that_repeats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pins = ["--fusions", "bn+relu,conv+relu+pool", "--execution", "eager", "--micro-batch", "48", "--steps-per-execution", "auto"]
    assert main(["train", "cnn", "--data", "digits", "--epochs", "1", "--device", "cpu", "--name", "pinned", *pins]) == 0
    assert "bn+relu" in capsys.readouterr().out
    config = json.loads(Path("runs/pinned/config.json").read_text(encoding="utf-8"))
    assert [config["options"][name] for name in ("fusions", "execution", "micro_batch")] == [*pins[1::2][:2], 48]
    assert config["plan"]["fusions"].keys() >= {"bn+relu"} and config["plan"]["micro_batch"] == 48
    assert [config["command"][config["command"].index(name) + 1] for name in pins[::2]] == pins[1::2]
    before = config["command"]
    assert main(["train", "--resume", "runs/pinned", "--epochs", "2", "--allow-change", "epochs,length of schedule"]) == 0
    after = json.loads(Path("runs/pinned/config.json").read_text(encoding="utf-8"))
    assert after["options"]["fusions"] == pins[1] and after["plan"]["execution"] == "eager" and after["command"][-8:] == before[-8:]
