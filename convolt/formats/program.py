"""`.pt2`: the model as a `torch.export` program, which PyTorch runs without Convolt and without TorchScript."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from convolt.errors import ConvoltError, ModelFileError, explain
from convolt.formats.exported import Exported


def write(exported: Exported, path: Path) -> None:
    """Writes the program with any batch size; `torch.export.load(path).module()(x)` runs it.

    The metadata (see `Exported.metadata`) are extra files of the archive, one for each entry.

    Raises:
        ModelFileError: torch.export cannot follow the model.
    """
    batch = torch.export.Dim("batch")
    examples = exported.examples()
    try:
        with torch.no_grad():
            program = torch.export.export(exported, examples, dynamic_shapes=(tuple({0: batch} for _ in examples),), strict=False)
    except ConvoltError:
        raise
    except Exception as error:  # torch.export raises many kinds, and those of the user's code
        raise ModelFileError(explain(f"export of {exported.model.name!r} to a torch.export program",
                                     str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
                                     "a forward without branches on values")) from error
    weights = program.state_dict
    for name, weight in weights.items():  # the archive stores plain order; the model's own kernels lie channels-last
        plain = weight.detach().contiguous()
        weights[name] = torch.nn.Parameter(plain, weight.requires_grad) if isinstance(weight, torch.nn.Parameter) else plain
    torch.export.save(program, path, extra_files=exported.metadata())


def run(path: Path, inputs: Sequence[np.ndarray], batch_size: int = 256) -> list[np.ndarray]:
    """Returns the outputs of a program that was just written; a foreign file is not safe to load."""
    module = torch.export.load(path).module()
    with torch.no_grad():
        parts = [module(*(torch.from_numpy(np.ascontiguousarray(x[i : i + batch_size])) for x in inputs))
                 for i in range(0, len(inputs[0]), batch_size)]
    return [np.concatenate([part.detach().numpy() for part in output]) for output in zip(*parts, strict=True)]
