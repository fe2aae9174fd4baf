"""The detector: keras-cv's RetinaNet on a run's encoder.

RetinaNet (Lin et al., arXiv:1708.02002) rather than Faster R-CNN, which the published VOC tables use: it is the one of
keras-cv 0.9's detectors that trains on Keras 2 (the train step of the legacy Faster R-CNN fails there; YOLOv8 wants its
own CSP backbone). From keras-cv come the assembly, the anchors, the matching of anchors with objects,
the loss of boxes and the decoding with per-class suppression. Pyramid and heads are those of the paper, but written
here for three reasons: keras-cv fixes them to 256 channels, which is most of the work on small images; it draws the
last layer orthogonally, where the paper draws it from N(0, 0.01) so that all scores start at 0.01; and group
normalisation lets them learn from scratch in a short schedule (Wu & He, arXiv:1803.08494).

Images are squeezed to a square, as in SSD: nothing is padded, and no pixel of a small budget is wasted.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from typing import NamedTuple

import tensorflow as tf

from instcls_tf.detection.config import NORM_GROUPS
from instcls_tf.errors import UserError

with contextlib.redirect_stdout(io.StringIO()):  # it announces its backend on standard output
    import keras_cv

MAX_DETECTIONS = 100
_LEVELS = 5  # P3 to P7
_HEAD_LAYERS = 3
_ANCHORS_PER_CELL = 9
# Low enough that the whole precision-recall curve is seen; below the 0.01 at which all scores start.
_LOWEST_SCORE = 0.001
_PRIOR_PROBABILITY = 0.01


class Losses(NamedTuple):
    """Sums over the anchors of a batch, and the number of anchors that belong to an object; float32 scalars."""

    classification: tf.Tensor
    box: tf.Tensor
    positives: tf.Tensor


def build_detector(
    encoder: tf.keras.Model, num_classes: int, *, image_size: int, pyramid_channels: int
) -> keras_cv.models.RetinaNet:
    """RetinaNet on the last three stages (C3 to C5) of an encoder, whose weights it shares.

    Args:
      encoder: a model of `networks.build_encoder`; its projection head is not used.
      num_classes: classes of objects, C.
      image_size: side of the square images, S pixels. Anchors grow with it: the smallest are S / 16 wide, RetinaNet's
        32 pixels at 512.
      pyramid_channels: channels of the pyramid and the heads (RetinaNet: 256).

    Returns:
      A model from pixels `[b, S, S, 3]` in 0..255 to `{"box": [b, A, 4], "classification": [b, A, C]}`: offsets from
      the A anchors, and logits.

    Raises:
      UserError: the image size is no multiple of the encoder's largest stride.
    """
    backbone = _backbone(encoder.get_layer("backbone"))
    levels = backbone.pyramid_level_inputs.values()
    stages = [backbone.get_layer(name).output for name in levels]
    sides = tf.keras.Model(backbone.input, stages).compute_output_shape([1, 256, 256, 3])
    strides = [256 // shape[1] for shape in sides]
    if image_size % strides[-1]:
        raise UserError(f"--image_size={image_size}: must be a multiple of {strides[-1]}, the encoder's largest stride")
    anchors = keras_cv.layers.AnchorGenerator(
        "xyxy",
        sizes=[image_size / 16 * 2.0**level for level in range(_LEVELS)],
        scales=[2 ** (third / 3) for third in range(3)],
        aspect_ratios=[0.5, 1.0, 2.0],
        strides=strides + [2 * strides[-1], 4 * strides[-1]],
        clip_boxes=True,
    )
    suppression = keras_cv.layers.MultiClassNonMaxSuppression(
        "xyxy",
        from_logits=True,
        iou_threshold=0.5,
        confidence_threshold=_LOWEST_SCORE,
        max_detections=MAX_DETECTIONS,
        max_detections_per_class=MAX_DETECTIONS,
    )
    channels = [stage.shape[-1] for stage in stages]
    log_odds = math.log(_PRIOR_PROBABILITY / (1 - _PRIOR_PROBABILITY))
    return keras_cv.models.RetinaNet(
        backbone,
        num_classes,
        "xyxy",
        anchor_generator=anchors,
        prediction_decoder=suppression,
        feature_pyramid=_feature_pyramid(channels, pyramid_channels),
        classification_head=_head("classification_head", pyramid_channels, num_classes, log_odds),
        box_head=_head("box_head", pyramid_channels, 4, 0.0),
    )


def detection_losses(
    detector: keras_cv.models.RetinaNet, images: tf.Tensor, boxes: tf.Tensor, labels: tf.Tensor
) -> Losses:
    """The focal loss of all anchors and the smooth L1 loss of those that belong to an object, summed, in training mode.

    Args:
      detector: of `build_detector`.
      images: `[b, S, S, 3]`.
      boxes: float32 `[b, M, 4]`, x0, y0, x1, y1 in pixels of the images; rows of -1 are padding.
      labels: int32 `[b, M]`, -1 for padding.
    """
    wanted_boxes, wanted = detector.label_encoder(images, {"boxes": boxes, "classes": tf.cast(labels, tf.float32)})
    predicted = detector(images, training=True)
    is_object, is_used = wanted > -1.0, wanted > -2.0  # [b, A]; -1 is background, -2 neither
    one_hot = tf.one_hot(tf.cast(wanted, tf.int32), detector.num_classes)  # [b, A, C]; zeros for background
    # keras-cv's FocalLoss computes in float64 on Keras 2, and clips probabilities where this one keeps to logits.
    focal = tf.keras.backend.binary_focal_crossentropy(
        one_hot, predicted["classification"], apply_class_balancing=True, alpha=0.25, gamma=2.0, from_logits=True
    )  # [b, A, C]
    smooth_l1 = keras_cv.losses.SmoothL1Loss(l1_cutoff=1.0, reduction="none")(wanted_boxes, predicted["box"])
    return Losses(
        tf.reduce_sum(tf.where(is_used[..., None], focal, 0.0)),
        tf.reduce_sum(tf.where(is_object, smooth_l1, 0.0)),
        tf.reduce_sum(tf.cast(is_object, tf.float32)),
    )


def find_objects(detector: keras_cv.models.RetinaNet, images: tf.Tensor) -> tf.Tensor:
    """The best `MAX_DETECTIONS` detections per image, in inference mode.

    Args:
      detector: of `build_detector`.
      images: `[b, S, S, 3]` with a static S.

    Returns:
      float32 `[b, MAX_DETECTIONS, 6]`: x0, y0, x1, y1 relative to the image (0..1), score, class; class -1 is padding.
    """
    size = images.shape[1]
    found = detector.decode_predictions(detector(images, training=False), images)
    boxes = tf.clip_by_value(found["boxes"] / size, 0.0, 1.0)
    return tf.concat([boxes, found["confidence"][..., None], found["classes"][..., None]], axis=-1)


def _backbone(features: tf.keras.Model) -> tf.keras.Model:
    """The pooled backbone without its pooling; `pyramid_level_inputs` tells keras-cv which layers end C3, C4 and C5."""
    blocks = [re.fullmatch(r"layer([234])_(\d+)_out", layer.name) for layer in features.layers]
    # Later blocks of a stage replace earlier ones: layers are sorted from the input to the output.
    ends = {f"P{int(block[1]) + 1}": block[0] for block in blocks if block}
    backbone = tf.keras.Model(features.input, features.get_layer(ends["P5"]).output, name="pyramid_backbone")
    backbone.pyramid_level_inputs = ends
    return backbone


def _feature_pyramid(channels: list[int], width: int) -> tf.keras.Model:
    """From {"P3": C3, "P4": C4, "P5": C5} to [P3, P4, P5, P6, P7] with `width` channels each."""
    inputs = {f"P{level}": tf.keras.Input((None, None, count)) for level, count in enumerate(channels, start=3)}
    merged, above = {}, None
    for level in ("P5", "P4", "P3"):
        x = tf.keras.layers.Conv2D(width, 1, name=f"lateral_{level}")(inputs[level])
        if above is not None:
            x = x + tf.keras.layers.UpSampling2D(2)(above)
        merged[level] = above = x
    outputs = [
        _norm(tf.keras.layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"output_{level}")(merged[level]))
        for level in ("P3", "P4", "P5")
    ]
    p6 = tf.keras.layers.Conv2D(width, 3, strides=2, padding="same", name="P6")(inputs["P5"])
    p7 = tf.keras.layers.Conv2D(width, 3, strides=2, padding="same", name="P7")(tf.nn.relu(p6))
    return tf.keras.Model(inputs, [*outputs, p6, p7], name="feature_pyramid")


def _head(name: str, width: int, outputs: int, bias: float) -> tf.keras.Model:
    """From one level of the pyramid to `outputs` numbers for each of a cell's anchors; all levels share it."""
    x = level = tf.keras.Input((None, None, width))
    for _ in range(_HEAD_LAYERS):
        x = tf.keras.layers.Conv2D(width, 3, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
        x = tf.keras.layers.ReLU()(_norm(x))
    x = tf.keras.layers.Conv2D(
        _ANCHORS_PER_CELL * outputs,
        3,
        padding="same",
        kernel_initializer=tf.keras.initializers.RandomNormal(stddev=0.01),
        bias_initializer=tf.keras.initializers.Constant(bias),
    )(x)
    return tf.keras.Model(level, x, name=name)


def _norm(x: tf.Tensor) -> tf.Tensor:
    return tf.keras.layers.GroupNormalization(NORM_GROUPS, epsilon=1e-5)(x)
