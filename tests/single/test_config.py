"""The recipe: what it refuses, in which words, and sizes that follow from the number of instances."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from instcls_tf.config import PretrainConfig
from instcls_tf.encoder.sizes import sizes_of
from instcls_tf.errors import UserError
from instcls_tf.run.workdir import load_classification, recipe_of
from tests.recipes import VALID, write_run

ROOT = Path(__file__).resolve().parents[2]

NAN, INFINITE = float("nan"), float("inf")


def test_defaults_are_valid():
    VALID.validate()
    VALID.validate_with_data(1_281_167)


AT_LEAST_1, ABOVE_0, NOT_NEGATIVE, SHARE = "at least 1", "a number above 0", "0 or more", "0 or more and below 1"
A_CHANNEL = "above 1/128 (a channel), at most 64"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"workdir": ""}, "--workdir is missing: name the folder that receives the run"),
        ({"encoder": "vgg"}, "--encoder=vgg: must be one of resnet50, resnet18, resnet10"),
        ({"stem": "big"}, "--stem=big: must be one of imagenet, small"),
        ({"augmentation": "moco"}, "--augmentation=moco: must be one of simclr, digits, none"),
        ({"smoothing_loss": "kl"}, "--smoothing_loss=kl: must be one of marginal, cross_entropy"),
        (
            {"classifier_init": "zeros"},
            "--classifier_init=zeros: must be one of raw_running_bn, raw_batch_bn, raw_fixed_bn, random",
        ),
        ({"class_weights_dtype": "int4"}, "--class_weights_dtype=int4: must be one of float32, bfloat16, int8"),
        (
            {"class_passes": "xla", "sampled_classes": 10, "smoothing": 0.0},
            "--class_passes=xla: must be auto or operations with --sampled_classes",
        ),
        ({"class_passes": "cuda"}, "--class_passes=cuda: must be one of auto, operations, xla"),
        ({"class_products_dtype": "int8"}, "--class_products_dtype=int8: must be one of float32, bfloat16"),
        ({"precision": "half"}, "--precision=half: must be one of float32, mixed_bfloat16, mixed_float16, auto"),
        *(
            ({name: value}, f"--{name}={value}: must be {wanted}")
            for names, values, wanted in (
                (
                    ("image_size", "embedding_size", "batch_size", "views", "micro_batch", "epochs", "log_every"),
                    (0, -1),
                    AT_LEAST_1,
                ),
                (
                    ("temperature", "classifier_learning_rate_factor"),
                    (0.0, -0.1, NAN, INFINITE),
                    ABOVE_0,
                ),
                (
                    ("learning_rate", "weight_decay", "warmup_epochs", "stall_timeout"),
                    (-0.1, NAN, INFINITE),
                    NOT_NEGATIVE,
                ),
                (("bn_burn_in", "sampled_classes", "checkpoint_every", "hard_negatives"), (-1,), NOT_NEGATIVE),
                (("smoothing", "momentum"), (-0.1, 1.0, NAN), SHARE),
                (("width_multiplier",), (0.0, -0.1, NAN, INFINITE, 0.001, 1 / 128, 64.1, 1e200), A_CHANNEL),
                (("seed",), (-1, 2**31), "0 or more and below 2147483648"),
                (("max_steps",), (-1,), NOT_NEGATIVE),
                (("blur_probability", "max_bad_fraction"), (-0.1, 1.1, NAN), "0 to 1"),
                (("max_pixels",), (0, 2**30), "1 to 178956970"),
                (
                    ("background",),
                    ("", "pink", "#12345", "#12345g", "#1234567"),
                    "one of white, grey, black, or #rrggbb",
                ),
                (("color_strength",), (-0.1, 2.6, NAN), "0 to 2.5"),
                (("crop_min_area", "center_crop_fraction"), (0.0, 1.1, NAN), "above 0 and at most 1"),
            )
            for name in names
            for value in values
        ),
        ({"hard_negatives": 0}, "--hard_negatives=0: must be at least 1, or --smoothing=0"),
        (
            {"sampled_classes": 9000},
            "--sampled_classes=9000 works without smoothing only (a hard negative need not be in the sample):"
            " add --smoothing=0",
        ),
    ],
)
def test_refuses(changes, sentence):
    with pytest.raises(UserError) as refusal:
        VALID.replace(**changes).validate()
    assert str(refusal.value) == sentence


def test_accepts_the_limits():
    limits = {"temperature": 1e-3, "smoothing": 0.0, "hard_negatives": 0, "max_steps": 0, "seed": 2**31 - 1}
    for width in (0.008, 64.0):
        VALID.replace(width_multiplier=width).validate()
        assert sizes_of(VALID.replace(width_multiplier=width)).parameters > 0
    VALID.replace(**limits, bn_burn_in=0, checkpoint_every=0, learning_rate=0.0, warmup_epochs=0.0).validate()


def test_every_worker_needs_an_instance():
    with pytest.raises(UserError) as refusal:
        VALID.replace(batch_size=3).validate(num_workers=4)
    assert str(refusal.value) == "--batch_size=3: must be at least the 4 workers"
    VALID.replace(batch_size=4, micro_batch=1).validate(num_workers=4)


@pytest.mark.parametrize(("batch", "workers", "largest"), [(128, 2, 127), (128, 3, 63), (10, 4, 3), (4, 4, 1)])
def test_every_worker_needs_a_group(batch, workers, largest):
    VALID.replace(batch_size=batch, micro_batch=largest).validate(workers)
    assert -(-batch // largest) >= workers > -(-batch // (largest + 1))
    with pytest.raises(UserError) as refusal:
        VALID.replace(batch_size=batch, micro_batch=largest + 1).validate(workers)
    wanted = f"at most {largest}, for each of the {workers} workers to have a BN group of --batch_size={batch}"
    fewer = f"or at most {-(-batch // (largest + 1))} workers"
    assert str(refusal.value) == f"--micro_batch={largest + 1}: must be {wanted}, {fewer}"


def test_fewer_hard_negatives_than_other_instances():
    with pytest.raises(UserError) as refusal:
        VALID.validate_with_data(100)
    wanted = "below the number of instances of --dataset=imagenet2012, 100"
    assert str(refusal.value) == f"--hard_negatives=100: must be {wanted}"
    VALID.validate_with_data(101)
    VALID.replace(smoothing=0.0).validate_with_data(2)


def test_every_worker_needs_a_class():
    with pytest.raises(UserError) as refusal:
        VALID.replace(dataset="folder:few", hard_negatives=1).validate_with_data(3, num_workers=4)
    assert str(refusal.value) == "--dataset=folder:few: has 3 instances, must be at least the 4 workers"
    with pytest.raises(UserError) as refusal:
        VALID.replace(dataset="synthetic").validate_with_data(3, num_workers=4, flag="num_instances")
    assert str(refusal.value) == "--num_instances=3: must be at least the 4 workers"
    VALID.replace(hard_negatives=1).validate_with_data(4, num_workers=4)


def test_sample_is_one_class_at_least_and_all_at_most():
    config = VALID.replace(smoothing=0.0, dataset="folder:few", batch_size=64)
    for size in (1, 63, 200):
        config.replace(sampled_classes=size).validate_with_data(200)
    with pytest.raises(UserError) as refusal:
        config.replace(sampled_classes=201).validate_with_data(200)
    wanted = "at most the number of instances of --dataset=folder:few, 200"
    assert str(refusal.value) == f"--sampled_classes=201: must be {wanted}"


def test_sizes_that_follow_from_the_number_of_instances():
    pic, moco = PretrainConfig(method="pic"), PretrainConfig(method="moco_v2")
    assert pic.window(1_281_167) == (2**17, 2**14)
    assert pic.window(5000) == (625, 78)
    assert pic.window(3) == (1, 1)
    assert pic.replace(pic_window=100).window(5000) == (100, 12)
    assert pic.replace(pic_window=100, pic_stride=7).window(5000) == (100, 7)
    assert pic.replace(pic_window=0).window(5000) is None
    assert moco.window(5000) is None
    assert (moco.queue_size(1_281_167), moco.queue_size(5000), moco.queue_size(1)) == (65536, 2500, 1)
    assert moco.replace(moco_queue=7).queue_size(5000) == 7
    with pytest.raises(UserError) as refusal:
        pic.replace(pic_window=101, dataset="folder:few").validate_with_data(100)
    assert str(refusal.value) == "--pic_window=101: must be at most the 100 instances of --dataset=folder:few"
    with pytest.raises(UserError) as refusal:
        pic.replace(pic_window=101, dataset="synthetic").validate_with_data(100, flag="num_instances")
    assert str(refusal.value) == "--pic_window=101: must be at most --num_instances=100"


def test_class_weights_have_settings_of_their_own():
    assert (VALID.effective_class_weight_decay, VALID.effective_class_momentum) == (1e-4, 0.9)
    own = VALID.replace(class_weight_decay=0.0, class_momentum=0.0)
    assert (own.effective_class_weight_decay, own.effective_class_momentum) == (0, 0)
    diet = VALID.replace(method="diet")
    assert diet.effective_class_weight_decay == 0.05
    assert diet.replace(diet_optimizer="sgd").effective_class_weight_decay == 1e-4
    assert diet.replace(class_weight_decay=0.01).effective_class_weight_decay == 0.01


def test_class_weights_are_looked_at_where_there_are_some(tmp_path):
    write_run(tmp_path, VALID.replace(workdir=str(tmp_path)))
    assert load_classification(str(tmp_path)) == VALID.replace(workdir=str(tmp_path))
    write_run(tmp_path, VALID.replace(method="simclr"))
    with pytest.raises(UserError) as refusal:
        load_classification(str(tmp_path))
    assert str(refusal.value) == (
        f"--workdir={tmp_path}: holds a run of --method=simclr, wanted one of --method=instance, whose class weights"
        f" are looked at"
    )


def test_learning_rate_scales_with_the_batch():
    assert VALID.peak_learning_rate == pytest.approx(0.48)
    assert VALID.replace(batch_size=1024).peak_learning_rate == pytest.approx(0.12)
    assert VALID.replace(batch_size=1024, scale_learning_rate=False).peak_learning_rate == pytest.approx(0.48)


@pytest.mark.parametrize(("exposures", "epochs"), [(0, 7), (70, 7), (71, 8), (80, 8), (1000, 100)])
def test_exposures_make_a_run_longer_never_shorter(exposures, epochs):
    config = VALID.replace(epochs=7, exposures=exposures).for_instances(10)
    assert (config.epochs, config.exposures) == (epochs, 0)


def test_epochs_of_contrast_are_below_those_that_exposures_make():
    config = VALID.replace(epochs=7, exposures=1000, contrast_epochs=9, smoothing=0)
    config.validate()
    config.validate_with_data(100)
    with pytest.raises(UserError, match=r"^--contrast_epochs=9: must be below --epochs=7, the instance"):
        config.validate_with_data(1000)
    with pytest.raises(UserError, match=r"^--contrast_epochs=9: must be below --epochs=7, the instance"):
        config.replace(exposures=0).validate()


@pytest.mark.parametrize(("epochs", "warmup", "effective"), [(1000, 10, 10), (100, 10, 10), (40, 10, 4), (5, 0.2, 0.2)])
def test_warmup_is_a_tenth_of_the_run_at_most(epochs, warmup, effective):
    assert VALID.replace(epochs=epochs, warmup_epochs=warmup).effective_warmup_epochs == pytest.approx(effective)


def test_config_does_not_import_tensorflow():
    modules = "instcls_tf.config, instcls_tf.distributed.launcher, instcls_tf.classifier.expected_loss"
    program = f"import sys, {modules}; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "instcls_tf.config" in modules
    assert not {"tensorflow", "horovod", "numpy", "absl.flags"} & set(modules)


def test_whole_numbers_are_the_fractions_that_flags_make_of_them():
    """From Python, from the command line and from run.flags a recipe reads alike."""
    whole, fraction = (PretrainConfig(workdir="run", dataset="digits", warmup_epochs=epochs) for epochs in (10, 10.0))
    assert whole.as_flags() == fraction.as_flags()
    assert recipe_of(whole) == recipe_of(fraction)
    assert recipe_of(PretrainConfig()) == recipe_of(PretrainConfig(warmup_epochs=10.0))
    of_numpy = PretrainConfig(workdir="run", epochs=np.int64(20), learning_rate=np.float32(0.5), exposures=3e5)
    assert (
        of_numpy.as_flags() == PretrainConfig(workdir="run", epochs=20, learning_rate=0.5, exposures=300_000).as_flags()
    )


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"epochs": 2.5}, "--epochs=2.5: must be a whole number"),
        ({"batch_size": "64"}, "--batch_size=64: must be a whole number"),
        ({"max_steps": True}, "--max_steps=True: must be a whole number"),
        ({"views": None}, "--views=None: must be a whole number"),
        ({"momentum": "high"}, "--momentum=high: must be a number"),
        ({"exposures": float("inf")}, "--exposures=inf: must be a whole number"),
    ],
)
def test_what_is_no_number_is_refused_before_anything_is_written(changes, wanted):
    """A run of 2.5 epochs would make its prior, write a run.flags that nobody can read, and fail."""
    with pytest.raises(UserError, match=re.escape(wanted)):
        VALID.replace(**changes).validate()
