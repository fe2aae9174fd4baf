"""How fast images come in: decoding alone, the whole pipeline, with a cache as well, and SimCLR's own code."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Callable

import tensorflow as tf

from instcls_tf.checks import require_value
from instcls_tf.config import PretrainConfig
from instcls_tf.data import pipeline
from instcls_tf.data.cache import with_cache
from instcls_tf.data.source import Source
from instcls_tf.data.sources import open_training_source
from instcls_tf.data.threads import parallel_calls, without_autotuner
from instcls_tf.distributed import partition
from instcls_tf.errors import UserError, shown

_VIEWS = 2
_DECODED_AT_ONCE = 16
_ENDLESS = 10_000  # Epochs.
# What is called of SimCLR's module.
_SIMCLR_FUNCTIONS = ("preprocess_for_train", "batch_random_blur")


def measure_input(
    config: PretrainConfig, *, seconds: float, batch_size: int, simclr: str | None = None
) -> dict[str, float]:
    """Measures on this machine's cores, with nothing else at work.

    Args:
      config: gives dataset and views.
      seconds: about how long each measurement takes after its warm-up.
      batch_size: images per batch.
      simclr: `tf2/data_util.py` of a checkout of google-research/simclr, to be measured on the same decoded images.

    Returns:
      `images_per_second` and `images_per_cpu_second` of the whole pipeline (source images, two views each), and
      `views_per_second`; `decode_*` and, if asked for, `simclr_*` likewise; `ratio_to_decode` and `ratio_to_simclr` of
      images per second, `cpu_ratio_to_simclr` of images per CPU-second. If the recipe has a cache, `cached_*` of the
      whole pipeline that reads from it, `cpu_ratio_of_cache`, and `cache_bytes`.

    Raises:
      UserError: the dataset is not right, a setting is out of range, or `simclr` is not that file.
    """
    require_value("seconds", seconds, seconds > 0, "above 0")
    require_value("images_per_batch", batch_size, batch_size >= 1, "at least 1")
    peer = None if simclr is None else load_simclr(simclr)
    source = open_training_source(config)
    batch_size = min(batch_size, source.num_instances)
    kinds = {
        "": lambda: _whole(config, source, batch_size),
        "decode_": lambda: _decoding(source, batch_size),
    }
    kept = with_cache(config, source) if config.cache else None
    if kept is not None:
        kinds["cached_"] = lambda: _whole(config, kept, batch_size)
    if peer is not None:
        kinds["simclr_"] = lambda: _simclr(peer, source, config.image_size, batch_size)
    result = {}
    for prefix, make in kinds.items():
        rates = _rates(make, seconds)
        result.update({f"{prefix}images_per_second": rates[0], f"{prefix}images_per_cpu_second": rates[1]})
    result["views_per_second"] = _VIEWS * result["images_per_second"]
    result["ratio_to_decode"] = result["images_per_second"] / result["decode_images_per_second"]
    if kept is not None and kept.kept is not None:
        result["cpu_ratio_of_cache"] = result["cached_images_per_cpu_second"] / result["images_per_cpu_second"]
        result["cache_bytes"] = kept.kept.num_bytes
    if peer is not None:
        result["simclr_views_per_second"] = _VIEWS * result["simclr_images_per_second"]
        result["ratio_to_simclr"] = result["images_per_second"] / result["simclr_images_per_second"]
        result["cpu_ratio_to_simclr"] = result["images_per_cpu_second"] / result["simclr_images_per_cpu_second"]
    return {**result, "bad_images": len(source.bad.reasons), "image_size": config.image_size}


def decoding_rate(source: Source, seconds: float) -> float:
    """Images that this worker decodes per second, without views."""
    return _rates(lambda: _decoding(source, min(_DECODED_AT_ONCE, source.num_instances)), seconds)[0]


def _rates(make: Callable[[], tf.data.Dataset], seconds: float) -> tuple[float, float]:
    """Images per second of the wall clock, and per second of all cores."""
    counts = iter(without_autotuner(make()))
    # Threads start, and buffers fill up.
    _count(counts, seconds / 2)
    wall, cpu = time.perf_counter(), time.process_time()
    images = _count(counts, seconds)
    return images / (time.perf_counter() - wall), images / (time.process_time() - cpu)


def _count(counts: Iterator[tf.Tensor], seconds: float) -> int:
    """Images of the batches that come within some seconds."""
    end, images = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        images += int(next(counts))
    return images


def _whole(config: PretrainConfig, source: Source, batch_size: int) -> tf.data.Dataset:
    """What a single worker trains on."""
    last_step = _ENDLESS * partition.steps_per_epoch(source.num_instances, batch_size)
    batches = pipeline.training_batches_of(
        config, source, last_step=last_step, batch_size=batch_size, micro_batch=batch_size, num_views=_VIEWS
    )
    return batches.map(lambda views, instance_ids: tf.size(instance_ids))


def _decoded(source: Source) -> tf.data.Dataset:
    """Decoded images without end, read as the pipeline reads them."""
    load = source.loader()
    if source.random_access:
        keys = tf.data.Dataset.range(source.num_instances)
    else:
        keys = source.records(0, source.num_instances).map(lambda record, instance_id, label: record)
    return keys.repeat().map(lambda *key: load(key[0] if len(key) == 1 else key), num_parallel_calls=parallel_calls())


def _decoding(source: Source, batch_size: int) -> tf.data.Dataset:
    shapes = _decoded(source).map(tf.shape).batch(batch_size, drop_remainder=True)
    return shapes.map(lambda shapes: tf.shape(shapes)[0])


def load_simclr(path: str) -> ModuleType:
    """SimCLR's `data_util`, with its published strength of jitter in the place of its command's flag.

    Raises:
      UserError: it cannot be read, or is another module.
    """
    try:
        spec = importlib.util.spec_from_file_location("simclr_data_util", path)
        if spec is None or spec.loader is None:
            raise ImportError("no Python module")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"--simclr={shown(path)}: cannot be imported ({shown(reason)})") from error
    missing = [name for name in _SIMCLR_FUNCTIONS if not hasattr(module, name)]
    if missing:
        raise UserError(
            f"--simclr={shown(path)}: has no {missing[0]}, wanted tf2/data_util.py of google-research/simclr"
        )
    module.FLAGS = SimpleNamespace(color_jitter_strength=1.0)  # type: ignore[attr-defined]
    return module


def _simclr(peer: ModuleType, source: Source, image_size: int, batch_size: int) -> tf.data.Dataset:
    """As its `data.py` and `model.py` call it: each view by itself, the blur for a batch of each of both."""

    def two_views(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.image.convert_image_dtype(image, tf.float32)
        first, second = (peer.preprocess_for_train(image, image_size, image_size) for _ in range(_VIEWS))
        return first, second

    def blur(*views: tf.Tensor) -> tf.Tensor:
        blurred = peer.batch_random_blur(views, image_size, image_size)
        with tf.control_dependencies(blurred):
            return tf.shape(blurred[0])[0]

    images = _decoded(source).filter(lambda image: tf.size(image) > 0)
    views = images.map(two_views, num_parallel_calls=parallel_calls())
    return views.batch(batch_size, drop_remainder=True).map(blur, num_parallel_calls=parallel_calls()).prefetch(2)
