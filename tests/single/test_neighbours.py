"""Nearest rows: by FAISS and by NumPy the same as by all cosines at once, ties in the order of positions."""

from __future__ import annotations

import numpy as np
import pytest

from instcls_tf.errors import UserError
from instcls_tf.search import neighbours
from instcls_tf.search.neighbours import nearest_rows, unit_rows


@pytest.fixture
def rows() -> np.ndarray:
    """60 directions of which several are exactly alike."""
    vectors = np.random.default_rng(3).normal(size=[60, 7])
    vectors[[11, 30, 59]] = vectors[4]
    return unit_rows(vectors)


def brute_force(rows: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    cosines = queries.astype(np.float64) @ rows.T.astype(np.float64)
    places = np.argsort(-cosines.round(7), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosines, places, 1), places


@pytest.fixture(params=["faiss", "numpy", "small blocks"])
def way(request, monkeypatch):
    if request.param != "faiss":
        monkeypatch.setattr(neighbours, "_faiss", lambda: None)
    if request.param == "small blocks":
        monkeypatch.setattr(neighbours, "_BLOCK_ELEMENTS", 49)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 60])
def test_equals_brute_force(way, rows, k):
    queries = np.concatenate([rows, unit_rows(np.random.default_rng(5).normal(size=[20, 7]))])
    cosines, places = nearest_rows(rows, queries, k)
    expected, expected_places = brute_force(rows, queries, k)
    np.testing.assert_array_equal(places, expected_places)
    np.testing.assert_allclose(cosines, expected, atol=1e-6)
    assert places[4].tolist() == [4, 11, 30, 59, *places[4][4:]][:k]


def test_no_queries(way, rows):
    cosines, places = nearest_rows(rows, rows[:0], 3)
    assert cosines.shape == places.shape == (0, 3)


def test_an_inverted_file_takes_over_where_both_are_many(monkeypatch, rows):
    many = unit_rows(np.random.default_rng(1).normal(size=[3000, 8]))
    monkeypatch.setattr(neighbours, "APPROXIMATE_ROWS", 3000)
    monkeypatch.setattr(neighbours, "APPROXIMATE_QUERIES", 200)
    built = []
    make = neighbours._inverted_file
    monkeypatch.setattr(neighbours, "_inverted_file", lambda *args: built.append(1) or make(*args))
    _, places = nearest_rows(many, many[:200], 5)
    expected = brute_force(many, many[:200], 5)[1]
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(places, expected)]) > 0.9
    np.testing.assert_array_equal(places[:, 0], np.arange(200))
    assert built == [1]
    nearest_rows(many, many[:199], 5)
    nearest_rows(many, many[:200], 5, exact=True)
    assert built == [1]


def test_rows_of_length_one():
    np.testing.assert_allclose(unit_rows(np.array([[3, 4], [0, 0]])), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    with pytest.raises(UserError, match=r"^the features are not finite: did the training of their network diverge\?$"):
        unit_rows(np.array([[1, np.nan]]))
