"""Batches for every worker, the same global batches for every number of workers.

`order` says which images make up a worker's batches; here they are loaded, turned into views and batched.

An image that cannot be read keeps its row, so that groups stay aligned: its id becomes -1, which the training step
masks, and its pixels those of the first good image of its group, which disturb the group's BN least.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from instcls_tf.config import PLAIN_VIEWS, PretrainConfig, Window
from instcls_tf.data import order
from instcls_tf.data.augment import Views, views_of
from instcls_tf.data.order import Shares
from instcls_tf.data.source import Source
from instcls_tf.data.threads import parallel_calls, without_autotuner
from instcls_tf.distributed import collectives

PADDING_ID = -1
# Pixels of views that are augmented together: few enough for the processor's cache, or many small images.
_CHUNK_PIXELS, _LARGEST_CHUNK = 8 * 224 * 224, 64


def training_batches(
    source: Source,
    *,
    views: Views,
    batch_size: int,
    num_views: int,
    seed: int,
    last_step: int,
    window: Window | None = None,
    first_step: int = 0,
    micro_batch: int = 1,
    rank: int = 0,
    num_workers: int = 1,
) -> tf.data.Dataset:
    """This worker's batches of augmented views for the steps `first_step` to `last_step`, over all epochs.

    Args:
      source: the images.
      views: the augmentation, from `make_views`.
      batch_size: instances per step, all workers together.
      num_views: views per instance, V.
      seed: of the order of instances.
      last_step: one after the last step of the run.
      window: the one that slides over the images (see `sliding_window`), each place of which is what an epoch is
        otherwise; None for epochs.
      first_step: where to begin; in mid-epoch the rest of that epoch follows, as in the run that was interrupted.
      micro_batch: instances per group, of which every worker gets whole ones.
      rank: this worker, r.
      num_workers: T.

    Returns:
      One prefetched dataset of `last_step - first_step` elements `(views, instance_ids)`: uint8 `[b, V, S, S, 3]` and
      int32 `[b]`, -1 for padding.
    """
    num_listed = source.num_instances if window is None else window.size
    shares = Shares(num_listed, batch_size, micro_batch, rank, num_workers)
    batches = _batches(source, shares, seed, views, num_views, first_step, last_step, window)
    return batches.map(lambda images, ids, labels: (images, ids))


def training_batches_of(config: PretrainConfig, source: Source, *, last_step: int, **settings: Any) -> tf.data.Dataset:
    """`training_batches` as a recipe has them, on all workers.

    Args:
      config: the recipe; PIC's window is one of the `settings`, for those who slide it.
      source: the images.
      last_step: one after the last step.
      **settings: those of `training_batches` that are to be otherwise than in the recipe, or that it does not have.
    """
    of_recipe: dict[str, Any] = {
        "views": views_of(config),
        "batch_size": config.batch_size,
        "micro_batch": config.micro_batch,
        "num_views": config.views,
        "seed": config.seed,
        "rank": collectives.rank(),
        "num_workers": collectives.size(),
    }
    return training_batches(source, last_step=last_step, **{**of_recipe, **settings})


def inference_batches(
    source: Source,
    *,
    image_size: int,
    batch_size: int,
    micro_batch: int = 1,
    rank: int = 0,
    num_workers: int = 1,
    shuffle_seed: int | None = None,
    center_crop_fraction: float = 1.0,
) -> tf.data.Dataset:
    """One pass over all images, without augmentation: a centred square, resized.

    Args:
      source: the images.
      image_size: side S, pixels.
      batch_size: images per step, all workers together.
      micro_batch: images per group, of which every worker gets whole ones.
      rank: this worker.
      num_workers: T.
      shuffle_seed: None for the order of ids, else the seed of a permutation (of streams for record files).
      center_crop_fraction: side of the square as a fraction of the image's shorter side; 1 is the largest one.

    Returns:
      A prefetched dataset of `(images, instance_ids, labels)`: uint8 `[b, S, S, 3]`, int32 `[b]` (-1 for padding) and
      int32 `[b]` (-1 if unknown).
    """
    shares = Shares(source.num_instances, batch_size, micro_batch, rank, num_workers)
    views = Views(PLAIN_VIEWS, image_size, 0, (), center_crop_fraction=center_crop_fraction)
    batches = _batches(source, shares, shuffle_seed, views, 1, 0, shares.steps)
    return batches.map(lambda images, ids, labels: (images[:, 0], ids, labels))


@tf.autograph.experimental.do_not_convert  # nor what it maps: that would take seconds before the first batch
def _batches(
    source: Source,
    shares: Shares,
    seed: int | None,
    views: Views,
    num_views: int,
    first_step: int,
    last_step: int,
    window: Window | None = None,
) -> tf.data.Dataset:
    """Loads, crops, augments and batches: `(uint8 [b, V, S, S, 3], int32 [b], int32 [b])`, prefetched."""
    load, size, rows = source.loader(), views.image_size, shares.rows
    chunk = min(max(1, _CHUNK_PIXELS // (num_views * size * size)), _LARGEST_CHUNK, rows)
    slots = -(-rows // chunk) * chunk

    def of_step(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        begin, count = shares.of_step(step % shares.steps)
        # One row more than the batch: padding after an empty share at its end has draws of its own.
        draws = views.draws(step, shares.full_batch + 1, num_views)[begin:][:slots]
        draws = tf.pad(draws, [[0, slots - tf.shape(draws)[0]], [0, 0], [0, 0]])
        return tf.range(slots, dtype=tf.int64) < count, tf.ensure_shape(draws, [slots, num_views, views.num_draws])

    def load_and_crop(element: tuple, slot: tuple) -> tuple:
        (key, instance_id, label), (used, draws) = element, slot
        nothing = tf.zeros([0, 0, 3], tf.uint8)
        image = tf.cond(used, lambda: tf.ensure_shape(load(key), [None, None, 3]), lambda: nothing)
        good = tf.size(image) > 0
        empty = tf.zeros([num_views, size, size, 3])
        images = tf.cond(good, lambda: views.crop(image, draws), lambda: empty)
        instance_id = tf.where(good, tf.cast(instance_id, tf.int32), PADDING_ID)
        return images, draws, used, instance_id, tf.where(good, label, -1)

    def augment(images: tf.Tensor, draws: tf.Tensor, used: tf.Tensor, ids: tf.Tensor, labels: tf.Tensor) -> tuple:
        flat = tf.reshape(images, [-1, size, size, 3]), tf.reshape(draws, [-1, views.num_draws])
        images = tf.cond(tf.reduce_any(ids >= 0), lambda: views.augment(*flat), lambda: tf.cast(flat[0], tf.uint8))
        return tf.reshape(images, [-1, num_views, size, size, 3]), used, ids, labels

    def join(images: tf.Tensor, used: tf.Tensor, ids: tf.Tensor, labels: tf.Tensor) -> tuple:
        kept = tf.maximum(1, tf.reduce_sum(tf.cast(used, tf.int32)))
        images, ids, labels = (tf.reshape(x, [slots, *x.shape[2:]])[:kept] for x in (images, ids, labels))
        return _lend_pixels(images, ids, shares.micro_batch), ids, labels

    parallel = parallel_calls()
    elements = order.elements(source, shares, slots, first_step, last_step, seed, window)
    slot_stream = tf.data.Dataset.range(first_step, last_step).map(of_step).unbatch()
    dataset = tf.data.Dataset.zip((elements, slot_stream)).map(load_and_crop, num_parallel_calls=parallel)
    # By chunks, not by batches: a share of 4,096 images would be many GB of float32.
    dataset = dataset.batch(chunk, drop_remainder=True).map(augment, num_parallel_calls=parallel)
    dataset = dataset.batch(slots // chunk, drop_remainder=True).map(join)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(last_step - first_step))
    return without_autotuner(dataset.prefetch(1))


def _lend_pixels(images: tf.Tensor, ids: tf.Tensor, micro_batch: int) -> tf.Tensor:
    """Gives the rows `[b, ...]` without an image (id -1) the pixels of the first good row of their group."""
    rows = tf.range(tf.shape(ids)[0])
    groups, good = rows // micro_batch, ids >= 0
    none = tf.shape(ids)[0]
    firsts = tf.math.unsorted_segment_min(tf.where(good, rows, none), groups, groups[-1] + 1)
    donors = tf.where(good, rows, tf.gather(firsts, groups))
    donors = tf.where(donors < none, donors, rows)
    return tf.cond(tf.reduce_all(good), lambda: images, lambda: tf.gather(images, donors))
