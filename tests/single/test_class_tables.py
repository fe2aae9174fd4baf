"""Class weights that are read from a checkpoint of any dtype, also by a run on a set that has grown."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.config import STORAGE_DTYPES, PretrainConfig
from instcls_tf.errors import UserError
from instcls_tf.methods.class_tables import read_rows
from instcls_tf.methods.instance import CLASS_MOMENTUM_KEY, CLASS_WEIGHTS_KEY, InstanceClassification
from instcls_tf.pretraining import growth
from instcls_tf.pretraining.make_method import make_method
from instcls_tf.run import checkpoint

NUM_BEFORE, NUM_NOW, SIZE = 30, 25, 8


def trained(dtype: str) -> ShardedClassifier:
    """A classifier that has made some steps."""
    layer = ShardedClassifier(NUM_BEFORE, SIZE, smoothing=0.0, weights_dtype=dtype, momentum_dtype=dtype)
    layer.initialize_gaussian()
    for step in range(3):
        embeddings = tf.random.stateless_normal([12, SIZE], [1, step])
        layer(embeddings, tf.range(12), learning_rate=0.3, step=step)
    return layer


@pytest.fixture(scope="module", params=STORAGE_DTYPES)
def saved(request, tmp_path_factory) -> tuple[str, ShardedClassifier]:
    layer = trained(request.param)
    folder = str(tmp_path_factory.mktemp(request.param))
    return checkpoint.save(folder, 3, tf.train.Checkpoint(), InstanceClassification(layer).sliced()), layer


def test_some_rows_are_read_in_float32(saved):
    prefix, layer = saved
    local = tf.range(7, 19)
    np.testing.assert_array_equal(read_rows(prefix, CLASS_WEIGHTS_KEY, 7, 19), layer.read(local))
    np.testing.assert_array_equal(read_rows(prefix, CLASS_MOMENTUM_KEY, 7, 19), layer.classes.momentum.read(local))


@pytest.mark.parametrize("dtype", STORAGE_DTYPES)
def test_a_grown_set_takes_rows_over(saved, dtype, monkeypatch):
    """Exactly where they are kept in as many digits as before; else to the nearest number."""
    monkeypatch.setattr(growth, "CHUNK_ROWS", 10)
    prefix, before = saved
    kept = {"weights_dtype": dtype, "momentum_dtype": dtype}
    now = ShardedClassifier(NUM_NOW, SIZE, smoothing=0.0, initializer="zeros", **kept)
    known = np.random.default_rng(1).permutation(NUM_BEFORE)[:NUM_NOW]
    known[[2, 20]] = -1
    taken = growth.Growth(prefix, known, NUM_BEFORE)
    for name, key in (("weights", CLASS_WEIGHTS_KEY), ("momentum", CLASS_MOMENTUM_KEY)):
        table, old = getattr(now.classes, name), getattr(before.classes, name)
        growth._read_known(taken, key, table, now)
        rows, expected = table.read(tf.range(NUM_NOW)).numpy(), old.read(tf.range(NUM_BEFORE)).numpy()[known]
        expected[known < 0] = 0
        # bfloat16 has all digits of the numbers of int8.
        exact = (old.values.dtype.name, dtype) == ("int8", "bfloat16") or dtype in ("float32", old.values.dtype.name)
        largest = np.abs(expected).max(axis=1, keepdims=True)
        assert np.all(np.abs(rows - expected) <= (0 if exact else largest / 127))
        assert np.any(rows != expected) != exact


@pytest.mark.parametrize("name", ["class_weights_dtype", "class_momentum_dtype"])
def test_a_run_on_a_gpu_refuses_int8(name, monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    with pytest.raises(UserError, match=f"^--{name}=int8: must be float32 or bfloat16 on a GPU, where rows of int8"):
        make_method(PretrainConfig(**{name: "int8"}), 5, tf.keras.Sequential())
