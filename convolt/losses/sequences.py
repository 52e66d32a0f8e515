"""The loss of sequences whose labels are not aligned with the steps: connectionist temporal classification."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from convolt.errors import DataError, ShapeError, explain
from convolt.layout import outside_shape, to_outside
from convolt.losses.base import Loss, registry
from convolt.losses.shapes import computed_in, entered, logits_of

BLANK = 0
"""Keras's blank and padding at once: the last label of a shorter sequence is followed by zeros."""

NEVER = -1e30
"""Log-probability of what cannot happen; finite, since a sum of nothing but minus infinities has no gradient."""


def ctc(y_true: Any, y_pred: Any) -> Tensor:
    """Returns `-log p(labels)` per sequence, the sum over all alignments (Graves et al., 2006).

    Args:
        y_true: labels `(N, length)`, whole numbers from 1, padded at the end with zeros.
        y_pred: logits `(N, steps, classes)` (tensors `(N, classes, steps)`), class 0 of which is the blank. Of
            probabilities that remember their logits these are taken.

    A sequence that does not fit into the steps (its length plus one for each repeated label) costs infinity and has no
    gradient; one with labels out of range is NaN. On the CPU it is `torch.nn.functional.ctc_loss`; PyTorch's version
    for CUDA waits for the device to read the lengths, so that elsewhere the recursion is written out.
    """
    labels, scores = _words_and_logits(y_true, y_pred)
    classes, steps = scores.shape[2], scores.shape[1]
    known = ((labels >= 0) & (labels < classes)).all(1)
    labels = labels.clamp(0, classes - 1)  # PyTorch reads memory at the label without looking at it
    lengths = (labels != BLANK).sum(1)
    log_p = scores.log_softmax(2).transpose(0, 1)
    if log_p.device.type == "cpu":
        all_steps = torch.full((len(labels),), steps, dtype=torch.long)
        loss = F.ctc_loss(log_p, labels, all_steps, lengths, BLANK, "none", zero_infinity=True)
    else:
        loss = alignments(log_p, labels, lengths)
    loss = torch.where(lengths + _repeats(labels, lengths) <= steps, loss, float("inf"))
    return torch.where(known, loss, float("nan"))


def _repeats(labels: Tensor, lengths: Tensor) -> Tensor:
    """How many labels of a word follow an equal one; between these two a blank is needed."""
    follows = torch.arange(1, labels.shape[1], device=labels.device) < lengths[:, None]
    return ((labels[:, 1:] == labels[:, :-1]) & follows).sum(1)


def alignments(log_p: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
    """Returns the same as PyTorch's `ctc_loss`, without reading a value: about eight small operations per step.

    Args:
        log_p: log-probabilities `(steps, N, classes)`.
        labels: `(N, length)`, whole numbers.
        lengths: how many of them count, `(N,)`.
    """
    steps, samples, _ = log_p.shape
    states = labels.new_zeros(samples, 2 * labels.shape[1] + 1)  # a blank before, between and after the labels
    states[:, 1::2] = labels
    skips = torch.zeros_like(states, dtype=torch.bool)  # the blank between two different labels may be left out
    skips[:, 3::2] = labels[:, 1:] != labels[:, :-1]
    emitted = log_p.gather(2, states.expand(steps, -1, -1))
    alpha = F.pad(emitted[0, :, :2], (0, states.shape[1] - 2), value=NEVER)
    for step in range(1, steps):
        moved = F.pad(alpha[:, :-1], (1, 0), value=NEVER)
        skipped = torch.where(skips, F.pad(alpha[:, :-2], (2, 0), value=NEVER), NEVER)
        alpha = torch.stack([alpha, moved, skipped]).logsumexp(0) + emitted[step]
    last_blank = alpha.gather(1, 2 * lengths[:, None])
    last_label = alpha.gather(1, (2 * lengths[:, None] - 1).clamp_min(0))
    last_label = torch.where(lengths[:, None] > 0, last_label, NEVER)
    return -torch.cat([last_blank, last_label], 1).logsumexp(1)


def _words_and_logits(y_true: Any, y_pred: Any) -> tuple[Tensor, Tensor]:
    """Returns (labels `(N, length)` as int64, logits `(N, steps, classes)`)."""
    y_true, y_pred = entered(y_true, y_pred)
    check_sequences("ctc", y_true, y_pred)
    logits = logits_of(y_pred, "softmax")
    return y_true.long(), to_outside(computed_in(y_pred) if logits is None else logits)


def check_sequences(name: str, y_true: Tensor, y_pred: Tensor) -> None:
    """Raises `ShapeError` unless labels are `(N, length)` and predictions, as a user sees them, `(N, steps, classes)`."""
    if y_pred.ndim != 3 or y_pred.shape[1] < 2:
        raise ShapeError(explain(name, f"predictions of shape {outside_shape(y_pred)}", "logits (N, steps, classes), class 0 the blank"))
    if y_true.ndim != 2 or len(y_true) != len(y_pred) or y_true.shape[1] == 0:
        shape = outside_shape(y_true) if y_true.ndim == 3 else tuple(y_true.shape)
        raise ShapeError(explain(name, f"labels of shape {shape} for predictions of shape {outside_shape(y_pred)}",
                                 f"whole numbers of shape ({len(y_pred)}, length)", "Pad shorter sequences with 0 at the end."))


@registry.register()
class CTC(Loss):
    """Loss of sequences whose labels are not aligned with the steps, such as letters of a line of handwriting.

    Labels are `(N, length)`, padded at the end with 0; predictions are logits `(N, steps, classes)`, class 0 of which is
    the blank. See `ctc`.

    Args:
        reduction, name, dtype: see `Loss`.

    Keras counterpart: `keras.losses.CTC`; PyTorch's: `torch.nn.CTCLoss`, whose mean also divides by the lengths.
    """

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str | None = "ctc", dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return ctc(y_true, y_pred)

    def check_shapes(self, y_true: Tensor, y_pred: Tensor) -> None:
        check_sequences(self.name, y_true, y_pred)

    def check_values(self, y: Tensor, output_shape: tuple[int, ...], name: str) -> None:
        classes, steps = output_shape[1:]

        def first(wrong: Tensor) -> tuple[str, Any] | None:
            if not bool(wrong.any()):
                return None
            row, column = (wrong if wrong.ndim == 2 else wrong[:, None]).nonzero()[0].tolist()
            return f"{name}[{row}, {column}]" if wrong.ndim == 2 else f"{name}[{row}]", y[row, column].item()

        labels, lengths = y.long(), (y != BLANK).sum(1)
        if found := first((labels != y) | (labels < 0) | (labels >= classes)):
            raise DataError(explain(*found, f"whole numbers from 1 to {classes - 1}, since the model has {classes} classes",
                                    "0 is the blank: it pads, and no label has it."))
        if found := first((labels == BLANK) & (torch.arange(y.shape[1], device=y.device) < lengths[:, None])):
            raise DataError(explain(found[0], "0 before the end of the labels", "0 as padding at the end alone",
                                    "Class 0 is the blank; classes that start at 0 need y + 1 and one more unit."))
        needed = lengths + _repeats(labels, lengths)
        if found := first(needed > steps):
            row = int((needed > steps).nonzero()[0])
            raise DataError(explain(found[0], f"{int(lengths[row])} labels, which take {int(needed[row])} steps",
                                    f"at most the {steps} steps of the model", "Two equal labels in a row need one step between them."))
