"""A run and the labelled images that judge it, opened without TensorFlow where the dataset allows it."""

from __future__ import annotations

from typing import NamedTuple

from instcls_tf.checks import require_value
from instcls_tf.config import DIET, PretrainConfig
from instcls_tf.data.decoding import reading_of
from instcls_tf.data.labelled import Splits, default_test_split, open_splits
from instcls_tf.evaluation.recipes import BACKBONE, PROJECTION
from instcls_tf.run.workdir import load_run


class Subject(NamedTuple):
    """What is evaluated on what."""

    workdir: str
    config: PretrainConfig
    dataset: str
    data_dir: str | None
    test_split: str
    splits: Splits
    train_split: str = "train"


def open_subject(
    workdir: str,
    dataset: str | None,
    data_dir: str | None,
    test_split: str | None,
    center_crop_fraction: float | None = None,
    train_split: str = "train",
) -> Subject:
    """Opens a run and labelled images.

    Args:
      workdir: the run's folder.
      dataset: evaluate on this dataset; None for the run's own.
      data_dir: TFDS's folder; None for the run's own.
      test_split: what is judged by; None for the dataset's usual one.
      center_crop_fraction: see `judged_config`.
      train_split: what is learned from.

    Raises:
      UserError: there is no run, or the dataset is not fit to judge it by.
    """
    config = judged_config(workdir, center_crop_fraction)
    dataset, data_dir = dataset or config.dataset, data_dir or config.data_dir
    test_split = test_split or default_test_split(dataset)
    splits = open_splits(dataset, data_dir, train_split, test_split, reading=reading_of(config))
    return Subject(workdir, config, dataset, data_dir, test_split, splits, train_split)


def judged_config(workdir: str, center_crop_fraction: float | None) -> PretrainConfig:
    """The recipe of a run, for a judgement by what is seen of images.

    Args:
      workdir: the run's folder.
      center_crop_fraction: in the place of the run's own; None to keep that.

    Raises:
      UserError: there is no run, or the fraction is out of range.
    """
    config = load_run(workdir)
    if center_crop_fraction is None:
        return config
    fits = 0 < center_crop_fraction <= 1
    require_value("center_crop_fraction", center_crop_fraction, fits, "above 0 and at most 1")
    return config.replace(center_crop_fraction=center_crop_fraction)


def refuse_untrained(config: PretrainConfig, kind: str) -> None:
    """Refuses features that the run's method has not trained: DIET trains the backbone alone.

    Args:
      config: the run's recipe.
      kind: of features.

    Raises:
      UserError: names --features.
    """
    if config.method == DIET:
        wanted = f"{BACKBONE}: --method={DIET} leaves the projection untrained"
        require_value("features", kind, kind != PROJECTION, wanted)
