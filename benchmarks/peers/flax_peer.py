"""Flax (linen) and Optax on JAX: one jitted step that gives its state's memory back; the classic CNN and ResNet-18."""

from __future__ import annotations

from functools import partial
from typing import Any

from common import Watch, arguments, run

options = arguments()

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

DTYPE = jnp.bfloat16 if options.precision == "bfloat16" else jnp.float32
GLOROT = nn.initializers.glorot_uniform()
conv = partial(nn.Conv, dtype=DTYPE, kernel_init=GLOROT)
dense = partial(nn.Dense, dtype=DTYPE, kernel_init=GLOROT)


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x: Any, training: bool) -> Any:
        for filters in (32, 64):
            x = nn.max_pool(nn.relu(conv(filters, (3, 3), padding="VALID")(x)), (2, 2), (2, 2))
        x = nn.relu(dense(64)(x.reshape(len(x), -1)))
        return dense(10)(nn.Dropout(0.5, deterministic=not training)(x))


class Resnet18(nn.Module):
    @nn.compact
    def __call__(self, x: Any, training: bool) -> Any:
        norm = partial(nn.BatchNorm, use_running_average=not training, momentum=0.99, epsilon=1e-3, dtype=DTYPE)
        x = nn.relu(norm()(conv(64, (3, 3), use_bias=False)(x)))
        for filters, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
            y = nn.relu(norm()(conv(filters, (3, 3), stride, use_bias=False)(x)))
            y = norm()(conv(filters, (3, 3), use_bias=False)(y))
            if stride != 1:
                x = norm()(conv(filters, (1, 1), stride, use_bias=False)(x))
            x = nn.relu(x + y)
        return dense(10)(x.mean((1, 2)))


model = {"cnn": Cnn, "resnet18": Resnet18}[options.network]()
optimizer = optax.adam(1e-3)


@partial(jax.jit, donate_argnums=(0, 1, 2))
def train_step(weights: Any, others: Any, state: Any, x: Any, y: Any, key: Any) -> Any:
    def loss(weights: Any) -> Any:
        logits, changed = model.apply({"params": weights, **others}, x, True, rngs={"dropout": key}, mutable=list(others))
        return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), y).mean(), changed

    (value, changed), gradients = jax.value_and_grad(loss, has_aux=True)(weights)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(weights, updates), changed, state, value


@jax.jit
def scores(weights: Any, others: Any, x: Any) -> Any:
    return nn.softmax(model.apply({"params": weights, **others}, x, False).astype(jnp.float32))


class FlaxPeer:
    def __init__(self) -> None:
        made = model.init(jax.random.key(0), jnp.ones((1, *options.work.shape)), False)
        self.weights, self.others = made.pop("params"), made
        self.state = optimizer.init(self.weights)

    def train(self, x: Any, y: Any, test: Any, watch: Watch) -> None:
        random, key, done = np.random.default_rng(0), jax.random.key(1), False
        while not done:
            order = random.permutation(len(x))
            for start in range(0, len(x) // options.batch * options.batch, options.batch):
                chosen = order[start:start + options.batch]
                key, now = jax.random.split(key)
                self.weights, self.others, self.state, loss = train_step(self.weights, self.others, self.state, x[chosen], y[chosen], now)
                if not watch.first_step:
                    loss.block_until_ready()
                    watch.step()
            loss.block_until_ready()
            done = watch.epoch((self.predict(test[0]).argmax(1) == test[1]).mean() if test else None)

    def predict(self, x: Any) -> Any:
        size = min(len(x), 1000 if options.work.task == "target" else options.batch)
        return np.concatenate([np.asarray(scores(self.weights, self.others, x[i:i + size])) for i in range(0, len(x), size)])

    def parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.weights))


run("flax", options, FlaxPeer(), ("jax", "flax", "optax"))
