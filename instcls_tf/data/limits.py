"""How small a photograph may become without any view of a recipe showing less. No TensorFlow."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from instcls_tf.config import SIMCLR_VIEWS, PretrainConfig

# The smallest crops in use, SimCLR's and SwAV's; for smaller ones a cache would be many times larger.
_LEAST_AREA = 0.08


class Limits(NamedTuple):
    """How small an image may become: an image with fewer pixels, or a shorter side below, stays as it is."""

    pixels: int
    side: int

    def shortened(self, sizes: np.ndarray) -> np.ndarray:
        """The heights and widths, int64 `[N, 2]`, that images of some sizes are kept with."""
        whole = np.maximum(sizes, 1).astype(np.float64)
        scale = np.maximum(np.sqrt(self.pixels / whole.prod(axis=1)), self.side / whole.min(axis=1))
        return np.where(scale[:, None] < 1.0, np.maximum(np.rint(whole * scale[:, None]), 1.0), sizes).astype(np.int64)


def limits_of(config: PretrainConfig) -> Limits:
    """What the views of a recipe can show of an image.

    The smallest crop, `crop_min_area` of the image, is still shown with all pixels of a view; and so is the centred
    square that class weights are taken from.
    """
    area = max(config.crop_min_area, _LEAST_AREA) if config.augmentation == SIMCLR_VIEWS else 1.0
    side = config.image_size / config.center_crop_fraction
    return Limits(math.ceil(config.image_size**2 / area), math.ceil(side))
