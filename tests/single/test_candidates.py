"""Which pairs of images are looked at: neighbours, each pair once, without an array of all of them."""

from __future__ import annotations

import tracemalloc

import numpy as np

from instcls_tf.search import candidates
from instcls_tf.search.candidates import neighbours_by_features, pairs_of_neighbours
from instcls_tf.search.neighbours import unit_rows


def test_neighbours_leave_out_the_image_itself():
    rows = unit_rows(np.array([[1, 0], [1, 0], [1, 0], [0, 1], [1, 0.1]]))
    found = neighbours_by_features(rows, 2)
    assert found.places.tolist() == [[1, 2], [0, 2], [0, 1], [4, 0], [0, 1]]
    assert neighbours_by_features(rows, 4).places[3].tolist() == [4, 0, 1, 2]


def test_each_pair_once():
    (pairs,) = pairs_of_neighbours(np.array([[1, 0], [0, 2], [2, 2]]))
    assert pairs.tolist() == [[0, 1], [1, 2]]


def test_each_pair_is_in_one_block(monkeypatch):
    """Also where its images name each other from different blocks, and one names the other twice."""
    monkeypatch.setattr(candidates, "_BLOCK_PAIRS", 20)
    places = np.random.default_rng(0).integers(0, 50, [50, 8])
    blocks = [*pairs_of_neighbours(places)]
    assert len(blocks) == 25
    pairs = [tuple(pair) for block in blocks for pair in block.tolist()]
    assert len(pairs) == len({*pairs})
    assert {*pairs} == {
        (min(own, other), max(own, other))
        for own, named in enumerate(places.tolist())
        for other in named
        if other != own
    }


def test_pairs_take_no_more_memory_than_their_block(monkeypatch):
    monkeypatch.setattr(candidates, "_BLOCK_PAIRS", 2000)
    places = np.random.default_rng(0).integers(0, 20_000, [20_000, 20])
    tracemalloc.start()
    count = sum(len(pairs) for pairs in pairs_of_neighbours(places))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count > 0.99 * places.size and peak < places.nbytes / 2
