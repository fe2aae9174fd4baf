"""Nearest-neighbour accuracy against scikit-learn's, and its corners by hand."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf
from sklearn.neighbors import KNeighborsClassifier

from instcls_tf.errors import UserError
from instcls_tf.evaluation import knn
from instcls_tf.evaluation.knn import few_labels_accuracy, knn_accuracy, nearest
from tests import reference

CLASSES, TRAIN, TEST = 7, 90, 40


def features() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Classes that overlap; the rows' lengths say nothing."""
    random = np.random.default_rng(1)
    centres = random.normal(size=[CLASSES, 8])
    parts = []
    for count in (TRAIN, TEST):
        labels = random.integers(CLASSES, size=count).astype(np.int32)
        rows = (centres[labels] + 1.3 * random.normal(size=[count, 8])) * random.uniform(0.1, 9, [count, 1])
        parts += [rows.astype(np.float32), labels]
    return tuple(parts)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("k", [1, 5, 20, TRAIN, TRAIN + 1])
def test_equals_scikit_learn(k, temperature):
    train, train_labels, test, test_labels = features()
    judge = KNeighborsClassifier(
        min(k, TRAIN), metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(train.astype(np.float64), train_labels)
    votes = np.zeros([TEST, CLASSES])
    votes[:, judge.classes_] = judge.predict_proba(test.astype(np.float64))
    own = votes[np.arange(TEST), test_labels]
    top5 = np.mean((own > 0) & (np.sum(votes > own[:, np.newaxis], axis=1) < 5))
    assert knn_accuracy(train, train_labels, test, test_labels, k=k, temperature=temperature) == {
        "top1": judge.score(test.astype(np.float64), test_labels),
        "top5": pytest.approx(top5),
        "examples": TEST,
    }
    assert 0.3 < judge.score(test, test_labels) < 0.9


def test_defaults_are_20_neighbours_at_temperature_007():
    assert knn_accuracy(*features()) == knn_accuracy(*features(), k=20, temperature=0.07)


def test_a_class_without_a_vote_is_no_answer():
    train, labels = np.eye(3, dtype=np.float32), np.array([0, 1, 2])
    # The nearest neighbour says 0; class 1 has no vote although fewer than five classes exist.
    result = knn_accuracy(train, labels, train[:1] + 0.1, np.array([1]), k=1)
    assert result == {"top1": 0.0, "top5": 0.0, "examples": 1}
    # A class that only the test split has is never right, and no error.
    assert knn_accuracy(train, labels, train[:1], np.array([6]), k=3)["top5"] == 0.0


def test_lists_and_tensors_are_taken():
    arrays = features()
    expected = knn_accuracy(*arrays)
    assert knn_accuracy(*(array.tolist() for array in arrays)) == expected
    assert knn_accuracy(*map(tf.constant, arrays)) == expected


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"train_labels": np.zeros(TRAIN - 1, int)},
            "train_features and train_labels: must be [n, F] and [n] with ",
        ),
        ({"test_labels": [0]}, "at least 1, not [40, 8] and [1]"),
        ({"train_features": [1.0, 2.0]}, "at least 1, not [2] and [90]"),
        ({"test_features": np.zeros([0, 8]), "test_labels": []}, "at least 1, not [0, 8] and [0]"),
        ({"test_features": np.zeros([TEST, 9])}, "train_features and test_features: must have one width, not 8 and 9"),
        ({"train_labels": np.zeros(TRAIN)}, "train_labels: of type float64, must be integers"),
        ({"test_labels": np.arange(TEST) - 1}, "test_labels=-1: must be 0 or more"),
        ({"k": 0}, "k=0: must be at least 1"),
        ({"temperature": 0.0}, "temperature=0.0: must be above 0"),
    ],
)
def test_what_does_not_fit_is_one_sentence(changes, sentence):
    given = dict(zip(("train_features", "train_labels", "test_features", "test_labels"), features()))
    with pytest.raises(ValueError, match=re.escape(sentence)):
        knn_accuracy(**{**given, **changes})


def test_nearer_neighbours_weigh_more():
    train = np.array([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]], np.float32)
    labels, query = np.array([0, 1, 1]), np.array([[1.0, 0.0]], np.float32)
    # exp(1 / t) against 2 exp(0.6 / t): equal at t = 0.4 / ln 2 = 0.577
    assert knn_accuracy(train, labels, query, np.array([0]), k=3, temperature=0.5)["top1"] == 1.0
    assert knn_accuracy(train, labels, query, np.array([1]), k=3, temperature=0.65)["top1"] == 1.0


