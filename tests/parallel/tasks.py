"""What the workers of the parallel tests do; started by `tests.parallel.launch`. Rank 0 writes the results."""

from __future__ import annotations

import sys
from pathlib import Path

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from instcls_tf import checkpoint, classifier_sizes, collectives, compiled_softmax, grouped, hardest_classes, tiles
from instcls_tf.classifier import ShardedClassifier, sample_classes
from instcls_tf.config import PretrainConfig
from instcls_tf.data.sources import open_source
from instcls_tf.hardest_classes import HardNegatives
from instcls_tf.optimizer import MomentumSGD
from instcls_tf.prior import initialize_classifier
from instcls_tf.train_step import make_train_step
from tests.parallel import cases

OVERLAP_STEPS = 4


def classifier(folder: Path) -> None:
    """Trains every case's class weights and writes loss, gradients, weights, lists and samples."""
    hardest_classes._CANDIDATES, hardest_classes._TILE_ELEMENTS = cases.CANDIDATES, cases.CANDIDATES * 5
    for name, case in cases.CASES.items():
        tiles.tile_classes = classifier_sizes.kernel_tile_classes = lambda *_, number=case.tile_classes: number
        compiled_softmax.available = lambda compiled=case.compiled: compiled
        results = _train_classifier(case, name)
        if collectives.rank() == 0:
            np.savez(folder / f"{name}.npz", **results)


def _train_classifier(case: cases.Case, name: str) -> dict[str, np.ndarray]:
    layer = make_classifier(case, name)
    hard = HardNegatives(layer, cases.HARD) if case.smoothing else None

    @tf.function(reduce_retracing=True)
    def step(embeddings, ids, number):
        lists = hard.lookup(ids) if hard else None
        with tf.GradientTape() as tape:
            tape.watch(embeddings)
            output = layer(embeddings, ids, lists, learning_rate=cases.LEARNING_RATE, step=number)
        gradient = tape.gradient(output.loss, embeddings)
        return output, collectives.all_gather(gradient, "test_gradient")

    results = {}
    for number in range(cases.STEPS):
        if hard and number % cases.LISTS_EVERY == 0:
            churn = hard.refresh().churn
            results[f"lists_{number}"], results[f"churn_{number}"] = gather(hard.lists), np.array(churn, np.float64)
        embeddings, ids = cases.batch(number)
        begin, end = collectives.own_bounds(len(ids))
        if case.sampled_classes:
            sample = sample_classes(tf.constant(ids), cases.NUM_INSTANCES, case.sampled_classes, (layer.seed, number))
            results[f"sample_{number}"] = sample.numpy()
        output, gradient = step(tf.constant(embeddings[begin:end]), tf.constant(ids[begin:end]), tf.constant(number))
        results[f"loss_{number}"] = output.loss.numpy()
        results[f"top1_{number}"] = output.instance_top1.numpy()
        results[f"gradient_{number}"] = gradient.numpy()
        if number in (0, cases.STEPS - 1):
            results[f"weights_{number}"] = gather(layer.local_rows)
            results[f"momentum_{number}"] = gather(layer.local_momentum)
    return results


def make_classifier(case: cases.Case, name: str) -> ShardedClassifier:
    layer = ShardedClassifier(
        cases.NUM_INSTANCES,
        cases.EMBEDDING_SIZE,
        temperature=case.temperature,
        smoothing=case.smoothing,
        smoothing_loss=case.smoothing_loss,
        sampled_classes=case.sampled_classes,
        name=name,
    )
    layer.write(tf.range(layer.num_local), tf.constant(cases.weights()[layer.begin : layer.end]))
    return layer


def gather(variable: tf.Variable) -> np.ndarray:
    return collectives.all_gather(tf.convert_to_tensor(variable), "test_gather").numpy()


def train_step(folder: Path) -> None:
    """Trains a linear encoder together with the classifier through the real training step, padding included."""
    layer = make_classifier(cases.CASES["marginal"], "whole_step")
    hard = HardNegatives(layer, cases.HARD)
    encoder = linear_encoder()
    optimizer = MomentumSGD(cases.LEARNING_RATE, momentum=0.9, weight_decay=1e-4)
    views_spec = tf.TensorSpec([None, 2, 2, 2, 3], tf.float32)
    step = make_train_step(encoder, layer, hard, optimizer, views_spec, cases.MICRO_BATCH, several_groups=True)
    results = {}
    for number in range(cases.STEPS):
        if number % cases.LISTS_EVERY == 0:
            hard.refresh()
        own_views, own_ids = own_share(number)
        output = step(tf.constant(own_views), tf.constant(own_ids), tf.constant(cases.LEARNING_RATE))
        results[f"loss_{number}"] = output.loss.numpy()
    results["kernel"] = encoder.trainable_variables[0].numpy()
    results["weights"] = gather(layer.local_rows)
    results["moving_mean"], results["moving_variance"] = moving_statistics()
    if collectives.rank() == 0:
        np.savez(folder / "train_step.npz", **results)


