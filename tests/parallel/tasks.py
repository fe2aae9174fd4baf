"""What the workers of the parallel tests do, all of it in one job; started by `tests.parallel.launch`.

Each task gets a folder of its own, in which rank 0 writes the results.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from instcls_tf.classifier.hard_negatives import HardNegatives
from instcls_tf.classifier.kernels.passes import CompiledPasses
from instcls_tf.classifier.labels import ListsOfRows, sample_classes
from instcls_tf.classifier.portable_passes import PortablePasses
from instcls_tf.classifier.prior import initialize_classifier
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.classifier.tiles import SearchSizes
from instcls_tf.config import PretrainConfig
from instcls_tf.data.sources import open_source
from instcls_tf.distributed import collectives
from instcls_tf.encoder import bn_groups, networks
from instcls_tf.evaluation.similarity import gap_of_weights
from instcls_tf.methods.instance import InstanceClassification
from instcls_tf.optimizer import MomentumSGD
from instcls_tf.pretraining.train_step import make_train_step
from instcls_tf.run import checkpoint, parts
from tests.parallel import cases, detection_task

OVERLAP_STEPS = 8
FULL_BATCH_GROUPS = 3  # of BN; the batches of the cases have 11 to 13 instances, one of them 1
SEARCH = SearchSizes(cases.CANDIDATES, cases.CANDIDATES * 5)


def classifier(folder: Path) -> None:
    """Trains every case's class weights and writes loss, gradients, weights, lists and samples."""
    for name, case in (cases.CASES | cases.ROUNDED_CASES).items():
        results = _train_classifier(case, name)
        if collectives.rank() == 0:
            np.savez(folder / f"{name}.npz", **results)


def _train_classifier(case: cases.Case, name: str) -> dict[str, np.ndarray]:
    layer = make_classifier(case, name)
    hard_negatives = HardNegatives(layer, cases.NUM_HARD_NEGATIVES, SEARCH) if case.smoothing else None

    @tf.function(reduce_retracing=True)
    def step(embeddings, ids, number, hard_negatives):
        with tf.GradientTape() as tape:
            tape.watch(embeddings)
            output = layer(embeddings, ids, hard_negatives, learning_rate=cases.LEARNING_RATE, step=number)
        gradient = tape.gradient(output.loss, embeddings)
        return output, collectives.all_gather(gradient, "test_gradient")

    results = {}
    for number in range(cases.STEPS):
        if hard_negatives and number % cases.LISTS_EVERY == 0:
            churn = hard_negatives.refresh().churn
            results[f"lists_{number}"], results[f"churn_{number}"] = (
                gather(hard_negatives.lists),
                np.array(churn, np.float64),
            )
        embeddings, ids = cases.batch(number)
        begin, end = collectives.own_bounds(len(ids))
        if case.sampled_classes:
            sample = sample_classes(cases.NUM_INSTANCES, case.sampled_classes, layer.seed, number)
            results[f"sample_{number}"] = sample.numpy()
        own = tf.constant(embeddings[begin:end]), tf.constant(ids[begin:end])
        given = hard_negatives
        if case.lists_row_by_row:
            given = ListsOfRows(tf.gather(gather(hard_negatives.lists), own[1]))
        output, gradient = step(*own, tf.constant(number), given)
        results[f"loss_{number}"] = output.loss.numpy()
        results[f"top1_{number}"] = output.instance_top1.numpy()
        results[f"gradient_{number}"] = gradient.numpy()
        if number in (0, cases.STEPS - 1) or name in cases.ROUNDED_CASES:
            for part, table in (("weights", layer.classes.weights), ("momentum", layer.classes.momentum)):
                results[f"{part}_{number}"] = gather(table.read(tf.range(layer.num_local)))
                if table.scales is not None:
                    results[f"{part}_scales_{number}"] = gather(table.scales)
    return results


def make_classifier(case: cases.Case, name: str) -> ShardedClassifier:
    make = CompiledPasses if case.compiled else functools.partial(PortablePasses, xla=case.xla)
    layer = ShardedClassifier(
        cases.NUM_INSTANCES,
        cases.EMBEDDING_SIZE,
        temperature=case.temperature,
        smoothing=case.smoothing,
        smoothing_loss=case.smoothing_loss,
        sampled_classes=case.sampled_classes,
        weights_dtype=case.weights_dtype,
        momentum_dtype=case.momentum_dtype,
        make_passes=functools.partial(make, tile_classes=case.tile_classes),
        name=name,
    )
    layer.write(tf.range(layer.num_local), tf.constant(cases.weights()[layer.begin : layer.end]))
    return layer


