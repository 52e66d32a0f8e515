"""What a list of transforms adds up to for a batch: one matrix, one colour matrix, boxes, and what else is to be done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Entry = float | Tensor
"""A number that all samples share, or (N,) numbers."""

Rows = list[list[Entry]]

IDENTITY: Rows = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


def _times(a: Entry, b: Entry) -> Entry:
    """Products with 0 and 1, of which these matrices are full, cost nothing."""
    for one, other in ((a, b), (b, a)):
        if isinstance(one, float) and one in (0.0, 1.0):
            return other if one == 1.0 else 0.0
    return a * b


def _plus(a: Entry, b: Entry) -> Entry:
    if isinstance(a, float) and a == 0.0:
        return b
    return a if isinstance(b, float) and b == 0.0 else a + b


def product(a: Rows, b: Rows) -> Rows:
    """Returns the matrix product."""
    found: Rows = []
    for row in a:
        entries: list[Entry] = []
        for column in zip(*b, strict=True):
            total: Entry = 0.0
            for x, y in zip(row, column, strict=True):
                total = _plus(total, _times(x, y))
            entries.append(total)
        found.append(entries)
    return found


@dataclass(frozen=True)
class Parameters:
    """What is done to each sample of a batch, in the order of the fields. None: not at all, for any sample.

    Attributes:
        size: height and width of the output.
        matrix: (N, 2, 3) or, with perspective, (N, 3, 3) float32: (column, row, 1) of an output pixel → column, row in the picture.
        samples: (N, 2) int32, how many rows × columns of samples each output pixel is the mean of; up to `most_samples`.
        colour: (N, C, C + 1) float32, matrix and shift.
        colour_of_mean: (N, C, C) float32, what times the mean of the picture's channels is added: contrast.
        blur: (N,) standard deviations of the blur in pixels; it looks at `blur_radius` pixels on either side.
        sharpness: (N,) from -1 (smoothed) over 0 (as it was) on: how much of what smoothing takes away is added.
        autocontrast, equalize: (N,) bool, whether values are stretched to the whole range, and spread evenly over it.
        solarize, bits: (N,) levels of 0 … 255 from which values are inverted; (N,) how many bits of 8 are kept.
        noise: (N,) standard deviations of the noise, in units of the pictures.
        boxes, values: (N, K, 4) int32 and (N, K, C) float32, as for `kernels.warp`.
        partner: (N,) from 0 to 1, where in the source the sample lies that this one is mixed with.
        share: (N,) of its own that a picture keeps.
        cut: (N, 4) int32, top, left, bottom, right of what is the partner's instead.
    """

    size: tuple[int, int]
    matrix: Tensor | None = None
    samples: Tensor | None = None
    most_samples: int = 1
    colour: Tensor | None = None
    colour_of_mean: Tensor | None = None
    blur: Tensor | None = None
    blur_radius: int = 0
    sharpness: Tensor | None = None
    autocontrast: Tensor | None = None
    equalize: Tensor | None = None
    solarize: Tensor | None = None
    bits: Tensor | None = None
    noise: Tensor | None = None
    boxes: Tensor | None = None
    values: Tensor | None = None
    partner: Tensor | None = None
    share: Tensor | None = None
    cut: Tensor | None = None


@dataclass
class Draft:
    """Parameters in the making; each transform adds to them in turn.

    Attributes:
        keys: (N,) int64.
        height, width: of the pictures, then of what the transforms so far make of them.
        channels: how many.
        low, high: least and greatest value of a pixel.
    """

    keys: Tensor
    height: int
    width: int
    channels: int
    low: float
    high: float
    rows: Rows = field(default_factory=lambda: IDENTITY)
    most_samples: int = 1
    linear: Tensor | None = None
    of_mean: Tensor | None = None
    shift: Tensor | None = None
    boxes: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    blur: Tensor | None = None
    blur_radius: int = 0
    sharpness: Tensor | None = None
    autocontrast: Tensor | None = None
    equalize: Tensor | None = None
    solarize: Tensor | None = None
    bits: Tensor | None = None
    noise: Tensor | None = None
    partner: Tensor | None = None
    share: Tensor | None = None
    cut: Tensor | None = None

    def __post_init__(self) -> None:
        self.source_size = (self.height, self.width)

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.keys)

    def full(self, value: float, like: Tensor) -> Tensor:
        """Returns (N,) times `value`, in the type of `like`."""
        return torch.full((self.count,), value, dtype=like.dtype, device=like.device)

    # -- geometry: coordinates in pixels from the centre of the picture -------------------------------------------------

    def move(self, rows: Rows, size: tuple[int, int] | None = None) -> None:
        """Adds a map from output to input, in pixels from the centres: rows of (x, y, 1) → (x, y, depth).

        Args:
            rows: 3 × 3.
            size: height and width of the output, where they change.
        """
        self.rows = product(self.rows, rows)
        self.height, self.width = size or (self.height, self.width)

    def scaled_move(self, a: Entry, b: Entry, c: Entry, d: Entry, dx: Entry = 0.0, dy: Entry = 0.0) -> None:
        """Adds x' = a·x + b·y + dx, y' = c·x + d·y + dy."""
        self.move([[a, b, dx], [c, d, dy], [0.0, 0.0, 1.0]])

    # -- colour -----------------------------------------------------------------------------------------------------------

    def scale_colours(self, factor: Tensor) -> None:
        """Multiplies all channels by `factor` (N,)."""
        self._start(factor)
        assert self.linear is not None and self.shift is not None
        self.linear = self.linear * factor[:, None, None]
        self.shift = self.shift * factor[:, None]
        self.of_mean = None if self.of_mean is None else self.of_mean * factor[:, None, None]

    def shift_colours(self, shift: Tensor) -> None:
        """Adds `shift`, (N, 1) or (N, C)."""
        self._start(shift)
        assert self.shift is not None
        self.shift = self.shift + shift

    def mix_colours(self, matrix: Tensor) -> None:
        """Multiplies channels by `matrix` (N, C, C)."""
        self._start(matrix)
        assert self.linear is not None and self.shift is not None
        self.linear = matrix @ self.linear
        self.shift = (matrix @ self.shift[:, :, None])[:, :, 0]
        self.of_mean = None if self.of_mean is None else matrix @ self.of_mean

    def contrast(self, factor: Tensor) -> None:
        """Scales the distance to the picture's mean of each channel by `factor` (N,)."""
        kept = torch.diag_embed(factor[:, None].expand(-1, self.channels))
        self.mix_with_mean(kept, torch.eye(self.channels, dtype=kept.dtype, device=kept.device) - kept)

    def mix_with_mean(self, matrix: Tensor, of_mean: Tensor) -> None:
        """Multiplies channels by `matrix` (N, C, C), and adds `of_mean` (N, C, C) times the picture's mean of each channel."""
        self._start(matrix)
        assert self.linear is not None and self.shift is not None
        whole = self.linear if self.of_mean is None else self.linear + self.of_mean
        added, shift = of_mean @ whole, (of_mean @ self.shift[:, :, None])[:, :, 0]
        self.mix_colours(matrix)
        self.shift = self.shift + shift
        self.of_mean = added if self.of_mean is None else self.of_mean + added

    def _start(self, like: Tensor) -> None:
        if self.linear is None:
            eye = torch.eye(self.channels, dtype=like.dtype, device=like.device)
            self.linear = eye.expand(self.count, -1, -1)
            self.shift = torch.zeros(self.count, self.channels, dtype=like.dtype, device=like.device)

    # -- the rest ---------------------------------------------------------------------------------------------------------

    def erase(self, boxes: Tensor, values: Tensor) -> None:
        """Adds a box for each sample, (N, 4) top, left, bottom, right in output pixels, in the colours (N, C)."""
        self.boxes.append(boxes)
        self.values.append(values)

    def parameters(self) -> Parameters:
        """Returns what the transforms add up to."""
        colour = of_mean = None
        if self.linear is not None and self.shift is not None:
            colour = torch.cat([self.linear, self.shift[:, :, None]], 2).to(torch.float32)
            of_mean = None if self.of_mean is None else self.of_mean.to(torch.float32)
        moved = self.rows is not IDENTITY or (self.height, self.width) != self.source_size
        matrix = self._matrix() if moved else None
        boxes = torch.stack(self.boxes, 1).to(torch.int32) if self.boxes else None
        values = torch.stack(self.values, 1).to(torch.float32) if self.values else None
        cut = None if self.cut is None else self.cut.to(torch.int32)
        return Parameters((self.height, self.width), matrix, self._samples(matrix), self.most_samples, colour, of_mean, self.blur,
                          self.blur_radius, self.sharpness, self.autocontrast, self.equalize, self.solarize, self.bits, self.noise,
                          boxes, values, self.partner, self.share, cut)

    def _matrix(self) -> Tensor:
        """Returns the map between indices of pixels: from the output's corner to its centre, the map, back to the picture's corner."""
        in_height, in_width = self.source_size
        enter: Rows = [[1.0, 0.0, -(self.width - 1) / 2], [0.0, 1.0, -(self.height - 1) / 2], [0.0, 0.0, 1.0]]
        leave: Rows = [[1.0, 0.0, (in_width - 1) / 2], [0.0, 1.0, (in_height - 1) / 2], [0.0, 0.0, 1.0]]
        rows = product(product(leave, self.rows), enter)
        flat = rows[2] == [0.0, 0.0, 1.0] if all(isinstance(e, float) for e in rows[2]) else False
        return stacked(rows[:2] if flat else rows, self.keys)

    def _samples(self, matrix: Tensor | None) -> Tensor | None:
        """Returns how many samples a pixel takes along each axis: one for each source pixel that it covers, at the centre of the output."""
        if matrix is None or self.most_samples == 1:
            return None
        steps = matrix[:, :2, :2].square().sum(1).sqrt()
        return (steps.flip(1) - 1e-3).ceil().clamp(1, self.most_samples).to(torch.int32)


def stacked(rows: Sequence[Sequence[Entry]], keys: Tensor) -> Tensor:
    """Returns a matrix of entries as (N, rows, columns) float32."""
    entries = [e.to(torch.float32) if isinstance(e, Tensor) else torch.full((len(keys),), e, dtype=torch.float32, device=keys.device)
               for row in rows for e in row]
    return torch.stack(entries, 1).view(len(keys), len(rows), len(rows[0]))
