"""Flags of `plan`: the recipe, and what it is to run on."""

from __future__ import annotations

import math

from absl import flags

from flags import given, paths, pretraining
from instcls_tf.checks import numbers_of, require, require_value
from instcls_tf.config import INSTANCE, PretrainConfig
from instcls_tf.data.source import Source
from instcls_tf.data.sources import open_training_source
from instcls_tf.distributed.launcher import refuse_several
from instcls_tf.plan import planner, rates, scaling
from instcls_tf.plan.step_model import Setting
from instcls_tf.report.answer import Answer

FLAGS = flags.FLAGS

# What is asked of the model of a step, and of the plan of a run.
_OF_SCALING = ("scaling_instances", "scaling_workers", "doctor", *rates.GivenRates._fields, *Setting._fields)
_OF_RUN = ("num_instances", "workers", "measure_seconds")


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
    text = "PNG file to write: memory per worker against the number of classes; with --scaling, seconds against T."
    paths.define("output", None, text)
    flags.DEFINE_bool("json", False, "The JSON object alone.")
    _define_scaling()


def _define_scaling() -> None:
    flags.DEFINE_bool("scaling", False, "Model seconds of a step and efficiency for several N and T instead.")
    numbers, workers = ["1281167", "14197122", "100000000"], [str(2**power) for power in range(9)]
    flags.DEFINE_list("scaling_instances", numbers, "With --scaling: N; several, with commas.")
    flags.DEFINE_list("scaling_workers", workers, "With --scaling: T; several, with commas.")
    text = "With --scaling: what `python -m scripts.doctor --json` printed into a file; other flags go before it."
    paths.define("doctor", None, text)
    text = "With --scaling: images per second that a worker encodes, all their views, forward and backward."
    flags.DEFINE_float("images_per_second", None, text)
    text = "With --scaling: 10^9 operations per second of a worker in float32 matrix products of the classifier."
    flags.DEFINE_float("gigaflops", None, text)
    text = "With --scaling: seconds of a message without content between two workers."
    flags.DEFINE_float("latency_seconds", None, text)
    text = "With --scaling: 10^9 bytes per second that a worker sends while the others send as well."
    flags.DEFINE_float("bandwidth", None, text)
    text = "With --scaling: all workers are on one machine and share its cores, whose rates the others are."
    flags.DEFINE_bool("one_machine", False, text)
    text = "With --scaling: gradients travel while the backward pass goes on."
    flags.DEFINE_bool("overlap", True, text)


def answer() -> Answer:
    """The plan, or the model of steps, that the parsed command line asks for.

    Raises:
      UserError: a flag is missing or out of range, there are no such images, or a launcher has started several workers.
    """
    refuse_several("plan", "scaling_workers" if FLAGS.scaling else "workers")
    if FLAGS.scaling:
        given.refuse(_OF_RUN, "left out with --scaling, which has flags of its own")
    else:
        given.refuse(_OF_SCALING, "left out without --scaling")
    found = _scaling() if FLAGS.scaling else _plan()
    return found._replace(text="") if FLAGS.json else found


def _plan() -> Answer:
    from instcls_tf.plan.answer import plan_run  # it may make steps, with TensorFlow

    source, flag = _source(), "num_instances" if FLAGS.num_instances is not None else ""
    if source is not None and FLAGS.num_instances is None:
        FLAGS.num_instances = source.num_instances
    planner.check(FLAGS.num_instances, FLAGS.workers, FLAGS.memory_limit, FLAGS.device)
    config = _config(FLAGS.workers)
    config.validate_with_data(FLAGS.num_instances, FLAGS.workers, flag=flag)
    if source is not None:
        least = source.num_instances
        has_all = FLAGS.num_instances >= least
        require_value("num_instances", FLAGS.num_instances, has_all, f"at least the {least} images")
    limits = (FLAGS.num_instances, FLAGS.workers, FLAGS.memory_limit)
    return plan_run(config, *limits, FLAGS.device, FLAGS.output, source, FLAGS.measure_seconds)


def _source() -> Source | None:
    """The images with which steps are timed, if they are asked for."""
    is_time = math.isfinite(FLAGS.measure_seconds) and FLAGS.measure_seconds >= 0
    require_value("measure_seconds", FLAGS.measure_seconds, is_time, "0 or more")
    return open_training_source(pretraining.config_from_flags()) if FLAGS.measure_seconds else None


def _scaling() -> Answer:
    numbers, workers = (
        numbers_of(name, ",".join(FLAGS[name].value), int, "whole numbers")
        for name in ("scaling_instances", "scaling_workers")
    )
    config = _config(1)
    told = rates.GivenRates(*(FLAGS[name].value for name in rates.GivenRates._fields))
    found = rates.rates_of(told, config, FLAGS.doctor, max(workers), FLAGS.one_machine)
    setting = Setting(FLAGS.one_machine, FLAGS.overlap)
    asked = scaling.Asked(numbers, workers, found, setting, FLAGS.memory_limit, FLAGS.device)
    return scaling.plan_scaling(config, asked, FLAGS.output)


def _config(num_workers: int) -> PretrainConfig:
    """The recipe that the parsed command line describes, which can be planned."""
    config = pretraining.config_from_flags()
    config = config.replace(workdir=config.workdir or "unused")
    config.validate(num_workers)
    require(config, "method", config.method == INSTANCE, f"{INSTANCE}, other methods are not planned")
    wanted = "left out, a run from its beginning is planned: what is taken over is not"
    require(config, "extend_from", config.extend_from is None, wanted)
    require(config, "max_steps", config.max_steps is None, "left out: the whole run is planned")
    for name in ("contrast_epochs", "prior_every"):
        require(config, name, not getattr(config, name), "0, what this lever takes is not planned")
    return config
