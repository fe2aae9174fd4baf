"""Flags of the evaluations that train a classifier: one per field of a recipe, whose defaults they take."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from absl import flags

from flags import from_dataclass, given
from instcls_tf.checks import require
from instcls_tf.evaluation import recipes

FLAGS = flags.FLAGS
Recipe = TypeVar("Recipe", recipes.LinearRecipe, recipes.CachedRecipe, recipes.FinetuneRecipe)

DESCRIPTIONS = {
    "epochs": "Length of the training, in epochs; the result is the last epoch's.",
    "batch_size": "Images per step, all workers together. `finetune` leaves out the rest of an epoch that fills none:"
    " few labels want a smaller one.",
    "learning_rate": "Of the linear classifier at the first step; a cosine leads it to 0. Not with --cached.",
    "relative_learning_rates": "With --cached: learning rates to try, times the mean squared length of the features.",
    "held_out": "With --cached: the part of the training images by which the learning rate is chosen.",
    "l2": "With --cached: strength of the L2 penalty, 1 / C of scikit-learn's LogisticRegression.",
    "momentum": "Momentum factor of SGD.",
    "weight_decay": "L2 weight decay, added to the gradient of every variable that is trained.",
    "augmentation": "Training views; `crop_flip` is a random resized crop and a flip, `digits` are small warps; these"
    " and `none` are of what --center_crop_fraction lets see.",
    "crop_min_area": "Smallest part of the image's area that a `crop_flip` crop covers; the largest is 1.",
    "normalize_features": "What stands between encoder and classifier: `l2` gives features unit length, `standardize`"
    " gives each mean 0 and deviation 1 over the training images.",
    "features": "What the classifier sees.",
    "fraction": "Part of the training labels that is used: 0.01 and 0.1 for semi-supervised learning. Class-balanced;"
    " ImageNet's is TFDS's imagenet2012_subset, others are drawn by --seed.",
    "init": "`checkpoint` (the run's encoder), `scratch` (its architecture, random weights), what `pretrain"
    " --init` takes for this architecture, or the folder of any Keras SavedModel from images (0..255) to features.",
    "metric": "What is reported as `score`; some datasets' convention asks for `mean_per_class`.",
    "image_size": "Side of the images, in pixels; by default the run's.",
    "encoder_learning_rate": "Of the encoder; by default by --fraction: 0.001 up to 0.1, else 0.01. That is for trained"
    " weights: those of --init=scratch hardly move, and want a larger one.",
    "classifier_learning_rate": "Of the classifier; by default by --fraction: 15 up to 0.01, 10 up to 0.1, else 0.1.",
    "seed": "Of the classifier's weights, of the order and of the views, and of the choice of labels.",
}


CHOICES = {
    "augmentation": recipes.VIEWS,
    "normalize_features": recipes.NORMALIZATIONS,
    "features": recipes.KINDS,
    "metric": recipes.METRICS,
}


def define(*kinds: type, flag_values: flags.FlagValues = FLAGS) -> None:
    """Defines the flags of one recipe, or of several that share a command: a shared name gets the first's default."""
    for kind in kinds:
        from_dataclass.define(kind, DESCRIPTIONS, choices=CHOICES, path_names=("init",), flag_values=flag_values)


def linear(flag_values: flags.FlagValues = FLAGS) -> recipes.LinearRecipe:
    """The recipe of `linear_eval` that the parsed command line describes, checked."""
    _refuse_others(recipes.CachedRecipe, recipes.LinearRecipe, "given with --cached only", flag_values)
    return _checked(from_dataclass.read(recipes.LinearRecipe, flag_values=flag_values))


def cached(flag_values: flags.FlagValues = FLAGS) -> recipes.CachedRecipe:
    """The recipe of `linear_eval --cached`, checked."""
    _refuse_others(recipes.LinearRecipe, recipes.CachedRecipe, "left out with --cached", flag_values)
    rates = recipes.parse_learning_rates(flag_values["relative_learning_rates"].value)
    return _checked(from_dataclass.read(recipes.CachedRecipe, flag_values=flag_values, relative_learning_rates=rates))


def finetune(flag_values: flags.FlagValues = FLAGS) -> recipes.FinetuneRecipe:
    """The recipe of `finetune`, checked."""
    return _checked(from_dataclass.read(recipes.FinetuneRecipe, flag_values=flag_values))


def _refuse_others(theirs: type, own: type, wanted: str, flag_values: flags.FlagValues) -> None:
    """Refuses flags of the other protocol, which would be read by none."""
    names = [field.name for field in dataclasses.fields(own)]
    others = [field.name for field in dataclasses.fields(theirs) if field.name not in names]
    given.refuse(tuple(name for name in others if name in flag_values), wanted, flag_values)


def _checked(recipe: Recipe) -> Recipe:
    recipe.validate()
    if not isinstance(recipe, recipes.CachedRecipe) and "crop_min_area" in given.by_user():
        wanted = f"left out with --augmentation={recipe.augmentation}, which cuts nothing"
        require(recipe, "crop_min_area", recipe.augmentation == recipes.CROP_FLIP, wanted)
    return recipe
