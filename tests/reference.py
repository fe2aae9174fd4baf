"""The method written down densely in NumPy float64: every logit, every gradient, no tiles, no workers."""

from __future__ import annotations

import numpy as np


def normalize(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def through_norm(gradient: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The gradient for `rows`, given the one for `normalize(rows)`."""
    unit = normalize(rows)
    return (gradient - np.sum(gradient * unit, axis=1, keepdims=True) * unit) / np.linalg.norm(
        rows, axis=1, keepdims=True
    )


def hard_negatives(weights: np.ndarray, k: int) -> np.ndarray:
    """`[N, K]`: for each class the K others with the highest cosine, the most similar first."""
    cosines = normalize(weights) @ normalize(weights).T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :k]


def labels(ids: np.ndarray, hard: np.ndarray | None, smoothing: float, num_classes: int) -> np.ndarray:
    """Eq. 2, dense: `[B, N]`."""
    y = np.zeros([len(ids), num_classes])
    if hard is not None:
        np.put_along_axis(y, hard, smoothing / hard.shape[1], axis=1)
    y[np.arange(len(ids)), ids] = 1.0 - smoothing if hard is not None else 1.0
    return y


def softmax_loss(embeddings, weights, y, temperature, smoothing_loss):
    """Eq. 1 / Eq. 3 and its gradients, from all B x N logits.

    Returns:
      `(loss, gradient for embeddings, gradient for weights, instance top-1)`.
    """
    x, w = normalize(embeddings), normalize(weights)
    logits = x @ w.T / temperature
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    if smoothing_loss == "marginal":
        losses = -np.log(np.sum(y * p, axis=1))
        q = y * p / np.sum(y * p, axis=1, keepdims=True)
    else:
        losses = -np.sum(y * np.log(p), axis=1)
        q = y
    residual = (p - q) / (temperature * len(x))
    own = np.argmax(y, axis=1)
    top1 = np.mean(np.argmax(logits, axis=1) == own)
    return np.mean(losses), through_norm(residual @ w, embeddings), through_norm(residual.T @ x, weights), top1


class DenseClassifier:
    """All N class weights in one place, trained by SGD with momentum and weight decay."""

    def __init__(self, weights, *, temperature, smoothing, smoothing_loss, momentum=0.9, weight_decay=1e-4):
        self.weights = np.asarray(weights, np.float64)
        self.buffer = np.zeros_like(self.weights)
        self.temperature, self.smoothing, self.smoothing_loss = temperature, smoothing, smoothing_loss
        self.momentum, self.weight_decay = momentum, weight_decay

    def step(self, embeddings, ids, hard, learning_rate, sample=None):
        """One step; `sample` restricts the softmax and the update to some classes.

        Returns:
          `(loss, gradient for embeddings, instance top-1)`, from the weights before the step.
        """
        embeddings = np.asarray(embeddings, np.float64)
        y = labels(ids, hard if self.smoothing else None, self.smoothing, len(self.weights))
        chosen = np.arange(len(self.weights)) if sample is None else sample
        loss, dx, dw, top1 = softmax_loss(
            embeddings, self.weights[chosen], y[:, chosen], self.temperature, self.smoothing_loss
        )
        self.weights[chosen], self.buffer[chosen] = sgd(
            self.weights[chosen], dw, self.buffer[chosen], learning_rate, self.momentum, self.weight_decay
        )
        return loss, dx, top1


def sgd(variable, gradient, buffer, learning_rate, momentum=0.9, weight_decay=1e-4):
    """torch.optim.SGD's step: `(new variable, new buffer)`."""
    buffer = momentum * buffer + gradient + weight_decay * variable
    return variable - learning_rate * buffer, buffer


def relative_error(actual, expected) -> float:
    """The norm of the difference over the norm of what is expected."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"shapes {actual.shape} and {expected.shape}"
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
