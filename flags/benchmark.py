"""Flags of `benchmark`, whose first word says what is measured."""

from __future__ import annotations

import dataclasses
import sys

from absl import flags

from flags import pretraining
from instcls_tf.benchmark.sizes import ClassifierBenchmark
from instcls_tf.config import PretrainConfig
from instcls_tf.data.sources import open_training_source
from instcls_tf.errors import UserError
from instcls_tf.launcher import launched_rank_and_size

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


_DTYPE_FLAGS = ("class_weights_dtype", "class_momentum_dtype", "class_products_dtype")
_CLASSIFIER_FLAGS = ("embedding_size", "hard_negatives", "smoothing", *_DTYPE_FLAGS)


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
    flags.DEFINE_bool("plain", defaults["plain"], "Time plain data parallelism, each worker with all N classes.")
    flags.DEFINE_integer("repeats", defaults["repeats"], "Steps that are timed; their median counts.")
    pretraining.define(only=_CLASSIFIER_FLAGS)


def classifier_benchmark() -> ClassifierBenchmark:
    """Sizes as the parsed command line has them."""
    fields = dataclasses.fields(ClassifierBenchmark)
    return ClassifierBenchmark(**{field.name: FLAGS[field.name].value for field in fields})


def define_hard_negatives() -> None:
    """The flags of `benchmark hard_negatives`."""
    flags.DEFINE_integer("num_instances", 50_000, "N, the classes of all workers together.")
    flags.DEFINE_integer("repeats", 3, "Searches that are timed; their median counts.")
    pretraining.define(only=("embedding_size", "hard_negatives"))


def define_scaling() -> None:
    """The flags of `benchmark scaling`."""
    defaults = {field.name: field.default for field in dataclasses.fields(ClassifierBenchmark)}
    flags.DEFINE_list(
        "num_instances",
        [str(2**power) for power in range(16, 23)],
        "N, the classes of all workers; several, with commas.",
    )
    flags.DEFINE_integer("workers", 2, "T: workers, started on this machine.")
    flags.DEFINE_integer("batch_rows", defaults["batch_rows"], "B, rows (views) of the global batch.")
    flags.DEFINE_integer("repeats", 3, "Steps that are timed for each N; their median counts.")
    pretraining.define(only=_CLASSIFIER_FLAGS)
    flags.DEFINE_string("output", None, "PNG file to write: seconds per step and memory per worker against N.")


# The whole recipe, so that presets can be given; what makes no difference to a step has no effect.
_STEP_FLAGS = tuple(field.name for field in dataclasses.fields(PretrainConfig) if field.name != "workdir")
_SYNTHETIC = "synthetic"


def define_step() -> None:
    """The flags of `benchmark step`: those of `pretrain`, but no workdir."""
    pretraining.define(only=_STEP_FLAGS)
    FLAGS.set_default("dataset", _SYNTHETIC)
    FLAGS["dataset"].help = "As in pretrain, or `synthetic`: random pixels, made once."
    flags.DEFINE_integer("num_instances", 50_000, "N of --dataset=synthetic, the classes of all workers together.")
    flags.DEFINE_integer("repeats", 10, "Steps of each kind that are timed; their median counts.")


def step_config() -> PretrainConfig:
    """The recipe as the parsed command line has it.

    Raises:
      UserError: a setting is out of range.
    """
    config = PretrainConfig(workdir="unused", **{name: FLAGS[name].value for name in _STEP_FLAGS})
    config.validate(_num_workers())
    for name in ("num_instances", "repeats"):
        if FLAGS[name].value < 1:
            raise UserError(f"--{name}={FLAGS[name].value}: must be at least 1")
    return config


def _num_workers() -> int:
    return (launched_rank_and_size() or (0, 1))[1]


