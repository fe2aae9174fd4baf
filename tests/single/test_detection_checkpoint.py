"""The state of a detector's fine-tune belongs to the weights and the data it began with."""

from __future__ import annotations

import tensorflow as tf

from instcls_tf.evaluation import detection_checkpoint
from instcls_tf.evaluation.detection_config import DetectConfig


def test_a_run_that_went_on_starts_another_fine_tune(tmp_path):
    config = DetectConfig(workdir=str(tmp_path), dataset="folder:cells")
    detection_checkpoint.save(config, "first weights", tf.train.Checkpoint(x=tf.Variable(3.0)), 5)
    found = tf.Variable(0.0)
    assert detection_checkpoint.restore(config, "second weights", tf.train.Checkpoint(x=found)) == 0
    assert float(found) == 0
    assert detection_checkpoint.restore(config, "first weights", tf.train.Checkpoint(x=found)) == 5
    assert float(found) == 3
