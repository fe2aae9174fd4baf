"""The recipes of the evaluations that train a classifier: settings, defaults and limits. Plain Python, no TensorFlow.

The defaults are the paper's where it gives one; the command-line flags take theirs from these classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from instcls_tf.checks import (
    check_seed,
    numbers_of,
    require,
    require_one_of,
    require_value,
    require_zero_or_more,
    require_zero_to_below_one,
)
from instcls_tf.config import DIGIT_VIEWS, PLAIN_VIEWS

BACKBONE, PROJECTION = KINDS = ("backbone", "projection")
# What `extract` writes: one file, or a folder of files.
NPZ, NPY, CSV, PARQUET = OUTPUT_FORMATS = ("npz", "npy", "csv", "parquet")
# The images themselves, for comparison.
PIXELS = "pixels"
NOT_NORMALIZED, L2, STANDARDIZE = NORMALIZATIONS = ("none", "l2", "standardize")
CROP_FLIP = "crop_flip"
VIEWS = (CROP_FLIP, DIGIT_VIEWS, PLAIN_VIEWS)
TOP1, MEAN_PER_CLASS = METRICS = ("top1", "mean_per_class")
# What fine-tuning starts from, besides a folder.
CHECKPOINT, SCRATCH = INITS = ("checkpoint", "scratch")

# Wu et al. 2018: neighbours that vote, and the temperature of their weights.
KNN_NEIGHBORS, KNN_TEMPERATURE = 20, 0.07

# An epoch should have several steps, of no fewer images than BN needs.
_FEW_STEPS, _SMALLEST_BATCH = 4, 8

# Learning rates of semi-supervised training, (encoder, classifier), by the largest fraction of labels they are for.
_LEARNING_RATES = ((0.01, (0.001, 15.0)), (0.1, (0.001, 10.0)), (1.0, (0.01, 0.1)))


@dataclasses.dataclass(frozen=True)
class LinearRecipe:
    """A linear classifier on the frozen encoder, trained on augmented images (the paper's protocol)."""

    epochs: int = 100
    batch_size: int = 2048
    learning_rate: float = 40.0
    momentum: float = 0.9
    weight_decay: float = 0.0
    augmentation: str = CROP_FLIP
    crop_min_area: float = 0.08
    normalize_features: str = NOT_NORMALIZED
    features: str = BACKBONE
    seed: int = 0

    def validate(self) -> None:
        """Raises UserError: one sentence naming the flag, its value and what is wanted."""
        _check_training(self, rates=("learning_rate",))
        require_one_of(self, "augmentation", VIEWS)
        require_one_of(self, "normalize_features", NORMALIZATIONS)
        require_one_of(self, "features", KINDS)


@dataclasses.dataclass(frozen=True)
class CachedRecipe:
    """Logistic regression on stored features, its learning rate chosen on a held-out part of the training images."""

    epochs: int = 100
    batch_size: int = 2048
    # Relative to 1 / mean squared length of the features, so that one grid suits features of any scale.
    relative_learning_rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
    held_out: float = 0.1
    # As 1 / C of scikit-learn's LogisticRegression, whose default is 1.
    l2: float = 1.0
    momentum: float = 0.9
    normalize_features: str = NOT_NORMALIZED
    features: str = BACKBONE
    seed: int = 0

    def validate(self) -> None:
        """Raises UserError: one sentence naming the flag, its value and what is wanted."""
        _check_training(self, rates=())
        require(self, "held_out", 0 < self.held_out <= 0.5, "above 0 and at most 0.5")
        require_zero_or_more(self, "l2")
        require_one_of(self, "normalize_features", NORMALIZATIONS)
        require_one_of(self, "features", KINDS)


@dataclasses.dataclass(frozen=True)
class FinetuneRecipe:
    """Training encoder and classifier together, on some or all labels."""

    fraction: float = 1.0
    init: str = CHECKPOINT
    metric: str = TOP1
    image_size: int | None = None
    epochs: int = 20
    batch_size: int = 256
    encoder_learning_rate: float | None = None
    classifier_learning_rate: float | None = None
    momentum: float = 0.9
    weight_decay: float = 0.0
    augmentation: str = CROP_FLIP
    crop_min_area: float = LinearRecipe.crop_min_area
    seed: int = 0

    def validate(self) -> None:
        """Raises UserError: one sentence naming the flag, its value and what is wanted."""
        _check_training(self, rates=("encoder_learning_rate", "classifier_learning_rate"))
        require(self, "fraction", 0 < self.fraction <= 1, "above 0 and at most 1")
        require(self, "image_size", self.image_size is None or self.image_size >= 1, "at least 1")
        require(self, "init", bool(self.init), "checkpoint, scratch or the folder of a SavedModel")
        require_one_of(self, "metric", METRICS)
        require_one_of(self, "augmentation", VIEWS)

    @property
    def learning_rates(self) -> tuple[float, float]:
        """Of the encoder and of the classifier; by the fraction of labels (the paper's for 1 % and 10 %) if not set."""
        defaults = next(rates for most, rates in _LEARNING_RATES if self.fraction <= most)
        given = self.encoder_learning_rate, self.classifier_learning_rate
        encoder, classifier = (default if value is None else value for value, default in zip(given, defaults))
        return encoder, classifier

    def warnings(self, num_labels: int, num_workers: int = 1) -> Iterator[str]:
        """What should be looked at before the training, one sentence each.

        Args:
          num_labels: images that are learned from.
          num_workers: T, each of which needs a share of a batch.
        """
        size = max(num_workers, _SMALLEST_BATCH, 2 ** int(math.log2(max(1, num_labels / _FEW_STEPS))))
        if 2 * size <= num_labels < 2 * self.batch_size:
            yield (
                f"--batch_size={self.batch_size} of {num_labels} labels: an epoch is a single step, and there are"
                f" {self.epochs} in all; take --batch_size={size} ({num_labels // size} steps an epoch)"
            )
        if self.init == SCRATCH and self.encoder_learning_rate is None:
            yield (
                f"--init={SCRATCH}: the encoder's learning rate of {self.learning_rates[0]:g} is for trained weights,"
                f" random ones hardly move: give a larger --encoder_learning_rate"
            )


def parse_learning_rates(text: str) -> tuple[float, ...]:
    """The value of --relative_learning_rates, numbers above 0 with commas between."""
    name, wanted = "relative_learning_rates", "numbers above 0 with commas between"
    rates = numbers_of(name, text, float, wanted)
    require_value(name, text, all(math.isfinite(rate) and rate > 0 for rate in rates), wanted)
    return tuple(rates)


def _check_training(recipe: Any, rates: tuple[str, ...]) -> None:
    for name in ("epochs", "batch_size"):
        require(recipe, name, getattr(recipe, name) >= 1, "at least 1")
    require_zero_or_more(recipe, *rates)
    require_zero_to_below_one(recipe, "momentum")
    if hasattr(recipe, "crop_min_area"):
        require(recipe, "crop_min_area", 0 < recipe.crop_min_area <= 1, "above 0 and at most 1")
    if hasattr(recipe, "weight_decay"):
        require_zero_or_more(recipe, "weight_decay")
    check_seed(recipe)
