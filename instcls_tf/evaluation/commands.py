"""What the evaluation commands do with a finished run."""

from __future__ import annotations

from instcls_tf.checkpoint import load_encoder
from instcls_tf.config import load_run
from instcls_tf.data.sources import Source, open_source
from instcls_tf.errors import UserError
from instcls_tf.evaluation import features
from instcls_tf.evaluation.knn import knn_accuracy


def knn_of_run(
    workdir: str,
    dataset: str | None,
    data_dir: str | None,
    kind: str,
    *,
    k: int,
    temperature: float,
) -> dict:
    """Weighted k-NN accuracy of a run.

    Args:
      workdir: the run's folder.
      dataset: evaluate on this dataset; None for the run's own.
      data_dir: TFDS's folder; None for the run's own.
      kind: `backbone` (pooled features), `projection` (the head's output) or `pixels`.
      k: neighbours that vote.
      temperature: of the votes' weights.

    Raises:
      UserError: no run, no checkpoint, no labels, or no test split.
    """
    if k < 1:
        raise UserError(f"--num_neighbors={k}: must be at least 1")
    if not temperature > 0:
        raise UserError(f"--knn_temperature={temperature}: must be above 0")
    config = load_run(workdir)
    dataset, data_dir = dataset or config.dataset, data_dir or config.data_dir
    train, test = (_labelled(dataset, split, data_dir) for split in ("train", "test"))
    model = model_of_run(workdir, kind)
    seen = [features.extract(model, source, image_size=config.image_size) for source in (train, test)]
    result = knn_accuracy(*seen[0], *seen[1], k=k, temperature=temperature)
    return {**result, "features": kind, "num_neighbors": k, "dataset": dataset}


def model_of_run(workdir: str, kind: str):
    """From images to `backbone` features, to the `projection`, or to `pixels`, as `features.extract` takes it."""
    if kind == "pixels":
        return features.pixels
    encoder = load_encoder(workdir)
    return encoder if kind == "projection" else encoder.get_layer("backbone")


def _labelled(dataset: str, split: str, data_dir: str | None) -> Source:
    source = open_source(dataset, split, data_dir)
    if source.class_names is None:
        raise UserError(f"--dataset={dataset}: the {split} split has no labels, which nearest neighbours are judged by")
    return source
