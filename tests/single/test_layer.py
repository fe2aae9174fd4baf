"""The classifier as users of Keras meet it: its defaults, its mistakes, and what Keras saves of it."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import tensorflow as tf

import instcls_tf
from instcls_tf.classifier.choice import passes_of
from instcls_tf.classifier.kernels.passes import CompiledPasses
from instcls_tf.classifier.labels import ListsOfRows
from instcls_tf.classifier.portable_passes import PortablePasses
from instcls_tf.classifier.sharded_classifier import ShardedClassifier
from instcls_tf.config import CLASS_PASSES, PretrainConfig
from instcls_tf.errors import UserError
from instcls_tf.pretraining.make_method import make_method
from tests.classifiers import (
    NUM_HARD_NEGATIVES,
    NUM_INSTANCES,
    PASSES,
    RATE,
    SIZE,
    batch,
    classifier,
    documented_example,
)
from tests.commands import run_command

# Of every argument another value than its default.
CHANGED = {
    "num_instances": 31,
    "embedding_size": 6,
    "temperature": 0.3,
    "smoothing": 0.0,
    "smoothing_loss": "cross_entropy",
    "momentum": 0.5,
    "weight_decay": 0.01,
    "learning_rate_factor": 2.0,
    "sampled_classes": 9,
    "weights_dtype": "bfloat16",
    "momentum_dtype": "bfloat16",
    "products_dtype": "bfloat16",
    "seed": 4,
    "initializer": "zeros",
    "make_passes": "operations",
    "name": "mine",
}


def test_the_documented_example_trains():
    names = {"instcls_tf": instcls_tf, "tf": tf}
    tf.random.set_seed(1)
    example = documented_example()
    assert "HardNegatives" in example and "learning_rate" in example
    exec(example, names)
    first = names["classifier"](names["embeddings"], names["instance_ids"], names["hard_negatives"]).loss
    for _ in range(3):
        names["classifier"](names["embeddings"], names["instance_ids"], names["hard_negatives"], learning_rate=1.0)
    last = names["classifier"](names["embeddings"], names["instance_ids"], names["hard_negatives"]).loss
    assert np.isfinite(names["loss"]) and last < first - 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_new_layer_learns(dtype):
    embeddings, ids, _ = batch()
    layer = ShardedClassifier(NUM_INSTANCES, SIZE, smoothing=0.0, weights_dtype=dtype)
    losses = [layer(embeddings, ids, learning_rate=RATE, step=step).loss.numpy() for step in range(10)]
    assert (np.diff(losses) < -0.02).all()  # rows without a length would make one step


def test_a_new_layer_has_the_gaussian_rows():
    made, filled = ShardedClassifier(NUM_INSTANCES, SIZE, seed=3), ShardedClassifier(NUM_INSTANCES, SIZE, seed=3)
    filled.initialize_gaussian()
    assert made.local_weights.numpy().all()
    np.testing.assert_array_equal(made.local_weights, filled.local_weights)
    assert not made.local_momentum.numpy().any()


def test_rows_that_something_else_fills_begin_at_zero():
    """What goes on with a run tells by it that it has no class weights yet."""
    assert not ShardedClassifier(NUM_INSTANCES, SIZE, initializer="zeros").local_weights.numpy().any()
    method = make_method(PretrainConfig(smoothing=0.0, embedding_size=SIZE), NUM_INSTANCES, encoder=None)
    assert not method.classifier.local_weights.numpy().any()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"num_instances": 0}, "num_instances=0: must be at least 1"),
        ({"embedding_size": 0}, "embedding_size=0: must be at least 1"),
        ({"temperature": -1}, "temperature=-1: must be a number above 0"),
        ({"temperature": 0}, "temperature=0: must be a number above 0"),
        ({"temperature": float("inf")}, "temperature=inf: must be a number above 0"),
        ({"smoothing": 2}, "smoothing=2: must be 0 or more and below 1"),
        ({"smoothing": float("nan")}, "smoothing=nan: must be 0 or more and below 1"),
        ({"momentum": 1.0}, r"momentum=1\.0: must be 0 or more and below 1"),
        ({"weight_decay": -0.1}, r"weight_decay=-0\.1: must be 0 or more"),
        ({"learning_rate_factor": -1.0}, r"learning_rate_factor=-1\.0: must be 0 or more"),
        ({"seed": -1}, "seed=-1: must be 0 or more and below 2147483648"),
        ({"initializer": "ones"}, r"initializer='ones': must be one of \('gaussian', 'zeros'\)"),
        ({"make_passes": "fast"}, r"make_passes='fast': must be one of \('auto', 'operations', 'xla'\)"),
    ],
)
def test_arguments_out_of_range(wrong, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        ShardedClassifier(**{"num_instances": 5, "embedding_size": 2, **wrong})


@pytest.mark.parametrize("ids", [[0, 3, -1, 9], np.array([0, 53]), tf.constant([2**40], tf.int64)])
def test_an_id_of_no_class_is_named(ids):
    layer = ShardedClassifier(NUM_INSTANCES, SIZE, smoothing=0.0)
    wrong = {4: -1, 2: 53, 1: 2**40}[len(ids)]
    with pytest.raises(UserError, match=f"instance_ids: {wrong} is no class, must be 0 or more and below num_.*=53"):
        layer(tf.ones([len(ids), SIZE]), ids, learning_rate=RATE)


@pytest.fixture(params=PASSES)
def make_classifier(request):
    """Makes classifiers that step by either."""
    return lambda **changes: classifier(request.param, **changes)


def test_hard_negatives_row_by_row(make_classifier):
    """As numbers, and as what `HardNegatives` looks up for them."""
    embeddings, ids, hard_negatives = batch()
    given = hard_negatives, tf.constant(hard_negatives, tf.int64), ListsOfRows(tf.constant(hard_negatives))
    losses = [make_classifier()(embeddings, ids, lists, learning_rate=RATE).loss.numpy() for lists in given]
    assert losses[0] == losses[1] == losses[2]

    @tf.function
    def step(embeddings, ids, lists):
        return make_classifier_once(embeddings, ids, lists).loss

    make_classifier_once = make_classifier()
    assert step(embeddings, ids, hard_negatives).numpy() == losses[0]


def test_hard_negatives_of_other_rows(make_classifier):
    embeddings, ids, hard_negatives = batch()
    layer = make_classifier()
    all_lists = instcls_tf.hard_negatives(layer, NUM_HARD_NEGATIVES)
    with pytest.raises(UserError, match=r"hard_negatives: of shape \[53, 5\], must be \[12, K\], lists of the rows"):
        layer(embeddings, ids, all_lists)
    with pytest.raises(UserError, match=r"hard_negatives: of shape \[12\], must be \[12, K\], "):
        layer(embeddings, ids, hard_negatives[:, 0])
    with pytest.raises(UserError, match="hard_negatives: 53 is no class, must be "):
        layer(embeddings, ids, hard_negatives * 0 + NUM_INSTANCES)
    assert np.isfinite(layer(embeddings, ids, tf.gather(all_lists, ids)).loss)


def test_config_makes_the_same_layer_again():
    layer = ShardedClassifier(**CHANGED)
    config = layer.get_config()
    assert config == CHANGED
    assert ShardedClassifier.from_config(config).get_config() == CHANGED
    defaults = ShardedClassifier(31, 6).get_config()
    assert set(defaults) == set(CHANGED) and defaults["make_passes"] == "auto"
    assert all(defaults[name] != CHANGED[name] for name in set(CHANGED) - {"num_instances", "embedding_size"})
    again = tf.keras.layers.deserialize(tf.keras.layers.serialize(layer))
    assert again.get_config() == CHANGED
    assert isinstance(ShardedClassifier.from_config({**defaults, "make_passes": "xla"})._passes, PortablePasses)


def test_passes_have_names():
    kinds = {name: ShardedClassifier(5, 2, make_passes=name) for name in CLASS_PASSES}
    assert {name: layer.get_config()["make_passes"] for name, layer in kinds.items()} == {n: n for n in CLASS_PASSES}
    assert {name: type(layer._passes) for name, layer in kinds.items()} == {
        "auto": CompiledPasses,
        "operations": PortablePasses,
        "xla": PortablePasses,
    }
    by_callable = ShardedClassifier(5, 2, make_passes=passes_of("operations"))
    assert by_callable.get_config()["make_passes"] == "operations"
    mine = ShardedClassifier(5, 2, make_passes=lambda *parts: PortablePasses(*parts))
    assert isinstance(mine._passes, PortablePasses) and mine.get_config()["make_passes"] == "auto"


def make_model() -> tuple[tf.keras.Model, list[tf.Tensor]]:
    """A functional model whose output is the loss, and inputs for it."""
    inputs = [tf.keras.Input([4]), tf.keras.Input([], dtype=tf.int32), tf.keras.Input([2], dtype=tf.int32)]
    layer = ShardedClassifier(20, 8, make_passes="operations", name="of_the_model")
    model = tf.keras.Model(inputs, layer(tf.keras.layers.Dense(8)(inputs[0]), *inputs[1:]).loss)
    random = np.random.default_rng(1)
    rows, ids, lists = random.normal(size=[5, 4]), np.arange(5), random.integers(0, 20, [5, 2])
    return model, [tf.constant(rows, tf.float32), tf.constant(ids, tf.int32), tf.constant(lists, tf.int32)]


@pytest.mark.parametrize("form", [".keras", ".h5", ""])
def test_keras_loads_a_model_that_it_has_saved(tmp_path, form):
    model, inputs = make_model()
    path = str(tmp_path / f"model{form}")
    model.save(path)
    again = tf.keras.models.load_model(path)
    layer = again.get_layer("of_the_model")
    assert layer.get_config() == model.get_layer("of_the_model").get_config()
    np.testing.assert_array_equal(layer.local_weights, model.get_layer("of_the_model").local_weights)
    np.testing.assert_allclose(again(inputs), model(inputs), rtol=1e-6)


_ANOTHER_PROCESS = """
import sys, tensorflow as tf, instcls_tf
instcls_tf.ShardedClassifier
print(type(tf.keras.models.load_model(sys.argv[1]).get_layer("of_the_model")).__name__)
"""


def test_another_process_loads_it(tmp_path):
    model, _ = make_model()
    model.save(str(tmp_path / "model.keras"))
    finished = run_command([sys.executable, "-c", _ANOTHER_PROCESS, str(tmp_path / "model.keras")])
    assert finished.stdout.splitlines()[-1:] == ["ShardedClassifier"], finished.output
    assert "AutoGraph" not in finished.output
