"""Whether a run's features tell more than those of a network that has learned nothing.

Some images are seen in two random views each, as the run's recipe draws them. For each first view the most similar of
all second views is sought: it should be that of the same image. The run is too young to tell what is alike if it does
not find more of them than the untrained network of the same recipe, by a sign test over the images that only one of the
two has found (two standard deviations), and does not find nearly all of them either.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from instcls_tf.config import PretrainConfig
from instcls_tf.data import pipeline
from instcls_tf.data.source import Source
from instcls_tf.distributed import collectives
from instcls_tf.encoder.networks import make_encoder
from instcls_tf.search.neighbours import nearest_rows, unit_rows

_IMAGES, _ROWS_AT_ONCE = 256, 64
# From here on there is nothing left that an older run could find.
_NEARLY_ALL = 0.95


class Age(NamedTuple):
    """What two networks find of the other views."""

    found: float  # share of the images whose other view the run finds
    found_untrained: float  # the same of the untrained network
    images: int
    is_too_young: bool

    def sentence(self) -> str:
        """What it means, if it is."""
        return (
            f"this run is too young to tell what is alike: among {self.images} images it finds the other view of"
            f" {self.found:.0%}, an untrained network of {self.found_untrained:.0%}; near-duplicates are confirmed by"
            f" their pixels, what is `alike` and the outliers are not to be trusted"
        )


def age_of(config: PretrainConfig, source: Source, encoder: tf.keras.Model) -> Age:
    """Compares a run's backbone with an untrained one; all workers together.

    Args:
      config: the run's recipe, with its views.
      source: the images.
      encoder: of the run.
    """
    count = min(_IMAGES, source.num_instances)
    batches = pipeline.training_batches_of(config, source, last_step=1, batch_size=count, micro_batch=1, num_views=2)
    ((views, ids),) = batches
    views = _of_all_workers(views[ids != pipeline.PADDING_ID], ids[ids != pipeline.PADDING_ID])
    # Moving statistics of an untrained network say nothing: it takes those of the batch.
    networks = [(encoder.get_layer("backbone"), False), (make_encoder(config).get_layer("backbone"), True)]
    hits = [_hits(*(_features(network, views[:, view], training) for view in (0, 1))) for network, training in networks]
    return judged(*hits)


def judged(hits: np.ndarray, hits_untrained: np.ndarray) -> Age:
    """The verdict, from which images the run has found and which the untrained network: `[m]` bool each."""
    only_run = int(np.sum(hits & ~hits_untrained))
    only_untrained = int(np.sum(~hits & hits_untrained))
    is_better = only_run - only_untrained > 2 * math.sqrt(only_run + only_untrained)
    found, found_untrained = (float(np.mean(part)) if len(part) else 0.0 for part in (hits, hits_untrained))
    return Age(found, found_untrained, len(hits), not is_better and found < _NEARLY_ALL)


def _of_all_workers(views: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """All views in the order of ids, so that it does not matter how the workers have shared them out."""
    views, ids = collectives.all_gather(views, "views"), collectives.all_gather(ids, "ids")
    return tf.gather(views, tf.argsort(ids))


def _features(network: tf.keras.Model, images: tf.Tensor, training: bool) -> np.ndarray:
    """Rows of length 1 of all images; the workers share out the batches, which are the same for any number of them."""
    starts = range(0, len(images), _ROWS_AT_ONCE)[slice(*collectives.own_bounds(-(-len(images) // _ROWS_AT_ONCE)))]
    parts = [network(images[start : start + _ROWS_AT_ONCE], training=training) for start in starts]
    width = network.output_shape[-1]
    own = tf.concat([tf.zeros([0, width]), *(tf.cast(part, tf.float32) for part in parts)], axis=0)
    return unit_rows(collectives.all_gather(own, "features_of_views").numpy())


def _hits(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether the second view most similar to each first one is that of the same image."""
    return nearest_rows(second, first, 1)[1][:, 0] == np.arange(len(first)) if len(first) else np.zeros(0, bool)
