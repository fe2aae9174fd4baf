"""Flags of `doctor`: the recipe whose run is to be, and how much is looked at."""

from __future__ import annotations

import dataclasses

from absl import flags

from flags import given, paths, pretraining
from instcls_tf.benchmark.sizes import SYNTHETIC
from instcls_tf.checks import refuse_idle, require, require_value
from instcls_tf.config import INSTANCE, PretrainConfig
from instcls_tf.data.folder import of_files
from instcls_tf.data.sources import open_training_source
from instcls_tf.distributed.launcher import launched_rank_and_size
from instcls_tf.doctor.examine import Asked
from instcls_tf.errors import shown

FLAGS = flags.FLAGS

_RECIPE = tuple(field.name for field in dataclasses.fields(PretrainConfig) if field.name != "workdir")


def define() -> None:
    """The flags of the recipe, and those of `doctor` alone."""
    pretraining.define(only=_RECIPE)
    FLAGS.set_default("dataset", SYNTHETIC)
    FLAGS["dataset"].help = f"As in pretrain: how fast it is decoded; or `{SYNTHETIC}`: nothing is decoded."
    paths.define_for_tensorflow("workdir", None, "Folder of the run: whether all workers share it, and how fast it is.")
    flags.DEFINE_integer("num_instances", 50_000, f"N of --dataset={SYNTHETIC}, the classes of all workers together.")
    flags.DEFINE_bool("step", True, "Measure a step of these flags. One of the paper's takes an hour or more on CPUs.")
    flags.DEFINE_bool(
        "quick", False, "This machine alone, without TensorFlow and flags of a run: a fraction of a second."
    )
    flags.DEFINE_bool("json", False, "The JSON object alone.")


def asked() -> Asked | None:
    """What is to be examined; None for --quick.

    Raises:
      UserError: a flag is out of range, or left without any effect by another one, or the images are not right.
    """
    if FLAGS.quick:
        given.refuse((*_RECIPE, "workdir", "num_instances", "step"), "left out with --quick, which looks at no run")
        return None
    _, workers = launched_rank_and_size() or (0, 1)
    config = pretraining.config_from_flags(workdir=FLAGS.workdir or "unused")
    config.validate(workers)
    refuse_idle(config, given.by_user())
    if FLAGS.step:
        require(
            config, "method", config.method == INSTANCE, f"{INSTANCE}, or --nostep: steps of others are not measured"
        )
    require_value(
        "num_instances", FLAGS.num_instances, FLAGS.num_instances >= workers, f"at least the {workers} workers"
    )
    if config.dataset != SYNTHETIC:
        given.refuse(("num_instances",), f"left out with --dataset={shown(config.dataset)}, whose images are counted")
    source = None if config.dataset == SYNTHETIC else open_training_source(config)
    if source is not None and config.cache:
        of_files(source, config.cache)
    num_instances, flag = (FLAGS.num_instances, "num_instances") if source is None else (source.num_instances, "")
    config.validate_with_data(num_instances, workers, flag=flag)
    return Asked(config, num_instances, source, FLAGS.workdir, FLAGS.step)
