"""Compiling kernels in a process of its own, which ends when nothing is asked of it for a while: LLVM's memory goes with it."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

IDLE_SECONDS = 20.0
"""After which the process ends; the next kernel starts another."""

_START = "import sys; sys.path.insert(0, sys.argv[1]); from convolt.kernels.builder import serve; serve()"
_lock = threading.Lock()
_process: subprocess.Popen[bytes] | None = None
_owner = 0
_of_parents: list[Any] = []


class CompilationError(Exception):
    """The kernel cannot be compiled; the message is the compiler's."""


def compile_elsewhere(request: dict[str, Any]) -> bytes | None:
    """Returns the object file of a kernel of `convolt.kernels`, or None where there is no process that could make it.

    Args:
        request: what `compile_here` takes.

    Raises:
        CompilationError: the compiler refused.
    """
    with _lock:
        for _ in range(2):  # a process that was just about to end is started anew
            try:
                answer = _ask(_running(), request)
            except OSError:  # no process could be started, or it has ended
                answer = None
            except BaseException:  # as of Ctrl-C: what is still to be read would be taken for the next answer
                _end()
                raise
            if answer is not None:
                told, code = answer
                if "error" in told:
                    raise CompilationError(told["error"])
                return code
            _end()
    return None


def _ask(process: subprocess.Popen[bytes], request: dict[str, Any]) -> tuple[dict[str, Any], bytes] | None:
    """Returns the answer's line and the object file; None where the process ended before."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        return None
    told = json.loads(line)
    code = process.stdout.read(told["size"])
    return (told, code) if len(code) == told["size"] else None


def compile_here(name: str, module: str, function: str, made_by: list[Any] | None, kinds: list[Any], rows: bool,
                 fastmath: list[str]) -> bytes:
    """Returns the object file of a kernel, compiled in this process.

    Args:
        name: of the function in the file.
        module, function: where the kernel is found by name.
        made_by: None, or the arguments with which that function makes the kernel.
        kinds, rows, fastmath: see `team_numba.object_code`.
    """
    from convolt.kernels import team_numba

    found = getattr(importlib.import_module(module), function)
    if made_by is not None:
        found = found(*made_by)
    return team_numba.object_code(name, getattr(found, "function", found), kinds, rows, fastmath)


def _running() -> subprocess.Popen[bytes]:
    global _process, _owner
    if _process is not None and _owner != os.getpid():  # a forked child has a builder of its own
        _of_parents.append(_process)
        _process = None
    if _process is None:
        root = str(Path(__file__).parents[2])
        _process = subprocess.Popen([sys.executable, "-c", _START, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                    start_new_session=True)  # Ctrl-C is for the training alone
        _owner = os.getpid()
    return _process


@atexit.register
def _end() -> None:
    global _process
    if _process is None or _owner != os.getpid():
        return
    process, _process = _process, None
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with contextlib.suppress(OSError):  # it has ended already, with a request unread
            pipe.close()
    process.kill()
    process.wait()


def serve() -> None:
    """Answers requests, one a line on stdin, until there are none: a line of JSON, then the object file."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints meanwhile does not come between
    idle = threading.Timer(0, lambda: None)
    for line in sys.stdin.buffer:
        idle.cancel()
        try:
            code = compile_here(**json.loads(line))
            told: dict[str, Any] = {"size": len(code)}
        except Exception as error:  # the caller raises it
            code, told = b"", {"size": 0, "error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(told).encode() + b"\n" + code)
        answers.flush()
        idle = threading.Timer(IDLE_SECONDS, os._exit, (0,))
        idle.daemon = True
        idle.start()
