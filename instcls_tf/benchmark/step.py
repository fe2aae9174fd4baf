"""Where the time of a training step goes: waiting for data, encoder, classifier, communication; and what overlaps.

Every figure is the median over the repeats, of the slowest worker in each; the first call of anything never counts.

  seconds_per_step       The undivided step, as pretraining makes it: the next batch, then the whole training step.
                         Steps follow each other without a pause.
  data_wait_seconds      Of those very steps, the time until the next batch is there; 0 for synthetic images, which are
                         made once; with --cache of images that are in it. What the input costs while it is ahead slows
                         the other parts instead.
  encoder_seconds        Alone, without messages: this worker's BN groups forward and backward (of several groups
                         forward twice, if they are not kept) and the optimiser's update, for a fixed gradient of the
                         embeddings.
  classifier_seconds     Alone, without messages: a classifier of this worker's n classes and its share of the labels
                         on the B rows of the global batch: loss, gradients, update of the class weights.
  communication_seconds  Alone, without work: the messages of a step, in their order and size. A message waits for
                         those whose result it needs; the encoder's gradients are all there at once.
  parts_seconds          The sum of these four; `parts_to_step` is its ratio to seconds_per_step. It is above 1 where
                         parts overlap and below 1 where they disturb each other or wait for a slower worker.

The overlap by itself: `one_by_one_seconds` is the training step on one batch that is there already, the encoder's
gradients sent one by one while the backward pass goes on, as pretraining does; `together_seconds` the same step with
one grouped reduction when all of them are there. `overlap_seconds_saved` is their difference.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterator
from typing import Callable

import numpy as np
import tensorflow as tf

from instcls_tf.benchmark import fitting
from instcls_tf.benchmark.encoder import GRADIENT, encoder_step
from instcls_tf.benchmark.sizes import SYNTHETIC
from instcls_tf.benchmark.timing import seconds_of
from instcls_tf.classifier.choice import passes_of
from instcls_tf.classifier.labels import ListsOfRows
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.classifier.shift import needs_shift
from instcls_tf.config import CACHE_IN_MEMORY, PretrainConfig
from instcls_tf.data import pipeline
from instcls_tf.data.cache import with_cache
from instcls_tf.data.folder import of_files
from instcls_tf.data.order import Shares
from instcls_tf.data.source import Source
from instcls_tf.distributed import collectives, cores, workers
from instcls_tf.encoder import networks
from instcls_tf.plan import classifier_bytes, planner
from instcls_tf.plan.planner import CPU, make_plan
from instcls_tf.pretraining.activations import groups_of
from instcls_tf.pretraining.state import TRIAL_LEARNING_RATE, Run, make_step_of_run, make_trial_run


def measure_step(
    config: PretrainConfig, num_instances: int, repeats: int, source: Source | None = None
) -> dict[str, float | None]:
    """Measures one step of a recipe; all workers together.

    Args:
      config: the recipe.
      num_instances: N.
      repeats: steps that are timed, of each kind.
      source: N images; None for random pixels.

    Returns:
      The figures of this module's docstring, `images_per_second`, and the sizes that they belong to. The classifier
      alone is a second one beside the run's: where that does not fit into the free memory, its figure and the sum of
      the parts are None.

    Raises:
      UserError: not even the run fits.
    """
    workers.start(config.seed)
    refuse_misfit("step", config, num_instances)
    run = _make_run(config, num_instances)
    batch = synthetic_batch(config, num_instances)
    batches = itertools.repeat(batch) if source is None else iter(_batches(config, source, repeats))

    one_by_one, together = (
        make_step_of_run(run, config, num_instances, sum_gradients=way)
        for way in (collectives.sum_one_by_one, collectives.sum_together)
    )
    whole, wait = _undivided(one_by_one, batches, repeats)
    parts = {
        "data_wait_seconds": wait,
        **_alone(config, run, batch, repeats),
    }
    in_all = None if None in parts.values() else sum(filter(None, parts.values()))
    overlap = {
        name: seconds_of(functools.partial(_finished, step, batch), repeats)
        for name, step in (("one_by_one_seconds", one_by_one), ("together_seconds", together))
    }
    return {
        "workers": collectives.size(),
        "num_instances": num_instances,
        "batch_size": config.batch_size,
        "image_size": config.image_size,
        "images_per_second": min(config.batch_size, num_instances) / whole,
        "seconds_per_step": whole,
        **parts,
        "parts_seconds": in_all,
        "parts_to_step": None if in_all is None else in_all / whole,
        **overlap,
        "overlap_seconds_saved": overlap["together_seconds"] - overlap["one_by_one_seconds"],
    }


def measure_parts(config: PretrainConfig, num_instances: int, repeats: int) -> dict[str, float | None]:
    """Encoder, classifier and messages of a step, each alone, on random pixels; all workers, after `workers.start`."""
    return _alone(config, _make_run(config, num_instances), synthetic_batch(config, num_instances), repeats)


def planned_memory(config: PretrainConfig, num_instances: int) -> dict[str, int]:
    """What the planner says of a step of the fullest worker: bytes by part."""
    threads = cores.threads_of_worker(collectives.local_size())
    return make_plan(config, num_instances, collectives.size(), device=CPU, threads=threads).memory


def less_memory(config: PretrainConfig, num_instances: int, memory: dict[str, int]) -> str:
    """What takes less than `planned_memory` has found; see `planner.less_memory`."""
    of_images = config.dataset != SYNTHETIC
    return planner.less_memory(config, num_instances, collectives.size(), memory, of_images=of_images)


def refuse_misfit(subject: str, config: PretrainConfig, num_instances: int) -> None:
    """Refuses a step that does not fit; all workers together, see `fitting.refuse`."""
    memory = planned_memory(config, num_instances)
    fitting.refuse(subject, sum(memory.values()), less_memory(config, num_instances, memory))


def _make_run(config: PretrainConfig, num_instances: int) -> Run:
    run = make_trial_run(config, num_instances)
    if run.classifier is None:
        raise ValueError(f"method={config.method!r}: the parts of the instance classification are measured")
    return run


def _alone(
    config: PretrainConfig, run: Run, batch: tuple[tf.Tensor, tf.Tensor], repeats: int
) -> dict[str, float | None]:
    assert run.classifier is not None
    return {
        "encoder_seconds": _encoder_alone(config, run, batch[0], repeats),
        "classifier_seconds": _classifier_alone(config, run.classifier.num_local, batch[1], repeats),
        "communication_seconds": _messages_alone(config, run, batch[1], repeats),
    }


def synthetic_batch(config: PretrainConfig, num_instances: int) -> tuple[tf.Tensor, tf.Tensor]:
    """This worker's share of a full batch: random pixels `[b, V, S, S, 3]` and the ids `[b]`."""
    shares = Shares(num_instances, config.batch_size, config.micro_batch, collectives.rank(), collectives.size())
    begin, count = (int(value) for value in shares.of_step(tf.constant(0, tf.int64)))
    shape = [count, config.views, config.image_size, config.image_size, 3]
    views = tf.cast(tf.random.uniform(shape, 0, 256, tf.int32), tf.uint8)
    return views, tf.range(begin, begin + count)


