"""Cases of the layers in `convolt/layers/attention.py`, `dot_attention.py` and `einsum.py`; masks and scores are in `test_attention.py`."""

from tests.parity.cases import LayerCase

DRAWN = "another random generator than Keras's"
HEADS = {"num_heads": 2, "key_dim": 3}
GROUPS = {"head_dim": 3, "num_query_heads": 4, "num_key_value_heads": 2}
REGULARIZED = {"kernel_regularizer": "l2", "bias_regularizer": "l1", "activity_regularizer": "l2"}
SELF = [(2, 4, 5), (2, 4, 5)]
LONGER = [(2, 4, 5), (2, 6, 5)]
CROSS = [(2, 4, 5), (2, 3, 6)]
THREE = [(2, 4, 5), (2, 3, 6), (2, 3, 2)]
IMAGES = [(2, 3, 4, 2), (2, 3, 4, 2)]


def attention(kwargs, shapes, **options):
    return LayerCase("MultiHeadAttention", {**HEADS, **kwargs}, shapes, separate=True, **options)


def grouped(kwargs, shapes, **options):
    return LayerCase("GroupQueryAttention", {**GROUPS, **kwargs}, shapes, separate=True, **options)


CASES = [
    attention({}, SELF),
    attention({}, CROSS, training=True),
    attention({"value_dim": 4}, THREE),
    attention({"value_dim": 4, "use_gate": True}, THREE),
    attention({"use_bias": False}, CROSS),
    attention({"output_shape": 7}, CROSS),
    attention({"output_shape": (2, 3)}, SELF),
    attention({"num_heads": 1, "key_dim": 1}, [(1, 1, 1), (1, 1, 1)]),
    attention({"sliding_window": 2}, SELF),
    attention({}, IMAGES),
    attention({"attention_axes": 1}, IMAGES),
    attention({"attention_axes": (2,)}, [(2, 3, 4, 2), (2, 3, 5, 2)]),
    attention({"attention_axes": (-2, 1), "use_gate": True}, IMAGES),
    attention({"dropout": 0.4}, CROSS),
    attention({"dropout": 0.4}, CROSS, training=True, random=DRAWN),
    attention({"dropout": 0.4, "seed": 3}, SELF, training=True, random=DRAWN),
    attention({"kernel_initializer": "he_normal", "bias_initializer": "ones"}, CROSS),
    attention(REGULARIZED, CROSS, training=True),
    grouped({}, SELF),
    grouped({}, LONGER, training=True),
    grouped({"num_key_value_heads": 1, "use_bias": False}, [*LONGER, (2, 6, 2)]),
    grouped({"num_key_value_heads": 4, "use_gate": True}, LONGER),
    grouped({"sliding_window": 1}, SELF),
    grouped({"dropout": 0.5, "seed": 3}, SELF, training=True, random=DRAWN),
    grouped(REGULARIZED, SELF, training=True),
    LayerCase("Attention", {}, [(2, 4, 5), (2, 3, 5)]),
    LayerCase("Attention", {"use_scale": True}, [(2, 4, 5), (2, 3, 6), (2, 3, 5)]),
    LayerCase("Attention", {"score_mode": "concat"}, [(2, 4, 5), (2, 3, 5)]),
    LayerCase("Attention", {"score_mode": "concat", "use_scale": True}, [(2, 4, 5), (2, 3, 5)], training=True),
    LayerCase("Attention", {"dropout": 0.5}, [(2, 4, 5), (2, 4, 5)]),
    LayerCase("Attention", {"dropout": 0.5}, [(2, 4, 5), (2, 4, 5)], training=True, random=DRAWN),
    LayerCase("Attention", {"dropout": 0.5, "seed": 3}, [(2, 4, 5), (2, 4, 5)], training=True, random=DRAWN),
    LayerCase("AdditiveAttention", {}, [(2, 4, 5), (2, 3, 5)]),
    LayerCase("AdditiveAttention", {"use_scale": False}, [(2, 4, 5), (2, 3, 6), (2, 3, 5)]),
    LayerCase("AdditiveAttention", {"dropout": 0.5}, [(2, 4, 5), (2, 4, 5)], training=True, random=DRAWN),
    LayerCase("EinsumDense", {"equation": "ab,bc->ac", "output_shape": 4, "bias_axes": "c"}, [(2, 3)]),
    LayerCase("EinsumDense", {"equation": "abc,cde->abde", "output_shape": (4, 2, 3), "bias_axes": "de"}, [(2, 4, 5)]),
    LayerCase("EinsumDense", {"equation": "abc,cd->abd", "output_shape": (4, 3), "activation": "sigmoid", "bias_axes": "b"}, [(2, 4, 5)]),
    LayerCase("EinsumDense", {"equation": "abcd,cde->abe", "output_shape": (4, 3), "bias_axes": "e"}, [(2, 4, 3, 2)]),
    LayerCase("EinsumDense", {"equation": "...x,xy->...y", "output_shape": 3, "bias_axes": "y"}, [(2, 4, 3)]),
    LayerCase("EinsumDense", {"equation": "ab...,bc->ac...", "output_shape": 3, "bias_axes": "c"}, [(2, 4, 3)]),
    LayerCase("EinsumDense", {"equation": "abc,bcd->abd", "output_shape": (4, 3), "kernel_initializer": "lecun_normal"}, [(2, 4, 5)]),
    LayerCase("EinsumDense", {"equation": "ab,bc->ac", "output_shape": 4, "bias_axes": "c", **REGULARIZED}, [(2, 3)], training=True),
]
