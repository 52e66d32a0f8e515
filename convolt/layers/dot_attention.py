"""Attention without projections: `Attention` (Luong et al. 2015) and `AdditiveAttention` (Bahdanau et al. 2015)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from convolt.errors import ShapeError, explain
from convolt.layers.arguments import one_of
from convolt.layers.base import Layer, registry
from convolt.layers.normalization import check_number
from convolt.layers.regularization import Dropout
from convolt.layers.windows import label
from convolt.layout import Shape, to_inside, to_outside


@registry.register()
class Attention(Layer):
    """The mean of values, for each query weighted by the softmax of its scores with the keys.

    Args:
        use_scale: whether scores are multiplied by a learned number.
        score_mode: "dot", the inner product of query and key, or "concat", `weight · Σ tanh(query + key)`.
        dropout: share of the scores that are dropped in training.
        seed: of the dropout; None draws from PyTorch's global generator.

    Called on `[query, value]` or `[query, value, key]`; the value is the key if there is none. Call arguments as in Keras:
    `mask` (`[query_mask, value_mask]`; filled from the inputs' masks), `return_attention_scores`, `use_causal_mask`.

    Shapes: (batch, queries, features), (batch, keys, features) → (batch, queries, features).
    Keras counterpart: `keras.layers.Attention`; PyTorch's: `scaled_dot_product_attention(scale=1)`.
    """

    supports_masking = True
    scale: nn.Parameter | None
    concat_score_weight: nn.Parameter | None

    def __init__(self, use_scale: bool = False, score_mode: str = "dot", dropout: float = 0.0, seed: int | None = None,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.use_scale = bool(use_scale)
        self.score_mode = one_of(type(self).__name__, "score_mode", score_mode, ("dot", "concat"))
        self.dropout = check_number(type(self).__name__, "dropout", dropout, 0.0, 1.0)
        self.seed = seed
        self.dropout_layer = Dropout(self.dropout, seed=seed, name="dropout")
        self.dropout_layer.ensure_built((None,))

    def _check(self, shapes: Any) -> None:
        if not isinstance(shapes, (list, tuple)) or len(shapes) not in (2, 3) or any(isinstance(s, int) or s is None for s in shapes):
            raise ShapeError(explain(label(self), "a single input" if not isinstance(shapes, list) else f"{len(shapes)} inputs",
                                     "[query, value] or [query, value, key]"))
        if any(len(shape) < 3 for shape in shapes):
            raise ShapeError(explain(label(self), f"inputs of shapes {[tuple(s) for s in shapes]}", "(batch, steps, features) for each"))

    def build(self, input_shape: Any) -> None:
        self._check(input_shape)
        self._add_scale((), "ones", self.use_scale)
        if self.score_mode == "concat":
            self.add_weight((), "ones", name="concat_score_weight")
        else:
            self.register_parameter("concat_score_weight", None)

    def _add_scale(self, shape: tuple[int, ...], initializer: str, wanted: bool) -> None:
        if wanted:
            self.add_weight(shape, initializer, name="scale")
        else:
            self.register_parameter("scale", None)

    def compute_output_shape(self, input_shape: Any) -> Shape:
        return (*input_shape[0][:-1], input_shape[1][-1])

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Returns the query's mask."""
        return mask[0] if isinstance(mask, (list, tuple)) else None

    def output_shape_of_call(self, input_shapes: Sequence[Any], arguments: Mapping[str, Any]) -> Any:
        """Returns the output's shape, and that of the scores where they are asked for."""
        output = self.compute_output_shape(*input_shapes)
        query, key = input_shapes[0][0], input_shapes[0][-1]
        return [output, (*query[:-1], key[-2])] if arguments.get("return_attention_scores") else output

    def forward(self, inputs: Any, mask: Any = None, return_attention_scores: bool = False, use_causal_mask: bool = False) -> Any:
        """Returns the attention's output, or (output, scores)."""
        given = [to_outside(x) for x in inputs]
        query, value, key = given[0], given[1], given[-1]
        query_mask, value_mask = (mask[0], mask[1]) if mask is not None else (None, None)
        drops = self.training and self.dropout > 0
        seeded = drops and (self.seed is not None or self.dropout == 1)
        scores = None
        # PyTorch's kernel never has the scores in memory. With a mask of values its gradient would not be Keras's where a query
        # sees nothing: there Keras takes the mean of all values.
        if self._is_dot() and value_mask is None and not (return_attention_scores or seeded):
            query = query if self.scale is None else query * self.scale
            output = F.scaled_dot_product_attention(query.unsqueeze(-3), key.unsqueeze(-3), value.unsqueeze(-3), None,
                                                    self.dropout if drops else 0.0, use_causal_mask, scale=1.0).squeeze(-3)
        else:
            visible = None if value_mask is None else value_mask.bool().unsqueeze(-2)
            if use_causal_mask:
                causal = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
                visible = causal if visible is None else visible & causal
            scores = self._scores(query, key)
            if visible is not None:
                scores = torch.where(visible, scores, scores - (65504.0 if scores.dtype == torch.float16 else 1e9))
            scores = self.dropout_layer(torch.softmax(scores, -1))
            output = scores @ value
        if query_mask is not None:
            output = output.masked_fill(~query_mask.bool().unsqueeze(-1), 0.0)
        return (to_inside(output), to_inside(scores)) if return_attention_scores and scores is not None else to_inside(output)

    def _is_dot(self) -> bool:
        return self.score_mode == "dot"

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        if self._is_dot():
            scores = query @ key.mT
            return scores if self.scale is None else scores * self.scale
        total = query.unsqueeze(-2) + key.unsqueeze(-3)
        assert self.concat_score_weight is not None
        return self.concat_score_weight * torch.tanh(total if self.scale is None else self.scale * total).sum(-1)


@registry.register()
class AdditiveAttention(Attention):
    """Attention with the scores `Σ scale · tanh(query + key)`.

    Args:
        use_scale: whether there is a learned scale, one number for each feature.
        dropout, seed: as in `Attention`, and so are call arguments and shapes.

    Keras counterpart: `keras.layers.AdditiveAttention`.
    """

    def __init__(self, use_scale: bool = True, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(use_scale=use_scale, dropout=dropout, **kwargs)

    def _arguments(self) -> dict[str, Any]:
        return {name: value for name, value in super()._arguments().items() if name != "score_mode"}

    def build(self, input_shape: Any) -> None:
        self._check(input_shape)
        features = input_shape[0][-1]
        if features is None:
            raise ShapeError(explain(label(self), f"query of shape {tuple(input_shape[0])}", "a known number of features"))
        self._add_scale((features,), "glorot_uniform", self.use_scale)

    def _is_dot(self) -> bool:
        return False

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        total = torch.tanh(query.unsqueeze(-2) + key.unsqueeze(-3))
        return total.sum(-1) if self.scale is None else total @ self.scale