def _batches(config: PretrainConfig, source: Source, repeats: int) -> tf.data.Dataset:
    """With a cache of a batch's images, which come again and again under ids that are spread over all."""
    every = 1
    if config.cache:
        sample = of_files(source, config.cache).spread(config.batch_size)
        every = source.num_instances // sample.num_instances
        source = with_cache(config.replace(cache=CACHE_IN_MEMORY), sample, visible=False)
    batches = pipeline.training_batches_of(config, source, last_step=repeats + 1)
    return batches.map(lambda views, ids: (views, tf.where(ids < 0, ids, every * ids)))


def _finished(train_step: Callable, batch: tuple[tf.Tensor, tf.Tensor]) -> float:
    """The loss of a step, which is there when the step is done."""
    return float(train_step(*batch, TRIAL_LEARNING_RATE).output.loss)


def _undivided(train_step: Callable, batches: Iterator, repeats: int) -> tuple[float, float]:
    """Seconds of a whole step, and of waiting for its batch."""
    train_step(*next(batches), TRIAL_LEARNING_RATE).output.loss.numpy()
    times = []
    collectives.barrier()
    before = time.perf_counter()
    for _ in range(repeats):
        batch = next(batches)
        ready = time.perf_counter()
        train_step(*batch, TRIAL_LEARNING_RATE).output.loss.numpy()
        after = time.perf_counter()
        times.append((after - before, ready - before))
        before = after
    times = collectives.all_gather(tf.constant([times], tf.float64), "step_times")  # [T, repeats, 2]
    whole, wait = np.median(tf.reduce_max(times, axis=0), axis=0)
    return float(whole), float(wait)


