"""Random views of images: the SimCLR recipe, gentle warps for digits, or a plain resize.

Every draw is keyed by (seed, step, place in the global batch, view) and made once per batch as a table of uniform
numbers; the layers only turn numbers into pixels. So views do not depend on timing, on a resume or on how many workers
share a batch. The layers are keras-cv layers and also work by themselves, drawing from keras-cv's own generator. Its
stock layers of the same kind loop over images one by one on a CPU; these handle a batch at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import math
import warnings

import tensorflow as tf

from instcls_tf.errors import UserError

# keras-cv announces its backend on standard output, tensorflow-addons its end of life as a warning.
with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    warnings.simplefilter("ignore")
    import keras_cv
    from tensorflow_addons.image import transform as projective_transform

PRESETS = ("simclr", "digits", "none")
_LUMA = (0.299, 0.587, 0.114)
_RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclasses.dataclass(frozen=True, eq=False)
class Views:
    """One augmentation recipe in two stages: `crop` per image (sizes differ), `augment` per batch.

    Attributes:
      preset: `simclr`, `digits` or `none`.
      image_size: side S of the views, pixels.
      seed: of every draw.
      layers: the per-batch layers, in order; each takes the next `layer.num_draws` columns of the draws.
    """

    preset: str
    image_size: int
    seed: int
    layers: tuple[KeyedAugmentation, ...]

    @property
    def num_draws(self) -> int:
        """Uniform numbers per view; at least one, because tf.data's unbatch crashes on tensors without elements."""
        if self.preset == "none":
            return 1
        return _CROP_DRAWS * (self.preset == "simclr") + sum(layer.num_draws for layer in self.layers)

    def draws(self, step: tf.Tensor, batch_size: int, num_views: int) -> tf.Tensor:
        """The random numbers of one global batch: float32 `[batch_size, num_views, num_draws]` in [0, 1).

        Args:
          step: int64 scalar, counted from the beginning of the run.
          batch_size: instances of a full batch over all workers; the same in every step and on every worker.
          num_views: views per instance.
        """
        key = tf.stack([tf.constant(self.seed, tf.int64), tf.cast(step, tf.int64)])
        return tf.random.stateless_uniform([batch_size, num_views, self.num_draws], key)

    def crop(self, image: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """Cuts the views of one image, uint8 `[H, W, 3]`, by `draws` `[V, num_draws]`: uint8 `[V, S, S, 3]`."""
        num_views = draws.shape[0]
        if self.preset == "simclr":
            boxes = [_random_box(image, draw) for draw in tf.unstack(draws[:, :_CROP_DRAWS], num_views)]
            return tf.stack([_resize(image, box, self.image_size) for box in boxes])
        view = _resize(image, _centre_box(image), self.image_size)
        return tf.repeat(view[None], num_views, axis=0)

    def augment(self, images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """The rest, for a batch of cut views: uint8 `[M, S, S, 3]` and `[M, num_draws]` to uint8 `[M, S, S, 3]`."""
        if not self.layers:
            return images
        column = _CROP_DRAWS * (self.preset == "simclr")
        images = tf.cast(images, tf.float32)
        for layer in self.layers:
            images = layer.augment_images(images, draws[:, column : column + layer.num_draws])
            column += layer.num_draws
        return _to_uint8(images)


def make_views(preset: str, image_size: int, seed: int) -> Views:
    """The views named by `--augmentation`.

    Args:
      preset: `simclr` (random resized crop, flip, colour jitter, greyscale, blur), `digits` (small warps and changes of
        the stroke, no flips, no colours) or `none` (the largest centred square, resized).
      image_size: side of the views, pixels.
      seed: two identical seeds give identical views.

    Raises:
      UserError: unknown preset.
    """
    if preset not in PRESETS:
        raise UserError(f"--augmentation={preset}: unknown, wanted one of {', '.join(PRESETS)}")
    layers = {
        "simclr": lambda: (RandomMirror(), RandomColor(), RandomBlur(image_size)),
        "digits": lambda: (RandomWarp(), RandomStroke(image_size)),
        "none": lambda: (),
    }
    return Views(preset, image_size, seed, layers[preset]())


# ---------------------------------------------------------------------------------------------------------- layers


class KeyedAugmentation(keras_cv.layers.VectorizedBaseImageAugmentationLayer):
    """A keras-cv layer whose randomness is a table of uniform numbers, float32 `[M, num_draws]`.

    Called on images it draws the table itself; `augment_images(images, table)` takes one from outside. Images are
    float32 `[M, H, W, 3]` in [0, 255].
    """

    num_draws = 0

    def get_random_transformation_batch(self, batch_size: tf.Tensor, **_: object) -> tf.Tensor:
        """A fresh table from keras-cv's generator."""
        return self._random_generator.uniform([batch_size, self.num_draws])


class RandomMirror(KeyedAugmentation):
    """Flips left and right with probability 0.5."""

    num_draws = 1

    def augment_images(self, images: tf.Tensor, transformations: tf.Tensor, **_: object) -> tf.Tensor:
        """See the base class."""
        rows = tf.where(transformations[:, 0] < 0.5)  # [m, 1]
        chosen = tf.gather_nd(images, rows)
        # Reversal has a fast kernel for [rows, columns, 3] and for nothing else: 20 times faster than on rank 4.
        lines = tf.reverse(tf.reshape(chosen, [-1, tf.shape(images)[2], 3]), axis=[1])
        return tf.tensor_scatter_nd_update(images, rows, tf.reshape(lines, tf.shape(chosen)))


class RandomColor(KeyedAugmentation):
    """Brightness, contrast, saturation and hue in random order (probability 0.8), then greyscale (0.2).

    Each of these is affine in the colour (hue as a rotation in YIQ), also the blend with the image's mean grey, because
    the mean of an affine map is known. So the whole chain is composed into one 3 x 3 matrix and one offset per image
    and touches the pixels once; values are clipped at the end and not in between.
    """

    num_draws = 7
    brightness = contrast = saturation = 0.4
    hue = 0.1  # Turns.
    jitter_probability, grey_probability = 0.8, 0.2

    def augment_images(self, images: tf.Tensor, transformations: tf.Tensor, **_: object) -> tf.Tensor:
        """See the base class."""
        draws = tf.unstack(transformations, self.num_draws, axis=1)
        applied = tf.cast(draws[0] < self.jitter_probability, tf.float32)
        signed = [applied * (2.0 * draw - 1.0) for draw in draws[1:5]]
        mean = tf.reduce_mean(images, axis=[1, 2])  # [M, 3]
        matrix, offset = self._jitter(signed, draws[5], mean)
        grey = tf.where(draws[6] < self.grey_probability, 0.0, 1.0)
        matrix, offset = _then(matrix, offset, _saturate(grey))
        shape = tf.shape(images)
        pixels = tf.reshape(images, [shape[0], -1, 3]) @ matrix + offset[:, None]  # [M, HW, 3]
        return tf.clip_by_value(tf.reshape(pixels, shape), 0.0, 255.0)

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
    """Gaussian blur with probability 0.5; sigma 0.1 to 2 pixels, kernel a tenth of the image."""

    num_draws = 2
    probability, sigma = 0.5, (0.1, 2.0)

    def __init__(self, image_size: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.radius = max(1, image_size // 20)

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


# ----------------------------------------------------------------------------------------------------- crop and maths

_CROP_DRAWS = 4  # Area, aspect, and where.


def _random_box(image: tf.Tensor, draw: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Top, left, height, width of a crop of area 0.2 to 1 and aspect 3/4 to 4/3; sides that do not fit are cut."""
    height, width = (tf.cast(side, tf.float32) for side in tf.unstack(tf.shape(image)[:2]))
    area = height * width * (0.2 + 0.8 * draw[0])
    aspect = tf.exp(math.log(4.0 / 3.0) * (2.0 * draw[1] - 1.0))
    box_height = tf.clip_by_value(tf.round(tf.sqrt(area / aspect)), 1.0, height)
    box_width = tf.clip_by_value(tf.round(tf.sqrt(area * aspect)), 1.0, width)
    top = tf.floor(draw[2] * (height - box_height + 1.0))
    left = tf.floor(draw[3] * (width - box_width + 1.0))
    return tuple(tf.cast(value, tf.int32) for value in (top, left, box_height, box_width))


def _centre_box(image: tf.Tensor) -> tuple[tf.Tensor, ...]:
    height, width = tf.unstack(tf.shape(image)[:2])
    side = tf.minimum(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def _resize(image: tf.Tensor, box: tuple[tf.Tensor, ...], size: int) -> tf.Tensor:
    top, left, height, width = box
    window = image[top : top + height, left : left + width]
    # Plain bilinear reads 2 x 2 pixels and aliases beyond a shrink of two; the antialiased one is about 5 times slower.
    resized = tf.cond(
        tf.minimum(height, width) > 2 * size,
        lambda: tf.image.resize(window, [size, size], antialias=True),
        lambda: tf.image.resize(window, [size, size]),
    )
    return _to_uint8(tf.ensure_shape(resized, [size, size, 3]))


def _to_uint8(images: tf.Tensor) -> tf.Tensor:
    return tf.saturate_cast(tf.round(images), tf.uint8)


def _blur(images: tf.Tensor, sigma: tf.Tensor, radius: int) -> tf.Tensor:
    """Blurs `[M, S, S, 3]` with one sigma `[M]` each, as two products with band matrices.

    Convolutions with a kernel per image have no fast kernel on a CPU; matrix products do, and their rows, normalised
    within the image, need no padding.
    """
    side = tf.range(tf.shape(images)[1])
    distance = tf.cast(side[:, None] - side[None, :], tf.float32)  # [S, S]
    weights = tf.exp(-(distance**2) / (2.0 * sigma[:, None, None] ** 2))
    weights *= tf.cast(tf.abs(distance) <= radius, tf.float32)
    weights = (weights / tf.reduce_sum(weights, axis=-1, keepdims=True))[:, None]  # [M, 1, S, S]
    planes = tf.transpose(images, [0, 3, 1, 2])  # [M, 3, S, S]
    return tf.transpose(tf.matmul(weights @ planes, weights, transpose_b=True), [0, 2, 3, 1])


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
