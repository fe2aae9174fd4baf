"""The views of google-research/simclr (tf2/data_util.py), written anew from its description, to compare speeds with.

Crops by `sample_distorted_bounding_box` and bicubic resize, flip, colour jitter of strength 1 in random order,
greyscale and blur, in the same operations and the same order, each image by itself except for the blur, which is
batched there.
"""

from __future__ import annotations

import tensorflow as tf

_JITTER_PROBABILITY, _GREY_PROBABILITY, _BLUR_PROBABILITY = 0.8, 0.2, 0.5
_BRIGHTNESS = _CONTRAST = _SATURATION = 0.8
_HUE = 0.2
_MIN_AREA = 0.08  # As published; the paper of this project has 0.2, whose larger crops are not cheaper.


def views_of(image: tf.Tensor, image_size: int) -> tf.Tensor:
    """Two views without blur of one decoded image, uint8 `[H, W, 3]`: float32 `[2, S, S, 3]` in [0, 1]."""
    image = tf.image.convert_image_dtype(image, tf.float32)
    return tf.stack([_view(image, image_size) for _ in range(2)])


def _view(image: tf.Tensor, image_size: int) -> tf.Tensor:
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        tf.shape(image),
        bounding_boxes=tf.constant([0.0, 0.0, 1.0, 1.0], shape=[1, 1, 4]),
        min_object_covered=0.1,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(_MIN_AREA, 1.0),
        max_attempts=100,
        use_image_if_no_bounding_boxes=True,
    )
    top, left, _ = tf.unstack(begin)
    height, width, _ = tf.unstack(size)
    window = tf.image.crop_to_bounding_box(image, top, left, height, width)
    image = tf.image.resize([window], [image_size, image_size], method=tf.image.ResizeMethod.BICUBIC)[0]
    image = tf.image.random_flip_left_right(image)
    image = _maybe(_JITTER_PROBABILITY, _color_jitter, image)
    image = _maybe(_GREY_PROBABILITY, lambda x: tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(x)), image)
    return tf.clip_by_value(tf.reshape(image, [image_size, image_size, 3]), 0.0, 1.0)


def _maybe(probability: float, change, image: tf.Tensor) -> tf.Tensor:
    return tf.cond(tf.random.uniform([]) < probability, lambda: change(image), lambda: image)


def _color_jitter(image: tf.Tensor) -> tf.Tensor:
    changes = (
        lambda x: x * tf.random.uniform([], 1.0 - _BRIGHTNESS, 1.0 + _BRIGHTNESS),
        lambda x: tf.image.random_contrast(x, 1.0 - _CONTRAST, 1.0 + _CONTRAST),
        lambda x: tf.image.random_saturation(x, 1.0 - _SATURATION, 1.0 + _SATURATION),
        lambda x: tf.image.random_hue(x, _HUE),
    )
    order = tf.random.shuffle(tf.range(len(changes)))
    for place in range(len(changes)):
        branches = [lambda x=image, change=change: change(x) for change in changes]
        image = tf.clip_by_value(tf.switch_case(order[place], branches), 0.0, 1.0)
    return image


def blur(images: tf.Tensor) -> tf.Tensor:
    """Blurs a batch of views, float32 `[M, S, S, 3]`, with one sigma, and keeps the result for half of them.

    Two depthwise convolutions with a kernel of a tenth of the side.
    """
    side = images.shape[1]
    radius = side // 10 // 2
    sigma = tf.random.uniform([], 0.1, 2.0)
    taps = tf.exp(-(tf.range(-radius, radius + 1, dtype=tf.float32) ** 2) / (2.0 * sigma**2))
    taps = tf.tile(tf.reshape(taps / tf.reduce_sum(taps), [-1, 1, 1, 1]), [1, 1, 3, 1])  # [K, 1, 3, 1]
    blurred = tf.nn.depthwise_conv2d(images, tf.transpose(taps, [1, 0, 2, 3]), [1, 1, 1, 1], "SAME")
    blurred = tf.nn.depthwise_conv2d(blurred, taps, [1, 1, 1, 1], "SAME")
    chosen = tf.cast(tf.random.uniform([tf.shape(images)[0], 1, 1, 1]) < _BLUR_PROBABILITY, tf.float32)
    return tf.clip_by_value(blurred * chosen + images * (1.0 - chosen), 0.0, 1.0)
