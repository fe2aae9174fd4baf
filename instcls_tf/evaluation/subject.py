"""A run and the labelled images that judge it, opened without TensorFlow where the dataset allows it."""

from __future__ import annotations

from typing import NamedTuple

from instcls_tf.config import PretrainConfig, load_run
from instcls_tf.evaluation.labelled import Splits, default_test_split, open_splits


class Subject(NamedTuple):
    """What is evaluated on what."""

    workdir: str
    config: PretrainConfig
    dataset: str
    data_dir: str | None
    test_split: str
    splits: Splits


def open_subject(workdir: str, dataset: str | None, data_dir: str | None, test_split: str | None) -> Subject:
    """Opens a run and labelled images.

    Args:
      workdir: the run's folder.
      dataset: evaluate on this dataset; None for the run's own.
      data_dir: TFDS's folder; None for the run's own.
      test_split: what is judged by; None for the dataset's usual one.

    Raises:
      UserError: there is no run, or the dataset is not fit to judge it by.
    """
    config = load_run(workdir)
    dataset, data_dir = dataset or config.dataset, data_dir or config.data_dir
    test_split = test_split or default_test_split(dataset)
    splits = open_splits(dataset, data_dir, test_split=test_split)
    return Subject(workdir, config, dataset, data_dir, test_split, splits)
