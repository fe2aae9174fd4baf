"""Flags of the commands that look at a finished run, and how they answer."""

from __future__ import annotations

import json
import os

from absl import flags

from flags import command
from instcls_tf.errors import UserError
from instcls_tf.launcher import launched_rank_and_size

FLAGS = flags.FLAGS


def define() -> None:
    """The flags that all evaluations of a run on images share."""
    define_workdir()
    flags.DEFINE_string("data_dir", None, "Where TFDS keeps its datasets (TFDS datasets only).")


def define_workdir() -> None:
    """Which run."""
    flags.DEFINE_string("workdir", None, "Folder of the run.")


def define_dataset() -> None:
    """Which labelled images judge a run."""
    flags.DEFINE_string(
        "dataset", None, "Evaluate on this dataset instead of the run's own (same forms as in pretrain)."
    )
    flags.DEFINE_string(
        "test_split",
        None,
        "What accuracy is measured on; by default `test`, or `validation` of datasets whose test labels are not public"
        " (imagenet2012, i_naturalist).",
    )


def define_feature_files() -> None:
    """Features from files."""
    text = "Features of the {} images from a file of `extract` or of another tool (.npz, or a folder of .npy), in the"
    text += " place of the run's: arrays `backbone` or `projection` [N, F] and `labels` [N]."
    flags.DEFINE_string("train_features", None, text.format("training"))
    flags.DEFINE_string("test_features", None, text.format("test"))


def define_extract() -> None:
    """The flags of `extract`."""
    flags.DEFINE_string("dataset", None, "The images; by default the run's own (same forms as in pretrain).")
    flags.DEFINE_string("split", "train", "Which split of the dataset.")
    flags.DEFINE_string("output", None, "File to write, NAME.npz, or a new folder for .npy files of at most 1 GiB.")


def define_knn() -> None:
    """The flags of `knn_eval`."""
    flags.DEFINE_integer("num_neighbors", 20, "Neighbours that vote.")
    flags.DEFINE_float("knn_temperature", 0.07, "Temperature of the votes' weights, exp(cosine / temperature).")
    flags.DEFINE_string("features", "backbone", "What is compared: `backbone`, `projection`, or `pixels` (no network).")


def define_linear() -> None:
    """The flags of `linear_eval` that choose how; its recipes' are in `flags.recipes`."""
    flags.DEFINE_bool("cached", False, "Train on stored features of un-augmented images, at several learning rates.")


def define_similarity() -> None:
    """The flags of `similarity`."""
    flags.DEFINE_integer("instances", 2000, "How many instances, evenly spread over the dataset, are measured.")
    flags.DEFINE_bool("index", False, "List near-duplicates and outliers of the dataset by the run's class weights.")
    flags.DEFINE_float("threshold", 0.95, "With --index: the cosine from which two images are near-duplicates.")
    flags.DEFINE_integer("listed", 20, "With --index: how many pairs and outliers are listed.")


def define_compare() -> None:
    """The flags of `compare`."""
    flags.DEFINE_string("runs", None, "NAME=WORKDIR,NAME=WORKDIR,...: the runs to compare; the last one is pictured.")
    flags.DEFINE_string("output", None, "Folder that receives comparison.md and comparison.png.")


def feature_files() -> tuple[str, str] | None:
    """The values of --train_features and --test_features, which come together."""
    paths = FLAGS.train_features, FLAGS.test_features
    if any(paths) and not all(paths):
        missing = "test_features" if FLAGS.train_features else "train_features"
        raise UserError(f"--{missing} is missing: features come from two files or from none")
    return paths if all(paths) else None


def refuse_files_without_cached(files: tuple[str, str] | None) -> None:
    """Features from files cannot be trained on by the protocol that augments images."""
    if files and not FLAGS.cached:
        raise UserError(f"--train_features={files[0]}: needs --cached, the other protocol trains on images")


def subject():
    """The run and the labelled images that the command line names, opened."""
    from instcls_tf.evaluation.subject import open_subject

    return open_subject(required("workdir"), FLAGS.dataset, FLAGS.data_dir, FLAGS.test_split)


def named_runs() -> dict[str, str]:
    """The value of --runs as workdirs by name."""
    runs = {}
    for name, _, workdir in (part.partition("=") for part in required("runs").split(",")):
        if not name or not workdir or name in runs:
            raise UserError(f"--runs={FLAGS.runs}: must be NAME=WORKDIR,NAME=WORKDIR,... with different names")
        runs[name] = workdir
    return runs


def required(name: str) -> str:
    """The value of a flag that has no default."""
    if not FLAGS[name].value:
        raise UserError(f"--{name} is missing")
    return FLAGS[name].value


def choice(name: str, choices: tuple[str, ...]) -> str:
    """The value of a flag that names one of a few things."""
    if FLAGS[name].value not in choices:
        raise UserError(f"--{name}={FLAGS[name].value}: must be one of {', '.join(choices)}")
    return FLAGS[name].value


def answer(name: str, workdir: str, result: dict) -> None:
    """Writes `WORKDIR/<name>.json` and prints the same object on the last line of standard output; rank 0 only."""
    rank, _ = launched_rank_and_size() or (0, 1)
    if rank != 0:
        return
    path = os.path.join(workdir, f"{name}.json")
    try:
        with open(path, "w") as file:
            json.dump(result, file)
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot write {path} ({error.strerror})") from error
    command.print_result(result)
