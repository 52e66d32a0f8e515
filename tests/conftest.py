"""The suite's own cache folder: nothing of the user's is read or written, and no test sees what another one measured."""

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_collection_finish() -> None:
    """The garbage collector no longer goes through what stays: fourteen thousand tests and all that they import."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`CONVOLT_CACHE` of this run, one for each of xdist's processes; what was decoded is shared between them.

    The kernels' machine code is kept beside the source (or in `NUMBA_CACHE_DIR`), so that they are compiled once for all runs.
    """
    cache = tmp_path_factory.mktemp("cache", numbered=False)
    run = tmp_path_factory.getbasetemp()
    decoded = (run.parent if "PYTEST_XDIST_WORKER" in os.environ else run) / "decoded"
    decoded.mkdir(exist_ok=True)
    (cache / "decoded").symlink_to(decoded, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVOLT_CACHE", str(cache))
        yield cache


@pytest.fixture(scope="session", autouse=True)
def _rewrites_of_any_processor() -> Iterator[None]:
    """Which rewrites there are does not depend on who made the processor that the tests run on; some tests say so themselves."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("compiler.fuse.has_slow_mkl", "kernels.tiles.multiplies_at_half_rate"):
            patch.setattr(f"convolt.{name}", lambda: False)
        yield


@pytest.fixture(autouse=True)
def _own_measurements(cache_of_the_run: Path) -> Iterator[None]:
    """Each test measures by itself: plans and speeds do not outlive it."""
    yield
    shutil.rmtree(cache_of_the_run / "plans", ignore_errors=True)
    (cache_of_the_run / "speeds.json").unlink(missing_ok=True)
