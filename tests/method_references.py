"""The rivals' losses written down from their papers in NumPy float64, row by row; gradients by finite differences."""

from __future__ import annotations

from typing import Callable

import numpy as np

from tests.reference import normalize


def numerical_gradient(loss: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central differences: some eight digits, and no second derivation to get wrong."""
    at = np.array(at, np.float64)
    gradient = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        values = []
        for moved in (at[place] + step, at[place] - step):
            before, at[place] = at[place], moved
            values.append(loss(at))
            at[place] = before
        gradient[place] = (values[0] - values[1]) / (2 * step)
    return gradient


def nt_xent(embeddings: np.ndarray, ids: np.ndarray, temperature: float) -> float:
    """SimCLR's Eq. 1 for every ordered pair of rows of one instance, and the mean of all pairs."""
    x = normalize(np.asarray(embeddings, np.float64))
    exp = np.exp(x @ x.T / temperature)
    losses = []
    for i, j in zip(*np.nonzero(ids[:, None] == ids)):
        if i != j:
            losses.append(-np.log(exp[i, j] / (exp[i, j] + exp[i, ids != ids[i]].sum())))
    return float(np.mean(losses)) if losses else 0.0


def nearest_is_own(embeddings: np.ndarray, ids: np.ndarray) -> float:
    """The share of rows whose most similar other row is of their own instance."""
    x = normalize(np.asarray(embeddings, np.float64))
    cosines = x @ x.T
    np.fill_diagonal(cosines, -np.inf)
    return float(np.mean(ids[np.argmax(cosines, axis=1)] == ids))


def info_nce(queries: np.ndarray, keys: np.ndarray, queue: np.ndarray, temperature: float) -> float:
    """MoCo's Eq. 1: the own key against all of the queue."""
    losses = []
    for query, key in zip(normalize(np.asarray(queries, np.float64)), keys.astype(np.float64)):
        exp = np.exp(np.append(query @ key, queue.astype(np.float64) @ query) / temperature)
        losses.append(-np.log(exp[0] / exp.sum()))
    return float(np.mean(losses)) if losses else 0.0


def diet(features: np.ndarray, weights: np.ndarray, ids: np.ndarray, smoothing: float) -> float:
    """The cross-entropy of a linear classifier with uniformly smoothed labels over all classes."""
    labels = np.full([len(ids), len(weights)], smoothing / len(weights))
    labels[np.arange(len(ids)), ids] += 1 - smoothing
    exp = np.exp(np.asarray(features, np.float64) @ weights.T)
    losses = -np.sum(labels * np.log(exp / exp.sum(axis=1, keepdims=True)), axis=1)
    return float(np.mean(losses)) if len(ids) else 0.0


def pic(embeddings: np.ndarray, weights: np.ndarray, ids: np.ndarray, classes: list[int], temperature: float) -> float:
    """The cosine softmax over some of the classes."""
    exp = np.exp(normalize(np.asarray(embeddings, np.float64)) @ normalize(weights).T / temperature)
    losses = -np.log(exp[np.arange(len(ids)), ids] / exp[:, classes].sum(axis=1))
    return float(np.mean(losses)) if len(ids) else 0.0


class RecentClasses:
    """PIC's classes of a step: the batch's own, and those of the instances visited last before it."""

    def __init__(self, number: int):
        self.number, self.visits = number, []

    def of_step(self, ids: np.ndarray) -> list[int]:
        """The classes of a batch, which counts as visited from now on."""
        recent = list(dict.fromkeys(reversed(self.visits)))[: self.number]
        # Within a batch the first row counts as the newest.
        self.visits += reversed(list(dict.fromkeys(ids.tolist())))
        return sorted({*ids.tolist(), *recent})


class AdamW:
    """torch.optim.AdamW's step, from its documentation."""

    def __init__(self, weight_decay: float):
        self.weight_decay, self.moves, self.first, self.second = weight_decay, 0, 0.0, 0.0

    def step(self, weights: np.ndarray, gradient: np.ndarray, learning_rate: float) -> np.ndarray:
        """The new weights."""
        self.moves += 1
        weights = weights - learning_rate * self.weight_decay * weights
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        corrected = self.first / (1 - 0.9**self.moves), self.second / (1 - 0.999**self.moves)
        return weights - learning_rate * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