def _encoder_alone(config: PretrainConfig, run: Run, views: tf.Tensor, repeats: int) -> float:
    images = tf.reshape(views, [-1, *views.shape[2:]])  # [b V, H, W, 3]
    gradient = tf.random.normal([images.shape[0], config.embedding_size], stddev=GRADIENT)
    group_rows = config.micro_batch * config.views
    assert run.classifier is not None
    groups = groups_of(config, run.classifier.num_instances)
    encode = encoder_step(config, run.encoder, run.optimizer, groups, group_rows)
    return _seconds_alone(lambda: encode(images, gradient).numpy(), repeats)


def _classifier_alone(config: PretrainConfig, num_local: int, instance_ids: tf.Tensor, repeats: int) -> float | None:
    workers = collectives.size()
    num_rows = _rows_of_all(config, instance_ids)
    dtypes = {"weights_dtype": config.class_weights_dtype, "momentum_dtype": config.class_momentum_dtype}
    planned = classifier_bytes.peak_bytes(
        num_local, 1, num_rows, config.embedding_size, config.hard_negatives if config.smoothing else 0, **dtypes
    )
    if not fitting.look(planned).holds:
        return None
    with collectives.alone():
        layer = ShardedClassifier(
            num_local,
            config.embedding_size,
            temperature=config.temperature,
            smoothing=config.smoothing,
            smoothing_loss=config.smoothing_loss,
            sampled_classes=min(num_local, -(-config.sampled_classes // workers)),
            weights_dtype=config.class_weights_dtype,
            momentum_dtype=config.class_momentum_dtype,
            products_dtype=config.class_products_dtype,
            make_passes=passes_of(config.class_passes),
        )
    # Of the classes of a batch and of the hard negatives of a row, one in T is this worker's.
    ids = tf.range(num_rows) % min(num_local, max(1, config.batch_size // workers))
    hard_negatives = None
    if config.smoothing:
        shape = [num_rows, max(1, config.hard_negatives // workers)]
        hard_negatives = ListsOfRows(tf.random.uniform(shape, 0, num_local, tf.int32))
    embeddings = tf.random.normal([num_rows, config.embedding_size])
    return _seconds_alone(lambda: layer(embeddings, ids, hard_negatives, TRIAL_LEARNING_RATE).loss.numpy(), repeats)


def _seconds_alone(action: Callable[[], object], repeats: int) -> float:
    def without_messages() -> None:
        with collectives.alone():
            action()

    return seconds_of(without_messages, repeats)


def _messages_alone(config: PretrainConfig, run: Run, instance_ids: tf.Tensor, repeats: int) -> float:
    if collectives.size() == 1:
        return 0.0
    rounds = _messages(config, run, instance_ids.shape[0], _rows_of_all(config, instance_ids))
    tensors = [[tf.zeros(shape, dtype) for _, shape, dtype in messages] for messages in rounds]

    @tf.function(autograph=False)
    def exchange(tensors: list[list[tf.Tensor]]) -> list[tf.Tensor]:
        received: list[tf.Tensor] = []
        for number, (messages, sent) in enumerate(zip(rounds, tensors)):
            with tf.control_dependencies(received):
                sent = [tf.identity(tensor) for tensor in sent]
            received = [
                collective(tensor, f"message_{number}_{index}")
                for index, ((collective, *_), tensor) in enumerate(zip(messages, sent))
            ]
        return received

    return seconds_of(lambda: exchange(tensors)[-1].numpy(), repeats)


def _messages(config: PretrainConfig, run: Run, instances: int, all_rows: int) -> list[list[tuple]]:
    """The messages `(collective, shape, dtype)` of a step; those of one list need nothing of each other."""
    gather, add, largest = collectives.all_gather, collectives.sum_over_workers, collectives.max_over_workers
    rows, size = instances * config.views, config.embedding_size
    statistics = sum(variable.shape[0] for variable in networks.batch_norm_statistics(run.encoder))
    # One list per instance of the batch: as many from this worker as it has instances, if ids are spread evenly.
    lists = [[(gather, [instances, config.hard_negatives], tf.int32)]]
    maxima = [[(largest, [2, all_rows], tf.float32)]]
    return [
        [(add, [statistics + 1], tf.float32)],
        [(gather, [rows, size], tf.float32), (gather, [rows, 2], tf.int32)],
        *(lists if config.smoothing else []),
        *(maxima if needs_shift(config.temperature) else []),
        [(add, [3, all_rows], tf.float32), (largest, [all_rows], tf.float32)],
        [(add, [all_rows, size], tf.float32)],
        [(add, variable.shape, tf.float32) for variable in run.encoder.trainable_variables],
    ]


def _rows_of_all(config: PretrainConfig, instance_ids: tf.Tensor) -> int:
    """B, the rows of the global batch."""
    return config.views * int(tf.size(collectives.all_gather(instance_ids, "step_ids")))
