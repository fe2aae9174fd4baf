"""What a worker does that a launcher has started with a script of its user; started by `tests.parallel.test_joining`.

It leaves a JSON file of its rank.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

import instcls_tf
from tests.classifiers import documented_example

NUM_INSTANCES, SIZE, K = 101, 8, 5


def refusal() -> str:
    """What making a layer is answered with."""
    try:
        instcls_tf.ShardedClassifier(NUM_INSTANCES, SIZE)
    except instcls_tf.UserError as error:
        return str(error)
    return ""


def layer() -> dict[str, object]:
    """A layer of all workers as it is made, and what it learns in a step from the lists of its rows."""
    made = instcls_tf.ShardedClassifier(NUM_INSTANCES, SIZE)
    rows = made.read(tf.range(made.num_local)).numpy().tolist()
    lists = instcls_tf.HardNegatives(made, K)
    lists.refresh()
    own = tf.range(made.begin, made.end)
    output = made(tf.ones([len(own), SIZE]), own, lists.lists, learning_rate=0.1)
    return {"bounds": [made.begin, made.end], "rows": rows, "loss": float(output.loss)}


def training() -> dict[str, object]:
    """The training of the docstring, with its line for several workers."""
    tf.random.set_seed(hvd.rank())  # each has other images
    names = {"instcls_tf": instcls_tf, "tf": tf, "hvd": hvd}
    exec(documented_example().replace("# several workers: ", ""), names)
    encoder = np.concatenate([variable.numpy().ravel() for variable in names["encoder"].trainable_variables])
    classifier = names["classifier"]
    return {"encoder": encoder.tolist(), "loss": float(names["loss"]), "bounds": [classifier.begin, classifier.end]}


if __name__ == "__main__":
    told = {"before": refusal()}
    hvd.init()
    told["with_horovod_alone"] = refusal()
    instcls_tf.init()
    told.update(layer=layer(), training=training())
    (Path(sys.argv[1]) / f"{hvd.rank()}.json").write_text(json.dumps(told))
