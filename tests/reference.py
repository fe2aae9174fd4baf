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


def labels(ids: np.ndarray, hard_negatives: np.ndarray | None, smoothing: float, num_classes: int) -> np.ndarray:
    """Eq. 2, dense: `[B, N]`."""
    y = np.zeros([len(ids), num_classes])
    if hard_negatives is not None:
        np.put_along_axis(y, hard_negatives, smoothing / hard_negatives.shape[1], axis=1)
    y[np.arange(len(ids)), ids] = 1.0 - smoothing if hard_negatives is not None else 1.0
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


def sampled_softmax_loss(embeddings, weights, ids, sample, temperature):
    """Eq. 1 with a softmax over each row's own class and the sample (Table 3), row by row.

    Returns:
      `(loss, gradient for embeddings, gradient for weights, instance top-1)`.
    """
    x, w = normalize(embeddings), normalize(weights)
    dx, dw, losses, hits = np.zeros_like(x), np.zeros_like(w), [], []
    for i, own in enumerate(ids):
        classes = np.union1d(sample, [own])
        logits = w[classes] @ x[i] / temperature
        p = np.exp(logits - logits.max())
        p /= p.sum()
        is_own = classes == own
        losses.append(-np.log(p[is_own][0]))
        hits.append(logits[is_own][0] > np.max(logits[~is_own], initial=-np.inf))
        residual = (p - is_own) / (temperature * len(ids))
        dx[i] = residual @ w[classes]
        dw[classes] += np.outer(residual, x[i])
    return np.mean(losses), through_norm(dx, embeddings), through_norm(dw, weights), np.mean(hits)


class DenseClassifier:
    """All N class weights in one place, trained by SGD with momentum and weight decay."""

    def __init__(self, weights, *, temperature, smoothing, smoothing_loss, momentum=0.9, weight_decay=1e-4):
        self.weights = np.asarray(weights, np.float64)
        self.buffer = np.zeros_like(self.weights)
        self.temperature, self.smoothing, self.smoothing_loss = temperature, smoothing, smoothing_loss
        self.momentum, self.weight_decay = momentum, weight_decay

    def step(self, embeddings, ids, hard_negatives, learning_rate):
        """One step.

        Returns:
          `(loss, gradient for embeddings, instance top-1)`, from the weights before the step.
        """
        embeddings = np.asarray(embeddings, np.float64)
        y = labels(ids, hard_negatives if self.smoothing else None, self.smoothing, len(self.weights))
        loss, dx, dw, top1 = softmax_loss(embeddings, self.weights, y, self.temperature, self.smoothing_loss)
        self._move(np.arange(len(self.weights)), dw, learning_rate)
        return loss, dx, top1

    def sampled_step(self, embeddings, ids, sample, learning_rate):
        """As `step`, over each row's own class and the sample; only these classes move."""
        embeddings = np.asarray(embeddings, np.float64)
        loss, dx, dw, top1 = sampled_softmax_loss(embeddings, self.weights, ids, sample, self.temperature)
        self._move(np.union1d(sample, ids), dw, learning_rate)
        return loss, dx, top1

    def _move(self, classes, gradients, learning_rate):
        self.weights[classes], self.buffer[classes] = sgd(
            self.weights[classes],
            gradients[classes],
            self.buffer[classes],
            learning_rate,
            self.momentum,
            self.weight_decay,
        )


def sgd(variable, gradient, buffer, learning_rate, momentum=0.9, weight_decay=1e-4):
    """torch.optim.SGD's step: `(new variable, new buffer)`."""
    buffer = momentum * buffer + gradient + weight_decay * variable
    return variable - learning_rate * buffer, buffer


def relative_error(actual, expected) -> float:
    """The norm of the difference over the norm of what is expected."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"shapes {actual.shape} and {expected.shape}"
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