def gather(variable: tf.Variable) -> np.ndarray:
    return collectives.all_gather(tf.convert_to_tensor(variable), "test_gather").numpy()


def train_step(folder: Path) -> None:
    """Trains a linear encoder together with the classifier through the real training step, padding included."""
    layer = make_classifier(cases.CASES["marginal"], "whole_step")
    hard_negatives = HardNegatives(layer, cases.NUM_HARD_NEGATIVES)
    encoder = linear_encoder()
    optimizer = MomentumSGD(cases.LEARNING_RATE, momentum=0.9, weight_decay=1e-4)
    views_spec = tf.TensorSpec([None, 2, 2, 2, 3], tf.float32)
    step = make_train_step(
        encoder,
        InstanceClassification(layer, hard_negatives),
        optimizer,
        views_spec,
        cases.MICRO_BATCH,
        # Workers may differ in this: one has less free memory than another.
        bn_groups.Groups(several=True, kept=collectives.rank() % 2 == 0),
    )
    results = {}
    for number in range(cases.STEPS):
        if number % cases.LISTS_EVERY == 0:
            hard_negatives.refresh()
        own_views, own_ids = own_share(number)
        output, _ = step(tf.constant(own_views), tf.constant(own_ids), tf.constant(cases.LEARNING_RATE))
        results[f"loss_{number}"] = output.loss.numpy()
    results["kernel"] = encoder.trainable_variables[0].numpy()
    results["weights"] = gather(layer.local_weights)
    results["moving_mean"], results["moving_variance"] = moving_statistics()
    results["gathered"] = np.array(gathered_by(step))
    if collectives.rank() == 0:
        np.savez(folder / "train_step.npz", **results)


def gathered_by(step: tf.types.experimental.GenericFunction) -> list[str]:
    """The names of the tensors that a step of the graph gathers from the workers."""
    graph = step.get_concrete_function().graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    return sorted({node.name.split("/")[-1] for node in nodes if node.op == "HorovodAllgather"})


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
        groups = bn_groups.Groups(several=True, in_batch=FULL_BATCH_GROUPS)
        encoded = bn_groups.encode(encoder, images, is_real, 2 * cases.MICRO_BATCH, groups)
        encoded.update_statistics()
        return encoded.embeddings

    for number in range(cases.STEPS):
        views, ids = own_share(number)
        encode(tf.constant(views.reshape([-1, 2, 2, 3])), tf.repeat(ids >= 0, 2))
    return layer.moving_mean.numpy(), layer.moving_variance.numpy()


def overlap(folder: Path) -> None:
    """Some steps of an encoder whose backward pass takes its time, in Horovod's timeline of rank 0."""
    hvd.start_timeline(str(folder / "timeline.json"))
    encoder = convolutions()
    optimizer = MomentumSGD(0.01, momentum=0.9, weight_decay=1e-4)
    views_spec = tf.TensorSpec([None, 2, 24, 24, 3], tf.float32)
    for name, ways in {
        "encoder_gradient": (),  # as training does
        "together": (lambda gradients, _: collectives.sum_together(gradients, "together"),),
    }.items():
        layer = make_classifier(cases.CASES["eq1"], f"classifier_{name}")
        step = make_train_step(
            encoder, InstanceClassification(layer), optimizer, views_spec, 16, bn_groups.Groups(several=False), *ways
        )
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
    for init in ("raw_running_bn", "raw_batch_bn", "raw_fixed_bn", "random"):
        config = PretrainConfig(
            workdir=str(folder), dataset="digits", image_size=16, augmentation="digits", encoder="resnet10",
            width_multiplier=0.125, stem="small", embedding_size=16, batch_size=200, classifier_init=init,
        )  # fmt: skip
        encoder = networks.make_encoder(config)
        layer = ShardedClassifier(source.num_instances, config.embedding_size, name=init)
        initialize_classifier(config, layer, encoder, source)
        rows = gather(layer.local_weights)
        gap = gap_of_weights(config, source, encoder, layer, 300, training=False)
        if collectives.rank() == 0:
            np.save(folder / f"{init}.npy", rows)
            (folder / f"{init}.json").write_text(json.dumps(gap))


def save(folder: Path) -> None:
    """Saves a classifier and an encoder whose values name their places."""
    layer, hard_negatives, encoder = _numbered_state()
    checkpoint.save(str(folder), 3, tf.train.Checkpoint(encoder=encoder), _slices(layer, hard_negatives))


