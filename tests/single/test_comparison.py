"""The pictures of a comparison are those of the features beside them."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from instcls_tf.data.sources import open_source
from instcls_tf.evaluation import features
from instcls_tf.report import comparison


def test_images_that_cannot_be_read_have_no_row(tmp_path):
    for index in range(7):
        png = tf.io.encode_png(np.full([4, 4, 3], 40 + index, np.uint8)).numpy()
        (tmp_path / f"{index}.png").write_bytes(b"torn" if index in (2, 4) else png)
    source = open_source(f"folder:{tmp_path}")
    vectors, _ = features.extract(features.pixels, source, image_size=4)
    rows = np.array([4, 1, 2, 3, 1])
    images = comparison._images(source, 4, rows, len(vectors))
    assert images[:, 0, 0, 0].tolist() == [46, 41, 43, 45, 41]
