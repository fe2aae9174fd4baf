"""Flags of `benchmark`, whose first word says what is measured."""

from __future__ import annotations

import dataclasses
import sys

from absl import flags

from flags import pretraining
from instcls_tf.benchmark.sizes import ClassifierBenchmark
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


def define_classifier() -> None:
    """The flags of `benchmark classifier`."""
    defaults = {field.name: field.default for field in dataclasses.fields(ClassifierBenchmark)}
    flags.DEFINE_integer("num_instances", defaults["num_instances"], "N, the classes of all workers together.")
    flags.DEFINE_integer("batch_rows", defaults["batch_rows"], "B, rows (views) of the global batch.")
    flags.DEFINE_bool("bare", defaults["bare"], "Time three bare matrix products, whose logits take 4 B N / T bytes.")
    flags.DEFINE_bool("plain", defaults["plain"], "Time the plain Dense layer, each worker with all N classes.")
    flags.DEFINE_integer("repeats", defaults["repeats"], "Steps that are timed; their median counts.")
    pretraining.define(only=("embedding_size", "hard_negatives", "smoothing"))


def classifier_benchmark() -> ClassifierBenchmark:
    """Sizes as the parsed command line has them."""
    fields = dataclasses.fields(ClassifierBenchmark)
    return ClassifierBenchmark(**{field.name: FLAGS[field.name].value for field in fields})


def define_hard_negatives() -> None:
    """The flags of `benchmark hard_negatives`."""
    flags.DEFINE_integer("num_instances", 50_000, "N, the classes of all workers together.")
    flags.DEFINE_integer("repeats", 3, "Searches that are timed; their median counts.")
    pretraining.define(only=("embedding_size", "hard_negatives"))


_SUBJECTS = {"input": define_input, "classifier": define_classifier, "hard_negatives": define_hard_negatives}


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
