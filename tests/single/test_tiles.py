"""The width of tiles follows shapes and cache."""

import pytest
import tensorflow as tf

from instcls_tf import classifier_sizes, collectives, cores, tiles


@pytest.fixture
def cache(monkeypatch):
    """Sets the size of the last-level cache, in bytes."""
    return lambda size: monkeypatch.setattr(tiles, "_last_level_cache_bytes", lambda: size)


def test_a_tile_and_its_rows_fit_in_half_of_the_cache(cache):
    cache(32 * 2**20)
    for batch, size in ((64, 128), (1024, 128), (1000, 2048)):
        classes = tiles.tile_classes(batch, size)
        used = 4 * classes * (batch + 4 * size)
        assert classes % 64 == 0
        assert 16 * 2**20 - 4 * 64 * (batch + 4 * size) < used <= 16 * 2**20
        assert int(tiles.tile_classes(tf.constant(batch), size)) == classes


def test_workers_of_one_machine_share_its_cache(cache, monkeypatch):
    cache(32 * 2**20)
    alone = tiles.tile_classes(1024, 128)
    monkeypatch.setattr(collectives, "_local_size", 2)
    assert tiles.tile_classes(1024, 128) == pytest.approx(alone / 2, abs=64)


def test_tiles_have_a_least_number_of_classes(cache):
    """However large the batch: products with a few classes would be slow."""
    cache(2**20)
    assert tiles.tile_classes(100_000, 128) == int(tiles.tile_classes(tf.constant(100_000), 128)) == 256


def test_a_tile_of_the_kernels_fits_in_a_quarter_of_a_cores_cache(monkeypatch):
    for cache_bytes in (2**19, 2**20, 2**21):
        monkeypatch.setattr(cores, "cache_bytes", {2: cache_bytes}.get)
        for size, padded in ((16, 32), (128, 128), (300, 320)):
            classes = classifier_sizes.kernel_tile_classes(size)
            of_class = 4 * (2 * padded + 64)
            assert classes % 6 == 0
            assert cache_bytes / 4 - 6 * of_class < classes * of_class <= cache_bytes / 4
        assert classifier_sizes.kernel_tile_classes(100_000) == 24


def test_an_unknown_cache_is_taken_for_a_common_one(monkeypatch):
    monkeypatch.setattr(cores, "cache_bytes", {2: 2**20}.get)
    known = classifier_sizes.kernel_tile_classes(128)
    monkeypatch.setattr(cores, "cache_bytes", lambda level: None)
    assert classifier_sizes.kernel_tile_classes(128) == known
    assert tiles._last_level_cache_bytes() == tiles._FALLBACK_CACHE_BYTES


def test_this_machine_has_a_cache():
    assert 2**15 <= tiles._last_level_cache_bytes() <= 2**31
