"""`convolt plan`: the table of candidates, on real digits."""

import json

import pytest

from convolt.cli.main import main

pytest.importorskip("sklearn")


def test_each_candidate_has_its_figures_and_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "cnn", "--data", "digits", "--batch-size", "16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("cnn on digits, batch 16: ")
    assert lines[1].split()[:2] == ["candidate", "images/s"]
    names = [line.split("  ")[1] for line in lines[2:] if line]
    assert names[0] == "layers" and "bn+relu" in names and names[-1] == "graph of the whole step"
    assert all("chosen" in line or "refused" in line for line in lines[2:] if line)
    assert "MiB" in lines[3]


def test_what_is_asked_for_as_json_and_as_a_graph(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "cnn", "--data", "digits", "--fusions", "bn+relu", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["form"] == "fused" and set(plan["fusions"]) == {"bn+relu"}
    assert {row["name"]: row["why"] for row in plan["rows"]}["fused"] == "asked for"
    assert main(["plan", "cnn", "--data", "digits", "--fusions", "all", "--graph"]) == 0
    text = capsys.readouterr().out
    assert text.index("before:") < text.index("after:") and "Norm(relu)" in text
    assert main(["plan", "cnn", "--data", "digits", "--fusions", "bn+rel"]) == 2
    assert "Did you mean 'bn+relu'?" in capsys.readouterr().err
