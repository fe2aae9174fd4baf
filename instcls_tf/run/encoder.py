"""The trained encoder of a run."""

from __future__ import annotations

import tensorflow as tf

from instcls_tf.config import PretrainConfig
from instcls_tf.encoder.networks import make_encoder
from instcls_tf.run.checkpoint import damage_is_a_user_error, newest
from instcls_tf.run.parts import refuse_variables_not_finite
from instcls_tf.run.workdir import load_run


def load_encoder(workdir: str) -> tf.keras.Model:
    """The encoder of a run, from its newest checkpoint; an ordinary Keras model that can be fine-tuned.

    Args:
      workdir: the run's folder.

    Returns:
      A model from pixels `[b, H, W, 3]` in 0..255 to projections `[b, D]`; `.get_layer("backbone")` gives the features.

    Raises:
      UserError: the folder holds no run, no checkpoint, a damaged one, or one with values that are not finite.
    """
    return encoder_of(load_run(workdir), newest(workdir))


def encoder_of(config: PretrainConfig, prefix: str) -> tf.keras.Model:
    """The encoder of one checkpoint of a run, as `load_encoder` has it.

    Args:
      config: the run's recipe.
      prefix: the checkpoint.

    Raises:
      UserError: it is damaged, or has values that are not finite.
    """
    encoder = make_encoder(config)
    with damage_is_a_user_error(prefix):
        # The optimiser stays in the file; without this TensorFlow would list each of its variables as lost.
        status = tf.train.Checkpoint(encoder=encoder).read(prefix).expect_partial()
        status.assert_existing_objects_matched()
    refuse_variables_not_finite(encoder.variables, prefix)
    return encoder