@pytest.mark.parametrize("voters", [1, 7, TEST])
def test_hits_in_parts_of_any_size(monkeypatch, voters):
    expected = knn.knn_hits(*features())
    monkeypatch.setattr(knn, "_VOTERS", voters)
    np.testing.assert_array_equal(knn.knn_hits(*features()), expected)
    nearest_of_all = knn_accuracy(*features(), k=1)["top1"]
    assert expected[:, 2].mean() == nearest_of_all
    shared = knn.shared_knn_accuracy(*features())
    assert shared == {**knn_accuracy(*features()), "nearest_top1": pytest.approx(nearest_of_all)}


def test_equal_rows_keep_the_order_of_the_index(monkeypatch):
    index = np.tile(np.eye(2, dtype=np.float32), [5, 1])
    for tile_elements in (1, 4, 2**24):
        monkeypatch.setattr(knn, "_TILE_ELEMENTS", tile_elements)
        np.testing.assert_array_equal(nearest(index, index[:2], 3)[1], [[0, 2, 4], [1, 3, 5]])


@pytest.mark.parametrize("tile_elements", [1, TRAIN * 7, TRAIN * TEST, 2**24])
def test_nearest_in_tiles_of_any_size(monkeypatch, tile_elements):
    monkeypatch.setattr(knn, "_TILE_ELEMENTS", tile_elements)
    train, _, test, _ = features()
    similarities, places = nearest(train, test, 6)
    cosines = reference.normalize(test.astype(np.float64)) @ reference.normalize(train.astype(np.float64)).T
    expected = np.argsort(-cosines, axis=1)[:, :6]
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_allclose(similarities, np.take_along_axis(cosines, expected, axis=1), atol=1e-6)


def test_few_labels_draws_as_many_of_each_class(monkeypatch):
    train, train_labels, test, test_labels = features()
    draws = []

    def remember(rows, labels, *_, k):
        places = [int(np.flatnonzero((train == row).all(axis=1))[0]) for row in rows]
        np.testing.assert_array_equal(train_labels[places], labels)
        draws.append((k, sorted(places), np.bincount(labels, minlength=CLASSES).tolist()))
        return {"top1": len(draws) / 10}

    monkeypatch.setattr(knn, "knn_accuracy", remember)
    result = few_labels_accuracy(train, train_labels, test, test_labels, labels_per_class=3, draws=4, seed=1)
    assert all(k == 1 and counts == [3] * CLASSES for k, _, counts in draws)
    assert all(len(set(places)) == 3 * CLASSES for _, places, _ in draws)
    assert len({tuple(places) for _, places, _ in draws}) == 4
    assert result == {"mean": pytest.approx(0.25), "std": pytest.approx(np.std([0.1, 0.2, 0.3, 0.4]))}
    # The same draws again, for another network's features; others for another seed.
    few_labels_accuracy(train, train_labels, test, test_labels, labels_per_class=3, draws=4, seed=1)
    assert draws[4:8] == draws[:4]
    few_labels_accuracy(train, train_labels, test, test_labels, labels_per_class=3, draws=4, seed=2)
    assert draws[8:] != draws[:4]


def test_a_small_class_takes_part_with_all_it_has():
    labels = np.array([0] * 6 + [1])
    result = few_labels_accuracy(np.eye(2)[labels], labels, np.eye(2), np.arange(2), labels_per_class=5)
    assert result == {"mean": 1.0, "std": 0.0}


def test_few_labels_of_well_separated_classes():
    labels = np.repeat(np.arange(3), 6)
    result = few_labels_accuracy(np.eye(3)[labels], labels, np.eye(3), np.arange(3), labels_per_class=2)
    assert result == {"mean": 1.0, "std": 0.0}


def test_what_cannot_be_judged_is_one_sentence():
    vectors, labels = np.eye(4, dtype=np.float32), np.arange(4)
    for wrong, sentence in [
        ((np.full_like(vectors, np.nan), labels, vectors, labels), "the features are not finite"),
        ((vectors, labels, vectors, labels - 1), "the test split has images without labels"),
        ((vectors, labels, vectors[:0], labels[:0]), "the test split has no image that can be read"),
    ]:
        with pytest.raises(UserError, match=sentence):
            knn.shared_knn_accuracy(*wrong)
