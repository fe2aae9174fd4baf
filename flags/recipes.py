"""Flags of the evaluations that train a classifier: one per field of a recipe, whose defaults they take."""

from __future__ import annotations

import dataclasses

from absl import flags

from instcls_tf.evaluation import recipes

FLAGS = flags.FLAGS

_DESCRIPTIONS = {
    "epochs": "Length of the training, in epochs; the result is the last epoch's.",
    "batch_size": "Images per step, all workers together.",
    "learning_rate": "Of the linear classifier at the first step; a cosine leads it to 0.",
    "relative_learning_rates": "With --cached: learning rates to try, times the mean squared length of the features.",
    "held_out": "With --cached: the part of the training images by which the learning rate is chosen.",
    "l2": "With --cached: strength of the L2 penalty, 1 / C of scikit-learn's LogisticRegression.",
    "momentum": "Momentum factor of SGD.",
    "weight_decay": "L2 weight decay, added to the gradient of every variable that is trained.",
    "augmentation": "Training views: `crop_flip` (random resized crop and flip), `digits` (small warps), `none`.",
    "normalize_features": "What stands between encoder and classifier: `none`, `l2` (unit length) or `standardize`"
    " (mean 0, deviation 1 per feature, over the training images).",
    "features": "What the classifier sees: `backbone` or `projection`.",
    "fraction": "Part of the training labels that is used: 0.01 and 0.1 for semi-supervised learning. Class-balanced;"
    " ImageNet's is TFDS's imagenet2012_subset, others are drawn by --seed.",
    "init": "`checkpoint` (the run's encoder), `scratch` (its architecture, random weights), or the folder of a Keras"
    " SavedModel from images (0..255) to features.",
    "metric": "What is reported as `score`: `top1`, or `mean_per_class` where the dataset's convention asks for it.",
    "image_size": "Side of the images, in pixels; by default the run's.",
    "encoder_learning_rate": "Of the encoder; by default by --fraction: 0.001 up to 0.1, else 0.01.",
    "classifier_learning_rate": "Of the classifier; by default by --fraction: 15 up to 0.01, 10 up to 0.1, else 0.1.",
    "seed": "Of the classifier's weights, of the order and of the views, and of the choice of labels.",
}


def define(*kinds: type) -> None:
    """Defines the flags of one recipe, or of several that share a command: a shared name gets the first's default."""
    defined = set()
    for kind in kinds:
        for field in dataclasses.fields(kind):
            if field.name not in defined:
                defined.add(field.name)
                _define(field)


def _define(field: dataclasses.Field) -> None:
    description = _DESCRIPTIONS[field.name]
    if field.type.startswith("tuple"):
        flags.DEFINE_string(field.name, ",".join(f"{value:g}" for value in field.default), description)
        return
    kinds = {"int": flags.DEFINE_integer, "float": flags.DEFINE_float, "str": flags.DEFINE_string}
    kinds[field.type.split(" ")[0]](field.name, field.default, description)


def linear() -> recipes.LinearRecipe:
    """The recipe of `linear_eval` that the parsed command line describes."""
    return _from_flags(recipes.LinearRecipe)


def cached() -> recipes.CachedRecipe:
    """The recipe of `linear_eval --cached`."""
    return _from_flags(recipes.CachedRecipe)


def finetune() -> recipes.FinetuneRecipe:
    """The recipe of `finetune`."""
    return _from_flags(recipes.FinetuneRecipe)


def _from_flags(kind: type):
    values = {field.name: FLAGS[field.name].value for field in dataclasses.fields(kind)}
    if "relative_learning_rates" in values:
        values["relative_learning_rates"] = recipes.parse_learning_rates(values["relative_learning_rates"])
    recipe = kind(**values)
    recipe.validate()
    return recipe
