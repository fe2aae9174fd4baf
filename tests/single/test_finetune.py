"""Fine-tuning: where it starts, at which rates, and that everything moves."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.config import PretrainConfig
from instcls_tf.data.labelled import open_fraction, open_splits
from instcls_tf.encoder import networks
from instcls_tf.errors import UserError
from instcls_tf.evaluation.finetune import finetuned_accuracy, initial_backbone
from instcls_tf.evaluation.recipes import FinetuneRecipe
from instcls_tf.export.saved_model import SAVED_MODEL
from instcls_tf.export.subject import Subject
from instcls_tf.export.writing import export
from instcls_tf.initial.start import keep_starting_weights
from instcls_tf.progress import Progress
from tests.images import write_images

QUIET = Progress(visible=False)
CONFIG = PretrainConfig(
    dataset="digits", image_size=8, encoder="resnet10", width_multiplier=0.25, stem="small", embedding_size=8
)


def finetune(recipe: FinetuneRecipe, backbone: tf.keras.Model, progress: Progress = QUIET) -> dict:
    splits = open_splits("digits")
    train = open_fraction(splits, "digits", None, recipe.fraction, recipe.seed)
    return finetuned_accuracy(
        backbone, train, splits, recipe, image_size=8, center_crop_fraction=1.0, progress=progress
    )


def test_learns_with_some_labels():
    backbone = initial_backbone("scratch", CONFIG)
    before = [variable.numpy() for variable in backbone.variables]
    recipe = FinetuneRecipe(
        fraction=0.1, epochs=20, batch_size=32, encoder_learning_rate=0.05, classifier_learning_rate=0.5,
        augmentation="none",
    )  # fmt: skip
    result = finetune(recipe, backbone)
    assert result["labels"] == 140
    assert result["top1"] > 0.5
    assert result["examples"] == 360
    assert all(np.any(variable.numpy() != value) for variable, value in zip(backbone.variables, before))


def test_rates_of_encoder_and_classifier_are_separate():
    recipe = FinetuneRecipe(
        epochs=1, batch_size=500, encoder_learning_rate=0.0, classifier_learning_rate=1.0, augmentation="none"
    )
    backbone = initial_backbone("scratch", CONFIG)
    before = [variable.numpy() for variable in backbone.trainable_variables]
    finetune(recipe, backbone)
    for variable, value in zip(backbone.trainable_variables, before):
        np.testing.assert_array_equal(variable, value)


def test_divergence_is_one_sentence(capsys):
    recipe = FinetuneRecipe(epochs=3, fraction=0.1, encoder_learning_rate=0.5, classifier_learning_rate=1e38)
    sentence = (
        r"^--encoder_learning_rate=0.5 --classifier_learning_rate=1e\+38: diverged at step \d+, wanted lower ones$"
    )
    with pytest.raises(UserError, match=sentence):
        finetune(recipe, initial_backbone("scratch", CONFIG), Progress(visible=True))
    assert "warning: --batch_size=256 of 140 labels: an epoch is a single step" in capsys.readouterr().err


def test_starts_from_an_exported_model_or_from_weights_alone(tmp_path):
    encoder = networks.make_encoder(CONFIG)
    kernel = encoder.get_layer("backbone").trainable_variables[0]
    kernel.assign_add(tf.ones_like(kernel))
    export(SAVED_MODEL, Subject(encoder, 8), str(tmp_path / "1"))
    loaded = initial_backbone(str(tmp_path / "1"), CONFIG)
    images = np.random.default_rng(0).integers(0, 256, [2, 8, 8, 3], np.uint8)
    expected = encoder.get_layer("backbone")(images, training=False)
    np.testing.assert_allclose(loaded(images, training=False), expected, atol=1e-5)
    assert loaded.output_shape == (None, 128)
    keep_starting_weights(str(tmp_path), encoder)
    notes, weights = [], str(tmp_path / "start.safetensors")
    loaded = initial_backbone(weights, CONFIG.replace(seed=1), notes.append)
    np.testing.assert_allclose(loaded(images, training=False), expected, atol=1e-5)
    assert notes == [f"--init={weights}: its projection head is taken as well"]


def test_starts_from_somebody_elses_model(tmp_path):
    inputs = tf.keras.Input([None, None, 3])
    pooled = tf.keras.layers.GlobalAveragePooling2D()(tf.keras.layers.Conv2D(5, 3)(inputs))
    tf.keras.Model(inputs, pooled).save(tmp_path / "pooled", save_format="tf")
    assert initial_backbone(str(tmp_path / "pooled"), CONFIG).output_shape == (None, 5)
    tf.keras.Model(inputs, tf.keras.layers.Conv2D(5, 3)(inputs)).save(tmp_path / "map", save_format="tf")
    with pytest.raises(UserError, match=r"wanted a model whose output is \[batch, features\], this one's is \(None,"):
        initial_backbone(str(tmp_path / "map"), CONFIG)
    with pytest.raises(
        UserError, match=r"no such file or folder, wanted checkpoint, scratch, a run, a SavedModel or weights$"
    ):
        initial_backbone(str(tmp_path / "none"), CONFIG)


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"fraction": 0.01}, (0.001, 15.0)),
        ({"fraction": 0.1}, (0.001, 10.0)),
        ({}, (0.01, 0.1)),
        ({"fraction": 0.01, "classifier_learning_rate": 0.0}, (0.001, 0.0)),
        ({"encoder_learning_rate": 2.0}, (2.0, 0.1)),
    ],
)
def test_learning_rates_follow_the_fraction_of_labels(settings, rates):
    assert FinetuneRecipe(**settings).learning_rates == rates


def test_images_that_cannot_be_read_are_left_out(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path, [f"{split}/{label}/{index}.jpg" for label in "ab" for index in range(3)])
        (tmp_path / split / "a" / "1.jpg").write_bytes(b"")
    splits = open_splits(f"folder:{tmp_path}")
    recipe = FinetuneRecipe(epochs=1, batch_size=2, encoder_learning_rate=0.01, classifier_learning_rate=0.1)
    backbone = initial_backbone("scratch", CONFIG)
    result = finetuned_accuracy(
        backbone, splits.train, splits, recipe, image_size=8, center_crop_fraction=1.0, progress=QUIET
    )
    assert result["examples"] == 5
    assert np.isfinite(result["loss"])
