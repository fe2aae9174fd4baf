"""How much nearer an instance's views are to its own class weight than to the others (Fig. 4)."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from instcls_tf import checkpoint
from instcls_tf.classifier import ShardedClassifier
from instcls_tf.config import CLASSIFIER_INITS, PretrainConfig, load_run
from instcls_tf.data import augment, pipeline
from instcls_tf.data.sources import Source, open_training_source
from instcls_tf.errors import UserError
from instcls_tf.prior import initialize_classifier


def similarities_of_run(workdir: str, data_dir: str | None, instances: int) -> dict[str, dict[str, float]]:
    """Mean intra- and inter-instance cosine of the recipe's four initialisations and of the run itself.

    Args:
      workdir: the run's folder; its recipe gives network, images and views.
      data_dir: TFDS's folder; None for the run's own.
      instances: how many instances are measured.

    Returns:
      For each initialisation and for `trained`: `intra`, `inter` and `gap`, their difference.
    """
    if instances < 1:
        raise UserError(f"--instances={instances}: must be at least 1")
    config = load_run(workdir)
    trained = checkpoint.load_encoder(workdir)
    source = open_training_source(config, data_dir, workdir)
    result = {}
    for init in CLASSIFIER_INITS:
        encoder = checkpoint.make_encoder(config)
        classifier = ShardedClassifier(source.num_instances, config.embedding_size, seed=config.seed)
        initialize_classifier(config.replace(classifier_init=init), classifier, encoder, source)
        # Views are embedded in the way the rows were; Gaussian rows have none, training's own is taken.
        training = init in ("raw_batch_bn", "random")
        result[init] = similarity_gap(config, source, encoder, classifier.local_rows, instances, training=training)
    rows = tf.train.load_checkpoint(checkpoint.latest(workdir)).get_tensor("classifier/rows")
    result["trained"] = similarity_gap(config, source, trained, rows, instances, training=False)
    return result


def similarity_gap(
    config: PretrainConfig,
    source: Source,
    encoder: tf.keras.Model,
    rows: tf.Tensor,
    instances: int,
    *,
    training: bool,
) -> dict[str, float]:
    """Cosines between augmented views and class weights.

    Args:
      config: gives the views.
      source: the images.
      encoder: embeds the views.
      rows: `[N, D]` class weights.
      instances: about how many instances to measure, in the order of the first epoch.
      training: whether BN uses the batch's own statistics.

    Returns:
      `intra`: mean cosine of a view and its own row; `inter`: of a view and any other row; `gap`: intra - inter.
    """
    batch_size = min(config.batch_size, source.num_instances)
    batches = pipeline.training_batches(
        source,
        views=augment.views_of(config),
        batch_size=batch_size,
        num_views=config.views,
        seed=config.seed,
        last_step=-(-min(instances, source.num_instances) // batch_size),
    )
    directions = tf.math.l2_normalize(tf.cast(rows, tf.float32), axis=1)  # [N, D]
    all_rows = tf.reduce_sum(directions, axis=0)  # the mean over other rows needs only their sum
    intra, inter = [], []
    for views, ids in batches:
        images = tf.reshape(views, [-1, *views.shape[2:]])
        embeddings = tf.math.l2_normalize(encoder(images, training=training), axis=1)
        own = tf.gather(directions, tf.repeat(ids, config.views))
        intra.append(tf.reduce_sum(embeddings * own, axis=1).numpy())
        others = (all_rows - own) / (len(directions) - 1)
        inter.append(tf.reduce_sum(embeddings * others, axis=1).numpy())
    intra, inter = float(np.mean(np.concatenate(intra))), float(np.mean(np.concatenate(inter)))
    return {"intra": intra, "inter": inter, "gap": intra - inter}
