"""The recipes of the evaluations that train a classifier: settings, defaults and limits. Plain Python, no TensorFlow.

The defaults are the paper's where it gives one; the command-line flags take theirs from these classes.
"""

from __future__ import annotations

import dataclasses
import math

from instcls_tf.errors import UserError

KINDS = ("backbone", "projection")
NORMALIZATIONS = ("none", "l2", "standardize")
VIEWS = ("crop_flip", "digits", "none")
METRICS = ("top1", "mean_per_class")

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
    augmentation: str = "crop_flip"
    normalize_features: str = "none"
    features: str = "backbone"
    seed: int = 0

    def validate(self) -> None:
        """Raises UserError: one sentence naming the flag, its value and what is wanted."""
        _check_training(self, rates=("learning_rate",))
        _one_of(self, "augmentation", VIEWS)
        _one_of(self, "normalize_features", NORMALIZATIONS)
        _one_of(self, "features", KINDS)


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
    normalize_features: str = "none"
    features: str = "backbone"
    seed: int = 0

    def validate(self) -> None:
        """Raises UserError: one sentence naming the flag, its value and what is wanted."""
        _check_training(self, rates=())
        _require(self, "held_out", 0 < self.held_out <= 0.5, "above 0 and at most 0.5")
        _require(self, "l2", math.isfinite(self.l2) and self.l2 >= 0, "0 or more")
        _one_of(self, "normalize_features", NORMALIZATIONS)
        _one_of(self, "features", KINDS)


@dataclasses.dataclass(frozen=True)
class FinetuneRecipe:
    """Training encoder and classifier together, on some or all labels."""

    fraction: float = 1.0
    init: str = "checkpoint"
    metric: str = "top1"
    image_size: int | None = None
    epochs: int = 20
    batch_size: int = 256
    encoder_learning_rate: float | None = None
    classifier_learning_rate: float | None = None
    momentum: float = 0.9
    weight_decay: float = 0.0
    augmentation: str = "crop_flip"
    seed: int = 0

    def validate(self) -> None:
        """Raises UserError: one sentence naming the flag, its value and what is wanted."""
        _check_training(self, rates=("encoder_learning_rate", "classifier_learning_rate"))
        _require(self, "fraction", 0 < self.fraction <= 1, "above 0 and at most 1")
        _require(self, "image_size", self.image_size is None or self.image_size >= 1, "at least 1")
        _require(self, "init", bool(self.init), "checkpoint, scratch or the folder of a SavedModel")
        _one_of(self, "metric", METRICS)
        _one_of(self, "augmentation", VIEWS)

    @property
    def learning_rates(self) -> tuple[float, float]:
        """Of the encoder and of the classifier; by the fraction of labels (the paper's for 1 % and 10 %) if not set."""
        defaults = next(rates for most, rates in _LEARNING_RATES if self.fraction <= most)
        given = self.encoder_learning_rate, self.classifier_learning_rate
        return tuple(default if value is None else value for value, default in zip(given, defaults))


def parse_learning_rates(text: str) -> tuple[float, ...]:
    """The value of --relative_learning_rates, numbers above 0 with commas between."""
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        rates = ()
    if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise UserError(f"--relative_learning_rates={text}: must be numbers above 0 with commas between")
    return rates


def _check_training(recipe, rates: tuple[str, ...]) -> None:
    for name in ("epochs", "batch_size"):
        _require(recipe, name, getattr(recipe, name) >= 1, "at least 1")
    for name in rates:
        value = getattr(recipe, name)
        _require(recipe, name, value is None or (math.isfinite(value) and value >= 0), "0 or more")
    _require(recipe, "momentum", 0 <= recipe.momentum < 1, "0 or more and below 1")
    if hasattr(recipe, "weight_decay"):
        decay = recipe.weight_decay
        _require(recipe, "weight_decay", math.isfinite(decay) and decay >= 0, "0 or more")
    _require(recipe, "seed", 0 <= recipe.seed < 2**31, "0 or more and below 2147483648")


def _require(recipe, name: str, holds: bool, wanted: str) -> None:
    if not holds:
        raise UserError(f"--{name}={getattr(recipe, name)}: must be {wanted}")


def _one_of(recipe, name: str, choices: tuple[str, ...]) -> None:
    _require(recipe, name, getattr(recipe, name) in choices, "one of " + ", ".join(choices))