def restore(folder: Path, saved: Path) -> None:
    """Restores what `save` has saved into zeros and writes what every worker together got."""
    layer, hard_negatives, encoder = _numbered_state()
    for variable in (layer.local_weights, layer.local_momentum, hard_negatives.lists, *encoder.variables):
        variable.assign(tf.zeros_like(variable))
    prefix = checkpoint.latest(str(saved))
    checkpoint.restore(prefix, tf.train.Checkpoint(encoder=encoder), _slices(layer, hard_negatives))
    rows, momentum, lists = gather(layer.local_weights), gather(layer.local_momentum), gather(hard_negatives.lists)
    embeddings, ids = cases.batch(0)
    begin, end = collectives.own_bounds(len(ids))
    own = tf.constant(embeddings[begin:end]), tf.constant(ids[begin:end])
    loss = layer(*own, hard_negatives, learning_rate=cases.LEARNING_RATE).loss
    after = {"loss": loss.numpy(), "rows_after": gather(layer.local_weights)}
    after["momentum_after"] = gather(layer.local_momentum)
    if collectives.rank() == 0:
        kernel = encoder.trainable_variables[0].numpy()
        np.savez(folder / "restored.npz", rows=rows, momentum=momentum, lists=lists, kernel=kernel, **after)


def save_int8(folder: Path) -> None:
    """Saves a classifier of int8 that has made some steps."""
    parts.CHUNK_ROWS = 20
    layer = _classifier_of_int8()
    _few_steps(layer, 0)
    checkpoint.save(str(folder), 3, tf.train.Checkpoint(), InstanceClassification(layer).sliced())


def restore_int8(folder: Path, saved: Path) -> None:
    """Restores what `save_int8` has saved, and goes on."""
    layer = _classifier_of_int8()
    sliced = InstanceClassification(layer).sliced()
    checkpoint.restore(checkpoint.latest(str(saved)), tf.train.Checkpoint(), sliced)
    results = {name.replace("/", "_"): gather(part.variable) for name, part in sliced.items()}
    _few_steps(layer, 3)
    results["after"] = gather(layer.read(tf.range(layer.num_local)))
    results["scales_after"] = gather(layer.classes.weights.scales)
    if collectives.rank() == 0:
        np.savez(folder / "restored.npz", **results)


def _classifier_of_int8() -> ShardedClassifier:
    return make_classifier(cases.ROUNDED_CASES["int8"]._replace(smoothing=0.0), "saved_int8")


def _few_steps(layer: ShardedClassifier, first: int) -> None:
    for number in range(first, first + 3):
        embeddings, ids = (tf.constant(part[slice(*collectives.own_bounds(len(part)))]) for part in cases.batch(number))
        layer(embeddings, ids, learning_rate=cases.LEARNING_RATE, step=number)


def _numbered_state():
    parts.CHUNK_ROWS = 20
    layer = make_classifier(cases.CASES["marginal"], "saved")
    layer.local_momentum.assign(-layer.local_weights)
    hard_negatives = HardNegatives(layer, cases.NUM_HARD_NEGATIVES)
    hard_negatives.refresh()
    return layer, hard_negatives, linear_encoder()


def _slices(layer: ShardedClassifier, hard_negatives: HardNegatives) -> dict[str, checkpoint.Slices]:
    named = {"rows": layer.local_weights, "momentum": layer.local_momentum, "hard_negatives": hard_negatives.lists}
    return {
        f"classifier/{name}": parts.Slices(variable, layer.begin, layer.num_instances)
        for name, variable in named.items()
    }


def run_all(folder: Path, saved: Path | None) -> None:
    """Every task that says something about this number of workers.

    Args:
      folder: of this job.
      saved: the folder of another job, for what its `save` and `save_int8` have written.
    """
    tasks = {"classifier": classifier, "train_step": train_step, "prior": prior, "save": save, "save_int8": save_int8}
    if saved:
        tasks["restore"] = functools.partial(restore, saved=saved / "save")
        tasks["restore_int8"] = functools.partial(restore_int8, saved=saved / "save_int8")
    if collectives.size() == 2:
        tasks["overlap"] = overlap
    if collectives.size() <= 2:
        tasks["detection"] = detection_task.run
    for name, task in tasks.items():
        (folder / name).mkdir(exist_ok=True)
        task(folder / name)


if __name__ == "__main__":
    _, place, *of_other_job = sys.argv[1:]
    collectives.init()
    run_all(Path(place), Path(of_other_job[0]) if of_other_job else None)
