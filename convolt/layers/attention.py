"""Attention with several heads: `MultiHeadAttention`, and `GroupQueryAttention`, where heads of queries share keys and values.

Layers see tensors with features at index 1 (`convolt.layout`); here they are turned to `(batch, steps, features)`, a view,
as Keras writes them. Masks keep Keras's order of axes, `(batch, queries, keys)`.

Shape suffixes: B batch, R axes without attention, N heads, T queries, S keys, H features of a head.
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from convolt import constraints, initializers, regularizers
from convolt.errors import ArgumentError, ShapeError, explain
from convolt.layers.arguments import check_positive
from convolt.layers.base import Layer, registry
from convolt.layers.einsum import EinsumDense
from convolt.layers.normalization import check_number
from convolt.layers.regularization import Dropout
from convolt.layers.symbolic import SymbolicTensor
from convolt.layers.windows import label
from convolt.layout import Shape, to_inside, to_outside


class _Heads(Layer):
    """What both layers share: the projections' arguments, masks, and attention itself.

    A query that sees nothing gives zero, and no gradient. Keras's layers do that where they compute scores; where they call
    PyTorch's kernel with a large negative number for what is masked, such a query gets the mean of all values and, as the
    kernel loses the softmax's divisor beside that number, a wrong gradient.
    """

    supports_masking = True
    query_dense: EinsumDense
    key_dense: EinsumDense
    value_dense: EinsumDense
    gate_dense: EinsumDense
    output_dense: EinsumDense
    _axes: tuple[int, ...]
    _query_heads: int

    def _keep(self, dropout: float, use_bias: bool, sliding_window: int | None, flash_attention: bool | None, kernel_initializer: Any,
              bias_initializer: Any, kernel_regularizer: Any, bias_regularizer: Any, kernel_constraint: Any, bias_constraint: Any,
              use_gate: bool, seed: int | None) -> None:
        kind = type(self).__name__
        self.dropout = check_number(kind, "dropout", dropout, 0.0, 1.0)
        self.use_bias = bool(use_bias)
        self.sliding_window = None if sliding_window is None else check_positive(kind, "sliding_window", sliding_window)
        self.flash_attention = flash_attention
        if flash_attention and self.dropout > 0:
            raise ArgumentError(explain(f"{kind}(flash_attention)", "True with dropout", "one of them", "Leave flash_attention=None."))
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)
        self.bias_constraint = constraints.get(bias_constraint)
        self.projection_regularizer = self.activity_regularizer
        self.use_gate = bool(use_gate)
        self.seed = seed
        self.dropout_layer = Dropout(self.dropout, seed=seed, name="dropout")
        self.dropout_layer.ensure_built((None,))

    def _project(self, name: str, shape: Shape, bound: int, sizes: Sequence[int], activation: Any = None) -> EinsumDense:
        """Returns a built dense layer from the last `bound` axes of `shape` to axes of these sizes."""
        free = len(shape) - bound
        letters = string.ascii_lowercase
        before, summed, made = letters[:free], letters[free:free + bound], letters[free + bound:free + bound + len(sizes)]
        layer = EinsumDense(
            f"{before}{summed},{summed}{made}->{before}{made}", (*[None] * (free - 1), *sizes), activation=activation,
            bias_axes=made if self.use_bias else None, kernel_initializer=self.kernel_initializer,
            bias_initializer=self.bias_initializer, kernel_regularizer=self.kernel_regularizer,
            bias_regularizer=self.bias_regularizer, kernel_constraint=self.kernel_constraint, bias_constraint=self.bias_constraint,
            activity_regularizer=self.projection_regularizer, name=name)
        layer.ensure_built(shape)
        return layer

    # -- calling ---------------------------------------------------------------------------------------------------

    def __call__(self, query: Any, value: Any, key: Any = None, *masks: Any, **kwargs: Any) -> Any:
        """Calls the layer on queries, values and keys (the values, if there are none).

        Args:
            query, value, key: tensors, arrays or symbolic tensors.
            masks: `query_mask`, `value_mask`, `key_mask` and `attention_mask` by position, as in Keras.
            kwargs: as in `forward`, and `training`.
        """
        kwargs |= dict(zip(("query_mask", "value_mask", "key_mask", "attention_mask"), masks, strict=False))
        return super().__call__(query, value, *(() if key is None else (key,)), **kwargs)

    def _record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mask = kwargs.get("attention_mask")
        if isinstance(mask, SymbolicTensor) and mask.ndim > 2:  # at run time it comes as all inputs of a model do
            kwargs = {**kwargs, "mask_is_inside": True}
        return super()._record(args, kwargs)

    def output_shape_of_call(self, input_shapes: Sequence[Any], arguments: Mapping[str, Any]) -> Any:
        """Returns the output's shape, and that of the scores where they are asked for."""
        output = self.compute_output_shape(*input_shapes)
        return [output, self._scores_shape(*input_shapes[:2])] if arguments.get("return_attention_scores") else output

    def forward(self, query: Tensor, value: Tensor, key: Tensor | None = None, query_mask: Tensor | None = None,
                value_mask: Tensor | None = None, key_mask: Tensor | None = None, attention_mask: Tensor | None = None,
                return_attention_scores: bool = False, use_causal_mask: bool = False, mask_is_inside: bool = False) -> Any:
        """Returns the attention's output, or (output, scores).

        Args:
            query: (batch, features, steps) inside, as the next two.
            value, key: of other lengths and features, perhaps; without a key, the value is it.
            query_mask, value_mask, key_mask: bool, (batch, steps); what is False is left out. Filled from the inputs' masks.
            attention_mask: bool, (batch, queries, keys), or with fewer axes; which query may see which key.
            return_attention_scores: whether the weights of the values are returned, too, (batch, heads, queries, keys) outside.
            use_causal_mask: whether a query sees no later key.
            mask_is_inside: whether `attention_mask` has its last axis at index 1.
        """
        if return_attention_scores and self.flash_attention:
            raise ArgumentError(explain(f"{label(self)} (return_attention_scores)", "True with flash_attention=True",
                                        "one of them: the flash kernel never has the scores", "Leave flash_attention=None."))
        key = value if key is None else key
        query, value, key = (to_inside(to_outside(x)) for x in (query, value, key))  # views that carry no mask into the projections
        q, k, v = (to_outside(dense(x)) for dense, x in ((self.query_dense, query), (self.key_dense, key), (self.value_dense, value)))
        q_dims, k_dims = q.shape[1:-2], k.shape[1:-2]
        if attention_mask is not None and mask_is_inside:
            attention_mask = to_outside(attention_mask)
        in_steps = return_attention_scores or (self.training and self.dropout > 0 and (self.seed is not None or self.dropout == 1))
        given = [m for m in (query_mask, value_mask, key_mask, attention_mask) if m is not None]
        causal = use_causal_mask and not (in_steps or given or self.sliding_window)  # then no mask needs to be in memory
        mask = self._mask(q_dims, k_dims, query_mask, (value_mask, key_mask), attention_mask, use_causal_mask and not causal, q.device)
        attend = self._attend_in_steps if in_steps else self._attend
        out, scores = attend(self._arrange(q), self._arrange(k), self._arrange(v), mask, causal)
        y = self._arrange_back(out, q_dims)
        if self.use_gate:
            y = y * to_outside(self.gate_dense(query))
        output = self.output_dense(to_inside(y))
        return (output, to_inside(self._unfold(scores, q_dims, k_dims))) if return_attention_scores else output

    # -- attention -------------------------------------------------------------------------------------------------

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> tuple[Tensor, Any]:
        """Attention in one kernel of PyTorch, which never has the scores in memory.

        It drops scores as `_attend_in_steps` does, with PyTorch's global generator: a layer with a seed goes in steps.
        """
        from torch.nn.attention import SDPBackend, sdpa_kernel

        options: dict[str, Any] = {"attn_mask": mask, "dropout_p": self.dropout if self.training else 0.0, "is_causal": causal,
                                   "scale": 1.0 / math.sqrt(q.shape[-1]), "enable_gqa": q.shape[-3] != k.shape[-3]}
        if not self.flash_attention:
            return F.scaled_dot_product_attention(q, k, v, **options), None
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, **options), None

    def _attend_in_steps(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> tuple[Tensor, Tensor]:
        """The same with scores that can be returned (as they are before dropout, as in Keras) and dropped by a seed."""
        repeats = q.shape[-3] // k.shape[-3]
        k, v = (x if repeats == 1 else x.repeat_interleave(repeats, -3) for x in (k, v))
        scores = (q * (1.0 / math.sqrt(q.shape[-1]))) @ k.mT
        if mask is None:
            scores = torch.softmax(scores, -1)
        else:
            scores = torch.softmax(scores.masked_fill(~mask, torch.finfo(scores.dtype).min), -1).masked_fill(~mask, 0.0)
        return self.dropout_layer(scores) @ v, scores

    def _mask(self, q_dims: Sequence[int], k_dims: Sequence[int], query_mask: Tensor | None, key_masks: Sequence[Tensor | None],
              attention_mask: Tensor | None, causal: bool, device: torch.device) -> Tensor | None:
        """Returns which query sees which key, bool, to be broadcast to (B, R…, N, T, S); None for all."""
        parts = [] if query_mask is None else [self._of_steps(query_mask, q_dims).unsqueeze(-1)]
        parts += [self._of_steps(mask, k_dims).unsqueeze(-2) for mask in key_masks if mask is not None]
        if attention_mask is not None:
            parts.append(self._of_pairs(attention_mask, q_dims, k_dims))
        if causal or self.sliding_window is not None:
            counts = [math.prod(dims[a - 1] for a in self._axes) for dims in (q_dims, k_dims)]
            distance = torch.arange(counts[0], device=device)[:, None] - torch.arange(counts[1], device=device)
            parts += [distance >= 0] if causal else []
            parts += [] if self.sliding_window is None else [distance.abs() < self.sliding_window]
        mask = None
        for part in parts:
            mask = part if mask is None else mask & part
        return mask

    def _of_steps(self, mask: Tensor, dims: Sequence[int]) -> Tensor:
        """Returns a mask of steps, (B, some of the axes), as (B, R…, 1, steps)."""
        mask = mask.bool().reshape(*mask.shape, *[1] * (1 + len(dims) - mask.ndim)).expand(-1, *dims)
        rest = self._rest(len(dims))
        return mask.permute(0, *rest, *self._axes).flatten(1 + len(rest)).unsqueeze(-2)

    def _of_pairs(self, mask: Tensor, q_dims: Sequence[int], k_dims: Sequence[int]) -> Tensor:
        """Returns a mask of Keras's shape, ([B, R…, [N,]] queries…, keys…), with the axes of queries and of keys made one each."""
        pairs, count = 2 * len(self._axes), 2 + len(self._rest(len(q_dims))) + 2 * len(self._axes)
        if not pairs <= mask.ndim <= count:
            raise ShapeError(explain(f"{label(self)} (attention_mask)", f"shape {tuple(mask.shape)}",
                                     f"{pairs} to {count} axes, such as (batch, queries, keys)"))
        mask = mask.bool()
        first, last = mask.shape[:-pairs], [dims[a - 1] for dims in (q_dims, k_dims) for a in self._axes]
        mask = mask.reshape(*first, *[1] * (count - mask.ndim), *mask.shape[-pairs:]) if mask.ndim > pairs else mask
        half = len(self._axes)
        return mask.expand(*mask.shape[:-pairs], *last).flatten(-half).flatten(-half - 1, -2) if half > 1 else mask

    # -- axes ------------------------------------------------------------------------------------------------------

    def _rest(self, count: int) -> list[int]:
        """Returns the axes between batch and features over which there is no attention."""
        return [axis for axis in range(1, count + 1) if axis not in self._axes]

    def _arrange(self, x: Tensor) -> Tensor:
        """(B, axes…, N, H) → (B, R…, N, T, H)."""
        rest, heads = self._rest(x.ndim - 3), x.ndim - 2
        return x.permute(0, *rest, heads, *self._axes, heads + 1).flatten(2 + len(rest), -2)

    def _arrange_back(self, x: Tensor, dims: Sequence[int]) -> Tensor:
        """(B, R…, N, T, H) → (B, axes…, N, H)."""
        rest = self._rest(len(dims))
        order = [0, *rest, len(dims) + 1, *self._axes, len(dims) + 2]
        y = x.reshape(*x.shape[:-2], *(dims[a - 1] for a in self._axes), x.shape[-1])
        return y.permute(*[order.index(axis) for axis in range(len(order))])

    def _unfold(self, scores: Tensor, q_dims: Sequence[int], k_dims: Sequence[int]) -> Tensor:
        """(B, R…, N, T, S) → (B, R…, N, queries…, keys…)."""
        return scores.reshape(*scores.shape[:-2], *(dims[a - 1] for dims in (q_dims, k_dims) for a in self._axes))

    def _scores_shape(self, query: Shape, value: Shape) -> Shape:
        rest = [query[a] for a in self._rest(len(query) - 2)]
        return (query[0], *rest, self._query_heads, *(query[a] for a in self._axes), *(value[a] for a in self._axes))

    def _check_lengths(self, value_shape: Shape, key_shape: Shape) -> None:
        if tuple(value_shape[1:-1]) != tuple(key_shape[1:-1]):
            raise ShapeError(explain(f"{label(self)} (value, key)", f"shapes {tuple(value_shape)} and {tuple(key_shape)}",
                                     "the same axes but the last"))


@registry.register()
class MultiHeadAttention(_Heads):
    """Each head compares projected queries with keys, and returns the mean of the values by these scores (Vaswani et al. 2017).

    Args:
        num_heads: number of heads.
        key_dim: features of a head's queries and keys.
        value_dim: features of a head's values; `key_dim` if None.
        dropout: share of the scores that are dropped in training.
        use_bias: whether the projections have biases.
        output_shape: of the output's features, a number or several; those of the query if None.
        attention_axes: over which there is attention; None for all but batch and features.
        sliding_window: a query sees keys that are nearer than this; None for all.
        flash_attention: True insists on the flash kernel of PyTorch, and fails where it does not exist; else PyTorch chooses.
        kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer, activity_regularizer: of the projections.
        kernel_constraint, bias_constraint: of the projections; applied after each update.
        use_gate: whether the heads' outputs are multiplied by a sigmoid of a projection of the query.
        seed: of the dropout; None draws from PyTorch's global generator.

    Shapes: query (batch, queries, features), value and key (batch, keys, features) → (batch, queries, features of the query).
    With `return_attention_scores=True` also (batch, heads, queries, keys).
    Keras counterpart: `keras.layers.MultiHeadAttention`; PyTorch's: `torch.nn.MultiheadAttention`, whose three projections
    are one matrix.
    """

    def __init__(self, num_heads: int, key_dim: int, value_dim: int | None = None, dropout: float = 0.0, use_bias: bool = True,
                 output_shape: int | Sequence[int] | None = None, attention_axes: int | Sequence[int] | None = None,
                 sliding_window: int | None = None, flash_attention: bool | None = None, kernel_initializer: Any = "glorot_uniform",
                 bias_initializer: Any = "zeros", kernel_regularizer: Any = None, bias_regularizer: Any = None,
                 kernel_constraint: Any = None, bias_constraint: Any = None, use_gate: bool = False, seed: int | None = None,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._keep(dropout, use_bias, sliding_window, flash_attention, kernel_initializer, bias_initializer, kernel_regularizer,
                   bias_regularizer, kernel_constraint, bias_constraint, use_gate, seed)
        kind = type(self).__name__
        self.num_heads = self._query_heads = check_positive(kind, "num_heads", num_heads)
        self.key_dim = check_positive(kind, "key_dim", key_dim)
        self.value_dim = self.key_dim if value_dim is None else check_positive(kind, "value_dim", value_dim)
        shape = [output_shape] if isinstance(output_shape, int) else output_shape
        self.output_shape = tuple(check_positive(kind, "output_shape", size) for size in shape) if shape else None
        axes = [attention_axes] if isinstance(attention_axes, int) else attention_axes
        self.attention_axes = None if axes is None else tuple(int(axis) for axis in axes)
        self._axes = ()
        self.activity_regularizer = None  # Keras's penalizes what the projections return, and not once more what this layer does

    def _arguments(self) -> dict[str, Any]:
        return {**super()._arguments(), "activity_regularizer": self.projection_regularizer}

    def build(self, query_shape: Shape, value_shape: Shape, key_shape: Shape | None = None) -> None:
        key_shape = value_shape if key_shape is None else key_shape
        self._check_lengths(value_shape, key_shape)
        rank = len(query_shape)
        axes = tuple(range(1, rank - 1)) if self.attention_axes is None else tuple(a % rank for a in self.attention_axes)
        if rank < 3 or len(value_shape) != rank or not axes or any(not 0 < a < rank - 1 for a in axes) or len(set(axes)) < len(axes):
            raise ShapeError(explain(label(self), f"query of shape {tuple(query_shape)}, value of shape {tuple(value_shape)}, "
                                     f"attention_axes={self.attention_axes}",
                                     "(batch, steps…, features) for both, and axes of attention between batch and features"))
        self._axes = axes
        heads, sizes = self.num_heads, [self.num_heads, self.value_dim]
        self.query_dense = self._project("query", query_shape, 1, [heads, self.key_dim])
        self.key_dense = self._project("key", key_shape, 1, [heads, self.key_dim])
        if self.use_gate:
            self.gate_dense = self._project("gate", query_shape, 1, sizes, "sigmoid")
        self.value_dense = self._project("value", value_shape, 1, sizes)
        last = self.output_shape or (_known(self, query_shape),)
        self.output_dense = self._project("attention_output", (*query_shape[:-1], *sizes), 2, last)

    def compute_output_shape(self, query_shape: Shape, value_shape: Shape, key_shape: Shape | None = None) -> Shape:
        self._check_lengths(value_shape, value_shape if key_shape is None else key_shape)
        return (*query_shape[:-1], *(self.output_shape or query_shape[-1:]))


@registry.register("GroupedQueryAttention")
class GroupQueryAttention(_Heads):
    """Attention where several heads of queries share one head of keys and values (Ainslie et al. 2023).

    Args:
        head_dim: features of a head.
        num_query_heads: heads of queries.
        num_key_value_heads: heads of keys and values, a divisor of it; 1 is multi-query attention.
        dropout, use_bias, sliding_window, flash_attention, kernel_initializer, bias_initializer, kernel_regularizer,
        bias_regularizer, kernel_constraint, bias_constraint, use_gate, seed: as in `MultiHeadAttention`.
        activity_regularizer: of what each projection returns and, as in Keras, of the layer's output once more.

    Shapes: query (batch, queries, features), value and key (batch, keys, features) → (batch, queries, features of the query).
    Keras counterpart: `keras.layers.GroupQueryAttention`; PyTorch's: `scaled_dot_product_attention(enable_gqa=True)`.
    """

    _axes = (1,)

    def __init__(self, head_dim: int, num_query_heads: int, num_key_value_heads: int, dropout: float = 0.0, use_bias: bool = True,
                 sliding_window: int | None = None, flash_attention: bool | None = None, kernel_initializer: Any = "glorot_uniform",
                 bias_initializer: Any = "zeros", kernel_regularizer: Any = None, bias_regularizer: Any = None,
                 kernel_constraint: Any = None, bias_constraint: Any = None, use_gate: bool = False, seed: int | None = None,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._keep(dropout, use_bias, sliding_window, flash_attention, kernel_initializer, bias_initializer, kernel_regularizer,
                   bias_regularizer, kernel_constraint, bias_constraint, use_gate, seed)
        kind = type(self).__name__
        self.head_dim = check_positive(kind, "head_dim", head_dim)
        self.num_query_heads = self._query_heads = check_positive(kind, "num_query_heads", num_query_heads)
        self.num_key_value_heads = check_positive(kind, "num_key_value_heads", num_key_value_heads)
        if self.num_query_heads % self.num_key_value_heads:
            raise ArgumentError(explain(f"{kind}(num_query_heads, num_key_value_heads)", f"{num_query_heads} and {num_key_value_heads}",
                                        "a number of query heads that the other divides"))

    def build(self, query_shape: Shape, value_shape: Shape, key_shape: Shape | None = None) -> None:
        key_shape = value_shape if key_shape is None else key_shape
        self._check_lengths(value_shape, key_shape)
        if len(query_shape) != 3 or len(value_shape) != 3:
            raise ShapeError(explain(label(self), f"query of shape {tuple(query_shape)}, value of shape {tuple(value_shape)}",
                                     "(batch, steps, features) for both"))
        queries, shared = [self.num_query_heads, self.head_dim], [self.num_key_value_heads, self.head_dim]
        self.query_dense = self._project("query", query_shape, 1, queries)
        self.key_dense = self._project("key", key_shape, 1, shared)
        if self.use_gate:
            self.gate_dense = self._project("gate", query_shape, 1, queries, "sigmoid")
        self.value_dense = self._project("value", value_shape, 1, shared)
        self.output_dense = self._project("attention_output", (*query_shape[:-1], *queries), 2, [_known(self, query_shape)])

    def compute_output_shape(self, query_shape: Shape, value_shape: Shape, key_shape: Shape | None = None) -> Shape:
        self._check_lengths(value_shape, value_shape if key_shape is None else key_shape)
        return tuple(query_shape)

def _known(layer: Layer, shape: Shape) -> int:
    if shape[-1] is None:
        raise ShapeError(explain(label(layer), f"query of shape {tuple(shape)}", "a known number of features"))
    return shape[-1]
