"""Flags of `benchmark`, whose first word says what is measured."""

from __future__ import annotations

import sys

from absl import flags

from flags import pretraining
from instcls_tf.config import PretrainConfig
from instcls_tf.errors import UserError

FLAGS = flags.FLAGS


_INPUT_FLAGS = (
    "dataset",
    "data_dir",
    "tfds_split",
    "image_size",
    "augmentation",
    "crop_min_area",
    "color_strength",
    "blur_probability",
    "seed",
)


def define_input() -> None:
    """The flags of `benchmark input`."""
    pretraining.define(only=_INPUT_FLAGS)
    flags.DEFINE_float("seconds", 10.0, "About how long each of the measurements takes, after its warm-up.")
    flags.DEFINE_integer("images_per_batch", 64, "Images per batch.")


def input_config() -> PretrainConfig:
    """Dataset and views as the parsed command line has them."""
    config = PretrainConfig(workdir="unused", **{name: FLAGS[name].value for name in _INPUT_FLAGS})
    config.validate()
    return config


_SUBJECTS = {"input": define_input}


def take_subject() -> None:
    """Takes the word after the command off `sys.argv` and defines that subject's flags.

    Raises:
      UserError: there is no such subject.
    """
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word in _SUBJECTS:
        del sys.argv[1]
        _SUBJECTS[word]()
    elif not word.startswith(("--help", "-h")):
        raise UserError(f"benchmark: wanted first what to measure, one of {', '.join(_SUBJECTS)}")
    flags.DEFINE_string("subject", word, "What is measured; set by the first word.")
