"""Flags of the commands that look at a finished run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from absl import flags

from flags import given, paths, recipes
from instcls_tf.checks import require_path_for_tensorflow, require_value
from instcls_tf.errors import UserError, shown
from instcls_tf.evaluation.recipes import (
    BACKBONE,
    KINDS,
    KNN_NEIGHBORS,
    KNN_TEMPERATURE,
    OUTPUT_FORMATS,
    PIXELS,
    CachedRecipe,
    FinetuneRecipe,
    LinearRecipe,
)

if TYPE_CHECKING:
    from instcls_tf.evaluation.subject import Subject

FLAGS = flags.FLAGS
KNN_FEATURES = (*KINDS, PIXELS)


def define_workdir() -> None:
    """Which run; all that `correlation` needs."""
    paths.define_for_tensorflow("workdir", None, "Folder of the run.")


def define_extract() -> None:
    """The flags of `extract`."""
    define_images()
    paths.define(
        "output",
        None,
        "File to write, NAME.npz, NAME.csv or NAME.parquet, or a new folder for .npy files of at most 1 GiB.",
    )
    flags.DEFINE_string(
        "format", None, f"How to write it; by default as --output ends. One of: {', '.join(OUTPUT_FORMATS)}."
    )


def define_images() -> None:
    """A run, and any split of any dataset."""
    define_run()
    flags.DEFINE_string("dataset", None, "The images; by default the run's own (same forms as in pretrain).")
    flags.DEFINE_string(
        "split", None, "Which split; by default what the run was trained on, `train` of another dataset."
    )
    _define_center_crop_fraction()


def define_knn() -> None:
    """The flags of `knn_eval`."""
    define_run()
    _define_labelled()
    _define_feature_files()
    flags.DEFINE_integer("num_neighbors", KNN_NEIGHBORS, "Neighbours that vote.")
    flags.DEFINE_float(
        "knn_temperature", KNN_TEMPERATURE, "Temperature of the votes' weights, exp(cosine / temperature)."
    )
    flags.DEFINE_string(
        "features",
        BACKBONE,
        f"What is compared; `{PIXELS}` need no network, and are averaged down to 32 pixels. One of:"
        f" {', '.join(KNN_FEATURES)}.",
    )


def define_linear() -> None:
    """The flags of `linear_eval`."""
    define_run()
    _define_labelled()
    _define_feature_files()
    flags.DEFINE_bool("cached", False, "Train on stored features of un-augmented images, at several learning rates.")
    recipes.define(LinearRecipe, CachedRecipe)


def define_finetune() -> None:
    """The flags of `finetune`."""
    define_run()
    _define_labelled()
    recipes.define(FinetuneRecipe)


def define_similarity() -> None:
    """The flags of `similarity`."""
    define_run()
    flags.DEFINE_integer(
        "instances", 2000, "How many instances, evenly spread over the dataset, are measured; not with --index."
    )
    flags.DEFINE_bool("index", False, "List near-duplicates and outliers of the dataset by the run's class weights.")
    flags.DEFINE_float("threshold", 0.95, "With --index: the cosine from which two images are near-duplicates.")
    flags.DEFINE_integer("listed", 20, "With --index: how many pairs and outliers are listed.")


def checked_similarity() -> flags.FlagValues:
    """The parsed command line of `similarity`.

    Raises:
      UserError: a flag is left without any effect by --index, or by its absence.
    """
    if FLAGS.index:
        given.refuse(("instances",), "left out with --index, which looks at all")
    else:
        given.refuse(("threshold", "listed"), "left out without --index")
    return FLAGS


def define_report() -> None:
    """The flags of `report`."""
    define_run()
    _define_dataset()
    flags.DEFINE_integer(
        "images",
        None,
        "At most so many labelled training images, and a fifth as many test images, spread over the dataset; by default"
        " 10,000.",
    )


def define_dynamics() -> None:
    """The flags of `dynamics`."""
    define_run()
    flags.DEFINE_integer("instances", 1000, "About how many instances are embedded, in the same views each time.")


def define_compare() -> None:
    """The flags of `compare`."""
    flags.DEFINE_string(
        "runs",
        None,
        "NAME=WORKDIR,NAME=WORKDIR,...: the runs to compare, all of one dataset, each"
        " judged as it was trained (image size, crop, reading); the last one is pictured.",
    )
    paths.define("output", None, "Folder that receives comparison.md and comparison.png.")


def define_run() -> None:
    """Which run, and where its images are if they are TFDS's."""
    define_workdir()
    paths.define("data_dir", None, "Where TFDS keeps its datasets (TFDS datasets only).")


