"""Runs side by side: nearest-neighbour accuracy with few and with all labels, as a table and a picture."""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np

from instcls_tf.config import PretrainConfig
from instcls_tf.data import pipeline
from instcls_tf.data.decoding import reading_of
from instcls_tf.data.folder import refuse_picture_among_images
from instcls_tf.data.labelled import Splits, open_splits
from instcls_tf.data.source import Source
from instcls_tf.distributed import workers
from instcls_tf.errors import UserError, naming, shown
from instcls_tf.evaluation import features
from instcls_tf.evaluation.commands import backbone_of_run
from instcls_tf.evaluation.knn import few_labels_accuracy, knn_accuracy, nearest
from instcls_tf.files import refuse_unwritable
from instcls_tf.report import pictures
from instcls_tf.report.answer import Answer, Picture
from instcls_tf.run.workdir import load_run, same_dataset

_PICTURED_QUERIES, _PICTURED_NEIGHBOURS = 6, 8


def compare_runs(runs: dict[str, str], output: str) -> Answer:
    """Evaluates runs on one dataset, and raw pixels, by nearest neighbours; the last run is to be drawn. All workers.

    Each run sees images as its own recipe says (size, crop, reading); raw pixels are those that the run which sees
    most of an image sees, averaged down. So the table does not depend on the order of the runs.

    Args:
      runs: workdirs by the name to show; all on one dataset, which has labels and a test split.
      output: folder for the picture, `comparison.png`, and for the table, `comparison.md`.

    Returns:
      Per row of the table, pixels first: `few_labels_top1` (mean over draws of 5 labels per class),
      `few_labels_std`, and `top1` (weighted 20-NN with all labels).

    Raises:
      UserError: a run is not fit to be compared, the datasets differ, or the folder cannot be written to or is part of
        the dataset.
    """
    with naming("runs"):
        configs = {name: load_run(workdir) for name, workdir in runs.items()}
    _refuse_other_datasets(configs)
    config = list(configs.values())[-1]
    workers.start(config.seed)
    refuse_picture_among_images(config.dataset, os.path.join(output, "comparison.png"), output)
    workers.on_rank_0(lambda: refuse_unwritable(os.path.join(output, "comparison.png")))
    widest = max(configs.values(), key=_how_much_is_seen)
    # Most runs read images alike, and listing them takes its time.
    splits_as = functools.cache(lambda data_dir, reading: open_splits(config.dataset, data_dir, reading=reading))
    splits = splits_as(widest.data_dir, reading_of(widest))
    table = {"raw pixels": _accuracies(*_seen(features.pixels_of(widest.image_size), widest, splits))}
    for name, workdir in runs.items():
        splits = splits_as(configs[name].data_dir, reading_of(configs[name]))
        with naming("runs"):
            model = backbone_of_run(workdir)
        seen = _seen(model, configs[name], splits)
        table[name] = _accuracies(*seen)
    picture = Picture(
        os.path.join(output, "comparison.png"), lambda path: _draw(path, runs, configs, *splits, seen[0], seen[1])
    )
    return Answer(table, format_table(table), "comparison.md", picture)


def _refuse_other_datasets(configs: dict[str, PretrainConfig]) -> None:
    (name, config), *others = configs.items()
    for other, its in others:
        if same_dataset(its.dataset) != same_dataset(config.dataset):
            raise UserError(
                f"--runs: {shown(name)} was trained on --dataset={config.dataset}, {shown(other)} on"
                f" --dataset={its.dataset}, wanted runs on one dataset"
            )


def _how_much_is_seen(config: PretrainConfig) -> tuple:
    """Of an image by a run, to be compared; runs that see as much see the same."""
    return config.center_crop_fraction, config.image_size, config.max_pixels, config.background


def _seen(model: Any, config: PretrainConfig, splits: Splits) -> list[features.Features]:
    """The train and the test split as a model sees them, of which all images have a label."""
    size, fraction = config.image_size, config.center_crop_fraction
    seen = [features.extract(model, source, image_size=size, center_crop_fraction=fraction) for source in splits]
    for part, split in zip(seen, ("train", "test")):
        if not len(part.labels) or part.labels.min() < 0:
            problem = "images without labels" if len(part.labels) else "no image that can be read"
            raise UserError(f"--dataset={config.dataset}: the {split} split has {problem}")
    return seen


def _accuracies(train: features.Features, test: features.Features) -> dict[str, float]:
    few = few_labels_accuracy(*train, *test)
    return {
        "few_labels_top1": few["mean"],
        "few_labels_std": few["std"],
        "top1": knn_accuracy(*train, *test)["top1"],
    }


def format_table(table: dict[str, dict[str, float]]) -> str:
    """The comparison as a Markdown table."""
    lines = ["| features | 1-NN, 5 labels per class | 20-NN, all labels |", "|---|---|---|"]
    for name, row in table.items():
        few = f"{row['few_labels_top1']:.1%} ± {row['few_labels_std']:.1%}"
        lines.append(f"| {shown(name)} | {few} | {row['top1']:.1%} |")
    return "\n".join(lines)


def _draw(
    path: str,
    runs: dict[str, str],
    configs: dict[str, PretrainConfig],
    train: Source,
    test: Source,
    train_features: features.Features,
    test_features: features.Features,
) -> None:
    """Draws the loss of all runs that have one, and neighbours in the last run's features."""
    # What comes before the classification is another loss.
    curves = {name: pictures.load_metrics(workdir, configs[name].contrast_epochs) for name, workdir in runs.items()}
    curves = {name: metrics for name, metrics in curves.items() if metrics}
    _, queries = np.unique(test_features.labels, return_index=True)  # the first image of each class
    queries = queries[:: max(1, len(queries) // _PICTURED_QUERIES)][:_PICTURED_QUERIES]
    _, neighbours = nearest(train_features.vectors, test_features.vectors[queries], _PICTURED_NEIGHBOURS)
    is_same_class = train_features.labels[neighbours] == test_features.labels[queries][:, np.newaxis]
    image_size = [*configs.values()][-1].image_size
    query_images = _images(test, image_size, queries, len(test_features.labels))
    neighbour_images = _images(train, image_size, neighbours.ravel(), len(train_features.labels)).reshape(
        *neighbours.shape, *query_images.shape[1:]
    )
    pictures.draw_run(path, curves, configs, train.num_instances, query_images, neighbour_images, is_same_class)


def _images(source: Source, image_size: int, rows: np.ndarray, num_rows: int) -> np.ndarray:
    """The images behind some rows of features, `[len(rows), S, S, 3]` uint8; those that cannot be read have no row."""
    most_missing = source.num_instances - num_rows
    candidates = {row + missing for row in set(rows.tolist()) for missing in range(most_missing + 1)}
    images, ids = {}, []
    for batch, batch_ids, _ in pipeline.inference_batches(source, image_size=image_size, batch_size=256):
        for image, instance_id in zip(batch.numpy(), batch_ids.numpy().tolist()):
            if instance_id != pipeline.PADDING_ID:
                ids.append(instance_id)
            if instance_id in candidates:
                images[instance_id] = image
    ids.sort()
    return np.stack([images[ids[row]] for row in rows.tolist()])
