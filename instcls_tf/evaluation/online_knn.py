"""Nearest-neighbour accuracy while a run goes on, to be logged beside its loss."""

from __future__ import annotations

import tensorflow as tf

from instcls_tf.config import PretrainConfig
from instcls_tf.evaluation import features
from instcls_tf.evaluation.knn import shared_knn_accuracy
from instcls_tf.evaluation.labelled import open_splits


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
        self._splits = open_splits(config.dataset, config.data_dir)

    def is_due(self, epoch: int) -> bool:
        """Whether to measure at the end of this epoch, counted from 0."""
        return (epoch + 1) % self._config.online_knn_every == 0

    def measure(self) -> dict[str, float]:
        """Weighted 20-NN accuracy of the backbone's features, as `knn_top1`; all workers together."""
        train, test = (
            _readable(features.extract(self._backbone, split, image_size=self._config.image_size))
            for split in self._splits
        )
        return {"knn_top1": shared_knn_accuracy(*train, *test)["top1"]}


def _readable(seen: features.Features) -> features.Features:
    """Without the images that could not be read, which have no label and no features."""
    kept = seen.labels >= 0
    return seen if kept.all() else features.Features(seen.vectors[kept], seen.labels[kept])
