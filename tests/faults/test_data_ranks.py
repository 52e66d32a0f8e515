"""Two ranks that talk through gloo agree on the data: the same files left out, the same numbers of samples, the same digest of the set."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from convolt.data import ImageFolder, SkippedFilesWarning
from convolt.data.batches import epoch_order
from tests.unit.pictures import encode

ROOT = Path(__file__).parents[2]
BAD = {"cat/003.png": b"", "cat/050.png": b"no picture", "dog/077.png": b"\x89PNG\r\n"}
RANK = "import sys; from tests.faults.test_data_ranks import rank; rank(sys.argv[1], sys.argv[2], int(sys.argv[3]))"
COUNT = 200


def rank(folder: str, meeting: str, number: int) -> None:
    """What one of two ranks does: it reads its share of two epochs, then both compare what they have met, and read the other's share."""
    from torch import distributed

    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=2)
    warnings.simplefilter("ignore", SkippedFilesWarning)
    pictures = ImageFolder(folder, workers=1 + number)
    shares = []
    for epoch in range(2):
        rows = epoch_order(len(pictures), 7, epoch, number, 2).numpy()
        shares.append(np.concatenate([kept for _, kept in pictures.batches([rows[:90], rows[90:]], 120)]).tolist())
    found: list[object] = [None, None]
    distributed.all_gather_object(found, (pictures.fingerprint(), shares, {bad.path: bad.reason for bad in pictures.bad}))
    (mark, first, bad), (other_mark, second, other_bad) = found  # type: ignore[misc]
    assert mark == other_mark
    for mine, others in zip(first, second, strict=True):
        assert not set(mine) & set(others)
        assert len(mine) + len(others) == 2 * COUNT - len(BAD)
    assert all(other_bad[path] == bad[path] for path in bad.keys() & other_bad.keys())
    assert {**bad, **other_bad}.keys() == BAD.keys()
    pictures.load()  # whoever reads all leaves the same out, for the same reasons
    lists: list[object] = [None, None]
    distributed.all_gather_object(lists, [(file.path, file.reason) for file in pictures.bad])
    assert lists[0] == lists[1] == sorted({**bad, **other_bad}.items())
    print("agreed", len(pictures.bad))
    distributed.destroy_process_group()


def test_two_ranks_leave_out_the_same_files(tmp_path: Path) -> None:
    assert torch.distributed.is_gloo_available()
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for n in range(COUNT):
            pixels = np.random.default_rng(n + 1000 * label).integers(0, 256, (8, 8, 3), np.uint8)
            content = BAD.get(f"{name}/{n:03d}.png", encode(Image.fromarray(pixels)))
            (tmp_path / "pets" / name / f"{n:03d}.png").write_bytes(content)
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(tmp_path / "pets"), str(tmp_path / "meeting"), str(number)], cwd=ROOT,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for number in range(2)]
    said = [process.communicate(timeout=120) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], said[0][1][-2000:] + said[1][1][-2000:]
    assert [out.strip() for out, _ in said] == [f"agreed {len(BAD)}"] * 2
