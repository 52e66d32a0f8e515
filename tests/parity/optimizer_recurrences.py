"""The recurrences of all optimizers, written out in NumPy float64 from Keras's documentation and the papers.

A recurrence is a function `(p, gradients, rates, **hyper) -> p` of one tensor; `train` puts clipping, weight decay,
and averages around it, as Keras orders them.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np


class Sgd:
    def __init__(self, momentum=0.0, nesterov=False):
        self.momentum, self.nesterov, self.v = momentum, nesterov, 0.0

    def change(self, g, lr, t):
        if not self.momentum:
            return -lr * g
        self.v = self.momentum * self.v - lr * g
        return self.momentum * self.v - lr * g if self.nesterov else self.v


class Adam:
    def __init__(self, beta_1=0.9, beta_2=0.999, epsilon=1e-7, amsgrad=False):
        self.b1, self.b2, self.eps, self.amsgrad, self.m, self.v, self.top = beta_1, beta_2, epsilon, amsgrad, 0.0, 0.0, 0.0

    def change(self, g, lr, t):
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g * g
        self.top = np.maximum(self.top, self.v) if self.amsgrad else self.v
        return -lr * np.sqrt(1 - self.b2**t) / (1 - self.b1**t) * self.m / (np.sqrt(self.top) + self.eps)


class RMSprop:
    def __init__(self, rho=0.9, momentum=0.0, epsilon=1e-7, centered=False):
        self.rho, self.momentum, self.eps, self.centered = rho, momentum, epsilon, centered
        self.v = self.mean = self.buffer = 0.0

    def change(self, g, lr, t):
        self.v = self.rho * self.v + (1 - self.rho) * g * g
        self.mean = self.rho * self.mean + (1 - self.rho) * g if self.centered else 0.0
        step = lr * g / np.sqrt(self.v - self.mean**2 + self.eps)
        self.buffer = self.momentum * self.buffer + step
        return -self.buffer


class Adagrad:
    def __init__(self, initial_accumulator_value=0.1, epsilon=1e-7):
        self.a, self.eps = initial_accumulator_value, epsilon

    def change(self, g, lr, t):
        self.a = self.a + g * g
        return -lr * g / np.sqrt(self.a + self.eps)


class Adadelta:
    def __init__(self, rho=0.95, epsilon=1e-7):
        self.rho, self.eps, self.a, self.d = rho, epsilon, 0.0, 0.0

    def change(self, g, lr, t):
        self.a = self.rho * self.a + (1 - self.rho) * g * g
        delta = -np.sqrt(self.d + self.eps) * g / np.sqrt(self.a + self.eps)
        self.d = self.rho * self.d + (1 - self.rho) * delta * delta
        return lr * delta


class Adamax:
    def __init__(self, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
        self.b1, self.b2, self.eps, self.m, self.u = beta_1, beta_2, epsilon, 0.0, 0.0

    def change(self, g, lr, t):
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.u = np.maximum(self.b2 * self.u, np.abs(g))
        return -lr * self.m / ((1 - self.b1**t) * (self.u + self.eps))


class Nadam:
    def __init__(self, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
        self.b1, self.b2, self.eps, self.m, self.v, self.product = beta_1, beta_2, epsilon, 0.0, 0.0, 1.0

    def change(self, g, lr, t):
        u, following = (self.b1 * (1 - 0.5 * 0.96**i) for i in (t, t + 1))
        self.product *= u
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g * g
        m_hat = following * self.m / (1 - self.product * following) + (1 - u) * g / (1 - self.product)
        return -lr * m_hat / (np.sqrt(self.v / (1 - self.b2**t)) + self.eps)


class RAdam:
    def __init__(self, beta_1=0.9, beta_2=0.999, epsilon=1e-8):
        self.b1, self.b2, self.eps, self.m, self.v = beta_1, beta_2, epsilon, 0.0, 0.0

    def change(self, g, lr, t):
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g * g
        m_hat = self.m / (1 - self.b1**t)
        infinite = 2 / (1 - self.b2) - 1
        rho = infinite - 2 * t * self.b2**t / (1 - self.b2**t)
        if rho <= 5:
            return -lr * m_hat
        r = np.sqrt((rho - 4) * (rho - 2) * infinite / ((infinite - 4) * (infinite - 2) * rho))
        return -lr * m_hat * r * np.sqrt(1 - self.b2**t) / (np.sqrt(self.v) + self.eps)


class Muon:
    def __init__(self, momentum=0.95, ns_steps=5, nesterov=True, rms_rate=0.2, adam_beta_1=0.9, adam_beta_2=0.999, epsilon=1e-7,
                 adam_lr_ratio=1.0):
        self.momentum, self.steps, self.nesterov, self.rms_rate = momentum, ns_steps, nesterov, rms_rate
        self.adam, self.ratio, self.m = Adam(adam_beta_1, adam_beta_2, epsilon), adam_lr_ratio, 0.0

    def change(self, g, lr, t):
        if g.ndim < 2:
            return self.adam.change(g, lr * self.ratio, t)
        self.m = self.momentum * self.m + g
        d = g + self.momentum * self.m if self.nesterov else self.m
        x = d.reshape(len(d), -1)
        x = x.T if x.shape[0] > x.shape[1] else x
        x = x / (np.sqrt((x * x).sum()) + 1e-7)
        for _ in range(self.steps):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        scale = 1.0 if self.rms_rate is None else np.sqrt(max(x.shape)) * self.rms_rate
        return -lr * scale * (x.T if len(d) == x.shape[1] and x.shape[0] != x.shape[1] else x).reshape(g.shape)


class Lion:
    def __init__(self, beta_1=0.9, beta_2=0.99):
        self.b1, self.b2, self.m = beta_1, beta_2, 0.0

    def change(self, g, lr, t):
        direction = np.sign(self.b1 * self.m + (1 - self.b1) * g)
        self.m = self.b2 * self.m + (1 - self.b2) * g
        return -lr * direction


class Lamb:
    needs_weights = True

    def __init__(self, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
        self.b1, self.b2, self.eps, self.m, self.v = beta_1, beta_2, epsilon, 0.0, 0.0

    def change(self, g, lr, t, p):
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g * g
        r = self.m / (1 - self.b1**t) / (np.sqrt(self.v / (1 - self.b2**t)) + self.eps)
        size, length = np.sqrt((p * p).sum()), np.sqrt((r * r).sum())
        return -lr * (size / length if size > 0 and length > 0 else 1.0) * r


class Lars:
    """Weight decay is a part of the gradient, and of matrices alone, as are the ratios."""

    needs_weights = True

    def __init__(self, momentum=0.9, trust_coefficient=0.001, nesterov=False, epsilon=0.0, weight_decay=None):
        self.momentum, self.trust, self.nesterov, self.eps = momentum, trust_coefficient, nesterov, epsilon
        self.decay, self.v = weight_decay or 0.0, 0.0

    def change(self, g, lr, t, p):
        ratio, decay = 1.0, 0.0
        if p.ndim > 1:
            decay, size, slope = self.decay, np.sqrt((p * p).sum()), np.sqrt((g * g).sum())
            ratio = self.trust * size / (slope + decay * size + self.eps) if size > 0 and slope > 0 else 1.0
        step = lr * ratio * (g + decay * p)
        self.v = self.momentum * self.v + step
        return -(step + self.momentum * self.v) if self.nesterov else -self.v


RECURRENCES: dict[str, Any] = {"SGD": Sgd, "Adam": Adam, "AdamW": Adam, "RMSprop": RMSprop, "Adagrad": Adagrad,
                               "Adadelta": Adadelta, "Adamax": Adamax, "Nadam": Nadam, "RAdam": RAdam, "Muon": Muon,
                               "Lion": Lion, "Lamb": Lamb, "LARS": Lars}
DECAYS = {"AdamW": 0.004, "Muon": 0.004}


def clipped(gs: dict[str, np.ndarray], settings: dict[str, Any]) -> dict[str, np.ndarray]:
    def norm(values):
        return np.sqrt(sum((v * v).sum() for v in values))

    if limit := settings.get("clipnorm"):
        return {k: g * min(1.0, limit / norm([g])) for k, g in gs.items()}
    if limit := settings.get("global_clipnorm"):
        return {k: g * min(1.0, limit / norm(gs.values())) for k, g in gs.items()}
    if limit := settings.get("clipvalue"):
        return {k: np.clip(g, -limit, limit) for k, g in gs.items()}
    return gs


def train(name: str, settings: dict[str, Any], rate: Any, weights: dict[str, np.ndarray],
          gradients: list[dict[str, np.ndarray]]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the weights and their averages after one step per element of `gradients`; `rate` is a function of the step."""
    recurrence = RECURRENCES[name]
    hyper = {k: v for k, v in settings.items() if k in inspect.signature(recurrence).parameters}
    rules = {k: recurrence(**hyper) for k in weights}
    decay = 0.0 if "weight_decay" in hyper else settings.get("weight_decay", DECAYS.get(name)) or 0.0
    p, averages, momentum = dict(weights), {}, settings.get("ema_momentum", 0.99)
    group, sums, updates = settings.get("gradient_accumulation_steps", 1), dict.fromkeys(weights, 0.0), 0
    for step, gs in enumerate(gradients):
        lr, first, due = rate(step), updates == 0, (step + 1) % group == 0
        sums = {k: sums[k] + g for k, g in gs.items()}
        if due:
            for k, g in clipped({k: g / group for k, g in sums.items()}, settings).items():
                if p[k].ndim > 1:
                    p[k] = p[k] - p[k] * decay * lr
                given = (p[k],) if getattr(recurrence, "needs_weights", False) else ()
                p[k] = p[k] + rules[k].change(g, lr, updates + 1, *given)
            sums = dict.fromkeys(weights, 0.0)
        averages = {k: p[k] if first else momentum * averages[k] + (1 - momentum) * p[k] for k in p}
        frequency = settings.get("ema_overwrite_frequency")
        if frequency and (updates + 1) % frequency == 0:
            p = dict(averages)
        updates += due
    return p, averages
