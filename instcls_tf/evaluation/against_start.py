"""Did it help? A run, the weights it started from and raw pixels: the same images, the same k-NN, the same gauges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from instcls_tf.checks import require_value
from instcls_tf.config import PretrainConfig
from instcls_tf.data.decoding import reading_of
from instcls_tf.data.labelled import Splits, open_labelled, open_splits, why_unlabelled
from instcls_tf.data.sample import sample
from instcls_tf.data.source import Source, notes_of
from instcls_tf.data.sources import open_training_source
from instcls_tf.distributed import workers
from instcls_tf.errors import NoSplitError, UserError, shown
from instcls_tf.evaluation import features, paired
from instcls_tf.evaluation.features import Embedder, Features
from instcls_tf.evaluation.gauge import neighbours_among, read_gauges
from instcls_tf.evaluation.knn import shared_knn_hits
from instcls_tf.evaluation.recipes import KNN_NEIGHBORS
from instcls_tf.evaluation.subject import judged_config
from instcls_tf.evaluation.two_views import TwoViews
from instcls_tf.evaluation.unseen import fill_statistics
from instcls_tf.initial.start import load_starting_encoder
from instcls_tf.run.checkpoint import newest
from instcls_tf.run.checkpoint_choice import step_of
from instcls_tf.run.encoder import encoder_of

# Training images that are looked at, and a fifth as many test images.
IMAGES = 10_000
_TEST_PART = 5
_NAMES = ("pixels", "start", "run")
_GIVEN_WITHOUT_LABELS = (
    "left out without labels, where gauges look at 128 to 512 images (--dataset names labelled ones)"
)
# Of a run against its start.
BETTER, WORSE, LIKE = "better than its start", "worse than its start", "like its start"
TOO_FEW = "not to be told from its start by so few images"
_VERDICTS = {1: BETTER, -1: WORSE, 0: LIKE, None: TOO_FEW}
_AGAINST_PIXELS = {1: "above raw pixels", -1: "below raw pixels", 0: "like raw pixels", None: ""}


class Judgement(NamedTuple):
    """What `report` finds."""

    networks: dict[str, dict[str, float]]  # by the names above: accuracies, if there are labels, and gauges
    about: dict[str, Any]  # of the images and the run
    of_images: dict[str, np.ndarray]  # likewise: what `measure` is the mean of, hits or shares of neighbours [M]

    def result(self) -> dict[str, Any]:
        """The JSON object of the command."""
        return {**self.networks, **self.about, "verdict": self.verdict(), "against_pixels": self.against_pixels()}

    @property
    def measure(self) -> str:
        """What networks are told apart by: accuracy if there are labels."""
        return "top1" if "top1" in self.networks["run"] else "gauge_agreement"

    def verdict(self) -> str:
        """Whether the run is better than its start, by more than chance."""
        return _VERDICTS[self._compared_with("start")]

    def against_pixels(self) -> str:
        """Whether the run is above raw pixels, likewise; empty of so few images that it is not to be told."""
        return _AGAINST_PIXELS[self._compared_with("pixels")]

    def _compared_with(self, name: str) -> int | None:
        errors = paired.OF_HITS if self.measure == "top1" else paired.OF_AGREEMENTS
        return paired.compared(self.of_images["run"], self.of_images[name], errors)

    def text(self) -> str:
        """The table, for people."""
        has_labels = self.measure == "top1"
        columns = [("1-NN", "nearest_top1"), (f"{KNN_NEIGHBORS}-NN", "top1")] if has_labels else []
        columns.append(("views agree", "gauge_agreement"))
        head = [name for name, _ in columns] + ["RankMe"]
        labels = {
            "pixels": f"raw pixels ({self.about['pixel_side']} px)",
            "start": f"starting weights ({self._origin()})",
            "run": f"this run (step {self.about['step']})",
        }
        width = max(map(len, labels.values()))
        lines = [" " * width + "".join(f"  {name:>11}" for name in head)]
        for name, found in self.networks.items():
            shares = "".join(f"  {found[key]:>11.1%}" for _, key in columns)
            lines.append(f"{labels[name]:<{width}}{shares}  {found['rank_me']:>11.1f}")
        grown = ", the run it extends" if self.about["extend_from"] else ""
        lines += filter(None, [self.about["not_labels"]])
        pixels = f", and {self.against_pixels()}" if self.against_pixels() else ""
        return "\n".join([*lines, f"This run is {self.verdict()}{grown}{pixels} ({self._what()})."])

    def _origin(self) -> str:
        if self.about["extend_from"]:
            return "of the run it extends"
        return "--init" if self.about["init"] else "untrained"

    def _what(self) -> str:
        about = self.about
        if self.measure == "top1":
            of = f" of {shown(about['labelled_dataset'])}" if about["labelled_dataset"] else ""
            return f"{KNN_NEIGHBORS}-NN of {about['test_examples']} images among {about['train_examples']}{of}"
        k = neighbours_among(about["gauge_images"])
        neighbours = "nearest neighbour" if k == 1 else f"{k} nearest neighbours"
        return f"no labels: {neighbours} shared by two views of {about['gauge_images']} images"


def judge_run(
    workdir: str, data_dir: str | None = None, images: int | None = None, dataset: str | None = None
) -> Judgement:
    """Holds a run against its start and raw pixels; all workers together.

    Args:
      workdir: the run's folder.
      data_dir: TFDS's folder; None for the run's own.
      images: at most so many labelled training images, and a fifth as many test images, evenly spread over the dataset;
        None for `IMAGES`.
      dataset: labelled images that judge, in the place of the run's own; the gauges look at the run's own all the same.

    Raises:
      UserError: no run, no checkpoint, starting weights that were not kept, images that cannot be read, a `dataset`
        without labels, or `images` where nothing has labels.
    """
    require_value("images", images, images is None or images >= 10, "at least 10")
    config = judged_config(workdir, None)
    source = open_training_source(config, data_dir, workdir)
    splits, note = _splits(config, source, data_dir, dataset)
    require_value("images", images, images is None or splits is not None, _GIVEN_WITHOUT_LABELS)
    progress = workers.start(config.seed, notes_of(source, *(splits or ())))
    if note:
        progress.say(note)
    prefix = newest(workdir)  # the run may go on meanwhile
    networks = [load_starting_encoder(workdir, config), encoder_of(config, prefix)]
    for network in networks:  # a run without any step has seen as little as its start
        fill_statistics(network, config, source)
    embedder = Embedder(_side_by_side(config, [network.get_layer("backbone") for network in networks]))
    views = TwoViews(config, source).features(embedder)
    readings = [read_gauges(*both) for both in views]
    hits, examples = _hits(embedder, splits, config, images or IMAGES, progress)
    progress.close()
    accuracies = [_accuracies(of_images) for of_images in hits] or [{} for _ in _NAMES]
    found = {name: {**of_labels, **reading.figures()} for name, of_labels, reading in zip(_NAMES, accuracies, readings)}
    of_images = [of_labels[:, 0] for of_labels in hits] or [reading.shares for reading in readings]
    origin = {"init": config.init or "", "extend_from": config.extend_from or ""}
    about = {"dataset": config.dataset, "step": step_of(prefix), **origin, **examples}
    about.update(labelled_dataset=dataset or "", not_labels="" if dataset else why_unlabelled(source))
    about.update(gauge_images=len(readings[0].shares), pixel_side=min(features.PIXEL_SIDE, config.image_size))
    return Judgement(found, about, dict(zip(_NAMES, of_images)))


def _side_by_side(config: PretrainConfig, backbones: list[tf.keras.Model]) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    """Pixels and the features of some networks, of the very same images."""
    pixels = features.pixels_of(config.image_size)

    def outputs(images: tf.Tensor) -> list[tf.Tensor]:
        return [pixels(images), *(backbone(images, training=False) for backbone in backbones)]

    return outputs


def _splits(
    config: PretrainConfig, source: Source, data_dir: str | None, dataset: str | None
) -> tuple[Splits | None, str]:
    """Images that answer and others that ask: train and test, or the same for both where there is no test split.

    And what the user should know: why a test split that is there does not ask.
    """
    data_dir, reading = data_dir or config.data_dir, reading_of(config)
    if dataset is not None:
        source = open_labelled(dataset, "train", data_dir, reading)
    if source.class_names is None:
        return None, ""
    try:
        return open_splits(dataset or config.dataset, data_dir, reading=reading), ""
    except NoSplitError:
        return Splits(source, source), ""
    except UserError as error:
        return Splits(source, source), f"warning: every fifth training image asks the others: {error}"


def _hits(
    embedder: Embedder, splits: Splits | None, config: PretrainConfig, images: int, progress: Any
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """`knn_hits` of each output of a model, none without labels; and how many images were looked at."""
    if splits is None:
        return [], {"train_examples": 0, "test_examples": 0, "test_split": ""}
    train = _all_features(embedder, sample(splits.train, images), config, progress)
    if splits.test is splits.train:  # every fifth image asks the others
        asks = np.arange(len(train[0].labels)) % _TEST_PART == 0
        train, test = ([Features(part.vectors[which], part.labels[which]) for part in train] for which in (~asks, asks))
    else:
        test = _all_features(embedder, sample(splits.test, max(1, images // _TEST_PART)), config, progress)
    hits = [shared_knn_hits(*index, *queries) for index, queries in zip(train, test)]
    held_out = "every fifth training image" if splits.test is splits.train else "test"
    counts = {"train_examples": len(train[0].labels), "test_examples": len(test[0].labels)}
    return hits, {**counts, "test_split": held_out}


def _accuracies(hits: np.ndarray) -> dict[str, float]:
    top1, _, nearest_top1 = hits.mean(axis=0).tolist()
    return {"top1": top1, "nearest_top1": nearest_top1}


def _all_features(embedder: Embedder, source: Source, config: PretrainConfig, progress: Any) -> list[Features]:
    """What each output of a model sees, of the images that can be read."""
    size, fraction = config.image_size, config.center_crop_fraction
    batches = list(features.stream(embedder, source, image_size=size, center_crop_fraction=fraction, progress=progress))
    ids, labels = (np.concatenate([getattr(batch, name) for batch in batches]) for name in ("ids", "labels"))
    order = np.argsort(ids)
    outputs = [np.concatenate(part)[order] for part in zip(*(batch.outputs for batch in batches))]
    return [Features(vectors, labels[order]) for vectors in outputs]
