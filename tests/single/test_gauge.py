"""The gauges without labels against plain loops, and on features of which the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.config import PretrainConfig
from instcls_tf.data.sources import open_source
from instcls_tf.encoder.networks import make_encoder
from instcls_tf.errors import UserError
from instcls_tf.evaluation.features import Embedder
from instcls_tf.evaluation.gauge import neighbours_among, rank_me, read_gauges, shared_neighbours
from instcls_tf.evaluation.online_gauge import if_worse, start_in
from instcls_tf.evaluation.two_views import TwoViews
from instcls_tf.initial.start import keep_starting_weights
from instcls_tf.pretraining.starting import make_gauge
from instcls_tf.progress import Progress
from tests.encoders import trained_encoder

RANDOM = np.random.default_rng(0)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def shared_by_loops(first: np.ndarray, second: np.ndarray, k: int) -> list[float]:
    """Image by image, neighbour by neighbour."""
    shares = []
    for i in range(len(first)):
        others = [j for j in range(len(first)) if j != i]
        near = [set(sorted(others, key=lambda j: -cosine(v[i], v[j]))[:k]) for v in (first, second)]
        shares.append(len(near[0] & near[1]) / k)
    return shares


def rank_by_eigenvalues(features: np.ndarray) -> float:
    """RankMe from the Gram matrix, in the words of the paper: exp(-sum p log p), p = sigma / |sigma|_1 + 1e-7."""
    eigenvalues = np.maximum(np.linalg.eigvalsh(features.T @ features), 0)
    p = np.sqrt(eigenvalues) / np.sqrt(eigenvalues).sum() + 1e-7
    return float(np.prod(p**-p))


@pytest.mark.parametrize("k", [1, 3, 10])
def test_shared_neighbours_as_loops_find_them(k):
    first = RANDOM.normal(size=[40, 6]).astype(np.float32)
    second = first + 0.5 * RANDOM.normal(size=[40, 6]).astype(np.float32)
    found = shared_neighbours(first, second, k)
    np.testing.assert_allclose(found, shared_by_loops(first.astype(float), second.astype(float), k))
    assert 0.1 < found.mean() < 0.95


def test_equal_views_share_all_and_strangers_what_chance_gives():
    first, second = RANDOM.normal(size=[2, 300, 16])
    assert shared_neighbours(first, 3 * first).tolist() == [1.0] * 300
    assert shared_neighbours(first, second).mean() == pytest.approx(10 / 299, abs=0.02)
    assert shared_neighbours(first[:4], first[:4]).tolist() == [1.0] * 4  # of three others


@pytest.mark.parametrize(("count", "k"), [(2, 1), (5, 1), (8, 1), (9, 2), (12, 2), (40, 9), (41, 10), (512, 10)])
def test_few_images_have_fewer_neighbours(count, k):
    """All others are shared by any two networks."""
    first, second = RANDOM.normal(size=[2, count, 16])
    assert neighbours_among(count) == k
    assert shared_neighbours(first, second).tolist() == shared_neighbours(first, second, k).tolist()


@pytest.mark.parametrize("count", [5, 8, 11, 12])
def test_strangers_among_a_handful_share_what_chance_gives(count):
    shares = [shared_neighbours(*RANDOM.normal(size=[2, count, 16])).mean() for _ in range(100)]
    assert np.mean(shares) == pytest.approx(neighbours_among(count) / (count - 1), abs=0.08)


def test_a_collapsed_network_shares_little():
    """All features the same but for what float32 rounds: there are no neighbours, and the order of images is none."""
    same, again = np.ones([2, 200, 8], np.float32) + 1e-7 * RANDOM.normal(size=[2, 200, 8]).astype(np.float32)
    assert shared_neighbours(same, again).mean() < 0.1
    assert shared_neighbours(same, same).mean() < 0.1
    assert rank_me(same) == pytest.approx(1, abs=1e-3)


def test_rank_me_as_the_paper_has_it():
    features = RANDOM.normal(size=[60, 12]) * np.geomspace(1, 0.01, 12)
    assert rank_me(features) == pytest.approx(rank_by_eigenvalues(features), rel=1e-6)
    assert rank_me(7 * features) == pytest.approx(rank_me(features), rel=1e-9)


def test_rank_me_counts_directions():
    for rank in (1, 3, 8):
        orthogonal = np.linalg.qr(RANDOM.normal(size=[64, 8]))[0] * (np.arange(8) < rank)
        assert rank_me(orthogonal) == pytest.approx(rank, rel=1e-4)


def test_both_are_read_together():
    first, second = RANDOM.normal(size=[2, 30, 5])
    reading = read_gauges(first, second)
    assert reading.gauge_agreement == shared_neighbours(first, second).mean()
    assert reading.rank_me == rank_me(np.concatenate([first, second]))


def test_what_is_no_reading():
    with pytest.raises(UserError, match="the features are not finite"):
        read_gauges(np.array([[1.0], [np.nan]]), np.ones([2, 1]))
    with pytest.raises(UserError, match="at least two images"):
        read_gauges(np.ones([1, 2]), np.ones([1, 2]))


# ------------------------------------------------------------------------------------------------------ during a run

CONFIG = PretrainConfig(dataset="digits", augmentation="digits", image_size=8, seed=4)


def test_two_views_are_of_the_same_images_and_always_the_same():
    """A model that gives pixels shows what was looked at."""
    source = open_source("digits")
    pixels = Embedder(lambda images: tf.reshape(tf.cast(images, tf.float32), [-1, 8 * 8 * 3]))
    ((first, second),) = TwoViews(CONFIG, source).features(pixels)
    ((again, _),) = TwoViews(CONFIG, source).features(pixels)
    np.testing.assert_array_equal(first, again)
    assert first.shape == second.shape == (128, 192)  # of 1,437 images a twentieth would be fewer
    assert np.abs(first - second).max() > 50
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    own = [np.corrcoef(a, b)[0, 1] for a, b in zip(first, second)]
    others = [np.corrcoef(a, b)[0, 1] for a, b in zip(first, np.roll(second, 1, axis=0))]
    assert np.mean(own) > 0.1
    assert abs(np.mean(others)) < 0.05


def test_a_network_that_gets_worse_is_told_of():
    """By 5 points at least, and by more than chance of as many images."""
    start = np.resize([0.2, 0.5], 128)
    now = start - np.resize([0.3, 0.0], 128)
    assert if_worse(now, None) == if_worse(start - 0.04, start) == if_worse(start, now) == ""
    assert if_worse(now[:20], start[:20]) != "" and if_worse(now[:16], start[:16]) == ""
    assert if_worse(now[:64], start[:64]) != "" == if_worse(now[:64], 0.35)  # a mean leaves more of it to chance
    for known in (start, 0.35):  # of each image, or their mean
        assert if_worse(now, known).startswith(
            "warning: two views of an image share 20% of their nearest neighbours, 35% before: the network"
        )


def test_the_start_is_found_in_the_log():
    lines = [{"step": 1, "loss_expected_start": 3.0}, {"step": 2, "gauge_agreement_start": 0.25, "rank_me_start": 7.5}]
    assert start_in(lines) == {"gauge_agreement_start": 0.25, "rank_me_start": 7.5}
    assert start_in(lines[:1]) == start_in([]) == {}


def test_a_run_that_was_cut_before_its_first_gauge_knows_its_start(tmp_path):
    """By the weights that it has kept; what the log has of it comes first."""
    config = CONFIG.replace(
        workdir=str(tmp_path), encoder="resnet18", width_multiplier=0.125, stem="small", embedding_size=16
    )
    source, quiet = open_source("digits"), Progress(visible=False)
    began, later = make_encoder(config.replace(seed=1)), trained_encoder()
    keep_starting_weights(str(tmp_path), began)
    wanted = make_gauge(config, began, source, quiet, begins=True).measure()
    found = make_gauge(config, later, source, quiet, begins=False).measure()
    assert start_in([found]) == pytest.approx(start_in([wanted]), rel=1e-5)
    assert found["gauge_agreement"] != found["gauge_agreement_start"]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "gauge_agreement_start": 0.25, "rank_me_start": 7.5}\n')
    logged = make_gauge(config, later, source, quiet, begins=False).measure()
    assert (logged["gauge_agreement_start"], logged["rank_me_start"]) == (0.25, 7.5)
