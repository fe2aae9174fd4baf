"""How much an encoder has to multiply, and how fast this machine multiplies at best."""

from __future__ import annotations

import time

from instcls_tf.config import FLOAT32, PretrainConfig
from instcls_tf.encoder.sizes import sizes_of

# Training takes a forward pass, and a backward pass of twice its products.
_PASSES = 3
_PRODUCT, _REPEATS = 1024, 3


def products_of(config: PretrainConfig, num_instances: int) -> float:
    """Multiplications of the encoder in a whole run."""
    epochs = config.for_instances(num_instances).all_epochs
    return products_of_images(config, epochs * num_instances)


def products_of_step(config: PretrainConfig, num_instances: int) -> float:
    """The same of one step, over all workers."""
    return products_of_images(config, min(config.batch_size, num_instances))


def products_of_images(config: PretrainConfig, images: int) -> float:
    """The same of so many images, in all their views."""
    return float(sizes_of(config).products) * _PASSES * config.views * images


def measured_rate(config: PretrainConfig, num_workers: int) -> float:
    """Multiplications a second of a matrix product in the recipe's number type, times the workers."""
    import tensorflow as tf

    dtype = tf.float32 if config.precision == FLOAT32 else tf.as_dtype(config.precision.removeprefix("mixed_"))
    factor = tf.cast(tf.random.stateless_uniform([_PRODUCT, _PRODUCT], [0, 0]), dtype)
    tf.reduce_sum(factor @ factor).numpy()  # threads and caches
    started = time.perf_counter()
    for _ in range(_REPEATS):
        tf.reduce_sum(factor @ factor).numpy()
    return num_workers * _REPEATS * _PRODUCT**3 / (time.perf_counter() - started)
