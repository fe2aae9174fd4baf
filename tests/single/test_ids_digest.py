"""Workers that do not see the same images must not train together."""

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf import collectives
from instcls_tf.data.sources import open_source
from instcls_tf.errors import UserError
from instcls_tf.pretraining import _refuse_different_ids


def test_workers_with_different_files_are_refused(monkeypatch):
    source = open_source("digits")
    _refuse_different_ids(source)
    other = tf.constant(np.array([7], np.int64))
    monkeypatch.setattr(collectives, "all_gather", lambda mine, name: tf.concat([mine, mine, other], 0))
    with pytest.raises(UserError, match="worker 2 does not see the same images as worker 0"):
        _refuse_different_ids(source)
