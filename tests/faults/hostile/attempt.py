"""Opens every file of the corpus as a user would, in a process with bounded memory, and says what came of each.

    python -m tests.faults.hostile.attempt FOLDER PORT [NAME...]

prints for each file a line of JSON: the message or what else happened, seconds, growth of memory, and what `convolt inspect` says.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.faults.hostile import corpus, corpus_keras  # noqa: F401 (which list their files)
from tests.faults.hostile.builders import CORPUS, Bench
from tests.faults.hostile.worker import bound_memory


def main(folder: Path, port: int, names: list[str]) -> None:
    import convolt
    from convolt.formats.inspect import inspect_file

    os.chdir(folder)  # so that messages, which are cut, do not depend on where the folder is
    Path("MODELS").mkdir()
    bench = Bench(Path("MODELS"), port)
    contents = {".safetensors": bench.own, ".h5": bench.h5, ".keras": bench.keras}
    whole = [bench.write(f"good{suffix}", data) for suffix, data in contents.items()]
    files = {thing.name: thing.build(bench) for thing in CORPUS if not names or thing.name in names}
    for path in whole:
        assert convolt.load_model(path, device="cpu").count_params(), "the corpus is made of whole files"
        assert inspect_file(path).safe, path
    bench.canary.unlink(missing_ok=True)
    bound_memory()
    for name, path in files.items():
        before, start = _peak(), time.monotonic()
        line: dict[str, Any] = {"name": name, **_outcome(path), "seconds": time.monotonic() - start, "grown": _peak() - before}
        report = inspect_file(path)
        line |= {"safe": report.safe, "problems": report.problems, "canary": bench.canary.exists()}
        print(json.dumps(line), flush=True)


def _outcome(path: Path) -> dict[str, str]:
    import convolt
    from convolt.errors import ConvoltError

    try:
        model = convolt.load_model(path, device="cpu")
    except ConvoltError as error:
        return {"class": type(error).__name__, "message": str(error)}
    except BaseException:
        return {"class": "other", "message": traceback.format_exc()}
    return {"class": "loaded", "message": repr(model)}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
