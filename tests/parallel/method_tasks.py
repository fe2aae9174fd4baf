"""What the workers of `test_methods` do: some steps of each rival's loss. Rank 0 writes the results."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from instcls_tf.classifier.output import moved
from instcls_tf.distributed import collectives
from instcls_tf.methods import class_softmax
from instcls_tf.methods.diet import DIET
from instcls_tf.methods.moco_v2 import MoCoV2
from instcls_tf.methods.pic import PIC
from instcls_tf.methods.simclr import SimCLR
from tests.parallel import method_cases as cases

ROWS = [tf.TensorSpec([None, cases.SIZE]), tf.TensorSpec([None], tf.int32)]


def run(prepare, views: int = 2) -> dict[str, np.ndarray]:
    """Loss, top-1 and all workers' gradients of every step, by one graph as in training."""

    @tf.function(input_signature=[*ROWS, tf.TensorSpec([]), tf.TensorSpec([], tf.int32)])
    def train_step(embeddings, ids, learning_rate, step):
        with tf.GradientTape() as tape:
            tape.watch(embeddings)
            output = moved(*prepare(embeddings, ids, learning_rate, step))
        gradient = tape.gradient(output.loss, embeddings)
        return output, collectives.all_gather(gradient, "test_gradient")

    results = {}
    for step in range(cases.STEPS):
        own = [tf.constant(part[own_rows(step, len(part))]) for part in cases.batch(step, views)]
        output, gradient = train_step(*own, cases.learning_rate(step), step)
        results[f"loss_{step}"], results[f"top1_{step}"] = output.loss.numpy(), output.instance_top1.numpy()
        results[f"gradient_{step}"] = gradient.numpy()
        refuse_differences(output.loss)
    return results


def own_rows(step: int, rows: int) -> slice:
    return cases.share(step, rows, collectives.rank(), collectives.size())


def refuse_differences(value: tf.Tensor) -> None:
    """What is said to be the same on all workers must be, to the last bit."""
    everywhere = gather(value[tf.newaxis])
    if not (everywhere == everywhere[:1]).all():
        raise ValueError(f"differs between workers: {everywhere}")


@tf.function
def _gathered(tensor):
    return collectives.all_gather(tensor, "test_gather")


def gather(tensor) -> np.ndarray:
    return _gathered(tf.convert_to_tensor(tensor)).numpy()


def simclr() -> dict[str, np.ndarray]:
    return run(SimCLR(temperature=0.2, name="simclr_two").prepare)


def simclr_three_views() -> dict[str, np.ndarray]:
    return run(SimCLR(temperature=0.5, name="simclr_three").prepare, views=3)


def moco_v2() -> dict[str, np.ndarray]:
    encoders = [tf.keras.Sequential([tf.keras.layers.Dense(cases.SIZE, input_shape=[2])]) for _ in range(2)]
    moco = MoCoV2(*encoders, queue_size=cases.QUEUE, name="moco")
    table = tf.constant(cases.keys())

    def prepare(queries, ids, learning_rate, step):
        del learning_rate
        return moco.prepare(queries, tf.gather(table[step], ids))

    first_queue = moco.queue.numpy()
    results = {**run(prepare, views=1), "first_queue": first_queue, "queue": moco.queue.numpy()}
    refuse_differences(moco.queue.read_value())
    return results


def diet_adamw() -> dict[str, np.ndarray]:
    return _diet(DIET(cases.NUM_INSTANCES, cases.SIZE, learning_rate_factor=0.05, name="diet_adamw"))


def diet_sgd() -> dict[str, np.ndarray]:
    return _diet(DIET(cases.NUM_INSTANCES, cases.SIZE, optimizer="sgd", label_smoothing=0.3, name="diet_sgd"))


def _diet(method: DIET) -> dict[str, np.ndarray]:
    first_weights = gather(method.local_weights)
    return {**run(method.prepare), "first_weights": first_weights, "weights": gather(method.local_weights)}


def pic() -> dict[str, np.ndarray]:
    method = PIC(cases.NUM_INSTANCES, cases.SIZE, recent_negatives=cases.RECENT, weight_decay=0.02, name="pic")
    method.local_weights.assign(100 * method.local_weights)  # of unit size: else the first gradients are huge
    results = {"first_weights": gather(method.local_weights), **run(method.prepare)}
    weights, momentum = method._caught_up(tf.range(method.end - method.begin))
    for variable in method.replicated().values():
        refuse_differences(variable.read_value())
    return {
        **results,
        "weights": gather(weights),
        "momentum": gather(momentum),
        "kept_weights": gather(method.local_weights),
    }


TASKS = (simclr, simclr_three_views, moco_v2, diet_adamw, diet_sgd, pic)

if __name__ == "__main__":
    collectives.init()
    class_softmax._TILE_ELEMENTS = 3 * 14  # tiles end neither with the classes nor with the shards
    for task in TASKS:
        results = task()
        if collectives.rank() == 0:
            np.savez(Path(sys.argv[1]) / f"{task.__name__}.npz", **results)
