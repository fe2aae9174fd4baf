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

from instcls_tf.checks import require_value
from instcls_tf.config import AUGMENTATIONS, DIGIT_VIEWS, PLAIN_VIEWS, SIMCLR_VIEWS, PretrainConfig
from instcls_tf.data.kernels import views
from instcls_tf.data.resizing import centre_side, resize_to_square
from instcls_tf.data.view_layers import KeyedAugmentation, RandomBlur, RandomColor, RandomStroke, RandomWarp

# Of a random crop, as torchvision's RandomResizedCrop has them.
_CROP_TRIES, _CROP_ASPECTS = 10, (3.0 / 4.0, 4.0 / 3.0)
# Area and aspect of each try; then where (top, left), and whether to flip.
_BOX_DRAWS = 2 * _CROP_TRIES + 2
_CROP_DRAWS = _BOX_DRAWS + 1
_MIRROR_PROBABILITY = 0.5


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
      center_crop_fraction: of `digits` and `none`: side of the centred square, as a fraction of the shorter side.
    """

    preset: str
    image_size: int
    seed: int
    layers: tuple[tf.keras.layers.Layer, ...]
    crop_min_area: float = PretrainConfig.crop_min_area
    center_crop_fraction: float = 1.0

    @property
    def num_draws(self) -> int:
        """Uniform numbers per view; at least one, because tf.data's unbatch crashes on tensors without elements."""
        return max(1, self._crop_draws + sum(getattr(layer, "num_draws", 0) for layer in self.layers))

    @property
    def _crop_draws(self) -> int:
        return _CROP_DRAWS * (self.preset == SIMCLR_VIEWS)

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
        if self.preset == SIMCLR_VIEWS:
            boxes = random_boxes(tf.shape(image)[:2], draws[:, :_BOX_DRAWS], self.crop_min_area)
            compiled = views.operations()
            if compiled is not None:
                mirrored = draws[:, _BOX_DRAWS] < _MIRROR_PROBABILITY
                return compiled.InstclsCropViews(image=image, boxes=boxes, mirrored=mirrored, size=self.image_size)
            cut = [_resize(image, tf.unstack(box), self.image_size) for box in tf.unstack(boxes, num_views)]
            flips = tf.unstack(draws[:, _BOX_DRAWS], num_views)
            return tf.stack([_mirror(view, draw) for view, draw in zip(cut, flips)])
        view = _resize(image, _centre_box(image, self.center_crop_fraction), self.image_size)
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
    require_value("augmentation", preset, preset in AUGMENTATIONS, "one of " + ", ".join(AUGMENTATIONS))
    recipes = {
        SIMCLR_VIEWS: lambda: (RandomColor(color_strength), RandomBlur(image_size, blur_probability)),
        DIGIT_VIEWS: lambda: (RandomWarp(), RandomStroke(image_size)),
        PLAIN_VIEWS: lambda: (),
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


def random_boxes(shape: tf.Tensor, draws: tf.Tensor, min_area: float) -> tf.Tensor:
    """Boxes of random crops, as torchvision's RandomResizedCrop draws them.

    A try draws area (uniform) and aspect (uniform in its logarithm) and rounds the sides; the first of ten that fits
    into the image is taken and put anywhere with equal chances. If none fits, the box is the largest one in the centre
    whose aspect is within the range.

    Args:
      shape: int32 `[2]`, height and width of the image, in pixels.
      draws: float32 `[V, 22]` in [0, 1): areas of the ten tries, their aspects, then top and left.
      min_area: the smallest area, as a fraction of the image's; the largest is 1.

    Returns:
      int32 `[V, 4]`: top, left, height, width.
    """
    sides = tf.cast(shape, tf.float32)  # [2]
    areas, aspects, places = tf.split(draws, [_CROP_TRIES, _CROP_TRIES, 2], axis=1)
    areas = tf.reduce_prod(sides) * (min_area + (1.0 - min_area) * areas)  # [V, tries]
    low, high = (math.log(aspect) for aspect in _CROP_ASPECTS)
    aspects = tf.exp(low + (high - low) * aspects)
    tries = tf.round(tf.sqrt(tf.stack([areas / aspects, areas * aspects], axis=2)))  # [V, tries, 2]
    fits = tf.reduce_all((tries >= 1.0) & (tries <= sides), axis=2)  # [V, tries]
    chosen = tf.gather(tries, tf.argmax(fits, axis=1), batch_dims=1)  # the first that fits, [V, 2]
    fallback = tf.round(tf.minimum(sides, tf.reverse(sides, [0]) * [1.0 / _CROP_ASPECTS[0], _CROP_ASPECTS[1]]))
    any_fits = tf.reduce_any(fits, axis=1, keepdims=True)
    box = tf.where(any_fits, chosen, fallback)
    corner = tf.floor(tf.where(any_fits, places * (sides - box + 1.0), (sides - box) / 2.0))
    return tf.cast(tf.concat([corner, box], axis=1), tf.int32)


def _centre_box(image: tf.Tensor, fraction: float) -> tuple[tf.Tensor, ...]:
    height, width = tf.unstack(tf.shape(image)[:2])
    side = centre_side(height, width, fraction)
    return (height - side) // 2, (width - side) // 2, side, side


def _resize(image: tf.Tensor, box: Sequence[tf.Tensor], size: int) -> tf.Tensor:
    top, left, height, width = box
    return resize_to_square(image[top : top + height, left : left + width][None], size)[0]


def _mirror(view: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
    # One view at a time: reversal has a fast kernel for [rows, columns, 3] and for nothing else.
    return tf.cond(draw < _MIRROR_PROBABILITY, lambda: tf.reverse(view, axis=[1]), lambda: view)
