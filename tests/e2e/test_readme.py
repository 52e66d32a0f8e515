"""Every command and every piece of code in the README is run; the Chinese README has the same ones.

A comment before a block changes how it is run: `<!-- long: … -->` takes digits and one epoch, `<!-- data: mnist -->`
needs MNIST in `CONVOLT_DATA`. Commands that make environments (`make`, `pip`) are looked up and not run.
"""

import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from convolt.cli.main import main
from convolt.data import files
from convolt.datasets import digits

ROOT = Path(__file__).parents[2]
TRANSLATIONS = ("README.md", "README.zh-CN.md")
WITH_CODE = ("README.md", "docs/applications.md", "docs/attention.md", "docs/batch_normalization.md", "docs/data.md", "docs/formats.md",
             "docs/keras.md", "docs/losses_metrics.md", "docs/optimizers.md", "docs/plan.md", "docs/reliability.md", "docs/sequences.md",
             "docs/training.md", "docs/transfer_learning.md", "docs/inference.md", "docs/training_data.md")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the comment in the line before it."""

    language: str
    text: str
    comment: str

    @property
    def commands(self) -> list[tuple[str, str]]:
        """(command, what it is said to print) for each command of the block."""
        if self.language == "bash":
            return [(line, "") for line in self.text.splitlines() if line]
        parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]
        return [(command, output.strip()) for command, _, output in (part.partition("\n") for part in parts)]


def blocks(name: str) -> list[Block]:
    """Returns the fenced blocks of a Markdown file."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.findall(r"(?:^<!-- (.*?) -->\n)?^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(language, body, comment) for comment, language, body in found]


def commands(comment: str) -> list[tuple[str, str]]:
    """Returns the commands of the blocks whose comment begins like this ("" for those without one)."""
    chosen = [b for b in blocks("README.md") if b.language in ("bash", "console") and b.comment.partition(":")[0] == comment]
    return [command for block in chosen for command in block.commands]


def test_there_is_something_to_test() -> None:
    assert {block.language for block in blocks("README.md")} == {"python", "bash", "console"}
    assert {block.comment.partition(":")[0] for block in blocks("README.md")} == {"", "long", "data"}


def test_the_translation_has_the_same_code() -> None:
    first, second = (blocks(name) for name in TRANSLATIONS)
    assert [b.text for b in first] == [b.text for b in second]


@pytest.mark.parametrize("name", [*TRANSLATIONS, "CONTRIBUTING.md", "docs/architecture.md", *WITH_CODE[1:]])
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert ((ROOT / name).parent / target).exists(), f"{name} links to {target}"
    for target in re.findall(r"`((?:convolt|tests|examples|docs)/[\w/.-]*)`", text):
        assert (ROOT / target).exists(), f"{name} speaks of {target}"


@pytest.mark.parametrize("name", WITH_CODE)
def test_the_code_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVOLT_CACHE", str(tmp_path / "cache"))
    names: dict[str, object] = {"__name__": "readme"}
    for block in (b for b in blocks(name) if b.language == "python"):
        exec(compile(block.text, name, "exec"), names)
    if name == "README.md":
        assert float(names["accuracy"]) > 0.9  # type: ignore[arg-type]
        assert (tmp_path / "digits.safetensors").is_file()
        assert "GlobalAveragePooling2D" in capsys.readouterr().out


def run_convolt(command: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Runs a `convolt …` command in this process; returns its exit code and what it printed."""
    program, *arguments = shlex.split(command)
    assert program == "convolt"
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVOLT_CACHE", str(tmp_path / "cache"))
    Image.fromarray(digits.load_data()[1][0][0]).save("picture.png")
    ours = [(command, said) for command, said in commands("") if command.startswith("convolt ")]
    verbs = {"train", "evaluate", "predict", "summary", "models", "lr-find", "inspect", "export", "doctor"}
    assert {command.split()[1] for command, _ in ours} == verbs
    for command, said in ours:
        code, printed = run_convolt(command, capsys)
        assert code == (2 if said else 0), printed
        assert said in printed
    assert (tmp_path / "runs/cnn-digits/confusion.png").is_file()


def test_long_commands_on_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVOLT_CACHE", str(tmp_path / "cache"))
    found = commands("long")
    assert found
    for command, _ in found:
        short, count = re.subn(r"--data \w+ --epochs \d+", "--data digits --epochs 1", command)
        assert count == 1, f"{command}: the test makes it short"
        code, printed = run_convolt(short, capsys)
        assert code == 0, printed


@pytest.mark.parametrize("command", [command for command, _ in commands("data")])
def test_commands_that_need_data(command: str, tmp_path: Path) -> None:
    folder = files.data_folder()
    if folder is None or not (folder / "mnist.npz").exists():
        pytest.skip("CONVOLT_DATA holds no mnist.npz")
    program, script, *arguments = shlex.split(command)
    assert program == "python"
    done = subprocess.run([sys.executable, str(ROOT / script), *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout


def test_commands_that_install_name_what_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    installing = [command for command, _ in commands("") if not command.startswith("convolt ")]
    assert installing
    for command in installing:
        program, *arguments = shlex.split(command)
        if program == "make":
            done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        else:
            assert (program, arguments[:2]) == ("pip", ["install", "-e"])
            assert set(re.search(r"\[(.*)\]", arguments[2])[1].split(",")) <= set(extras)  # type: ignore[index]


def test_the_demo_trains_on_digits() -> None:
    done = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "convolt train cnn --data digits" in done.stdout
