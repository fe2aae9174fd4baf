"""Random views of images: the SimCLR recipe, gentle warps for digits, or a plain resize.

Every draw is keyed by (seed, step, place in the global batch, view) and made once per batch as a table of uniform
numbers; crops and layers only turn numbers into pixels. So views do not depend on timing, on a resume or on how many
workers share a batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import tensorflow as tf

from instcls_tf.config import AUGMENTATIONS, PretrainConfig
from instcls_tf.data.view_layers import (
    KeyedAugmentation,
    RandomBlur,
    RandomColor,
    RandomStroke,
    RandomWarp,
)
from instcls_tf.errors import UserError

_CROP_DRAWS = 5  # Area, aspect, where, and whether to flip.


@dataclasses.dataclass(frozen=True, eq=False)
class Views:
    """One augmentation recipe in two stages: `crop` per image (sizes differ), `augment` for several views at once.

    Attributes:
      preset: `simclr`, `digits` or `none`.
      image_size: side S of the views, pixels.
      seed: of every draw.
      layers: keras-cv layers, in order; a `KeyedAugmentation` takes the next `layer.num_draws` columns of the draws,
        any other layer draws for itself.
      crop_min_area: smallest part of the image that a random crop covers.
    """

    preset: str
    image_size: int
    seed: int
    layers: tuple[tf.keras.layers.Layer, ...]
    crop_min_area: float = PretrainConfig.crop_min_area

    @property
    def num_draws(self) -> int:
        """Uniform numbers per view; at least one, because tf.data's unbatch crashes on tensors without elements."""
        return max(1, self._crop_draws + sum(getattr(layer, "num_draws", 0) for layer in self.layers))

    @property
    def _crop_draws(self) -> int:
        return _CROP_DRAWS * (self.preset == "simclr")

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
        """Cuts the views of one image, uint8 `[H, W, 3]`, by `draws` `[V, num_draws]`: float32 `[V, S, S, 3]`."""
        num_views = draws.shape[0]
        if self.preset == "simclr":
            boxes = [_random_box(image, draw, self.crop_min_area) for draw in tf.unstack(draws, num_views)]
            cut = [_resize(image, box, self.image_size) for box in boxes]
            return tf.stack([_mirror(view, draw) for view, draw in zip(cut, tf.unstack(draws[:, 4], num_views))])
        view = _resize(image, _centre_box(image), self.image_size)
        return tf.repeat(view[None], num_views, axis=0)

    def augment(self, images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """The rest, for cut views: float32 `[M, S, S, 3]` in [0, 255] and `[M, num_draws]` to uint8 `[M, S, S, 3]`."""
        column = self._crop_draws
        for layer in self.layers:
            if isinstance(layer, KeyedAugmentation):
                images = layer.augment_images(images, draws[:, column : column + layer.num_draws])
                column += layer.num_draws
            else:
                images = tf.clip_by_value(tf.cast(layer(images, training=True), tf.float32), 0.0, 255.0)
        # All layers stay within [0, 255]: rounding by truncation cannot overflow.
        return tf.cast(images + 0.5, tf.uint8)


def make_views(
    preset: str,
    image_size: int,
    seed: int,
    *,
    crop_min_area: float = PretrainConfig.crop_min_area,
    color_strength: float = PretrainConfig.color_strength,
    blur_probability: float = PretrainConfig.blur_probability,
    layers: Sequence[tf.keras.layers.Layer] | None = None,
) -> Views:
    """The views named by `--augmentation`.

    Args:
      preset: `simclr` (random resized crop, flip, colour jitter, greyscale, blur), `digits` (small warps and changes of
        the stroke, no flips, no colours) or `none` (the largest centred square, resized).
      image_size: side of the views, pixels.
      seed: two identical seeds give identical views.
      crop_min_area: of `simclr`: the smallest part of the image's area that a crop covers.
      color_strength: of `simclr`: multiplies the colour jitter.
      blur_probability: of `simclr`: the share of blurred views.
      layers: any keras-cv layers instead of those after crop and flip; they take float32 pixels in [0, 255]. Stock
        layers draw for themselves, so that their views differ after a resume.

    Raises:
      UserError: unknown preset.
    """
    if preset not in AUGMENTATIONS:
        raise UserError(f"--augmentation={preset}: unknown, wanted one of {', '.join(AUGMENTATIONS)}")
    recipes = {
        "simclr": lambda: (RandomColor(color_strength), RandomBlur(image_size, blur_probability)),
        "digits": lambda: (RandomWarp(), RandomStroke(image_size)),
        "none": lambda: (),
    }
    chosen = recipes[preset]() if layers is None else tuple(layers)
    return Views(preset, image_size, seed, chosen, crop_min_area)


def views_of(config: PretrainConfig) -> Views:
    """The views of a recipe."""
    return make_views(
        config.augmentation,
        config.image_size,
        config.seed,
        crop_min_area=config.crop_min_area,
        color_strength=config.color_strength,
        blur_probability=config.blur_probability,
    )


def _random_box(
    image: tf.Tensor, draw: tf.Tensor, min_area: float = PretrainConfig.crop_min_area
) -> tuple[tf.Tensor, ...]:
    """Top, left, height, width of a crop of area `min_area` to 1, aspect 3/4 to 4/3; sides that do not fit are cut."""
    height, width = (tf.cast(side, tf.float32) for side in tf.unstack(tf.shape(image)[:2]))
    area = height * width * (min_area + (1.0 - min_area) * draw[0])
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
    return tf.ensure_shape(resized, [size, size, 3])


def _mirror(view: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
    # One view at a time: reversal has a fast kernel for [rows, columns, 3] and for nothing else.
    return tf.cond(draw < 0.5, lambda: tf.reverse(view, axis=[1]), lambda: view)
