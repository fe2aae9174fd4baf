"""What is checked before anything is touched or loaded; answers a user's mistake at once."""

from __future__ import annotations

from instcls_tf.config import PretrainConfig, refuse_other_recipe
from instcls_tf.data.sources import Source, open_source
from instcls_tf.launcher import launched_rank_and_size


def open_training_data(config: PretrainConfig) -> Source:
    """Checks a recipe, opens its training images and makes sure that the workdir is free or holds this very run.

    Nothing is written, and TensorFlow is imported only if TFDS has to be asked.

    Raises:
      UserError: one sentence naming the flag, its value and what is wanted.
    """
    _, num_workers = launched_rank_and_size() or (0, 1)
    config.validate(num_workers)
    source = open_source(config.dataset, split="train", data_dir=config.data_dir)
    config.validate_with_data(source.num_instances, num_workers)
    refuse_other_recipe(config)
    return source
