"""How fast a recipe trains on this machine: a few real steps, timed, without a run."""

from __future__ import annotations

import time
from typing import Callable, NamedTuple

import tensorflow as tf

from instcls_tf.config import CACHE_IN_MEMORY, FLOAT32, PretrainConfig
from instcls_tf.data import pipeline
from instcls_tf.data.cache import with_cache
from instcls_tf.data.folder import FolderSource, of_files
from instcls_tf.data.source import Source
from instcls_tf.distributed import partition, workers
from instcls_tf.pretraining.speed import measured_rate, products_of_images
from instcls_tf.pretraining.state import TRIAL_LEARNING_RATE, make_step_of_run, make_trial_run

# The first step traces and compiles, and during it batches are made ahead.
_UNTIMED, _LEAST = 2, 2
# Of the time for the passes over the images before training, where there are any.
_SHARE_OF_PASSES = 0.2
# So many steps should fit into the time, at the share of a bare matrix product's speed that networks come to.
_STEPS, _EFFICIENCY = 8, 0.3
_ENDLESS = 10_000  # epochs
_SAMPLE, _FEW = 128, 8  # images for a cache; the time of the few is that of what comes before any image


class Pace(NamedTuple):
    """Images per second: of training, views included, and of a pass over the images before it."""

    training: float
    passes: float


def measure_pace(config: PretrainConfig, num_instances: int, source: Source, seconds: float) -> Pace:
    """Times training steps of a recipe in this process alone.

    Steps are whole ones where several of them fit into the time, else of as few BN groups as that takes.

    Args:
      config: the recipe, of the instance classification.
      num_instances: N.
      source: images, at most N.
      seconds: how long steps are timed, after the first ones; longer if two steps take longer.
    """
    workers.start(config.seed)
    run = make_trial_run(config, num_instances)
    instances = min(_instances_of_a_step(config, seconds), source.num_instances)
    train_step = make_step_of_run(run, config, num_instances)
    infer = tf.function(lambda images: run.encoder(images, training=False), autograph=False)
    last_step = _ENDLESS * partition.steps_per_epoch(source.num_instances, instances)
    batches = iter(pipeline.training_batches_of(config, source, last_step=last_step, batch_size=instances))
    passes = iter(_inference_batches(config, source, instances))

    def train() -> int:
        views, ids = next(batches)
        train_step(views, ids, TRIAL_LEARNING_RATE).output.loss.numpy()
        return int(tf.reduce_sum(tf.cast(ids >= 0, tf.int32)))

    def look() -> int:
        images = next(passes)
        infer(images).numpy()
        return int(images.shape[0])

    return Pace(
        _images_per_second(train, (1.0 - _SHARE_OF_PASSES) * seconds),
        _images_per_second(look, _SHARE_OF_PASSES * seconds),
    )


def with_sample_cached(config: PretrainConfig, source: Source) -> tuple[Source, float]:
    """For a recipe with a cache: some of its images with one in memory, and how long each took to come there."""
    workers.start(config.seed)  # before TensorFlow's first operation
    config = config.replace(cache=CACHE_IN_MEMORY)

    def filled(most: int) -> tuple[FolderSource, float]:
        sample = of_files(source, CACHE_IN_MEMORY).spread(most)
        started = time.perf_counter()
        return with_cache(config, sample, visible=False), time.perf_counter() - started

    filled(_FEW)
    (few, of_few), (kept, of_all) = filled(_FEW), filled(_SAMPLE)
    more = kept.num_instances - few.num_instances
    # Of very few images, or very small ones, the difference says nothing: at most as long as all of it, then.
    return kept, (of_all - of_few) / more if of_all > of_few and more else of_all / kept.num_instances


def search_seconds(config: PretrainConfig, num_instances: int) -> float:
    """Of one search for hard negatives, by the speed of a bare matrix product here: at best."""
    products = float(num_instances) ** 2 * config.embedding_size
    return products / measured_rate(config.replace(precision=FLOAT32), 1)


def _instances_of_a_step(config: PretrainConfig, seconds: float) -> int:
    products = products_of_images(config, config.micro_batch)
    groups = int(seconds / _STEPS * _EFFICIENCY * measured_rate(config, 1) / products)
    return min(max(1, groups) * config.micro_batch, config.batch_size)


def _inference_batches(config: PretrainConfig, source: Source, instances: int) -> tf.data.Dataset:
    batches = pipeline.inference_batches(
        source,
        image_size=config.image_size,
        batch_size=instances,
        micro_batch=config.micro_batch,
        shuffle_seed=config.seed,
    )
    return batches.map(lambda images, ids, labels: images).repeat()


def _images_per_second(step: Callable[[], int], seconds: float) -> float:
    for _ in range(_UNTIMED):
        step()
    images = steps = 0
    started = time.perf_counter()
    while steps < _LEAST or time.perf_counter() - started < seconds:
        images, steps = images + step(), steps + 1
    return images / (time.perf_counter() - started)
