"""Random changes of a batch of views, as keras-cv layers whose draws can come from outside.

keras-cv's stock layers of the same kind loop over images one by one on a CPU; these handle a batch at once.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import math
import os
import warnings

import tensorflow as tf

from instcls_tf.config import PretrainConfig
from instcls_tf.data import projective
from instcls_tf.data.kernels import views

with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # on which it announces its backend
    warnings.simplefilter("ignore")
    import keras_cv

_LUMA = (0.299, 0.587, 0.114)
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)
_BLUR_BLOCK = 32  # Rows.


class KeyedAugmentation(keras_cv.layers.VectorizedBaseImageAugmentationLayer):
    """A keras-cv layer whose randomness is a table of uniform numbers, float32 `[M, num_draws]`.

    Called on images it draws the table itself; `augment_images(images, table)` takes one from outside. Images are
    float32 `[M, H, W, 3]` in [0, 255].
    """

    num_draws = 0

    def get_random_transformation_batch(self, batch_size: tf.Tensor, **_: object) -> tf.Tensor:
        """A fresh table from keras-cv's generator."""
        return self._random_generator.uniform([batch_size, self.num_draws])


class RandomColor(KeyedAugmentation):
    """Brightness, contrast, saturation and hue in random order (probability 0.8), then greyscale (0.2).

    The changes are torchvision's ColorJitter: factors uniform in [max(0, 1 - s), 1 + s] (s = 0.8 at strength 1, as in
    SimCLR), contrast as a blend with the image's mean grey, saturation with the pixel's own, hue as a turn of up to 0.2
    in HSV. All but the hue scale a pixel's grey and its distance from that, so what comes before the hue is one affine
    map per image, and what comes after it another; values are clipped before the hue and before the greyscale instead
    of after each change.
    """

    num_draws = 7
    jitter_probability, grey_probability = 0.8, 0.2

    def __init__(self, strength: float = PretrainConfig.color_strength, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.brightness = self.contrast = self.saturation = 0.8 * strength
        self.hue = 0.2 * strength  # Turns.
        if views.operations() is None:
            _start_compiler_quietly()

    def augment_images(self, images: tf.Tensor, transformations: tf.Tensor, **_: object) -> tf.Tensor:
        """See the base class."""
        draws = tf.unstack(transformations, self.num_draws, axis=1)
        applied = draws[0] < self.jitter_probability
        strengths = (self.brightness, self.contrast, self.saturation)
        factors = [tf.where(applied, _factor(s, draw), 1.0) for s, draw in zip(strengths, draws[1:4])]
        turn = tf.where(applied, self.hue * (2.0 * draws[4] - 1.0), 0.0)
        orders = tf.constant(list(itertools.permutations(range(4))))  # [24, 4]
        order = tf.gather(orders, tf.minimum(tf.cast(draws[5] * 24.0, tf.int32), 23))  # [M, 4]
        is_grey = draws[6] < self.grey_probability  # [M]
        compiled = views.operations()
        if compiled is not None:
            return compiled.InstclsColourViews(
                images=images, factors=tf.stack(factors, axis=1), turns=turn, orders=order, greys=is_grey
            )
        place_of_hue = tf.argmax(order == _HUE, axis=1, output_type=tf.int32)[:, None]
        before, after = (tf.range(4) < place_of_hue), (tf.range(4) > place_of_hue)  # [M, 4]
        images = _recolour(images, *_compose(factors, order, before, _mean_grey(images)))
        images = _turn_hue(images, turn)
        images = _recolour(images, *_compose(factors, order, after, _mean_grey(images)))
        # Not a part of that map: a clipped colour has another grey.
        rows = tf.where(is_grey)  # [m, 1]
        return tf.tensor_scatter_nd_update(images, rows, _to_grey(tf.gather_nd(images, rows)))


class RandomBlur(KeyedAugmentation):
    """Gaussian blur; sigma 0.1 to 2 pixels, kernel a tenth of the image."""

    num_draws = 2
    sigma = (0.1, 2.0)

    def __init__(self, image_size: int, probability: float = PretrainConfig.blur_probability, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.probability = probability
        # Beyond four sigma a tap weighs less than 0.04 % of the middle one.
        self.radius = min(max(1, image_size // 20), math.ceil(4.0 * self.sigma[1]))

    def augment_images(self, images: tf.Tensor, transformations: tf.Tensor, **_: object) -> tf.Tensor:
        """See the base class."""
        low, high = self.sigma
        sigma, chosen = low + (high - low) * transformations[:, 1], transformations[:, 0] < self.probability
        compiled = views.operations()
        if compiled is not None:
            return compiled.InstclsBlurViews(images=images, sigmas=tf.where(chosen, sigma, 0.0), radius=self.radius)
        rows = tf.where(chosen)  # [m, 1]
        blurred = _blur(tf.gather_nd(images, rows), tf.gather_nd(sigma, rows), self.radius)
        return tf.tensor_scatter_nd_update(images, rows, blurred)


class RandomWarp(KeyedAugmentation):
    """One projective transform per image: rotation, scale, shear and shift about the centre, black beyond the edge."""

    num_draws = 6
    rotation = math.radians(20.0)
    scale = (0.7, 1.25)
    shear, shift = 0.35, 0.12  # Shift as a fraction of the side.

    def augment_images(self, images: tf.Tensor, transformations: tf.Tensor, **_: object) -> tf.Tensor:
        """See the base class."""
        draws = tf.unstack(transformations, self.num_draws, axis=1)
        angle = self.rotation * (2.0 * draws[0] - 1.0)
        low, high = self.scale
        width, height = (low + (high - low) * draws[1]), (low + (high - low) * draws[2])
        shear = self.shear * (2.0 * draws[3] - 1.0)
        size = tf.cast(tf.shape(images)[1], tf.float32)
        right, down = (self.shift * size * (2.0 * draw - 1.0) for draw in draws[4:])
        # The transform maps output to input: undo the shift, then turn and shear, then divide by the scale.
        cos, sin = tf.cos(angle), tf.sin(angle)
        a, b = cos / width, (sin + shear * cos) / width
        c, d = -sin / height, (cos - shear * sin) / height
        centre = (size - 1.0) / 2.0
        x, y = centre + right, centre + down
        zero = tf.zeros_like(angle)
        flat = tf.stack([a, b, centre - a * x - b * y, c, d, centre - c * x - d * y, zero, zero], axis=1)
        return projective.transform(images, flat)


class RandomStroke(KeyedAugmentation):
    """Another pen: a slight blur, and a gamma that thickens or thins the greys of the stroke's edge."""

    num_draws = 2
    sigma, log_gamma = (0.1, 1.0), 0.4

    def __init__(self, image_size: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.radius = max(1, image_size // 20)

    def augment_images(self, images: tf.Tensor, transformations: tf.Tensor, **_: object) -> tf.Tensor:
        """See the base class."""
        low, high = self.sigma
        blurred = _blur(images, low + (high - low) * transformations[:, 0], self.radius)
        gamma = tf.exp(self.log_gamma * (2.0 * transformations[:, 1] - 1.0))[:, None, None, None]
        return 255.0 * tf.pow(tf.clip_by_value(blurred / 255.0, 0.0, 1.0), gamma)


# ------------------------------------------------------------------------------------------------------------ maths


def _factor(strength: float, draw: tf.Tensor) -> tf.Tensor:
    low, high = max(0.0, 1.0 - strength), 1.0 + strength
    return low + (high - low) * draw


def _compose(
    factors: list[tf.Tensor], order: tf.Tensor, chosen: tf.Tensor, mean_grey: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Several changes as one: a pixel's distance from its grey is scaled, and its grey becomes `scale * grey + offset`.

    Args:
      factors: of brightness, contrast and saturation, `[M]` each.
      order: int32 `[M, 4]`, which change stands at each of the four places; the hue is left out.
      chosen: bool `[M, 4]`, which places take part.
      mean_grey: of the images before the first change, `[M]`.

    Returns:
      Factor of the distance, scale and offset of the grey, `[M]` each.
    """
    brightness, contrast, saturation = factors
    one = tf.ones_like(mean_grey)
    of_distance = tf.stack([brightness, contrast, saturation, one], axis=1)  # [M, 4]
    of_grey = tf.stack([brightness, contrast, one, one], axis=1)
    changes = tf.where(chosen, order, _HUE)
    distance = tf.reduce_prod(tf.gather(of_distance, changes, batch_dims=1), axis=1)
    factors_in_order = tf.unstack(tf.gather(of_grey, changes, batch_dims=1), axis=1)
    scale, offset = one, tf.zeros_like(one)
    for factor, change in zip(factors_in_order, tf.unstack(changes, axis=1)):
        # Contrast leaves the mean where it is by then, brightness leaves 0.
        fixed = tf.where(change == _CONTRAST, scale * mean_grey + offset, 0.0)
        scale, offset = factor * scale, factor * offset + (1.0 - factor) * fixed
    return distance, scale, offset


def _mean_grey(images: tf.Tensor) -> tf.Tensor:
    """Mean luma `[M]` of `[M, H, W, 3]`, in two steps: TensorFlow is slow in summing over what lies 3 numbers apart."""
    shape = tf.shape(images)
    columns = tf.reduce_mean(tf.reshape(images, [shape[0], shape[1], -1]), axis=1)
    return tf.linalg.matvec(tf.reduce_mean(tf.reshape(columns, [shape[0], -1, 3]), axis=1), tf.constant(_LUMA))


def _to_grey(images: tf.Tensor) -> tf.Tensor:
    """Every pixel's luma in all three channels."""
    one = tf.ones([tf.shape(images)[0]])
    return _recolour(images, 0.0 * one, one, 0.0 * one)


def _recolour(images: tf.Tensor, distance: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """Scales, per image, every pixel's distance from its grey, and takes that to `scale * grey + offset`; clipped."""
    shape = tf.shape(images)
    to_grey = tf.repeat(tf.constant(_LUMA)[:, None], 3, axis=1)  # Of row vectors.
    matrix = distance[:, None, None] * tf.eye(3) + (scale - distance)[:, None, None] * to_grey  # [M, 3, 3]
    # Products with 3 x 3 matrices are slow; a block matrix takes four pixels at a time, at half the cost.
    pixels = 4 if images.shape[1] and images.shape[2] and images.shape[1] * images.shape[2] % 4 == 0 else 1
    blocks = tf.reshape(tf.einsum("ij,mcd->micjd", tf.eye(pixels), matrix), [-1, 3 * pixels, 3 * pixels])
    flat = tf.reshape(images, [shape[0], -1, 3 * pixels])
    return tf.reshape(tf.clip_by_value(flat @ blocks + offset[:, None, None], 0.0, 255.0), shape)


def _blur(images: tf.Tensor, sigma: tf.Tensor, radius: int) -> tf.Tensor:
    """Blurs `[M, S, S, 3]` with one sigma `[M]` each, as two products with band matrices.

    Convolutions with a kernel per image have no fast kernel on a CPU; matrix products do, and their rows, normalised
    within the image, need no padding of a certain kind. Only the band is multiplied, in blocks of rows.
    """
    side = images.shape[1] or tf.shape(images)[1]
    if images.shape[1] is None or side <= _BLUR_BLOCK + 2 * radius:
        block, count = side, 1
    else:
        block, count = _BLUR_BLOCK, -(-side // _BLUR_BLOCK)
    reach = tf.range(-radius, block + radius)
    distance = tf.cast(reach[None, :] - tf.range(block)[:, None], tf.float32)  # [block, block + 2 radius]
    band = tf.exp(-(distance**2) / (2.0 * sigma[:, None, None] ** 2))
    band *= tf.cast(tf.abs(distance) <= radius, tf.float32)  # [M, block, block + 2 radius]
    parts = []
    for index in range(count):
        inside = (reach + index * block >= 0) & (reach + index * block < side)
        part = band * tf.cast(inside, tf.float32)
        # Rows of the last block that lie beyond the image see nothing of it.
        parts.append(tf.math.divide_no_nan(part, tf.reduce_sum(part, axis=-1, keepdims=True)))

    def blur_columns(images: tf.Tensor) -> tf.Tensor:
        """Along axis 1, then with axes 1 and 2 exchanged."""
        shape = tf.shape(images)
        rows = tf.reshape(images, [shape[0], side, shape[2] * 3])
        rows = tf.pad(rows, [[0, 0], [radius, radius + block * count - side], [0, 0]])
        size = block + 2 * radius
        blurred = [part @ rows[:, i * block : i * block + size] for i, part in enumerate(parts)]
        blurred = blurred[0] if count == 1 else tf.concat(blurred, axis=1)[:, :side]
        return tf.transpose(tf.reshape(blurred, [shape[0], side, shape[2], 3]), [0, 2, 1, 3])

    return blur_columns(blur_columns(images))


# XLA makes one loop of these operations, at a fifth of the time of tf.image.adjust_hue, whose pixels they give.
@tf.function(autograph=False, jit_compile=True)
def _turn_hue(images: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
    """Turns the hue of `[M, H, W, 3]` by `turn` `[M]` (1 is the whole circle); value and saturation stay (HSV)."""
    planes = tf.transpose(tf.reshape(images, [tf.shape(images)[0], -1, 3]), [0, 2, 1])  # [M, 3, H W]
    red, green, blue = tf.unstack(planes, axis=1)
    value = tf.maximum(tf.maximum(red, green), blue)
    chroma = value - tf.minimum(tf.minimum(red, green), blue)
    inverse = 1.0 / tf.maximum(chroma, 1e-6)  # Of a grey pixel any hue is right.
    from_green, from_blue = 2.0 + (blue - red) * inverse, 4.0 + (red - green) * inverse
    hue = tf.where(value == red, (green - blue) * inverse, tf.where(value == green, from_green, from_blue))
    # Each channel falls from the value to the minimum and back, in sixths of the circle, with a phase of its own.
    phase = (hue + 6.0 * turn[:, None])[:, None] + tf.constant([5.0, 3.0, 1.0])[:, None]
    phase -= 6.0 * tf.floor(phase / 6.0)
    planes = value[:, None] - chroma[:, None] * tf.clip_by_value(2.0 - tf.abs(phase - 2.0), 0.0, 1.0)
    return tf.reshape(tf.transpose(planes, [0, 2, 1]), tf.shape(images))


@functools.cache
def _start_compiler_quietly() -> None:
    """Compiles for one pixel: at a process's first program XLA writes to standard error, whatever the log level."""
    silenced = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        with tf.init_scope(), tf.device("CPU"):
            _turn_hue(tf.zeros([1, 1, 1, 3]), tf.zeros([1]))
    finally:
        os.dup2(silenced, 2)
        os.close(silenced)
