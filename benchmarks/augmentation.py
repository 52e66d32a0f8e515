"""Speed of augmentation: flip, rotation, shear, zoom, translation, brightness, contrast and cutout of a batch of bytes.

    python benchmarks/augmentation.py [--device cpu|cuda] [--seconds 2] [--sides ...] [--peers-python PATH]

Each side runs in a process of its own, in turn, on 512 pictures of 32 × 32 × 3 and 64 of 224 × 224 × 3, from uint8 in memory (on the
device) to what a model takes. `--peers-python` has kornia, albumentations and keras with tensorflow. Writes
`benchmarks/results/augmentation_DEVICE_DATE.json` and prints a table: milliseconds per batch (median), pictures per second, ratio to
Convolt in float32, and for Convolt the share of the bandwidth that a plain copy reaches.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from environments import python_of  # noqa: E402
from suite import KEPT, machine  # noqa: E402

SHAPES = ((512, 32), (64, 224))
OWN = ("convolt", "convolt bfloat16", "convolt uint8", "convolt flip and crop")
PEERS = ("kornia one affine", "kornia each", "albumentations 2 threads", "keras tensorflow", "keras tensorflow+jit", "keras torch")
ON_GPU = (*OWN, "kornia one affine", "kornia each")
COPY = "copy"


def pictures(count: int, size: int) -> Any:
    """Returns bytes that are not constant."""
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype="uint8")


# -- the sides: each returns a function that makes one batch ----------------------------------------------------------


def convolt_side(side: str, x: Any, device: str) -> Callable[[], Any]:
    import torch

    from convolt.data import augment

    transforms = [augment.RandomFlip("horizontal"), augment.RandomRotation(10), augment.RandomShear(0.2, 0.2), augment.RandomZoom(0.2),
                  augment.RandomTranslation(0.1, 0.1), augment.RandomBrightness(0.2), augment.RandomContrast(0.2), augment.Cutout(0.25)]
    if side.endswith("flip and crop"):
        transforms = [augment.RandomFlip("horizontal"), augment.RandomCrop(x.shape[1], padding=4)]
    chain = augment.Augmentation(transforms)
    dtype = {"bfloat16": torch.bfloat16, "uint8": torch.uint8}.get(side.split()[-1], torch.float32)
    source = torch.from_numpy(x).to(device)
    rows, epoch = torch.arange(len(x), device=device), torch.zeros((), dtype=torch.int64, device=device)

    def batch() -> Any:
        epoch.add_(1)
        return chain.apply(source, rows, augment.keys(0, epoch, rows), dtype=dtype).images

    return batch


def copy_side(side: str, x: Any, device: str) -> Callable[[], Any]:
    """Bytes to float32 and nothing else: the bytes that any augmentation has to move."""
    import torch

    source = torch.from_numpy(x).to(device)
    return lambda: source.to(torch.float32)


def kornia_side(side: str, x: Any, device: str) -> Callable[[], Any]:
    import kornia.augmentation as K  # type: ignore[import-not-found]
    import torch

    moved = [K.RandomAffine(10, (0.1, 0.1), (0.8, 1.2), (-11.3, 11.3, -11.3, 11.3), p=1.0)]
    if side.endswith("each"):
        moved = [K.RandomRotation(10, p=1.0), K.RandomShear((-11.3, 11.3, -11.3, 11.3), p=1.0), K.RandomAffine(0, scale=(0.8, 1.2), p=1.0),
                 K.RandomTranslate((-0.1, 0.1), (-0.1, 0.1), p=1.0)]
    chain = torch.nn.Sequential(K.RandomHorizontalFlip(), *moved, K.RandomBrightness((0.8, 1.2), p=1.0),
                                K.RandomContrast((0.8, 1.2), p=1.0), K.RandomErasing((0.06, 0.07), (1.0, 1.0), p=1.0))
    source = torch.from_numpy(x).to(device)

    def batch() -> Any:
        with torch.no_grad():
            return chain(source.permute(0, 3, 1, 2).contiguous().to(torch.float32) / 255)

    return batch


def albumentations_side(side: str, x: Any, device: str) -> Callable[[], Any]:
    from concurrent.futures import ThreadPoolExecutor

    import albumentations  # type: ignore[import-not-found]
    import cv2  # type: ignore[import-not-found]
    import numpy as np

    cv2.setNumThreads(0)
    side_length = max(1, x.shape[1] // 4)
    chain = albumentations.Compose([
        albumentations.HorizontalFlip(p=0.5),
        albumentations.Affine(rotate=(-10, 10), shear=(-11.3, 11.3), scale=(0.8, 1.2), translate_percent=(-0.1, 0.1),
                              border_mode=cv2.BORDER_REFLECT, p=1.0),
        albumentations.RandomBrightnessContrast(0.2, 0.2, p=1.0),
        albumentations.CoarseDropout((1, 1), (side_length, side_length), (side_length, side_length), p=1.0)])
    pool = ThreadPoolExecutor(2)

    def some(part: Any) -> Any:
        return [chain(image=picture)["image"] for picture in part]

    def batch() -> Any:
        return np.stack([p for part in pool.map(some, np.array_split(x, 2)) for p in part])

    return batch


def keras_side(side: str, x: Any, device: str) -> Callable[[], Any]:
    backend, _, jit = side.removeprefix("keras ").partition("+")
    os.environ |= {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    import keras

    layers = [keras.layers.RandomFlip("horizontal"), keras.layers.RandomRotation(10 / 360), keras.layers.RandomShear(0.2, 0.2),
              keras.layers.RandomZoom(0.2), keras.layers.RandomTranslation(0.1, 0.1), keras.layers.RandomBrightness(0.2),
              keras.layers.RandomContrast(0.2), keras.layers.RandomErasing(1.0, (0.06, 0.07), 0.0)]

    def chain(images: Any) -> Any:
        for layer in layers:
            images = layer(images, training=True)
        return images

    if backend == "tensorflow":
        import tensorflow as tf  # type: ignore[import-not-found]

        given = tf.constant(x)
        compiled = tf.function(lambda images: chain(tf.cast(images, tf.float32)), jit_compile=bool(jit))
        return lambda: compiled(given).numpy()
    import torch

    source = torch.from_numpy(x)

    def batch() -> Any:
        with torch.no_grad():
            return chain(source.to(torch.float32))

    return batch


MAKERS = {"convolt": convolt_side, "copy": copy_side, "kornia": kornia_side, "albumentations": albumentations_side, "keras": keras_side}


def measure(side: str, device: str, seconds: float) -> list[dict[str, Any]]:
    """Returns milliseconds per batch, the median of a few seconds, for each shape."""
    found = []
    for count, size in SHAPES:
        batch = MAKERS[side.split()[0]](side, pictures(count, size), device)
        wait: Callable[[], Any] = lambda: None  # noqa: E731
        if device == "cuda":
            import torch

            wait = torch.cuda.synchronize
        begin = time.perf_counter()
        batch()
        wait()
        first = time.perf_counter() - begin
        for _ in range(2):
            batch()
        wait()
        times: list[float] = []
        end = time.perf_counter() + seconds
        repeats = 20 if device == "cuda" else 1
        while len(times) < 3 or time.perf_counter() < end:
            begin = time.perf_counter()
            for _ in range(repeats):
                batch()
            wait()
            times.append((time.perf_counter() - begin) * 1e3 / repeats)
        found.append({"side": side, "pictures": count, "size": size, "milliseconds": statistics.median(times), "fastest": min(times),
                      "batches": len(times) * repeats, "first_seconds": first})
    return found


def run_side(side: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs one side in a process of its own."""
    python = options.peers_python if side in PEERS else sys.executable
    command = [python, str(Path(__file__)), "--side", side, "--device", options.device, "--seconds", str(options.seconds)]
    environment = os.environ | KEPT | {"PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)
    if done.returncode:
        print(f"  {side} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}", flush=True)
        return []
    return list(json.loads(done.stdout.strip().splitlines()[-1]))


def versions_of(python: str) -> dict[str, str]:
    """Returns the versions of the peers."""
    code = ("import importlib.metadata as m, json; print(json.dumps({p: m.version(p) for p in ('kornia', 'albumentations', 'keras', "
            "'tensorflow_cpu', 'torch') if any(d.metadata['Name'].replace('-', '_').lower() == p for d in m.distributions())}))")
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {}


def compare(options: argparse.Namespace) -> None:
    """Runs all sides in turn, `--rounds` times, and writes medians."""
    sides = [s for s in (COPY, *options.sides) if options.device == "cpu" or s in (COPY, *ON_GPU)]
    sides = [s for s in sides if s not in PEERS or options.peers_python]
    info = machine(options.device) | {"peers": versions_of(options.peers_python) if options.peers_python else {}}
    rounds = [row for _ in range(options.rounds) for side in sides for row in run_side(side, options)]
    rows = []
    for count, size in SHAPES:
        medians = {side: statistics.median(times) for side in sides
                   if (times := [r["milliseconds"] for r in rounds if r["side"] == side and r["size"] == size])}
        print(f"\n{count} pictures of {size} × {size} × 3, {options.device}")
        for side, milliseconds in medians.items():
            row = {"side": side, "pictures": count, "size": size, "milliseconds": milliseconds,
                   "pictures_per_second": 1e3 * count / milliseconds,
                   "times_convolt": milliseconds / medians["convolt"] if "convolt" in medians else None,
                   "share_of_copy": medians[COPY] / milliseconds if COPY in medians else None}
            rows.append(row)
            print(f"  {side:<26}{milliseconds:>10.2f} ms{row['pictures_per_second']:>14,.0f} pictures/s"
                  f"{row['times_convolt'] or 0:>8.2f} × Convolt's time{row['share_of_copy'] or 0:>8.0%} of a copy")
    target = HERE / "results" / f"augmentation_{options.device}_{info['date']}.json"
    target.write_text(json.dumps({"machine": info, "rows": rows, "rounds": rounds}, indent=1) + "\n")
    print(f"\nwritten to {target}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sides", nargs="+", default=[*OWN, *PEERS], choices=[*OWN, *PEERS])
    parser.add_argument("--peers-python", default=str(python_of("augmentation") or "") or None)
    parser.add_argument("--side", default=None, help="run this side alone, in this process")
    options = parser.parse_args()
    if options.side is None:
        compare(options)
    else:
        print(json.dumps(measure(options.side, options.device, options.seconds)))


if __name__ == "__main__":
    main()
