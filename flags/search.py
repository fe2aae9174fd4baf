"""Flags of `search` and `duplicates`: what is found in images by a finished run."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from typing import Any

from absl import flags

from flags import evaluation, paths
from instcls_tf.errors import UserError
from instcls_tf.evaluation.recipes import BACKBONE, KINDS
from instcls_tf.search.settings import Settings

FLAGS = flags.FLAGS
_DEFAULTS = Settings()
# absl goes on with how the flag is repeated.
_LIST = "with commas between; a path that is there is taken whole"


def define_search() -> None:
    """The flags of `search`."""
    flags.DEFINE_multi_string(
        "query",
        [],
        f"Image files, or names of images of the dataset, {_LIST}, other names with a comma in double quotes",
    )
    flags.DEFINE_integer("k", 20, "How many images are found for each query.")
    flags.DEFINE_alias("num_neighbors", "k")
    evaluation.define_images()
    flags.DEFINE_string("features", BACKBONE, f"What is compared. One of: {', '.join(KINDS)}.")
    paths.define("index", None, "File that keeps the index: searched if it is there, written if not.")
    flags.DEFINE_multi_string(
        "add", [], f"Image files, or folders of them, that join the index (nothing is trained), {_LIST}"
    )
    paths.define("output", None, "HTML file to write: the images that were found.")


def define_duplicates() -> None:
    """The flags of `duplicates`."""
    evaluation.define_images()
    flags.DEFINE_string("against", None, "A split whose images must not be in this one: copies of them are leaks.")
    flags.DEFINE_string("against_dataset", None, "The dataset of that split; by default the same.")
    flags.DEFINE_float(
        "similarity", _DEFAULTS.similarity, "Similarity of pixels from which two images are near-duplicates, up to 1."
    )
    flags.DEFINE_float(
        "percentile",
        _DEFAULTS.percentile,
        "Percentile of the set's own nearest cosines from which two images are alike.",
    )
    flags.DEFINE_integer(
        "neighbors", _DEFAULTS.neighbors, "Neighbours of each image, by features and by hashes, that are looked at."
    )
    flags.DEFINE_alias("num_neighbors", "neighbors")
    flags.DEFINE_integer(
        "listed", _DEFAULTS.listed, "How many groups, alike pairs, leaks, contradictions and outliers the answer lists."
    )


def queries() -> list[str]:
    """The value of --query."""
    names = names_of(FLAGS.query)
    if not any(names):
        raise UserError("--query is missing: name an image file, or several with commas between")
    return names


def names_of(values: Iterable[str]) -> list[str]:
    """The files, folders or names that the values of a flag mean, whatever letters they have.

    Args:
      values: each a path that is there, or several names with commas between, as in a line of a CSV file.
    """
    names: list[str] = []
    for value in values:
        path = os.path.expanduser(value)
        names += [path] if os.path.lexists(path) else map(os.path.expanduser, _parts_of(value))
    return names


def _parts_of(value: str) -> list[str]:
    try:
        parts = next(csv.reader([value], strict=True), [])
    except csv.Error:  # a quotation mark that has no other, or a newline: letters of a name
        parts = value.split(",")
    return [part.strip() for part in parts]


def search_settings() -> dict[str, Any]:
    """What `report.search.search_with_page` takes besides run, queries and page."""
    kind = evaluation.choice("features", KINDS)
    return {
        **_images(),
        "kind": kind if FLAGS["features"].present else None,
        "index_path": FLAGS.index,
        "add": names_of(FLAGS.add),
    }


def duplicates_settings() -> dict[str, Any]:
    """What `report.duplicates.duplicates_with_page` takes besides the run."""
    settings = Settings(*(FLAGS[name].value for name in Settings._fields))
    settings.validate()
    against = None
    if FLAGS.against or FLAGS.against_dataset:
        against = FLAGS.against_dataset, FLAGS.against or "train"
    return {**_images(), "against": against, "settings": settings}


def _images() -> dict[str, Any]:
    return {
        "dataset": FLAGS.dataset,
        "split": FLAGS.split,
        "data_dir": FLAGS.data_dir,
        "center_crop_fraction": FLAGS.center_crop_fraction,
    }
