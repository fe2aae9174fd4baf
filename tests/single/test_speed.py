"""The arithmetic of a run's time: what is multiplied, and how fast this machine does."""

from __future__ import annotations

from instcls_tf.config import PretrainConfig
from instcls_tf.encoder.sizes import sizes_of
from instcls_tf.pretraining.speed import measured_rate, products_of, products_of_step

CONFIG = PretrainConfig(
    encoder="resnet18", stem="small", image_size=32, batch_size=4, epochs=3, views=2, exposures=4000
)


def test_products_of_a_run_and_of_a_step():
    of_a_view = 3 * sizes_of(CONFIG).products
    assert products_of(CONFIG, 100) == of_a_view * 2 * 40 * 100
    assert products_of_step(CONFIG, 11) == of_a_view * 2 * 4
    assert products_of_step(CONFIG, 3) == of_a_view * 2 * 3


def test_the_rate_is_of_this_machine():
    assert 1e8 < measured_rate(PretrainConfig(), 1) < 1e14
