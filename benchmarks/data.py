"""From JPEGs on a disk to augmented batches, beside PyTorch with Pillow, with albumentations, Keras and raw memory maps.

    python benchmarks/environments.py augmentation     once: the peers' environment
    python benchmarks/data.py --pictures CIFAR_FOLDER --size 32 --batch 512 --name cifar10
    python benchmarks/data.py --generate 300 --size 224 --batch 64 --name 500x400

Every side reads the same files, makes them `size` × `size`, and flips, rotates, shears, zooms, translates, brightens, changes contrast and
cuts out; its figure is pictures per second of whole epochs, in the form in which it hands batches over: bfloat16 (Convolt, for a training
in bfloat16), float32 (Keras), bytes (the others). Each runs in a process of its own, the peers with the Python of the
environment "augmentation", in turn, `--rounds` times; medians are kept. All keep freed memory, as a training of Convolt's does.
`benchmarks/results/data_NAME_cpu_DATE.json` is written. Sides with workers run with 0 and 2 of them, and the faster counts. Imports,
and compiling on other pictures of the same shape, are outside the clock for all sides, and the files are in the system's cache. The
second epoch is the best that a side offers: pictures in memory (convolt), `cache()` (keras), an array on the disk (memmap); the others
decode again. Both are run several times, the first one from the files each time, and the median of a process counts: three hundred
pictures take a fraction of a second, in which a busy machine decides.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from environments import python_of  # noqa: E402
from suite import KEPT, machine  # noqa: E402

REPEATS = 9
REPEAT_SECONDS = 6.0
OWN = ("convolt", "packed")
SIDES = ("convolt", "packed", "pillow", "albumentations", "memmap", "keras")
Epoch = Callable[[], int]
"""Runs an epoch and returns how many pictures it had."""

Epochs = dict[str, Epoch]
"""A side's "first" and "second" epoch, or one of them; "warm_up" is run once before the second ones."""


