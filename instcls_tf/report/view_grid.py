"""A picture of views."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from instcls_tf import files
from instcls_tf.checks import require_value
from instcls_tf.config import PLAIN_VIEWS, PretrainConfig
from instcls_tf.data import augment, pipeline
from instcls_tf.data.folder import refuse_picture_among_images
from instcls_tf.data.source import Source, notes_of
from instcls_tf.data.sources import open_training_source
from instcls_tf.errors import UserError, shown, some_of

_GAP = 4  # Pixels between two cells.


def draw_views(
    config: PretrainConfig,
    output: str,
    *,
    images: int,
    columns: int,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Writes a PNG: one row per image, first what a judgement of the run sees of it, then `columns` views.

    Args:
      config: gives dataset and views.
      output: path of the PNG file.
      images: rows, at most as many as the dataset has.
      columns: views per row.
      say: called with lines about what is not in the picture: what the dataset leaves out, images that cannot be read.

    Raises:
      UserError: no rows or columns, the dataset is not right, none of the images can be read, or the file cannot be
        written or would be part of the dataset.
    """
    for name, value in (("images", images), ("columns", columns)):
        require_value(name, value, value >= 1, "at least 1")
    refuse_picture_among_images(config.dataset, output, output)
    files.refuse_unwritable(output)
    source = open_training_source(config)
    for note in notes_of(source):
        say(note)
    grid = grid_of_views(config, source, images=images, columns=columns)
    for problem in source.bad.damage.values():
        say(problem)
    for name, reason in sorted(source.bad.reasons.items()):
        say(f"{shown(name)}: {reason}, not in the picture")
    files.write(output, tf.io.encode_png(grid).numpy())


def grid_of_views(config: PretrainConfig, source: Source, *, images: int, columns: int) -> np.ndarray:
    """The picture of `draw_views` as pixels, uint8 `[height, width, 3]`.

    Args:
      config: gives the views.
      source: the images.
      images: rows, at most as many as the dataset has.
      columns: views per row.

    Raises:
      UserError: none of the images can be read.
    """
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
        ((pixels, ids),) = batches
        return pixels.numpy()[ids.numpy() != pipeline.PADDING_ID]  # [images, num_views, S, S, 3]

    plain = augment.Views(
        PLAIN_VIEWS, config.image_size, config.seed, (), center_crop_fraction=config.center_crop_fraction
    )
    cells = np.concatenate([first_batch(plain, 1), first_batch(augment.views_of(config), columns)], axis=1)
    if not len(cells):
        reasons = (f"{shown(name)}: {reason}" for name, reason in sorted(source.bad.reasons.items()))
        raise UserError(f"--dataset={source.name}: none of {images} images can be read: {some_of(reasons)}")
    gaps = [(0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0)]
    cells = np.pad(cells, gaps, constant_values=255)  # [images, 1 + columns, S + gap, S + gap, 3]
    rows, columns, height, width, _ = cells.shape
    return cells.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
