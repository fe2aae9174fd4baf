"""Flags of `plan`: the recipe, and what it is to run on."""

from __future__ import annotations

import math

from absl import flags

from flags import paths, pretraining
from instcls_tf.checks import require, require_value
from instcls_tf.config import INSTANCE, PretrainConfig
from instcls_tf.data.source import Source
from instcls_tf.data.sources import open_training_source
from instcls_tf.plan import planner

FLAGS = flags.FLAGS


def define() -> None:
    """The flags of the recipe, and those of `plan` alone."""
    pretraining.define()
    text = "N: images of the dataset, each a class; with --measure_seconds by default as many as --dataset has."
    flags.DEFINE_integer("num_instances", None, text)
    flags.DEFINE_integer("workers", 1, "T: workers, one device each.")
    flags.DEFINE_float("memory_limit", 32.0, "Memory of a worker's device, in GB (10^9 bytes).")
    flags.DEFINE_string("device", planner.GPU, f"What a worker computes on. One of: {', '.join(planner.DEVICES)}.")
    flags.DEFINE_float(
        "measure_seconds",
        0.0,
        "About so long, and the time to compile besides, training steps of these flags on --dataset are timed on this"
        " machine, and steps of a narrower network and of smaller views: how long the run will take. 0 for no steps.",
    )
    paths.define("output", None, "PNG file to write: memory per worker against the number of classes.")


def checked_config() -> tuple[PretrainConfig, Source | None]:
    """The recipe that the parsed command line describes, which can be planned, and its images if they are asked for.

    Raises:
      UserError: a flag is missing or out of range, or there are no such images.
    """
    config, source = pretraining.config_from_flags(), None
    is_time = math.isfinite(FLAGS.measure_seconds) and FLAGS.measure_seconds >= 0
    require_value("measure_seconds", FLAGS.measure_seconds, is_time, "0 or more")
    if FLAGS.measure_seconds:
        source = open_training_source(config)
        if FLAGS.num_instances is None:
            FLAGS.num_instances = source.num_instances
    planner.check(FLAGS.num_instances, FLAGS.workers, FLAGS.memory_limit, FLAGS.device)
    config = config.replace(workdir=config.workdir or "unused")
    config.validate(FLAGS.workers)
    require(config, "method", config.method == INSTANCE, f"{INSTANCE}, other methods are not planned")
    for name in ("contrast_epochs", "prior_every"):
        require(config, name, not getattr(config, name), "0, what this lever takes is not planned")
    config.validate_with_data(FLAGS.num_instances, FLAGS.workers)
    if source is not None:
        least = source.num_instances
        require_value(
            "num_instances", FLAGS.num_instances, FLAGS.num_instances >= least, f"at least the {least} images"
        )
    return config, source
