"""Flags of `prepare` and `show_views`."""

from __future__ import annotations

import dataclasses

from absl import flags

from flags import given, paths, pretraining
from instcls_tf.checks import refuse_idle
from instcls_tf.config import PretrainConfig
from instcls_tf.run.workdir import load_run

FLAGS = flags.FLAGS


def define_prepare() -> None:
    """The flags of `prepare`."""
    flags.DEFINE_string("dataset", None, "`folder:PATH`: the images to copy; PATH/{train,test,val} if there are any.")
    paths.define("output", None, "Folder that receives the shards and index.json.")
    flags.DEFINE_integer("shard_megabytes", 256, "Size at which a new shard begins, in 2^20 bytes.")
    flags.DEFINE_float(
        "max_bad_fraction",
        PretrainConfig.max_bad_fraction,
        "Write nothing when more than this fraction of the files of a split cannot be read; fewer are told, and their"
        " records are empty. A run on the records counts these by its own flag of this name.",
    )


def define_show_views(flag_values: flags.FlagValues = FLAGS) -> None:
    """The flags of `show_views`: those of the recipe, of which views depend on some, and what to draw."""
    pretraining.define(flag_values=flag_values)
    flag_values["workdir"].help = "Folder of a run: its views are drawn, with flags that are given besides."
    text = "Rows of the picture: images, spread over the dataset by --seed."
    flags.DEFINE_integer("images", 8, text, flag_values=flag_values)
    text = "Views of each image, besides the image itself."
    flags.DEFINE_integer("columns", 8, text, flag_values=flag_values)
    paths.define("output", None, "PNG file to write.", flag_values)


def view_config(flag_values: flags.FlagValues = FLAGS) -> PretrainConfig:
    """Dataset and views of a run, or as the parsed command line has them, checked.

    Raises:
      UserError: a flag is out of range, or left without any effect by another one; or there is no such run.
    """
    workdir = flag_values["workdir"].value
    if workdir:
        names = [field.name for field in dataclasses.fields(PretrainConfig) if flag_values[field.name].present]
        config = load_run(workdir).replace(**{name: flag_values[name].value for name in names})
    else:
        config = pretraining.config_from_flags(flag_values)
    config = config.replace(workdir="unused")
    config.validate(begins=not workdir)
    refuse_idle(config, given.by_user())
    return config
