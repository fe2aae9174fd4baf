"""Runs side by side: nearest-neighbour accuracy with few and with all labels, as a table and a picture."""

from __future__ import annotations

import os

import numpy as np

from instcls_tf.config import PretrainConfig, load_run
from instcls_tf.data import pipeline
from instcls_tf.data.sources import Source, open_source
from instcls_tf.evaluation import features
from instcls_tf.evaluation.commands import model_of_run
from instcls_tf.evaluation.knn import few_labels_accuracy, knn_accuracy, nearest
from instcls_tf.report import pictures

_PICTURED_QUERIES, _PICTURED_NEIGHBOURS = 6, 8


def compare_runs(runs: dict[str, str], picture: str) -> dict[str, dict[str, float]]:
    """Evaluates runs of one recipe, and raw pixels, by nearest neighbours; draws the last run.

    Args:
      runs: workdirs by the name to show; all on the dataset of the last one, which has labels and a test split.
      picture: path of the PNG file to write.

    Returns:
      Per row of the table, pixels first: `few_labels_top1` (mean over draws of 5 labels per class),
      `few_labels_std`, and `top1` (weighted 20-NN with all labels).
    """
    config = load_run(list(runs.values())[-1])
    train, test = (open_source(config.dataset, split, config.data_dir) for split in ("train", "test"))
    table, seen = {}, None
    for name, workdir in {"raw pixels": None, **runs}.items():
        model = features.pixels if workdir is None else model_of_run(workdir, "backbone")
        seen = [features.extract(model, source, image_size=config.image_size) for source in (train, test)]
        table[name] = _accuracies(*seen)
    _draw(picture, runs, config, train, test, *seen)
    return table


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
        lines.append(f"| {name} | {few} | {row['top1']:.1%} |")
    return "\n".join(lines)


def _draw(
    path: str,
    runs: dict[str, str],
    config: PretrainConfig,
    train: Source,
    test: Source,
    train_features: features.Features,
    test_features: features.Features,
) -> None:
    """Draws the loss of all runs that have one, and neighbours in the last run's features."""
    curves = {name: pictures.load_metrics(workdir) for name, workdir in runs.items()}
    curves = {name: metrics for name, metrics in curves.items() if metrics}
    _, queries = np.unique(test_features.labels, return_index=True)  # the first image of each class
    queries = queries[:: max(1, len(queries) // _PICTURED_QUERIES)][:_PICTURED_QUERIES]
    _, neighbours = nearest(train_features.vectors, test_features.vectors[queries], _PICTURED_NEIGHBOURS)
    is_same_class = train_features.labels[neighbours] == test_features.labels[queries][:, np.newaxis]
    query_images = _images(test, config.image_size, queries)
    neighbour_images = _images(train, config.image_size, neighbours.ravel()).reshape(
        *neighbours.shape, *query_images.shape[1:]
    )
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    pictures.draw_run(path, curves, config, train.num_instances, query_images, neighbour_images, is_same_class)


def _images(source: Source, image_size: int, ids: np.ndarray) -> np.ndarray:
    """Some images of a source, `[len(ids), S, S, 3]` uint8."""
    wanted, images = set(ids.tolist()), {}
    for batch, batch_ids, _ in pipeline.inference_batches(source, image_size=image_size, batch_size=256):
        for image, instance_id in zip(batch.numpy(), batch_ids.numpy().tolist()):
            if instance_id in wanted:
                images[instance_id] = image
    return np.stack([images[i] for i in ids.tolist()])
