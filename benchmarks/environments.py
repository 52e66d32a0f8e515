"""The environments in which the peers of the benchmarks run: one virtual environment for each file of `benchmarks/requirements`.

    python benchmarks/environments.py [torch tensorflow jax lightning fastai tinygrad]

They lie in the folder that `CONVOLT_BENCH_ENVS` names, by default ~/.cache/convolt/benchmarks. One that is complete is left as it is.
torch.compile and tinygrad need a C++ compiler and clang on the PATH besides.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
NAMES = tuple(sorted(path.stem for path in REQUIREMENTS.glob("*.txt")))
BARE = re.compile(r"^# without dependencies: (.+)$", re.MULTILINE)


def folder() -> Path:
    """Returns the folder of the environments and of what the measured programs cache."""
    named = os.environ.get("CONVOLT_BENCH_ENVS", "").strip()
    return Path(named) if named else Path.home() / ".cache" / "convolt" / "benchmarks"


def python_of(name: str) -> Path | None:
    """Returns the environment's Python, or None where `make` has not finished it."""
    environment = folder() / name
    python = environment / "bin" / "python"
    return python if python.exists() and (environment / "complete").exists() else None


def make(name: str) -> None:
    """Makes an environment and installs what its file lists; pip's errors end the program.

    Lines `# without dependencies: PACKAGE` are installed last, with `--no-deps`.
    """
    environment, file = folder() / name, REQUIREMENTS / f"{name}.txt"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "-q"]
    subprocess.run([*pip, "-r", str(file)], check=True)
    bare = BARE.findall(file.read_text())
    if bare:
        subprocess.run([*pip, "--no-deps", *bare], check=True)
    (environment / "complete").touch()


def main() -> None:
    wanted = sys.argv[1:] or NAMES
    unknown = set(wanted) - set(NAMES)
    if unknown:
        raise SystemExit(f"environment {', '.join(sorted(unknown))}: got an unknown name; expected {', '.join(NAMES)}")
    for name in wanted:
        if python_of(name):
            print(f"{name}: complete")
            continue
        print(f"{name}: installing into {folder() / name}", flush=True)
        make(name)


if __name__ == "__main__":
    main()