def _define_dataset() -> None:
    flags.DEFINE_string(
        "dataset", None, "Evaluate on this dataset instead of the run's own (same forms as in pretrain)."
    )


def _define_labelled() -> None:
    _define_dataset()
    flags.DEFINE_string(
        "train_split",
        "train",
        "What is learned from; of TFDS datasets that have no test split a part of it, `train[:80%]` beside"
        " --test_split='train[80%:]'.",
    )
    flags.DEFINE_string(
        "test_split",
        None,
        "What accuracy is measured on; by default `test`, or `validation` of datasets whose test labels are not public"
        " (imagenet2012, i_naturalist).",
    )
    _define_center_crop_fraction()


def _define_center_crop_fraction() -> None:
    flags.DEFINE_float(
        "center_crop_fraction",
        None,
        "Side of the centred square that is seen of an image, as a fraction of the shorter side (0.875: resize to 256,"
        " crop 224); by default the run's.",
    )


def _define_feature_files() -> None:
    text = "Features of the {} images from a file of `extract` or of another tool (.npz, or a folder of .npy), in the"
    text += " place of the run's: arrays `backbone` or `projection` [N, F] and `labels` [N]."
    paths.define("train_features", None, text.format("training"))
    paths.define("test_features", None, text.format("test"))


def feature_files() -> tuple[str, str] | None:
    """The values of --train_features and --test_features, which come together.

    Raises:
      UserError: one of them is missing, or `linear_eval` is to train on images.
    """
    files = FLAGS.train_features, FLAGS.test_features
    if any(files) and not all(files):
        missing = "test_features" if FLAGS.train_features else "train_features"
        raise UserError(f"--{missing} is missing: features come from two files or from none")
    if all(files) and "cached" in FLAGS and not FLAGS.cached:
        raise UserError(f"--train_features={shown(files[0])}: needs --cached, the other protocol trains on images")
    for name in ("dataset", "data_dir", "train_split", "test_split", "center_crop_fraction"):
        is_given = all(files) and name in FLAGS and FLAGS[name].present
        require_value(name, FLAGS[name].value if is_given else None, not is_given, "left out with --train_features")
    return files if all(files) else None


def kept_as(name: str, files: tuple[str, str] | None, kind: str = BACKBONE) -> str:
    """The file's name of an answer: what is not of the run's network leaves alone what the command found of that.

    Args:
      name: of the command.
      files: see `feature_files`.
      kind: of features.
    """
    if files:
        return f"{name}_files"
    return f"{name}_{PIXELS}" if kind == PIXELS else name


def subject(files: tuple[str, str] | None = None) -> Subject | None:
    """The run and the labelled images that the command line names, opened; None with features from files."""
    if files:
        return None
    from instcls_tf.evaluation.subject import open_subject

    return open_subject(
        required("workdir"),
        FLAGS.dataset,
        FLAGS.data_dir,
        FLAGS.test_split,
        FLAGS.center_crop_fraction,
        FLAGS.train_split,
    )


def named_runs() -> dict[str, str]:
    """The value of --runs as workdirs by name."""
    runs = {}
    for name, _, workdir in (part.partition("=") for part in required("runs").split(",")):
        if not name or not workdir or name in runs:
            raise UserError(f"--runs={shown(FLAGS.runs)}: must be NAME=WORKDIR,NAME=WORKDIR,... with different names")
        runs[name] = os.path.expanduser(workdir)
        require_path_for_tensorflow("runs", runs[name])
    return runs


def required(name: str) -> str:
    """The value of a flag that has no default."""
    if not FLAGS[name].value:
        raise UserError(f"--{name} is missing")
    return FLAGS[name].value


def choice(name: str, choices: tuple[str, ...]) -> str:
    """The value of a flag that names one of a few things."""
    require_value(name, FLAGS[name].value, FLAGS[name].value in choices, "one of " + ", ".join(choices))
    return FLAGS[name].value
