"""Recipes of pretraining: one that is fit, and one that has another value in each field."""

from __future__ import annotations

from pathlib import Path

from instcls_tf.config import PretrainConfig
from instcls_tf.run.workdir import run_flags_path

VALID = PretrainConfig(workdir="run")

# Written before there was a mark at the end, and before --online_knn_every.
OLD_RUN_FLAGS = "--workdir=run\n--dataset=digits\n--epochs=3\n--seed=0\n--log_every=10\n--checkpoint_every=1\n"

# A value for every field that is not its default.
CHANGED = PretrainConfig(
    workdir="runs/a b",
    dataset="folder:/data/my photos=1",
    data_dir="/data/tfds",
    tfds_split="train[:10%]",
    max_bad_fraction=0.5,
    max_pixels=1_000_000,
    background="#10ff00",
    cache="ram",
    image_size=96,
    augmentation="digits",
    crop_min_area=0.08,
    color_strength=2.0,
    blur_probability=0.25,
    center_crop_fraction=0.5,
    encoder="resnet18",
    width_multiplier=0.25,
    stem="small",
    mlp_head=False,
    embedding_size=64,
    zero_init_last_gamma=False,
    init="runs/earlier",
    batch_size=128,
    micro_batch=32,
    views=3,
    method="diet",
    class_weight_decay=0.0,
    class_momentum=0.5,
    prior_every=2,
    contrast_epochs=3,
    batch_contrast=0.5,
    batch_contrast_temperature=0.1,
    moco_queue=512,
    moco_momentum=0.99,
    pic_recent_negatives=1000,
    pic_window=0,
    pic_stride=10,
    diet_label_smoothing=0.5,
    diet_optimizer="sgd",
    epochs=7,
    exposures=70_000,
    recompute="never",
    extend_epochs=2,
    extend_from="runs/before",
    warmup_epochs=0.5,
    learning_rate=0.1,
    scale_learning_rate=False,
    classifier_learning_rate_factor=4.0,
    weight_decay=1.5e-06,
    momentum=0.8,
    temperature=0.07,
    smoothing=0.0,
    hard_negatives=20,
    smoothing_loss="cross_entropy",
    classifier_init="random",
    bn_burn_in=0,
    sampled_classes=1024,
    precision="mixed_float16",
    class_weights_dtype="bfloat16",
    class_momentum_dtype="bfloat16",
    class_products_dtype="bfloat16",
    class_passes="xla",
    seed=3,
    log_every=1,
    checkpoint_every=0,
    keep_checkpoints=5,
    online_knn_every=2,
    gauge_every=5,
    report=False,
    stall_timeout=30.5,
    max_steps=0,
)

# So small that what is planned of it can be counted.
PLANNED = PretrainConfig(
    workdir="unused",
    encoder="resnet18",
    stem="small",
    width_multiplier=0.125,
    image_size=8,
    batch_size=4,
    micro_batch=1,
    embedding_size=2,
    hard_negatives=3,
)

# Without a prior, and so small that its network is made and judged in a moment.
WITHOUT_PRIOR = PretrainConfig(
    workdir="unused",
    method="simclr",
    encoder="resnet10",
    stem="small",
    width_multiplier=0.125,
    image_size=16,
    embedding_size=8,
)


def write_run(folder: Path, config: PretrainConfig) -> str:
    """Writes a recipe where a run in that folder has it; returns its path."""
    path = run_flags_path(str(folder))
    Path(path).write_text(config.as_flags())
    return path
