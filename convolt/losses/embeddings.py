"""Losses of embeddings: samples of one class are drawn together and those of others pushed away.

Labels are class numbers `(N,)`, predictions are embeddings `(N, features)`; the pairs and triplets are those of the batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from convolt.errors import ArgumentError, ShapeError, did_you_mean, explain
from convolt.layout import outside_shape
from convolt.losses.base import Loss, registry
from convolt.losses.shapes import EPSILON, computed_in, entered, paired

NEVER = -1e30
"""Logit of a pair that does not count; finite, since a sum of nothing but minus infinities has no gradient."""

DISTANCES = ("L2", "squared-L2", "angular")


def _ids_and_embeddings(name: str, y_true: Any, y_pred: Any) -> tuple[Tensor, Tensor]:
    """Returns (class numbers `(N,)`, embeddings `(N, features)` in the type of the computation)."""
    y_true, y_pred = entered(y_true, y_pred)
    ids = y_true.squeeze(1) if y_true.ndim == 2 and y_true.shape[1] == 1 else y_true
    if y_pred.ndim != 2 or ids.shape != y_pred.shape[:1]:
        fix = "One-hot labels become class numbers with y.argmax(-1)." if y_pred.ndim == ids.ndim == 2 else ""
        raise ShapeError(explain(name, f"labels of shape {tuple(y_true.shape)} and embeddings of shape {outside_shape(y_pred)}",
                                 "class numbers (N,) and embeddings (N, features)", fix))
    return ids, computed_in(y_pred)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Returns all scalar products of two sets of vectors, also under autocast in the vectors' own type."""
    if not torch.amp.is_autocast_available(a.device.type):
        return a @ b.T
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.T


def _distances(embeddings: Tensor, metric: str) -> Tensor:
    """Returns the distances of all pairs, `(N, N)`; that of a sample to itself is exactly 0."""
    if metric == "angular":
        unit = F.normalize(embeddings, dim=1, eps=EPSILON)
        same = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        return (1 - _products(unit, unit)).clamp_min(0).masked_fill(same, 0)
    centred = embeddings - embeddings.mean(0).detach()  # distances stay, and less of them is lost to rounding
    products = _products(centred, centred)
    lengths = products.diagonal()
    squares = (lengths[:, None] + lengths[None] - 2 * products).clamp_min(0)
    if metric == "squared-L2":
        return squares
    apart = squares > 0  # the root has no slope at 0
    return torch.where(apart, torch.where(apart, squares, 1).sqrt(), 0)


def triplet_semihard(y_true: Any, y_pred: Any, margin: float = 1.0, distance_metric: str = "L2") -> Tensor:
    """Returns the triplet loss of each anchor over its positives, with semi-hard negatives (Schroff et al., 2015: FaceNet).

    The negative of a pair (anchor, positive) is the nearest one that is farther away than the positive, or the farthest if
    none is. The mean of the values over the batch is the mean of `max(d_positive - d_negative + margin, 0)` over all pairs.

    Args:
        y_true: class numbers `(N,)` or `(N, 1)`.
        y_pred: embeddings `(N, features)`; Schroff et al. have them at length 1.
        margin: by how much the negative shall be farther away than the positive.
        distance_metric: "L2", "squared-L2" or "angular" (one minus the cosine).
    """
    ids, embeddings = _ids_and_embeddings("triplet_semihard", y_true, y_pred)
    distances = _distances(embeddings, distance_metric)
    same = ids[:, None] == ids[None]
    positive = same & ~torch.eye(len(ids), dtype=torch.bool, device=ids.device)
    sorted_negatives = torch.where(same, float("inf"), distances).sort(1).values
    farther = torch.searchsorted(sorted_negatives.detach().contiguous(), distances.detach().contiguous(), right=True)
    outside = sorted_negatives.gather(1, farther.clamp_max(len(ids) - 1))
    outside = torch.where(farther < len(ids), outside, float("inf"))
    inside = torch.where(same, float("-inf"), distances).amax(1, keepdim=True)
    negatives = torch.where(outside.isinf(), inside, outside)
    losses = torch.where(positive & negatives.isfinite(), (distances - negatives + margin).clamp_min(0), 0)
    return losses.sum(1) * (len(ids) / positive.sum().clamp_min(1))


