"""One process that takes itself for one of several workers: its parts are that worker's, and the reference's."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.classifier.labels import ListsOfRows
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.distributed import collectives
from instcls_tf.distributed.partition import bounds
from tests import reference
from tests.parallel import cases
from tests.parallel.tasks import make_classifier
from tests.reference import relative_error

TOLERANCE = 1e-5
EMBEDDINGS, IDS = cases.batch(0)
LISTS = reference.hard_negatives(cases.weights(), cases.NUM_HARD_NEGATIVES)
# What travels, by the ends of its names: each needs that the one before is complete.
STAGES = (("embeddings", "ids", "rows"), ("sums", "negative"), ("gradient",))


class Exchange:
    """`collectives.Others` of one worker, from what each has sent in the round before."""

    def __init__(self, before: list[dict], known: tuple[str, ...]):
        self.before, self.known, self.sent = before, known, {}

    def gathered(self, own, name):
        return tf.concat(self._of_all(own, name), axis=0)

    def summed(self, own, name):
        return tf.add_n(self._of_all(own, name))

    def largest(self, own, name):
        return functools.reduce(tf.maximum, self._of_all(own, name))

    def _of_all(self, own, name):
        self.sent[name] = own
        if name.rpartition("_")[2] not in self.known:
            return [own]
        return [own if rank == collectives.rank() else sent[name] for rank, sent in enumerate(self.before)]


@pytest.fixture
def eagerly():
    """What a worker sends can be read then."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def own_rows(rank: int, size: int) -> slice:
    return slice(*bounds(len(IDS), size, rank))


def step_of(layer: ShardedClassifier, rows: slice, rate: float | None):
    """Output, gradient of the own embeddings, and what moves the class weights."""
    embeddings = tf.constant(EMBEDDINGS[rows])
    lists = ListsOfRows(tf.constant(LISTS[IDS[rows]])) if layer.smoothing else None
    with tf.GradientTape() as tape:
        tape.watch(embeddings)
        output, move = layer.prepare(embeddings, tf.constant(IDS[rows]), lists, rate)
    return output, tape.gradient(output.loss, embeddings), move


def shares_of(case: cases.Case, size: int) -> list[tuple]:
    """Layer, output and gradient of each worker, all of whom this process has been in turn."""
    before: list[dict] = []
    for stage in range(len(STAGES) + 1):
        known = sum(STAGES[:stage], ())
        is_last, sent, shares = stage == len(STAGES), [], []
        for rank in range(size):
            others = Exchange(before, known)
            with collectives.as_worker(rank, size, others):
                layer = make_classifier(case, "share")
                rate = cases.LEARNING_RATE if is_last else None
                output, gradient, move = step_of(layer, own_rows(rank, size), rate)
                move()
            sent.append(others.sent)
            shares.append((layer, output, gradient))
        before = sent
    return shares


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", ["eq1", "marginal", "cross_entropy", "portable_marginal"])
def test_a_share_is_that_of_the_worker(size, name, eagerly, job):
    assert cases.NUM_INSTANCES % size and len(IDS) % 3, "nothing divides"
    case, actual = cases.CASES[name], dict(np.load(job(size) / "classifier" / f"{name}.npz"))
    kept = {"temperature": case.temperature, "smoothing": case.smoothing, "smoothing_loss": case.smoothing_loss}
    dense = reference.DenseClassifier(cases.weights(), **kept)
    loss, gradients, top1 = dense.step(EMBEDDINGS, IDS, LISTS[IDS], cases.LEARNING_RATE)
    for rank, (layer, output, gradient) in enumerate(shares_of(case, size)):
        rows, (begin, end) = own_rows(rank, size), bounds(cases.NUM_INSTANCES, size, rank)
        assert (layer.begin, layer.end) == (begin, end)
        for wanted in (loss, actual["loss_0"]):
            assert output.loss.numpy() == pytest.approx(wanted, rel=TOLERANCE)
        assert output.instance_top1.numpy() == pytest.approx(top1)
        for wanted in (gradients[rows], actual["gradient_0"][rows]):
            assert relative_error(gradient, wanted) < TOLERANCE
        for variable, wanted, of_worker in (
            (layer.local_weights, dense.weights, actual["weights_0"]),
            (layer.local_momentum, dense.buffer, actual["momentum_0"]),
        ):
            assert relative_error(variable, wanted[begin:end]) < TOLERANCE
            assert relative_error(variable, of_worker[begin:end]) < TOLERANCE


def test_afterwards_it_is_the_only_one_again():
    with pytest.raises(ZeroDivisionError), collectives.as_worker(1, 3, Exchange([], ())):
        assert (collectives.rank(), collectives.size()) == (1, 3)
        raise ZeroDivisionError
    assert (collectives.rank(), collectives.size()) == (0, 1)
    own = tf.constant([1.0])
    assert collectives.sum_over_workers(own, "alone") is own
