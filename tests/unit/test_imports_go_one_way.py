"""Imports go one way: cli → models → training → compiler → kernels; models → layers; training → data."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "convolt"

# Who may import whom at the level of folders. What is not a folder of this table (errors, layout, …) is open to all.
MAY_IMPORT = {
    "layers": set(),
    "losses": {"kernels"},
    "metrics": {"losses"},
    "optimizers": {"schedules"},
    "schedules": set(),
    "data": {"kernels"},
    "datasets": {"data"},
    "preprocessing": {"data"},
    "kernels": set(),
    "compiler": {"kernels", "layers"},
    "formats": {"models", "layers", "losses", "metrics", "optimizers"},
    "training": {"data", "losses", "metrics", "optimizers", "schedules", "compiler"},
    "profiler": {"training"},
    "models": {"layers", "training", "formats", "optimizers", "schedules"},
    "applications": {"layers", "models", "formats", "data"},
    "cli": {"applications", "models", "profiler", "layers", "training", "data", "datasets", "formats", "losses", "metrics", "optimizers",
            "schedules"},
}


def imported_parts(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "convolt":
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("convolt.")}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative imports hide where a name comes from"
    return found


@pytest.mark.parametrize("folder", [name for name in MAY_IMPORT if (PACKAGE / name).is_dir()])
def test_a_folder_imports_only_what_lies_below_it(folder: str) -> None:
    for path in (PACKAGE / folder).rglob("*.py"):
        forbidden = (imported_parts(path) & set(MAY_IMPORT)) - MAY_IMPORT[folder] - {folder}
        assert not forbidden, f"{path.relative_to(PACKAGE)} imports {sorted(forbidden)}"


def test_every_folder_has_its_place() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= set(MAY_IMPORT), f"no rule for {sorted(folders - set(MAY_IMPORT))}"
