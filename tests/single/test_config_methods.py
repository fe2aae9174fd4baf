"""What of the recipe goes with which `--method`: temperatures, settings of one method alone, presets for all."""

from __future__ import annotations

import pytest

from instcls_tf import config as recipe
from instcls_tf.config import PretrainConfig
from instcls_tf.errors import UserError
from instcls_tf.run.workdir import load_run
from tests.recipes import VALID, write_run

INFINITE = float("inf")


@pytest.mark.parametrize("method", recipe.METHODS)
def test_a_method_has_its_temperature_unless_told_otherwise(tmp_path, method):
    config = PretrainConfig(workdir=str(tmp_path), method=method)
    assert config.temperature == recipe.TEMPERATURES[method]
    assert VALID.replace(method=method, workdir=str(tmp_path)) == config
    write_run(tmp_path, config)
    assert load_run(str(tmp_path)) == config
    config.validate()
    config.validate_with_data(1_281_167)
    if method != "diet":
        assert config.replace(temperature=0.5, method="simclr").temperature == 0.5


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "byol"}, "--method=byol: must be one of instance, simclr, moco_v2, pic, diet"),
        ({"diet_optimizer": "lars"}, "--diet_optimizer=lars: must be one of adamw, sgd"),
        ({"method": "moco_v2", "views": 3}, "--views=3: must be 2 with --method=moco_v2, a query and its key"),
        ({"method": "simclr", "views": 1}, "--views=1: must be at least 2, which are compared with each other"),
        ({"batch_contrast": 1.0, "views": 1}, "--views=1: must be at least 2, which are compared with each other"),
        (
            {"method": "diet", "temperature": 0.2},
            "--temperature=0.2: must be left out with --method=diet, which has none",
        ),
        (
            {"method": "simclr", "batch_contrast": 1.0},
            "--batch_contrast=1.0: is of --method=instance, --method=simclr has nothing of the kind: leave it out, or"
            " add --batch_contrast=0 after a flagfile that has it",
        ),
        (
            {"method": "pic", "class_weights_dtype": "bfloat16"},
            "--class_weights_dtype=bfloat16: is of --method=instance, --method=pic has nothing of the kind: leave it"
            " out, or add --class_weights_dtype=float32 after a flagfile that has it",
        ),
        ({"batch_contrast": -1.0}, "--batch_contrast=-1.0: must be 0 or more"),
        ({"batch_contrast_temperature": 0.0}, "--batch_contrast_temperature=0.0: must be a number above 0"),
        ({"prior_every": -1}, "--prior_every=-1: must be 0 or more"),
        (
            {"prior_every": 2, "classifier_init": "random"},
            "--prior_every=2: takes the contrastive prior again, but --classifier_init=random has none: leave it out,"
            " or add --prior_every=0 after a flagfile that has it",
        ),
        (
            {"contrast_epochs": 10, "epochs": 10},
            "--contrast_epochs=10: must be below --epochs=10, the instance classification follows",
        ),
        ({"class_weight_decay": -0.1}, "--class_weight_decay=-0.1: must be 0 or more"),
        ({"class_weight_decay": INFINITE}, "--class_weight_decay=inf: must be 0 or more"),
        ({"class_momentum": 1.0}, "--class_momentum=1.0: must be 0 or more and below 1"),
        ({"moco_momentum": 1.0}, "--moco_momentum=1.0: must be 0 or more and below 1"),
        ({"diet_label_smoothing": -0.5}, "--diet_label_smoothing=-0.5: must be 0 or more and below 1"),
        ({"moco_queue": 0}, "--moco_queue=0: must be at least 1"),
        ({"pic_window": -1}, "--pic_window=-1: must be at least 0"),
        ({"pic_stride": 0}, "--pic_stride=0: must be at least 1"),
        ({"pic_recent_negatives": 0}, "--pic_recent_negatives=0: must be at least 1"),
    ],
)
def test_refuses_what_a_method_cannot_do(changes, sentence):
    with pytest.raises(UserError) as refusal:
        PretrainConfig(**{"workdir": "run", **changes}).validate()
    assert str(refusal.value) == sentence


OWN = {
    "moco_v2": {"moco_queue": 4096, "moco_momentum": 0.99},
    "pic": {"pic_recent_negatives": 100, "pic_window": 0, "pic_stride": 5},
    "diet": {"diet_label_smoothing": 0.5, "diet_optimizer": "sgd"},
}
SGD = {"diet": {"diet_optimizer": "sgd"}}  # which has a momentum


@pytest.mark.parametrize("method", recipe.METHODS)
@pytest.mark.parametrize(("owner", "name", "value"), [(o, *item) for o, own in OWN.items() for item in own.items()])
def test_what_only_another_method_has_is_refused(method, owner, name, value):
    """Not accepted without any effect; a run that began with it goes on."""
    config = PretrainConfig(workdir="run", method=method, **{name: value})
    config.validate(begins=False)
    if method == owner:
        config.validate()
        return
    with pytest.raises(UserError) as refusal:
        config.validate()
    sentence = f"--{name}={value}: is of --method={owner}, --method={method} has nothing of the kind: leave it out"
    assert str(refusal.value).startswith(sentence)


@pytest.mark.parametrize("method", recipe.METHODS)
@pytest.mark.parametrize("name", ["class_weight_decay", "class_momentum"])
def test_class_weights_have_settings_where_there_are_some(method, name):
    config = PretrainConfig(workdir="run", method=method, **{name: 0.0}, **SGD.get(method, {}))
    if method in ("instance", "pic", "diet"):
        config.validate()
        return
    with pytest.raises(UserError) as refusal:
        config.validate()
    assert str(refusal.value) == f"--{name}=0.0: is of class weights, --method={method} has none: leave it out"
    config.validate(begins=False)


@pytest.mark.parametrize("preset", ["cifar10", "digits", "imagenet"])
def test_presets_of_the_papers_method_are_for_the_others_too(preset):
    for method in recipe.METHODS:
        PretrainConfig.from_flagfile(preset, workdir="run", method=method).validate()


@pytest.mark.parametrize("preset", ["photos", "small_images"])
def test_presets_for_laptops_are_for_the_others_without_their_own_contrast(preset):
    for method in recipe.METHODS:
        PretrainConfig.from_flagfile(preset, workdir="run", method=method, batch_contrast=0).validate()


def test_cifar10_preset_fits_all_methods():
    preset = {"augmentation": "simclr", "image_size": 32, "batch_size": 128, "classifier_learning_rate_factor": 4.0}
    for method in recipe.METHODS:
        config = PretrainConfig(workdir="run", method=method, **preset)
        config.validate(2)
        config.validate_with_data(5000, 2)


def test_a_window_leaves_out_nothing_between_its_places():
    """Images in between would wait for several ways around, which is longer than what PIC's weights catch up with."""
    config = PretrainConfig(workdir="run", method="pic", pic_window=100, pic_stride=101)
    with pytest.raises(UserError) as refusal:
        config.validate_with_data(5000)
    assert str(refusal.value) == "--pic_stride=101: must be at most the window, 100"
    config.validate_with_data(5000, begins=False)
    config.replace(pic_stride=100).validate_with_data(5000)