def generate(folder: Path, count: int) -> None:
    """Draws JPEGs of 500×400 pixels with detail at all scales, in two classes."""
    from PIL import Image

    for number in range(count):
        chance = np.random.default_rng(number)
        total = np.zeros((400, 500, 3))
        for step in (2, 4, 16, 64):
            small = Image.fromarray(chance.integers(0, 256, (400 // step + 2, 500 // step + 2, 3), np.uint8))
            total += np.asarray(small.resize((500, 400), Image.Resampling.BICUBIC)) * step**0.6
        total = (total - total.min()) / (total.max() - total.min()) * 255
        path = folder / "ab"[number % 2] / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(total.astype(np.uint8)).save(path, quality=90)


def files_of(folder: Path, limit: int) -> tuple[list[str], list[int]]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = [(str(path), label) for label, name in enumerate(names) for path in sorted((folder / name).rglob("*.jpg"))]
    files = [files[i] for i in np.random.RandomState(0).permutation(len(files))[:limit]]
    return [file for file, _ in files], [label for _, label in files]


# -- our sides -------------------------------------------------------------------------------------------------------------------------


def chain(size: int) -> Any:
    from convolt.data import augment

    return augment.Augmentation([
        augment.RandomFlip("horizontal"), augment.RandomRotation(36), augment.RandomShear(0.1), augment.RandomZoom(0.2),
        augment.RandomTranslation(0.1, 0.1), augment.RandomBrightness(0.2), augment.RandomContrast(0.2), augment.Cutout(size // 4)])


def augmented(x: Any, chained: Any, batch: int, epoch: int) -> int:
    import torch

    from convolt.data.augment import keys

    order = torch.from_numpy(np.random.default_rng(epoch).permutation(len(x)))
    images = torch.from_numpy(x)
    done = 0
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        done += len(chained.apply(images, rows, keys(0, epoch, rows), dtype=torch.bfloat16).images)
    return done


def convolt_side(folder: Path, size: int, batch: int, limit: int, packed: bool) -> Epochs:
    from convolt.data import ImageFolder, open_pack, write_pack

    chained = chain(size)
    augmented(np.zeros((batch, size, size, 3), np.uint8), chained, batch, 0)
    pictures = ImageFolder(folder, image_size=(size, size))
    pictures.subset(np.arange(min(8, len(pictures)))).load()
    kept: list[Any] = []
    if packed:
        path = Path(tempfile.mkdtemp()) / "a.pack"
        write_pack(path, {"train": pictures.subset(np.random.RandomState(0).permutation(len(pictures))[:limit])})
        return {"second": lambda: augmented(open_pack(path).parts["train"].pictures, chained, batch, 1)}

    def first() -> int:
        whole = ImageFolder(folder, image_size=(size, size))
        kept[:] = [whole.subset(np.random.RandomState(0).permutation(len(whole))[:limit]).load()[0]]
        return augmented(kept[0], chained, batch, 0)

    return {"first": first, "second": lambda: augmented(kept[0], chained, batch, 1)}


# -- PyTorch's -------------------------------------------------------------------------------------------------------------------------


def pillow_one(path: str, size: int) -> np.ndarray:
    import random

    from PIL import Image, ImageEnhance

    image = Image.open(path)
    image.draft("RGB", (size, size))
    image = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    angle, zoom, shear = np.deg2rad(random.uniform(-36, 36)), random.uniform(0.8, 1.2), random.uniform(-0.1, 0.1)
    cos, sin, half = np.cos(angle) * zoom, np.sin(angle) * zoom, size / 2
    a, b, d, e = cos, -sin + shear, sin, cos
    dx, dy = random.uniform(-0.1, 0.1) * size, random.uniform(-0.1, 0.1) * size
    image = image.transform((size, size), Image.Transform.AFFINE,
                            (a, b, half - a * half - b * half + dx, d, e, half - d * half - e * half + dy), Image.Resampling.BILINEAR)
    image = ImageEnhance.Brightness(image).enhance(random.uniform(0.8, 1.2))
    image = ImageEnhance.Contrast(image).enhance(random.uniform(0.8, 1.2))
    pixels = np.array(image)
    top, left = random.randrange(size), random.randrange(size)
    pixels[top : top + size // 4, left : left + size // 4] = 0
    return pixels


class Samples:
    """A map-style dataset: files, or rows of a memory map."""

    def __init__(self, items: Any, size: int, kind: str) -> None:
        self.items, self.size, self.kind, self.chain = items, size, kind, None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        if self.kind == "pillow":
            return pillow_one(self.items[index], self.size)
        import albumentations as A
        import cv2

        cv2.setNumThreads(0)
        if self.chain is None:
            self.chain = A.Compose([
                A.HorizontalFlip(p=0.5), A.Affine(scale=(0.8, 1.2), translate_percent=(-0.1, 0.1), rotate=(-36, 36), shear=(-6, 6), p=1.0),
                A.RandomBrightnessContrast(0.2, 0.2, p=1.0),
                A.CoarseDropout(num_holes_range=(1, 1), hole_height_range=(0.25, 0.25), hole_width_range=(0.25, 0.25), p=1.0)])
        pixels = self.items[index] if self.kind == "memmap" else cv2.imread(self.items[index], cv2.IMREAD_COLOR_RGB)
        if pixels.shape[0] != self.size or pixels.shape[1] != self.size:
            pixels = cv2.resize(pixels, (self.size, self.size), interpolation=cv2.INTER_LINEAR)
        return self.chain(image=pixels)["image"]


def torch_side(kind: str, folder: Path, size: int, batch: int, limit: int, workers: int) -> Epochs:
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(2)
    files, _ = files_of(folder, limit)
    items: Any = files
    if kind == "memmap":
        from PIL import Image

        path = Path(tempfile.mkdtemp()) / "pixels.raw"
        items = np.memmap(path, np.uint8, "w+", shape=(len(files), size, size, 3))
        for number, file in enumerate(files):
            items[number] = np.asarray(Image.open(file).convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    options: dict[str, Any] = {"persistent_workers": True, "prefetch_factor": 4} if workers else {}
    loader = DataLoader(Samples(items, size, kind), batch, shuffle=True, num_workers=workers, **options)
    Samples(items, size, kind)[0]

    def epoch() -> int:
        return sum(len(x) for x in loader)

    return {"second": epoch} if kind == "memmap" else {"first": epoch, "second": epoch}


# -- Keras's ---------------------------------------------------------------------------------------------------------------------------


def keras_side(folder: Path, size: int, batch: int, limit: int) -> Epochs:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    import tensorflow as tf

    layers = [keras.layers.RandomFlip("horizontal"), keras.layers.RandomRotation(0.1), keras.layers.RandomShear(0.1, 0.1),
              keras.layers.RandomZoom(0.2), keras.layers.RandomTranslation(0.1, 0.1), keras.layers.RandomBrightness(0.2),
              keras.layers.RandomContrast(0.2), keras.layers.RandomErasing(1.0, scale=(0.0625, 0.0625))]

    def change(x: Any, y: Any) -> Any:
        for layer in layers:
            x = layer(x, training=True)
        return x, y

    source = keras.utils.image_dataset_from_directory(str(folder), image_size=(size, size), batch_size=batch, shuffle=False, verbose=False)
    source = source.take(-(-limit // batch))
    plain = source.map(change, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    cached = source.cache().shuffle(1000).map(change, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    for x, _ in plain.take(1):
        x.numpy()

    def epoch(data: Any) -> int:
        return sum(len(x) for x, _ in data)

    return {"first": lambda: epoch(plain), "warm_up": lambda: epoch(cached), "second": lambda: epoch(cached)}


# -- all together ----------------------------------------------------------------------------------------------------------------------


def median_rate(epoch: Epoch) -> float:
    """Returns pictures per second, the median of `REPEATS` epochs, or of as many as begin within `REPEAT_SECONDS`."""
    rates: list[float] = []
    start = time.perf_counter()
    while not rates or (len(rates) < REPEATS and time.perf_counter() - start < REPEAT_SECONDS):
        began = time.perf_counter()
        count = epoch()
        rates.append(count / (time.perf_counter() - began))
    return statistics.median(rates)


def one_side(side: str, folder: Path, size: int, batch: int, limit: int) -> None:
    """Runs one side and prints its pictures per second in the first and in the second epoch."""
    if side in OWN:
        runs = {"": convolt_side(folder, size, batch, limit, side == "packed")}
    elif side == "keras":
        runs = {"": keras_side(folder, size, batch, limit)}
    else:
        runs = {f"{workers} workers": torch_side(side, folder, size, batch, limit, workers) for workers in (0, 2)}
    best: dict[str, Any] = {"first": 0.0, "second": 0.0}
    for how, epochs in runs.items():
        rates = {}
        for name, epoch in epochs.items():
            if name == "warm_up":
                epoch()
            else:
                rates[name] = median_rate(epoch)
        for name in ("first", "second"):
            if rates.get(name, 0.0) > best[name]:
                best |= {name: rates[name], f"{name}_with": how}
    print("RESULT " + json.dumps(best))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--generate", type=int, default=0)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--limit", type=int, default=10**9)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sides", nargs="*", default=list(SIDES))
    parser.add_argument("--name", default="pictures")
    parser.add_argument("--side")
    options = parser.parse_args()
    folder = options.pictures or Path(tempfile.mkdtemp())
    if options.generate:
        generate(folder, options.generate)
    if options.side:
        one_side(options.side, folder, options.size, options.batch, options.limit)
        return
    for file in files_of(folder, options.limit)[0]:  # the system's cache holds the files for every side alike
        Path(file).read_bytes()
    peer = python_of("augmentation")
    if peer is None:
        raise SystemExit("no environment for the peers: python benchmarks/environments.py augmentation")
    environment = os.environ | KEPT | {"PYTHONPATH": str(HERE.parent)}
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in options.sides}
    for _ in range(options.rounds):
        for side in options.sides:
            command = [sys.executable if side in OWN else str(peer), __file__, "--side", side, "--pictures", str(folder),
                       "--size", str(options.size), "--batch", str(options.batch), "--limit", str(options.limit)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
            if line is None:
                raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
            found[side].append(json.loads(line.removeprefix("RESULT ")))
            print(side, found[side][-1], flush=True)
    rows = {side: {name: round(statistics.median(run[name] for run in runs)) for name in ("first", "second")} | {"runs": runs}
            for side, runs in found.items()}
    info = machine("cpu")
    result = {"machine": info, "pictures": len(files_of(folder, options.limit)[0]), "size": options.size, "batch": options.batch,
              "rows": rows}
    out = HERE / "results" / f"data_{options.name}_cpu_{info['date']}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    for side, row in rows.items():
        print(f"{side:16} first {row['first']:>8,}  second {row['second']:>8,} pictures/s")


if __name__ == "__main__":
    main()
