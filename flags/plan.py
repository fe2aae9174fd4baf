"""Flags of `plan`: the recipe, and what it is to run on."""

from __future__ import annotations

from absl import flags

from flags import paths, pretraining
from instcls_tf.checks import require
from instcls_tf.config import INSTANCE, PretrainConfig
from instcls_tf.plan import planner

FLAGS = flags.FLAGS


def define() -> None:
    """The flags of the recipe, and those of `plan` alone."""
    pretraining.define()
    flags.DEFINE_integer("num_instances", None, "N: images of the dataset, each a class.")
    flags.DEFINE_integer("workers", 1, "T: workers, one device each.")
    flags.DEFINE_float("memory_limit", 32.0, "Memory of a worker's device, in GB (10^9 bytes).")
    flags.DEFINE_string("device", planner.GPU, f"What a worker computes on. One of: {', '.join(planner.DEVICES)}.")
    paths.define("output", None, "PNG file to write: memory per worker against the number of classes.")


def checked_config() -> PretrainConfig:
    """The recipe that the parsed command line describes, which can be planned.

    Raises:
      UserError: a flag is missing or out of range.
    """
    planner.check(FLAGS.num_instances, FLAGS.workers, FLAGS.memory_limit, FLAGS.device)
    config = pretraining.config_from_flags()
    config = config.replace(workdir=config.workdir or "unused")
    config.validate(FLAGS.workers)
    require(config, "method", config.method == INSTANCE, f"{INSTANCE}, other methods are not planned")
    for name in ("contrast_epochs", "prior_every"):
        require(config, name, not getattr(config, name), "0, what this lever takes is not planned")
    config.validate_with_data(FLAGS.num_instances, FLAGS.workers)
    return config