def define_memory() -> None:
    """The flags of `benchmark memory`."""
    flags.DEFINE_list(
        "memory_limit", ["1"], "Memory per worker, in GB (10^9 bytes); several, with commas, are a sweep."
    )
    flags.DEFINE_integer("workers", 2, "T: workers, started on this machine.")
    flags.DEFINE_integer("batch_rows", 1024, "B: rows of the global batch.")
    flags.DEFINE_bool("plain", True, "Find the largest N of plain data parallelism as well.")
    pretraining.define(only=("embedding_size", "class_weights_dtype", "class_momentum_dtype"))
    flags.DEFINE_string("output", None, "PNG file to write: memory per worker against the number of classes.")


def memory_limits() -> list[float]:
    """The value of --memory_limit as numbers.

    Raises:
      UserError: it is not numbers.
    """
    try:
        return [float(part) for part in FLAGS.memory_limit]
    except ValueError as error:
        raise UserError(f"--memory_limit={','.join(FLAGS.memory_limit)}: must be a number of GB, or several") from error


def _measure_input() -> dict:
    from instcls_tf.benchmark.input import measure_input

    return measure_input(input_config(), seconds=FLAGS.seconds, batch_size=FLAGS.images_per_batch)


def _measure_memory() -> dict:
    from instcls_tf.benchmark import memory

    sizes = memory.Sizes(
        FLAGS.workers,
        FLAGS.batch_rows,
        FLAGS.embedding_size,
        FLAGS.class_weights_dtype,
        FLAGS.class_momentum_dtype,
    )
    result = memory.measure_memory(memory_limits(), sizes, plain=FLAGS.plain, output=FLAGS.output)
    print(memory.format_table(result))
    return result


def _measure_scaling() -> dict:
    from instcls_tf.benchmark import scaling

    try:
        numbers = [int(part) for part in FLAGS.num_instances]
    except ValueError as error:
        raise UserError(f"--num_instances={','.join(FLAGS.num_instances)}: must be whole numbers") from error
    settings = ClassifierBenchmark(
        batch_rows=FLAGS.batch_rows,
        repeats=FLAGS.repeats,
        plain=False,
        bare=False,
        **{name: FLAGS[name].value for name in _CLASSIFIER_FLAGS},
    )
    result = scaling.measure_scaling(numbers, FLAGS.workers, settings, FLAGS.output)
    print(scaling.format_table(result))
    return result


def _measure_classifier() -> dict:
    settings = classifier_benchmark()
    settings.validate()
    from instcls_tf.benchmark.classifier import measure_classifier

    return measure_classifier(settings)


def _measure_step() -> dict:
    config = step_config()
    source = None if config.dataset == _SYNTHETIC else open_training_source(config)
    num_instances = source.num_instances if source else FLAGS.num_instances
    config.validate_with_data(num_instances, _num_workers())
    from instcls_tf.benchmark.step import measure_step

    return measure_step(config, num_instances, FLAGS.repeats, source)


def _measure_hard_negatives() -> dict:
    from instcls_tf.benchmark.hard_negatives import measure_hard_negatives

    return measure_hard_negatives(FLAGS.num_instances, FLAGS.embedding_size, FLAGS.hard_negatives, FLAGS.repeats)


# The first word -> what defines its flags, and what measures.
_SUBJECTS = {
    "input": (define_input, _measure_input),
    "classifier": (define_classifier, _measure_classifier),
    "step": (define_step, _measure_step),
    "hard_negatives": (define_hard_negatives, _measure_hard_negatives),
    "memory": (define_memory, _measure_memory),
    "scaling": (define_scaling, _measure_scaling),
}
_subject = ""


def take_subject() -> None:
    """Takes the word after the command off `sys.argv` and defines that subject's flags.

    Raises:
      UserError: there is no such subject.
    """
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word in _SUBJECTS:
        del sys.argv[1]
        define, _ = _SUBJECTS[word]
        define()
    elif not word.startswith(("--help", "-h")):
        raise UserError(f"benchmark: wanted first what to measure, one of {', '.join(_SUBJECTS)}")
    global _subject
    _subject = word


def measure() -> dict:
    """Measures the subject with the parsed flags; may print a table first."""
    return _SUBJECTS[_subject][1]()
