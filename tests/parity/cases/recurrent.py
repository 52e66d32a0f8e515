"""Cases of the layers in `convolt/layers/recurrent/`; states, masks and cells are in `tests/parity/test_recurrent.py`."""

from typing import Any

from tests.parity.cases import LayerCase

DRAWS = "dropout draws random numbers"
GATED: list[dict[str, Any]] = [
    {},
    {"return_sequences": True},
    {"go_backwards": True},
    {"go_backwards": True, "return_sequences": True},
    {"use_bias": False, "return_sequences": True},
    {"unroll": True},
    {"activation": "sigmoid", "return_sequences": True},
]
REGULARIZED = {"kernel_regularizer": "l2", "recurrent_regularizer": "l1", "bias_regularizer": "l2", "activity_regularizer": "l2"}


def wrapped(layer: str, name: str, kwargs: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Returns the fields of a case whose layer wraps another one."""
    return {"kwargs": {"layer": {"class_name": name, "config": kwargs}, **options},
            "make_keras": lambda keras: getattr(keras.layers, layer)(getattr(keras.layers, name)(**kwargs), **options)}


def rnn(cells: list[tuple[str, dict[str, Any]]], **options: Any) -> dict[str, Any]:
    """Returns the fields of a case of `RNN` over one cell, or several that are stacked."""
    configs = [{"class_name": name, "config": kwargs} for name, kwargs in cells]

    def make(keras: Any) -> Any:
        made = [getattr(keras.layers, name)(**kwargs) for name, kwargs in cells]
        return keras.layers.RNN(made if len(made) > 1 else made[0], **options)

    return {"kwargs": {"cell": configs if len(configs) > 1 else configs[0], **options}, "make_keras": make}


CASES = [
    *(LayerCase(name, {"units": 3, **options}, [(2, 4, 5)]) for name in ("SimpleRNN", "LSTM", "GRU") for options in GATED),
    *(LayerCase(name, {"units": 2, **REGULARIZED}, [(2, 3, 2)], training=True) for name in ("LSTM", "GRU")),
    LayerCase("SimpleRNN", {"units": 2, **REGULARIZED, "activity_regularizer": None}, [(2, 3, 2)], training=True),  # Keras drops that one
    *(LayerCase(name, {"units": 1}, [(1, 1, 1)]) for name in ("SimpleRNN", "LSTM", "GRU")),
    *(LayerCase(name, {"units": 2, "dropout": 0.5, "recurrent_dropout": 0.3}, [(2, 3, 4)], training=True, random=DRAWS)
      for name in ("SimpleRNN", "LSTM", "GRU")),
    LayerCase("SimpleRNN", {"units": 3, "activation": "relu", "return_sequences": True}, [(2, 4, 3)], no_gradcheck="kinks of ReLU"),
    LayerCase("LSTM", {"units": 3, "recurrent_activation": "tanh"}, [(2, 4, 3)]),
    LayerCase("LSTM", {"units": 3, "unit_forget_bias": False, "use_cudnn": False}, [(2, 4, 3)]),
    LayerCase("GRU", {"units": 3, "reset_after": False, "return_sequences": True}, [(2, 4, 3)]),
    LayerCase("GRU", {"units": 3, "reset_after": False, "use_bias": False}, [(2, 4, 3)]),
    LayerCase("RNN", shapes=[(2, 4, 3)], **rnn([("LSTMCell", {"units": 3})])),
    LayerCase("RNN", shapes=[(2, 4, 3)], **rnn([("GRUCell", {"units": 2}), ("LSTMCell", {"units": 3})], return_sequences=True)),
    LayerCase("RNN", shapes=[(2, 4, 3)], **rnn([("SimpleRNNCell", {"units": 2}), ("SimpleRNNCell", {"units": 2})], go_backwards=True)),
    LayerCase("Bidirectional", shapes=[(2, 4, 3)], **wrapped("Bidirectional", "LSTM", {"units": 2})),
    *(LayerCase("Bidirectional", shapes=[(2, 4, 3)],
                **wrapped("Bidirectional", "GRU", {"units": 2, "return_sequences": True}, merge_mode=mode))
      for mode in ("sum", "mul", "ave")),
    LayerCase("TimeDistributed", shapes=[(2, 3, 4)], **wrapped("TimeDistributed", "Dense", {"units": 2})),
    LayerCase("TimeDistributed", shapes=[(2, 3, 5, 4, 2)], **wrapped("TimeDistributed", "Conv2D", {"filters": 3, "kernel_size": 3})),
    LayerCase("TimeDistributed", shapes=[(2, 3, 2, 4, 2)], **wrapped("TimeDistributed", "Flatten", {})),
    LayerCase("TimeDistributed", shapes=[(4, 3, 2)], training=True, **wrapped("TimeDistributed", "BatchNormalization", {"momentum": 0.5})),
    LayerCase("ConvLSTM2D", {"filters": 2, "kernel_size": 3}, [(2, 3, 5, 4, 2)]),
    LayerCase("ConvLSTM2D", {"filters": 2, "kernel_size": 2, "padding": "same", "return_sequences": True}, [(1, 3, 4, 5, 1)]),
    LayerCase("ConvLSTM2D", {"filters": 1, "kernel_size": (2, 3), "strides": 2, "padding": "same", "use_bias": False,
                             "go_backwards": True}, [(2, 2, 5, 4, 2)]),
    LayerCase("ConvLSTM2D", {"filters": 2, "kernel_size": 2, "dilation_rate": 2, "activation": "sigmoid",
                             "recurrent_activation": "hard_sigmoid"}, [(2, 2, 5, 4, 1)], no_gradcheck="kinks of hard_sigmoid"),
    LayerCase("ConvLSTM2D", {"filters": 2, "kernel_size": 2, "dropout": 0.3, "recurrent_dropout": 0.2}, [(2, 2, 4, 4, 1)],
              training=True, random=DRAWS),
    LayerCase("ConvLSTM1D", {"filters": 2, "kernel_size": 3, "return_sequences": True}, [(2, 3, 6, 2)]),
    LayerCase("ConvLSTM3D", {"filters": 1, "kernel_size": 2, "padding": "same"}, [(1, 2, 3, 2, 3, 2)]),
    LayerCase("Masking", {}, [(2, 3, 4)], kinks=(0.0,)),
    LayerCase("Masking", {"mask_value": 0.5}, [(2, 3)]),
    LayerCase("Embedding", {"input_dim": 7, "output_dim": 3}, [(2, 4)], integers=7),
    LayerCase("Embedding", {"input_dim": 5, "output_dim": 2, "mask_zero": True, "embeddings_regularizer": "l2"}, [(3, 2)], integers=5),
    LayerCase("Embedding", {"input_dim": 5, "output_dim": 2}, [(2, 3, 4)], integers=5),
]
