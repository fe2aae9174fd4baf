"""The detector: where it taps an encoder, what it is asked to say, and how that is read."""

from __future__ import annotations

import keras_cv
import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.detection.finetune import WarmupSteps
from instcls_tf.detection.model import build_detector, detection_losses, find_objects
from instcls_tf.distributed.workers import fix_seeds
from instcls_tf.encoder import networks
from instcls_tf.errors import UserError

SIZE = 64


def encoder_of(name: str, stem: str) -> tf.keras.Model:
    # Narrower ones corrupt the heap in the backward pass: oneDNN's convolutions of TensorFlow 2.15, at 64 pixels.
    return networks.build_encoder(encoder=name, width_multiplier=1 / 4, stem=stem, embedding_size=8)


@pytest.fixture(scope="module")
def detector():
    fix_seeds(0)
    return build_detector(encoder_of("resnet18", "small"), 3, image_size=SIZE, pyramid_channels=16)


@pytest.mark.parametrize(
    ("name", "stem", "ends", "strides"),
    [
        ("resnet50", "imagenet", ["layer2_3_out", "layer3_5_out", "layer4_2_out"], [8, 16, 32, 64, 128]),
        ("resnet18", "small", ["layer2_1_out", "layer3_1_out", "layer4_1_out"], [2, 4, 8, 16, 32]),
    ],
)
def test_it_stands_on_the_last_three_stages_of_the_encoder(name, stem, ends, strides):
    encoder = encoder_of(name, stem)
    detector = build_detector(encoder, 3, image_size=SIZE, pyramid_channels=16)
    assert list(detector.backbone.pyramid_level_inputs.values()) == ends
    assert [level.stride for level in detector.anchor_generator.anchor_generators.values()] == strides
    shared = {variable.ref() for variable in encoder.get_layer("backbone").trainable_variables}
    assert shared < {variable.ref() for variable in detector.trainable_variables}
    # One prediction per anchor, on maps of every level; also where 64 / 128 leaves less than a cell.
    cells = sum((-(-SIZE // stride)) ** 2 for stride in strides)
    outputs = detector(np.zeros([2, SIZE, SIZE, 3], np.uint8))
    assert outputs["box"].shape == (2, 9 * cells, 4) and outputs["classification"].shape == (2, 9 * cells, 3)
    anchors = np.concatenate(
        [level.numpy() for level in detector.anchor_generator(image_shape=(SIZE, SIZE, 3)).values()]
    )
    assert anchors.shape == (9 * cells, 4)
    widths = anchors[:, 2] - anchors[:, 0]
    assert np.abs(widths - SIZE / 16).min() < 1e-4 and widths.max() == SIZE


def test_an_image_size_that_the_strides_do_not_divide():
    with pytest.raises(UserError) as error:
        build_detector(encoder_of("resnet18", "imagenet"), 3, image_size=80, pyramid_channels=16)
    assert str(error.value) == "--image_size=80: must be a multiple of 32, the encoder's largest stride"


BOXES = np.array([[[4, 8, 20, 22], [30, 30, 62, 64], [-1, -1, -1, -1]]], np.float32)
LABELS = np.array([[2, 0, -1]], np.int32)


def test_what_it_is_asked_to_say_decodes_to_the_objects(detector, monkeypatch):
    wanted, classes = detector.label_encoder(
        tf.zeros([1, SIZE, SIZE, 3]), {"boxes": tf.constant(BOXES), "classes": tf.constant(LABELS, tf.float32)}
    )
    logits = 20 * tf.one_hot(tf.cast(classes, tf.int32), 3) - 10
    monkeypatch.setattr(
        keras_cv.models.RetinaNet, "__call__", lambda *_, **__: {"box": wanted, "classification": logits}
    )
    rows = find_objects(detector, tf.zeros([1, SIZE, SIZE, 3]))[0].numpy()
    rows = rows[rows[:, 4] > 0.5]
    rows = rows[np.argsort(-rows[:, 5])]
    np.testing.assert_allclose(rows[:, :4] * SIZE, BOXES[0, :2], atol=1e-3)
    assert rows[:, 5].tolist() == [2, 0]


def test_losses_are_sums_over_objects_and_the_rest(detector):
    images = np.random.default_rng(0).integers(0, 255, [1, SIZE, SIZE, 3], np.uint8)
    losses = detection_losses(detector, images, tf.constant(BOXES), tf.constant(LABELS))
    assert losses.positives > 5 and losses.classification > 0 and losses.box > 0
    # The focal loss starts small: all scores are about 0.01.
    assert losses.classification / losses.positives < 3


def test_an_image_without_objects_is_all_background(detector):
    @tf.function
    def losses_and_gradients():
        with tf.GradientTape() as tape:
            nothing = -tf.ones([1, 3, 4]), -tf.ones([1, 3], tf.int32)
            losses = detection_losses(detector, tf.zeros([1, SIZE, SIZE, 3]), *nothing)
            total = losses.classification + losses.box
        return losses, tape.gradient(total, detector.trainable_variables)

    losses, gradients = losses_and_gradients()
    assert losses.positives == 0 and losses.box == 0 and 0 < losses.classification < 50
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_the_schedule_of_the_published_fine_tunes():
    rate = WarmupSteps(0.02, 100, 24_000)
    assert float(rate(0)) == pytest.approx(0.02 / 101) and float(rate(100)) == pytest.approx(0.02)
    steps = {17_999: 0.02, 18_000: 0.002, 21_999: 0.002, 22_000: 0.0002}
    assert {step: round(float(rate(step)), 6) for step in steps} == steps
    assert float(WarmupSteps(0.02, 100, 200)(20)) == pytest.approx(0.02)  # a tenth of a short run
    schedules = tf.keras.optimizers.schedules
    for again in (WarmupSteps.from_config(rate.get_config()), schedules.deserialize(schedules.serialize(rate))):
        assert [float(again(step)) for step in steps] == [float(rate(step)) for step in steps]
