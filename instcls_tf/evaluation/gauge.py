"""Gauges without labels: do an image's views have the same neighbours, and how many directions do features use?

Both look at two augmented views of a few hundred images, which stay the same during a run. Neither is an accuracy: they
compare networks on the same images and views, such as a run with its start. No TensorFlow.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from instcls_tf.errors import UserError

# Neighbours of which the two views are to share as many as they can, and the most that they are of the other images:
# two views have all others in common, whatever the network.
NEIGHBOURS, _MOST_OF_OTHERS = 10, 1 / 4
# RankMe's guard against log 0.
_EPSILON = 1e-7


class Reading(NamedTuple):
    """What the gauges show."""

    shares: np.ndarray  # [M] of `shared_neighbours`
    rank_me: float  # 1 to the number of features or of views, the smaller

    @property
    def gauge_agreement(self) -> float:
        """0 to 1."""
        return float(self.shares.mean())

    def figures(self) -> dict[str, float]:
        """Both under their names in `metrics.jsonl`."""
        return {"gauge_agreement": self.gauge_agreement, "rank_me": self.rank_me}


def read_gauges(first: np.ndarray, second: np.ndarray) -> Reading:
    """Both gauges of features of two views.

    Args:
      first: `[M, F]`.
      second: `[M, F]`, of the same images in the same order.

    Raises:
      UserError: a feature is not finite, or there are fewer than two images.
    """
    if len(first) < 2:
        raise UserError("the gauge needs at least two images that can be read")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise UserError("the features are not finite: did the training of their network diverge?")
    return Reading(shared_neighbours(first, second), rank_me(np.concatenate([first, second])))


def neighbours_among(count: int) -> int:
    """How many neighbours are looked at among so many images: at most a quarter of the others, but one."""
    return max(1, min(NEIGHBOURS, int((count - 1) * _MOST_OF_OTHERS)))


def shared_neighbours(first: np.ndarray, second: np.ndarray, k: int | None = None) -> np.ndarray:
    """Of each image, the share of its k nearest others that both of its views have in common, by cosine.

    Neighbours of a view are views of its own kind. Without any likeness it is k / (M - 1) in the mean. Equal cosines
    are in the order of images for one view and in the opposite order for the other, so that features which are all the
    same have little in common.

    Args:
      first, second: see `read_gauges`.
      k: cut to the number of other images; None for `neighbours_among`.

    Returns:
      `[M]` in 0..1.
    """
    k = neighbours_among(len(first)) if k is None else min(k, len(first) - 1)
    one, other = _neighbours(first, k), len(second) - 1 - _neighbours(second[::-1], k)[::-1]
    return (one[:, :, np.newaxis] == other[:, np.newaxis, :]).any(axis=2).mean(axis=1)


def _neighbours(features: np.ndarray, k: int) -> np.ndarray:
    """Places `[M, k]` of the k nearest others."""
    features = np.asarray(features, np.float64)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(norms, np.finfo(np.float64).tiny)
    cosines = np.round(unit @ unit.T, 7)  # what float32 features cannot tell apart
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :k]


def rank_me(features: np.ndarray) -> float:
    """The effective rank of features: exp of the entropy of their singular values' shares.

    Garrido et al., "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations by Their
    Rank" (arXiv:2210.02885), Eq. 1, with its epsilon. It cannot exceed the number of rows: figures of different numbers
    of rows do not compare.

    Args:
      features: `[R, F]`.
    """
    values = np.linalg.svd(np.asarray(features, np.float64), compute_uv=False)
    shares = values / max(values.sum(), np.finfo(np.float64).tiny) + _EPSILON
    return float(np.exp(-np.sum(shares * np.log(shares))))
