"""How much nearer an instance's views are to its own class weight than to the others (Fig. 4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from instcls_tf.checks import require_value
from instcls_tf.classifier.arguments import ZEROS
from instcls_tf.classifier.prior import initialize_classifier
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.config import CLASSIFIER_INITS, RANDOM, RAW_BATCH_BN, PretrainConfig
from instcls_tf.data import pipeline
from instcls_tf.data.labelled import labels_of
from instcls_tf.data.source import Source, notes_of
from instcls_tf.data.sources import open_training_source
from instcls_tf.distributed import collectives, workers
from instcls_tf.encoder import networks
from instcls_tf.evaluation import weight_index
from instcls_tf.evaluation.knn import nearest
from instcls_tf.initial.start import initialize_encoder
from instcls_tf.run import checkpoint, checkpoint_choice
from instcls_tf.run.encoder import encoder_of
from instcls_tf.run.workdir import load_classification

# Other class weights to which a view is compared one by one, for the histogram; the mean over all others is exact.
_SAMPLED_OTHERS = 4
# Class weights that are normalised at a time.
_BLOCK = 2**16


class Similarities(NamedTuple):
    """Cosines of augmented views, one or several per view."""

    intra: np.ndarray  # [R] to the view's own class weight
    inter: np.ndarray  # [R] to the other class weights, their mean over all of them
    inter_sample: np.ndarray  # [S] to single other class weights

    def summary(self) -> dict[str, float]:
        """`intra` and `inter`, the means, and `gap`, their difference."""
        intra, inter = float(np.mean(self.intra)), float(np.mean(self.inter))
        return {"intra": intra, "inter": inter, "gap": intra - inter}


def similarities_of_run(
    workdir: str, data_dir: str | None, instances: int
) -> tuple[dict[str, dict[str, float]], dict[str, Similarities], int]:
    """Intra- and inter-instance cosines of the recipe's four initialisations and of the run itself.

    All workers call it together.

    Args:
      workdir: the run's folder; its recipe gives network, images and views.
      data_dir: TFDS's folder; None for the run's own.
      instances: how many instances are measured.

    Returns:
      By the name of the initialisation, and for `trained`: `intra`, `inter` and `gap`, their difference; and, where
      the images have labels, `retrieval_top1`: how often the most similar other weight is of the same category. Then
      the cosines themselves, under the same names, and the step of the run.

    Raises:
      UserError: no run, no checkpoint, or no images.
    """
    require_value("instances", instances, instances >= 1, "at least 1")
    config = load_classification(workdir)
    source = open_training_source(config, data_dir, workdir)
    prefix = checkpoint.newest(workdir)
    weight_index.refuse_other_number(prefix, source)
    progress = workers.start(config.seed, notes_of(source))
    trained = encoder_of(config, prefix)
    if config.extend_from or config.contrast_epochs:
        network = "random" if not config.init else "given"
        progress.say(
            f"similarity: the rows of initialisations are of the {network} network, not of what this run took over"
        )
    labels = labels_of(source) if source.class_names else None
    summaries, cosines = {}, {}
    for init in (*CLASSIFIER_INITS, "trained"):
        progress.say(f"similarity: {init}")
        if init == "trained":
            encoder, weights = trained, weight_index.read_weights(prefix, 0, source.num_instances)
        else:
            encoder, weights = _initial_weights(config.replace(classifier_init=init), source)
        # Views are embedded in the way the weights were; Gaussian ones have none, training's own is taken.
        training = init in (RAW_BATCH_BN, RANDOM)
        cosines[init] = measure_similarities(config, source, encoder, weights, instances, training=training)
        summaries[init] = cosines[init].summary()
        if labels is not None:
            summaries[init]["retrieval_top1"] = retrieval_top1(weights, labels, instances)
    return summaries, cosines, checkpoint_choice.step_of(prefix)


def _initial_weights(config: PretrainConfig, source: Source) -> tuple[tf.keras.Model, tf.Tensor]:
    """The random or given network, and its class weights `[N, D]` by `classifier_init`, on every worker."""
    encoder = networks.make_encoder(config)
    if config.init:
        initialize_encoder(encoder, config.init)
    classifier = ShardedClassifier(source.num_instances, config.embedding_size, seed=config.seed, initializer=ZEROS)
    initialize_classifier(config, classifier, encoder, source)
    return encoder, collectives.all_gather(tf.convert_to_tensor(classifier.local_weights), "initial_weights")


def measure_similarities(
    config: PretrainConfig,
    source: Source,
    encoder: tf.keras.Model,
    class_weights: tf.Tensor,
    instances: int,
    *,
    training: bool,
) -> Similarities:
    """Cosines between augmented views and class weights; every worker measures its share and gets the whole.

    Args:
      config: gives the views.
      source: the images.
      encoder: embeds the views.
      class_weights: `[N, D]`.
      instances: about how many instances to measure, in the order of the first epoch.
      training: whether BN uses the batch's own statistics.
    """
    directions = tf.math.l2_normalize(tf.cast(class_weights, tf.float32), axis=1)  # [N, D]
    sum_of_all = tf.reduce_sum(directions, axis=0)  # the mean over the others needs no more
    parts = []
    for embeddings, row_ids in _embedded_views(config, source, encoder, instances, training):
        own = tf.gather(directions, row_ids)
        # Neighbours in the order of ids may be alike (a folder per class): steps of a prime number leave them.
        others = [(row_ids + 7919 * step) % len(directions) for step in range(1, _SAMPLED_OTHERS + 1)]
        sample = [_cosines(embeddings, tf.gather(directions, other))[other != row_ids] for other in others]
        mean_other = (sum_of_all - own) / (len(directions) - 1)
        parts.append((_cosines(embeddings, own), _cosines(embeddings, mean_other), tf.concat(sample, axis=0)))
    return Similarities(*(collectives.all_gather(tf.concat(part, 0), "cosines").numpy() for part in zip(*parts)))


def _embedded_views(
    config: PretrainConfig, source: Source, encoder: tf.keras.Model, instances: int, training: bool
) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    """This worker's embeddings `[r, D]` of length 1 and ids `[r]`, without padding, batch by batch."""
    batch_size = min(config.batch_size, source.num_instances)
    steps = -(-min(instances, source.num_instances) // batch_size)
    batches = pipeline.training_batches_of(config, source, last_step=steps, batch_size=batch_size)
    for views, ids in batches:
        embeddings = _embed(encoder, views, config.micro_batch, training)
        row_ids = tf.repeat(ids, config.views)
        real = row_ids != pipeline.PADDING_ID
        yield tf.math.l2_normalize(embeddings, axis=1)[real], row_ids[real]


def _embed(encoder: tf.keras.Model, views: tf.Tensor, group: int, training: bool) -> tf.Tensor:
    """Rows `[b V, D]` of views `[b, V, S, S, 3]`, so many instances at a time: the groups of BN, and what memory holds.

    The encoder stays as it was: looking at it must not move BN's statistics, which a run would save.
    """
    statistics = networks.batch_norm_statistics(encoder) if training else []
    before = [variable.numpy() for variable in statistics]
    try:
        parts = [
            encoder(tf.reshape(views[begin : begin + group], [-1, *views.shape[2:]]), training=training)
            for begin in range(0, max(1, len(views)), group)
        ]
    finally:
        for variable, value in zip(statistics, before):
            variable.assign(value)
    return tf.concat([tf.cast(part, tf.float32) for part in parts], axis=0)


def gap_of_weights(
    config: PretrainConfig,
    source: Source,
    encoder: tf.keras.Model,
    classifier: ShardedClassifier,
    instances: int,
    *,
    training: bool,
) -> dict[str, float]:
    """The summary of `measure_similarities` of class weights that stay with their workers, who share the rows by class.

    Args:
      classifier: whose weights; the others as there.
    """
    begin, end = classifier.begin, classifier.end
    parts = [
        _unit_weights(classifier, tf.range(at, min(at + _BLOCK, end - begin))) for at in range(0, end - begin, _BLOCK)
    ]
    sum_of_all = collectives.sum_over_workers(tf.add_n([tf.reduce_sum(part, axis=0) for part in parts]), "gap_sum")
    sums = np.zeros([3])
    for embeddings, row_ids in _embedded_views(config, source, encoder, instances, training):
        rows, ids = collectives.all_gather(embeddings, "gap_rows"), collectives.all_gather(row_ids, "gap_ids")
        mine = (ids >= begin) & (ids < end)
        own = _unit_weights(classifier, ids[mine] - begin)
        inter = _cosines(rows[mine], (sum_of_all - own) / (classifier.num_instances - 1))
        sums += [float(tf.reduce_sum(_cosines(rows[mine], own))), float(tf.reduce_sum(inter)), len(own)]
    intra, inter, count = workers.total(sums, "gap_sums")
    return {"intra": intra / count, "inter": inter / count, "gap": (intra - inter) / count}


def _unit_weights(classifier: ShardedClassifier, places: tf.Tensor) -> tf.Tensor:
    return tf.math.l2_normalize(classifier.read(places), axis=1)


def _cosines(embeddings: tf.Tensor, directions: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(embeddings * directions, axis=1)


def retrieval_top1(class_weights: tf.Tensor, labels: np.ndarray, queries: int) -> float:
    """How often the most similar other class weight is of an image of the same category (the paper: 3 % on ImageNet).

    Args:
      class_weights: `[N, D]`, the same on all workers, which share out the queries.
      labels: `[N]`.
      queries: how many of them, evenly spread over the dataset, look for their neighbour among all N.
    """
    weights = np.asarray(class_weights)
    ids = np.unique(np.linspace(0, len(weights) - 1, min(queries, len(weights))).round().astype(np.int64))
    own = ids[slice(*collectives.own_bounds(len(ids)))]
    _, places = nearest(weights, weights[own], 2)
    # A weight is its own nearest, unless another is exactly alike.
    other = np.where(places[:, 0] == own, places[:, 1], places[:, 0])
    hits = workers.total([np.sum(labels[other] == labels[own])], "retrieval")
    return float(hits[0] / len(ids))
