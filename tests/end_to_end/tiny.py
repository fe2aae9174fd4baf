"""The smallest recipe that has everything: digits, a narrow ResNet-18, prior and smoothing."""

from __future__ import annotations

from instcls_tf.config import PretrainConfig

STEPS_PER_EPOCH = 6  # 1,437 digits in batches of 256, the last one smaller
STEPS = 2 * STEPS_PER_EPOCH
STOPPED_AT = STEPS_PER_EPOCH + 2  # in mid-epoch

RECIPE = {
    "dataset": "digits",
    "augmentation": "digits",
    "image_size": 16,
    "encoder": "resnet18",
    "stem": "small",
    "width_multiplier": 0.125,
    "embedding_size": 32,
    "batch_size": 256,
    "epochs": 2,
    "learning_rate": 0.4,
    "scale_learning_rate": False,
    "hard_negatives": 10,
    "log_every": 2,
}


def tiny_config(workdir, **changes) -> PretrainConfig:
    return PretrainConfig(workdir=str(workdir), **{**RECIPE, **changes})


def tiny_flags(workdir, **changes) -> list[str]:
    return tiny_config(workdir, **changes).as_flags().split("\n")[:-1]
