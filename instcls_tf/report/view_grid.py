"""A picture of views."""

from __future__ import annotations

import os

import numpy as np
import tensorflow as tf

from instcls_tf.config import PretrainConfig
from instcls_tf.data import augment, pipeline
from instcls_tf.data.sources import open_training_source
from instcls_tf.errors import UserError

_GAP = 4  # Pixels between two cells.


def draw_views(config: PretrainConfig, output: str, *, images: int, columns: int) -> None:
    """Writes a PNG: one row per image, first the plain image, then `columns` random views of it.

    Args:
      config: gives dataset and views.
      output: path of the PNG file.
      images: rows, at most as many as the dataset has.
      columns: views per row.

    Raises:
      UserError: no rows or columns, the dataset is not right, or the file cannot be written.
    """
    for name, value in (("images", images), ("columns", columns)):
        if value < 1:
            raise UserError(f"--{name}={value}: must be at least 1")
    source = open_training_source(config)
    images = min(images, source.num_instances)

    def first_batch(views: augment.Views, num_views: int) -> np.ndarray:
        batches = pipeline.training_batches(
            source,
            views=views,
            batch_size=images,
            num_views=num_views,
            micro_batch=images,
            seed=config.seed,
            last_step=1,
        )
        ((pixels, _),) = batches
        return pixels.numpy()  # [images, num_views, S, S, 3]

    plain = augment.make_views("none", config.image_size, config.seed)
    cells = np.concatenate([first_batch(plain, 1), first_batch(augment.views_of(config), columns)], axis=1)
    gaps = [(0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0)]
    cells = np.pad(cells, gaps, constant_values=255)  # [images, 1 + columns, S + gap, S + gap, 3]
    rows, columns, height, width, _ = cells.shape
    grid = cells.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
    try:
        os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
        with open(output, "wb") as file:
            file.write(tf.io.encode_png(grid).numpy())
    except OSError as error:
        raise UserError(f"--output={output}: cannot write this file ({error.strerror})") from error
