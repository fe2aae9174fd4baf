"""Nearest-neighbour accuracy while a run goes on, to be logged beside its loss."""

from __future__ import annotations

import tensorflow as tf

from instcls_tf import stamps
from instcls_tf.config import PretrainConfig
from instcls_tf.data.labelled import splits_of_run
from instcls_tf.evaluation import features
from instcls_tf.evaluation.knn import shared_knn_accuracy


class OnlineKnn:
    """Judges the encoder of a run on the labelled splits of its own dataset.

    Args:
      config: the recipe; `online_knn_every` says after how many epochs.
      encoder: the network that is being trained.

    Raises:
      UserError: the dataset has no labels, or no test split.
    """

    def __init__(self, config: PretrainConfig, encoder: tf.keras.Model):
        self._config = config
        self._backbone = features.Embedder(encoder.get_layer("backbone"))
        self._splits = splits_of_run(config)

    def is_due(self, epoch: int) -> bool:
        """Whether to measure at the end of this epoch, counted from 0."""
        return (epoch + 1) % self._config.online_knn_every == 0

    def measure(self, progress: features.OnProgress = stamps.stamp) -> dict[str, float]:
        """Weighted 20-NN accuracy of the backbone's features, as `knn_top1`; all workers together.

        Args:
          progress: see `features.stream`; it may end the measurement.
        """
        size, fraction = self._config.image_size, self._config.center_crop_fraction
        train, test = (
            features.extract(self._backbone, source, image_size=size, center_crop_fraction=fraction, progress=progress)
            for source in self._splits
        )
        return {"knn_top1": shared_knn_accuracy(*train, *test)["top1"]}