def own_share(step: int) -> tuple[np.ndarray, np.ndarray]:
    """This worker's BN groups of a step's views and ids."""
    views, ids = views_of(step)
    first, last = collectives.own_bounds(-(-len(ids) // cases.MICRO_BATCH))
    begin, end = (min(group * cases.MICRO_BATCH, len(ids)) for group in (first, last))
    if begin == end:  # what the pipeline gives to a worker without a share
        return views[:1], np.array([-1], np.int32)
    return views[begin:end], ids[begin:end]


def moving_statistics() -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance that a BN layer has learned from the pixels of all steps."""
    images = tf.keras.Input([2, 2, 3])
    layer = tf.keras.layers.BatchNormalization(momentum=0.9)
    encoder = tf.keras.Model(images, tf.keras.layers.GlobalAveragePooling2D()(layer(images)))

    @tf.function(input_signature=[tf.TensorSpec([None, 2, 2, 3]), tf.TensorSpec([None], tf.bool)])
    def encode(images, is_real):
        return grouped.encode(encoder, images, is_real, 2 * cases.MICRO_BATCH, several=True).embeddings

    for number in range(cases.STEPS):
        views, ids = own_share(number)
        encode(tf.constant(views.reshape([-1, 2, 2, 3])), tf.repeat(ids >= 0, 2))
    return layer.moving_mean.numpy(), layer.moving_variance.numpy()


def overlap(folder: Path) -> None:
    """Some steps of an encoder whose backward pass takes its time; Horovod's timeline, if it is on, sees them."""
    encoder = convolutions()
    optimizer = MomentumSGD(0.01, momentum=0.9, weight_decay=1e-4)
    views_spec = tf.TensorSpec([None, 2, 24, 24, 3], tf.float32)
    for name, ways in {
        "encoder_gradient": (),  # as training does
        "together": (lambda gradients, _: collectives.sum_together(gradients, "together"),),
    }.items():
        layer = make_classifier(cases.CASES["eq1"], f"classifier_{name}")
        step = make_train_step(encoder, layer, None, optimizer, views_spec, 16, False, *ways)
        ids = tf.range(16) + 16 * collectives.rank()
        for number in range(OVERLAP_STEPS):
            step(tf.random.stateless_normal([16, 2, 24, 24, 3], [number, collectives.rank()]), ids, 0.01)
    hvd.stop_timeline()  # waits until all is written; the end of the process does not


def convolutions() -> tf.keras.Model:
    """Ten layers, nine of which take about 10 ms in each direction on a core of a laptop."""
    images = tf.keras.Input([24, 24, 3])
    x = images
    for _ in range(9):
        x = tf.keras.layers.Conv2D(64, 3, padding="same", use_bias=False, activation="relu")(x)
    x = tf.keras.layers.GlobalAveragePooling2D()(x)
    return tf.keras.Model(images, tf.keras.layers.Dense(cases.EMBEDDING_SIZE, use_bias=False)(x))


def linear_encoder() -> tf.keras.Model:
    images = tf.keras.Input([2, 2, 3])
    initializer = tf.keras.initializers.RandomNormal(stddev=0.3, seed=5)
    dense = tf.keras.layers.Dense(cases.EMBEDDING_SIZE, use_bias=False, kernel_initializer=initializer)
    return tf.keras.Model(images, dense(tf.keras.layers.Flatten()(images)))


def views_of(step: int) -> tuple[np.ndarray, np.ndarray]:
    """`[instances, 2, 2, 2, 3]` float32 views and their ids; a single instance in step 7."""
    ids = cases.batch(step)[1][::2]
    views = np.random.default_rng(step).normal(size=[len(ids), 2, 2, 2, 3])
    return views.astype(np.float32), ids


def prior(folder: Path) -> None:
    """Fills a classifier with each initialisation and writes its rows."""
    source = open_source("digits")
    for init in ("raw_running_bn", "raw_fixed_bn", "random"):
        config = PretrainConfig(
            workdir=str(folder), dataset="digits", image_size=16, augmentation="digits", encoder="resnet18",
            width_multiplier=0.125, stem="small", embedding_size=16, batch_size=200, classifier_init=init,
        )  # fmt: skip
        encoder = checkpoint.make_encoder(config)
        layer = ShardedClassifier(source.num_instances, config.embedding_size, name=init)
        initialize_classifier(config, layer, encoder, source)
        rows = gather(layer.local_rows)
        if collectives.rank() == 0:
            np.save(folder / f"{init}.npy", rows)


def save(folder: Path) -> None:
    """Saves a classifier and an encoder whose values name their places."""
    layer, hard, encoder = _numbered_state()
    checkpoint.save(str(folder), 3, tf.train.Checkpoint(encoder=encoder), _slices(layer, hard))


def restore(folder: Path) -> None:
    """Restores into zeros and writes what every worker together got."""
    layer, hard, encoder = _numbered_state()
    for variable in (layer.local_rows, layer.local_momentum, hard.lists, *encoder.variables):
        variable.assign(tf.zeros_like(variable))
    prefix = checkpoint.latest(str(folder))
    checkpoint.restore(prefix, tf.train.Checkpoint(encoder=encoder), _slices(layer, hard))
    rows, momentum, lists = gather(layer.local_rows), gather(layer.local_momentum), gather(hard.lists)
    if collectives.rank() == 0:
        kernel = encoder.trainable_variables[0].numpy()
        name = f"restored_by_{collectives.size()}.npz"
        np.savez(folder / name, rows=rows, momentum=momentum, lists=lists, kernel=kernel)


def _numbered_state():
    checkpoint._CHUNK_ROWS = 20
    layer = make_classifier(cases.CASES["marginal"], "saved")
    layer.local_momentum.assign(-layer.local_rows)
    hard = HardNegatives(layer, cases.HARD)
    hard.refresh()
    return layer, hard, linear_encoder()


def _slices(layer: ShardedClassifier, hard: HardNegatives) -> dict[str, checkpoint.Slices]:
    named = {"rows": layer.local_rows, "momentum": layer.local_momentum, "hard": hard.lists}
    return {
        f"classifier/{name}": checkpoint.Slices(variable, layer.begin, layer.num_instances)
        for name, variable in named.items()
    }


if __name__ == "__main__":
    collectives.init()
    {task.__name__: task for task in (classifier, train_step, overlap, prior, save, restore)}[sys.argv[1]](
        Path(sys.argv[2])
    )
