"""Random changes of a batch of views, as keras-cv layers whose draws can come from outside.

keras-cv's stock layers of the same kind loop over images one by one on a CPU; these handle a batch at once.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import warnings

import tensorflow as tf

from instcls_tf.config import PretrainConfig

# keras-cv announces its backend on standard output, tensorflow-addons its end of life as a warning.
with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    warnings.simplefilter("ignore")
    import keras_cv
    from tensorflow_addons.image import transform as projective_transform

_LUMA = (0.299, 0.587, 0.114)
_RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
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

    Each of these is affine in the colour (hue as a rotation in YIQ), also the blend with the image's mean grey, because
    the mean of an affine map is known. So the whole chain is composed into one 3 x 3 matrix and one offset per image
    and touches the pixels once; values are clipped at the end and not in between.
    """

    num_draws = 7
    jitter_probability, grey_probability = 0.8, 0.2

    def __init__(self, strength: float = PretrainConfig.color_strength, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.brightness = self.contrast = self.saturation = 0.4 * strength
        self.hue = 0.1 * strength  # Turns.

    def augment_images(self, images: tf.Tensor, transformations: tf.Tensor, **_: object) -> tf.Tensor:
        """See the base class."""
        draws = tf.unstack(transformations, self.num_draws, axis=1)
        applied = tf.cast(draws[0] < self.jitter_probability, tf.float32)
        signed = [applied * (2.0 * draw - 1.0) for draw in draws[1:5]]
        mean = _mean_colour(images)
        matrix, offset = self._jitter(signed, draws[5], mean)
        grey = tf.where(draws[6] < self.grey_probability, 0.0, 1.0)
        matrix, offset = _then(matrix, offset, _saturate(grey))
        return tf.clip_by_value(_recolour(images, matrix, offset), 0.0, 255.0)

    def _jitter(self, signed: list[tf.Tensor], order: tf.Tensor, mean: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Composes the four changes; row vectors, `colour @ matrix [M, 3, 3] + offset [M, 3]`."""
        eye = tf.eye(3)[None]
        contrast = 1.0 + self.contrast * signed[1]
        changes = tf.stack(
            [
                eye * (1.0 + self.brightness * signed[0])[:, None, None],
                eye * contrast[:, None, None],
                _saturate(1.0 + self.saturation * signed[2]),
                _rotate_hue(2.0 * math.pi * self.hue * signed[3]),
            ],
            axis=1,
        )  # [M, 4, 3, 3]
        orders = tf.constant(list(itertools.permutations(range(4))))  # [24, 4]
        order = tf.gather(orders, tf.minimum(tf.cast(order * 24.0, tf.int32), 23))  # [M, 4]
        changes = tf.gather(changes, order, batch_dims=1)
        matrix, offset = tf.broadcast_to(eye, tf.shape(changes[:, 0])), tf.zeros_like(mean)
        for place in range(4):
            current = tf.einsum("mc,mcd->md", mean, matrix) + offset
            towards = (1.0 - contrast) * tf.linalg.matvec(current, tf.constant(_LUMA))
            is_contrast = tf.cast(order[:, place] == 1, tf.float32)
            matrix, offset = _then(matrix, offset, changes[:, place])
            offset += (is_contrast * towards)[:, None]
        return matrix, offset


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
        rows = tf.where(transformations[:, 0] < self.probability)  # [m, 1]
        low, high = self.sigma
        sigma = low + (high - low) * tf.gather_nd(transformations[:, 1], rows)
        return tf.tensor_scatter_nd_update(images, rows, _blur(tf.gather_nd(images, rows), sigma, self.radius))


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
        return projective_transform(images, flat, interpolation="bilinear", fill_mode="constant", fill_value=0.0)


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


def _mean_colour(images: tf.Tensor) -> tf.Tensor:
    """Means `[M, 3]` of `[M, H, W, 3]`, in two steps: TensorFlow is slow in summing over what lies 3 numbers apart."""
    shape = tf.shape(images)
    columns = tf.reduce_mean(tf.reshape(images, [shape[0], shape[1], -1]), axis=1)
    return tf.reduce_mean(tf.reshape(columns, [shape[0], -1, 3]), axis=1)


def _recolour(images: tf.Tensor, matrix: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """`colour @ matrix [M, 3, 3] + offset [M, 3]` for every pixel of `[M, H, W, 3]`."""
    shape = tf.shape(images)
    # Products with 3 x 3 matrices are slow; a block matrix takes four pixels at a time, at half the cost.
    pixels = 4 if images.shape[1] and images.shape[2] and images.shape[1] * images.shape[2] % 4 == 0 else 1
    blocks = tf.reshape(tf.einsum("ij,mcd->micjd", tf.eye(pixels), matrix), [-1, 3 * pixels, 3 * pixels])
    flat = tf.reshape(images, [shape[0], -1, 3 * pixels])
    return tf.reshape(flat @ blocks + tf.tile(offset, [1, pixels])[:, None], shape)


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


def _saturate(factor: tf.Tensor) -> tf.Tensor:
    """Colour matrices `[M, 3, 3]` that blend with the pixel's own grey: 0 is greyscale, 1 no change."""
    factor = factor[:, None, None]
    return factor * tf.eye(3)[None] + (1.0 - factor) * tf.repeat(tf.constant(_LUMA)[:, None], 3, axis=1)[None]


def _rotate_hue(angle: tf.Tensor) -> tf.Tensor:
    """Colour matrices `[M, 3, 3]` that turn the chroma plane of YIQ by `angle` `[M]` radians, red towards yellow."""
    to_yiq = tf.constant(_RGB_TO_YIQ)  # Acts on columns; the transposes below make it act on rows.
    cos, sin, zero = tf.cos(angle), tf.sin(angle), tf.zeros_like(angle)
    one = tf.ones_like(angle)
    turn = tf.stack([one, zero, zero, zero, cos, sin, zero, -sin, cos], axis=1)
    turn = tf.linalg.inv(to_yiq) @ tf.reshape(turn, [-1, 3, 3]) @ to_yiq
    return tf.transpose(turn, [0, 2, 1])


def _then(matrix: tf.Tensor, offset: tf.Tensor, change: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Appends a linear change to an affine map of row vectors."""
    return matrix @ change, tf.einsum("mc,mcd->md", offset, change)
