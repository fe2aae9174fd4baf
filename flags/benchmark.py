"""Flags of `benchmark`, whose first word says what is measured: per subject, their definition and what they say."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from typing import Any

from absl import flags

from flags import evaluation, from_dataclass, given, paths, pretraining
from instcls_tf.benchmark.sizes import SHARE_ROWS, SYNTHETIC, ClassifierBenchmark
from instcls_tf.checks import numbers_of, require
from instcls_tf.config import CHOICES, INSTANCE, PretrainConfig
from instcls_tf.errors import UserError, shown

FLAGS = flags.FLAGS

# The whole recipe, so that presets can be given; what makes no difference to what is measured has no effect.
_STEP_FLAGS = tuple(field.name for field in dataclasses.fields(PretrainConfig) if field.name != "workdir")
_CHECKS_FLAGS = tuple(name for name in _STEP_FLAGS if name != "dataset")
_ENCODER_FLAGS = (
    "encoder",
    "width_multiplier",
    "stem",
    "mlp_head",
    "embedding_size",
    "image_size",
    "precision",
    "seed",
)
_DTYPES = ("class_weights_dtype", "class_momentum_dtype", "class_products_dtype")
_CLASSIFIER_FLAGS = ("embedding_size", "hard_negatives", "smoothing", "temperature", "class_passes", *_DTYPES)

_DESCRIPTIONS = {
    **pretraining.DESCRIPTIONS,
    "num_instances": "N, the classes of all workers together.",
    "batch_rows": "B, rows (views) of the global batch.",
    "temperature": "tau, which the cosines are divided by (Eq. 1). Below .025 each step has a pass of maxima more.",
    "bare": "Time three bare matrix products, whose logits take 4 B N / T bytes.",
    "plain": "Time plain data parallelism, each worker with all N classes.",
    "repeats": "Steps that are timed; their median counts.",
    "as_worker_of": (
        "Measure, on one process, the share of one worker of so many (T): its N / T classes against everybody's rows"
        f" (then {SHARE_ROWS} unless --batch_rows says otherwise), without the collectives. 0: the workers there are."
    ),
}


def _define_input() -> None:
    pretraining.define(only=_STEP_FLAGS)
    flags.DEFINE_float("seconds", 10.0, "About how long each of the measurements takes, after its warm-up.")
    flags.DEFINE_integer("images_per_batch", 64, "Images per batch.")
    text = "The file tf2/data_util.py of a checkout of google-research/simclr, whose views are measured as well."
    paths.define("simclr", None, text)


def _input() -> dict[str, Any]:
    config = pretraining.config_from_flags(workdir="unused")
    config.validate()
    return {
        "config": config,
        "seconds": FLAGS.seconds,
        "batch_size": FLAGS.images_per_batch,
        "simclr": FLAGS.simclr,
    }


def _define_classifier() -> None:
    from_dataclass.define(ClassifierBenchmark, _DESCRIPTIONS, choices=CHOICES)


def _classifier() -> dict[str, Any]:
    is_share = FLAGS.as_worker_of and not FLAGS["batch_rows"].present
    rows = {"batch_rows": SHARE_ROWS} if is_share else {}
    return {"settings": from_dataclass.read(ClassifierBenchmark, **rows)}


def _define_step() -> None:
    pretraining.define(only=_STEP_FLAGS)
    FLAGS.set_default("dataset", SYNTHETIC)
    FLAGS["dataset"].help = f"As in pretrain, or `{SYNTHETIC}`: random pixels, made once."
    flags.DEFINE_integer("num_instances", 50_000, "N of --dataset=synthetic, the classes of all workers together.")
    flags.DEFINE_integer("repeats", 10, "Steps of each kind that are timed; their median counts.")


def _step() -> dict[str, Any]:
    config = pretraining.config_from_flags(workdir="unused")
    require(config, "method", config.method == INSTANCE, f"{INSTANCE}, whose parts are measured")
    require(config, "batch_contrast", not config.batch_contrast, "0, NT-Xent is none of the parts that are measured")
    if config.dataset != SYNTHETIC:
        given.refuse(("num_instances",), f"left out with --dataset={shown(config.dataset)}, whose images are counted")
    return {"config": config, "num_instances": FLAGS.num_instances, "repeats": FLAGS.repeats}


def _define_encoder() -> None:
    pretraining.define(only=_ENCODER_FLAGS)
    flags.DEFINE_integer("images", 32, "Images of a worker in a step, one BN group.")
    flags.DEFINE_integer("repeats", 5, "Turns of each; a turn is five steps.")
    _define_environments()


def _encoder() -> dict[str, Any]:
    config = pretraining.config_from_flags(workdir="unused", dataset=SYNTHETIC)
    return {"config": config, **{name: FLAGS[name].value for name in ("images", "repeats", "environments")}}


def _define_hard_negatives() -> None:
    flags.DEFINE_integer("num_instances", 50_000, _DESCRIPTIONS["num_instances"])
    flags.DEFINE_integer("repeats", 3, "Searches that are timed; their median counts.")
    pretraining.define(only=("embedding_size", "hard_negatives"))


def _hard_negatives() -> dict[str, Any]:
    sizes = {name: FLAGS[name].value for name in ("num_instances", "embedding_size", "repeats")}
    return {**sizes, "k": FLAGS.hard_negatives}


def _define_checks() -> None:
    pretraining.define(only=_CHECKS_FLAGS)
    _define_num_instances(50_000)
    flags.DEFINE_integer("repeats", 30, "Blocks of steps of each kind, and checkpoints, that are timed.")
    _define_folder()


def _checks() -> dict[str, Any]:
    return {"config": pretraining.config_from_flags(workdir="unused", dataset=SYNTHETIC), **_sizes_and_folder()}


def _define_checkpoint() -> None:
    pretraining.define(only=("embedding_size",))
    _define_num_instances(1_281_167)
    flags.DEFINE_integer("repeats", 3, "How often each is timed; the median counts.")
    _define_folder()


def _checkpoint() -> dict[str, Any]:
    return {"embedding_size": FLAGS.embedding_size, **_sizes_and_folder()}


def _define_gallery() -> None:
    flags.DEFINE_integer("num_instances", 100_000, "Synthetic images.")
    text = "Where the gallery is written, in a folder that is removed afterwards."
    paths.define("folder", tempfile.gettempdir(), text)


def _gallery() -> dict[str, Any]:
    return {"num_instances": FLAGS.num_instances, "folder": FLAGS.folder}


def _define_environments() -> None:
    text = "Folder of the virtual environments of other tools, made if they are not there; without it none is run."
    paths.define("environments", None, text)


def _define_num_instances(default: int) -> None:
    flags.DEFINE_integer("num_instances", default, _DESCRIPTIONS["num_instances"])


def _define_folder(what: str = "the checkpoints") -> None:
    text = f"Where {what} are written, in a folder that is removed afterwards."
    paths.define_for_tensorflow("folder", tempfile.gettempdir(), text)


def _sizes_and_folder() -> dict[str, Any]:
    return {"num_instances": FLAGS.num_instances, "repeats": FLAGS.repeats, "folder": FLAGS.folder}


def _define_memory() -> None:
    flags.DEFINE_list(
        "memory_limit", ["1"], "Memory per worker, in GB (10^9 bytes); several, with commas, are a sweep."
    )
    flags.DEFINE_integer("workers", 2, "T: workers, started on this machine.")
    flags.DEFINE_integer("batch_rows", 1024, "B: rows of the global batch.")
    flags.DEFINE_bool("plain", True, "Find the largest N of plain data parallelism as well.")
    pretraining.define(only=("embedding_size", "class_weights_dtype", "class_momentum_dtype"))
    paths.define("output", None, "PNG file to write: memory per worker against the number of classes.")


def _memory() -> dict[str, Any]:
    names = ("workers", "batch_rows", "embedding_size", "class_weights_dtype", "class_momentum_dtype")
    return {
        "limits": numbers_of("memory_limit", ",".join(FLAGS.memory_limit), float, "a number of GB, or several"),
        "sizes": tuple(FLAGS[name].value for name in names),
        "plain": FLAGS.plain,
        "output": FLAGS.output,
    }


def _define_scaling() -> None:
    default = [str(2**power) for power in range(16, 23)]
    flags.DEFINE_list("num_instances", default, "N, the classes of all workers; several, with commas.")
    flags.DEFINE_integer("workers", 2, "T: workers, started on this machine.")
    flags.DEFINE_integer("repeats", 3, "Steps that are timed for each N; their median counts.")
    from_dataclass.define(ClassifierBenchmark, _DESCRIPTIONS, choices=CHOICES, only=("batch_rows", *_CLASSIFIER_FLAGS))
    paths.define("output", None, "PNG file to write: seconds per step and memory per worker against N.")


def _scaling() -> dict[str, Any]:
    numbers = numbers_of("num_instances", ",".join(FLAGS.num_instances), int, "whole numbers")
    settings = from_dataclass.read(ClassifierBenchmark, num_instances=numbers[0], plain=False, bare=False)
    return {"numbers": numbers, "num_workers": FLAGS.workers, "settings": settings, "output": FLAGS.output}


def _define_duplicates() -> None:
    evaluation.define_workdir()
    flags.DEFINE_string("dataset", None, "`folder:PATH`: the images among which copies are planted.")
    flags.DEFINE_integer("images", 1000, "Originals, drawn anew for each repeat.")
    flags.DEFINE_integer("copies", 10, "Planted copies of each of the five kinds.")
    flags.DEFINE_integer("repeats", 3, "Draws.")
    _define_environments()
    _define_folder("the images")


def _duplicates() -> dict[str, Any]:
    names = ("images", "copies", "repeats", "environments", "folder")
    required = {name: evaluation.required(name) for name in ("workdir", "dataset")}
    return {**required, **{name: FLAGS[name].value for name in names}}


# The first word -> what defines its flags, and what reads them.
_SUBJECTS = {
    "input": (_define_input, _input),
    "classifier": (_define_classifier, _classifier),
    "step": (_define_step, _step),
    "encoder": (_define_encoder, _encoder),
    "hard_negatives": (_define_hard_negatives, _hard_negatives),
    "checks": (_define_checks, _checks),
    "checkpoint": (_define_checkpoint, _checkpoint),
    "gallery": (_define_gallery, _gallery),
    "memory": (_define_memory, _memory),
    "scaling": (_define_scaling, _scaling),
    "duplicates": (_define_duplicates, _duplicates),
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


def subject_and_settings() -> tuple[str, dict[str, Any]]:
    """What is to be measured, and the arguments that `benchmark.commands.measure` takes for it.

    Raises:
      UserError: a setting is no number, or out of range.
    """
    _, read = _SUBJECTS[_subject]
    return _subject, read()
