"""Accuracy from logits made by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.data.sources import open_source
from instcls_tf.errors import UserError
from instcls_tf.evaluation.accuracy import accuracy_of, count_hits, summarize


def test_counts_by_class():
    logits = np.array([[3.0, 1, 2, 0, -1, -2, -3], [0, 0, 9, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6, 7]])
    counts = count_hits(logits, np.array([0, 2, 1]), 7)
    np.testing.assert_array_equal(counts[:3], [[1, 1, 1], [1, 0, 0], [1, 1, 1]])
    assert counts[3:].sum() == 0
    assert summarize(counts) == {
        "top1": pytest.approx(2 / 3), "top5": pytest.approx(2 / 3), "mean_per_class": pytest.approx(2 / 3),
        "examples": 3,
    }  # fmt: skip


def test_mean_per_class_weighs_classes_alike():
    counts = np.array([[90, 90, 90], [10, 0, 10], [0, 0, 0]])
    assert summarize(counts) == {"top1": 0.9, "top5": 1.0, "mean_per_class": 0.5, "examples": 100}


def test_a_classifier_that_says_nothing_is_not_right():
    labels = np.arange(10)
    assert summarize(count_hits(np.zeros([10, 10]), labels, 10))["top1"] == 0.1
    with pytest.raises(UserError, match="diverged"):
        count_hits(np.full([10, 10], np.nan), labels, 10)


def test_a_test_split_without_labels_is_refused():
    digits = open_source("digits", "test")
    unlabelled = dataclasses.replace(digits, labels=np.full_like(digits.labels, -1))
    with pytest.raises(UserError, match="an image of the test split has no label"):
        accuracy_of(lambda images: tf.zeros([len(images), 10]), unlabelled, image_size=8, num_classes=10)
