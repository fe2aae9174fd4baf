"""Every setting of a recipe that a run is made of reaches what it is for; all of them off their defaults."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Callable

import numpy as np
import pytest
import tensorflow as tf

from instcls_tf.config import DIET, DIET_OPTIMIZERS, INSTANCE, METHODS, MOCO_V2, PIC, SIMCLR, PretrainConfig
from instcls_tf.encoder import networks
from instcls_tf.methods.method import Method
from instcls_tf.pretraining.make_method import make_method
from instcls_tf.pretraining.state import Run, make_run, make_schedule
from instcls_tf.pretraining.steps import Steps
from tests.recipes import CHANGED

NUM_INSTANCES = 1280  # ten steps of 128
CONFIG = CHANGED.replace(width_multiplier=0.125, pic_window=640, pic_stride=64)

OF_ENCODER = (
    "encoder", "width_multiplier", "stem", "mlp_head", "embedding_size", "zero_init_last_gamma", "seed",
)  # fmt: skip
OF_SCHEDULE = (
    "learning_rate", "scale_learning_rate", "batch_size", "warmup_epochs", "epochs", "exposures", "extend_epochs",
)  # fmt: skip
OF_RUN = ("method", "momentum", "weight_decay", "keep_checkpoints", "pic_window", "pic_stride")  # a test of each
# What a run has taken before its first step is none of these: by whom they are taken later.
ELSEWHERE = {
    "data": (
        "dataset", "data_dir", "tfds_split", "max_bad_fraction", "max_pixels", "background", "cache", "image_size",
        "augmentation", "crop_min_area", "color_strength", "blur_probability", "center_crop_fraction", "views",
    ),
    "encoder/bn_groups": ("micro_batch", "recompute"),
    "classifier/prior": ("classifier_init", "bn_burn_in"),
    "pretraining": (
        "workdir", "init", "extend_from", "prior_every", "contrast_epochs", "log_every", "checkpoint_every",
        "online_knn_every", "gauge_every", "report", "stall_timeout", "max_steps",
    ),
}  # fmt: skip


@functools.cache
def encoder() -> tf.keras.Model:
    return networks.make_encoder(CONFIG)


@functools.cache
def made(**changes: Any) -> tuple[PretrainConfig, Method]:
    config = CONFIG.replace(**changes)
    return config, make_method(config, NUM_INSTANCES, encoder())


def run_of(**changes: Any) -> Run:
    config = CONFIG.replace(method=SIMCLR, **changes)
    return make_run(config, NUM_INSTANCES, make_schedule(Steps(config, NUM_INSTANCES)))


def of_class_weights(method: Any) -> dict[str, Any]:
    return {
        "class_momentum": method.momentum_factor,
        "class_weight_decay": method.weight_decay,
        "classifier_learning_rate_factor": method.learning_rate_factor,
    }


def of_instance(method: Any) -> dict[str, Any]:
    layer, hard_negatives = method.classifier, method.hard_negatives
    taken = {
        "embedding_size": layer.embedding_size,
        "temperature": layer.temperature,
        "smoothing": layer.smoothing,
        "smoothing_loss": layer._softmax.smoothing_loss,
        "sampled_classes": layer.sampled_classes,
        "class_weights_dtype": layer.local_weights.dtype.name,
        "class_momentum_dtype": layer.local_momentum.dtype.name,
        "class_products_dtype": layer._softmax.products_dtype.name,
        "seed": layer.seed,
        "batch_contrast": method.batch_contrast,
        "batch_contrast_temperature": method.batch_contrast_temperature,
    }
    if hard_negatives is None:
        return {**of_class_weights(layer), **taken}
    assert hard_negatives.classifier is layer
    passes = "xla" if layer._passes.uses_xla else "operations"
    lists = {"hard_negatives": hard_negatives.lists.shape[1], "class_passes": passes}
    return {**of_class_weights(layer), **taken, **lists}


def of_simclr(method: Any) -> dict[str, Any]:
    return {"temperature": method.temperature}


def of_moco_v2(method: Any) -> dict[str, Any]:
    assert method.encoder is encoder()
    return {
        "moco_queue": method.queue.shape[0],
        "moco_momentum": method.momentum,
        "temperature": method.temperature,
        "seed": method.seed,
        "precision": policy_of(method.key_encoder),
    }


def of_pic(method: Any) -> dict[str, Any]:
    size = {"embedding_size": method.local_weights.shape[1]}
    taken = {"temperature": method.temperature, "pic_recent_negatives": method.recent.shape[0]}
    return {**of_class_weights(method), **size, **taken}


def of_diet(method: Any) -> dict[str, Any]:
    taken = {"diet_label_smoothing": method.label_smoothing, "diet_optimizer": method.optimizer}
    return {**of_class_weights(method), **taken}


TAKEN: dict[str, Callable[[Any], dict[str, Any]]] = {
    INSTANCE: of_instance,
    SIMCLR: of_simclr,
    MOCO_V2: of_moco_v2,
    PIC: of_pic,
    DIET: of_diet,
}


def policy_of(encoder: tf.keras.Model) -> str:
    return encoder.get_layer("backbone").get_layer("conv1").dtype_policy.name


SMOOTHED = {"method": INSTANCE, "sampled_classes": 0, "smoothing": 0.3}  # sampled classes rule smoothing out


@pytest.mark.parametrize("changes", [*({"method": method} for method in METHODS), SMOOTHED], ids=[*METHODS, "smoothed"])
def test_a_method_takes_its_settings(changes):
    config, method = made(**changes)
    taken = TAKEN[config.method](method)
    assert taken == {name: getattr(config, name) for name in taken}


@pytest.mark.parametrize("method", [INSTANCE, PIC, DIET])
def test_class_weights_follow_the_encoder_unless_told_otherwise(method):
    _, method = made(method=method, class_momentum=None, class_weight_decay=None)
    taken = of_class_weights(method.classifier or method)
    assert (taken["class_momentum"], taken["class_weight_decay"]) == (CONFIG.momentum, CONFIG.weight_decay)


def test_the_rate_of_class_weights_of_diet():
    """AdamW's 1e-3 at a batch of 256 is for another optimiser than the encoder's, whatever rate that has."""
    rates = {"batch_size": 512, "learning_rate": 0.06, "classifier_learning_rate_factor": 4.0}
    factors = {
        name: made(method=DIET, diet_optimizer=name, **rates)[1].learning_rate_factor for name in DIET_OPTIMIZERS
    }
    assert factors == {"adamw": pytest.approx(4.0 * 1e-3 * 2 / 0.06), "sgd": 4.0}
    _, still = made(method=DIET, learning_rate=0.0, diet_optimizer="adamw")
    assert still.learning_rate_factor == CONFIG.classifier_learning_rate_factor


@pytest.mark.parametrize("method", [PIC, DIET])
def test_the_seed_of_class_weights(method):
    weights = [made(method=method, seed=seed)[1].local_weights.numpy() for seed in (3, 4)]
    np.testing.assert_array_equal(weights[0], made(method=method)[1].local_weights)
    assert np.any(weights[0] != weights[1])


def test_the_longest_absence_of_pic_is_that_of_its_window():
    """Twenty windows of five steps until an instance is in one again, and one more."""
    assert made(method=PIC)[1].transitions.shape[0] == 1 + 21 * 5


def test_encoder_and_optimizer():
    run = run_of(precision="mixed_bfloat16")
    assert policy_of(run.encoder) == "mixed_bfloat16"
    expected = networks.build_encoder(**{name: getattr(CONFIG, name) for name in OF_ENCODER})
    assert len(run.encoder.variables) == len(expected.variables)
    for variable, other in zip(run.encoder.variables, expected.variables):
        np.testing.assert_array_equal(variable, other)
    optimizer = run.optimizer
    assert (optimizer.momentum_factor, optimizer.l2_weight_decay) == (CONFIG.momentum, CONFIG.weight_decay)
    assert run.keep_checkpoints == CONFIG.keep_checkpoints


def test_float16_scales_the_loss():
    optimizer = run_of(precision="mixed_float16").optimizer
    assert isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer)
    inner = optimizer.inner_optimizer
    assert (inner.momentum_factor, inner.l2_weight_decay) == (CONFIG.momentum, CONFIG.weight_decay)


def test_learning_rates():
    """Seven epochs with half of one to warm up, then two more with a tenth of them to warm up."""
    config, peak = CONFIG.replace(exposures=0), CONFIG.learning_rate
    schedule = make_schedule(Steps(config, NUM_INSTANCES))
    middle, extended = (5 + 70) / 2, 70
    rates = {0: peak / 6, 4: peak * 5 / 6, 5: peak, middle: peak / 2}
    rates |= {extended: peak / 3, 71: peak * 2 / 3, 72: peak, (72 + 90) / 2: peak / 2, 90: 0.0}
    assert {step: float(schedule(step)) for step in rates} == pytest.approx(rates, abs=1e-7)
    scaled = make_schedule(Steps(config.replace(scale_learning_rate=True), NUM_INSTANCES))
    assert float(scaled(5)) == pytest.approx(peak * 128 / 4096)


def test_epochs_are_those_of_exposures():
    config = CONFIG.for_instances(NUM_INSTANCES).replace(extend_epochs=0)
    assert config.epochs == 55  # 70,000 / 1,280, rounded up
    schedule = make_schedule(Steps(config, NUM_INSTANCES))
    assert [float(schedule(step)) > 0 for step in (549, 550)] == [True, False]


def test_no_setting_is_forgotten():
    """A new one belongs into what its method has taken, or among those that somebody else takes."""
    taken = {*OF_ENCODER, *OF_SCHEDULE, *OF_RUN}
    for changes in (*({"method": method} for method in METHODS), SMOOTHED):
        taken.update(TAKEN[changes["method"]](made(**changes)[1]))
    elsewhere = {name for names in ELSEWHERE.values() for name in names}
    assert not taken & elsewhere
    assert taken | elsewhere == {field.name for field in dataclasses.fields(PretrainConfig)}
