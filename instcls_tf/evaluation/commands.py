"""What the evaluation commands do with a finished run; every worker calls the same function."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import tensorflow as tf

from instcls_tf.checks import require_value
from instcls_tf.config import PretrainConfig
from instcls_tf.data.decoding import reading_of
from instcls_tf.data.labelled import open_fraction
from instcls_tf.data.names import names_of
from instcls_tf.data.source import notes_of
from instcls_tf.data.sources import chosen_split, open_source, open_training_source
from instcls_tf.distributed import collectives, workers
from instcls_tf.errors import UserError
from instcls_tf.evaluation import feature_store, features, finetune, linear
from instcls_tf.evaluation.features import Features
from instcls_tf.evaluation.knn import shared_knn_accuracy
from instcls_tf.evaluation.linear_cached import cached_accuracy
from instcls_tf.evaluation.recipes import (
    CHECKPOINT,
    PIXELS,
    STANDARDIZE,
    CachedRecipe,
    FinetuneRecipe,
    LinearRecipe,
)
from instcls_tf.evaluation.subject import Subject, judged_config, refuse_untrained
from instcls_tf.files import refuse_unwritable
from instcls_tf.progress import Progress
from instcls_tf.run.checkpoint import newest
from instcls_tf.run.checkpoint_choice import step_of
from instcls_tf.run.encoder import encoder_of, load_encoder


def extract_of_run(
    workdir: str,
    dataset: str | None,
    data_dir: str | None,
    split: str | None,
    output: str,
    center_crop_fraction: float | None = None,
    wanted: str | None = None,
) -> dict:
    """Features of a split of any dataset, labelled or not, written for other tools.

    Args:
      workdir: the run's folder.
      dataset: its images; None for the run's own.
      data_dir: TFDS's folder; None for the run's own.
      split: which part; None for what the run was trained on, `train` of another dataset.
      output: see `feature_store.write_output`.
      center_crop_fraction: what is seen of an image; None for the run's own.
      wanted: the format; None for what the name of `output` says.

    Raises:
      UserError: no run, no checkpoint, no such dataset, or `output` exists or cannot be written.
    """
    config = judged_config(workdir, center_crop_fraction)
    split, dataset = chosen_split(config, dataset, split), dataset or config.dataset
    if (dataset, split) == (config.dataset, chosen_split(config, None, None)):
        source = open_training_source(config, data_dir, workdir)  # with the ids of the run
    else:
        source = open_source(dataset, split, data_dir or config.data_dir, reading=reading_of(config))
    feature_store.refuse_occupied(output)
    chosen = feature_store.format_of(output, wanted)
    progress = workers.start(config.seed, notes_of(source))
    collectives.barrier()  # all have seen that nothing is there, where a file is now for a moment
    # A folder's name may end with a slash, with which no file can be tried.
    place = output.rstrip(os.sep) if chosen == feature_store.NPY else output
    workers.on_rank_0(lambda: refuse_unwritable(place))
    stored = feature_store.stored_features(
        workdir, load_encoder(workdir), source, split, progress=progress, **_seen_of_images(config)
    )
    progress.close()
    files = []
    if collectives.rank() == 0:
        files = feature_store.write_output(stored, output, names_of(source, stored.ids), chosen)
    return {
        "output": output,
        "format": chosen,
        "files": len(files),
        "dataset": dataset,
        "split": split,
        "examples": len(stored.ids),
        "unreadable": source.num_instances - len(source.changes.vanished) - len(stored.ids),
        "backbone": stored.backbone.shape[1],
        "projection": stored.projection.shape[1],
    }


def knn_of_run(
    subject: Subject | None,
    kind: str,
    *,
    k: int,
    temperature: float,
    files: tuple[str, str] | None = None,
) -> dict:
    """Weighted k-NN accuracy.

    Args:
      subject: the run and the images; not needed with `files`.
      kind: `backbone` (pooled features), `projection` (the head's output) or `pixels`.
      k: neighbours that vote.
      temperature: of the votes' weights.
      files: features of the train and the test split from files instead of a run's encoder.

    Raises:
      UserError: a setting is out of range, the run has no checkpoint, or an image has no label.
    """
    require_value("num_neighbors", k, k >= 1, "at least 1")
    require_value("knn_temperature", temperature, temperature > 0, "above 0")
    progress = workers.start(notes=notes_of(*subject.splits) if subject else ())
    step: dict[str, int] = {}
    if files:
        train, test = features_from_files(files, kind)
    elif kind == PIXELS:
        splits, settings = _given(subject).splits, _seen_of_images(_given(subject).config)
        pixels = features.pixels_of(settings["image_size"])
        train, test = (features.extract(pixels, source, **settings) for source in splits)
    else:
        encoder, step = _newest_of(_given(subject))
        train, test = _features_of(_given(subject), kind, encoder, progress)
    progress.close()
    result = shared_knn_accuracy(*train, *test, k=k, temperature=temperature)
    about = {"features": kind, "num_neighbors": k, **_about(result["examples"], subject, files)}
    return {**result, **about, **step}


def linear_of_run(subject: Subject | None, recipe: LinearRecipe) -> dict:
    """Linear evaluation by the paper's protocol.

    Raises:
      UserError: the run has no checkpoint, an image has no label, or the training diverged.
    """
    subject = _given(subject)
    refuse_untrained(subject.config, recipe.features)
    progress = workers.start(recipe.seed, notes_of(*subject.splits))
    encoder, step = _newest_of(subject)
    seen = np.zeros([1, encoder.get_layer(recipe.features).output_shape[-1]], np.float32)
    if recipe.normalize_features == STANDARDIZE:
        seen = _features_of(subject, recipe.features, encoder, progress)[0].vectors
    result = linear.linear_accuracy(
        encoder,
        subject.splits,
        recipe,
        **_seen_of_images(subject.config),
        scaling=linear.scaling_of(recipe.normalize_features, seen),
        progress=progress,
    )
    progress.close()
    about = {"protocol": "augmented", "epochs": recipe.epochs, "features": recipe.features}
    return {**result, **about, **_about(result["examples"], subject), **step}


def cached_linear_of_run(subject: Subject | None, recipe: CachedRecipe, files: tuple[str, str] | None = None) -> dict:
    """Linear evaluation on stored features; arguments and errors as for `knn_of_run` and `linear_of_run`."""
    progress = workers.start(recipe.seed, notes_of(*subject.splits) if subject else ())
    step: dict[str, int] = {}
    if files:
        train, test = features_from_files(files, recipe.features)
        num_classes = int(train.labels.max()) + 1
    else:
        subject = _given(subject)
        encoder, step = _newest_of(subject)
        train, test = _features_of(subject, recipe.features, encoder, progress)
        num_classes = subject.splits.num_classes
    result = cached_accuracy(train, test, num_classes, recipe, progress)
    progress.close()
    about = {"protocol": "cached", "epochs": recipe.epochs, "features": recipe.features}
    return {**result, **about, **_about(result["examples"], subject, files), **step}


def finetune_of_run(subject: Subject | None, recipe: FinetuneRecipe) -> dict:
    """Fine-tunes a run's encoder, or another network.

    Raises:
      UserError: there is nothing to start from, an image has no label, or the training diverged.
    """
    subject = _given(subject)
    # First: reading labels starts TensorFlow, which then takes no other device.
    progress = workers.start(recipe.seed, notes_of(*subject.splits))
    reading = reading_of(subject.config)
    train = open_fraction(subject.splits, subject.dataset, subject.data_dir, recipe.fraction, recipe.seed, reading)
    if recipe.init == CHECKPOINT:
        encoder, step = _newest_of(subject)
        backbone = encoder.get_layer("backbone")
    else:
        backbone, step = finetune.initial_backbone(recipe.init, subject.config, progress.say), {}
    settings = _seen_of_images(subject.config)
    settings["image_size"] = recipe.image_size or settings["image_size"]
    result = finetune.finetuned_accuracy(backbone, train, subject.splits, recipe, progress=progress, **settings)
    progress.close()
    about = {"metric": recipe.metric, "score": result[recipe.metric], "init": recipe.init, "fraction": recipe.fraction}
    about.update(epochs=recipe.epochs, seed=recipe.seed)
    return {**result, **about, **_about(result["examples"], subject), **step}


def backbone_of_run(workdir: str) -> tf.keras.Model:
    """From images to `backbone` features, as `features.extract` takes it."""
    return load_encoder(workdir).get_layer("backbone")


def features_from_files(files: tuple[str, str], kind: str) -> tuple[Features, Features]:
    """Features of the train and of the test split that `extract` or another tool has written.

    Raises:
      UserError: a file is not fit, or the two do not belong together.
    """
    train, test = (feature_store.load_features(path, kind) for path in files)
    widths = train.vectors.shape[1], test.vectors.shape[1]
    if widths[0] != widths[1]:
        raise UserError(f"--test_features={files[1]}: has {widths[1]} features, --train_features has {widths[0]}")
    if len(np.unique(train.labels)) < 2:
        raise UserError(f"--train_features={files[0]}: has labels of one class only, wanted two classes at least")
    unknown = sorted(set(test.labels.tolist()) - set(train.labels.tolist()))
    if unknown:
        raise UserError(f"--test_features={files[1]}: class {unknown[0]} is missing in --train_features")
    return train, test


def _features_of(subject: Subject, kind: str, encoder: tf.keras.Model, progress: Progress) -> list[Features]:
    """Stored features of the train and of the test split."""
    refuse_untrained(subject.config, kind)
    return [
        feature_store.stored_features(
            subject.workdir, encoder, source, split, progress=progress, **_seen_of_images(subject.config)
        ).of_kind(kind, subject.dataset)
        for source, split in zip(subject.splits, (subject.train_split, subject.test_split))
    ]


def _given(subject: Subject | None) -> Subject:
    if subject is None:
        raise ValueError("wanted a run and images, or files of features")
    return subject


def _seen_of_images(config: PretrainConfig) -> dict[str, Any]:
    """What a judgement shows to the encoder, as keyword arguments."""
    return {"image_size": config.image_size, "center_crop_fraction": config.center_crop_fraction}


def _newest_of(subject: Subject) -> tuple[tf.keras.Model, dict[str, int]]:
    """The encoder of a run as it is now, and its step for the answer; the run may go on meanwhile."""
    prefix = newest(subject.workdir)
    return encoder_of(subject.config, prefix), {"step": step_of(prefix)}


def _about(examples: float, subject: Subject | None, files: tuple[str, str] | None = None) -> dict:
    """What was judged, for the answer; `unreadable` counts the test images that are not among the `examples`."""
    if files:
        return {"train_features": files[0], "test_features": files[1]}
    subject = _given(subject)
    unreadable = subject.splits.test.num_instances - examples
    splits = {"train_split": subject.train_split, "test_split": subject.test_split}
    about = {"dataset": subject.dataset, **splits, "unreadable": unreadable}
    return {**about, "center_crop_fraction": subject.config.center_crop_fraction}
