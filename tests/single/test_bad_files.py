"""The list of bad files: each image once, whatever was found wrong with it."""

import numpy as np

from instcls_tf.data.bad_files import BAD_FILES_NAME, BadFiles
from instcls_tf.data.sources import DigitsSource


def test_an_image_counts_once_whatever_the_reasons(tmp_path):
    source = DigitsSource("dark", None, np.zeros([4, 8, 8, 3], np.uint8), np.full([4], -1, np.int32))
    source.bad.add("a\tb.jpg", "empty")
    BadFiles(str(tmp_path), source, 0.25).check()
    source.bad.add("a\tb.jpg", "not an image")
    again = BadFiles(str(tmp_path), source, 0.25)
    again.check()
    assert len(again) == 1
    assert (tmp_path / BAD_FILES_NAME).read_text() == "a\\tb.jpg\tempty\n"
