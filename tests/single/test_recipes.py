"""The recipes of the evaluations: limits, flags and presets."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from absl import flags as absl_flags

from flags import recipes as recipe_flags
from instcls_tf.errors import UserError
from instcls_tf.evaluation import recipes
from instcls_tf.evaluation.recipes import CachedRecipe, FinetuneRecipe, LinearRecipe

ROOT = Path(__file__).resolve().parents[2]
TRANSFER = sorted((ROOT / "flags" / "presets" / "transfer").glob("*.flags"))


def test_defaults_are_the_papers():
    recipe = LinearRecipe()
    assert (recipe.batch_size, recipe.learning_rate, recipe.momentum, recipe.epochs) == (2048, 40.0, 0.9, 100)
    for recipe in (LinearRecipe(), CachedRecipe(), FinetuneRecipe()):
        recipe.validate()


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        (LinearRecipe(epochs=0), "--epochs=0: must be at least 1"),
        (LinearRecipe(learning_rate=float("nan")), "--learning_rate=nan: must be 0 or more"),
        (LinearRecipe(momentum=1.0), "--momentum=1.0: must be 0 or more and below 1"),
        (LinearRecipe(augmentation="x"), "--augmentation=x: must be one of crop_flip, digits, none"),
        (LinearRecipe(normalize_features="x"), "--normalize_features=x: must be one of none, l2, standardize"),
        (LinearRecipe(crop_min_area=0.0), "--crop_min_area=0.0: must be above 0 and at most 1"),
        (FinetuneRecipe(crop_min_area=1.5), "--crop_min_area=1.5: must be above 0 and at most 1"),
        (LinearRecipe(weight_decay=-1.0), "--weight_decay=-1.0: must be 0 or more"),
        (CachedRecipe(features="pixels"), "--features=pixels: must be one of backbone, projection"),
        (CachedRecipe(held_out=0.0), "--held_out=0.0: must be above 0 and at most 0.5"),
        (CachedRecipe(l2=-1.0), "--l2=-1.0: must be 0 or more"),
        (FinetuneRecipe(fraction=1.1), "--fraction=1.1: must be above 0 and at most 1"),
        (FinetuneRecipe(fraction=0.0), "--fraction=0.0: must be above 0 and at most 1"),
        (FinetuneRecipe(metric="x"), "--metric=x: must be one of top1, mean_per_class"),
        (FinetuneRecipe(seed=-1), "--seed=-1: must be 0 or more and below 2147483648"),
        (FinetuneRecipe(init=""), "--init=: must be checkpoint, scratch or the folder of a SavedModel"),
        (FinetuneRecipe(image_size=0), "--image_size=0: must be at least 1"),
    ],
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else "",
)
def test_limits(recipe, sentence):
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        recipe.validate()


def test_few_labels_are_few_steps():
    """What to take instead, for all workers; 15 are a step in any case."""
    for labels, size in ((16, 8), (300, 64), (511, 64)):
        (told,) = FinetuneRecipe().warnings(labels)
        assert told == (
            f"--batch_size=256 of {labels} labels: an epoch is a single step, and there are 20 in all; take"
            f" --batch_size={size} ({labels // size} steps an epoch)"
        )
        assert not list(FinetuneRecipe(batch_size=size).warnings(labels))
    assert "take --batch_size=9 (2 steps an epoch)" in next(FinetuneRecipe().warnings(20, num_workers=9))
    assert not [*FinetuneRecipe().warnings(512), *FinetuneRecipe().warnings(15), *FinetuneRecipe().warnings(1)]


def test_random_weights_want_another_rate():
    (told,) = FinetuneRecipe(fraction=0.1, init="scratch").warnings(1000)
    assert told.startswith("--init=scratch: the encoder's learning rate of 0.001 is for trained weights")
    assert not list(FinetuneRecipe(fraction=0.1, init="scratch", encoder_learning_rate=0.1).warnings(1000))


@pytest.fixture
def values() -> absl_flags.FlagValues:
    """Flags apart from those of this process."""
    return absl_flags.FlagValues()


@pytest.mark.parametrize(
    ("kinds", "read"),
    [
        ((LinearRecipe, CachedRecipe), "linear"),
        ((LinearRecipe, CachedRecipe), "cached"),
        ((FinetuneRecipe,), "finetune"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_flags_have_the_recipes_defaults(values, kinds, read):
    recipe_flags.define(*kinds, flag_values=values)
    values(["command"])
    assert (
        getattr(recipe_flags, read)(values)
        == {"linear": LinearRecipe, "cached": CachedRecipe}.get(read, FinetuneRecipe)()
    )
    fields = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert fields == set(values)
    assert all(len(values[name].help) > 10 for name in fields)


def test_learning_rates_of_the_sweep(values):
    recipe_flags.define(CachedRecipe, flag_values=values)
    values(["command", "--relative_learning_rates=0.5,2"])
    assert recipe_flags.cached(values).relative_learning_rates == (0.5, 2.0)


@pytest.mark.parametrize("text", ["", "a", "1,,2", "0", "-1", "inf"])
def test_learning_rates_that_are_none(text):
    with pytest.raises(
        UserError, match=f"^--relative_learning_rates={text}: must be numbers above 0 with commas between$"
    ):
        recipes.parse_learning_rates(text)


@pytest.mark.parametrize("path", TRANSFER, ids=lambda path: path.stem)
def test_transfer_preset(values, path):
    import tensorflow_datasets as tfds

    recipe_flags.define(FinetuneRecipe, flag_values=values)
    absl_flags.DEFINE_string("dataset", None, "", flag_values=values)
    absl_flags.DEFINE_float("center_crop_fraction", None, "", flag_values=values)
    assert values(["finetune", f"--flagfile={path}"]) == ["finetune"]
    recipe = recipe_flags.finetune(values)
    assert recipe.fraction == 1 and values.center_crop_fraction == 0.875 and recipe.crop_min_area == 0.08
    assert recipe.encoder_learning_rate is not None and recipe.classifier_learning_rate is not None
    name, _, config = values.dataset.partition("/")
    builder = tfds.builder_cls(name)
    assert not config or config in builder.builder_configs
    header = path.read_text().split("\n--")[0]
    assert f"python -m scripts.launch -np 8 finetune --flagfile={path.relative_to(ROOT).as_posix()} " in header
    assert re.search(r"^# Hardware: +\S", header, re.MULTILINE)
    assert re.search(r"^# Paper: .*ours: +\S", header, re.MULTILINE)


def test_the_papers_transfer_datasets_have_presets():
    assert {path.stem for path in TRANSFER} == {"cifar10", "cifar100", "sun397", "dtd", "inaturalist"}
