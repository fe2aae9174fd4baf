"""What rivals are warned of whose published settings need more steps than a run has."""

import pytest
import tensorflow as tf

from instcls_tf.config import PretrainConfig
from instcls_tf.data.sliding_window import sliding_window_ids
from instcls_tf.pretraining import short_runs
from instcls_tf.pretraining.steps import Steps
from tests.single.test_advice import FITS, said


def sentences(num_instances: int, **settings) -> list[str]:
    return list(short_runs.sentences(PretrainConfig(**settings), num_instances))


def test_a_key_encoder_that_stays_random():
    """0.999 to the 72nd is 0.93; to the 2302nd it is just below 0.1."""
    recipe = {"method": "moco_v2", "batch_size": 128}
    assert sentences(1437, epochs=6, **recipe) == [
        "--moco_momentum=0.999: after the 72 steps of this run 93% of the key encoder are still its random start:"
        " take --moco_momentum=0.9"
    ]
    assert sentences(5000, epochs=24, **recipe) == [
        "--moco_momentum=0.999: after the 960 steps of this run 38% of the key encoder are still its random start:"
        " take --moco_momentum=0.99"
    ]
    assert sentences(1437, epochs=6, moco_momentum=0.9, **recipe) == []
    assert sentences(128, epochs=2301, **recipe) != []
    assert sentences(128, epochs=2302, **recipe) == []
    assert sentences(128, epochs=10, exposures=128 * 2302, **recipe) == [], "as long as the run will be"
    assert sentences(5000, epochs=24, method="simclr", batch_size=128) == []


def reached(num_instances: int, config: PretrainConfig) -> int:
    """How many different images the windows of a run show, from the ids themselves."""
    size, stride = config.window(num_instances)
    windows = Steps(config, num_instances).total // -(-size // config.batch_size)
    shown: set[int] = set()
    for number in range(windows):
        places = tf.range(size, dtype=tf.int64)
        shown |= set(sliding_window_ids(places, 0, number, num_instances, size, stride).numpy().tolist())
    return len(shown)


@pytest.mark.parametrize(("num_instances", "epochs"), [(1437, 6), (500, 2), (500, 3)])
def test_windows_that_do_not_reach_all_images(num_instances, epochs):
    config = PretrainConfig(method="pic", batch_size=64, epochs=epochs)
    (sentence,) = short_runs.sentences(config, num_instances)
    count = reached(num_instances, config)
    assert f"windows reach only {count} of the {num_instances} images: take --pic_stride=" in sentence
    stride = int(sentence.partition("take --pic_stride=")[2].split(",")[0])
    advised = config.replace(pic_stride=stride)
    assert list(short_runs.sentences(advised, num_instances)) == [] and reached(num_instances, advised) == num_instances


def test_windows_that_would_have_to_leave_gaps():
    """An epoch of 500 images is 8 windows of 62: one after the other they miss four."""
    (sentence,) = sentences(500, method="pic", epochs=1, pic_stride=62)
    assert sentence == "--pic_stride=62: this run's windows reach only 496 of the 500 images: it takes more epochs"


def test_windows_that_reach_all_images():
    config = PretrainConfig(method="pic", batch_size=64, epochs=9)
    assert reached(1437, config) == 1437 and list(short_runs.sentences(config, 1437)) == []
    assert sentences(1437, method="pic", pic_window=0, epochs=1) == []


def test_a_run_is_warned():
    (sentence,) = said("digits", **{**FITS, "image_size": 64}, method="pic", epochs=1)
    assert sentence.startswith("--pic_stride=")
