"""What docs/safety.md says is so: its code runs, the files that it names are in the corpus."""

import re
import subprocess
import sys
from pathlib import Path

from tests.faults.hostile import corpus, corpus_keras  # noqa: F401 (which list their files)
from tests.faults.hostile.builders import CORPUS

PAGE = (Path(__file__).parents[3] / "docs" / "safety.md").read_text(encoding="utf-8")


def test_the_code_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    done = subprocess.run([sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True [('kind.bias', (2,)), ('kind.weight', (2, 4))]")


def test_every_hostile_file_that_is_named_is_built() -> None:
    table = PAGE.partition("| Class | Files |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`([a-z_0-9]+)`", table)) - {"custom_objects"}
    assert len(named) >= 20
    assert named <= {thing.name for thing in CORPUS}
