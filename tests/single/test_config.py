"""The recipe: what it refuses, in which words, and that run.flags brings every field back."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from instcls_tf import config as recipe
from instcls_tf.config import NOT_RECIPE, PretrainConfig, load_run, refuse_other_recipe, run_flags_path
from instcls_tf.errors import UserError

ROOT = Path(__file__).resolve().parents[2]

VALID = PretrainConfig(workdir="run")
NAN, INFINITE = float("nan"), float("inf")

# A value for every field that is not its default.
CHANGED = PretrainConfig(
    workdir="runs/a b",
    dataset="folder:/data/my photos=1",
    data_dir="/data/tfds",
    tfds_split="train[:10%]",
    max_bad_fraction=0.5,
    image_size=96,
    augmentation="digits",
    crop_min_area=0.08,
    color_strength=2.0,
    blur_probability=0.25,
    encoder="resnet18",
    width_multiplier=0.25,
    stem="small",
    mlp_head=False,
    embedding_size=64,
    zero_init_last_gamma=False,
    batch_size=128,
    micro_batch=32,
    views=3,
    epochs=7,
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
    seed=3,
    log_every=1,
    checkpoint_every=0,
    online_knn_every=2,
    max_steps=0,
)


def write_run(folder, config: PretrainConfig) -> str:
    path = run_flags_path(str(folder))
    Path(path).write_text(config.as_flags())
    return path


def test_defaults_are_valid():
    VALID.validate()
    VALID.validate_with_data(1_281_167)


AT_LEAST_1, ABOVE_0, NOT_NEGATIVE, SHARE = "at least 1", "a number above 0", "0 or more", "0 or more and below 1"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"workdir": ""}, "--workdir is missing: name the folder that receives the run"),
        ({"encoder": "vgg"}, "--encoder=vgg: must be one of resnet50, resnet18"),
        ({"stem": "big"}, "--stem=big: must be one of imagenet, small"),
        ({"augmentation": "moco"}, "--augmentation=moco: must be one of simclr, digits, none"),
        ({"smoothing_loss": "kl"}, "--smoothing_loss=kl: must be one of marginal, cross_entropy"),
        (
            {"classifier_init": "zeros"},
            "--classifier_init=zeros: must be one of raw_running_bn, raw_batch_bn, raw_fixed_bn, random",
        ),
        ({"class_weights_dtype": "int8"}, "--class_weights_dtype=int8: must be one of float32, bfloat16"),
        ({"precision": "half"}, "--precision=half: must be one of float32, mixed_bfloat16, mixed_float16"),
        *(
            ({name: value}, f"--{name}={value}: must be {wanted}")
            for names, values, wanted in (
                (
                    ("image_size", "embedding_size", "batch_size", "views", "micro_batch", "epochs", "log_every"),
                    (0, -1),
                    AT_LEAST_1,
                ),
                (
                    ("temperature", "width_multiplier", "classifier_learning_rate_factor"),
                    (0.0, -0.1, NAN, INFINITE),
                    ABOVE_0,
                ),
                (("learning_rate", "weight_decay", "warmup_epochs"), (-0.1, NAN, INFINITE), NOT_NEGATIVE),
                (("bn_burn_in", "sampled_classes", "checkpoint_every", "hard_negatives"), (-1,), NOT_NEGATIVE),
                (("smoothing", "momentum"), (-0.1, 1.0, NAN), SHARE),
                (("seed",), (-1, 2**31), "0 or more and below 2147483648"),
                (("max_steps",), (-1,), NOT_NEGATIVE),
                (("blur_probability", "max_bad_fraction"), (-0.1, 1.1, NAN), "0 to 1"),
                (("color_strength",), (-0.1, 2.6, NAN), "0 to 2.5"),
                (("crop_min_area",), (0.0, 1.1, NAN), "above 0 and at most 1"),
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
    assert str(refusal.value) == f"--micro_batch={largest + 1}: must be {wanted}"


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
    VALID.replace(hard_negatives=1).validate_with_data(4, num_workers=4)


@pytest.mark.parametrize(("sampled", "batch", "fewest"), [(63, 64, 64), (201, 64, 64), (199, 4096, 200)])
def test_sample_lies_between_the_batch_and_all(sampled, batch, fewest):
    config = VALID.replace(smoothing=0.0, sampled_classes=sampled, batch_size=batch)
    with pytest.raises(UserError) as refusal:
        config.validate_with_data(200)
    wanted = f"between the {fewest} positive classes of a batch and the 200 instances of the dataset"
    assert str(refusal.value) == f"--sampled_classes={sampled}: must be {wanted}"


def test_sample_may_be_the_batch_or_all():
    for size in (64, 200):
        VALID.replace(smoothing=0.0, sampled_classes=size, batch_size=64).validate_with_data(200)


def test_learning_rate_scales_with_the_batch():
    assert VALID.peak_learning_rate == pytest.approx(0.48)
    assert VALID.replace(batch_size=1024).peak_learning_rate == pytest.approx(0.12)
    assert VALID.replace(batch_size=1024, scale_learning_rate=False).peak_learning_rate == pytest.approx(0.48)


@pytest.mark.parametrize(("epochs", "warmup", "effective"), [(1000, 10, 10), (100, 10, 10), (40, 10, 4), (5, 0.2, 0.2)])
def test_warmup_is_a_tenth_of_the_run_at_most(epochs, warmup, effective):
    assert VALID.replace(epochs=epochs, warmup_epochs=warmup).effective_warmup_epochs == pytest.approx(effective)


def test_run_flags_bring_every_field_back(tmp_path):
    for field in dataclasses.fields(PretrainConfig):
        assert getattr(CHANGED, field.name) != field.default, f"{field.name} is not changed"
    write_run(tmp_path, CHANGED)
    loaded = load_run(str(tmp_path))
    assert loaded == CHANGED
    for field in dataclasses.fields(PretrainConfig):  # 1 == 1.0 == True
        assert type(getattr(loaded, field.name)) is type(getattr(CHANGED, field.name)), field.name


def test_run_flags_bring_the_defaults_back(tmp_path):
    write_run(tmp_path, VALID)
    assert load_run(str(tmp_path)) == VALID


def test_run_flags_may_have_comments_and_empty_lines(tmp_path):
    path = write_run(tmp_path, VALID)
    Path(path).write_text("# mine\n\n--seed=4\nepochs=3\n")
    assert load_run(str(tmp_path)) == PretrainConfig(seed=4, epochs=3)


def test_no_run_to_load(tmp_path):
    with pytest.raises(UserError) as refusal:
        load_run(str(tmp_path))
    assert str(refusal.value) == f"--workdir={tmp_path}: holds no run ({tmp_path}/run.flags: No such file or directory)"


@pytest.mark.parametrize("line", ["--sed=4", "--seed", "--seed=four", "--mlp_head=yes", "seed 4", "--nomlp_head"])
def test_run_flags_that_cannot_be_understood(tmp_path, line):
    path = write_run(tmp_path, VALID)
    Path(path).write_text(f"--epochs=3\n{line}\n")
    with pytest.raises(UserError) as refusal:
        load_run(str(tmp_path))
    assert str(refusal.value) == f"{path}: cannot understand the line {line!r}"


def test_an_empty_or_new_folder_starts_a_run(tmp_path):
    assert not refuse_other_recipe(VALID.replace(workdir=str(tmp_path)))
    assert not refuse_other_recipe(VALID.replace(workdir=str(tmp_path / "not" / "yet")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(PretrainConfig)])
def test_continues_the_same_recipe_only(tmp_path, field):
    write_run(tmp_path, VALID.replace(workdir="elsewhere"))
    before, now = getattr(load_run(str(tmp_path)), field), getattr(CHANGED, field)
    config = VALID.replace(workdir=str(tmp_path))
    if field in NOT_RECIPE:
        assert refuse_other_recipe(config if field == "workdir" else config.replace(**{field: now}))
        return
    with pytest.raises(UserError) as refusal:
        refuse_other_recipe(config.replace(**{field: now}))
    assert str(refusal.value) == (
        f"--workdir={tmp_path} belongs to a run with --{field}={before}, this one has --{field}={now}:"
        " give the same flags to continue it, or another folder"
    )


def test_a_file_is_no_workdir(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(UserError) as refusal:
        refuse_other_recipe(VALID.replace(workdir=str(path)))
    assert str(refusal.value) == f"--workdir={path}: is a file, not a folder"
    with pytest.raises(UserError) as refusal:
        refuse_other_recipe(VALID.replace(workdir=str(path / "below")))
    assert str(refusal.value) == f"--workdir={path}/below: cannot write to {path}"


@pytest.mark.parametrize("holds_run", [False, True])
def test_a_folder_without_permission(tmp_path, monkeypatch, holds_run):
    if holds_run:
        write_run(tmp_path, VALID)
    # Root, as whom containers run, may write everywhere.
    monkeypatch.setattr(recipe.os, "access", lambda path, mode: path != str(tmp_path) or not mode & os.W_OK)
    with pytest.raises(UserError) as refusal:
        refuse_other_recipe(VALID.replace(workdir=str(tmp_path)))
    assert str(refusal.value) == f"--workdir={tmp_path}: cannot write to {tmp_path}"


def test_config_does_not_import_tensorflow():
    program = "import sys, instcls_tf.config, instcls_tf.launcher, instcls_tf.thermometer; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert "instcls_tf.config" in modules
    assert not {"tensorflow", "horovod", "numpy", "absl.flags"} & set(modules)
