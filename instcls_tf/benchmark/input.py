"""How fast images come in: decoding alone, two views each, the whole pipeline, and SimCLR's recipe beside them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Callable

import tensorflow as tf

from instcls_tf.benchmark import simclr_views
from instcls_tf.config import PretrainConfig
from instcls_tf.data import augment, pipeline
from instcls_tf.data.sources import Source, open_training_source
from instcls_tf.data.threads import parallel_calls, without_autotuner
from instcls_tf.errors import UserError

_VIEWS = 2
_ENDLESS = 10_000  # Epochs.


def measure_input(config: PretrainConfig, *, seconds: float, batch_size: int) -> dict[str, float]:
    """Measures on this machine's cores, with nothing else at work.

    Args:
      config: gives dataset and views.
      seconds: about how long each measurement takes after its warm-up.
      batch_size: images per batch.

    Returns:
      `images_per_second` and `images_per_cpu_second` of the whole pipeline (source images, two views each);
      `decode_*` and `simclr_*` likewise; `ratio_to_simclr` of views per
      second and `ratio_to_decode`.

    Raises:
      UserError: the dataset is not right, or a setting is out of range.
    """
    if not seconds > 0:
        raise UserError(f"--seconds={seconds}: must be above 0")
    if batch_size < 1:
        raise UserError(f"--images_per_batch={batch_size}: must be at least 1")
    source = open_training_source(config)
    batch_size = min(batch_size, source.num_instances)
    kinds = {
        "": lambda: _whole(config, source, batch_size),
        "decode_": lambda: _decoding(source, batch_size),
        "simclr_": lambda: _simclr(source, config.image_size, batch_size),
    }
    result = {}
    for prefix, make in kinds.items():
        rates = _rates(make, seconds)
        result.update({f"{prefix}images_per_second": rates[0], f"{prefix}images_per_cpu_second": rates[1]})
    result["views_per_second"] = _VIEWS * result["images_per_second"]
    result["simclr_views_per_second"] = _VIEWS * result["simclr_images_per_second"]
    result["ratio_to_simclr"] = result["images_per_second"] / result["simclr_images_per_second"]
    result["ratio_to_decode"] = result["images_per_second"] / result["decode_images_per_second"]
    return {**result, "bad_images": len(source.bad.reasons), "image_size": config.image_size}


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
    last_step = _ENDLESS * pipeline.steps_per_epoch(source.num_instances, batch_size)
    batches = pipeline.training_batches(
        source,
        views=augment.views_of(config),
        batch_size=batch_size,
        num_views=_VIEWS,
        micro_batch=batch_size,
        seed=config.seed,
        last_step=last_step,
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


def _simclr(source: Source, image_size: int, batch_size: int) -> tf.data.Dataset:
    images = _decoded(source).filter(lambda image: tf.size(image) > 0)
    views = images.map(lambda image: simclr_views.views_of(image, image_size), num_parallel_calls=parallel_calls())

    def blur(views: tf.Tensor) -> tf.Tensor:
        return simclr_views.blur(tf.reshape(views, [-1, image_size, image_size, 3]))

    batches = views.batch(batch_size, drop_remainder=True).map(blur, num_parallel_calls=parallel_calls()).prefetch(2)
    return batches.map(lambda views: tf.shape(views)[0] // _VIEWS)
