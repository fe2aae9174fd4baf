"""The most similar rows of a matrix by cosine: exact, or by an inverted file where millions are sought among millions.

FAISS does it where it is installed, NumPy elsewhere, in blocks. Both give the same rows: those of equal cosine in the
order of their positions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from instcls_tf.errors import UserError

# Rows and queries from which an inverted file is made; it takes as long as some thousand exact queries.
APPROXIMATE_ROWS, APPROXIMATE_QUERIES = 1_000_000, 10_000
# Lists of it that are looked into, of about 4 sqrt(N), and rows that it learns them from.
_PROBED_LISTS = 64
_TRAINED_ON = 200_000
# Elements of one block of cosines, [queries, rows].
_BLOCK_ELEMENTS = 2**24
# Rows that are brought to length 1 at a time.
_UNIT_ROWS = 65536


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32 `[N, F]`; a row of zeros stays.

    Raises:
      UserError: a value is not finite.
    """
    found = np.empty(np.shape(vectors), np.float32)
    for start in range(0, len(vectors), _UNIT_ROWS):  # in blocks: of millions, no other copy than the result
        block = np.asarray(vectors[start : start + _UNIT_ROWS], np.float32)
        if not np.isfinite(block).all():
            raise UserError("the features are not finite: did the training of their network diverge?")
        lengths = np.linalg.norm(block, axis=1, keepdims=True)
        # What has this length already stays bit by bit as it is.
        found[start : start + _UNIT_ROWS] = block / np.where((lengths > 0) & (np.abs(lengths - 1) > 1e-6), lengths, 1)
    return found


def nearest_rows(rows: np.ndarray, queries: np.ndarray, k: int, exact: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The k rows most similar to each query.

    Args:
      rows: `[N, F]` float32 of length 1.
      queries: `[Q, F]` float32 of length 1.
      k: at most N.
      exact: also among more rows and for more queries than the limits above.

    Returns:
      Cosines `[Q, k]` float32, falling, and positions `[Q, k]` int64.
    """
    faiss = _faiss()
    if faiss is None or not len(queries):
        return _by_numpy(rows, queries, k)
    if not exact and len(rows) >= APPROXIMATE_ROWS and len(queries) >= APPROXIMATE_QUERIES:
        return _in_order(*_inverted_file(faiss, rows).search(np.ascontiguousarray(queries), k))
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(np.ascontiguousarray(rows))
    cosines, places = index.search(np.ascontiguousarray(queries), min(k + 1, len(rows)))
    found = _in_order(cosines[:, :k], places[:, :k])
    # Which of equal rows are the last ones depends on FAISS's heap, not on their positions.
    cut = np.flatnonzero(cosines[:, k] >= cosines[:, k - 1]) if k < len(rows) else np.array([], np.int64)
    if len(cut):
        found[0][cut], found[1][cut] = _by_numpy(rows, queries[cut], k)
    return found


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def _inverted_file(faiss: Any, rows: np.ndarray) -> Any:
    index = faiss.index_factory(rows.shape[1], f"IVF{4 * math.isqrt(len(rows))},Flat", faiss.METRIC_INNER_PRODUCT)
    index.nprobe = _PROBED_LISTS
    chosen = np.random.default_rng(0).choice(len(rows), min(_TRAINED_ON, len(rows)), replace=False)
    index.train(np.ascontiguousarray(rows[np.sort(chosen)]))
    index.add(np.ascontiguousarray(rows))
    return index


def _in_order(cosines: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((places, -cosines), axis=1)
    return np.take_along_axis(cosines, order, axis=1), np.take_along_axis(places, order, axis=1)


def _by_numpy(rows: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    tile = max(1, min(len(queries), math.isqrt(_BLOCK_ELEMENTS)))
    block = max(1, _BLOCK_ELEMENTS // tile)
    found = np.empty([len(queries), k], np.float32), np.empty([len(queries), k], np.int64)
    for start in range(0, len(queries), tile):
        part = queries[start : start + tile]
        best = np.empty([len(part), 0], np.float32), np.empty([len(part), 0], np.int64)
        for first in range(0, len(rows), block):
            cosines = part @ rows[first : first + block].T
            places = np.broadcast_to(np.arange(first, first + cosines.shape[1]), cosines.shape)
            cosines, places = np.concatenate([best[0], cosines], 1), np.concatenate([best[1], places], 1)
            order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
            best = np.take_along_axis(cosines, order, 1), np.take_along_axis(places, order, 1)
        found[0][start : start + tile], found[1][start : start + tile] = best
    return found
