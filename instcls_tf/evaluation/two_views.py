"""Two views of a few images of a run, the same whenever they are looked at: what the gauges without labels see."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from instcls_tf import stamps
from instcls_tf.config import PretrainConfig
from instcls_tf.data import pipeline
from instcls_tf.data.sample import sample
from instcls_tf.data.source import Source
from instcls_tf.distributed import partition
from instcls_tf.evaluation.features import Embedder, OnProgress
from instcls_tf.evaluation.gauge import Reading, read_gauges

# A twentieth of the images, so that looking at them takes about 1 % of an epoch, within these bounds.
_PART, _FEWEST, _MOST = 20, 128, 512
# Images encoded at a time, all workers together, and those of a group of which a worker gets whole ones.
_BATCH, _GROUP = 128, 16


class TwoViews:
    """Augmented views of a few images of a recipe, held as pixels; all workers have one and call it alike.

    Args:
      config: the recipe; its augmentation and seed make the views.
      source: its training images.
    """

    def __init__(self, config: PretrainConfig, source: Source):
        few = sample(source, min(_MOST, max(_FEWEST, source.num_instances // _PART)))
        self.num_images = few.num_instances
        # By itself, so that it is the same whatever a run has drawn before.
        self._batches = list(_views(config, few))

    def features(self, embedder: Embedder, progress: OnProgress = stamps.stamp) -> list[tuple[np.ndarray, np.ndarray]]:
        """What each output of a model sees in the two views: `[M, F]` each, images that cannot be read left out.

        Args:
          embedder: the model.
          progress: called with a stage's name, batches done and batches in all.
        """
        found: list[np.ndarray] = []
        seen = np.zeros([self.num_images, 2], bool)
        for done, (views, ids) in enumerate(self._batches, start=1):
            rows, kinds = tf.repeat(ids, 2), tf.tile(tf.range(2), [len(ids)])
            ids_of_all, kinds_of_all, outputs = embedder.of_all_workers(
                tf.reshape(views, [-1, *views.shape[2:]]), rows, kinds
            )
            if not found:
                found = [np.zeros([self.num_images, 2, output.shape[1]], np.float32) for output in outputs]
            for kept, output in zip(found, outputs):
                kept[ids_of_all, kinds_of_all] = output
            seen[ids_of_all, kinds_of_all] = True
            progress("gauges", done, len(self._batches))
        whole = seen.all(axis=1)
        return [(kept[whole, 0], kept[whole, 1]) for kept in found]

    def read(self, embedder: Embedder, progress: OnProgress = stamps.stamp) -> list[Reading]:
        """The gauges of each output of a model; see `features`.

        Raises:
          UserError: features are not finite, or too few images can be read.
        """
        return [read_gauges(*both) for both in self.features(embedder, progress)]


def _views(config: PretrainConfig, few: Source) -> tf.data.Dataset:
    batch_size = min(_BATCH, few.num_instances)
    steps = partition.steps_per_epoch(few.num_instances, batch_size)
    return pipeline.training_batches_of(
        config, few, last_step=steps, batch_size=batch_size, micro_batch=_GROUP, num_views=2
    )
