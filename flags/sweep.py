"""Flags of `sweep`, and the flags of `pretrain` that a specification holds."""

from __future__ import annotations

from absl import flags

from flags import command, evaluation, given, paths, pretraining
from instcls_tf import flagfiles
from instcls_tf.checks import require_value
from instcls_tf.config import PretrainConfig
from instcls_tf.distributed.job import refuse_launcher
from instcls_tf.errors import UserError

FLAGS = flags.FLAGS


def define() -> None:
    """The flags of `sweep`."""
    paths.define("spec", None, "The specification, TOML (or JSON, if its name ends with .json); see docs/sweeps.md.")
    flags.DEFINE_bool("dry_run", False, "Print the trials, their flags and the hours they take; start none.")
    flags.DEFINE_bool(
        "final",
        False,
        "Run the best setting of each arm, chosen on the validation slice, with all seeds on the whole train split and"
        " judge it on the test split.",
    )
    paths.define(
        "picture",
        None,
        "PNG file to write: accuracy against minutes of the trials that are finished; starts none.",
    )


def checked() -> flags.FlagValues:
    """The parsed command line.

    Raises:
      UserError: a flag is left without any effect by another one.
    """
    if FLAGS.dry_run:
        given.refuse(("picture",), "left out with --dry_run, which draws none")
    require_value(
        "final", FLAGS.final, not (FLAGS.final and FLAGS.picture), "left out with --picture, which starts no trial"
    )
    return FLAGS


def config_of(words: list[str]) -> PretrainConfig:
    """The recipe that words of a command line of `pretrain` describe.

    Raises:
      UserError: names the flag.
    """
    values = flags.FlagValues()
    pretraining.define(flag_values=values)
    try:
        _, *stray = values(["", *flagfiles.expand(words)])
    except flags.Error as error:
        raise UserError(command.one_sentence(error, values)) from error
    if stray:
        raise UserError(f"{stray[0]!r} is not a flag: every setting is given as --name=value")
    return pretraining.config_from_flags(values)


def path_of_spec() -> str:
    """The file that says what is tried.

    Raises:
      UserError: it is not given, or a launcher has started it: each worker would start all trials, which the launcher
        kills with it.
    """
    refuse_launcher("sweep")
    return evaluation.required("spec")
