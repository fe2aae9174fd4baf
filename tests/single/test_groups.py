"""Groups that pairs connect, and which images may go: only what has a copy that stays."""

from __future__ import annotations

import numpy as np
import pytest

from instcls_tf.report import duplicates as report
from instcls_tf.search import duplicates
from instcls_tf.search.duplicates import find
from instcls_tf.search.groups import connected, dropped
from instcls_tf.search.images import Images
from instcls_tf.search.settings import Settings
from instcls_tf.search.signatures import HASH_BITS, Signatures
from instcls_tf.search.verify import Verdict
from tests.single.test_duplicates import OLD_ENOUGH, QUIET

FREE, FILES = np.zeros(4, bool), np.arange(4)
ALL_PAIRS = np.array([[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]])


def test_connected_groups():
    assert connected(np.array([[5, 2], [2, 7], [1, 0]]), 9) == [[0, 1], [2, 5, 7]]
    assert connected(np.empty([0, 2]), 4) == []


def test_one_of_a_group_stays():
    pixels = np.array([100, 400, 400, 50])
    assert dropped(ALL_PAIRS, pixels, FREE, FILES) == [0, 2, 3]
    assert dropped(np.array([[0, 3]]), pixels, FREE, FILES) == [3]
    assert dropped(ALL_PAIRS, pixels, np.array([False, False, False, True]), FILES) == [0, 1, 2]
    assert dropped(np.empty([0, 2]), pixels, FREE, FILES) == []


@pytest.mark.parametrize(
    ("pixels", "protected", "expected"),
    [
        ([9, 9, 9, 9], [], [1, 3]),
        ([9, 9, 16, 9], [], [1, 3]),
        ([9, 25, 16, 9], [], [0, 2]),
        ([9, 9, 9, 9], [0, 1], [2]),
        ([9, 9, 9, 9], [3], [1, 2]),
    ],
)
def test_of_a_chain_only_what_has_a_copy_that_stays_goes(pixels, protected, expected):
    """Its ends are no copies of each other."""
    chain = np.array([[0, 1], [1, 2], [2, 3]])
    drop = dropped(chain, np.array(pixels), np.isin(FILES, protected), FILES)
    assert drop == expected
    for place in drop:
        assert any(place in pair and (set(pair) - {place}).isdisjoint(drop) for pair in chain.tolist())


@pytest.fixture
def pan(monkeypatch) -> duplicates.Duplicates:
    """What is found of ten frames, each a near-duplicate of the next, and of no other."""
    images = frames(10)
    monkeypatch.setattr(duplicates, "_squares", lambda images, places: {int(place): int(place) for place in places})
    monkeypatch.setattr(
        duplicates, "compare", lambda first, second, _: Verdict(0.99 if abs(first - second) == 1 else 0.0, False)
    )
    return find(images, Settings(neighbors=4, listed=3), OLD_ENOUGH, QUIET)


def frames(count: int) -> Images:
    """Images of one size, whose features turn slowly."""
    angles, ids = np.arange(count) / count, np.arange(count, dtype=np.int32)
    hashes = np.where(np.arange(HASH_BITS) < 5 * ids[:, None], 1, -1).astype(np.int8)
    sizes = np.full([count, 2], 30, np.int32)
    signatures = Signatures(ids, hashes, -hashes, np.zeros([count, 16, 16], np.uint8), sizes)
    source = duplicates.open_source("digits")
    labels, vectors = np.full(count, -1), np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    return Images((source,), ("train",), np.zeros(count, np.int32), ids, [*map(str, ids)], labels, vectors, signatures)


def test_a_slow_pan_keeps_its_views(pan, tmp_path):
    assert [len(group) for group in pan.groups] == [10]
    assert pan.drop == [1, 3, 5, 7, 9]
    report.write_duplicates(str(tmp_path / "page.html"), pan)
    assert (tmp_path / "page.html").read_text().count("A chain: not all of these are the same picture") == 1
