"""What a run is warned of before it begins."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import tensorflow as tf

from instcls_tf.config import PretrainConfig
from instcls_tf.data.sources import open_source
from instcls_tf.pretraining import advice
from instcls_tf.pretraining.speed import products_of_step
from tests.images import write_images

RATE = 1e11


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """Images of 20 to 24 pixels, and one that is none."""
    root = tmp_path_factory.mktemp("images")
    write_images(root, [f"{number:02d}.jpg" for number in range(10)])
    (root / "99.jpg").write_bytes(b"no image")
    return f"folder:{root}"


def said(dataset: str, on_cpu: bool = True, num_workers: int = 1, **settings) -> list[str]:
    config = PretrainConfig(workdir="run", dataset=dataset, **settings)
    return list(advice.sentences(config, open_source(dataset), lambda: RATE, on_cpu, num_workers))


FITS = {"encoder": "resnet18", "batch_size": 4, "image_size": 32}


def test_a_fitting_recipe_needs_no_warning(folder):
    assert said(folder, **FITS) == []
    assert said("digits", **{**FITS, "image_size": 64}) == []


def test_a_batch_of_more_than_all_images(folder):
    (sentence,) = said(folder, **{**FITS, "batch_size": 4096})
    assert sentence.startswith("--batch_size=4096 is more than the 11 images: an epoch is a single step; take")
    assert sentence.endswith("; take --batch_size=2 (6 steps an epoch)")  # the preset's 64 are more as well
    (sentence,) = said("digits", **{**FITS, "batch_size": 4096})
    assert "; take --batch_size=64 (23 steps an epoch), or --flagfile=flags/presets/photos.flags: " in sentence
    assert sentence.endswith("at the 100 billion a second of a bare matrix product here)")


def of_prior(count: int, num_workers: int = 1, **settings) -> list[str]:
    """What is said of `count` images where nothing else is to be said."""
    config = PretrainConfig(**{"workdir": "run", "dataset": "digits", "encoder": "resnet18", **settings})
    return list(advice.sentences(config, SimpleNamespace(num_instances=count), lambda: RATE, False, num_workers))


def test_a_burn_in_of_too_few_steps():
    begin = "--bn_burn_in=1 with --batch_size=4096 of 5000 images is 2 update(s) of BN's statistics before the first"
    end = (
        " class weights are taken: 81% of the initial ones remain, nearly as with --classifier_init=raw_fixed_bn; take"
    )
    assert of_prior(5000) == [f"{begin}{end} --bn_burn_in=8, or --batch_size=256"]
    assert of_prior(5000, num_workers=5) == [f"{begin}{end} --bn_burn_in=8"]  # of which a batch has a group each
    assert of_prior(5000, bn_burn_in=8) == of_prior(5000, batch_size=256) == []
    (without,) = of_prior(5000, bn_burn_in=0, batch_size=256)
    assert " is 0 update(s) " in without and without.endswith("; take --bn_burn_in=1")
    assert len(of_prior(5000, batch_size=834)) == 1 and of_prior(5000, batch_size=833) == []  # 6 steps, and 7


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "simclr"},
        {"classifier_init": "raw_batch_bn"},
        {"classifier_init": "random"},
        {"init": "weights.npz"},
        {"extend_from": "runs/before"},
        {"contrast_epochs": 1},
    ],
)
def test_a_prior_that_has_no_burn_in_or_no_need_of_it(changes):
    assert of_prior(5000, **changes) == []


@pytest.mark.parametrize(
    ("preset", "count"),
    [("digits", 1437), ("cifar10", 5000), ("photos", 400), ("small_images", 400), ("imagenet", 1_281_167)],
)
def test_no_burn_in_of_a_preset_is_too_short(preset, count):
    config = PretrainConfig.from_flagfile(preset, workdir="run", encoder="resnet18")
    assert list(advice.sentences(config, SimpleNamespace(num_instances=count), lambda: RATE, False)) == []


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count", [8, 11, 100, 300, 1437])
def test_what_is_advised_fits_the_workers(num_workers, count):
    """As a whole: a batch of the advised size has a BN group for each of them, and so has a preset that is named."""
    config = PretrainConfig(workdir="run", dataset="digits")
    sentences = list(advice.sentences(config, SimpleNamespace(num_instances=count), lambda: RATE, True, num_workers))
    advised = dict(re.findall(r"--(batch_size|micro_batch)=(\d+)", sentences[0].partition("; take ")[2]))
    changed = config.replace(**{name: int(value) for name, value in advised.items()})
    changed.validate(num_workers)
    assert changed.batch_size < 4096 and ("micro_batch" in advised) == (num_workers > -(-changed.batch_size // 64))
    for sentence in sentences:
        for preset in re.findall(r"presets/(\w+)\.flags", sentence):
            PretrainConfig.from_flagfile(preset, workdir="run").validate(num_workers)
    assert ("photos.flags" in sentences[1]) == (num_workers <= 2)
    assert num_workers <= 2 or sentences[1].startswith("--encoder=resnet50 without a GPU: take --encoder=resnet18: ")


def test_an_image_size_without_a_preset_that_fits(folder):
    (sentence,) = said(folder, num_workers=3, **{**FITS, "image_size": 224})
    assert ": take --image_size=32: " in sentence and "presets" not in sentence


def test_a_handful_of_images_needs_no_batch_size(tmp_path):
    write_images(tmp_path, [f"{number}.jpg" for number in range(7)])
    assert said(f"folder:{tmp_path}", **{**FITS, "batch_size": 4096}) == []


def test_a_large_network_on_a_cpu(folder):
    (sentence,) = said(folder, **{**FITS, "encoder": "resnet50"})
    assert sentence.startswith("--encoder=resnet50 without a GPU: take --flagfile=flags/presets/small_images.flags: ")
    assert said(folder, on_cpu=False, **{**FITS, "encoder": "resnet50"}) == []


def test_a_gpu_that_tensorflow_cannot_load(folder, monkeypatch):
    """Told of a run that goes on, too: the machine may be another one than that on which it began."""
    monkeypatch.setattr(advice.gpus, "are_there", lambda: True)
    config = PretrainConfig(workdir="run", dataset=folder, **{**FITS, "batch_size": 4096})
    first, second = (list(advice.warnings_of(config, open_source(folder), 1, begins)) for begins in (True, False))
    assert len(first) == 2 and second == first[:1]
    assert second[0].startswith("NVIDIA's driver has a GPU, and TensorFlow cannot load it: CPUs compute; pip install '")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    assert list(advice.warnings_of(config, open_source(folder), 1, False)) == []


def test_steps_that_the_watchdog_may_take_for_a_standstill(folder):
    """By the bare multiplications, so only where even these take too long; one worker has no watchdog."""
    config = PretrainConfig(workdir="run", dataset=folder, **FITS)
    least = products_of_step(config, 11) / RATE
    (sentence,) = said(folder, num_workers=2, **FITS, stall_timeout=1.9 * least)
    assert sentence.startswith(
        f"--stall_timeout={1.9 * least:g} ends a job in which nothing moves for so many seconds,"
    )
    assert (
        " a step of 4 images takes less than a second at best (by the networks' multiplications, at the 10" in sentence
    )
    for stall_timeout, num_workers in ((2.1 * least, 2), (0.0, 2), (1.9 * least, 1)):
        assert said(folder, num_workers=num_workers, **FITS, stall_timeout=stall_timeout) == []


def test_a_network_too_narrow_for_onednn(folder, monkeypatch):
    narrow = {**FITS, "width_multiplier": 0.125}
    (sentence,) = said(folder, **narrow)
    assert sentence.startswith("--width_multiplier=0.125 without a GPU: ")
    assert "take --width_multiplier=0.25" in sentence
    assert said(folder, on_cpu=False, **narrow) == said(folder, **FITS, width_multiplier=0.25) == []
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert said(folder, **narrow) == []


def test_an_image_size_that_is_not_the_images(folder, tmp_path):
    (sentence,) = said(folder, **{**FITS, "image_size": 224})
    assert sentence.startswith("--image_size=224 is 9.3 times the images' own 24 pixels: take --image_size=32, or ")
    assert said(folder, **{**FITS, "image_size": 47}) == []
    from PIL import Image

    for name in "ab":
        Image.new("RGB", (300, 200)).save(tmp_path / f"{name}.png")
    (sentence,) = said(f"folder:{tmp_path}", **{**FITS, "batch_size": 2})
    assert sentence.startswith("--image_size=32 leaves little of images of 200 pixels: take --image_size=96, or --fl")
    assert said(f"folder:{tmp_path}", **{**FITS, "batch_size": 2, "image_size": 64}) == []
