"""Measures an export in a runtime, on one core: how near it comes to the encoder, and how many images a second.

As the self-check, it needs NumPy and the runtime alone. `scripts.export_matrix` starts it in environments of their own:

  python -m instcls_tf.export.measure FOLDER REFERENCE.npz RUNTIME
"""

from __future__ import annotations

import json
import os
import sys
import time

import numpy as np

from instcls_tf.errors import UserError
from instcls_tf.export import runtimes, self_check

BATCHES = (1, 3, 64)
# Single images of these shapes as well: tiny, upright, square, and such as are enlarged.
OTHER_SHAPES = ((1, 1), (31, 20), (97, 60), (256, 256), (500, 375), (640, 480))
# Seconds that a measurement of speed takes at least, and how many calls at most.
_SECONDS, _MOST_CALLS = 1.0, 20


def batch_of(batch: int, height: int, width: int) -> np.ndarray:
    """Noise, different in every image, uint8 `[batch, height, width, 3]`."""
    random = np.random.Generator(np.random.PCG64(1000 * height + width))
    return random.integers(0, 256, [batch, height, width, 3], dtype=np.uint8)


def name_of(batch: int, height: int, width: int, output: str) -> str:
    """The name of an array of the reference."""
    return f"{output}_{batch}_{height}_{width}"


def measured(folder: str, reference: str, runtime: str) -> dict:
    """Errors and speeds.

    Args:
      folder: the export.
      reference: the encoder's outputs for `batch_of`, an .npz file of arrays named by `name_of`.
      runtime: see `names.RUNTIMES`.

    Returns:
      `runtime`, `version`, `metric` (of the errors), `self_check` (its error) and `cases`: `batch`,
      `size`, `error` and `images_per_second` of each.
    """
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before the runtime counts cores
    card = self_check.read_card(folder)
    name, version, model = runtimes.open_model(folder, card, runtime)
    arrays, distance = np.load(reference), self_check.METRICS[card["metric"]]
    cases = []
    model(batch_of(1, *card["input"]["size"]))  # the first call of all takes seconds
    for key in (key for key in arrays if key.startswith("features_")):
        batch, height, width = map(int, key.split("_")[1:])
        if not card["input"]["any_size"] and [height, width] != card["input"]["size"]:
            continue
        images = batch_of(batch, height, width)
        outputs, speed = _timed(model, images)
        errors = [
            distance(outputs[output], arrays[name_of(batch, height, width, output)])
            for output in ("features", "projection")
            if output in outputs
        ]
        cases.append({"batch": batch, "size": [height, width], "error": max(errors), "images_per_second": speed})
    checked = self_check.run(folder, "" if runtime == "serving" else runtime)  # of a SavedModel, all signatures
    return {"runtime": name, "version": version, "metric": checked.metric, "self_check": checked.error, "cases": cases}


def _timed(model: runtimes.Model, images: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
    """Outputs and images per second; short calls are repeated, without the first one."""
    start = time.perf_counter()
    outputs = model(images)
    seconds = time.perf_counter() - start
    if seconds > _SECONDS:
        return outputs, len(images) / seconds
    calls, start = 0, time.perf_counter()
    while calls == 0 or (calls < _MOST_CALLS and time.perf_counter() - start < _SECONDS):
        model(images)
        calls += 1
    return outputs, calls * len(images) / (time.perf_counter() - start)


def changed_by_a_step(folder: str) -> tuple[int, int]:
    """How many of a SavedModel's trainable variables a step of SGD changes without Keras, and how many it has."""
    import tensorflow as tf

    loaded = tf.saved_model.load(folder)
    size = self_check.read_card(folder)["input"]["size"]
    before = [variable.numpy() for variable in loaded.trainable_variables]
    with tf.GradientTape() as tape:
        projection = loaded.projection(loaded.backbone(tf.constant(batch_of(4, *size)), training=True))
        loss = tf.reduce_sum(projection * np.linspace(-1, 1, int(projection.shape[1]), dtype=np.float32))
    for variable, gradient in zip(loaded.trainable_variables, tape.gradient(loss, loaded.trainable_variables)):
        variable.assign_sub(gradient)
    changed = sum(bool((variable.numpy() != old).any()) for variable, old in zip(loaded.trainable_variables, before))
    return changed, len(before)


if __name__ == "__main__":
    try:
        if len(sys.argv) != 4:
            raise UserError("wanted the folder of an export, the file of the reference and a runtime")
        answer = measured(*sys.argv[1:])
        if answer["runtime"] == "serving":
            answer["changed"], answer["trainable"] = changed_by_a_step(sys.argv[1])
    except UserError as failure:
        sys.exit(f"error: {failure}")
    print(json.dumps(answer))