def triplet_hard(y_true: Any, y_pred: Any, margin: float = 1.0, soft: bool = False, distance_metric: str = "L2") -> Tensor:
    """Returns the triplet loss of each anchor with its farthest positive and its nearest negative (Hermans et al., 2017).

    An anchor without another sample of its class is its own positive, at distance 0; one without a negative costs 0.

    Args:
        y_true, y_pred, margin, distance_metric: as in `triplet_semihard`.
        soft: `log(1 + exp(d_positive - d_negative))` instead of `max(d_positive - d_negative + margin, 0)`.
    """
    ids, embeddings = _ids_and_embeddings("triplet_hard", y_true, y_pred)
    distances = _distances(embeddings, distance_metric)
    same = ids[:, None] == ids[None]
    gap = torch.where(same, distances, 0).amax(1) - torch.where(same, float("inf"), distances).amin(1)
    return F.softplus(gap) if soft else (gap + margin).clamp_min(0)


def contrastive(y_true: Any, y_pred: Any, margin: float = 1.0) -> Tensor:
    """Returns the mean over the last axis of `y d² + (1 - y) max(margin - d, 0)²` (Hadsell et al., 2006, without their ½).

    Args:
        y_true: 1 for pairs of one class and 0 for others (in the paper the other way round).
        y_pred: distances `d` of pairs, of the same shape.
        margin: pairs of different classes that are farther apart cost nothing.
    """
    t, p = paired("contrastive", y_true, y_pred)
    return (t * p.square() + (1 - t) * (margin - p).clamp_min(0).square()).mean(-1)


def supervised_contrastive(y_true: Any, y_pred: Any, temperature: float = 0.1) -> Tensor:
    """Returns `-log softmax(cosine / temperature)` over the other samples, averaged over each anchor's positives.

    It is L_out of Khosla et al. (2020). Embeddings are brought to length 1 here. An anchor without a positive costs 0.

    Args:
        y_true: class numbers `(N,)` or `(N, 1)`.
        y_pred: embeddings `(N, features)`.
        temperature: divides the cosines.
    """
    ids, embeddings = _ids_and_embeddings("supervised_contrastive", y_true, y_pred)
    unit = F.normalize(embeddings, dim=1, eps=EPSILON)
    itself = torch.eye(len(ids), dtype=torch.bool, device=ids.device)
    log_p = (_products(unit, unit) / temperature).masked_fill(itself, NEVER).log_softmax(1)
    positive = (ids[:, None] == ids[None]) & ~itself
    return -torch.where(positive, log_p, 0).sum(1) / positive.sum(1).clamp_min(1)


def circle(y_true: Any, y_pred: Any, ref_labels: Any = None, ref_embeddings: Any = None, remove_diagonal: bool = True,
           gamma: float = 80, margin: float = 0.4) -> Tensor:
    """Returns the circle loss of each anchor: pairs far from where they should be weigh more (Sun et al., 2020).

    Args:
        y_true: class numbers `(N,)` or `(N, 1)`.
        y_pred: embeddings of length 1, `(N, features)`.
        ref_labels, ref_embeddings: the other side of the pairs, `(M,)` and `(M, features)`; None: the batch itself.
        remove_diagonal: whether a sample is no pair with the one at its own place.
        gamma: scale of the similarities.
        margin: how near to the best similarity a pair may stop.
    """
    ids, embeddings = _ids_and_embeddings("circle", y_true, y_pred)
    others, references = (ids, embeddings) if ref_embeddings is None else _ids_and_embeddings(
        "circle(ref_labels, ref_embeddings)", ids if ref_labels is None else ref_labels, ref_embeddings)
    distances = (1 - _products(embeddings, references)).clamp_min(0)
    same = ids[:, None] == others[None]
    positive = same & ~torch.eye(*same.shape, dtype=torch.bool, device=ids.device) if remove_diagonal else same
    near = -gamma * (margin + distances).clamp_min(0) * (margin - distances)
    far = gamma * (1 + margin - distances).clamp_min(0) * (1 - margin - distances)
    return F.softplus(torch.where(positive, near, NEVER).logsumexp(1) + torch.where(same, NEVER, far).logsumexp(1))


class _OfEmbeddings(Loss):
    """What the losses with class numbers as labels share."""

    def check_shapes(self, y_true: Tensor, y_pred: Tensor) -> None:
        _ids_and_embeddings(self.name, y_true, y_pred)


