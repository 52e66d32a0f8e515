"""Keras 3 through `compile` and `fit`; the backend is `--variant torch|tensorflow|jax`, with `+jit` for jit_compile=True."""

import os

from common import arguments, run
from keras_like import FitPeer, build

options = arguments()
backend, _, jit = options.variant.partition("+")
os.environ["KERAS_BACKEND"] = backend
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
if options.device == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import keras  # noqa: E402

if options.precision == "bfloat16":  # training keeps float32 weights; a deployed model would not
    keras.mixed_precision.set_global_policy("bfloat16" if options.work.task == "predict" else "mixed_bfloat16")
model = build(keras, options.work)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"] if options.work.task == "target" else None,
              **({"jit_compile": True} if jit else {}))
peer = FitPeer(keras, model, None if options.precision == "default" else options.batch, first_alone=True)
run(f"keras {options.variant}", options, peer, ("keras", {"tensorflow": "tensorflow_cpu"}.get(backend, backend)))
