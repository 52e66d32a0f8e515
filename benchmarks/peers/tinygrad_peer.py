"""tinygrad with `TinyJit` around the training step; the classic CNN in float32. On a CPU it compiles with clang."""

from __future__ import annotations

import os
from typing import Any

from common import Watch, arguments, run

options = arguments()
os.environ.setdefault("DEV", "CPU" if options.device == "cpu" else "CUDA")

import numpy as np  # noqa: E402
from tinygrad import Context, Tensor, TinyJit  # noqa: E402
from tinygrad.nn import Conv2d, Linear  # noqa: E402
from tinygrad.nn.optim import Adam  # noqa: E402
from tinygrad.nn.state import get_parameters  # noqa: E402


class Cnn:
    def __init__(self) -> None:
        self.layers = [Conv2d(1, 32, 3), Conv2d(32, 64, 3), Linear(1600, 64), Linear(64, 10)]
        for layer in self.layers:
            layer.weight = Tensor.glorot_uniform(*layer.weight.shape)
            layer.bias = Tensor.zeros(*layer.bias.shape).contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        for conv in self.layers[:2]:
            x = conv(x).relu().max_pool2d(2)
        return self.layers[3](self.layers[2](x.flatten(1)).relu().dropout(0.5))


class TinygradPeer:
    def __init__(self) -> None:
        self.model = Cnn()
        self.optimizer = Adam(get_parameters(self.model.layers))

        @TinyJit
        def step(x: Tensor, y: Tensor) -> Tensor:
            loss = self.model(x).sparse_categorical_crossentropy(y)
            self.optimizer.zero_grad()
            loss.backward()
            return loss.realize(*self.optimizer.schedule_step())

        @TinyJit
        def scores(x: Tensor) -> Tensor:
            return self.model(x).softmax(1).realize()

        self.step, self.scores = step, scores

    def train(self, x: Any, y: Any, test: Any, watch: Watch) -> None:
        x, y, done = x.transpose(0, 3, 1, 2), y.astype("int32"), False
        random = np.random.default_rng(0)
        while not done:
            order = random.permutation(len(x))
            for start in range(0, len(x) // options.batch * options.batch, options.batch):
                chosen = order[start:start + options.batch]
                with Context(TRAINING=1):
                    loss = self.step(Tensor(np.ascontiguousarray(x[chosen])), Tensor(y[chosen]))
                if not watch.first_step:
                    loss.item()
                    watch.step()
            loss.item()
            done = watch.epoch((self.predict(test[0]).argmax(1) == test[1]).mean() if test else None)

    def predict(self, x: Any) -> Any:
        x = x.transpose(0, 3, 1, 2)
        return np.concatenate([self.scores(Tensor(np.ascontiguousarray(x[i:i + 1000]))).numpy() for i in range(0, len(x), 1000)])

    def parameters(self) -> int:
        return sum(int(np.prod(tensor.shape)) for tensor in get_parameters(self.model.layers))


run("tinygrad", options, TinygradPeer(), ("tinygrad",))
