"""The width of tiles follows shapes and cache, and is known without TensorFlow."""

import re

import pytest
import tensorflow as tf

from instcls_tf.classifier import tiles
from instcls_tf.classifier.kernels import streamed_softmax
from instcls_tf.distributed import cores

CACHE_BYTES = 32 * 2**20


@pytest.fixture
def cache(monkeypatch):
    """Sets the size of the last-level cache, in bytes."""
    return lambda size: monkeypatch.setattr(cores, "cache_bytes", {3: size}.get)


def test_a_tile_and_its_class_arrays_fit_in_half_of_the_cache(cache):
    cache(CACHE_BYTES)
    half = tiles.cpu_tile_bytes(local_workers=1)
    assert half == CACHE_BYTES // 2
    for batch, size in ((64, 128), (1024, 128), (1000, 2048)):
        classes = tiles.portable_tile_classes(batch, size, half)
        used = 4 * classes * (batch + 4 * size)
        assert classes % 64 == 0
        assert half - 4 * 64 * (batch + 4 * size) < used <= half
        assert int(tiles.portable_tile_classes(tf.constant(batch), size, half)) == classes


def test_workers_of_one_machine_share_its_cache(cache):
    cache(CACHE_BYTES)
    assert tiles.cpu_tile_bytes(local_workers=2) == CACHE_BYTES // 4


def test_tiles_have_a_least_number_of_classes():
    """However large the batch: products with a few classes would be slow."""
    sizes = (128, 2**19)
    classes = tiles.portable_tile_classes(100_000, *sizes)
    assert classes == int(tiles.portable_tile_classes(tf.constant(100_000), *sizes)) == 256


def test_a_tile_of_the_kernels_fits_in_a_quarter_of_a_cores_cache(monkeypatch):
    for cache_bytes in (2**19, 2**20, 2**21):
        monkeypatch.setattr(cores, "cache_bytes", {2: cache_bytes}.get)
        for size, padded in ((16, 32), (128, 128), (300, 320)):
            classes = tiles.kernel_tile_classes(size)
            of_class = 4 * (2 * padded + 64)
            assert tiles.kernel_class_bytes(size) == of_class
            assert classes % 6 == 0
            assert cache_bytes / 4 - 6 * of_class < classes * of_class <= cache_bytes / 4
        assert tiles.kernel_tile_classes(100_000) == 24


def test_an_unknown_cache_is_taken_for_a_common_one(monkeypatch):
    monkeypatch.setattr(cores, "cache_bytes", {2: 2**20, 3: 2**24}.get)
    known = tiles.kernel_tile_classes(128), tiles.cpu_tile_bytes(1)
    monkeypatch.setattr(cores, "cache_bytes", lambda level: None)
    assert (tiles.kernel_tile_classes(128), tiles.cpu_tile_bytes(1)) == known


def test_this_machine_has_a_cache():
    assert 2**14 <= tiles.cpu_tile_bytes(1) <= 2**30


def test_numbers_that_the_sources_of_the_kernels_have_as_well():
    folder = streamed_softmax.LIBRARY.folder
    sources = "".join(path.read_text() for path in sorted(folder.glob("streamed_softmax*")))
    constants = {name: int(value) for name, value in re.findall(r"constexpr \w+ (k\w+) = (\d+);", sources)}
    assert constants["kPanel"] == tiles.KERNEL_PANEL
    assert constants["kBlockRows"] == tiles.KERNEL_BLOCK
    assert constants["kLeast"] == tiles.KERNEL_LEAST_CLASSES
    lanes = [int(value) for value in re.findall(r"kLanes = (\d+)", sources)]
    assert 2 * max(lanes) == tiles.KERNEL_COLUMNS