def _checked_metric(owner: Loss, metric: Any) -> str:
    if metric not in DISTANCES:
        raise ArgumentError(explain(f"{type(owner).__name__}(distance_metric)", repr(metric), f"one of {list(DISTANCES)}",
                                    did_you_mean(str(metric), DISTANCES)))
    return str(metric)


def _above_0(owner: Loss, argument: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ArgumentError(explain(f"{type(owner).__name__}({argument})", repr(value), "a number above 0"))
    return value


@registry.register("TripletSemiHardLoss", "triplet_semihard", "triplet_semihard_loss")
class TripletSemiHard(_OfEmbeddings):
    """Triplet loss with semi-hard negatives, from class numbers and embeddings (Schroff et al., 2015: FaceNet).

    Args:
        margin, distance_metric: see `triplet_semihard`.
        reduction, name, dtype: see `Loss`.

    Counterpart: `tensorflow_addons.losses.TripletSemiHardLoss`; a batch of one class costs 0 here, and there NaN or the
    distances themselves.
    """

    def __init__(self, margin: float = 1.0, distance_metric: str = "L2", reduction: str | None = "sum_over_batch_size",
                 name: str | None = "triplet_semihard", dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)
        self.margin, self.distance_metric = _above_0(self, "margin", margin), _checked_metric(self, distance_metric)

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return triplet_semihard(y_true, y_pred, self.margin, self.distance_metric)


@registry.register("TripletHardLoss", "triplet_hard_loss")
class TripletHard(_OfEmbeddings):
    """Triplet loss with the hardest positive and negative of each anchor ("batch hard", Hermans et al., 2017).

    Args:
        margin, soft, distance_metric: see `triplet_hard`.
        reduction, name, dtype: see `Loss`.

    Counterpart: `tensorflow_addons.losses.TripletHardLoss`.
    """

    def __init__(self, margin: float = 1.0, soft: bool = False, distance_metric: str = "L2",
                 reduction: str | None = "sum_over_batch_size", name: str | None = "triplet_hard", dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)
        self.margin, self.soft = _above_0(self, "margin", margin), soft
        self.distance_metric = _checked_metric(self, distance_metric)

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return triplet_hard(y_true, y_pred, self.margin, self.soft, self.distance_metric)


@registry.register("ContrastiveLoss", "contrastive_loss")
class Contrastive(Loss):
    """Loss of the distances of pairs: small for label 1 (one class), at least `margin` for 0 (Hadsell et al., 2006).

    Args:
        margin: see `contrastive`.
        reduction, name, dtype: see `Loss`.

    Counterpart: `tensorflow_addons.losses.ContrastiveLoss`.
    """

    def __init__(self, margin: float = 1.0, reduction: str | None = "sum_over_batch_size", name: str | None = "contrastive",
                 dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)
        self.margin = _above_0(self, "margin", margin)

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return contrastive(y_true, y_pred, self.margin)


@registry.register("supcon")
class SupervisedContrastive(_OfEmbeddings):
    """Contrastive loss over all positives of an anchor, from class numbers and embeddings (Khosla et al., 2020).

    Args:
        temperature: see `supervised_contrastive`.
        reduction, name, dtype: see `Loss`.
    """

    def __init__(self, temperature: float = 0.1, reduction: str | None = "sum_over_batch_size",
                 name: str | None = "supervised_contrastive", dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)
        self.temperature = _above_0(self, "temperature", temperature)

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return supervised_contrastive(y_true, y_pred, self.temperature)


@registry.register()
class Circle(_OfEmbeddings):
    """Circle loss of embeddings of length 1, from class numbers (Sun et al., 2020). Anchors whose loss is 0 are not in the mean.

    Args:
        gamma, margin, remove_diagonal: see `circle`.
        reduction, name, dtype: see `Loss`.

    Keras counterpart: `keras.losses.Circle`.
    """

    def __init__(self, gamma: float = 80.0, margin: float = 0.4, remove_diagonal: bool = True,
                 reduction: str | None = "sum_over_batch_size", name: str | None = "circle", dtype: Any = None) -> None:
        super().__init__(name, reduction, dtype)
        self.gamma, self.margin, self.remove_diagonal = gamma, margin, remove_diagonal

    def per_sample(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return circle(y_true, y_pred, remove_diagonal=self.remove_diagonal, gamma=self.gamma, margin=self.margin)

    def valid(self, y_true: Tensor, y_pred: Tensor, values: Tensor) -> Tensor:
        return values > 0
